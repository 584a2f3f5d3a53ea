# SPDX-License-Identifier: AGPL-3.0-only
"""Borders without data in thermal images, as rectification leaves them.

There the fused image has to be the visible image: a network would show the border as something
cold. Single dead pixels are none of that.
"""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["LARGEST", "EmptyBorder", "without_data"]

LARGEST = 1e6
"""Float pixels of this size and more are no temperatures: drivers fill in the largest float."""

_STRIDE = 4
"""Every so many rows and columns are looked at in each frame."""
_STEADY_FRAMES = 5
"""Frames that must agree on a border: cold objects at the edge move, borders do not."""
_KERNEL = np.ones((5, 5), np.uint8)
"""Narrower runs of empty pixels, such as rows of telemetry, are no border."""


class EmptyBorder:
    """Finds the border of a stream's frames.

    Attributes:
        seen: (H, W) bool, True for pixels with data; None where all have some. A new array for
            each change.
    """

    def __init__(self) -> None:
        self.seen: np.ndarray | None = None
        self._sample: np.ndarray | None = None
        self._agreed = 0

    def update(self, frame: np.ndarray, rectified: bool = False) -> np.ndarray | None:
        """Take a frame (H, W) uint8, uint16, int16 or float32 into account and return `seen`.

        Without data is what `without_data` says, and 0 in uint8 frames of `rectified` images, as 0
        is an ordinary grey level otherwise.
        """
        if self.seen is not None and self.seen.shape != frame.shape:
            self.seen = None
        if frame.dtype == np.int16 or (frame.dtype == np.uint8 and not rectified):
            self.seen = self._sample = None
            return None
        empty = np.logical_not if frame.dtype == np.uint8 else without_data
        sample = empty(frame[::_STRIDE, ::_STRIDE])
        if self._sample is not None and np.array_equal(sample, self._sample):
            self._agreed += 1
        else:
            self._sample, self._agreed = sample, 1
        # The first frame alone is enough to begin with.
        if self._agreed == _STEADY_FRAMES or (self.seen is None and sample.any()):
            border = _border(empty(frame))
            seen = None if border is None else ~border
            if seen is None or self.seen is None or not np.array_equal(seen, self.seen):
                self.seen = seen
        return self.seen


def without_data(pixels: np.ndarray) -> np.ndarray:
    """Where a thermal image has no data, bool: 0 of uint16, no temperature of float32."""
    if pixels.dtype == np.uint16:
        return pixels == 0
    if pixels.dtype == np.float32:
        with np.errstate(invalid="ignore"):
            return ~(np.abs(pixels) < LARGEST)
    return np.zeros(pixels.shape, bool)


def _border(empty: np.ndarray) -> np.ndarray | None:
    """The empty pixels that are connected to the edge of the image; None if there are none."""
    if not empty.any():
        return None
    opened = cv2.morphologyEx(
        empty.astype(np.uint8),
        cv2.MORPH_OPEN,
        _KERNEL,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    count, labels = cv2.connectedComponents(opened)
    at_edge = np.zeros(count, bool)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        at_edge[line] = True
    at_edge[0] = False
    border = at_edge[labels]
    # All of it empty is a camera without an image, not a border.
    return border if border.any() and not border.all() else None
