# SPDX-License-Identifier: AGPL-3.0-only
"""Where boxes, scores and classes are in the outputs of a detector.

The same shape means different things in different exports: six numbers a box are corners, score
and class, or centre, size, objectness and the score of one class, or ... Metadata, shapes and the
values of one trial run together leave one layout, or the model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fusion_ros.frame.coco import COCO_NAMES
from fusion_ros.frame.detector_metadata import DetectorMetadata
from fusion_ros.inference import EngineError
from fusion_ros.size import Size

__all__ = ["LAYOUTS", "Boxes", "Layout", "find_layout"]

LAYOUTS = ("auto", "yolov8", "obb", "yolov5", "yolox", "end2end", "rtdetr", "separate")
"""Values of `detector_layout`:

yolov8: [1, 4 + classes, N] centre, size and class scores (YOLOv8, v9, 11, 12; 26 if exported so);
obb: the same and an angle, [1, 5 + classes, N]; yolov5: [1, N, 5 + classes] with objectness
(YOLOv5 to v7); yolox: the same in units of grid cells, or in pixels; end2end: [1, N, 6] corners,
score and class (YOLOv10, 26, exports with suppression), or [N, 7] with the image's number first
(YOLOv7, whose class comes before the score, and YOLO-NAS); rtdetr: centre and size as shares of
the image (RT-DETR); separate: boxes, scores and classes as outputs of their own (EfficientNMS,
D-FINE, RT-DETR).
"""

_FORMS = {
    "yolov8": "[1, 4 + classes, N]",
    "obb": "[1, 5 + classes, N]",
    "yolov5": "[1, N, 5 + classes]",
    "yolox": "[1, N, 5 + classes]",
    "end2end": "[1, N, 6]",
    "rtdetr": "[1, N, 4 + classes]",
    "separate": "boxes, scores, classes",
}
_TASKS = ("detect", "obb", "pose", "segment")
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (4, 8, 16, 32, 64), (16, 32))
_TOLERANCE = 0.01
"""By which a score may lie outside [0, 1], as float16 rounds."""
_LARGEST = 8.0
"""Sides of the canvas that a box may have."""


@dataclass(frozen=True)
class Boxes:
    """Corners (N, 4) in pixels of the canvas, scores (N,) in [0, 1] and class ids (N,).

    dropped: rows that are not boxes (not finite, without a size, far outside, an unknown class).
    """

    corners: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    dropped: int = 0

    def __getitem__(self, keep: np.ndarray) -> Boxes:
        return replace(
            self, corners=self.corners[keep], scores=self.scores[keep], ids=self.ids[keep]
        )


@dataclass(frozen=True)
class Layout:
    """One of `LAYOUTS`, for a model of `classes` classes.

    output: the table's name, or the names of boxes, scores, classes and, if there is one, count.
    values: numbers a box. features_first: whether the table is [values, N] and not [N, values].
    scores: what follows the box, 'classes' (a score for each), 'objectness' (and a score for each
    class) or 'id' (score and class). classes: their number, None if unknown. corners: whether a
    box is x1, y1, x2, y2 and not centre and size. unit: whether boxes are shares of the canvas and
    not pixels. cells: whether they are in units of grid cells. angle: column of the angle in rad.
    overlapping: whether an object may have several boxes.
    """

    name: str
    output: tuple[str, ...]
    canvas: Size
    values: int
    classes: int | None
    scores: str = "classes"
    features_first: bool = False
    corners: bool = False
    unit: bool = False
    cells: bool = False
    angle: int | None = None
    overlapping: bool = True

    @property
    def fit(self) -> str:
        """How an image lies on the canvas, one of `letterbox.FITS`."""
        return {"yolox": "corner", "rtdetr": "stretch"}.get(self.name, "centre")

    @property
    def bytes_bgr(self) -> bool:
        """Whether the network takes BGR in [0, 255] and not RGB in [0, 1]."""
        return self.name == "yolox"

    def decode(self, outputs: Mapping[str, np.ndarray], confidence: float) -> Boxes:
        """Return the boxes of the first image with a score above `confidence`.

        Raises EngineError if the outputs are not of this layout, or not finite.
        """
        table = self.table(outputs)
        if table.shape[0] != self.values:
            raise EngineError(
                f"the detector gives {table.shape[0]} values a box, and {self.values} before"
            )
        if self.scores == "classes":
            classes = table[4 : 4 + self.classes]
            best = classes.max(axis=0)
            self._check_scores(best)
            keep = np.flatnonzero(best > confidence)
            scores, ids = best[keep], classes[:, keep].argmax(axis=0)
        elif self.scores == "objectness":
            self._check_scores(table[4])
            keep = np.flatnonzero(table[4] > confidence)  # a score is at most the objectness
            classes = table[5 : 5 + self.classes, keep]
            scores = classes.max(axis=0) * table[4, keep]
            self._check_scores(scores)
            ids = classes.argmax(axis=0)
            strong = scores > confidence
            keep, scores, ids = keep[strong], scores[strong], ids[strong]
        else:
            self._check_scores(table[4])
            keep = np.flatnonzero(table[4] > confidence)
            scores, ids = table[4, keep], table[5, keep]
        corners = self._corners(table, keep)
        good = self._plausible(corners, ids)
        boxes = Boxes(corners[good], scores[good].clip(0, 1), ids[good].astype(np.int64))
        return replace(boxes, dropped=int(len(good) - good.sum()))

    def table(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the first image's rows as (values, N) float32.

        Raises EngineError if the outputs have other shapes.
        """
        if self.name == "separate":
            return _join([np.asarray(outputs[name]) for name in self.output])
        table = np.asarray(outputs[self.output[0]])
        if table.ndim == 2 and table.shape[1] == 7:  # the image's number, corners, and two more
            rows = table[table[:, 0] == 0]
            columns = [1, 2, 3, 4, *_score_and_class(rows)]
            return rows[:, columns].T.astype(np.float32, copy=False)
        if table.ndim != 3 or not table.shape[0]:
            raise EngineError(f"the detector gives {table.shape}, expected {_FORMS[self.name]}")
        table = table[0].astype(np.float32, copy=False)
        return table if self.features_first else table.T

    def problem(self, outputs: Mapping[str, np.ndarray]) -> str:
        """Return why the values of a trial run are not of this layout; empty if they may be."""
        try:
            table = self.table(outputs)
        except EngineError as error:
            return str(error)
        if table.shape[0] != self.values:
            return f"{table.shape[0]} values a box"
        if not np.isfinite(table).all():
            return "values that are not finite"
        first = 5 if self.scores == "objectness" else 4
        last = 5 if self.scores == "id" else first + self.classes
        scores = table[4:last]
        if scores.size and not -_TOLERANCE <= scores.min() <= scores.max() <= 1 + _TOLERANCE:
            return f"scores from {scores.min():.4g} to {scores.max():.4g}"
        rows = np.flatnonzero(table[4:last].max(axis=0) > 0) if scores.size else np.array([], int)
        if not rows.size:
            return ""
        if self.scores == "id":
            ids = table[5, rows]
            if (ids != np.rint(ids)).any() or ids.min() < 0:
                return f"class ids such as {ids[(ids != np.rint(ids)) | (ids < 0)][0]:.4g}"
            if self.classes is not None and ids.max() >= self.classes:
                return f"class id {ids.max():.0f} of {self.classes} classes"
        if self.angle is not None and np.abs(table[self.angle, rows]).max() > math.pi:
            return f"angles of {np.abs(table[self.angle, rows]).max():.4g} rad"
        return self._problem_of_boxes(table[:4, rows], rows)

    def _problem_of_boxes(self, boxes: np.ndarray, rows: np.ndarray) -> str:
        if self.unit:
            outside = boxes.min() < -_TOLERANCE or boxes.max() > 1 + _TOLERANCE
            return f"boxes of {boxes.max():.4g} image sides" if outside else ""
        if self.name == "yolox":
            x, y, stride = self._grid()[:, rows]
            to_cell = np.abs(boxes[:2] - (np.stack([x, y]) + 0.5) * stride).mean()
            if self.cells != (np.abs(boxes[:2]).mean() < to_cell):
                return "places in " + ("pixels" if self.cells else "grid cells")
            if self.cells:
                return ""
        if boxes.max() < 2:
            return f"boxes that end at {boxes.max():.4g} px"
        sizes = boxes[2:] - boxes[:2] if self.corners else boxes[2:]
        # Of a trained network all are positive; of one with random weights, most.
        if (sizes > 0).all(axis=0).mean() < 0.5:
            return f"boxes of negative size, such as {sizes.min():.4g} px"
        return ""

    @staticmethod
    def _check_scores(scores: np.ndarray) -> None:
        if scores.size and not -_TOLERANCE <= scores.min() <= scores.max() <= 1 + _TOLERANCE:
            raise EngineError(
                f"the detector gives scores from {scores.min():.4g} to {scores.max():.4g}, "
                "expected 0 to 1"
            )

    def _corners(self, table: np.ndarray, keep: np.ndarray) -> np.ndarray:
        boxes = table[:4, keep].T
        with np.errstate(over="ignore", invalid="ignore"):
            if self.cells:
                x, y, stride = self._grid()[:, keep]
                centre = (boxes[:, :2] + np.stack([x, y], axis=1)) * stride[:, None]
                boxes = np.hstack((centre, np.exp(boxes[:, 2:]) * stride[:, None]))
            if self.unit:
                boxes = boxes * np.float32(self.canvas * 2)
            if self.corners:
                return boxes.copy()
            centre, half = boxes[:, :2], boxes[:, 2:] / 2
            if self.angle is not None:
                # The smallest upright box around the turned one.
                cos, sin = (abs(f(table[self.angle, keep])) for f in (np.cos, np.sin))
                half = np.stack(
                    (
                        half[:, 0] * cos + half[:, 1] * sin,
                        half[:, 0] * sin + half[:, 1] * cos,
                    ),
                    axis=1,
                )
            return np.concatenate((centre - half, centre + half), axis=1)

    def _plausible(self, corners: np.ndarray, ids: np.ndarray) -> np.ndarray:
        canvas = np.float32(self.canvas)
        with np.errstate(invalid="ignore", over="ignore"):
            sizes = corners[:, 2:] - corners[:, :2]
            centres = (corners[:, 2:] + corners[:, :2]) / 2
            good = np.isfinite(corners).all(axis=1) & np.isfinite(ids)
            good &= ((sizes > 0) & (sizes <= _LARGEST * canvas)).all(axis=1)
            good &= (np.abs(centres - canvas / 2) <= canvas).all(axis=1)
            most = 2**31 if self.classes is None else self.classes
            return good & (ids >= 0) & (ids < most) & (ids == np.rint(ids))

    def _grid(self) -> np.ndarray:
        """Column, row and stride of each cell, (3, N) float32."""
        levels = []
        for stride in _STRIDES[0]:
            rows, columns = np.mgrid[: self.canvas.height // stride, : self.canvas.width // stride]
            strides = np.full(rows.size, stride)
            levels.append(np.stack([columns.ravel(), rows.ravel(), strides]))
        return np.concatenate(levels, axis=1).astype(np.float32)


def _score_and_class(rows: np.ndarray) -> tuple[int, int]:
    """Columns of score and class in rows (N, 7): classes are whole numbers, scores are not."""
    fifth, sixth = rows[:, 5], rows[:, 6]
    with np.errstate(invalid="ignore"):
        is_class = (fifth == np.rint(fifth)).all()
    return (6, 5) if is_class or not (sixth == np.rint(sixth)).all() else (5, 6)


def find_layout(
    outputs: Mapping[str, np.ndarray],
    metadata: DetectorMetadata,
    canvas: Size,
    asked: str = "auto",
) -> Layout:
    """Return the layout of a detector.

    outputs: of a trial run. metadata: with `names` as the parameters and the file give them.
    canvas: size of the network's input. asked: one of `LAYOUTS`.
    Raises EngineError saying what was found if no layout fits, or more than one.
    """
    if asked not in LAYOUTS:
        raise ValueError(f"unknown layout '{asked}': choose one of {', '.join(LAYOUTS)}")
    if metadata.task and metadata.task not in _TASKS and asked == "auto":
        raise EngineError(
            f"not a detection model: its task is '{metadata.task}', which gives no boxes; expected "
            f"one of {', '.join(_TASKS)}"
        )
    found = [
        layout
        for layout in _candidates(outputs, metadata, canvas, asked)
        if asked in ("auto", layout.name)
    ]
    problems = {layout: layout.problem(outputs) for layout in found}
    fitting = [layout for layout in found if not problems[layout]]
    for narrow in (_of_coco(metadata), _of_count(outputs), _with_ids, _usual):
        if len(fitting) > 1:
            fitting = narrow(fitting) or fitting
    if len(fitting) == 1:
        return fitting[0]
    advice = (
        "give the class names by the parameter detector_names and the layout by detector_layout, "
        f"one of {', '.join(LAYOUTS[1:])}"
    )
    if fitting:
        names = " or ".join(sorted({f"{layout.name} {_FORMS[layout.name]}" for layout in fitting}))
        raise EngineError(
            f"the detector's outputs may be {names}: {_describe(outputs, metadata)}; {advice}"
        )
    reasons = "; ".join(f"for {layout.name} it has {text}" for layout, text in problems.items())
    reasons = reasons or _mismatch(outputs, metadata)
    raise EngineError(
        f"not a detection model that is understood ({reasons}): {_describe(outputs, metadata)}; "
        f"expected {', '.join(f'{name} {form}' for name, form in _FORMS.items())}; export one by "
        f"`make detector`, or {advice}"
    )


def _candidates(
    outputs: Mapping[str, np.ndarray], metadata: DetectorMetadata, canvas: Size, asked: str
) -> Iterator[Layout]:
    """Yield the layouts that shapes and metadata allow."""
    classes = None if metadata.names is None else len(metadata.names)
    found = partial(
        Layout,
        canvas=canvas,
        values=6,
        classes=classes,
        scores="id",
        corners=True,
        overlapping=False,
    )
    if separate := _separate(outputs):
        yield found("separate", separate)
        return
    tables = [name for name, array in outputs.items() if array.ndim == 3]
    flat = [name for name, array in outputs.items() if array.ndim == 2 and array.shape[1] == 7]
    if len(outputs) == 1 and flat:
        yield found("end2end", (flat[0],))
        return
    if len(tables) != 1:
        return
    (name,) = tables
    extra = _extra(outputs, metadata, asked)
    for features_first in (True, False):
        table = outputs[name][0] if features_first else outputs[name][0].T
        values, rows = table.shape
        if values >= 5 and (classes is not None or values <= rows):
            layout = Layout(
                "yolov8", (name,), canvas, values, classes, features_first=features_first
            )
            yield from _Reading(table, layout, metadata, asked, extra).layouts()


@dataclass(frozen=True)
class _Reading:
    """A detector's only table, read as (values a box, boxes), and what is known of the model.

    layout: what all readings have in common. extra: number of values behind a box's scores, None
    if it is not known.
    """

    table: np.ndarray
    layout: Layout
    metadata: DetectorMetadata
    asked: str
    extra: int | None

    @property
    def _known(self) -> bool:
        """Whether the user has named the layout."""
        return self.asked != "auto"

    @property
    def _is_detr(self) -> bool:
        return self.metadata.head == "RTDETRDecoder"

    @property
    def _may_overlap(self) -> bool:
        """Whether an object may have several boxes, as far as the metadata tell."""
        return self._known or not self.metadata.end2end

    def _classes(self, lead: int) -> int:
        """Return the number of classes if `lead` values and their scores fill a row, else 0."""
        rest = self.layout.values - lead
        if self.layout.classes is None:
            return max(rest - (self.extra or 0), 0)
        rest -= self.layout.classes
        fits = rest >= 0 if self.extra is None else rest == self.extra
        return self.layout.classes if fits else 0

    def layouts(self) -> Iterator[Layout]:
        """Yield the layouts of this reading."""
        if self._may_overlap and not self._is_detr:
            yield from self._class_scores()
            if self._known or not self.metadata.task:
                yield from self._objectness()
        if not self.layout.features_first:
            yield from self._end2end()
            yield from self._rtdetr()

    def _class_scores(self) -> Iterator[Layout]:
        """Boxes with a score for each class: YOLOv8 and later, turned boxes too."""
        task, features_first = self.metadata.task, self.layout.features_first
        named = self.layout.classes is not None
        upright = task != "obb" or self.asked == "yolov8"
        if upright and (features_first or named or self._known) and (count := self._classes(4)):
            yield replace(self.layout, classes=count)
        unknown = not named and not task and features_first
        turned = task == "obb" or self.asked == "obb" or unknown
        if turned and (count := self._classes(4 + (task != "obb"))):
            yield replace(self.layout, name="obb", classes=count, angle=4 + count)

    def _objectness(self) -> Iterator[Layout]:
        """Boxes with objectness before the class scores: YOLOv5, YOLOX."""
        count = self._classes(5)
        if not count:
            return
        layout = replace(self.layout, classes=count, scores="objectness")
        if not layout.features_first or self._known:
            yield replace(layout, name="yolov5")
        one_a_cell = self.table.shape[1] == _cells(layout.canvas, _STRIDES[0])
        # YOLOv6 has no objectness: it gives 1 everywhere.
        if not layout.features_first and one_a_cell and (self.table[4] != 1).any():
            yield replace(layout, name="yolox")
            yield replace(layout, name="yolox", cells=True)

    def _end2end(self) -> Iterator[Layout]:
        """One box an object, with its score and class."""
        if self._is_detr or (self.metadata.end2end is False and self.asked != "end2end"):
            return
        values = self.layout.values
        if values == 6 + self.extra if self.extra is not None else values >= 6:
            turned = self.metadata.task == "obb" and values > 6
            form = {"angle": 6} if turned else {"corners": True}
            yield replace(self.layout, name="end2end", scores="id", overlapping=False, **form)

    def _rtdetr(self) -> Iterator[Layout]:
        """Boxes as shares of the image."""
        if self.metadata.task not in ("", "detect") or not self._may_overlap:
            return
        layout = replace(self.layout, name="rtdetr", unit=True, overlapping=False)
        if layout.values == 6 and (self._is_detr or self._known):
            yield replace(layout, scores="id")
        if count := self._classes(4):
            yield replace(layout, classes=count)


def _extra(outputs: Mapping[str, np.ndarray], metadata: DetectorMetadata, asked: str) -> int | None:
    """Return how many values follow a box's scores; None if any number may."""
    masks = [array.shape[1] for array in outputs.values() if array.ndim == 4]
    if metadata.task == "obb":
        return 1
    if metadata.task == "pose":
        return metadata.keypoint_values
    if masks:
        return masks[0]
    if metadata.task == "segment" or (asked != "auto" and metadata.names is not None):
        return None
    return 0


def _separate(outputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Return the names of boxes, scores, classes and perhaps count; empty if there are none."""
    if not 3 <= len(outputs) <= 4:
        return ()
    found = []
    for words in (("box",), ("score", "conf"), ("class", "label", "cls"), ("num", "count")):
        found += [n for n in outputs if any(w in n.lower() for w in words) and n not in found][:1]
    if len(found) != len(outputs):
        return ()
    boxes, scores, ids = (outputs[name] for name in found[:3])
    rows = boxes.shape[:-1]
    fits = boxes.ndim in (2, 3) and boxes.shape[-1] == 4 and scores.shape == ids.shape == rows
    return tuple(found) if fits else ()


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return boxes, scores and classes of the first image as (6, N) float32."""
    boxes, scores, ids, *count = arrays
    if boxes.ndim == 3:
        boxes, scores, ids = boxes[0], scores[0], ids[0]
    if boxes.shape[1:] != (4,) or not len(boxes) == len(scores) == len(ids):
        raise EngineError(
            f"the detector gives boxes {boxes.shape}, scores {scores.shape}, classes {ids.shape}"
        )
    rows = len(boxes)
    if count and count[0].size:
        rows = min(max(int(count[0].ravel()[0]), 0), rows)
    table = np.column_stack((boxes, scores, ids))[:rows]
    return table.T.astype(np.float32, copy=False)


def _cells(canvas: Size, strides: Sequence[int]) -> int:
    return sum((canvas.height // s) * (canvas.width // s) for s in strides)


def _of_coco(metadata: DetectorMetadata):
    """Return a filter: without names, 80 classes are those of COCO."""

    def narrow(layouts: list[Layout]) -> list[Layout]:
        if metadata.names is not None:
            return []
        return [layout for layout in layouts if layout.classes == len(COCO_NAMES)]

    return narrow


def _of_count(outputs: Mapping[str, np.ndarray]):
    """Return a filter: networks give one box for each cell of their grids, or three."""

    def narrow(layouts: list[Layout]) -> list[Layout]:
        kept = []
        for layout in layouts:
            boxes = {"yolov8": 1, "obb": 1, "yolox": 1, "yolov5": 3}.get(layout.name, 0)
            rows = layout.table(outputs).shape[1]
            if any(boxes * _cells(layout.canvas, strides) == rows for strides in _STRIDES):
                kept.append(layout)
        return kept

    return narrow


def _with_ids(layouts: list[Layout]) -> list[Layout]:
    """Scores are hardly ever whole numbers, all of them: those are class ids."""
    return [layout for layout in layouts if layout.scores == "id"]


def _usual(layouts: list[Layout]) -> list[Layout]:
    """Only yolov8 and obb have the features first."""
    return [x for x in layouts if x.features_first == (x.name in ("yolov8", "obb"))]


def _mismatch(outputs: Mapping[str, np.ndarray], metadata: DetectorMetadata) -> str:
    tables = [array.shape[1:] for array in outputs.values() if array.ndim == 3]
    if metadata.names is not None and len(tables) == 1:
        count = min(tables[0]) - 4
        if count > 0:
            return f"the detector scores {count} classes, but {len(metadata.names)} are named"
    return "no layout has such outputs"


def _describe(outputs: Mapping[str, np.ndarray], metadata: DetectorMetadata) -> str:
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
    names = "no class names" if metadata.names is None else f"{len(metadata.names)} class names"
    return f"its outputs are {shapes}, with {names} and task {metadata.task or 'unknown'}"
