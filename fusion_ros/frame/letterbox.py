# SPDX-License-Identifier: AGPL-3.0-only
"""How an image is placed on the canvas that a detector takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion_ros.size import Size

__all__ = ["FITS", "PADDING", "Letterbox"]

PADDING = 114
"""Grey level around the image."""

FITS = ("centre", "corner", "stretch")
"""Place of the image on the canvas: in the middle, at the top left, or stretched to all of it."""


@dataclass(frozen=True)
class Letterbox:
    """An image of size `source` scaled to `scaled` on a canvas, offset `left, top`.

    Rounding is that of ultralytics' LetterBox and scale_boxes, so that boxes agree to the pixel.
    """

    source: Size
    scaled: Size
    left: int
    top: int

    @classmethod
    def fit(cls, source: Size, canvas: Size, how: str = "centre") -> Letterbox:
        """Scale `source` as large as `canvas` allows; its proportions stay unless it stretches.

        how: one of `FITS`.
        """
        if how == "stretch":
            return cls(source, canvas, 0, 0)
        ratio = min(canvas.width / source.width, canvas.height / source.height)
        scaled = Size(*(max(round(n * ratio), 1) for n in source))
        if how == "corner":
            return cls(source, scaled, 0, 0)
        left, top = (round((c - n) / 2 - 0.1) for c, n in zip(canvas, scaled))
        return cls(source, scaled, left, top)

    def to_source(self, corners: np.ndarray) -> np.ndarray:
        """Convert (N, 4) x1, y1, x2, y2 from the canvas to the source image, clipped to it."""
        limits = np.array(self.source * 2, np.float32)
        offset = np.array((self.left, self.top) * 2, np.float32)
        scale = limits / np.array(self.scaled * 2, np.float32)
        return np.clip((corners - offset) * scale, 0, limits)
