# SPDX-License-Identifier: AGPL-3.0-only
"""What the objectives follow: the target of a natural picture, and the terms of fused images."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install .[train]")
pytest.importorskip("kornia", reason="training needs kornia: pip install .[train]")

from fusion_models.losses import (  # noqa: E402
    FusionTarget,
    contrast_loss,
    scd_loss,
    sobel,
    visual_information_loss,
)  # fmt: skip


@pytest.fixture
def scene():
    """A textured grey wall; in thermal a hot disc on a flat ground. `ir`, `vi` `[1, 1, 96, 96]`."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    disc = (((rows - 48) ** 2 + (columns - 48) ** 2) < 100).float()[None, None]
    vi = 0.4 + 0.1 * torch.sin(columns / 2.0)[None, None] * torch.ones(1, 1, 96, 1)
    return 0.2 + 0.75 * disc, vi, disc


def contrast(image, disc):
    return float(image[disc > 0].mean() - image[disc == 0].mean())


def test_a_hot_target_keeps_its_contrast(scene):
    ir, vi, disc = scene
    assert contrast(FusionTarget()(ir, vi).intensity, disc) > 0.5


def test_a_warm_object_in_saturated_light_stays_clear(scene):
    ir, _, disc = scene
    target = FusionTarget()(ir, torch.ones_like(ir)).intensity
    assert contrast(target, disc) > 0.2


def test_opposite_polarities_do_not_cancel(scene):
    ir, _, disc = scene
    dark_on_snow = 0.85 - 0.7 * disc
    target = FusionTarget()(ir, dark_on_snow).intensity
    assert abs(contrast(target, disc)) > 0.35


def test_faint_thermal_is_amplified_and_noise_is_not(scene):
    ir, _, disc = scene
    faint, night = 0.4 + 0.03 * disc, torch.full_like(ir, 0.05)
    assert contrast(FusionTarget()(faint, night).intensity, disc) > 0.04
    torch.manual_seed(0)
    grain = 0.4 + 0.003 * torch.randn_like(ir)
    assert FusionTarget()(grain, night).intensity.std() < 1.01 * grain.std()


def test_hot_ground_as_a_whole_does_not_wash_out_lane_marks():
    torch.manual_seed(0)
    vi = 0.3 + 0.03 * torch.randn(1, 1, 96, 96)  # asphalt
    vi[..., 44:52] = 0.8
    ir = torch.full((1, 1, 96, 96), 0.9)
    target = FusionTarget()(ir, vi).intensity
    assert (target[..., 48] - target[..., 30]).mean() > 0.4


def test_contrast_that_is_missing_costs_and_more_than_wanted_does_not(scene):
    _, _, disc = scene
    wanted = 0.3 + 0.4 * disc
    assert contrast_loss(wanted, wanted) == 0
    assert contrast_loss(0.3 + 0.6 * disc, wanted) < 0.02
    assert contrast_loss(0.3 + 0.1 * disc, wanted) > 2 * contrast_loss(0.3 + 0.3 * disc, wanted)


def test_thermal_grain_below_the_noise_floor_makes_no_gradient():
    torch.manual_seed(0)
    ir = 0.2 + 0.004 * torch.randn(1, 1, 64, 64)
    vi = torch.full((1, 1, 64, 64), 0.7)
    assert FusionTarget(noise=0.02)(ir, vi).gradient.abs().max() < 1e-6
    assert FusionTarget(noise=0.0)(ir, vi).gradient.abs().max() > 1e-3


def test_the_gain_scales_the_gradient_of_the_stronger_source(scene):
    ir, vi, _ = scene
    one, two = FusionTarget(gain=1.0)(ir, vi).gradient, FusionTarget(gain=1.5)(ir, vi).gradient
    torch.testing.assert_close(two, 1.5 * one)
    torch.testing.assert_close(one[..., :16, :16], sobel(vi)[..., :16, :16])


def test_scd_is_best_when_each_difference_is_the_other_source():
    torch.manual_seed(0)
    ir, vi = torch.rand(2, 2, 1, 32, 32)
    assert scd_loss(ir + vi, ir, vi) < 1e-2 < scd_loss(vi, ir, vi)


def test_amplified_contrast_neither_earns_nor_costs_information(scene):
    ir, vi, _ = scene
    torch.manual_seed(0)
    vi = vi + 0.05 * torch.randn_like(vi)
    same, more = (visual_information_loss(f, ir, vi) for f in (vi, (vi - 0.4) * 1.5 + 0.4))
    blurred = visual_information_loss(torch.nn.functional.avg_pool2d(vi, 5, 1, 2), ir, vi)
    assert more == pytest.approx(float(same), abs=0.05) and blurred > same + 0.1
