# SPDX-License-Identifier: AGPL-3.0-only
"""Visibility: what is kept of boxes and masks, and what is hidden without labels."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_models.evaluation.visibility import (
    hidden,
    hidden_map,
    kept_boxes,
    kept_masks,
    summary,
)

SHAPE = (120, 160)
BOX = (60, 30, 84, 78)


def scene(inside: float, outside: float) -> np.ndarray:
    """A flat image with one rectangle, the object of `BOX`."""
    image = np.full(SHAPE, outside, np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = inside
    return image


def test_an_object_shown_in_full_is_kept_and_one_at_a_third_is_lost():
    ir, vi = scene(200, 80), scene(90, 80)
    full, third = scene(200, 80), scene(120, 80)
    (found,) = kept_boxes(full, ir, vi, [BOX])
    assert (found.ir, found.vi, found.fused) == (120, 10, 120)
    assert found.ratio == 1 and not found.lost
    (found,) = kept_boxes(third, ir, vi, [BOX])
    assert found.ratio == pytest.approx(1 / 3) and found.lost


def test_an_object_half_bright_and_half_dark_is_lost_as_a_whole_but_not_gone():
    ir, vi = scene(200, 80), scene(80, 80)
    striped = scene(80, 80)
    striped[30:54, 60:84], striped[54:78, 60:84] = 180, 0  # means of 90 beside 80
    (found,) = kept_boxes(striped, ir, vi, [BOX])
    assert found.lost and found.fused == pytest.approx(10)
    assert found.fused_shown >= 80 and not found.gone
    (found,) = kept_boxes(scene(90, 80), ir, vi, [BOX])
    assert found.lost and found.gone
    assert summary([found])["gone"] == 1


def test_an_object_of_which_a_source_shows_one_third_alone_is_gone_without_that_third():
    ir = scene(80, 80)
    ir[36:48, 66:78] = 200  # the upper third of the core
    vi = scene(80, 80)
    (found,) = kept_boxes(scene(120, 80), ir, vi, [BOX])
    assert (found.ir, found.ir_shown, found.fused_shown) == (40, 120, 40)
    assert not found.lost and found.gone
    (found,) = kept_boxes(ir, ir, vi, [BOX])
    assert not found.gone


def test_thirds_of_tiny_masks_are_not_measured():
    ir, mask = np.full(SHAPE, 50, np.uint8), np.zeros(SHAPE, bool)
    mask[20:23, 40:45] = True
    ir[20:21, 40:45] = 200
    (found,) = kept_masks(ir, ir, ir, [mask])
    assert found.ir == found.ir_shown == 50


def test_either_polarity_keeps_an_object():
    (found,) = kept_boxes(scene(20, 140), scene(200, 80), scene(80, 80), [BOX])
    assert found.ratio == 1


def test_the_core_of_the_box_is_measured_against_a_ring_of_half_its_width():
    ir = np.full(SHAPE, 50, np.uint8)
    ir[36:72, 66:78] = 150  # the core: half the width, three quarters of the height
    ir[:, 100:] = 255  # beyond the ring of 12 pixels
    (found,) = kept_boxes(ir, ir, np.zeros(SHAPE, np.uint8), [BOX])
    assert found.ir == 100


def test_what_no_source_shows_and_what_is_tiny_does_not_count():
    faint = scene(94, 80)
    assert kept_boxes(faint, faint, faint, [BOX]) == []
    strong = scene(200, 80)
    assert kept_boxes(strong, strong, strong, [(60, 30, 64, 60), (60, 30, 80, 37)]) == []


def test_boxes_at_the_border_are_cut_to_the_image():
    ir = np.full(SHAPE, 40, np.uint8)
    ir[60:, 140:] = 160
    (found,) = kept_boxes(ir, ir, ir, [(140.2, 59.8, 200.0, 400.0)])
    assert found.box == (140, 60, 160, 120) and found.ratio == 1


def test_masks_count_exact_pixels_and_leave_out_other_objects():
    ir = np.full(SHAPE, 50, np.uint8)
    first, second = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    first[40:80, 40:60], second[40:80, 62:82] = True, True
    ir[first], ir[second] = 100, 250
    one, two = kept_masks(ir, ir, ir, [first, second])
    assert (one.ir, two.ir) == (50, 200)
    assert one.box == (40, 40, 60, 80)


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="of one size"):
        kept_boxes(scene(1, 2), scene(1, 2)[:-1], scene(1, 2), [BOX])
    with pytest.raises(ValueError, match="masks"):
        kept_masks(scene(1, 2), scene(1, 2), scene(1, 2), [np.ones((3, 3))])


@pytest.mark.parametrize("side", [8, 16, 32])
def test_hidden_is_where_the_fused_image_lost_a_source_s_structure(side):
    rng = np.random.default_rng(0)
    vi = rng.normal(100, 2, (200, 240))
    ir = rng.normal(60, 2, (200, 240))
    ir[80 : 80 + side, 100 : 100 + side] += 60
    assert hidden(ir, ir, vi) == 0
    where = hidden_map(vi, ir, vi)
    assert where[80 + side // 2, 100 + side // 2] and not where[:20].any()
    assert 0 < hidden(vi, ir, vi) < 0.6
    assert hidden((ir + vi) / 2, ir, vi) < hidden(0.3 * ir + 0.7 * vi, ir, vi)


def test_noise_is_no_structure_that_could_be_hidden():
    rng = np.random.default_rng(0)
    ir, vi = rng.normal(100, 12, (2, 160, 160))
    assert hidden(np.full((160, 160), 100.0), ir, vi) < 0.01
