# SPDX-License-Identifier: AGPL-3.0-only
"""What the fusion without a network promises: an object that one camera shows stays visible."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks need torch: pip install .[train]")

from fusion_models.evaluation.visibility import Kept, kept_masks  # noqa: E402
from fusion_models.layers import MultiScaleFusion, ResidualTanhHead  # noqa: E402

HEIGHT, WIDTH = 240, 320


def target(pair):
    return MultiScaleFusion()(pair)


def centre(pair):
    """The output of a network that adds nothing."""
    ir, vi = pair.chunk(2, 1)
    return ResidualTanhHead()(torch.zeros_like(ir), ir, vi)


@pytest.fixture(params=[target, centre])
def fuse(request):
    """The target of training, and the centre of the networks' output."""
    return request.param


def figure(height: int, width: int) -> np.ndarray:
    """Mask of an upright rectangle in the middle of a picture, as a person far away is."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    top, left = (HEIGHT - height) // 2, (WIDTH - width) // 2
    mask[top : top + height, left : left + width] = True
    return mask


def picture(mask: np.ndarray, inside: float, outside: float, texture: float = 0.02) -> np.ndarray:
    """Two brightnesses in [0, 1] with soft random texture."""
    noise = np.random.default_rng(int(1e4 * outside)).normal(size=(HEIGHT // 4, WIDTH // 4))
    noise = np.kron(noise, np.ones((4, 4)))
    return (np.where(mask, inside, outside) + texture * noise).clip(0, 1).astype(np.float32)


def seen(fuse, mask: np.ndarray, ir: np.ndarray, vi: np.ndarray) -> Kept:
    """Contrasts of the object in both sources and in the fused image."""
    with torch.no_grad():
        fused = fuse(torch.from_numpy(np.stack((ir, vi))[None]))[0, 0].numpy()
    (found,) = kept_masks(255 * fused, 255 * ir, 255 * vi, [mask])
    return found


@pytest.mark.parametrize("size", [(24, 8), (48, 16), (96, 32)])
def test_a_dark_warm_figure_on_snow_keeps_its_contrast(fuse, size):
    mask = figure(*size)
    found = seen(fuse, mask, picture(mask, 0.7, 0.3), picture(mask, 0.2, 0.75))
    assert found.ratio > 0.7


@pytest.mark.parametrize("size", [(24, 8), (48, 16)])
def test_a_dark_warm_figure_before_a_bright_wall_stays_a_silhouette(fuse, size):
    # The wall is too bright for a raised figure, but what lies around it is not.
    mask = figure(*size)
    vi = picture(mask, 0.2, 0.75)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    vi[(abs(rows - HEIGHT / 2) > 65) | (abs(columns - WIDTH / 2) > 50)] = 0.45
    assert seen(fuse, mask, picture(mask, 0.9, 0.4), vi).ratio > 0.7


@pytest.mark.parametrize("size", [(24, 8), (48, 16)])
def test_a_person_colder_than_the_hot_road_behind_keeps_half_of_the_contrast(fuse, size):
    # The visible shows a rough road and hardly the person; thermal is cold there, but not as a sky.
    mask = figure(*size)
    ir, vi = picture(mask, 0.5, 0.85), picture(mask, 0.5, 0.5, texture=0.14)
    assert seen(fuse, mask, ir, vi).ratio > 0.5


@pytest.mark.parametrize("background", [0.4, 0.5, 0.6])
def test_a_figure_of_opposed_polarity_before_middle_grey_is_not_cancelled(fuse, background):
    mask = figure(48, 16)
    ir, vi = picture(mask, 0.6, 0.3), picture(mask, background - 0.3, background)
    assert seen(fuse, mask, ir, vi).ratio > 0.5


def test_objects_of_a_few_pixels_stay_visible_in_a_quarter_of_the_size(fuse):
    # A person of 24 x 60 pixels in 1280 x 960, where the network works at 320 x 240.
    mask = figure(15, 6)
    for ir, vi in (
        (picture(mask, 0.6, 0.3), picture(mask, 0.32, 0.3)),
        (picture(mask, 0.3, 0.3), picture(mask, 0.7, 0.4)),
        (picture(mask, 0.6, 0.3), picture(mask, 0.15, 0.45)),
    ):
        assert seen(fuse, mask, ir, vi).ratio > 0.5


def test_a_cold_sky_does_not_darken_a_bright_one(fuse):
    rows = np.arange(HEIGHT)[:, None] * np.ones((1, WIDTH)) < 100
    ir, vi = picture(rows, 0.05, 0.5), picture(rows, 0.8, 0.35)
    found = seen(fuse, rows, ir, vi)
    assert found.ratio > 0.5
    with torch.no_grad():
        fused = fuse(torch.from_numpy(np.stack((ir, vi))[None]))[0, 0].numpy()
    assert fused[:80].mean() > fused[120:].mean() + 0.2
