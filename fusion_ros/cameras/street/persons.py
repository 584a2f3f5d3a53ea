# SPDX-License-Identifier: AGPL-3.0-only
"""Persons of the street, walking, standing or on a bicycle, as facets."""

from __future__ import annotations

from math import cos, pi, sin
from typing import NamedTuple

import numpy as np

from fusion_ros.cameras.street.scene import CameraModel, Person
from fusion_ros.cameras.street.shapes import HALF_LIT, LIT, ROUND, SHADED, Facets, capsules

_HEIGHT = 1.75
"""Height of the person that joints and limbs are given for, m."""
_LEAN = 0.24
"""How far the neck of a rider is ahead of the hips, m."""
_DETAILED = 36
"""Height in pixels from which lit sides and seams are drawn."""


def person_facets(person: Person, camera: CameraModel) -> Facets:
    """A walking or standing person with limbs, clothes and hair."""
    forward = np.array([sin(person.yaw), 0.0, cos(person.yaw)])
    right = np.array([cos(person.yaw), 0.0, -sin(person.yaw)])
    base = np.array([person.x, 0.0, person.z])
    size = person.height / _HEIGHT
    limbs = _limbs(person, right)
    joints = [joint for limb in limbs for joint in (limb.start, limb.end)] + _trunk(person)
    axes = np.stack([forward, right, np.array([0.0, 1.0, 0.0])])
    pixels = camera.project(base + size * np.array(joints) @ axes)
    neck, chin, head, torso, bag = pixels[2 * len(limbs) :]

    figure = _Figure(person, camera.focal / person.z, forward, right)
    figure.add_limbs(limbs, pixels[: 2 * len(limbs)].reshape(-1, 2, 2))
    figure.add_torso(torso)
    if person.bag and not person.riding:
        figure.add_bag(bag)
    figure.add_head(neck, chin, head)
    return figure.facets(camera.project(base))


class _Limb(NamedTuple):
    """A tapered limb between two joints (forward, right, up); all in metres."""

    start: tuple
    end: tuple
    start_radius: float
    end_radius: float
    material: str
    away: float  # how far it is on the far side of the body; negative on the near side


def _limbs(person: Person, right: np.ndarray) -> list[_Limb]:
    """Legs and arms, left and right."""
    limbs = []
    for side in (-1, 1):
        phase = person.stride + (0 if side < 0 else pi)
        away = side * right[2]
        limbs += _leg(person, side, phase, away) + _arm(person, side, phase, 3 * away)
    return limbs


def _swing(person: Person) -> float:
    """How far limbs swing, 1 for a person that walks."""
    return 1.0 if person.walking else 0.08


def _bob(person: Person) -> float:
    """How far the body sinks in a step, m."""
    return 0.02 * _swing(person) * abs(cos(person.stride))


def _leg(person: Person, side: int, phase: float, away: float) -> list[_Limb]:
    if person.riding:
        hip = (-0.16, side * 0.09, 0.95)
        ankle = (0.08 + 0.17 * sin(phase), side * 0.11, 0.34 + 0.17 * cos(phase))
        knee = _knee(hip, ankle, side)
    else:
        swing = _swing(person)
        lean = 0.46 * swing * sin(phase)
        bend = 0.10 + swing * (0.18 + 0.75 * max(0.0, cos(phase)) ** 2 * (sin(phase) < 0.75))
        hip = (0.0, side * 0.095, 0.93 - _bob(person))
        knee = (hip[0] + 0.45 * sin(lean), side * 0.10, hip[2] - 0.45 * cos(lean))
        shin = lean - bend
        ankle = (knee[0] + 0.42 * sin(shin), side * 0.10, max(0.07, knee[2] - 0.42 * cos(shin)))
    heel = (ankle[0] - 0.03, ankle[1], ankle[2] - 0.03)
    toe = (ankle[0] + 0.15, ankle[1] + side * 0.02, max(0.03, ankle[2] - 0.045))
    return [
        _Limb(hip, knee, 0.092, 0.066, "trousers", away),
        _Limb(knee, ankle, 0.066, 0.048, "trousers", away),
        _Limb(heel, toe, 0.048, 0.036, "shoes", away),
    ]


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


def _arm(person: Person, side: int, phase: float, away: float) -> list[_Limb]:
    if person.riding:
        shoulder = (0.16, side * 0.165, 1.40)
        elbow, hand = (0.28, side * 0.25, 1.17), (0.44, side * 0.24, 1.02)
    else:
        swing = _swing(person)
        reach = -0.42 * swing * sin(phase)
        fore = reach + (0.25 + 0.30 * swing * max(0.0, -sin(phase)))
        shoulder = (0.0, side * 0.165, 1.405 - _bob(person))
        elbow = (0.27 * sin(reach), side * 0.222, shoulder[2] - 0.27 * cos(reach))
        hand = (elbow[0] + 0.25 * sin(fore), side * 0.215, elbow[2] - 0.25 * cos(fore))
    fingers = (hand[0] + 0.05, hand[1], hand[2] - 0.07)
    return [
        _Limb(shoulder, elbow, 0.062, 0.050, "top", away),
        _Limb(elbow, hand, 0.050, 0.038, "top", away),
        _Limb(hand, fingers, 0.040, 0.032, "skin", away),
    ]


def _trunk(person: Person) -> list[tuple]:
    """Neck, chin, head, torso and bag, as joints are."""
    bob, lean = _bob(person), _LEAN if person.riding else 0.0
    return [
        (lean, 0, 1.45 - bob),
        (0.01 + 1.15 * lean, 0, 1.56 - bob),
        (0.015 + 1.2 * lean, 0, 1.635 - bob),
        (0.03, 0, 1.23) if person.riding else (0, 0, 1.20 - bob),
        (-0.17, 0, 1.22 - bob),
    ]


class _Figure:
    """Collects the facets of a person, each with its place in the painter's order.

    scale: pixels a metre at the person's distance; forward, right: axes of the body.
    """

    def __init__(
        self, person: Person, scale: float, forward: np.ndarray, right: np.ndarray
    ) -> None:
        self._person = person
        self._scale = scale
        self._unit = scale * person.height / _HEIGHT
        self._forward, self._right = forward, right
        self._facing = -forward[2]  # 1 towards the camera
        self._detailed = scale * person.height > _DETAILED
        self._clothes = 1 - person.insulation  # share of the warmth that reaches their outside
        self._parts: list[tuple] = []  # (order, outline, albedo, normal, warmth)

    def _add(
        self, order: float, outline: np.ndarray, albedo: tuple, normal: tuple, warmth: float
    ) -> None:
        self._parts.append((order, outline.astype(np.float32), albedo, normal, warmth))

    def add_limbs(self, limbs: list[_Limb], ends: np.ndarray) -> None:
        """Limbs with their ends (N, 2, 2) in pixels."""
        person, size = self._person, self._person.height / _HEIGHT
        materials = {
            "trousers": (person.trousers, 0.45 * self._clothes),
            "shoes": ((0.03, 0.03, 0.03), 0.22 * self._clothes),
            "top": (person.top, 0.52 * self._clothes),
            "skin": (person.skin, 0.88),
        }
        ra = np.array([limb.start_radius * size for limb in limbs]) * self._scale
        rb = np.array([limb.end_radius * size for limb in limbs]) * self._scale
        outlines = capsules(ends[:, 0], ends[:, 1], ra, rb)
        offset = np.stack([-0.30 * ra, -0.12 * ra], axis=1)
        lit = capsules(ends[:, 0] + offset, ends[:, 1] + offset, 0.55 * ra, 0.55 * rb)
        for index, limb in enumerate(limbs):
            albedo, warmth = materials[limb.material]
            # Arms hang in front of the torso (order 2) unless they are on its far side.
            if limb.material in ("trousers", "shoes"):
                order = 1.0 - 0.1 * limb.away
            else:
                order = 1.9 if abs(limb.away) < 0.9 else 2.0 - limb.away
            self._add(order, outlines[index], albedo, SHADED, warmth)
            if self._detailed:
                self._add(order, lit[index], albedo, LIT, warmth + 0.05)

    def add_torso(self, middle: np.ndarray) -> None:
        unit, clothes, top = self._unit, self._clothes, self._person.top
        shoulder = unit * (0.13 + 0.085 * abs(self._right[0]))
        waist, hem = 0.80 * shoulder, 0.86 * shoulder
        shape = np.array(
            [
                [-0.32 * shoulder, -0.30 * unit],
                [0.32 * shoulder, -0.30 * unit],
                [0.84 * shoulder, -0.255 * unit],
                [shoulder, -0.18 * unit],
                [0.93 * shoulder, -0.05 * unit],
                [waist, 0.10 * unit],
                [hem, 0.33 * unit],
                [-hem, 0.33 * unit],
                [-waist, 0.10 * unit],
                [-0.93 * shoulder, -0.05 * unit],
                [-shoulder, -0.18 * unit],
                [-0.84 * shoulder, -0.255 * unit],
            ]
        )
        if self._person.riding:  # the back leans forward: the shoulders are ahead of the hips
            shape[:, 0] -= shape[:, 1] * _LEAN * self._forward[0] / 0.32
        self._add(2.0, middle + shape, top, SHADED, 0.58 * clothes)
        if not self._detailed:
            return
        for width, shift, normal in ((0.78, 0.13, HALF_LIT), (0.50, 0.24, LIT)):
            light = shape * (width, 0.95) + (-shift * shoulder, 0)
            self._add(2.0, middle + light, top, normal, 0.64 * clothes)
        if self._facing > 0.5:  # the opening of the jacket
            seam = np.array([[-0.02, -0.28], [0.02, -0.28], [0.015, 0.32], [-0.015, 0.32]]) * unit
            self._add(2.01, middle + seam, tuple(0.45 * c for c in top), SHADED, 0.72 * clothes)

    def add_bag(self, middle: np.ndarray) -> None:
        """A bag on the back."""
        order = 2.6 if self._facing < 0.2 else 0.5
        half = (0.15 if abs(self._facing) > 0.6 else 0.10) * self._unit
        top, bottom = -0.20 * self._unit, 0.16 * self._unit
        pack = np.array([[-half, top], [half, top], [1.05 * half, bottom], [-1.05 * half, bottom]])
        self._add(order, middle + pack, (0.05, 0.06, 0.07), SHADED, 0.10)
        self._add(order, middle + 0.6 * pack, (0.09, 0.10, 0.11), LIT, 0.12)

    def add_head(self, neck: np.ndarray, chin: np.ndarray, head: np.ndarray) -> None:
        """Neck, face and hair."""
        unit, facing, skin = self._unit, self._facing, self._person.skin
        radii = np.array([0.060 * unit]), np.array([0.055 * unit])
        throat = capsules(neck[None], chin[None], *radii)[0]
        self._add(2.2, throat, skin, HALF_LIT if facing > 0 else SHADED, 0.95)
        turn = self._forward[0]  # the face looks to the side it walks to
        self._add(2.3, head + ROUND * (0.088 * unit, 0.122 * unit), skin, SHADED, 1.0)
        aside = (turn * 0.03 * unit - 0.015 * unit, 0.005 * unit)
        self._add(2.3, head + ROUND * (0.056 * unit, 0.095 * unit) + aside, skin, LIT, 1.04)
        hair = ROUND * (0.094 * unit, 0.128 * unit)
        lowest = 0.07 * unit
        if facing > -0.4:  # seen from the front or the side: a cap of hair
            drop = 0.07 * unit if abs(facing) < 0.5 else 0
            lowest = -(0.045 * unit) + drop * (np.sign(hair[:, 0] * -turn) > 0)
        hair[:, 1] = np.minimum(hair[:, 1], lowest)
        hair -= (turn * 0.012 * unit, 0)
        self._add(2.4, head + hair, self._person.hair, (-0.2, 0.9, -0.3), 0.62)

    def facets(self, foot: np.ndarray) -> Facets:
        """All facets in order, above the shadow around `foot` (2,), in pixels."""
        person, unit = self._person, self._unit
        parts = sorted(self._parts, key=lambda part: part[0])
        count = len(parts)
        return Facets(
            [part[1] for part in parts],
            np.array([part[2] for part in parts]),
            np.array([part[3] for part in parts]),
            np.zeros(count),
            np.array([part[4] for part in parts]),
            np.zeros(count),
            np.zeros((count, 3)),
            (person.x, 1.0, person.z),
            foot + ROUND * (0.26 * unit, 0.055 * unit * (0.6 + 6.0 / person.z)),
        )
