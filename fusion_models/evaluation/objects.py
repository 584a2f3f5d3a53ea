# SPDX-License-Identifier: AGPL-3.0-only
"""Labelled objects of a set of pairs, by exact masks or by boxes, and what is kept of each.

A pair folder with `masks/<stem>.png` has exact masks: 0, or k on object k. One with `boxes/` has
boxes in YOLO form (see `fusion_models.boxes`); what counts is the union of both cameras' boxes. A
set with neither has no labelled objects. Needs numpy and OpenCV only.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fusion_models.boxes import read_boxes
from fusion_models.evaluation.visibility import (
    Kept,
    Region,
    box_regions,
    kept_boxes,
    kept_masks,
    mask_regions,
)
from fusion_models.pairs import DataError, PairSet

__all__ = ["Objects", "labelled_objects"]


@dataclass(frozen=True)
class Objects:
    """Labelled objects of one pair.

    Attributes:
        corners: left, top, right, bottom as shares of width and height, `[N, 4]` float32; None
            where there are masks.
        masks: `(H, W)` uint8, 0 or the number of an object; None where there are boxes.
    """

    corners: np.ndarray | None = None
    masks: np.ndarray | None = None

    def kept(self, fused: np.ndarray, ir: np.ndarray, vi: np.ndarray) -> tuple[Kept, ...]:
        """What the fused image keeps of each object that a source shows; all `(H, W)` uint8.

        Raises:
            ValueError: images or masks of different sizes.
        """
        if self.masks is not None:
            return tuple(kept_masks(fused, ir, vi, self._each_mask()))
        return tuple(kept_boxes(fused, ir, vi, self._boxes(fused.shape)))

    def regions(self, shape: tuple[int, int]) -> list[Region]:
        """Where each object and its surroundings are in images of this height and width.

        Raises:
            ValueError: masks of another size.
        """
        if self.masks is not None:
            return mask_regions(self._each_mask(), shape)
        return box_regions(self._boxes(shape), shape)

    def _each_mask(self) -> list[np.ndarray]:
        return [self.masks == n for n in np.unique(self.masks[self.masks > 0])]

    def _boxes(self, shape: tuple[int, int]) -> list:
        if self.corners is None:
            return []
        height, width = shape
        scale = np.array([width, height, width, height], np.float64)
        return (self.corners * scale).tolist()


def labelled_objects(pair_set: PairSet) -> dict[str, Objects]:
    """Labelled objects of each pair by its stem; empty for a set without labels.

    Raises:
        DataError: a label cannot be read, or labels are there but for none of the pairs.
    """
    if (folder := pair_set.root / "masks").is_dir():
        found = {}
        for stem in pair_set.stems:
            masks = cv2.imread(str(folder / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
            if masks is None or masks.dtype != np.uint8 or masks.ndim != 2:
                raise DataError(
                    f"{folder / stem}.png: expected an 8-bit grey image with 0, or the number of "
                    "an object on its pixels"
                )
            found[stem] = Objects(masks=masks)
        return found
    if (pair_set.root / "boxes").is_dir():
        boxes, _ = read_boxes(pair_set)
        return {stem: Objects(corners=one.corners) for stem, one in boxes.items()}
    return {}
