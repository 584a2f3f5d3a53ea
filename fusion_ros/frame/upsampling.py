# SPDX-License-Identifier: AGPL-3.0-only
"""Upsampling of a fusion done at a small size, guided by the edges of the full-size images."""

from __future__ import annotations

import cv2
import numpy as np

RADIUS = 4
"""Radius of the windows of the local fit, in small pixels: 81 samples."""
EPSILON = 3e-5
"""Added to the guides' variances, (1.4 grey levels)^2: weaker texture has little influence."""
MOST_GAIN = 2.0
"""Limit of the absolute value of both gains, which a flat guide beside a strong change can make
large. -2 allows the visible contrast to be inverted, as where a dark coat is warm."""


class GuidedUpsampler:
    """Upsamples the change that fusion made to the visible luminance, guided by both images.

    In a window around each small pixel the change d = fused - vi is fitted by both sources,

        d ~ a vi + b ir + c    (ridge regression: `EPSILON` is added to both variances),

    the guided filter of He et al. 2013 with two guides. The change is enlarged bilinearly, and
    what the sources lost by being made small is added with the gains of the fit (S: small,
    up: bilinear enlargement):

        fused = vi + up(d_S) + up(a) vi - up(a vi_S) + up(b) ir - up(b ir_S)

    Visible texture is kept where the network kept it and fades where the network took thermal
    instead, and a thermal target keeps its edges in `ir`. Where the sources have no fine detail
    this is the bilinear enlargement of the change. Not thread-safe.

    small, full: (height, width) of the network's images and of the cameras'.
    """

    def __init__(self, small: tuple[int, int], full: tuple[int, int]) -> None:
        # Buffers are kept, so that no frame allocates.
        self._change, self._product, self._det, self._gain_vi, self._gain_ir = (
            np.empty(small, np.float32) for _ in range(5)
        )
        self._means = [np.empty(small, np.float32) for _ in range(3)]
        self._covariances = [np.empty(small, np.float32) for _ in range(5)]
        self._enlarged = np.empty(full, np.float32)
        self._size = (full[1], full[0])

    def upsample(
        self,
        fused_small: np.ndarray,
        ir_small: np.ndarray,
        vi_small: np.ndarray,
        ir: np.ndarray,
        vi: np.ndarray,
        out: np.ndarray,
    ) -> np.ndarray:
        """The fused luminance at the cameras' size, written to `out`; all float32 in [0, 1].

        fused_small, ir_small, vi_small: of the size `small`; ir, vi, out: of the size `full`, and
        `out` is another array than the inputs.
        """
        change = np.subtract(fused_small, vi_small, out=self._change)
        a, b = self._fit(change, ir_small, vi_small)
        np.multiply(self._enlarge(a), vi, out=out)
        out += vi
        enlarged = self._enlarge(b)
        enlarged *= ir
        out += enlarged
        a *= vi_small
        b *= ir_small
        change -= a
        change -= b
        out += self._enlarge(change)
        return np.clip(out, 0, 1, out=out)

    def _fit(
        self, change: np.ndarray, ir: np.ndarray, vi: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gains a and b of each window, in buffers that are valid until the next call."""
        images = (vi, ir, change)
        for image, mean in zip(images, self._means):
            _box(image, mean)
        of_pairs = ((0, 0), (1, 1), (0, 1), (0, 2), (1, 2))
        for (i, j), covariance in zip(of_pairs, self._covariances):
            _box(np.multiply(images[i], images[j], out=self._product), covariance)
            covariance -= np.multiply(self._means[i], self._means[j], out=self._product)
        vi_vi, ir_ir, vi_ir, vi_d, ir_d = self._covariances
        vi_vi += EPSILON
        ir_ir += EPSILON
        # Cramer's rule for the two normal equations; the determinant is above EPSILON^2.
        a = np.multiply(vi_d, ir_ir, out=self._gain_vi)
        a -= np.multiply(ir_d, vi_ir, out=self._product)
        b = np.multiply(ir_d, vi_vi, out=self._gain_ir)
        b -= np.multiply(vi_d, vi_ir, out=self._product)
        det = np.multiply(vi_vi, ir_ir, out=self._det)
        det -= np.multiply(vi_ir, vi_ir, out=self._product)
        for gain in (a, b):
            gain /= det
            np.clip(gain, -MOST_GAIN, MOST_GAIN, out=gain)
        return a, b

    def _enlarge(self, image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, self._size, dst=self._enlarged, interpolation=cv2.INTER_LINEAR)


def _box(image: np.ndarray, out: np.ndarray) -> None:
    side = 2 * RADIUS + 1
    cv2.blur(image, (side, side), dst=out, borderType=cv2.BORDER_REPLICATE)
