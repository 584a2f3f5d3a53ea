# SPDX-License-Identifier: AGPL-3.0-only
"""What a fused video adds over time: flicker of its own, and a brightness that wanders.

Flicker of consecutive images is their difference after the earlier one was moved along the optical
flow of the visible images; only pixels count whose flow leads there and back again. What of it the
sources have themselves, as noise and lights, is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["Motion", "brightness_variation"]

_MOST_MISSED = 1.0
"""Pixels by which the way there and back may miss its start."""
_LEAST_SHARE = 0.05
"""Share of the image that must have such flow."""


class Motion:
    """Optical flow between two visible luminances, `(H, W)` uint8, of consecutive images.

    DIS flow (Kroeger et al. 2016), forwards and backwards. consistent: `(H, W)` bool, where both
    agree and the earlier image has the pixel.
    """

    def __init__(self, before: np.ndarray, after: np.ndarray) -> None:
        before, after = np.ascontiguousarray(before), np.ascontiguousarray(after)
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        back = flow.calc(after, before, None)  # from pixels of `after` to `before`
        forth = flow.calc(before, after, None)
        height, width = after.shape
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        self._x, self._y = x + back[..., 0], y + back[..., 1]
        returned = cv2.remap(forth, self._x, self._y, cv2.INTER_LINEAR)
        missed = np.hypot(*(back + returned).transpose(2, 0, 1))
        inside = (self._x >= 0) & (self._x <= width - 1) & (self._y >= 0) & (self._y <= height - 1)
        self.consistent = inside & (missed < _MOST_MISSED)

    def flicker(self, before: np.ndarray, after: np.ndarray) -> float | None:
        """Mean difference of two images `(H, W)` along the flow in grey levels.

        None where less than a twentieth of the image has consistent flow.
        """
        if self.consistent.mean() < _LEAST_SHARE:
            return None
        moved = cv2.remap(before.astype(np.float32), self._x, self._y, cv2.INTER_LINEAR)
        return float(np.abs(after - moved)[self.consistent].mean())

    def added_flicker(
        self,
        fused: tuple[np.ndarray, np.ndarray],
        ir: tuple[np.ndarray, np.ndarray],
        vi: tuple[np.ndarray, np.ndarray],
    ) -> float | None:
        """Flicker of the fused pair (before, after) less that of the source that has more of it."""
        values = [self.flicker(*pair) for pair in (fused, ir, vi)]
        if None in values:
            return None
        return values[0] - max(values[1:])


def brightness_variation(means: Sequence[float]) -> float:
    """Root mean square of the change of mean brightness from image to image, grey levels."""
    steps = np.diff(np.asarray(means, np.float64))
    return float(np.sqrt(np.mean(steps**2))) if len(steps) else 0.0
