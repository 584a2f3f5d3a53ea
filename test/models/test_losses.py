# SPDX-License-Identifier: AGPL-3.0-only
"""What the objectives follow: the target of a natural picture, and the terms of fused images."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install .[train]")
pytest.importorskip("kornia", reason="training needs kornia: pip install .[train]")

from fusion_models.losses import (  # noqa: E402
    FusionTarget,
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


def test_a_hot_target_is_lifted_and_the_rest_stays_as_the_visible_camera_saw_it(scene):
    ir, vi, disc = scene
    target = FusionTarget()(ir, vi).intensity
    assert (target - vi)[disc > 0].mean() > 0.3
    corner = (slice(None), slice(None), slice(0, 16), slice(0, 16))
    torch.testing.assert_close(target[corner], vi[corner], atol=0.01, rtol=0)


def test_hot_ground_as_a_whole_does_not_wash_out_lane_marks():
    torch.manual_seed(0)
    vi = 0.3 + 0.03 * torch.randn(1, 1, 96, 96)  # asphalt
    vi[..., 44:52] = 0.8
    ir = torch.full((1, 1, 96, 96), 0.9)
    target = FusionTarget()(ir, vi).intensity
    assert (target[..., 48] - target[..., 30]).mean() > 0.4


def test_thermal_grain_below_the_noise_floor_makes_no_gradient():
    torch.manual_seed(0)
    ir = 0.2 + 0.004 * torch.randn(1, 1, 64, 64)
    vi = torch.full((1, 1, 64, 64), 0.7)
    assert FusionTarget(noise=0.02)(ir, vi).gradient.abs().max() < 1e-6
    assert FusionTarget(noise=0.0)(ir, vi).gradient.abs().max() > 1e-3


def test_contrast_widens_the_difference_to_the_surroundings(scene):
    ir, vi, _ = scene
    plain, more = FusionTarget()(ir, vi), FusionTarget(contrast=0.3)(ir, vi)
    assert more.intensity.std() > 1.1 * plain.intensity.std()
    assert more.intensity.min() >= 0 and more.intensity.max() <= 1


def test_above_the_knee_what_thermal_adds_rolls_off_but_lamps_stay(scene):
    ir, vi, disc = scene
    vi = vi.clone()
    vi[..., :8, :8] = 1.0
    target = FusionTarget(knee=0.6)(ir, vi).intensity
    assert target[disc > 0].max() <= 0.8
    assert target[..., :6, :6].min() > 0.99


def test_above_the_ceiling_hardly_any_slope_is_left(scene):
    ir, vi, _ = scene
    vi = vi.clone()
    vi[..., :8, :8] = 1.0
    target = FusionTarget(ceiling=0.94)(ir, vi).intensity
    assert target.max() <= 0.9461


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
