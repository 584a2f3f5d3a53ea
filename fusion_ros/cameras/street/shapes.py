# SPDX-License-Identifier: AGPL-3.0-only
"""Facets: flat polygons of one object that a camera sees, in painter's order, and their forms."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import pi

import numpy as np


@dataclass
class Facets:
    """Polygons of one object in painter's order, with what each camera needs to colour them.

    `warmth` is the share of the way from air temperature (0) to skin temperature (1);
    `excess` is in kelvin and added. Emission counts while the head lamps are on.
    """

    outlines: list  # of (N, 2) float32 pixels
    albedo: np.ndarray  # (M, 3) linear BGR
    normal: np.ndarray  # (M, 3) world
    gloss: np.ndarray  # (M,) share of mirrored sky
    warmth: np.ndarray  # (M,)
    excess: np.ndarray  # (M,) kelvin
    emission: np.ndarray  # (M, 3) linear BGR
    position: tuple  # world (x, y, z) of the middle
    shadow: np.ndarray  # (N, 2) pixels of the contact shadow
    lights: list = field(default_factory=list)  # of Light
    snowy: bool = False  # stands still in the open: snow stays on what faces up

    @cached_property
    def points(self) -> np.ndarray:
        """All outlines one after the other, (sum of N, 2)."""
        return np.concatenate(self.outlines)

    @cached_property
    def bounds(self) -> tuple:
        """Tight box (left, top, right, bottom) of the object without its shadow, pixels."""
        return (*self.points.min(axis=0).tolist(), *self.points.max(axis=0).tolist())

    def split(self, points: np.ndarray) -> list:
        """Rows of `points`, as many as `self.points` has, back into outlines."""
        ends = list(accumulate(map(len, self.outlines)))
        return [points[start:end] for start, end in zip([0, *ends], ends)]


@dataclass(frozen=True)
class Light:
    """A lamp of a vehicle as the camera sees it."""

    u: float
    v: float
    radius: float  # pixels
    front: bool  # head lamp, else tail lamp
    facing: float  # 0 seen from the side .. 1 straight into it


_ARC = np.linspace(-pi / 2, pi / 2, 6)
CIRCLE = np.linspace(0, 2 * pi, 17)[:-1]
ROUND = np.stack([np.cos(CIRCLE), np.sin(CIRCLE)], axis=1)
LIT, HALF_LIT, SHADED = (-0.45, 0.55, -0.70), (-0.05, 0.40, -0.90), (0.55, 0.15, -0.82)


def capsules(a: np.ndarray, b: np.ndarray, ra: np.ndarray, rb: np.ndarray) -> np.ndarray:
    """Outlines (C, 12, 2) of tapered capsules from points a to b (C, 2) with radii (C,)."""
    angle = np.arctan2(b[:, 1] - a[:, 1], b[:, 0] - a[:, 0])[:, None]
    far, near = angle + _ARC, angle + _ARC + pi
    ends = [
        np.stack([np.cos(t), np.sin(t)], axis=2) * r[:, None, None] + c[:, None]
        for t, r, c in ((far, rb, b), (near, ra, a))
    ]
    return np.concatenate(ends, axis=1)
