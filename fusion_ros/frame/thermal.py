# SPDX-License-Identifier: AGPL-3.0-only
"""Gain control: raw thermal counts to an 8-bit image that does not flicker."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from fusion_ros.frame.images import output_buffer

__all__ = ["MODES", "GainControl"]

MODES = ("percentile", "linear", "none")

_WHITE = 255.0
_SAMPLES = 20_000
"""About as many pixels are looked at for the percentiles: good to a tenth of a percent."""


@dataclass
class GainControl:
    """Maps thermal counts linearly between two limits onto 0..255, the limits moving slowly.

    The limits wanted for a frame are, by `mode`,
      percentile  the `low` and `high` percentiles of the frame: dead and hot pixels do not count;
      linear      the frame's least and greatest value;
      none        no limits: 16 bit keeps its high byte, 8 bit passes through.

    Each frame the limits go the share 1 - `smoothing` of the way to those, but no further than
    moves any grey level between them by `max_step`: a hot object that enters darkens the
    background over seconds, not at once. Where more than half of a frame lies outside the
    limits (the first frame after a shutter calibration, another clip), they jump.

    Attributes, all of which may be set between frames:
        low, high: percentiles, 0 <= low < high <= 100.
        smoothing: weight of the past in the limits, per frame; 0 for none, less than 1.
        max_step: most that a grey level moves per frame, of 255; more than 0.
        min_span: least distance of the limits in counts; keeps the noise of a scene of one
            temperature from being stretched over the whole range.
        stretch_8bit: treat 8-bit frames the same; they pass through otherwise.
    """

    mode: str = "percentile"
    low: float = 1.0
    high: float = 99.0
    smoothing: float = 0.9
    max_step: float = 3.0
    min_span: float = 50.0
    stretch_8bit: bool = False
    _limits: np.ndarray | None = field(default=None, init=False, repr=False)
    _dtype: np.dtype | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is '{self.mode}', expected one of {', '.join(MODES)}")
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(
                f"low and high are {self.low} and {self.high}, "
                "expected percentiles with 0 <= low < high <= 100"
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}, expected 0 <= smoothing < 1")
        if not self.max_step > 0:
            raise ValueError(f"max_step is {self.max_step}, expected more than 0 grey levels")
        if not self.min_span > 0:
            raise ValueError(f"min_span is {self.min_span}, expected more than 0 counts")

    @property
    def limits(self) -> tuple[float, float] | None:
        """Counts shown as black and as white, None before the first frame and in mode none."""
        return None if self._limits is None else (float(self._limits[0]), float(self._limits[1]))

    def apply(self, frame: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The (H, W) uint8 image of an (H, W) uint8 or uint16 frame.

        Written into `out` if given, except for 8-bit frames that pass through: those are
        returned as they are, so use the returned array. Raises `ValueError` for other frames.
        """
        if frame.ndim != 2 or frame.dtype not in (np.uint8, np.uint16) or frame.size == 0:
            raise ValueError(
                f"thermal frame is {frame.dtype} {frame.shape}, expected (H, W) uint8 or uint16 "
                "in native byte order (images.thermal_array gives that)"
            )
        if frame.dtype == np.uint8 and (self.mode == "none" or not self.stretch_8bit):
            return frame
        out = output_buffer(out, frame.shape)
        if self.mode == "none":
            self.reset()
            return np.right_shift(frame, 8, out=out, casting="unsafe")
        low, high = self._follow(frame)
        gain = _WHITE / (high - low)
        # The one OpenCV call that scales, shifts, saturates and converts in a single pass.
        return cv2.addWeighted(frame, gain, frame, 0.0, -low * gain, dst=out, dtype=cv2.CV_8U)

    def reset(self) -> None:
        """Forget the past: the next frame sets the limits alone."""
        self._limits = None

    def _follow(self, frame: np.ndarray) -> np.ndarray:
        """Move the limits for this frame; [low, high] in counts."""
        if frame.dtype != self._dtype:
            self.reset()
            self._dtype = frame.dtype
        wanted, median = self._measure(frame)
        span = wanted[1] - wanted[0]
        if span < self.min_span:
            wanted += np.array([-0.5, 0.5]) * (self.min_span - span)
        now = self._limits
        if now is None or not now[0] <= median <= now[1]:
            self._limits = wanted
        else:
            move = (1.0 - self.smoothing) * (wanted - now)
            self._limits = now + move * self._allowed_share(now, move)
        return self._limits

    def _measure(self, frame: np.ndarray) -> tuple[np.ndarray, float]:
        """The limits this frame alone asks for, and its median, in counts."""
        stride = max(1, int(np.sqrt(frame.size / _SAMPLES)))
        samples = frame[::stride, ::stride].flatten()  # a copy, to be sorted in place
        last = samples.size - 1
        ranks = [round(last * share / 100) for share in (self.low, 50, self.high)]
        samples.partition(ranks)
        low, median, high = samples[ranks].tolist()
        if self.mode == "linear":
            low, high, _, _ = cv2.minMaxLoc(frame)
        return np.array([low, high], np.float64), median

    def _allowed_share(self, now: np.ndarray, move: np.ndarray) -> float:
        """The share of `move` of the limits that moves no grey level by more than `max_step`.

        A count v shows as g = 255 (v - low) / (high - low), so after the share s of the move,
        levels have moved most at one of the old limits: by 255 s |move| / (span + s widening).
        That is at most max_step for s <= max_step span / (255 |move| - max_step widening).
        """
        span = now[1] - now[0]
        widening = move[1] - move[0]
        excess = _WHITE * np.abs(move).max() - self.max_step * widening
        return 1.0 if excess <= 0 else min(1.0, self.max_step * span / excess)
