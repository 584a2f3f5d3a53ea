# SPDX-License-Identifier: AGPL-3.0-only
"""Gain control: thermal counts or degrees to an 8-bit image that does not flicker."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from fusion_ros.frame.images import output_buffer
from fusion_ros.frame.no_data import LARGEST, without_data
from fusion_ros.frame.radiometry import Radiometry, radiometry_of

__all__ = ["MODES", "POLARITIES", "GainControl"]

MODES = ("percentile", "linear", "plateau", "fixed", "none")
POLARITIES = ("white_hot", "black_hot")

_WHITE = 255.0
_BINS = 1024
"""Bins of the histogram between the limits in mode plateau."""
_SAMPLES = 20_000
"""Number of pixels that percentiles are taken from, roughly: good to a tenth of a percent."""
_DTYPES = (np.uint8, np.uint16, np.int16, np.float32)
_FLOAT_COUNT = 0.01
"""Degrees that stand for a count in float images, as in cameras that count hundredths."""
_EDGE_ROWS = (0, 1, 2, 3, -4, -3, -2, -1)
"""Rows that may hold telemetry: cameras put at most 3 above or below their image."""
_NOTHING = -LARGEST
"""Stands for pixels without data in float frames: below every temperature."""


@dataclass
class GainControl:
    """Maps thermal counts linearly between two limits onto 0..255, the limits moving slowly.

    The limits wanted for a frame are, by `mode`,
      percentile  the `low` and `high` percentiles of the frame: dead and hot pixels do not count;
      linear      the frame's least and greatest value, of medians of 3x3 pixels, so that single
                  dead and hot pixels do not count;
      plateau     as percentile, but between the limits grey levels follow the histogram, clipped
                  at `plateau`: contrast goes where pixels are;
      fixed       the temperatures `celsius`, at once and independent of the frame;
      none        no limits: 16 bit keeps its high byte, 8 bit passes through, float is rounded.

    With each frame the limits move by the share 1 - `smoothing` of the distance to the wanted
    ones, but no grey level between them moves by more than `max_step`: a hot object that enters
    darkens the background over seconds, not at once. If more than half of a frame lies outside
    the limits (the first frame after a shutter calibration, another clip), they jump.

    Pixels without data take no part in that and become black: 0 in 16-bit frames (borders of a
    rectified image, dead pixels), NaN, infinity and what is far from a temperature in float ones.
    Rows of telemetry at the top or bottom, which are mostly 0, are left out too and show the image
    row next to them.

    Attributes, all of which may be set between frames:
        low, high: percentiles, 0 <= low < high <= 100.
        smoothing: weight of the past in the limits, per frame; 0 for none, less than 1.
        max_step: most that a grey level moves per frame, of 255; more than 0.
        min_span: least distance of the limits in counts, hundredths of a degree in float frames;
            keeps the noise of a scene of one temperature from being stretched over the whole range.
        plateau: most that mode plateau raises contrast, as a factor; 1 or more.
        celsius: temperatures shown as black and as white in mode fixed, in degrees Celsius.
        radiometry: how counts become temperatures; None for the usual relation of their type.
        polarity: 'black_hot' for a camera whose hot pixels have the least values. The image is
            white hot always, as networks expect.
        stretch_8bit: treat 8-bit frames the same; they pass through otherwise.
    """

    mode: str = "percentile"
    low: float = 1.0
    high: float = 99.0
    smoothing: float = 0.9
    max_step: float = 3.0
    min_span: float = 50.0
    stretch_8bit: bool = False
    plateau: float = 4.0
    celsius: tuple[float, float] = (0.0, 50.0)
    radiometry: Radiometry | None = None
    polarity: str = "white_hot"
    _limits: np.ndarray | None = field(default=None, init=False, repr=False)
    _dtype: np.dtype | None = field(default=None, init=False, repr=False)
    _samples: np.ndarray | None = field(default=None, init=False, repr=False)
    _smooth: np.ndarray | None = field(default=None, init=False, repr=False)
    _bins: np.ndarray | None = field(default=None, init=False, repr=False)
    _curve: np.ndarray | None = field(default=None, init=False, repr=False)

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
        if not self.plateau >= 1:
            raise ValueError(f"plateau is {self.plateau}, expected a factor of 1 or more")
        if not self.celsius[0] < self.celsius[1]:
            raise ValueError(f"celsius is {self.celsius}, expected two rising temperatures")
        if self.polarity not in POLARITIES:
            raise ValueError(
                f"polarity is '{self.polarity}', expected one of {', '.join(POLARITIES)}"
            )

    @property
    def limits(self) -> tuple[float, float] | None:
        """Counts shown as black and as white, None before the first frame and in mode none."""
        return None if self._limits is None else (float(self._limits[0]), float(self._limits[1]))

    def apply(self, frame: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The (H, W) uint8 image of an (H, W) uint8, uint16, int16 or float32 frame.

        Written into `out` if given, except for 8-bit frames that pass through: those are
        returned as they are, so use the returned array. Raises `ValueError` for other frames.
        """
        if frame.ndim != 2 or frame.dtype not in _DTYPES or frame.size == 0:
            raise ValueError(
                f"thermal frame is {frame.dtype} {frame.shape}, expected (H, W) uint8, uint16, "
                "int16 or float32 in native byte order (images.thermal_array gives that)"
            )
        black_hot = self.polarity == "black_hot"
        if frame.dtype == np.uint8 and (self.mode == "none" or not self.stretch_8bit):
            return (
                np.bitwise_not(frame, out=output_buffer(out, frame.shape)) if black_hot else frame
            )
        out = output_buffer(out, frame.shape)
        rows = _image_rows(frame)
        if self.mode == "none":
            self.reset()
            if frame.dtype == np.float32:
                _scale(frame, 0, 1, out)
            else:
                np.right_shift(frame, 8, out=out, casting="unsafe")
                if frame.dtype == np.int16:
                    out ^= 128  # the sign is the highest bit: -32768 becomes black
        else:
            low, high = self._follow(frame[rows])
            if self.mode == "plateau":
                self._equalise(frame, rows, low, high, out)
            else:
                _scale(frame, low, _WHITE / (high - low), out)
        if black_hot:
            np.bitwise_not(out, out=out)
            if frame.dtype in (np.uint16, np.float32):
                out[without_data(frame)] = 0
        out[: rows.start] = out[rows.start]
        out[rows.stop :] = out[rows.stop - 1]
        return out

    def reset(self) -> None:
        """Discard the limits: the next frame alone sets them."""
        self._limits = self._curve = None

    def _follow(self, frame: np.ndarray) -> np.ndarray:
        """Move the limits for this frame; [low, high] in counts."""
        if frame.dtype != self._dtype:
            self.reset()
            self._dtype = frame.dtype
        wanted, median, mean = self._measure(frame)
        span = wanted[1] - wanted[0]
        least = self.min_span * (_FLOAT_COUNT if frame.dtype == np.float32 else 1)
        if span < least:
            # Around the mean, as far as both ends allow: noise moves the ends, not the mean.
            centre = min(max(mean, wanted[1] - least / 2), wanted[0] + least / 2)
            wanted = np.array([centre - least / 2, centre + least / 2])
        now = self._limits
        if self.mode == "fixed":
            relation = self.radiometry or radiometry_of(frame.dtype, median)
            self._limits = np.array([relation.counts(value) for value in self.celsius])
        elif now is None or not now[0] <= median <= now[1]:
            self._limits, self._curve = wanted, None
        else:
            move = (1.0 - self.smoothing) * (wanted - now)
            self._limits = now + move * self._allowed_share(now, move)
        return self._limits

    def _measure(self, frame: np.ndarray) -> tuple[np.ndarray, float, float]:
        """The wanted limits, the median and the mean between the percentiles, in counts."""
        stride = max(1, int(np.sqrt(frame.size / _SAMPLES)))
        samples = self._sampled(frame[::stride, ::stride])
        last = samples.size - 1
        ranks = [round(last * share / 100) for share in (self.low, 50, self.high)]
        samples.partition(ranks)
        low, median, high = samples[ranks].tolist()
        mean = float(samples[ranks[0] : ranks[2] + 1].mean(dtype=np.float64))
        if self.mode == "linear":
            low, high = self._extremes(frame)
        return np.array([low, high], np.float64), median, mean

    def _sampled(self, pixels: np.ndarray) -> np.ndarray:
        """A flat copy of the pixels with data, in a kept buffer for 8-bit images."""
        if pixels.dtype != np.uint8:
            return _with_data(pixels)
        if self._samples is None or self._samples.shape != pixels.shape:
            self._samples = np.empty(pixels.shape, np.uint8)
        np.copyto(self._samples, pixels)
        return self._samples.reshape(-1)

    def _equalise(
        self, frame: np.ndarray, rows: slice, low: float, high: float, out: np.ndarray
    ) -> None:
        """Grey levels along the clipped histogram between the limits, which follows slowly."""
        if self._bins is None or self._bins.shape != frame.shape:
            self._bins = np.empty(frame.shape, np.uint16)
        gain = (_BINS - 1) / (high - low)
        finite = _finite(frame)
        bins = cv2.addWeighted(
            finite, gain, finite, 0.0, -low * gain, dst=self._bins, dtype=cv2.CV_16U
        )
        stride = max(1, int(np.sqrt(frame.size / _SAMPLES)))
        samples = np.minimum(bins[rows][::stride, ::stride], _BINS - 1)
        if frame.dtype == np.uint16:
            samples = samples[frame[rows][::stride, ::stride] > 0]
        # Pixels outside the limits do not count for the levels between them.
        histogram = np.bincount(samples.ravel(), minlength=_BINS).astype(np.float64)
        histogram[[0, -1]] = 0
        share = histogram / max(histogram.sum(), 1)
        clipped = np.minimum(share, self.plateau / _BINS)
        clipped += (1 - clipped.sum()) / _BINS
        wanted = np.cumsum(clipped)
        wanted = _WHITE * (wanted - wanted[0]) / (wanted[-1] - wanted[0])
        if self._curve is None:
            self._curve = wanted
        else:
            move = (1 - self.smoothing) * (wanted - self._curve)
            self._curve = self._curve + move * min(1, self.max_step / max(np.abs(move).max(), 1e-9))
        np.take(np.rint(self._curve).astype(np.uint8), bins, out=out, mode="clip")

    def _extremes(self, frame: np.ndarray) -> tuple[float, float]:
        """The least and greatest median of 3x3 pixels, of those with data."""
        if self._smooth is None or (self._smooth.shape, self._smooth.dtype) != (
            frame.shape,
            frame.dtype,
        ):
            self._smooth = np.empty_like(frame, order="C")
        smooth = cv2.medianBlur(_finite(frame), 3, dst=self._smooth)
        low, high, _, _ = cv2.minMaxLoc(smooth)
        if frame.dtype != np.uint8 and low <= (_NOTHING if frame.dtype == np.float32 else 0):
            kept = _with_data(smooth)
            low, high = float(kept.min()), float(kept.max())
        return low, high

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


def _scale(frame: np.ndarray, low: float, gain: float, out: np.ndarray) -> None:
    """Write gain * (frame - low), rounded and clipped to 0..255; what has no data becomes 0."""
    # The one OpenCV call that scales, shifts, saturates and converts in a single pass.
    frame = _finite(frame)
    cv2.addWeighted(frame, gain, frame, 0.0, -low * gain, dst=out, dtype=cv2.CV_8U)


def _finite(frame: np.ndarray) -> np.ndarray:
    """The frame, with `_NOTHING` where a float frame has no data."""
    if frame.dtype != np.float32 or cv2.checkRange(frame, minVal=-LARGEST, maxVal=LARGEST)[0]:
        return frame
    return np.where(without_data(frame), np.float32(_NOTHING), frame)


def _with_data(pixels: np.ndarray) -> np.ndarray:
    """A flat copy of the pixels with data; of all pixels if none has any."""
    if pixels.dtype not in (np.uint16, np.float32):
        return pixels.flatten()
    kept = pixels[~without_data(pixels)]
    return kept if kept.size else np.zeros(1, pixels.dtype)


def _image_rows(frame: np.ndarray) -> slice:
    """The rows of a 16-bit frame without those at its top and bottom that are mostly 0."""
    top, bottom = 0, frame.shape[0]
    if frame.dtype != np.uint16 or bottom <= 2 * len(_EDGE_ROWS):
        return slice(top, bottom)
    empty = [2 * np.count_nonzero(frame[row]) < frame.shape[1] for row in _EDGE_ROWS]
    half = len(empty) // 2
    # Where all of a side are empty this is a wide border and not telemetry.
    top = [*empty[:half], False].index(False) % half
    below = [*empty[: half - 1 : -1], False].index(False) % half
    return slice(top, bottom - below)
