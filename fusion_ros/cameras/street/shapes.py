# SPDX-License-Identifier: AGPL-3.0-only
"""Persons and vehicles as flat facets seen by one camera, painter's order, ready to be filled."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate
from math import cos, pi, sin

import numpy as np

from fusion_ros.cameras.street.scene import (
    CAMERA_HEIGHT,
    VEHICLE_LENGTH,
    Bicycle,
    CameraModel,
    Lamp,
    Person,
    Tree,
    Vehicle,
)


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


# --- persons ---------------------------------------------------------------------------------

_ARC = np.linspace(-pi / 2, pi / 2, 6)
_CIRCLE = np.linspace(0, 2 * pi, 17)[:-1]
_ROUND = np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], axis=1)
_LIT, _HALF_LIT, _SHADED = (-0.45, 0.55, -0.70), (-0.05, 0.40, -0.90), (0.55, 0.15, -0.82)


def _capsules(a: np.ndarray, b: np.ndarray, ra: np.ndarray, rb: np.ndarray) -> np.ndarray:
    """Outlines (C, 12, 2) of tapered capsules from points a to b (C, 2) with radii (C,)."""
    angle = np.arctan2(b[:, 1] - a[:, 1], b[:, 0] - a[:, 0])[:, None]
    far, near = angle + _ARC, angle + _ARC + pi
    ends = [
        np.stack([np.cos(t), np.sin(t)], axis=2) * r[:, None, None] + c[:, None]
        for t, r, c in ((far, rb, b), (near, ra, a))
    ]
    return np.concatenate(ends, axis=1)


def _knee(hip: tuple, ankle: tuple, side: int) -> tuple:
    """Where thigh and shin (0.45 and 0.44 m) meet in front of the line from hip to ankle."""
    ahead, down = ankle[0] - hip[0], hip[2] - ankle[2]
    reach = min((ahead**2 + down**2) ** 0.5, 0.88)
    bow = max(0.45**2 - (0.5 * reach) ** 2, 0.0) ** 0.5
    return (
        hip[0] + 0.5 * ahead + bow * down / reach,
        side * 0.10,
        hip[2] - 0.5 * down + bow * ahead / reach,
    )


def person_facets(person: Person, camera: CameraModel) -> Facets:
    """A walking or standing person with limbs, clothes and hair."""
    size = person.height / 1.75
    forward = np.array([sin(person.yaw), 0.0, cos(person.yaw)])
    right = np.array([cos(person.yaw), 0.0, -sin(person.yaw)])
    up = np.array([0.0, 1.0, 0.0])
    base = np.array([person.x, 0.0, person.z])
    swing = 1.0 if person.walking else 0.08
    bob = 0.02 * swing * abs(cos(person.stride))
    # Joints are (forward, right, up) in metres of a person of 1.75 m;
    # limbs are (radius at joint a, radius at joint b, material, depth).
    joints, limbs = [], []

    def limb(a, b, ra, rb, material, depth):
        joints.extend((a, b))
        limbs.append((ra * size, rb * size, material, depth))

    riding = person.riding
    lean_forward = 0.24 if riding else 0.0
    for side in (-1, 1):
        phase = person.stride + (0 if side < 0 else pi)
        lean = 0.46 * swing * sin(phase)
        bend = 0.10 + swing * (0.18 + 0.75 * max(0.0, cos(phase)) ** 2 * (sin(phase) < 0.75))
        hip = (0.0, side * 0.095, 0.93 - bob)
        knee = (hip[0] + 0.45 * sin(lean), side * 0.10, hip[2] - 0.45 * cos(lean))
        shin = lean - bend
        if riding:
            pedal = person.stride + (0 if side < 0 else pi)
            hip = (-0.16, side * 0.09, 0.95)
            ankle = (0.08 + 0.17 * sin(pedal), side * 0.11, 0.34 + 0.17 * cos(pedal))
            knee = _knee(hip, ankle, side)
        else:
            ankle = (knee[0] + 0.42 * sin(shin), side * 0.10, max(0.07, knee[2] - 0.42 * cos(shin)))
        away = side * right[2]
        limb(hip, knee, 0.092, 0.066, "trousers", away)
        limb(knee, ankle, 0.066, 0.048, "trousers", away)
        limb(
            (ankle[0] - 0.03, ankle[1], ankle[2] - 0.03),
            (ankle[0] + 0.15, ankle[1] + side * 0.02, max(0.03, ankle[2] - 0.045)),
            0.048,
            0.036,
            "shoes",
            away,
        )
        reach = -0.42 * swing * sin(phase)
        elbow_bend = 0.25 + 0.30 * swing * max(0.0, -sin(phase))
        shoulder = (0.0, side * 0.165, 1.405 - bob)
        elbow = (0.27 * sin(reach), side * 0.222, shoulder[2] - 0.27 * cos(reach))
        fore = reach + elbow_bend
        hand = (elbow[0] + 0.25 * sin(fore), side * 0.215, elbow[2] - 0.25 * cos(fore))
        if riding:
            shoulder = (0.16, side * 0.165, 1.40)
            elbow, hand = (0.28, side * 0.25, 1.17), (0.44, side * 0.24, 1.02)
        limb(shoulder, elbow, 0.062, 0.050, "top", 3 * away)
        limb(elbow, hand, 0.050, 0.038, "top", 3 * away)
        limb(hand, (hand[0] + 0.05, hand[1], hand[2] - 0.07), 0.040, 0.032, "skin", 3 * away)

    joints.extend(
        (
            (lean_forward, 0, 1.45 - bob),  # neck
            (0.01 + 1.15 * lean_forward, 0, 1.56 - bob),  # chin
            (0.015 + 1.2 * lean_forward, 0, 1.635 - bob),  # head
            (0.03 if riding else 0, 0, 1.23 if riding else 1.20 - bob),  # torso
            (-0.17, 0, 1.22 - bob),  # bag
        )
    )
    pixels = camera.project(base + size * np.array(joints) @ np.stack([forward, right, up]))
    scale = camera.focal / person.z
    ends = pixels[: 2 * len(limbs)].reshape(-1, 2, 2)
    ra = np.array([entry[0] for entry in limbs]) * scale
    rb = np.array([entry[1] for entry in limbs]) * scale
    outlines = _capsules(ends[:, 0], ends[:, 1], ra, rb)
    offset = np.stack([-0.30 * ra, -0.12 * ra], axis=1)
    inner = _capsules(ends[:, 0] + offset, ends[:, 1] + offset, 0.55 * ra, 0.55 * rb)

    clothes = 1 - person.insulation  # share of the warmth that reaches the outside of clothes
    material = {
        "trousers": (person.trousers, 0.45 * clothes),
        "shoes": ((0.03, 0.03, 0.03), 0.22 * clothes),
        "top": (person.top, 0.52 * clothes),
        "skin": (person.skin, 0.88),
    }
    parts = []  # (order, outline, albedo, normal, warmth)

    def add(order, outline, albedo, normal, warmth):
        parts.append((order, outline.astype(np.float32), albedo, normal, warmth))

    detailed = scale * person.height > 36
    for index, (_, _, name, away) in enumerate(limbs):
        albedo, warmth = material[name]
        # Arms hang in front of the torso (order 2) unless they are on its far side.
        order = 1.0 - 0.1 * away if name in ("trousers", "shoes") else 2.0 - away
        if name in ("top", "skin") and abs(away) < 0.9:
            order = 1.9
        add(order, outlines[index], albedo, _SHADED, warmth)
        if detailed:
            add(order, inner[index], albedo, _LIT, warmth + 0.05)

    s = scale * size
    neck, chin, head, torso, bag = pixels[2 * len(limbs) :]
    facing = -forward[2]  # 1 towards the camera
    shoulder = s * (0.13 + 0.085 * abs(right[0]))
    waist, hem = 0.80 * shoulder, 0.86 * shoulder
    shape = np.array(
        [
            [-0.32 * shoulder, -0.30 * s],
            [0.32 * shoulder, -0.30 * s],
            [0.84 * shoulder, -0.255 * s],
            [shoulder, -0.18 * s],
            [0.93 * shoulder, -0.05 * s],
            [waist, 0.10 * s],
            [hem, 0.33 * s],
            [-hem, 0.33 * s],
            [-waist, 0.10 * s],
            [-0.93 * shoulder, -0.05 * s],
            [-shoulder, -0.18 * s],
            [-0.84 * shoulder, -0.255 * s],
        ]
    )
    if riding:  # the back leans forward: the shoulders are ahead of the hips
        shape[:, 0] -= shape[:, 1] * lean_forward * forward[0] / 0.32
    add(2.0, torso + shape, person.top, _SHADED, 0.58 * clothes)
    if detailed:
        for width, shift, normal in ((0.78, 0.13, _HALF_LIT), (0.50, 0.24, _LIT)):
            light = shape * (width, 0.95) + (-shift * shoulder, 0)
            add(2.0, torso + light, person.top, normal, 0.64 * clothes)
        if facing > 0.5:  # the opening of the jacket
            seam = np.array([[-0.02, -0.28], [0.02, -0.28], [0.015, 0.32], [-0.015, 0.32]]) * s
            add(2.01, torso + seam, tuple(0.45 * c for c in person.top), _SHADED, 0.72 * clothes)
    if person.bag and not riding:
        order = 2.6 if facing < 0.2 else 0.5
        half = (0.15 if abs(facing) > 0.6 else 0.10) * s
        pack = np.array(
            [
                [-half, -0.20 * s],
                [half, -0.20 * s],
                [1.05 * half, 0.16 * s],
                [-1.05 * half, 0.16 * s],
            ]
        )
        add(order, bag + pack, (0.05, 0.06, 0.07), _SHADED, 0.10)
        add(order, bag + 0.6 * pack, (0.09, 0.10, 0.11), _LIT, 0.12)
    add(
        2.2,
        _capsules(neck[None], chin[None], np.array([0.060 * s]), np.array([0.055 * s]))[0],
        person.skin,
        _HALF_LIT if facing > 0 else _SHADED,
        0.95,
    )
    turn = forward[0]  # the face looks to the side it walks to
    add(2.3, head + _ROUND * (0.088 * s, 0.122 * s), person.skin, _SHADED, 1.0)
    add(
        2.3,
        head + _ROUND * (0.056 * s, 0.095 * s) + (turn * 0.03 * s - 0.015 * s, 0.005 * s),
        person.skin,
        _LIT,
        1.04,
    )
    hair = _ROUND * (0.094 * s, 0.128 * s)
    if facing > -0.4:  # seen from the front or the side: a cap of hair
        line = 0.045 * s
        hair[:, 1] = np.minimum(
            hair[:, 1],
            -line + (0.07 * s if abs(facing) < 0.5 else 0) * (np.sign(hair[:, 0] * -turn) > 0),
        )
    else:
        hair[:, 1] = np.minimum(hair[:, 1], 0.07 * s)
    add(2.4, head + hair - (turn * 0.012 * s, 0), person.hair, (-0.2, 0.9, -0.3), 0.62)

    parts.sort(key=lambda part: part[0])
    count = len(parts)
    foot = camera.project(base)
    shadow = foot + _ROUND * (0.26 * s, 0.055 * s * (0.6 + 6.0 / person.z))
    return Facets(
        [part[1] for part in parts],
        np.array([part[2] for part in parts]),
        np.array([part[3] for part in parts]),
        np.zeros(count),
        np.array([part[4] for part in parts]),
        np.zeros(count),
        np.zeros((count, 3)),
        (person.x, 1.0, person.z),
        shadow,
    )


# --- vehicles --------------------------------------------------------------------------------


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
class _Mesh:
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
    rear, front = body.stations[0], body.stations[-1]
    wide = body.stations[1][1]
    belt = body.stations[1][3]
    lamps = []
    z = front[0]
    low, high = front[2], front[3]
    boxy = not body.roof
    lamp_y = (0.72, 0.90) if boxy else (high - 0.06, high + 0.10)
    build.both(
        5,
        _HEADLAMP,
        [
            (0.50 * wide, lamp_y[0], z + 0.01),
            (0.52 * wide, lamp_y[1], z - 0.03),
            (0.93 * wide, lamp_y[1] + 0.02, z - 0.14),
            (0.92 * wide, lamp_y[0] + 0.02, z - 0.10),
        ],
        (0.2, 0.1, 1),
    )
    lamps += [(s * 0.70 * wide, sum(lamp_y) / 2, z, True) for s in (-1, 1)]
    half = 0.44 * wide
    build.add(
        5,
        _GRILLE,
        [
            (-half, low + 0.10, z + 0.02),
            (half, low + 0.10, z + 0.02),
            (0.95 * half, high + 0.04, z),
            (-0.95 * half, high + 0.04, z),
        ],
        (0, 0, 1),
    )
    build.add(
        6,
        _CHROME,
        [
            (-0.08, high - 0.05, z + 0.03),
            (0.08, high - 0.05, z + 0.03),
            (0.08, high + 0.02, z + 0.03),
            (-0.08, high + 0.02, z + 0.03),
        ],
        (0, 0, 1),
    )
    build.add(
        5,
        _PLASTIC,
        [
            (-0.82 * wide, low - 0.04, z - 0.02),
            (0.82 * wide, low - 0.04, z - 0.02),
            (0.80 * wide, low + 0.07, z),
            (-0.80 * wide, low + 0.07, z),
        ],
        (0, 0, 1),
    )
    build.add(
        6,
        _PLATE,
        [
            (-0.26, low + 0.06, z + 0.03),
            (0.26, low + 0.06, z + 0.03),
            (0.26, low + 0.17, z + 0.03),
            (-0.26, low + 0.17, z + 0.03),
        ],
        (0, 0, 1),
    )
    z, low = rear[0], rear[2]
    tail = (1.0, 1.3) if boxy else (belt - 0.24, belt - 0.05)
    build.both(
        5,
        _TAILLAMP,
        [
            (0.62 * wide, tail[0], z - 0.01),
            (0.62 * wide, tail[1], z - 0.01),
            (0.97 * wide, tail[1], z + 0.08),
            (0.98 * wide, tail[0], z + 0.08),
        ],
        (0.2, 0.1, -1),
    )
    lamps += [(s * 0.80 * wide, sum(tail) / 2, z, False) for s in (-1, 1)]
    build.add(
        5,
        _PLASTIC,
        [
            (-0.86 * wide, low - 0.05, z),
            (0.86 * wide, low - 0.05, z),
            (0.86 * wide, low + 0.08, z - 0.01),
            (-0.86 * wide, low + 0.08, z - 0.01),
        ],
        (0, 0, -1),
    )
    build.add(
        6,
        _PLATE,
        [
            (-0.26, tail[0] - 0.12, z - 0.02),
            (0.26, tail[0] - 0.12, z - 0.02),
            (0.26, tail[0], z - 0.02),
            (-0.26, tail[0], z - 0.02),
        ],
        (0, 0, -1),
    )
    build.add(
        5,
        _LINE,
        [
            (-0.60 * wide, belt - 0.27, z - 0.01),
            (0.60 * wide, belt - 0.27, z - 0.01),
            (0.60 * wide, belt - 0.255, z - 0.01),
            (-0.60 * wide, belt - 0.255, z - 0.01),
        ],
        (0, 0, -1),
    )
    if boxy:
        return lamps
    w = max(s[1] for s in body.stations) + 0.006
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
            build.both(
                6,
                _CHROME,
                [
                    (w, belt - 0.16, door - 0.28),
                    (w, belt - 0.13, door - 0.28),
                    (w, belt - 0.13, door - 0.10),
                    (w, belt - 0.16, door - 0.10),
                ],
                (1, 0, 0),
            )
    sill = body.stations[3][2]
    build.both(
        5,
        _PLASTIC,
        [
            (w, sill, body.axles[0]),
            (w, sill + 0.09, body.axles[0]),
            (w, sill + 0.09, body.axles[1]),
            (w, sill, body.axles[1]),
        ],
        (1, 0, 0),
    )
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
    return lamps


def _bus_windows(build: _Builder, body: _Body) -> None:
    w = body.stations[2][1] + 0.006
    for z in np.arange(-4.9, 4.6, 1.38):
        build.both(
            3,
            _GLASS,
            [(w, 1.35, z), (w, 2.45, z), (w, 2.45, z + 1.25), (w, 1.35, z + 1.25)],
            (1, 0, 0),
        )
        build.both(
            4,
            _Material((0.03, 0.03, 0.03), 0.62, -4.0, 0.5),
            [(w, 2.0, z + 0.05), (w, 2.4, z + 0.05), (w, 2.4, z + 1.2), (w, 2.0, z + 1.2)],
            (1, 0, 0),
        )
    build.both(
        4,
        _Material((0.55, 0.58, 0.60), 0.08, 0.0, 1.0),
        [(w, 0.75, -5.1), (w, 1.0, -5.1), (w, 1.0, 5.1), (w, 0.75, 5.1)],
        (1, 0, 0),
    )
    for z, out, low in (
        (body.stations[-1][0] + 0.01, 1, 1.10),
        (body.stations[0][0] - 0.01, -1, 1.5),
    ):
        build.add(
            3,
            _GLASS,
            [(-1.02, low, z), (1.02, low, z), (1.0, 2.45, z), (-1.0, 2.45, z)],
            (0, 0, out),
        )
        build.add(
            4,
            _Material((0.02, 0.02, 0.02), 0, 0, 0, (0.05, 0.45, 0.9)),
            [(-0.7, 2.52, z), (0.7, 2.52, z), (0.7, 2.78, z), (-0.7, 2.78, z)],
            (0, 0, out),
        )


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
        build.add(
            0,
            _UNDER,
            [
                (-0.88 * w, 0.17, z),
                (0.88 * w, 0.17, z),
                (0.88 * w, max(ends), z),
                (-0.88 * w, max(ends), z),
            ],
            (0, 0, out),
        )
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
            6, _TYRE, [(w + 0.012, r + r * sin(t), axle + r * cos(t)) for t in _CIRCLE], (1, 0, 0)
        )
        for side in (1, -1):
            points = [
                (side * (w + 0.016), r + q * r * sin(t), axle + q * r * cos(t))
                for t, q in zip(np.linspace(0, 2 * pi, 21)[:-1], (0.66, 0.66, 0.34, 0.34) * 5)
            ]
            span = build.add(7, _RIM, points, (side, 0, 0))
            build.spinning.append((span, axle, r))


@cache
def _mesh(kind: str) -> _Mesh:
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
    return _Mesh(
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


def vehicle_facets(vehicle: Vehicle, camera: CameraModel) -> Facets | None:
    """A vehicle as a mesh; None where the camera cannot have it in the picture."""
    mesh = _mesh(vehicle.kind)
    c, s = cos(vehicle.yaw), sin(vehicle.yaw)
    turn = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])  # local row vectors -> world
    base = np.array([vehicle.x, 0.0, vehicle.z])
    local = mesh.vertices
    if vehicle.roll:
        local = local.copy()
        cr, sr = cos(-vehicle.roll), sin(-vehicle.roll)
        for span, axle, height in mesh.spinning:
            y, z = mesh.vertices[span, 1] - height, mesh.vertices[span, 2] - axle
            local[span, 1], local[span, 2] = height + cr * y + sr * z, axle - sr * y + cr * z
    world = local @ turn + base
    if world[:, 2].max() < 1.5:
        return None
    world[:, 2] = np.maximum(
        world[:, 2], 0.3
    )  # points beside the camera go far outside the picture
    pixels = camera.project(world).astype(np.float32)
    if (pixels.max(axis=0) < 0).any() or pixels[:, 0].min() > camera.width:
        return None
    normal, centre = mesh.normal @ turn, mesh.centre @ turn + base
    ray = centre - (0.0, CAMERA_HEIGHT, 0.0)
    seen = ((normal * ray).sum(axis=1) < 0) | mesh.two_sided
    order = np.lexsort((-np.linalg.norm(ray, axis=1), mesh.layer))
    order = order[seen[order]]
    albedo = np.where(mesh.own_paint[:, None], vehicle.paint, mesh.albedo)[order]
    length, width = VEHICLE_LENGTH[vehicle.kind], np.abs(mesh.vertices[:, 0]).max()
    corners = (
        np.array(
            [
                [-width, 0, -0.5 * length],
                [width, 0, -0.5 * length],
                [width, 0, 0.5 * length],
                [-width, 0, 0.5 * length],
            ]
        )
        * 1.04
    )
    ground = corners @ turn + base
    ground[:, 2] = np.maximum(ground[:, 2], 0.6)
    lights = []
    if vehicle.driving:
        for x, y, z, front in mesh.lamps:
            at = np.array([x, y, z]) @ turn + base
            towards = np.array([s, 0, c]) * (1 if front else -1)
            facing = float(-(towards @ at) / np.linalg.norm(at))
            if facing > 0:
                u, v = camera.project(at)
                lights.append(Light(float(u), float(v), 0.10 * camera.focal / at[2], front, facing))
    emission = mesh.emission[order] * (1.0 if vehicle.driving else 0.0)
    return Facets(
        [pixels[mesh.faces[i]] for i in order],
        albedo,
        normal[order],
        mesh.gloss[order],
        np.zeros(len(order)),
        mesh.excess[order] + vehicle.warmth * mesh.engine[order],
        emission,
        (vehicle.x, 0.8, vehicle.z),
        camera.project(ground).astype(np.float32),
        lights,
        snowy=not vehicle.driving and vehicle.warmth == 0,
    )


def bicycle_facets(bicycle: Bicycle, camera: CameraModel) -> Facets:
    """A city bicycle: wheels as open rings with spokes, frame, fork, saddle, handlebar."""
    c, s = cos(bicycle.yaw), sin(bicycle.yaw)
    base = np.array([bicycle.x, 0.0, bicycle.z])
    scale = camera.focal / bicycle.z

    def pixels(points) -> np.ndarray:
        """(forward, right, up) in metres -> pixels."""
        ahead, right, up = np.asarray(points, float).T
        world = np.stack([ahead * s + right * c, up, ahead * c - right * s], axis=1)
        return camera.project(base + world)

    # (a, b, radius, albedo, excess in kelvin), the far parts first
    black, steel = (0.016, 0.016, 0.017), (0.30, 0.30, 0.30)
    tubes = []
    turn = np.linspace(0, 2 * pi, 21)
    for hub in (-0.53, 0.53):
        rim = [(hub + 0.33 * cos(t), 0.0, 0.34 + 0.33 * sin(t)) for t in turn]
        tubes += [(a, b, 0.021, black, 1.5) for a, b in zip(rim, rim[1:])]
        for spoke in range(5):
            t = bicycle.roll + 2 * pi * spoke / 5
            end = (hub + 0.31 * cos(t), 0.0, 0.34 - 0.31 * sin(t))
            tubes.append(((hub, 0.0, 0.34), end, 0.005, steel, 0.0))
    rear, front, crank = (-0.53, 0.0, 0.34), (0.53, 0.0, 0.34), (0.08, 0.0, 0.34)
    seat, neck = (-0.12, 0.0, 0.80), (0.37, 0.0, 0.88)
    for a, b in ((rear, crank), (rear, seat), (crank, seat), (crank, neck), (seat, neck)):
        tubes.append((a, b, 0.020, bicycle.paint, 0.0))
    tubes.append((neck, front, 0.018, bicycle.paint, 0.0))
    tubes.append((neck, (0.36, 0.0, 1.02), 0.016, steel, 0.0))
    tubes.append(((0.40, -0.26, 1.03), (0.40, 0.26, 1.03), 0.016, black, 0.5))
    tubes.append(((-0.28, 0.0, 0.93), (0.02, 0.0, 0.92), 0.040, black, 3.0))
    tubes.append((seat, (-0.13, 0.0, 0.91), 0.016, steel, 0.0))
    a, b = (pixels([tube[i] for tube in tubes]) for i in (0, 1))
    radius = np.array([max(tube[2] * scale, 0.28) for tube in tubes])
    count = len(tubes)
    ground = np.array([(-0.85, -0.2, 0), (0.85, -0.2, 0), (0.85, 0.2, 0), (-0.85, 0.2, 0)])
    return Facets(
        list(_capsules(a, b, radius, radius).astype(np.float32)),
        np.array([tube[3] for tube in tubes]),
        np.tile(_HALF_LIT, (count, 1)),
        np.full(count, 0.05),
        np.zeros(count),
        np.array([tube[4] for tube in tubes]),
        np.zeros((count, 3)),
        (bicycle.x, 0.6, bicycle.z + 0.01),
        pixels(ground).astype(np.float32),
    )


# --- street furniture ------------------------------------------------------------------------


def tree_facets(tree: Tree, camera: CameraModel) -> Facets:
    """A trunk with branches under a crown of leaf clusters, back to front."""
    rng = np.random.default_rng(tree.seed)
    count = 420
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    lumps = 0.80 + 0.20 * np.sin(5 * direction[:, 0] + 3 * direction[:, 1] + tree.seed)
    radial = direction * (rng.uniform(0.45, 1.0, count) ** 0.5 * lumps)[:, None] * tree.radius
    middle = np.array([tree.x, tree.height - 0.75 * tree.radius, tree.z])
    leaves = middle + radial * (1.0, 0.85, 1.0)
    order = np.argsort(-leaves[:, 2])
    leaves, direction = leaves[order], direction[order]
    centre = camera.project(leaves)
    size = rng.uniform(0.10, 0.24, count) * camera.focal / leaves[:, 2]
    ragged = rng.uniform(0.6, 1.25, (count, len(_ROUND), 1))
    crown = (centre[:, None] + _ROUND * ragged * size[:, None, None]).astype(np.float32)
    tone = rng.uniform(0.6, 1.25, (count, 1))
    green = np.array([0.035, 0.135, 0.075]) * tone + rng.uniform(0, 0.03, (count, 3)) * (0, 0.5, 1)

    top = tree.height - 1.1 * tree.radius
    bones = [((0, 0), (0.02, 1.15 * top), 0.16, 0.09)]
    bones += [
        ((0.01, 0.85 * top), (dx * tree.radius, top + dy * tree.radius), 0.07, 0.03)
        for dx, dy in ((-0.5, 0.55), (0.45, 0.5), (0.15, 0.8))
    ]
    scale = camera.focal / tree.z
    foot = camera.project(np.array([tree.x, 0.0, tree.z]))
    a, b = (foot + np.array([bone[i] for bone in bones]) * (scale, -scale) for i in (0, 1))
    wood = _capsules(a, b, *(np.array([bone[i] for bone in bones]) * scale for i in (2, 3)))
    total = count + len(bones)
    bark = np.tile((0.05, 0.065, 0.085), (len(bones), 1))
    return Facets(
        [*wood.astype(np.float32), *crown],
        np.concatenate([bark, green]),
        np.concatenate([np.tile(_SHADED, (len(bones), 1)), direction]),
        np.zeros(total),
        np.zeros(total),
        np.concatenate(
            [np.full(len(bones), 0.8), rng.normal(-1.0, 0.5, count) + 0.4 * direction[:, 1]]
        ),
        np.zeros((total, 3)),
        (tree.x, tree.height, tree.z),
        foot + _ROUND * (0.9 * scale, 0.10 * scale),
        snowy=True,
    )


def lamp_facets(lamp: Lamp, camera: CameraModel) -> Facets:
    """A street lamp: pole, arm and head."""
    scale = camera.focal / lamp.z
    foot = camera.project(np.array([lamp.x, 0.0, lamp.z]))

    def box(x0, y0, x1, y1):
        return (foot + np.array([(x0, -y0), (x1, -y0), (x1, -y1), (x0, -y1)]) * scale).astype("f4")

    side = 1 if lamp.reach > 0 else -1
    outlines = [
        box(-0.07, 0, 0.07, 0.9),
        box(-0.045, 0, 0.045, lamp.height + 0.1),
        box(0, lamp.height + 0.04, lamp.reach, lamp.height + 0.12),
        box(
            lamp.reach - 0.36 * side,
            lamp.height - 0.02,
            lamp.reach + 0.1 * side,
            lamp.height + 0.10,
        ),
        box(
            lamp.reach - 0.32 * side,
            lamp.height - 0.06,
            lamp.reach + 0.06 * side,
            lamp.height - 0.01,
        ),
    ]
    metal = (0.06, 0.07, 0.065)
    return Facets(
        outlines,
        np.array([metal, metal, metal, metal, (0.6, 0.6, 0.6)]),
        np.tile(_SHADED, (5, 1)),
        np.zeros(5),
        np.zeros(5),
        np.array([-0.3, -0.3, -0.6, 1.0, 4.0]),
        np.array([(0, 0, 0)] * 4 + [(4.0, 6.5, 8.0)], float),
        (lamp.x, 3.0, lamp.z),
        foot + _ROUND * (0.25 * scale, 0.05 * scale),
    )
