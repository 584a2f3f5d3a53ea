# SPDX-License-Identifier: AGPL-3.0-only
"""How far a registered thermal image lies beside the visible one, from their edges.

Both cameras show the outlines of things, with any contrast: so the strengths of the edges are
compared, not the grey levels. The correlation of one pair is vague; those of many pairs of one
registration are averaged, and their scatter gives the uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Shift", "correlation", "pooled_shift"]

_WHITENING = 0.6
"""Power of the spectra's magnitude that is divided out: 0 a plain, 1 a phase correlation."""
_LEAST_PEAK = 5.0
"""Height of a peak over the rest, in its standard deviations, from which it counts."""


@dataclass(frozen=True)
class Shift:
    """Residual shift of the thermal image in pixels, right and down positive.

    error_x, error_y: standard errors by the jackknife over the pairs. clear: whether the peak
    stands out; without it, x and y say nothing.
    """

    x: float
    y: float
    error_x: float
    error_y: float
    clear: bool
    pairs: int

    @property
    def length(self) -> float:
        """Length of the shift in pixels."""
        return float(np.hypot(self.x, self.y))

    @property
    def error(self) -> float:
        """Standard error of `length` in pixels."""
        return float(np.hypot(self.error_x, self.error_y))


def correlation(
    thermal: np.ndarray, visible: np.ndarray, reach: int, seen: np.ndarray | None = None
) -> np.ndarray:
    """Correlation of edges over shifts, `(2 reach + 1, 2 reach + 1)` float32; its middle is none.

    thermal, visible: `(H, W)` uint8; reach: largest shift in pixels; seen: `(H, W)` bool, where the
    thermal camera sees anything, everywhere by default.
    """
    edges = []
    inside = None
    if seen is not None and not seen.all():
        # The edge of the view itself is in one image only.
        kernel = np.ones((9, 9), np.uint8)
        inside = cv2.erode(seen.astype(np.uint8), kernel, borderValue=1).astype(np.float64)
    for image in (thermal, visible):
        smooth = cv2.GaussianBlur(image, (0, 0), 1.2).astype(np.float32)
        gx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3)
        gy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3)
        # Sums in double precision, rounded at the end: the same in every run to the bit.
        strength = np.sqrt(cv2.magnitude(gx, gy).astype(np.float64))
        # A few lamps would outweigh everything else.
        strength = np.minimum(strength, float(np.percentile(strength[::4, ::4], 97)))
        if inside is not None:
            mean = float((strength * inside).sum() / max(inside.sum(), 1))
            strength = (strength - mean) * inside
        else:
            strength -= strength.mean()
        edges.append(strength)
    height, width = thermal.shape
    size = (height + 2 * reach, width + 2 * reach)
    padded = [np.fft.rfft2(each, size) for each in edges]
    cross = padded[0] * np.conj(padded[1])
    cross /= np.maximum(np.abs(cross), 1e-6) ** _WHITENING
    surface = np.fft.irfft2(cross, size)
    rolled = np.roll(surface, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    return np.round(rolled / max(float(rolled.std()), 1e-12), 5).astype(np.float32)


def pooled_shift(surfaces: Sequence[np.ndarray]) -> Shift:
    """The shift that the correlations of many pairs agree on."""
    if not len(surfaces):
        return Shift(0.0, 0.0, 0.0, 0.0, False, 0)
    stack = np.asarray(surfaces, np.float64)
    total = stack.sum(0)
    x, y, height = _peak(total / len(stack))
    errors = (0.0, 0.0)
    if len(stack) > 2:
        left_out = np.array([_peak((total - one) / (len(stack) - 1))[:2] for one in stack])
        spread = ((left_out - left_out.mean(0)) ** 2).sum(0) * (len(stack) - 1) / len(stack)
        errors = (float(np.sqrt(spread[0])), float(np.sqrt(spread[1])))
    return Shift(x, y, *errors, bool(height > _LEAST_PEAK), len(stack))


def _peak(surface: np.ndarray) -> tuple[float, float, float]:
    """Place of the highest value from the middle, to a part of a pixel, and its height."""
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    middle = surface.shape[0] // 2
    rest = surface[np.abs(np.arange(len(surface)) - row) > 3]
    height = (surface[row, column] - rest.mean()) / max(float(rest.std()), 1e-12)
    place = []
    for index, line in ((column, surface[row]), (row, surface[:, column])):
        part = 0.0
        if 0 < index < len(line) - 1:
            before, at, after = line[index - 1 : index + 2]
            bend = before - 2 * at + after
            part = 0.5 * (before - after) / bend if bend < 0 else 0.0
        place.append(float(index - middle + part))
    return place[0], place[1], float(height)
