# SPDX-License-Identifier: AGPL-3.0-only
"""How well a detector finds labelled objects: average precision, its intervals, and what it misses.

Matching follows COCO and is done by pycocotools. From its matches the precision-recall curve is
accumulated as pycocotools does, but with a weight for each image, so that a bootstrap over images
costs no second matching.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fusion_models.boxes import Boxes, iou

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU from which a detection counts as right; AP@.5 takes the first, AP@.5:.95 the mean of all."""
RECALLS = np.linspace(0, 1, 101)
MOST = 300
"""Detections of one image that count, strongest first."""


@dataclass(frozen=True)
class Found:
    """Detections in one image, in any order.

    Attributes:
        classes: numbers of the labels' classes, `[N]` int64.
        corners: left, top, right, bottom as shares of width and height, `[N, 4]` float32.
        scores: `[N]` float32 in [0, 1].
    """

    classes: np.ndarray
    corners: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    def at_least(self, score: float) -> Found:
        """Those with this score or more."""
        kept = self.scores >= score
        return Found(self.classes[kept], self.corners[kept], self.scores[kept])


@dataclass(frozen=True)
class _Curve:
    """Detections of one class over all images, strongest first.

    Attributes:
        image: number of the image of each detection, `[N]`.
        right: whether it is matched, for each of `THRESHOLDS`, `[10, N]` bool.
        objects: number of objects of the class in each image, `[images]`.
    """

    image: np.ndarray
    right: np.ndarray
    objects: np.ndarray

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """AP at each of `THRESHOLDS`, `[10]`; NaN without an object.

        Args:
            weights: how often each image counts, `[images]`.
        """
        total = float(weights @ self.objects)
        if not total:
            return np.full(len(THRESHOLDS), np.nan)
        each = weights[self.image].astype(np.float64)
        all_so_far = np.maximum(np.cumsum(each), np.spacing(1))
        result = np.zeros(len(THRESHOLDS))
        for i, right in enumerate(self.right):
            right_so_far = np.cumsum(each * right)
            precision = right_so_far / all_so_far
            # A point of the curve is as precise as the best one at this recall or a higher one.
            precision = np.maximum.accumulate(precision[::-1])[::-1]
            at = np.searchsorted(right_so_far / total, RECALLS, side="left")
            result[i] = np.append(precision, 0.0)[np.minimum(at, len(precision))].mean()
        return result


@dataclass(frozen=True)
class Precision:
    """Average precision of one row.

    Attributes:
        ap50, ap: AP@.5 and AP@.5:.95 by class.
    """

    ap50: dict[str, float]
    ap: dict[str, float]

    @property
    def mean50(self) -> float:
        """Mean of AP@.5 over the classes that have objects."""
        return float(np.nanmean(list(self.ap50.values())))

    @property
    def mean(self) -> float:
        """Mean of AP@.5:.95 over the classes that have objects."""
        return float(np.nanmean(list(self.ap.values())))


class Matches:
    """Detections of one row matched with the labels.

    Args:
        truth: labels by stem; the images without an entry do not count.
        found: detections of each of these stems.
        classes: names of the labels' classes.
    Raises:
        ValueError: a stem without detections (none found is an empty `Found`), or no object at all.
    """

    def __init__(
        self, truth: Mapping[str, Boxes], found: Mapping[str, Found], classes: Sequence[str]
    ):
        if missing := sorted(set(truth) - set(found)):
            raise ValueError(
                f"no detections of {len(missing)} labelled images, such as {missing[0]}"
            )
        if not any(len(boxes) for boxes in truth.values()):
            raise ValueError(f"none of the {len(truth)} images has a labelled object")
        self.stems, self.classes = list(truth), tuple(classes)
        self.truth, self.found = dict(truth), dict(found)

    @cached_property
    def evaluation(self):
        """The evaluation of pycocotools, matched but not accumulated."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        size = 1000  # boxes are shares of the image; pycocotools only sees their proportions
        annotations, detections = [], []
        for number, stem in enumerate(self.stems):
            for kind, corners in zip(self.truth[stem].classes, self.truth[stem].corners):
                annotations.append(_entry(number, kind, corners * size, len(annotations) + 1))
            found = self.found[stem]
            for kind, corners, score in zip(found.classes, found.corners, found.scores):
                detections.append(
                    {
                        **_entry(number, kind, corners * size, len(detections) + 1),
                        "score": float(score),
                    }
                )
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {
                "info": {},
                "images": [{"id": number} for number in range(len(self.stems))],
                "annotations": annotations,
                "categories": [{"id": i, "name": name} for i, name in enumerate(self.classes)],
            }
            coco.createIndex()
            answers = COCO()
            answers.dataset = {**coco.dataset, "annotations": detections}
            answers.createIndex()
            evaluation = COCOeval(coco, answers, "bbox")
            evaluation.params.iouThrs = THRESHOLDS
            evaluation.params.recThrs = RECALLS
            evaluation.params.maxDets = [MOST]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.evaluate()
        return evaluation

    @cached_property
    def _curves(self) -> list[_Curve]:
        images = len(self.stems)
        curves = []
        for kind in range(len(self.classes)):
            each = self.evaluation.evalImgs[kind * images : (kind + 1) * images]
            scores = [np.array(e["dtScores"]) if e else np.zeros(0) for e in each]
            right = [
                e["dtMatches"] > 0 if e else np.zeros((len(THRESHOLDS), 0), bool) for e in each
            ]
            objects = np.array([len(e["gtIds"]) if e else 0 for e in each])
            number = np.repeat(np.arange(images), [len(s) for s in scores])
            order = np.argsort(-np.concatenate(scores), kind="mergesort")
            curves.append(_Curve(number[order], np.concatenate(right, 1)[:, order], objects))
        return curves

    def precision(self, stems: Iterable[str] | None = None) -> Precision:
        """Average precision over all images, or over those named."""
        weights = np.ones(len(self.stems))
        if stems is not None:
            wanted = set(stems)
            weights = np.array([float(stem in wanted) for stem in self.stems])
        return self._weighted(weights)

    def _weighted(self, weights: np.ndarray) -> Precision:
        values = [curve.average_precision(weights) for curve in self._curves]
        return Precision(
            {name: float(v[0]) for name, v in zip(self.classes, values)},
            {name: float(v.mean()) for name, v in zip(self.classes, values)},
        )

    def resampled(self, repeats: int = 1000, seed: int = 0) -> list[Precision]:
        """Average precision of bootstrap samples of the images.

        Equal seeds draw equal samples, so that rows over the same images can be compared in pairs.
        """
        rng, images = np.random.default_rng(seed), len(self.stems)
        draws = (rng.integers(images, size=images) for _ in range(repeats))
        return [self._weighted(np.bincount(draw, minlength=images)) for draw in draws]


def _entry(image: int, kind: int, corners: np.ndarray, number: int) -> dict:
    left, top, right, bottom = map(float, corners)
    width, height = right - left, bottom - top
    return {
        "id": number,
        "image_id": image,
        "category_id": int(kind),
        "bbox": [left, top, width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def interval(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Limits between which this share of the values lies; NaN is left out."""
    values = [value for value in values if not np.isnan(value)]
    if not values:
        return np.nan, np.nan
    low, high = np.percentile(values, [50 - 50 * share, 50 + 50 * share])
    return float(low), float(high)


def paired_interval(
    first: Sequence[Precision], second: Sequence[Precision], share: float = 0.95, kind: str = ""
) -> tuple[float, float]:
    """Interval of the difference in AP@.5 of two rows, sample by sample.

    Args:
        kind: name of a class; '' for the mean over the classes.
    """

    def value(precision: Precision) -> float:
        return precision.ap50[kind] if kind else precision.mean50

    return interval([value(a) - value(b) for a, b in zip(first, second)], share)


def found_objects(truth: Boxes, found: Found, score: float = 0.25, overlap: float = 0.5):
    """Whether each labelled object is found, `[N]` bool: same class, IoU from `overlap` on.

    The strongest detections choose first, and each counts for one object.
    """
    hit = np.zeros(len(truth), bool)
    found = found.at_least(score)
    overlaps = iou(found.corners, truth.corners)
    for i in np.argsort(-found.scores, kind="stable"):
        fitting = overlaps[i] * (truth.classes == found.classes[i]) * ~hit
        if len(fitting) and fitting.max() >= overlap:
            hit[fitting.argmax()] = True
    return hit


@dataclass(frozen=True)
class Miss:
    """An object that one camera alone shows to the detector and a fused image does not.

    Attributes:
        stem: of the pair. number: of the object among its labels. row: the fused image's.
        by: the sources in which it was found.
    """

    stem: str
    number: int
    row: str
    by: tuple[str, ...]


def misses(
    rows: Mapping[str, Matches],
    sources: Sequence[str] = ("infrared", "visible"),
    score: float = 0.25,
) -> dict[str, list[Miss]]:
    """For each fused row the objects that a source alone would have found."""
    lost: dict[str, list[Miss]] = {name: [] for name in rows if name not in sources}
    known = [name for name in sources if name in rows]
    for stem in next(iter(rows.values())).stems:
        truth = next(iter(rows.values())).truth[stem]
        hits = {n: found_objects(truth, m.found[stem], score) for n, m in rows.items()}
        for name, several in lost.items():
            for number in range(len(truth)):
                by = tuple(n for n in known if hits[n][number])
                if by and not hits[name][number]:
                    several.append(Miss(stem, number, name, by))
    return lost
