# SPDX-License-Identifier: AGPL-3.0-only
"""Detections drawn into an image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from fusion_ros.frame.detector import Detection

__all__ = ["draw"]


def draw(bgr: np.ndarray, detections: Sequence[Detection]) -> np.ndarray:
    """Return a copy of `bgr`, (H, W, 3) uint8, with a box and a label for each detection."""
    image = bgr.copy()
    height, width = image.shape[:2]
    line = max(1, round((height + width) / 560))
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.42 * max(1.0, (height + width) / 1120)
    for detection in reversed(detections):
        colour = _colour(detection.class_id)
        left, top = round(detection.x), round(detection.y)
        corner = (round(detection.x + detection.width), round(detection.y + detection.height))
        cv2.rectangle(image, (left, top), corner, colour, line, cv2.LINE_AA)
        number = f" {detection.track_id}" if detection.track_id else ""
        label = f"{detection.class_name}{number} {detection.score:.2f}"
        if detection.celsius is not None:
            label += f" {detection.celsius:.1f} C"
        (text_width, text_height), baseline = cv2.getTextSize(label, font, size, 1)
        # Above the box, or inside it at the top of the image; never beyond the right edge.
        left = max(0, min(left, width - text_width - 4))
        base = top - baseline if top > text_height + 2 * baseline else top + text_height + baseline
        plate = ((left, base - text_height - 3), (left + text_width + 4, base + baseline))
        cv2.rectangle(image, *plate, colour, cv2.FILLED)
        bright = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2] > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        cv2.putText(image, label, (left + 2, base), font, size, ink, 1, cv2.LINE_AA)
    return image


def _colour(class_id: int) -> tuple[int, int, int]:
    # Hues a golden ratio apart, so that neighbouring class ids look different.
    hue = int(180 * (class_id * 0.618034 % 1))
    return tuple(map(int, cv2.cvtColor(np.uint8([[[hue, 200, 255]]]), cv2.COLOR_HSV2BGR)[0, 0]))
