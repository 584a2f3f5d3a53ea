# SPDX-License-Identifier: AGPL-3.0-only
"""How steadily objects of known identity are found over a sequence: recall, broken identities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fusion_models.boxes import iou


@dataclass(frozen=True)
class Seen:
    """Boxes of one image.

    Attributes:
        names: of the objects (labels), or numbers of their tracks (detections; 0: none).
        classes: class names. corners: left, top, right, bottom, `[N, 4]`, in any unit.
    """

    names: Sequence
    classes: Sequence[str]
    corners: np.ndarray


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
        table = iou(np.asarray(truth.corners), np.asarray(detections.corners))
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
            "recall": self.recall,
            "breaks": self.breaks,
            "breaks a hundred": 100 * self.breaks / max(self.found, 1),
            "wrong an image": self.wrong / max(self.images, 1),
        }


def total(records: Sequence[Record]) -> Record:
    """All sequences together."""
    fields = ("shown", "found", "breaks", "wrong", "images")
    return Record(**{name: sum(getattr(r, name) for r in records) for name in fields})
