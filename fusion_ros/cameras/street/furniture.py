# SPDX-License-Identifier: AGPL-3.0-only
"""Trees and lamps of the street as facets."""

from __future__ import annotations

import numpy as np

from fusion_ros.cameras.street.scene import CameraModel, Lamp, Tree
from fusion_ros.cameras.street.shapes import ROUND, SHADED, Facets, capsules


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
    ragged = rng.uniform(0.6, 1.25, (count, len(ROUND), 1))
    crown = (centre[:, None] + ROUND * ragged * size[:, None, None]).astype(np.float32)
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
    wood = capsules(a, b, *(np.array([bone[i] for bone in bones]) * scale for i in (2, 3)))
    total = count + len(bones)
    bark = np.tile((0.05, 0.065, 0.085), (len(bones), 1))
    return Facets(
        [*wood.astype(np.float32), *crown],
        np.concatenate([bark, green]),
        np.concatenate([np.tile(SHADED, (len(bones), 1)), direction]),
        np.zeros(total),
        np.zeros(total),
        np.concatenate(
            [np.full(len(bones), 0.8), rng.normal(-1.0, 0.5, count) + 0.4 * direction[:, 1]]
        ),
        np.zeros((total, 3)),
        (tree.x, tree.height, tree.z),
        foot + ROUND * (0.9 * scale, 0.10 * scale),
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
        np.tile(SHADED, (5, 1)),
        np.zeros(5),
        np.zeros(5),
        np.array([-0.3, -0.3, -0.6, 1.0, 4.0]),
        np.array([(0, 0, 0)] * 4 + [(4.0, 6.5, 8.0)], float),
        (lamp.x, 3.0, lamp.z),
        foot + ROUND * (0.25 * scale, 0.05 * scale),
    )
