# SPDX-License-Identifier: AGPL-3.0-only
"""The slow measures of some of the pairs: quality, visibility, flicker, registration, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from fusion_models.evaluation import metrics
from fusion_models.evaluation.alignment import correlation
from fusion_models.evaluation.temporal import Motion
from fusion_models.evaluation.visibility import hidden_map, kept_boxes
from fusion_ros.frame.detector import Detection

__all__ = ["RULES", "SOURCES", "Sample", "Shot", "mean_figures", "measure"]

SOURCES = ("thermal", "rgb")
RULES = ("average", "maximum")
_REACH = 24
"""Largest residual shift in pixels that is looked for, in images of 640 pixels a side."""
_LEAST_SIDE = 65
"""Pixels a side that the metrics need."""
_SHOWN = 560
"""Width of the pictures in the page, pixels."""
_SAME = 0.5
"""IoU from which two boxes of a class are one object."""


@dataclass(frozen=True)
class Shot:
    """One pair and what became of it. Luminances are `(H, W)` uint8, copies.

    index: of the pair; at_s: since the first stamp; thermal: registered; fused: by method; colour:
    BGR images by method and of `rgb`; seen: `(H, W)` bool or None for all; boxes: detections by
    source and method, empty without a detector; before: the preceding pair, None if it is missing.
    """

    index: int
    at_s: float
    thermal: np.ndarray
    visible: np.ndarray
    fused: dict[str, np.ndarray]
    colour: dict[str, np.ndarray] = field(default_factory=dict)
    seen: np.ndarray | None = None
    boxes: dict[str, list[Detection]] = field(default_factory=dict)
    before: Shot | None = None


@dataclass(frozen=True)
class Sample:
    """The measures of one pair.

    rows: figures by row (sources, rules, methods) and name; surface: correlation of the edges, see
    `alignment`; scale: image pixels for each of its pixels; pictures: JPEG files by row; crops: of
    objects that one image alone shows: (kind, class, JPEG).
    """

    index: int
    at_s: float
    rows: dict[str, dict[str, float]]
    surface: np.ndarray
    scale: float
    pictures: dict[str, bytes]
    objects: dict[str, dict[str, int]] = field(default_factory=dict)
    crops: list[tuple[str, str, bytes]] = field(default_factory=list)


def measure(shot: Shot) -> Sample:
    """Measure one pair; everything is a pure function of its images."""
    images = _rows(shot)
    region = _region(shot.seen, shot.thermal.shape)
    cut = {name: image[region] for name, image in images.items()}
    seen = None if shot.seen is None else shot.seen[region]
    objects = _objects(shot.boxes)
    rows = {}
    for name, image in cut.items():
        rows[name] = _figures(image, cut["thermal"], cut["rgb"], seen)
        kept = kept_boxes(images[name], shot.thermal, shot.visible, [box for box, _ in objects])
        rows[name]["objects"] = float(len(kept))
        rows[name]["lost_objects"] = float(sum(one.lost for one in kept))
    if shot.before is not None and shot.before.thermal.shape == shot.thermal.shape:
        _add_flicker(rows, images, _rows(shot.before))
    scale = max(shot.visible.shape) / 640
    surface = _surface(shot, scale)
    return Sample(
        shot.index,
        shot.at_s,
        rows,
        surface,
        scale if scale > 1 else 1.0,
        _pictures(shot),
        _found(shot.boxes),
        _crops(shot),
    )


def _rows(shot: Shot) -> dict[str, np.ndarray]:
    """All luminances by row: the sources, the rules, the methods."""
    thermal, visible = shot.thermal, shot.visible
    average = np.rint((thermal.astype(np.float32) + visible) / 2).astype(np.uint8)
    rules = {"average": average, "maximum": np.maximum(thermal, visible)}
    return {"thermal": thermal, "rgb": visible, **rules, **shot.fused}


def _region(seen: np.ndarray | None, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rectangle that holds all that the thermal camera sees."""
    if seen is None or not seen.any():
        return slice(0, shape[0]), slice(0, shape[1])
    x, y, width, height = cv2.boundingRect(seen.astype(np.uint8))
    return slice(y, y + height), slice(x, x + width)


def _figures(
    fused: np.ndarray, thermal: np.ndarray, visible: np.ndarray, seen: np.ndarray | None
) -> dict[str, float]:
    found: dict[str, float] = {}
    if min(fused.shape) >= _LEAST_SIDE:
        found.update(metrics.evaluate(fused, thermal, visible).as_dict())
        # A source equals itself: its distance to itself says nothing, and is infinite.
        if not np.isfinite(found["PSNR"]):
            found["PSNR"] = 99.0
    hidden = hidden_map(fused, thermal, visible)
    found["hidden"] = float(hidden.mean() if seen is None else hidden[seen].mean())
    found["over_exposure"] = metrics.over_exposure(fused)
    return found


def _add_flicker(
    rows: dict[str, dict[str, float]],
    after: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
) -> None:
    motion = Motion(before["rgb"], after["rgb"])
    own = {name: motion.flicker(before[name], after[name]) for name in after if name in before}
    if own.get("thermal") is None or own.get("rgb") is None:
        return
    for name, value in own.items():
        rows[name]["flicker"] = value - max(own["thermal"], own["rgb"])


def _surface(shot: Shot, scale: float) -> np.ndarray:
    thermal, visible, seen = shot.thermal, shot.visible, shot.seen
    if scale > 1:
        size = (round(visible.shape[1] / scale), round(visible.shape[0] / scale))
        thermal, visible = (
            cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (thermal, visible)
        )
        if seen is not None:
            seen = cv2.resize(seen.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return correlation(thermal, visible, min(_REACH, min(visible.shape) // 4), seen)


def _pictures(shot: Shot) -> dict[str, bytes]:
    shown = {"thermal": shot.thermal, **shot.colour}
    return {name: jpeg(image, _SHOWN) for name, image in shown.items()}


def jpeg(image: np.ndarray, width: int, quality: int = 80) -> bytes:
    """The image as a JPEG file, at most `width` wide."""
    if image.shape[1] > width:
        size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


# --- Objects ------------------------------------------------------------------------------------


def _box(one: Detection) -> tuple[float, float, float, float]:
    return one.x, one.y, one.x + one.width, one.y + one.height


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / (areas - wide * high)


def _objects(boxes: Mapping[str, list[Detection]]) -> list[tuple[tuple, str]]:
    """Every object that any image shows, once: its box and class."""
    found: list[tuple[tuple, str]] = []
    for detections in boxes.values():
        for one in detections:
            box = _box(one)
            if all(_iou(box, other) < _SAME for other, _ in found):
                found.append((box, one.class_name))
    return found


def _found(boxes: Mapping[str, list[Detection]]) -> dict[str, dict[str, int]]:
    """Objects by image and class."""
    counts: dict[str, dict[str, int]] = {}
    for name, detections in boxes.items():
        counts[name] = {}
        for one in detections:
            counts[name][one.class_name] = counts[name].get(one.class_name, 0) + 1
    return counts


def _crops(shot: Shot) -> list[tuple[str, str, bytes]]:
    """Objects that only fusing finds, and those that it loses, as thermal, RGB, fused."""
    methods = [name for name in shot.boxes if name not in SOURCES]
    if not methods:
        return []
    name = methods[0]
    fused = shot.boxes[name]
    alone = [one for source in SOURCES for one in shot.boxes[source]]
    crops = []
    for kind, these, others in (("found", fused, alone), ("lost", alone, fused)):
        for one in these:
            if all(_iou(_box(one), _box(other)) < 0.3 for other in others):
                crops.append((kind, one.class_name, _crop(shot, name, one)))
    return crops[:4]


def _crop(shot: Shot, method: str, one: Detection) -> bytes:
    height, width = shot.visible.shape
    margin = 0.4 * max(one.width, one.height) + 8
    x0, y0 = max(0, int(one.x - margin)), max(0, int(one.y - margin))
    x1 = min(width, int(one.x + one.width + margin))
    y1 = min(height, int(one.y + one.height + margin))
    parts = [
        cv2.cvtColor(shot.thermal, cv2.COLOR_GRAY2BGR),
        shot.colour["rgb"],
        shot.colour[method],
    ]
    size = (max(1, round(120 * (x1 - x0) / max(y1 - y0, 1))), 120)
    panels = [cv2.resize(part[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA) for part in parts]
    return jpeg(np.hstack(panels), 10_000)


def mean_figures(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Means over the samples by row and figure, with `lost` as a share of all objects."""
    rows: dict[str, dict[str, Any]] = {}
    for name in samples[0].rows if samples else ():
        figures = [sample.rows[name] for sample in samples]
        keys = list(dict.fromkeys(k for f in figures for k in f))
        rows[name] = {key: float(np.mean([f[key] for f in figures if key in f])) for key in keys}
        objects = sum(f["objects"] for f in figures)
        lost = sum(f["lost_objects"] for f in figures)
        rows[name].pop("lost_objects"), rows[name].pop("objects")
        rows[name]["lost"] = lost / objects if objects else None
        rows[name]["objects"] = int(objects)
    return rows
