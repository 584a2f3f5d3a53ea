# SPDX-License-Identifier: AGPL-3.0-only
"""Temperatures of boxes: of the right pixels, in degrees, and none where nothing is measured."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_ros.frame.detector import Detection
from fusion_ros.frame.radiometry import PRESETS
from fusion_ros.frame.registration import Registration
from fusion_ros.frame.thermography import Thermography
from fusion_ros.size import Size

BOX = Detection("person", 0, 0.9, 20, 10, 20, 30)


def scene(warm: float, cold: float, dtype: type = np.uint16) -> np.ndarray:
    """A warm object of 10x15 at (10, 5) in 80x60."""
    counts = np.full((60, 80), cold, dtype)
    counts[5:20, 10:20] = warm
    return counts


@pytest.mark.parametrize(
    ("dtype", "warm", "cold", "preset"),
    [
        (np.uint16, 30975, 29315, None),
        (np.uint16, 30975, 29315, "lepton"),
        (np.int16, 3660, 2000, None),
        (np.float32, 309.75, 293.15, None),
        (np.float32, 36.6, 20.0, None),
        (np.uint16, (36.6 + 40) * 64, 60 * 64, "seek"),
    ],
)
def test_a_box_has_the_median_of_the_pixels_that_it_covers(dtype, warm, cold, preset):
    counts = scene(warm, cold, dtype)
    counts[7, 12] = 0  # a dead pixel
    one = Thermography(counts, Registration(), Size(160, 120), PRESETS.get(preset))
    assert one.celsius(BOX) == pytest.approx(36.6, abs=0.05)
    (measured,) = one.measure([BOX])
    assert measured.celsius == one.celsius(BOX)
    assert measured.class_name == "person"


def test_a_homography_leads_to_the_right_pixels():
    registration = Registration([2.0, 0, 30.0, 0, 2.0, 8.0, 0, 0, 1])
    box = Detection("person", 0, 0.9, 50, 18, 20, 30)
    one = Thermography(scene(30975, 29315), registration, Size(200, 150))
    assert one.celsius(box) == pytest.approx(36.6, abs=0.05)


def test_there_is_none_where_the_camera_sees_or_measures_nothing():
    registration = Registration([1.0, 0, 500.0, 0, 1.0, 0, 0, 0, 1])
    assert Thermography(scene(3e4, 3e4), registration, Size(160, 120)).celsius(BOX) is None
    for counts in (
        scene(255, 100, np.uint8),
        scene(0, 0),
        scene(np.nan, np.nan, np.float32),
        scene(3.4e38, 3.4e38, np.float32),
        scene(4000, 3000),  # counts of a camera that is not radiometric
    ):
        assert Thermography(counts, Registration(), Size(160, 120)).celsius(BOX) is None


def test_what_is_kept_does_not_change_with_the_next_frame():
    counts = scene(30975, 29315)
    one = Thermography(counts, Registration(), Size(160, 120)).kept()
    counts[:] = 0
    assert one.celsius(BOX) == pytest.approx(36.6, abs=0.05)
