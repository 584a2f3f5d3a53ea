# SPDX-License-Identifier: AGPL-3.0-only
"""Bodies of cars, vans and buses: meshes with materials, made once a kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import numpy as np

from fusion_ros.cameras.street.shapes import CIRCLE


@dataclass(frozen=True)
class _Material:
    albedo: tuple | None  # None: the vehicle's paint
    gloss: float
    excess: float  # kelvin over air when cold (what faces the sky is below zero)
    engine: float  # kelvin more at working temperature
    emission: tuple = (0.0, 0.0, 0.0)


_PAINT = _Material(None, 0.16, 0.0, 2.0)
_HOOD = _Material(None, 0.22, 0.0, 13.0)
_ROOF = _Material(None, 0.22, -2.0, 0.5)
_GLASS = _Material((0.018, 0.018, 0.018), 0.42, -3.0, 1.0)
_PLASTIC = _Material((0.035, 0.035, 0.035), 0.03, 0.0, 5.0)
_GRILLE = _Material((0.015, 0.015, 0.015), 0.05, 0.5, 19.0)
_UNDER = _Material((0.008, 0.008, 0.008), 0.0, 1.0, 6.0)
_TYRE = _Material((0.016, 0.016, 0.017), 0.0, 0.5, 11.0)
_RIM = _Material((0.42, 0.42, 0.42), 0.10, 0.3, 16.0)
_PLATE = _Material((0.62, 0.65, 0.65), 0.05, 0.0, 3.0)
_LINE = _Material((0.012, 0.012, 0.012), 0.0, 0.0, 2.0)
_CHROME = _Material((0.45, 0.45, 0.45), 0.30, 0.0, 2.0)
_HEADLAMP = _Material((0.70, 0.70, 0.68), 0.30, 0.0, 12.0, (7.0, 8.4, 9.0))
_TAILLAMP = _Material((0.04, 0.03, 0.42), 0.15, 0.0, 3.0, (0.05, 0.05, 1.6))


@dataclass(frozen=True)
class _Body:
    """Side view of a body: stations (z, half width, bottom, belt line) from rear to front."""

    stations: tuple
    roof: tuple  # (z, height, half width) from rear to front; empty for a box
    rear_base: float  # z where the rear window meets the belt line
    front_base: float  # z where the wind screen does
    axles: tuple
    wheel: float


_BODIES = {
    "hatchback": _Body(
        (
            (-2.05, 0.72, 0.42, 0.74),
            (-2.00, 0.82, 0.34, 0.94),
            (-1.6, 0.87, 0.22, 0.99),
            (-0.8, 0.88, 0.20, 0.98),
            (0.0, 0.88, 0.20, 0.96),
            (0.75, 0.88, 0.20, 0.95),
            (1.25, 0.87, 0.20, 0.91),
            (1.65, 0.85, 0.23, 0.84),
            (1.93, 0.79, 0.28, 0.73),
            (2.05, 0.66, 0.32, 0.60),
        ),
        ((-1.62, 1.40, 0.60), (-1.0, 1.49, 0.62), (-0.3, 1.50, 0.62), (0.25, 1.45, 0.60)),
        -1.95,
        1.05,
        (-1.28, 1.30),
        0.315,
    ),
    "sedan": _Body(
        (
            (-2.30, 0.72, 0.44, 0.80),
            (-2.22, 0.82, 0.34, 0.98),
            (-1.7, 0.88, 0.22, 1.00),
            (-0.9, 0.90, 0.20, 0.98),
            (0.0, 0.90, 0.20, 0.95),
            (0.85, 0.90, 0.20, 0.95),
            (1.4, 0.89, 0.20, 0.90),
            (1.85, 0.87, 0.23, 0.83),
            (2.17, 0.81, 0.28, 0.73),
            (2.30, 0.68, 0.32, 0.60),
        ),
        ((-1.10, 1.38, 0.58), (-0.6, 1.45, 0.61), (0.0, 1.46, 0.61), (0.40, 1.41, 0.59)),
        -1.75,
        1.20,
        (-1.38, 1.42),
        0.325,
    ),
    "suv": _Body(
        (
            (-2.25, 0.76, 0.46, 0.90),
            (-2.20, 0.86, 0.38, 1.08),
            (-1.7, 0.92, 0.28, 1.12),
            (-0.8, 0.93, 0.26, 1.10),
            (0.0, 0.93, 0.26, 1.08),
            (0.85, 0.93, 0.26, 1.07),
            (1.4, 0.92, 0.26, 1.04),
            (1.85, 0.90, 0.30, 0.98),
            (2.13, 0.84, 0.34, 0.86),
            (2.25, 0.72, 0.38, 0.70),
        ),
        ((-1.95, 1.60, 0.66), (-1.2, 1.70, 0.68), (-0.3, 1.71, 0.68), (0.40, 1.66, 0.66)),
        -2.15,
        1.15,
        (-1.36, 1.38),
        0.36,
    ),
    "van": _Body(
        (
            (-2.60, 0.84, 0.40, 1.05),
            (-2.56, 0.92, 0.34, 1.12),
            (-1.8, 0.96, 0.26, 1.14),
            (-0.8, 0.97, 0.24, 1.14),
            (0.2, 0.97, 0.24, 1.13),
            (1.1, 0.97, 0.24, 1.12),
            (1.7, 0.96, 0.24, 1.08),
            (2.15, 0.93, 0.28, 0.98),
            (2.48, 0.86, 0.32, 0.82),
            (2.60, 0.72, 0.36, 0.64),
        ),
        ((-2.50, 1.92, 0.80), (-1.5, 1.98, 0.82), (-0.2, 1.98, 0.82), (0.85, 1.90, 0.78)),
        -2.57,
        1.75,
        (-1.55, 1.68),
        0.34,
    ),
    "bus": _Body(
        (
            (-5.25, 1.16, 0.40, 2.90),
            (-5.20, 1.25, 0.34, 2.98),
            (-2.6, 1.25, 0.32, 3.0),
            (0.0, 1.25, 0.32, 3.0),
            (2.6, 1.25, 0.32, 3.0),
            (5.15, 1.25, 0.34, 2.96),
            (5.25, 1.14, 0.40, 2.85),
        ),
        (),
        0.0,
        0.0,
        (-2.9, 3.1),
        0.48,
    ),
}


@dataclass(frozen=True)
class Mesh:
    """A body in its own coordinates, in metres: right, up, forward."""

    vertices: np.ndarray  # (V, 3) local: right, up, forward
    faces: tuple  # of index arrays
    normal: np.ndarray  # (F, 3) outward
    centre: np.ndarray  # (F, 3)
    layer: np.ndarray  # (F,) painter's layers
    two_sided: np.ndarray  # (F,) bool
    own_paint: np.ndarray  # (F,) bool
    albedo: np.ndarray
    gloss: np.ndarray
    excess: np.ndarray
    engine: np.ndarray
    emission: np.ndarray
    spinning: tuple  # of (slice, axle z, axle height)
    lamps: tuple  # of (x, y, z, front)


class _Builder:
    """Collects the faces of a mesh."""

    def __init__(self) -> None:
        self.points: list = []
        self.faces: list = []
        self.meta: list = []  # (layer, material, outward hint, two sided)
        self.spinning: list = []

    def add(self, layer: int, material: _Material, points, outward=None, two_sided=False) -> slice:
        start = len(self.points)
        self.points.extend(points)
        self.faces.append(np.arange(start, len(self.points)))
        self.meta.append((layer, material, outward, two_sided))
        return slice(start, len(self.points))

    def both(self, layer: int, material: _Material, points, outward=None, two_sided=False) -> None:
        """The face and its mirror image on the other side."""
        self.add(layer, material, points, outward, two_sided)
        flip = None if outward is None else (-outward[0], outward[1], outward[2])
        self.add(layer, material, [(-x, y, z) for x, y, z in points], flip, two_sided)

    def across(self, layer: int, material: _Material, low: tuple, high: tuple, facing: int) -> None:
        """A face across the vehicle, seen from ahead (facing 1) or from behind (-1).

        low, high: half the width, the height and the place along the vehicle of its lower and
        upper edge.
        """
        (below, *lower), (above, *upper) = low, high
        points = [(-below, *lower), (below, *lower), (above, *upper), (-above, *upper)]
        self.add(layer, material, points, (0, 0, facing))

    def along(
        self, layer: int, material: _Material, x: float, heights: tuple, places: tuple
    ) -> None:
        """A rectangle on each side, x from the middle, between two heights and two places."""
        (low, high), (rear, front) = heights, places
        points = [(x, low, rear), (x, high, rear), (x, high, front), (x, low, front)]
        self.both(layer, material, points, (1, 0, 0))


def _inset(points, share: float, towards=None) -> list:
    array = np.array(points, float)
    centre = array.mean(axis=0) if towards is None else np.array(towards, float)
    return [tuple(p) for p in centre + share * (array - centre)]


def _loft(build: _Builder, body: _Body) -> None:
    """Sides, deck and both ends of the lower body."""
    length = body.stations[-1][0]
    for (za, wa, ba, ta), (zb, wb, bb, tb) in zip(body.stations, body.stations[1:]):
        ma, mb = ba + 0.5 * (ta - ba), bb + 0.5 * (tb - bb)
        hood = _HOOD if zb > 0.42 * length else _PAINT
        build.both(
            1,
            _PAINT if zb < 0.6 * length else hood,
            [(0.95 * wa, ba, za), (wa, ma, za), (wb, mb, zb), (0.95 * wb, bb, zb)],
        )
        build.both(1, hood, [(wa, ma, za), (0.92 * wa, ta, za), (0.92 * wb, tb, zb), (wb, mb, zb)])
        build.both(
            1,
            hood,
            [(0.92 * wa, ta, za), (0, ta + 0.05, za), (0, tb + 0.05, zb), (0.92 * wb, tb, zb)],
        )
    for z, w, b, t in (body.stations[0], body.stations[-1]):
        m = b + 0.5 * (t - b)
        build.add(
            1,
            _PAINT,
            [
                (0.95 * w, b, z),
                (w, m, z),
                (0.92 * w, t, z),
                (0, t + 0.05, z),
                (-0.92 * w, t, z),
                (-w, m, z),
                (-0.95 * w, b, z),
            ],
            (0, 0, z),
        )


def _greenhouse(build: _Builder, body: _Body) -> None:
    """Roof, pillars and windows of everything that is not a box."""
    zs, ws, ts = (np.array(body.stations)[:, i] for i in (0, 1, 3))

    def belt(z: float) -> tuple:
        return 0.90 * float(np.interp(z, zs, ws)), float(np.interp(z, zs, ts)), z

    rear, front = belt(body.rear_base), belt(body.front_base)
    roof = [(w, y, z) for z, y, w in body.roof]
    side = [rear, *[(w, y, z) for w, y, z in roof], front]
    build.both(2, _PAINT, side, (1, 0.3, 0))
    for (xa, ya, za), (xb, yb, zb) in zip(roof, roof[1:]):
        build.both(
            2,
            _ROOF,
            [(xa, ya, za), (0, ya + 0.04, za), (0, yb + 0.04, zb), (xb, yb, zb)],
            (0, 1, 0),
        )
    for base, top, outward in ((front, roof[-1], (0, 0.5, 1)), (rear, roof[0], (0, 0.3, -1))):
        pane = [base, top, (-top[0], top[1], top[2]), (-base[0], base[1], base[2])]
        build.add(2, _PAINT, pane, outward)
        build.add(3, _GLASS, _inset(pane, 0.88), outward)
        # The upper part mirrors a brighter sky than the lower.
        low, high = np.array(pane[:1] + pane[3:]), np.array(pane[1:3])
        band = np.concatenate(
            [low[:1] * 0.42 + high[:1] * 0.58, high[:1], high[1:], low[1:] * 0.42 + high[1:] * 0.58]
        )
        build.add(4, _Material((0.03, 0.03, 0.03), 0.62, -6.0, 0.5), _inset(band, 0.86), outward)

    pillar = 0.12 * body.rear_base + 0.02
    middle = belt(pillar)
    top = (
        float(np.interp(pillar, [z for _, _, z in roof], [w for w, _, _ in roof])),
        float(np.interp(pillar, [z for _, _, z in roof], [y for _, y, _ in roof])),
        pillar,
    )
    behind = [rear] + [p for p in roof if p[2] < pillar - 0.1] + [top, middle]
    ahead = [middle, top] + [p for p in roof if p[2] > pillar + 0.1] + [front]
    for pane in (behind, ahead):
        build.both(3, _GLASS, _inset([(x + 0.012, y, z) for x, y, z in pane], 0.83), (1, 0.3, 0))


def _fittings(build: _Builder, body: _Body) -> list:
    """Lamps, grille, plates, bumpers, doors and mirrors; returns the lamps."""
    lamps = _front(build, body) + _rear(build, body)
    if body.roof:
        _sides(build, body)
    return lamps


def _front(build: _Builder, body: _Body) -> list:
    """Head lamps, which are returned, grille with emblem, bumper and plate."""
    z, _, low, high = body.stations[-1]
    wide = body.stations[1][1]
    bottom, top = (high - 0.06, high + 0.10) if body.roof else (0.72, 0.90)
    build.both(
        5,
        _HEADLAMP,
        [
            (0.50 * wide, bottom, z + 0.01),
            (0.52 * wide, top, z - 0.03),
            (0.93 * wide, top + 0.02, z - 0.14),
            (0.92 * wide, bottom + 0.02, z - 0.10),
        ],
        (0.2, 0.1, 1),
    )
    half = 0.44 * wide
    build.across(5, _GRILLE, (half, low + 0.10, z + 0.02), (0.95 * half, high + 0.04, z), 1)
    build.across(6, _CHROME, (0.08, high - 0.05, z + 0.03), (0.08, high + 0.02, z + 0.03), 1)
    build.across(5, _PLASTIC, (0.82 * wide, low - 0.04, z - 0.02), (0.80 * wide, low + 0.07, z), 1)
    build.across(6, _PLATE, (0.26, low + 0.06, z + 0.03), (0.26, low + 0.17, z + 0.03), 1)
    return [(side * 0.70 * wide, (bottom + top) / 2, z, True) for side in (-1, 1)]


def _rear(build: _Builder, body: _Body) -> list:
    """Tail lamps, which are returned, bumper, plate and the edge of the lid."""
    z, _, low, _ = body.stations[0]
    _, wide, _, belt = body.stations[1]
    bottom, top = (belt - 0.24, belt - 0.05) if body.roof else (1.0, 1.3)
    build.both(
        5,
        _TAILLAMP,
        [
            (0.62 * wide, bottom, z - 0.01),
            (0.62 * wide, top, z - 0.01),
            (0.97 * wide, top, z + 0.08),
            (0.98 * wide, bottom, z + 0.08),
        ],
        (0.2, 0.1, -1),
    )
    half, edge = 0.86 * wide, 0.60 * wide
    build.across(5, _PLASTIC, (half, low - 0.05, z), (half, low + 0.08, z - 0.01), -1)
    build.across(6, _PLATE, (0.26, bottom - 0.12, z - 0.02), (0.26, bottom, z - 0.02), -1)
    build.across(5, _LINE, (edge, belt - 0.27, z - 0.01), (edge, belt - 0.255, z - 0.01), -1)
    return [(side * 0.80 * wide, (bottom + top) / 2, z, False) for side in (-1, 1)]


def _sides(build: _Builder, body: _Body) -> None:
    """Doors with handles, sills and mirrors."""
    w = max(station[1] for station in body.stations) + 0.006
    belt = body.stations[1][3]
    for door in (body.front_base - 0.18, 0.12 * body.rear_base + 0.02, 0.60 * body.rear_base):
        build.both(
            5,
            _LINE,
            [
                (w, 0.30, door),
                (0.93 * w, belt - 0.02, door),
                (0.93 * w, belt - 0.02, door + 0.02),
                (w, 0.30, door + 0.02),
            ],
            (1, 0, 0),
        )
        if door > 0.5 * body.rear_base:
            build.along(6, _CHROME, w, (belt - 0.16, belt - 0.13), (door - 0.28, door - 0.10))
    sill = body.stations[3][2]
    build.along(5, _PLASTIC, w, (sill, sill + 0.09), body.axles)
    x, y, z = w + 0.10, belt + 0.07, body.front_base - 0.35
    build.both(
        7,
        _PAINT,
        [
            (x - 0.10, y - 0.06, z),
            (x + 0.09, y - 0.05, z - 0.03),
            (x + 0.08, y + 0.08, z - 0.03),
            (x - 0.08, y + 0.09, z),
        ],
        two_sided=True,
    )


def _bus_windows(build: _Builder, body: _Body) -> None:
    sky = _Material((0.03, 0.03, 0.03), 0.62, -4.0, 0.5)
    stripe = _Material((0.55, 0.58, 0.60), 0.08, 0.0, 1.0)
    sign = _Material((0.02, 0.02, 0.02), 0, 0, 0, (0.05, 0.45, 0.9))
    w = body.stations[2][1] + 0.006
    for z in np.arange(-4.9, 4.6, 1.38):
        build.along(3, _GLASS, w, (1.35, 2.45), (z, z + 1.25))
        build.along(4, sky, w, (2.0, 2.4), (z + 0.05, z + 1.2))
    build.along(4, stripe, w, (0.75, 1.0), (-5.1, 5.1))
    for z, out, low in (
        (body.stations[-1][0] + 0.01, 1, 1.10),
        (body.stations[0][0] - 0.01, -1, 1.5),
    ):
        build.across(3, _GLASS, (1.02, low, z), (1.0, 2.45, z), out)
        build.across(4, sign, (0.7, 2.52, z), (0.7, 2.78, z), out)


def _wheels(build: _Builder, body: _Body) -> None:
    w = max(s[1] for s in body.stations)
    r = body.wheel
    ends = [s[2] for s in body.stations]
    first, last = body.stations[1][0], body.stations[-2][0]
    build.add(
        0,
        _UNDER,
        [
            (-0.9 * w, 0.16, first),
            (0.9 * w, 0.16, first),
            (0.9 * w, 0.16, last),
            (-0.9 * w, 0.16, last),
        ],
        two_sided=True,
    )
    for z, out in ((first, -1), (last, 1)):
        build.across(0, _UNDER, (0.88 * w, 0.17, z), (0.88 * w, max(ends), z), out)
    for axle in body.axles:
        out = 1 if axle > 0 else -1
        build.both(
            0,
            _TYRE,
            [
                (w - 0.22, 0, axle + out * 0.1),
                (w - 0.02, 0, axle + out * 0.1),
                (w - 0.02, 1.9 * r, axle + out * r),
                (w - 0.22, 1.9 * r, axle + out * r),
            ],
            (0, 0, out),
        )
        half = np.linspace(-0.15, pi + 0.15, 11)
        build.both(
            5,
            _UNDER,
            [(w + 0.008, r + 1.17 * r * sin(t), axle + 1.17 * r * cos(t)) for t in half],
            (1, 0, 0),
        )
        build.both(
            6, _TYRE, [(w + 0.012, r + r * sin(t), axle + r * cos(t)) for t in CIRCLE], (1, 0, 0)
        )
        for side in (1, -1):
            points = [
                (side * (w + 0.016), r + q * r * sin(t), axle + q * r * cos(t))
                for t, q in zip(np.linspace(0, 2 * pi, 21)[:-1], (0.66, 0.66, 0.34, 0.34) * 5)
            ]
            span = build.add(7, _RIM, points, (side, 0, 0))
            build.spinning.append((span, axle, r))


@cache
def mesh_of(kind: str) -> Mesh:
    body = _BODIES[kind]
    build = _Builder()
    _loft(build, body)
    if body.roof:
        _greenhouse(build, body)
    else:
        _bus_windows(build, body)
    lamps = _fittings(build, body)
    _wheels(build, body)
    vertices = np.array(build.points, float)
    normals, centres = [], []
    for face, (_, _, outward, _) in zip(build.faces, build.meta):
        points = vertices[face]
        centre = points.mean(axis=0)
        rolled = np.roll(points, -1, axis=0)
        normal = np.cross(points - centre, rolled - centre).sum(axis=0)  # Newell
        normal /= max(np.linalg.norm(normal), 1e-9)
        hint = centre - (0, 0.65, 0.8 * centre[2]) if outward is None else np.array(outward)
        normals.append(normal if normal @ hint >= 0 else -normal)
        centres.append(centre)
    materials = [material for _, material, _, _ in build.meta]
    return Mesh(
        vertices,
        tuple(build.faces),
        np.array(normals),
        np.array(centres),
        np.array([layer for layer, *_ in build.meta]),
        np.array([two_sided for *_, two_sided in build.meta]),
        np.array([m.albedo is None for m in materials]),
        np.array([m.albedo or (0, 0, 0) for m in materials], float),
        np.array([m.gloss for m in materials]),
        np.array([m.excess for m in materials]),
        np.array([m.engine for m in materials]),
        np.array([m.emission for m in materials], float),
        tuple(build.spinning),
        tuple(lamps),
    )
