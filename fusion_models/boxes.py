# SPDX-License-Identifier: AGPL-3.0-only
"""Boxes of objects beside image pairs: read in YOLO form, checked, and joined over both cameras.

`<split>/boxes/{infrared,visible,fusion}/<stem>.txt` has a line `class x y width height` for each
object, centre and size as shares of the image. `infrared` and `visible` hold what a person marked
in that image alone, `fusion` what was marked in a fused one. A set that was marked only once has
`fusion` alone. The names of the classes are the lines of `classes.txt` in the split's folder or the
one above it; without that file they are `CLASSES`. Needs numpy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fusion_models.pairs import DataError, PairSet, shorten, visible_files

CLASSES = ("person", "bicycle", "car")
KINDS = ("infrared", "visible", "fusion")
SAME_OBJECT = 0.4
"""IoU from which a visible box and an infrared one of the same class are one object."""
EDGE = 1e-3
"""Boxes may reach over the image's edge by this share of its size: labels are rounded."""


@dataclass(frozen=True)
class Boxes:
    """Objects of one image.

    Attributes:
        classes: class numbers, `[N]` int64.
        corners: left, top, right, bottom as shares of width and height in [0, 1], `[N, 4]` float32.
    """

    classes: np.ndarray
    corners: np.ndarray

    @classmethod
    def empty(cls) -> Boxes:
        """No objects."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 4), np.float32))

    def __len__(self) -> int:
        return len(self.classes)

    def in_pixels(self, width: int, height: int) -> np.ndarray:
        """Corners in pixels of an image, `[N, 4]` float32."""
        return self.corners * np.array([width, height, width, height], np.float32)

    def as_yolo(self) -> str:
        """A line `class x y width height` for each object."""
        x1, y1, x2, y2 = self.corners.astype(np.float64).T
        rows = zip(self.classes, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        return "".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in rows)


@dataclass
class BoxReport:
    """What was read and what was wrong with it.

    Attributes:
        objects: number of boxes kept of each class, by name.
        problems: places by kind of problem, such as `{"swapped corners": ["00012N.txt:3"]}`.
    """

    objects: Counter = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def note(self, kind: str, place: str) -> None:
        """Add one place to a kind of problem."""
        self.problems.setdefault(kind, []).append(place)

    def __str__(self) -> str:
        objects = ", ".join(f"{count} {name}" for name, count in self.objects.items()) or "none"
        lines = [f"boxes: {objects}"]
        lines += [
            f"  {kind}: {len(places)} ({shorten(places, 4)})"
            for kind, places in self.problems.items()
        ]
        return "\n".join(lines)


def read_yolo(path: Path, classes: Sequence[str], report: BoxReport) -> Boxes:
    """Boxes of a label file; what is wrong with it goes into the report.

    Swapped corners (a negative size) are corrected, what reaches outside the image is clipped.
    Boxes wholly outside, boxes without area and those of unknown classes are left out.

    Raises:
        DataError: a line is not five numbers, the first of them whole.
    """
    kept, corners = [], []
    place = f"{path.parent.name}/{path.name}"
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if not any(line.strip() for line in lines):
        report.note("empty files", place)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            kind, x, y, width, height = map(float, line.split())
            if kind != int(kind) or not np.isfinite((x, y, width, height)).all():
                raise ValueError("not finite")
        except ValueError:
            raise DataError(
                f"{path}:{number}: '{line.strip()[:60]}'; expected class x y width height"
            ) from None
        where = f"{place}:{number}"
        if not 0 <= kind < len(classes):
            report.note(f"unknown class {int(kind)}", where)
            continue
        if width < 0 or height < 0:
            report.note("swapped corners, corrected", where)
            width, height = abs(width), abs(height)
        box = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        inside = box.clip(0, 1)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            kind_of = "without area" if not width * height else "outside the image"
            report.note(f"{kind_of}, left out", where)
            continue
        if np.abs(box - inside).max() > EDGE:
            report.note("partly outside the image, clipped", where)
        kept.append(int(kind))
        corners.append(inside)
    if not kept:
        return Boxes.empty()
    return Boxes(np.array(kept, np.int64), np.array(corners, np.float32))


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of each of N boxes with each of M, `[N, M]`."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-12)


def union(infrared: Boxes, visible: Boxes) -> Boxes:
    """All objects of a pair: the infrared boxes, and the visible ones that are not among them.

    A visible box is the same object as an infrared one of its class from an IoU of .4 on.
    """
    overlap = iou(visible.corners, infrared.corners)
    same = overlap * (visible.classes[:, None] == infrared.classes[None])
    new = ~(same >= SAME_OBJECT).any(1)
    return Boxes(
        np.concatenate((infrared.classes, visible.classes[new])),
        np.concatenate((infrared.corners, visible.corners[new])),
    )


def class_names(root: Path) -> tuple[str, ...]:
    """Names of a split's classes: the lines of its `classes.txt`, or else `CLASSES`."""
    for folder in (root, root.parent):
        if (folder / "classes.txt").is_file():
            lines = (folder / "classes.txt").read_text(encoding="utf-8-sig").splitlines()
            return tuple(line.strip().lower() for line in lines if line.strip())
    return CLASSES


def read_boxes(
    pairs: PairSet, kind: str = "union", report: BoxReport | None = None
) -> tuple[dict[str, Boxes], BoxReport]:
    """Boxes by stem of all pairs of a set that are labelled.

    Args:
        kind: 'infrared', 'visible', 'fusion', or 'union' of the first two (of a set that has
            `fusion` alone: that).
        report: to add to, for several sets.
    Returns:
        The boxes, and what was wrong: show it before training. A pair without a label file is left
        out and noted; in the union, a pair needs the file of one camera.
    Raises:
        DataError: no boxes of that kind, or a file is not in YOLO form.
    """
    report = report or BoxReport()
    folder = pairs.root / "boxes"
    there = [name for name in KINDS if (folder / name).is_dir()]
    wanted = {"union": ["infrared", "visible"]}.get(kind, [kind])
    if kind == "union" and there == ["fusion"]:
        wanted = there
    if missing := [name for name in wanted if name not in there]:
        raise DataError(
            f"{folder}: no {' and no '.join(missing)}/ with YOLO labels; there is "
            f"{', '.join(there) or 'nothing'}"
        )
    classes = class_names(pairs.root)
    files = {
        name: {p.stem: p for p in visible_files(folder / name) if p.suffix == ".txt"}
        for name in wanted
    }
    found: dict[str, Boxes] = {}
    for stem in pairs.stems:
        parts = []
        for name in wanted:
            if stem in files[name]:
                parts.append(read_yolo(files[name][stem], classes, report))
            else:
                report.note(f"no {name} labels", stem)
                parts.append(None)
        if all(part is None for part in parts):
            continue
        parts = [part if part is not None else Boxes.empty() for part in parts]
        found[stem] = union(*parts) if len(parts) == 2 else parts[0]
        report.objects.update(classes[number] for number in found[stem].classes)
    in_pairs = {ir.stem for ir in (pairs.root / "ir").iterdir()}
    for name in wanted:
        for stem in sorted(set(files[name]) - in_pairs - {"classes"}):
            report.note("labels without a pair", f"{name}/{stem}.txt")
    if not found:
        raise DataError(f"{folder}: no labels for any of the {len(pairs)} pairs of {pairs.name}")
    return found, report
