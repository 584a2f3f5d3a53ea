# SPDX-License-Identifier: AGPL-3.0-only
"""A shift that was put in between two images of other contrast is found, with its uncertainty."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fusion_models.evaluation.alignment import correlation, pooled_shift


def scene(seed):
    """Boxes of random grey levels; a thermal image has other levels at the same edges."""
    rng = np.random.default_rng(seed)
    images = [np.full((120, 160), 90, np.uint8) for _ in range(2)]
    for _ in range(14):
        x, y, w, h = rng.integers((0, 0, 8, 8), (150, 110, 50, 40))
        for image in images:
            cv2.rectangle(
                image, (int(x), int(y)), (int(x + w), int(y + h)), int(rng.integers(255)), -1
            )
    return [cv2.add(i, rng.integers(0, 9, i.shape).astype(np.uint8)) for i in images]


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-9, 7)])
def test_the_shift_of_the_thermal_image_is_found_in_many_pairs(shift):
    surfaces = []
    for seed in range(6):
        thermal, visible = scene(seed)
        thermal = np.roll(thermal, shift[::-1], (0, 1))
        surfaces.append(correlation(thermal, visible, 16))
    found = pooled_shift(surfaces)
    assert (found.x, found.y) == pytest.approx(shift, abs=0.5)
    assert found.clear
    assert found.error < 0.5


def test_the_edge_of_the_thermal_view_is_no_edge():
    surfaces = []
    seen = np.zeros((120, 160), bool)
    seen[20:100, 30:130] = True
    for seed in range(6):
        thermal, visible = scene(seed)
        thermal = np.where(seen, np.roll(thermal, 4, 1), 0).astype(np.uint8)
        surfaces.append(correlation(thermal, visible, 16, seen))
    assert pooled_shift(surfaces).x == pytest.approx(4, abs=0.7)


def test_images_with_nothing_in_common_have_no_clear_shift():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (6, 2, 120, 160), np.uint8)
    assert not pooled_shift([correlation(a, b, 16) for a, b in noise]).clear
    assert pooled_shift([]).pairs == 0
