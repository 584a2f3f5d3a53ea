# SPDX-License-Identifier: AGPL-3.0-only
"""Vehicles of the street as facets: bodies seen by a camera, and bicycles."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np

from fusion_ros.cameras.street.bodies import Mesh, mesh_of
from fusion_ros.cameras.street.scene import (
    CAMERA_HEIGHT,
    VEHICLE_LENGTH,
    Bicycle,
    CameraModel,
    Vehicle,
)
from fusion_ros.cameras.street.shapes import HALF_LIT, Facets, Light, capsules


def vehicle_facets(vehicle: Vehicle, camera: CameraModel) -> Facets | None:
    """A vehicle as a mesh; None where the camera cannot have it in the picture."""
    mesh = mesh_of(vehicle.kind)
    c, s = cos(vehicle.yaw), sin(vehicle.yaw)
    turn = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])  # local row vectors -> world
    base = np.array([vehicle.x, 0.0, vehicle.z])
    world = _rolled(mesh, vehicle.roll) @ turn + base
    if world[:, 2].max() < 1.5:
        return None
    # Points beside the camera would be far outside the picture.
    world[:, 2] = np.maximum(world[:, 2], 0.3)
    pixels = camera.project(world).astype(np.float32)
    if (pixels.max(axis=0) < 0).any() or pixels[:, 0].min() > camera.width:
        return None
    normal, centre = mesh.normal @ turn, mesh.centre @ turn + base
    ray = centre - (0.0, CAMERA_HEIGHT, 0.0)
    seen = ((normal * ray).sum(axis=1) < 0) | mesh.two_sided
    order = np.lexsort((-np.linalg.norm(ray, axis=1), mesh.layer))
    order = order[seen[order]]
    albedo = np.where(mesh.own_paint[:, None], vehicle.paint, mesh.albedo)[order]
    width, length = np.abs(mesh.vertices[:, 0]).max(), 0.5 * VEHICLE_LENGTH[vehicle.kind]
    corners = [[-width, 0, -length], [width, 0, -length], [width, 0, length], [-width, 0, length]]
    ground = 1.04 * np.array(corners) @ turn + base
    ground[:, 2] = np.maximum(ground[:, 2], 0.6)
    return Facets(
        [pixels[mesh.faces[i]] for i in order],
        albedo,
        normal[order],
        mesh.gloss[order],
        np.zeros(len(order)),
        mesh.excess[order] + vehicle.warmth * mesh.engine[order],
        mesh.emission[order] * (1.0 if vehicle.driving else 0.0),
        (vehicle.x, 0.8, vehicle.z),
        camera.project(ground).astype(np.float32),
        _lights(mesh, camera, turn, base) if vehicle.driving else [],
        snowy=not vehicle.driving and vehicle.warmth == 0,
    )


def _rolled(mesh: Mesh, roll: float) -> np.ndarray:
    """Vertices (V, 3) with the wheels turned by `roll` radians."""
    if not roll:
        return mesh.vertices
    local = mesh.vertices.copy()
    c, s = cos(-roll), sin(-roll)
    for span, axle, height in mesh.spinning:
        y, z = mesh.vertices[span, 1] - height, mesh.vertices[span, 2] - axle
        local[span, 1], local[span, 2] = height + c * y + s * z, axle - s * y + c * z
    return local


def _lights(mesh: Mesh, camera: CameraModel, turn: np.ndarray, base: np.ndarray) -> list[Light]:
    """Lamps that shine towards the camera, of a body that is turned and moved to `base`."""
    lights = []
    for x, y, z, front in mesh.lamps:
        at = np.array([x, y, z]) @ turn + base
        towards = turn[2] * (1 if front else -1)
        facing = float(-(towards @ at) / np.linalg.norm(at))
        if facing > 0:
            u, v = camera.project(at)
            lights.append(Light(float(u), float(v), 0.10 * camera.focal / at[2], front, facing))
    return lights


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
        list(capsules(a, b, radius, radius).astype(np.float32)),
        np.array([tube[3] for tube in tubes]),
        np.tile(HALF_LIT, (count, 1)),
        np.full(count, 0.05),
        np.zeros(count),
        np.array([tube[4] for tube in tubes]),
        np.zeros((count, 3)),
        (bicycle.x, 0.6, bicycle.z + 0.01),
        pixels(ground).astype(np.float32),
    )
