# SPDX-License-Identifier: AGPL-3.0-only
"""Fusion without a network: the sources alone, pixel-wise rules, weighted means.

Each maps a pair to a fused luminance `(H, W)` uint8. They belong into every table: a method has to
be better than they are at something. Needs numpy and OpenCV only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from fusion_models.pairs import ImagePair

__all__ = ["RULES", "SOURCES", "Fuse", "WeightedMean", "average", "infrared", "maximum", "visible"]

Fuse = Callable[[ImagePair], np.ndarray]
"""A method under evaluation: a pair to its fused luminance `(H, W)` uint8."""


def visible(pair: ImagePair) -> np.ndarray:
    """The visible image alone."""
    return pair.vi


def infrared(pair: ImagePair) -> np.ndarray:
    """The infrared image alone."""
    return pair.ir


def average(pair: ImagePair) -> np.ndarray:
    """Pixel-wise average, halves rounded to the even grey level; every method should be better."""
    return np.rint((pair.ir.astype(np.float32) + pair.vi) / 2).astype(np.uint8)


def maximum(pair: ImagePair) -> np.ndarray:
    """Pixel-wise maximum: best in VIF, Qabf and MI, but bright regions lose contrast."""
    return np.maximum(pair.ir, pair.vi)


@dataclass(frozen=True)
class WeightedMean:
    """`share` infrared and the rest visible; its contrast about a mean of 127 px times `gain`."""

    share: float
    gain: float = 1.0

    def __call__(self, pair: ImagePair) -> np.ndarray:
        mean = self.share * pair.ir.astype(np.float32) + (1 - self.share) * pair.vi
        if self.gain != 1:
            around = cv2.blur(mean, (127, 127))
            mean = around + self.gain * (mean - around)
        return np.rint(mean.clip(0, 255)).astype(np.uint8)


SOURCES: dict[str, Fuse] = {"visible": visible, "infrared": infrared}
"""Each camera alone."""

RULES: dict[str, Fuse] = {
    **SOURCES, "average": average, "max": maximum, ".8 ir + .2 vi": WeightedMean(0.8),
}  # fmt: skip
"""The controls of an evaluation, in the order of its tables."""
