# SPDX-License-Identifier: AGPL-3.0-only
"""The guided upsampling: what it keeps, what it makes sharp, and what it does not smear."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from fusion_ros.frame.upsampling import MOST_GAIN, RADIUS, GuidedUpsampler

FULL, SMALL = (96, 128), (48, 64)


def scene(seed: int, size: tuple[int, int] = FULL, blur: float = 1.0) -> np.ndarray:
    """Blobs and texture in [0.1, 0.9], with detail that half the size cannot hold."""
    noise = np.random.default_rng(seed).random(size, np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), blur), None, 0.1, 0.9, cv2.NORM_MINMAX)


def shrink(image: np.ndarray, small: tuple[int, int] = SMALL) -> np.ndarray:
    return cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)


def enlarge(image: np.ndarray, full: tuple[int, int] = FULL) -> np.ndarray:
    return cv2.resize(image, full[::-1], interpolation=cv2.INTER_LINEAR)


def upsample(fused_small: np.ndarray, ir: np.ndarray, vi: np.ndarray) -> np.ndarray:
    small, full = fused_small.shape, vi.shape
    sources = (shrink(ir, small), shrink(vi, small), ir, vi)
    return GuidedUpsampler(small, full).upsample(fused_small, *sources, np.empty_like(vi))


def bilinear(fused_small: np.ndarray, vi: np.ndarray) -> np.ndarray:
    """The baseline: the change enlarged without guides."""
    return vi + enlarge(fused_small - shrink(vi, fused_small.shape), vi.shape)


def error(image: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((image - expected) ** 2)))


def test_without_a_change_the_visible_image_is_returned_exactly():
    ir, vi = scene(0), scene(1)
    assert (upsample(shrink(vi), ir, vi) == vi).all()


def test_pixels_beyond_the_window_of_a_change_stay_exactly_the_same():
    ir, vi = scene(0), scene(1)
    fused = shrink(vi)
    fused[:, :20] += 0.05
    first = 2 * (20 + RADIUS + 1)
    out = upsample(fused, ir, vi)
    assert (out[:, first:] == vi[:, first:]).all()
    assert (out[:, : first - 2] != vi[:, : first - 2]).any()


@pytest.mark.parametrize("change", [-0.08, 0.05])
def test_a_constant_change_passes_unchanged(change):
    ir, vi = scene(0), scene(1)
    np.testing.assert_allclose(upsample(shrink(vi) + change, ir, vi), vi + change, atol=2e-4)


@pytest.mark.parametrize(("of_vi", "of_ir"), [(1.0, 0.0), (0.5, 0.5), (0.2, 0.8), (0.9, 0.3)])
def test_a_mixture_of_both_images_is_the_same_mixture_at_full_size(of_vi, of_ir):
    ir, vi = scene(0), scene(1)
    expected = of_vi * vi + of_ir * ir
    fused = of_vi * shrink(vi) + of_ir * shrink(ir)
    assert error(upsample(fused, ir, vi), expected) < 0.002
    assert of_ir == 0 or error(bilinear(fused, vi), expected) > 0.01


def test_downsampled_again_it_is_close_to_the_output_of_the_network():
    ir, vi = scene(0), scene(1)
    fused = np.maximum(shrink(ir), shrink(vi))
    found, plain = shrink(upsample(fused, ir, vi)), shrink(bilinear(fused, vi))
    assert error(found, fused) < 0.7 * error(plain, fused)


@pytest.mark.parametrize("of", ["thermal", "visible"])
def test_an_edge_of_either_image_stays_sharper_than_by_bilinear_enlargement(of):
    """What is warm is shown bright, up to an edge at an odd column, between two small pixels."""
    ir, vi = 0.02 * scene(0), 0.3 + 0.02 * scene(1)
    ir[:, 65:] += 0.6
    if of == "thermal":
        expected = np.maximum(ir, vi)
    else:  # a dark coat: its edge is blurred in the thermal image, and the visible turns over
        ir = cv2.GaussianBlur(ir, (0, 0), 4)
        vi[:, 65:] -= 0.25
        expected = vi.copy()
        expected[:, 65:] += 0.5
    fused = shrink(expected)
    guided, plain = upsample(fused, ir, vi), bilinear(fused, vi)

    def steepest(image):
        return np.abs(np.diff(image[8:-8], axis=1)).max(axis=1).mean()

    assert steepest(guided) > 0.85 * steepest(expected)
    assert steepest(guided) > 1.3 * steepest(plain)
    assert error(guided, expected) < 0.2 * error(plain, expected)


@pytest.mark.parametrize(("top", "left"), [(41, 61), (40, 60), (41, 60)])
def test_a_small_hot_target_neither_smears_nor_fades(top, left):
    ir, vi = 0.02 * scene(0), 0.2 + 0.1 * scene(1)
    target = (slice(top, top + 5), slice(left, left + 3))
    ir[target] = 0.9
    fused = np.maximum(shrink(ir), shrink(vi))
    out, plain = upsample(fused, ir, vi), bilinear(fused, vi)
    around = np.ones(FULL, bool)
    around[target] = False
    # Between its pixels the small image cannot be better than half a pixel of it.
    assert np.abs(out - vi)[around].max() < 0.12 < np.abs(plain - vi)[around].max()
    assert out[target].mean() > 0.8 > plain[target].mean()


def test_a_strong_change_does_not_amplify_a_flat_guide():
    """Sensor noise of one grey level in the dark, and a change that has nothing to do with it."""
    rng = np.random.default_rng(0)
    vi = (0.05 + rng.normal(0, 1 / 255, FULL)).astype(np.float32)
    ir = np.full(FULL, 0.1, np.float32)
    fused = shrink(vi) + cv2.GaussianBlur(rng.random(SMALL, np.float32), (0, 0), 1)
    added = upsample(fused, ir, vi) - enlarge(fused)
    noise = vi - enlarge(shrink(vi))
    assert error(added, 0) < 1.5 * error(noise, 0)


def test_fine_detail_is_at_most_tripled_by_any_change():
    vi = (0.5 + np.random.default_rng(0).normal(0, 1.4 / 255, FULL)).astype(np.float32)
    fused = shrink(vi) + 20 * (shrink(vi) - 0.5)
    added = upsample(fused, np.zeros_like(vi), vi) - enlarge(fused)
    assert error(added, 0) < 1.01 * (1 + MOST_GAIN) * error(vi, enlarge(shrink(vi)))


def test_the_result_stays_between_0_and_1():
    ir, vi = (scene(0) > 0.5).astype(np.float32), (scene(1) > 0.5).astype(np.float32)
    out = upsample(np.maximum(shrink(ir), shrink(vi)), ir, vi)
    assert out.min() == 0 and out.max() == 1


@pytest.mark.parametrize(
    ("full", "small"),
    [((333, 501), (213, 320)), ((41, 37), (32, 29)), ((97, 129), (12, 16)), ((3, 700), (1, 320)),
     ((700, 1), (320, 1))],
)  # fmt: skip
def test_any_two_sizes_can_be_combined(full, small):
    ir, vi = scene(0, full), scene(1, full)
    out = upsample(shrink(vi, small), ir, vi)
    assert (out == vi).all()
    mixed = upsample(0.5 * shrink(vi, small) + 0.5 * shrink(ir, small), ir, vi)
    assert np.isfinite(mixed).all() and 0 <= mixed.min() and mixed.max() <= 1


def test_inputs_are_unchanged_and_no_image_is_allocated():
    ir, vi = scene(0), scene(1)
    sources = (np.maximum(shrink(ir), shrink(vi)), shrink(ir), shrink(vi), ir, vi)
    before = [image.copy() for image in sources]
    upsampler, out = GuidedUpsampler(SMALL, FULL), np.empty_like(vi)
    assert upsampler.upsample(*sources, out) is out
    first = out.copy()
    tracemalloc.start()
    try:
        upsampler.upsample(*sources, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000
    assert (out == first).all()
    assert all((now == then).all() for now, then in zip(sources, before))
