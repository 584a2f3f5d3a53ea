# SPDX-License-Identifier: AGPL-3.0-only
"""16-bit visible images of cameras with fewer bits are bright, and do not flicker."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_ros.frame import images
from fusion_ros.frame.bit_depth import BitDepth


def scene(bits: int, seed: int = 0) -> np.ndarray:
    """Values over all of so many bits, (48, 64) uint16."""
    return np.random.default_rng(seed).integers(0, 2**bits, (48, 64)).astype(np.uint16)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_bits_of_a_camera_become_all_grey_levels(bits):
    depth = BitDepth()
    grey = images.to_8bit(scene(bits), depth=depth)
    np.testing.assert_array_equal(grey, np.rint(scene(bits) * (255 / (2**bits - 1))))
    assert grey.min() <= 1 and grey.max() >= 254
    assert (f"set rgb_bits to {bits}" in depth.assumption) is (bits < 16)


def test_a_depth_that_is_given_holds_for_every_image():
    depth = BitDepth(12)
    assert [depth.update(scene(bits)) for bits in (10, 12, 16)] == [12, 12, 12]
    assert not depth.assumption
    assert images.to_8bit(np.full((2, 2), 65535, np.uint16), depth=depth).max() == 255


def test_the_depth_never_falls_so_that_the_levels_of_a_video_do_not_flicker():
    depth = BitDepth()
    used = [depth.update(scene(bits)) for bits in [12] * 3 + [10] * 20 + [12, 10] * 20]
    assert set(used) == {12}


def test_a_camera_that_starts_in_the_dark_gets_more_bits_once():
    depth = BitDepth()
    used = [depth.update(scene(bits)) for bits in [10] * 3 + [14] * 20 + [10] * 3]
    assert used == sorted(used) and set(used) == {10, 14} and used[10] == 14


def test_single_damaged_images_and_hot_pixels_do_not_darken_the_images_that_follow():
    depth = BitDepth()
    hot = scene(12)
    hot[0, :3] = 65535
    used = [depth.update(image) for image in [scene(12), scene(16), hot, scene(16), *[hot] * 20]]
    assert set(used) == {12}


def test_the_depth_is_found_anew_after_a_restart():
    depth = BitDepth()
    depth.update(scene(16))
    depth.restart()
    assert not depth.assumption
    assert depth.update(scene(12)) == 12
