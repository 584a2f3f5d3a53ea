# SPDX-License-Identifier: AGPL-3.0-only
"""What a fused image keeps of the objects that its sources show: kept, lost and hidden.

An object is visible where it stands out from its surroundings: its contrast is the distance between
the mean of the object and the mean of a ring around it, in grey levels. `kept` is the fused image's
contrast over the better source's, and an object is lost where less than half is kept. An object
that is half bright and half dark may have the mean of its surroundings and be plain to see; so an
object is gone only where its upper, middle and lower third have lost theirs too. Without labels,
`hidden` asks the same at every pixel for structures of 8 to 64 pixels.

All images are `(H, W)` luminances in 0..255, uint8 or float.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = [
    "LEAST_CONTRAST",
    "LEAST_PIXELS",
    "LOST",
    "Kept",
    "Region",
    "box_regions",
    "hidden",
    "hidden_map",
    "kept_boxes",
    "kept_masks",
    "mask_regions",
    "summary",
]

LEAST_CONTRAST = 15.0
"""Grey levels by which the better source must show an object, so that the object counts."""
LOST = 0.5
"""An object or place is lost (hidden) where less than this share of its contrast is kept."""
LEAST_PIXELS = 8
"""Pixels that a third of an object, and its surroundings, have at least to be measured."""
SCALES = (8, 16, 32, 64)
"""Sizes in pixels of the structures that `hidden` looks at."""
LEAST_STRUCTURE = 6.0
"""Least contrast in grey levels that `hidden` takes for structure in a source without noise."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Kept:
    """One object that a source shows.

    Attributes:
        box: x0, y0, x1, y1 in pixels, whole numbers, x1 and y1 excluded.
        ir, vi, fused: contrasts in grey levels, at least 0.
        ir_shown, vi_shown, fused_shown: the largest contrasts of the object and of its upper,
            middle and lower third, each with what is beside it, in grey levels.
    """

    box: tuple[int, int, int, int]
    ir: float
    vi: float
    fused: float
    ir_shown: float
    vi_shown: float
    fused_shown: float

    @property
    def ratio(self) -> float:
        """Contrast of the fused image over the better source's."""
        return self.fused / max(self.ir, self.vi)

    @property
    def lost(self) -> bool:
        """Whether less than half of the better source's contrast is kept."""
        return self.ratio < LOST

    @property
    def gone(self) -> bool:
        """Whether neither the object nor a third of it keeps half of the better source's."""
        return self.fused_shown < LOST * max(self.ir_shown, self.vi_shown)

    @property
    def missing(self) -> float:
        """Grey levels of contrast by which the fused image falls short of the better source."""
        return max(self.ir, self.vi) - self.fused


def summary(objects: Sequence[Kept]) -> dict[str, float]:
    """Number of objects, what is kept of them (the median), shares lost and gone.

    Empty without objects.
    """
    if not objects:
        return {}
    return {
        "objects": len(objects),
        "kept": float(np.median([one.ratio for one in objects])),
        "lost": float(np.mean([one.lost for one in objects])),
        "gone": float(np.mean([one.gone for one in objects])),
    }


@dataclass(frozen=True)
class Region:
    """An object and its surroundings in an image.

    Attributes:
        box: x0, y0, x1, y1 in pixels, whole numbers, x1 and y1 excluded.
        window: rows and columns of the image that hold both.
        core: where in the window the object is, bool.
        ring: where in the window its surroundings are, bool.
    """

    box: tuple[int, int, int, int]
    window: tuple[slice, slice]
    core: np.ndarray
    ring: np.ndarray

    def contrast(self, image: np.ndarray) -> float:
        """Distance between the means of object and surroundings, in the image's unit."""
        inside = image[self.window]
        return abs(float(inside[self.core].mean()) - float(inside[self.ring].mean()))

    def thirds(self) -> list[Region]:
        """The upper, middle and lower third of the object, each with the surroundings beside it.

        Thirds with under `LEAST_PIXELS` of either are left out.
        """
        left, _, right, _ = self.box
        rows, columns = self.window
        taken = np.flatnonzero(self.core.any(1))
        edges = np.linspace(taken[0], taken[-1] + 1, 4).round().astype(int).tolist()
        found = []
        for start, end in zip(edges, edges[1:]):
            core, ring = self.core[start:end], self.ring[start:end]
            if min(core.sum(), ring.sum()) >= LEAST_PIXELS:
                top, bottom = rows.start + start, rows.start + end
                window = (slice(top, bottom), columns)
                found.append(Region((left, top, right, bottom), window, core, ring))
        return found


def box_regions(boxes: Iterable[Box], shape: tuple[int, int]) -> list[Region]:
    """Objects in boxes `(x0, y0, x1, y1)` in pixels, of an image of this height and width.

    The object is the core of the box (half its width, three quarters of its height, where the
    object rather than its corners is), its surroundings a ring of half the box's width, at least 6
    pixels. Boxes under 5 x 8 pixels are left out.
    """
    height, width = shape
    found = []
    for box in boxes:
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if x1 - x0 < 5 or y1 - y0 < 8:
            continue
        margin, dx, dy = max(6, (x1 - x0) // 2), (x1 - x0) // 4, (y1 - y0) // 8
        top, left = max(0, y0 - margin), max(0, x0 - margin)
        window = np.s_[top : min(y1 + margin, height), left : min(x1 + margin, width)]
        core = np.zeros((window[0].stop - top, window[1].stop - left), bool)
        ring = np.ones(core.shape, bool)
        core[y0 + dy - top : y1 - dy - top, x0 + dx - left : x1 - dx - left] = True
        ring[y0 - top : y1 - top, x0 - left : x1 - left] = False
        if ring.any():
            found.append(Region((x0, y0, x1, y1), window, core, ring))
    return found


def mask_regions(masks: Iterable[np.ndarray], shape: tuple[int, int]) -> list[Region]:
    """Objects with exact masks, each `(H, W)`, not zero on the object.

    The surroundings are a ring of half the object's width, at least 6 pixels, without the pixels of
    any other mask. Masks of under 12 pixels are left out.

    Raises:
        ValueError: masks that are not of this height and width.
    """
    masks = [np.asarray(mask) > 0 for mask in masks]
    if any(mask.shape != shape for mask in masks):
        raise ValueError(f"masks must have the images' shape {shape} (height, width)")
    if not masks:
        return []
    taken = np.logical_or.reduce(masks)
    found = []
    for mask in masks:
        if mask.sum() < 12:
            continue
        x0, y0, wide, high = cv2.boundingRect(mask.astype(np.uint8))
        margin = max(6, wide // 2)
        top, left = max(0, y0 - margin), max(0, x0 - margin)
        window = np.s_[top : y0 + high + margin, left : x0 + wide + margin]
        core = mask[window]
        side = np.ones((2 * margin + 1,) * 2, np.uint8)
        around = cv2.dilate(core.astype(np.uint8), side) > 0
        ring = around & ~taken[window]
        if ring.any():
            found.append(Region((x0, y0, x0 + wide, y0 + high), window, core, ring))
    return found


def kept_boxes(
    fused: np.ndarray, ir: np.ndarray, vi: np.ndarray, boxes: Iterable[Box]
) -> list[Kept]:
    """What is kept of the objects of :func:`box_regions`.

    Objects that no source shows by `LEAST_CONTRAST` are left out.

    Raises:
        ValueError: images of different sizes.
    """
    images = _images(fused, ir, vi)
    return _kept(images, box_regions(boxes, images[0].shape))


def kept_masks(
    fused: np.ndarray, ir: np.ndarray, vi: np.ndarray, masks: Iterable[np.ndarray]
) -> list[Kept]:
    """What is kept of the objects of :func:`mask_regions`.

    Objects that no source shows by `LEAST_CONTRAST` are left out.

    Raises:
        ValueError: images or masks of different sizes.
    """
    images = _images(fused, ir, vi)
    return _kept(images, mask_regions(masks, images[0].shape))


def _kept(images: Sequence[np.ndarray], regions: Iterable[Region]) -> list[Kept]:
    found = []
    for region in regions:
        fused, ir, vi = whole = [region.contrast(image) for image in images]
        if max(ir, vi) >= LEAST_CONTRAST:
            thirds = region.thirds()
            fused_shown, ir_shown, vi_shown = (
                max([contrast, *(third.contrast(image) for third in thirds)])
                for contrast, image in zip(whole, images)
            )
            found.append(Kept(region.box, ir, vi, fused, ir_shown, vi_shown, fused_shown))
    return found


def hidden(fused: np.ndarray, ir: np.ndarray, vi: np.ndarray) -> float:
    """Share of the image, 0 to 1, where structure of a source is hidden at any scale."""
    return float(hidden_map(fused, ir, vi).mean())


def hidden_map(fused: np.ndarray, ir: np.ndarray, vi: np.ndarray) -> np.ndarray:
    """Where the fused image hides structure, `(H, W)` bool.

    At each of `SCALES`, structure is the difference between the mean over a square of that side and
    the mean over a ring around it. A source has structure at a place if the root mean square of
    that difference about it exceeds both `LEAST_STRUCTURE` and four times what the source's noise
    alone gives. Kept is the share of the better source's structure that the fused image repeats,
    of either sign:
    ``|<d_fused, d_source>| / <d_source, d_source>`` over a square of twice the side. The
    place is hidden where that is under a half, at any scale.

    Raises:
        ValueError: images of different sizes.
    """
    fused, ir, vi = _images(fused, ir, vi)
    found = np.zeros(fused.shape, bool)
    noise_ir, noise_vi = _noise(ir), _noise(vi)
    for scale in SCALES:
        if 2 * scale > min(fused.shape):
            break
        d_fused, d_ir, d_vi = (_structure(image, scale) for image in (fused, ir, vi))

        def mean(x: np.ndarray, side: int = 2 * scale + 1) -> np.ndarray:
            return cv2.blur(x, (side, side), borderType=cv2.BORDER_REFLECT)

        e_ir, e_vi = mean(d_ir * d_ir), mean(d_vi * d_vi)
        # White noise of deviation s leaves s / scale in the mean of a square.
        least_ir, least_vi = (
            max(LEAST_STRUCTURE, 4.0 * noise / scale) ** 2 for noise in (noise_ir, noise_vi)
        )
        # Structure under its noise is none: the other source is the better one then.
        e_ir, e_vi = np.where(e_ir > least_ir, e_ir, 0), np.where(e_vi > least_vi, e_vi, 0)
        better = np.maximum(e_ir, e_vi)
        shared = np.where(e_ir >= e_vi, mean(d_fused * d_ir), mean(d_fused * d_vi))
        found |= (better > 0) & (np.abs(shared) < LOST * better)
    return found


def _structure(image: np.ndarray, scale: int) -> np.ndarray:
    """Mean over a square of side `scale` less the mean over the ring up to twice that side."""
    inner, outer = (
        cv2.blur(image, (side, side), borderType=cv2.BORDER_REFLECT) for side in (scale, 2 * scale)
    )
    return (inner - outer) * (4.0 / 3.0)


def _noise(image: np.ndarray) -> float:
    """Deviation of the pixel noise in grey levels (Immerkaer 1996, by the robust median)."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    return float(np.median(np.abs(cv2.filter2D(image, cv2.CV_32F, kernel)))) / (6 * 0.6745)


def _images(*images: np.ndarray) -> list[np.ndarray]:
    shapes = {image.shape for image in images}
    if len(shapes) > 1 or images[0].ndim != 2:
        raise ValueError(f"expected three (H, W) luminances of one size, got {sorted(shapes)}")
    return [np.asarray(image, np.float32) for image in images]
