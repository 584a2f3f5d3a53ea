# SPDX-License-Identifier: AGPL-3.0-only
"""Shading and drawing of facets: sprites with sub-pixel edges, blended by depth."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from fusion_ros.cameras.street.scene import LAMPS, Climate, Vehicle
from fusion_ros.cameras.street.shapes import Facets

LAMP_COLOUR = np.array([0.48, 0.80, 1.0])
BEAM_COLOUR = np.array([0.82, 0.95, 1.0])
SNOW_ALBEDO = np.array([0.84, 0.82, 0.80])
_BLACK_LEVEL = 6.0  # black level of the sensor, in counts of 255
_SHIFT = 4  # fractional bits of cv2's fixed-point coordinates


def tone(radiance: np.ndarray, exposure: float) -> np.ndarray:
    """Linear radiance -> display values 0..255 as float: soft shoulder, gamma, black level."""
    shoulder = 1.0 - np.exp(-1.35 * exposure * np.maximum(radiance, 0.0))
    return _BLACK_LEVEL + (255.0 - _BLACK_LEVEL) * np.power(shoulder, 1 / 2.2)


def lamp_light(x, y, z):
    """Light of all street lamps at a point, 1 = below a lamp; sharply bounded cones."""
    total = 0.0
    for lamp in LAMPS:
        down = lamp.height - y
        squared = (lamp.x + lamp.reach - x) ** 2 + down**2 + (lamp.z - z) ** 2
        cosine = down / np.sqrt(squared + 1e-6)
        cone = np.clip((cosine - 0.56) / 0.24, 0.0, 1.0)
        total = total + 28.0 / np.maximum(squared, 4.0) * cone * cone * (3 - 2 * cone)
    return total


def beam_light(x, z, vehicles: tuple[Vehicle, ...]):
    """Light of the head lamps of `vehicles` at points of the ground."""
    total = 0.0
    for vehicle in vehicles:
        s, c = np.sin(vehicle.yaw), np.cos(vehicle.yaw)
        ahead = (x - vehicle.x) * s + (z - vehicle.z) * c - 2.0
        across = (x - vehicle.x) * c - (z - vehicle.z) * s
        width = 0.9 + 0.16 * np.maximum(ahead, 0.0)
        near = np.clip(ahead / 2.5, 0.0, 1.0)
        total = total + near * 20.0 / (25.0 + np.maximum(ahead, 0) ** 2) * np.exp(
            -((across / width) ** 2)
        )
    return total


def facet_colours(
    facets: Facets, climate: Climate, sunlit: float, lamp: float, beam: float, lit: float
) -> np.ndarray:
    """Display BGR (M, 3) of facets, 0..255.

    `sunlit`, `lamp`, `beam` are the light at their place; `lit` scales their own emission.
    """
    normal = facets.normal
    ambient = np.array(climate.ambient) * (0.66 + 0.34 * normal[:, 1:2])
    sun = np.array(climate.sun) * np.maximum(normal @ np.array(climate.sun_direction), 0)[:, None]
    local = LAMP_COLOUR * (lamp * climate.lamps * (0.45 + 0.55 * np.maximum(normal[:, 1:2], 0)))
    local = local + BEAM_COLOUR * beam
    albedo, gloss = facets.albedo, facets.gloss
    if climate.snow > 0 and facets.snowy:
        cover = climate.snow * np.clip((normal[:, 1] - 0.25) / 0.35, 0, 1)
        albedo = albedo + cover[:, None] * (SNOW_ALBEDO - albedo)
        gloss = gloss * (1 - cover)
    radiance = albedo * (ambient + sunlit * sun + local)
    mirrored = np.clip(0.35 + 0.9 * normal[:, 1:2], 0.05, 1.0)
    sky = np.array(climate.sky_low) * (1 - 0.4 * mirrored) + np.array(climate.sky_high) * mirrored
    radiance += gloss[:, None] * mirrored * 0.6 * (sky + 0.25 * local)
    radiance += facets.emission * lit
    fog = 1 - np.exp(-climate.haze * facets.position[2])
    radiance = radiance * (1 - fog) + np.array(climate.sky_low) * fog
    return tone(radiance, climate.exposure)


def facet_celsius(facets: Facets, climate: Climate, sunlit: float) -> np.ndarray:
    """Surface temperatures (M,) of facets."""
    skin = 33.5 if climate.air > 12 else 31.5
    warm = climate.air + facets.warmth * (skin - climate.air) + facets.excess
    sun = np.maximum(facets.normal @ np.array(climate.sun_direction), 0) * climate.sunlit
    return warm + 0.45 * sunlit * sun * (facets.warmth < 0.8)


@dataclass
class Sprite:
    """Premultiplied pixels of an object and its place in the picture."""

    left: int
    top: int
    values: np.ndarray  # (h, w, 3) uint8 or (h, w) float32, premultiplied
    alpha: np.ndarray  # (h, w) uint8 or float32
    depth: float


def _clip_box(bounds: tuple, width: int, height: int) -> tuple | None:
    left, top = max(0, int(bounds[0]) - 2), max(0, int(bounds[1]) - 2)
    right, bottom = min(width, int(bounds[2]) + 3), min(height, int(bounds[3]) + 3)
    return (left, top, right, bottom) if right - left > 1 and bottom - top > 1 else None


def _fixed(points: np.ndarray, left: int, top: int, scale: int) -> np.ndarray:
    """Pixels (N, 2) as fixed-point coordinates of the canvas; pixel centres are integers."""
    moved = (points - (left, top)) * scale + (0.5 * scale - 0.5)
    return np.rint(np.clip(moved, -30000, 30000) * (1 << _SHIFT)).astype(np.int32)


def rgb_sprite(
    facets: Facets, colours: np.ndarray, size: tuple, scale: int = 2, shadow: float = 0.5
) -> Sprite | None:
    """Object over its contact shadow for a picture of `size` (width, height).

    Drawn `scale` times larger and averaged down, which gives sub-pixel edges without seams
    between neighbouring facets.
    """
    bounds = facets.bounds
    low, high = facets.shadow.min(axis=0), facets.shadow.max(axis=0)
    box = _clip_box(
        (
            min(bounds[0], low[0]),
            min(bounds[1], low[1]),
            max(bounds[2], high[0]),
            max(bounds[3], high[1]),
        ),
        *size,
    )
    if box is None:
        return None
    left, top, right, bottom = box
    canvas = np.zeros(((bottom - top) * scale, (right - left) * scale, 4), np.uint8)
    middle = facets.shadow.mean(axis=0)
    if shadow > 0:
        for reach, strength in ((1.0, 0.35), (0.86, 0.7), (0.7, 1.0)):
            ring = _fixed(middle + (facets.shadow - middle) * reach, left, top, scale)
            cv2.fillPoly(canvas, [ring], (0, 0, 0, 255 * shadow * strength), cv2.LINE_8, _SHIFT)
    colours = np.clip(colours, 0, 255).tolist()
    outlines = facets.split(_fixed(facets.points, left, top, scale))
    for outline, (b, g, r) in zip(outlines, colours):
        cv2.fillPoly(canvas, [outline], (b, g, r, 255), cv2.LINE_8, _SHIFT)
    if scale > 1:
        canvas = cv2.resize(canvas, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return Sprite(left, top, canvas[:, :, :3], canvas[:, :, 3], facets.position[2])


def thermal_sprite(
    facets: Facets, celsius: np.ndarray, size: tuple, scale: int = 2
) -> Sprite | None:
    """Object of given facet temperatures for a thermal picture of `size` (width, height)."""
    box = _clip_box(facets.bounds, *size)
    if box is None:
        return None
    left, top, right, bottom = box
    canvas = np.zeros(((bottom - top) * scale, (right - left) * scale, 2), np.float32)
    outlines = facets.split(_fixed(facets.points, left, top, scale))
    for outline, value in zip(outlines, celsius.tolist()):
        cv2.fillPoly(canvas, [outline], (value, 1.0), cv2.LINE_8, _SHIFT)
    if scale > 1:
        canvas = cv2.resize(canvas, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return Sprite(left, top, canvas[:, :, 0], canvas[:, :, 1], facets.position[2])


def blend(picture: np.ndarray, sprite: Sprite, depth: np.ndarray) -> None:
    """Draw the sprite into `picture` where no still object is nearer, by `depth` in metres."""
    height, width = sprite.alpha.shape
    area = slice(sprite.top, sprite.top + height), slice(sprite.left, sprite.left + width)
    target, values, alpha = picture[area], sprite.values, sprite.alpha
    hidden = depth[area] < sprite.depth - 0.4
    if hidden.any():
        alpha = np.where(hidden, 0, alpha).astype(alpha.dtype)
        values = np.where(hidden[..., None] if values.ndim == 3 else hidden, 0, values).astype(
            values.dtype
        )
    if picture.dtype == np.uint8:
        inverse = cv2.bitwise_not(alpha)
        cv2.multiply(target, cv2.merge((inverse, inverse, inverse)), dst=target, scale=1 / 255)
        cv2.add(target, np.ascontiguousarray(values), dst=target)
    else:
        target *= 1 - alpha
        target += values
