# SPDX-License-Identifier: AGPL-3.0-only
"""The thermal camera's view fades softly into the visible image around it."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from fusion_ros.frame.border import SoftBorder

SIZE = (160, 120)
BOX = (slice(30, 90), slice(40, 120))


def seen_in(*corners: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SIZE[::-1], np.uint8)
    cv2.fillConvexPoly(mask, np.array(corners), 1)
    return mask > 0


def box() -> np.ndarray:
    seen = np.zeros(SIZE[::-1], bool)
    seen[BOX] = True
    return seen


def noise(seed: int, channels: int = 3) -> np.ndarray:
    shape = SIZE[::-1] if channels == 1 else (*SIZE[::-1], channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_the_weight_is_0_outside_the_view_and_1_well_inside_and_rises_between():
    seen = box()
    weight = SoftBorder(seen).weight
    assert not weight[~seen].any()
    assert (weight[45:75, 55:105] == 1).all()
    across = weight[60, 38:80]
    assert (np.diff(across) >= 0).all()
    assert across.max() == 1
    assert np.diff(across).max() < 0.3


def test_edges_of_the_image_itself_do_not_fade():
    seen = np.ones(SIZE[::-1], bool)
    seen[:, 80:] = False
    weight = SoftBorder(seen).weight
    assert (weight[:, 0] == 1).all()
    assert (weight[0] == weight[60]).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "seen",
    [
        box(),
        seen_in((20, 10), (140, 30), (120, 110), (30, 80)),
        seen_in((-50, -50), (200, -50), (80, 90)),
        np.zeros(SIZE[::-1], bool),
        np.ones(SIZE[::-1], bool),
    ],
)
def test_the_blend_is_the_weighted_mean_everywhere(seen, channels):
    border = SoftBorder(seen)
    inner, outer = noise(1, channels), noise(2, channels)
    weight = border.weight if channels == 1 else border.weight[..., np.newaxis]
    expected = weight * inner + (1 - weight) * outer
    blended = inner.copy()
    assert border.blend(blended, outer) is blended
    np.testing.assert_allclose(blended, expected, atol=0.51)
    np.testing.assert_array_equal(blended[~seen], outer[~seen])


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (noise(1)[:-1], noise(2)[:-1]),
        (noise(1), noise(2, 1)),
        (noise(1).astype(np.float32), noise(2)),
    ],
)
def test_images_of_another_kind_are_refused(inner, outer):
    with pytest.raises(ValueError, match="expected two uint8 images of 160x120"):
        SoftBorder(box()).blend(inner, outer)


def test_a_blend_allocates_no_image():
    border = SoftBorder(box())
    inner, outer = noise(1), noise(2)
    border.blend(inner, outer)
    tracemalloc.start()
    try:
        border.blend(inner, outer)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < inner.nbytes / 2
