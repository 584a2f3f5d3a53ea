# SPDX-License-Identifier: AGPL-3.0-only
"""What a fused video adds over time: flicker of its own, and a brightness that wanders.

Flicker of consecutive images is their difference after the earlier one was moved along the optical
flow of the visible images; only pixels count whose flow leads there and back again. What of it the
sources have themselves, as noise and lights, is subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np

__all__ = ["Motion", "OverTime", "VideoTimes", "brightness_variation"]

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


@dataclass(frozen=True)
class OverTime:
    """What a fused video does from frame to frame, in grey levels.

    Attributes:
        flicker: mean difference along the flow less the mean of both sources'; at most 0 is good.
        brightness: root mean square of the change of mean brightness.
    """

    flicker: float
    brightness: float

    def as_dict(self) -> dict[str, float]:
        """The attributes by name."""
        return asdict(self)


class VideoTimes:
    """Collects the frames of a video one by one and measures all methods along one flow."""

    def __init__(self) -> None:
        self._before: dict[str, np.ndarray] = {}
        self._sources: tuple[np.ndarray, np.ndarray] | None = None
        self._flicker: dict[str, list[float]] = {}
        self._means: dict[str, list[float]] = {}

    def add(self, ir: np.ndarray, vi: np.ndarray, fused: Mapping[str, np.ndarray]) -> None:
        """Take the next frame: sources and fused images by method, all `(H, W)` uint8."""
        if self._sources is not None:
            motion = Motion(self._sources[1], vi)
            own = [motion.flicker(*pair) for pair in zip(self._sources, (ir, vi))]
            if None not in own:
                for name, image in fused.items():
                    added = motion.flicker(self._before[name], image) - sum(own) / 2
                    self._flicker.setdefault(name, []).append(added)
        for name, image in fused.items():
            self._means.setdefault(name, []).append(float(image.mean()))
        self._before, self._sources = dict(fused), (ir, vi)

    def result(self) -> dict[str, OverTime]:
        """Figures by method; empty if no two frames have consistent flow."""
        return {
            name: OverTime(float(np.mean(added)), brightness_variation(self._means[name]))
            for name, added in self._flicker.items()
        }
