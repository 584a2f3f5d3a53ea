# SPDX-License-Identifier: AGPL-3.0-only
"""How steadily objects are found over a sequence: recall, broken identities.

Objects are known by labels, or, in a video without labels, by what one camera alone shows
steadily (`shown_by`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fusion_models.boxes import SAME_OBJECT, iou


@dataclass(frozen=True)
class Seen:
    """Boxes of one image.

    Attributes:
        names: of the objects (labels), or numbers of their tracks (detections; 0: none).
        classes: class names.
        corners: left, top, right, bottom, `[N, 4]` or a list of N, in any unit.
    """

    names: Sequence
    classes: Sequence[str]
    corners: np.ndarray | Sequence[Sequence[float]]

    def __post_init__(self):
        corners = np.asarray(self.corners, np.float32).reshape(-1, 4)  # also where nothing is
        object.__setattr__(self, "corners", corners)


@dataclass
class Record:
    """What was found of a sequence.

    Attributes:
        shown, found: object-images in all, and those with a detection.
        breaks: how often an object's track number differs from the one it had before.
        wrong: detections that show no labelled object.
        images: number of images.
    """

    shown: int = 0
    found: int = 0
    breaks: int = 0
    wrong: int = 0
    images: int = 0
    _last: dict = field(default_factory=dict)

    @property
    def recall(self) -> float:
        """Share of the object-images with a detection; NaN without objects."""
        return self.found / self.shown if self.shown else float("nan")

    def add(self, truth: Seen, detections: Seen, overlap: float = 0.5) -> None:
        """Take in the next image: largest overlaps first, one detection an object."""
        table = iou(truth.corners, detections.corners)
        same = np.array([[a == b for b in detections.classes] for a in truth.classes], bool)
        table = table * same.reshape(table.shape)
        pairs = []
        while table.size and table.max() >= overlap:
            one, other = np.unravel_index(table.argmax(), table.shape)
            pairs.append((int(one), int(other)))
            table[one], table[:, other] = 0, 0
        for one, other in pairs:
            name, number = truth.names[one], detections.names[other]
            if number:
                self.breaks += self._last.get(name, number) != number
                self._last[name] = number
        self.shown += len(truth.names)
        self.found += len(pairs)
        self.wrong += len(detections.names) - len(pairs)
        self.images += 1

    def as_dict(self) -> Mapping[str, float]:
        """The figures of a table: breaks for each hundred found object-images."""
        return {
            "shown": self.shown,
            "recall": self.recall,
            "breaks": self.breaks,
            "breaks a hundred": 100 * self.breaks / max(self.found, 1),
            "wrong an image": self.wrong / max(self.images, 1),
        }


def shown_by(sources: Mapping[str, Sequence[Seen]], least: int = 5) -> list[Seen]:
    """Objects of a video without labels: what a tracker followed in one source alone.

    An object counts in the images in which a source shows it, if it kept one number in `least`
    images of that source. Where a later source shows the same object too (same class, IoU from .4
    on), the earlier one names it. What no source shows steadily is no object here.

    Args:
        sources: detections of each image with the numbers of their tracks, by the source's name.
    Returns:
        The objects of each image; names are a source's name and a number, such as ('infrared', 3).
    """
    images = max((len(seen) for seen in sources.values()), default=0)
    result = [Seen([], [], []) for _ in range(images)]
    for source, several in sources.items():
        lengths = Counter(number for seen in several for number in seen.names if number)
        for image, seen in enumerate(several):
            known = result[image]
            overlap = iou(seen.corners, known.corners)
            same = [[a == b for b in known.classes] for a in seen.classes]
            again = (overlap * np.array(same, bool).reshape(overlap.shape) >= SAME_OBJECT).any(1)
            new = [i for i, n in enumerate(seen.names) if lengths[n] >= least and not again[i]]
            result[image] = Seen(
                [*known.names, *((source, seen.names[i]) for i in new)],
                [*known.classes, *(seen.classes[i] for i in new)],
                np.concatenate((known.corners, seen.corners[new])),
            )
    return result


def total(records: Sequence[Record]) -> Record:
    """All sequences together."""
    fields = ("shown", "found", "breaks", "wrong", "images")
    return Record(**{name: sum(getattr(r, name) for r in records) for name in fields})
