# SPDX-License-Identifier: AGPL-3.0-only
"""Facades of the street: bricks, windows and shops at points u along and v up, in metres."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fusion_ros.cameras.street.scene import GLAZED, PLAIN, Building


def hashed(a, b, seed: float):
    """Pseudo-random [0, 1) of two numbers, for windows and slabs."""
    return np.modf(np.abs(np.sin(a * 12.9898 + b * 78.233 + seed * 0.137) * 43758.5453))[0]


class Windows(NamedTuple):
    """Where the windows of the upper storeys are, and their light; one value a point."""

    inside: np.ndarray
    frame: np.ndarray
    sill: np.ndarray
    course: np.ndarray  # courses between the storeys, and the cornice
    lit: np.ndarray
    curtain: np.ndarray  # share of the light that it lets through
    glow: np.ndarray  # (N, 3) BGR


class Shops(NamedTuple):
    """Where the shops of the ground floor are, and their colours; one value a point."""

    storey: np.ndarray
    inside: np.ndarray
    frame: np.ndarray
    fascia: np.ndarray
    letters: np.ndarray
    open: np.ndarray
    colour: np.ndarray  # (N, 3) BGR of the fascia


def bricks(shade: np.ndarray, u: np.ndarray, v: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The shade of a wall with bricks and, where it is near, their joints."""
    row = np.floor(v / 0.24)
    along = u + 0.25 * (row % 2)
    joint = (v % 0.24 < 0.035) | (along % 0.5 < 0.035)
    shade = shade * (1 + 0.18 * (hashed(np.floor(along / 0.5), row, 1.0) - 0.5))
    return np.where(joint & (z < 32), shade * 1.25, shade)


def windows(u: np.ndarray, v: np.ndarray, b: Building, length: float) -> Windows:
    """The windows of a facade of `length` metres."""
    floor = np.floor((v - 3.9) / 3.4)
    upper = v >= 3.9
    wide = b.style == GLAZED
    pitch = length / max(2, round(length / (3.2 if wide else 2.3)))
    cell, cu = np.floor(u / pitch), np.abs(u % pitch - 0.5 * pitch)
    half = 1.25 if wide else 0.52
    cv = v - 3.9 - 3.4 * floor
    below_cornice = v < b.height - 0.9
    inside = upper & (cu < half) & (cv > 0.85) & (cv < 2.55) & below_cornice
    bars = (cu > half - 0.07) | (cu < 0.035) | (cv < 0.93) | (cv > 2.47)
    frame = inside & (bars | (np.abs(cv - 1.95) < 0.03))
    glow = [0.20 + 0.25 * hashed(cell, floor, b.seed + 5), np.full_like(u, 0.58)]
    return Windows(
        inside,
        frame,
        sill=upper & (cu < half + 0.12) & (cv > 0.72) & (cv <= 0.85) & below_cornice,
        course=upper & (cv < 0.16) | (v > b.height - 0.45),
        lit=inside & ~frame & (hashed(cell, floor, b.seed) < 0.36),
        curtain=0.55 + 0.45 * np.clip((cv - 0.9) / 1.6, 0, 1) * (0.8 + 0.2 * np.sin(u * 9)),
        glow=np.stack([*glow, np.full_like(u, 0.92)], 1),
    )


def shops(u: np.ndarray, v: np.ndarray, b: Building, length: float) -> Shops:
    """The shops of a facade of `length` metres."""
    has_shops = b.style != PLAIN
    bay = length / max(1, round(length / 4.2))
    cell, su = np.floor(u / bay), u % bay
    door = (su > bay - 1.35) & (su < bay - 0.35)
    inside = (v < 2.75) & (su > 0.35) & (su < bay - 1.55) & (v > 0.55) | door & (v < 2.4)
    inside &= has_shops
    frame = inside & (
        (su < 0.43)
        | (np.abs(su - bay + 1.6) < 0.05)
        | (v > 2.68)
        | (np.abs(v - 2.1) < 0.04)
        | door & ((su < bay - 1.25) | (su > bay - 0.45) | (v < 0.3))
    )
    fascia = (v > 2.95) & (v < 3.55) & has_shops
    letters = (
        fascia
        & (np.abs(v - 3.25) < 0.15)
        & (su > 0.25 * bay)
        & (su < 0.75 * bay)
        & (hashed(np.floor(su * 4), 1.0, b.seed + 7) > 0.3)
        & (su * 4 % 1 > 0.25)
    )
    return Shops(
        (v < 3.9) & has_shops,
        inside,
        frame,
        fascia,
        letters,
        open=inside & ~frame & (hashed(cell, 2.0, b.seed) < 0.6),
        colour=0.05 + 0.35 * np.stack([hashed(cell, k, b.seed) for k in (3.0, 4.0, 5.0)], axis=1),
    )
