# SPDX-License-Identifier: AGPL-3.0-only
"""Soft border of the thermal camera's view: outside it the fused image is the visible one."""

from __future__ import annotations

import cv2
import numpy as np

from fusion_ros.size import Size

__all__ = ["SoftBorder"]

_SHARE = 1 / 20
"""Width of the border as a share of the image's shorter side: 24 px of 480."""
_BAND = 32
"""Rows that are blended together; a tile is a run of columns in one such band."""


class SoftBorder:
    """Fades one image into another towards the edge of the thermal camera's view.

    The weight of the inner image is 0 outside the view and rises to 1 within a border inside the
    view (smoothstep of the distance to the nearest unseen pixel). It depends on the calibration
    alone, so it is computed once. A frame costs a masked copy, and a blend of the border's pixels.

    seen: (H, W) bool, whether the thermal camera sees the pixel. Edges of the image itself are no
        edges of the view.
    """

    def __init__(self, seen: np.ndarray) -> None:
        self.size = Size.of(seen)
        self.seen = seen
        width = max(min(seen.shape) * _SHARE, 2.0)
        distance = cv2.distanceTransform(seen.astype(np.uint8), cv2.DIST_L2, 5)
        if seen.all():
            distance[:] = np.inf  # OpenCV measures no distance where there is nothing to reach
        share = np.clip(distance / width, 0, 1)
        self.weight = (share * share * (3 - 2 * share)).astype(np.float32)
        """(H, W) float32 in [0, 1]: weight of the inner image."""
        self._outside = np.where(seen, np.uint8(0), np.uint8(255))
        self._tiles = [
            (tile, self.weight[tile].copy(), 1 - self.weight[tile]) for tile in self._find_tiles()
        ]

    def blend(self, inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
        """Write `outer` into `inner` outside the view, fading into it, and return `inner`.

        Both are (H, W) or (H, W, C) uint8 of one shape; `inner` is contiguous and is changed.
        Raises ValueError for other images.
        """
        if inner.shape != outer.shape or Size.of(inner) != self.size or inner.dtype != np.uint8:
            raise ValueError(
                f"images are {inner.dtype} {inner.shape} and {outer.dtype} {outer.shape}, "
                f"expected two uint8 images of {self.size}"
            )
        cv2.copyTo(outer, self._outside, dst=inner)
        for tile, weight, rest in self._tiles:
            inner[tile] = cv2.blendLinear(inner[tile], outer[tile], weight, rest)
        return inner

    def _find_tiles(self) -> list[tuple[slice, slice]]:
        """Rectangles that together hold every pixel with a weight between 0 and 1."""
        partial = (self.weight > 0) & (self.weight < 1)
        tiles = []
        for top in range(0, partial.shape[0], _BAND):
            rows = slice(top, top + _BAND)
            columns = np.flatnonzero(partial[rows].any(axis=0))
            if columns.size:
                # A short gap costs less than another call.
                runs = np.split(columns, np.flatnonzero(np.diff(columns) > _BAND) + 1)
                tiles += [(rows, slice(run[0], run[-1] + 1)) for run in runs]
        return tiles
