# SPDX-License-Identifier: AGPL-3.0-only
"""Flicker is what a video does beyond the motion in it and beyond its sources."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fusion_models.evaluation.temporal import Motion, brightness_variation


@pytest.fixture(scope="module")
def scene():
    """A textured image and the same, moved by three pixels."""
    rng = np.random.default_rng(0)
    large = cv2.GaussianBlur(rng.integers(0, 255, (160, 210), np.uint8), (0, 0), 3)
    large = cv2.normalize(large, None, 0, 255, cv2.NORM_MINMAX)
    return large[:, 3:203], large[:, :200]


def test_motion_is_no_flicker(scene):
    motion = Motion(*scene)
    assert motion.consistent.mean() > 0.8
    assert motion.flicker(*scene) < 2
    assert np.abs(scene[0].astype(int) - scene[1]).mean() > 10


def test_a_change_of_brightness_is_flicker_unless_a_source_has_it_too(scene):
    before, after = scene
    brighter = np.clip(after.astype(int) + 12, 0, 255).astype(np.uint8)
    motion = Motion(before, after)
    added = motion.added_flicker((before, brighter), scene, scene)
    assert added == pytest.approx(12, abs=2.5)
    assert motion.added_flicker((before, brighter), (before, brighter), scene) == 0


def test_images_without_consistent_flow_have_no_flicker_to_tell():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (2, 96, 128), np.uint8)
    motion = Motion(*noise)
    motion.consistent[:] = False
    assert motion.flicker(*noise) is None


def test_brightness_that_wanders_is_measured_from_image_to_image():
    assert brightness_variation([10, 10, 10]) == 0
    assert brightness_variation([10, 13, 10]) == pytest.approx(3)
    assert brightness_variation([10]) == 0
