# SPDX-License-Identifier: AGPL-3.0-only
"""Signs of the street: boards with their text, pasted into a picture."""

from __future__ import annotations

import cv2
import numpy as np

from fusion_ros.cameras.street.raster import LAMP_COLOUR, tone
from fusion_ros.cameras.street.scene import Climate, Sign
from fusion_ros.size import Size


def sign_board(sign: Sign, size: Size, climate: Climate) -> np.ndarray:
    """The board of a sign with its text, (H, W, 4) uint8 BGR and opacity."""
    light = np.array(climate.ambient) + 0.7 * np.array(climate.sun)
    light = light + LAMP_COLOUR * 0.55 * climate.lamps  # signs are lit by their own lamp

    def paint(albedo: tuple) -> tuple:
        return (*np.clip(tone(np.array(albedo) * light, climate.exposure), 0, 255).tolist(), 255)

    board, ink = paint(sign.board), paint(sign.ink)
    zoom = max(1, 160 // size.width)
    tile = np.zeros((size.height * zoom, size.width * zoom, 4), np.uint8)
    h, w = tile.shape[:2]
    if not sign.round:
        tile[:] = board
        corners = (2 * zoom, 2 * zoom), (w - 1 - 2 * zoom, h - 1 - 2 * zoom)
        cv2.rectangle(tile, *corners, ink, max(1, round(0.03 * h)))
        room = 0.80
    else:
        is_stop = sign.text == "STOP"
        corners = 8 if is_stop else 48
        turn = np.arange(corners) * 2 * np.pi / corners + np.pi / corners
        circle = np.stack([np.cos(turn), np.sin(turn)], 1) * w / (2 * np.cos(np.pi / corners))
        rim, share = (ink, 0.92) if is_stop else (paint((0.03, 0.03, 0.45)), 0.76)
        for radius, colour in ((1, rim), (share, board)):
            outline = np.rint(radius * circle + (w / 2 - 0.5, h / 2 - 0.5)).astype(np.int32)
            cv2.fillPoly(tile, [outline], colour, cv2.LINE_AA)
        room = 0.80 if is_stop else 0.60
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), _ = cv2.getTextSize(sign.text, font, 1.0, 2)
    scale = min(room * w / width, 0.62 * h / height)
    thick = max(1, round(2.6 * scale))
    (width, height), _ = cv2.getTextSize(sign.text, font, scale, thick)
    place = (round((w - width) / 2), round((h + height) / 2))
    cv2.putText(tile, sign.text, place, font, scale, ink, thick, cv2.LINE_AA)
    return cv2.resize(tile, size, interpolation=cv2.INTER_AREA)


def paste(picture: np.ndarray, tile: np.ndarray, left: int, top: int) -> None:
    """Blend a tile (h, w, 4) into a picture by its opacity; parts outside are cut off."""
    height, width = tile.shape[:2]
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(picture.shape[1], left + width), min(picture.shape[0], top + height)
    if x1 <= x0 or y1 <= y0:
        return
    part = tile[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = part[..., 3:].astype(np.float32) / 255
    area = picture[y0:y1, x0:x1]
    area[:] = (area * (1 - alpha) + part[..., :3] * alpha).astype(np.uint8)
