# SPDX-License-Identifier: AGPL-3.0-only
"""The contract between an exported network and the runtime, and images to check it with.

Inputs `ir`, `vi` and output `fused` are `[1, 1, H, W]` float32 in [0, 1]. Needs numpy and OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np

IR, VI, FUSED = "ir", "vi", "fused"
"""Inputs and output of an exported network."""
THERMAL_IMAGE, VISIBLE_IMAGE, FUSED_IMAGE = "thermal_image", "visible_image", "fused_image"
"""Inputs and output of its form that converts camera images itself, all uint8: `[1, 1, H, W]`,
`[1, H, W, 3]` BGR and `[1, H, W, 3]` BGR."""
FUSED_MEAN = "fused_mean"
"""Its second output, float32 with one element: mean of `fused`, which shows NaN and infinity."""

MULTIPLE = 8
"""Height and width of the inputs are multiples of this."""
SMALLEST = 32
"""Least height and width of the inputs in pixels."""
FP16_LIMIT = 2 / 255
"""Mean absolute difference to float32 up to which a float16 network may take its place."""


def reference_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """`(H, W)` float32 image in [0, 1] with detail at all scales, the same for each `seed`."""
    rng = np.random.default_rng(seed)
    plane = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 0.5), (16, 0.3), (64, 0.15), (max(height, width), 0.05)):
        coarse = rng.random((min(cells, height), min(cells, width)), np.float32)
        plane += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(plane, None, 0, 1, cv2.NORM_MINMAX)


def reference_pair(height: int, width: int, seed: int = 0) -> np.ndarray:
    """`ir` and `vi` as a network takes them, `[2, 1, 1, H, W]`: two different reference images."""
    images = [reference_image(height, width, 2 * seed + number) for number in range(2)]
    return np.stack(images)[:, None, None]
