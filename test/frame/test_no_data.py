# SPDX-License-Identifier: AGPL-3.0-only
"""Borders without data: found where rectification leaves them, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from support import write_fusion_onnx

from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.no_data import EmptyBorder
from fusion_ros.frame.pipeline import Network, Pipeline
from fusion_ros.frame.settings import Settings
from fusion_ros.inference import load_engine


def frame(dtype: type, seed: int = 0, border: int = 12) -> np.ndarray:
    """A noisy frame of 80x60 with an empty border at the left."""
    pixels = np.random.default_rng(seed).normal(3000, 30, (60, 80)).astype(dtype)
    pixels[:, :border] = np.nan if dtype == np.float32 else 0
    return pixels


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_border_is_found_at_once_and_stays_the_same_array(dtype):
    border = EmptyBorder()
    seen = border.update(frame(dtype))
    assert not seen[:, :12].any()
    assert seen[:, 12:].all()
    for seed in range(1, 10):
        assert border.update(frame(dtype, seed)) is seen


def test_dead_pixels_telemetry_and_signed_counts_are_no_border():
    for change in (lambda f: f.__setitem__((30, 40), 0), lambda f: f.__setitem__((slice(2),), 0)):
        pixels = frame(np.uint16, border=0)
        change(pixels)
        assert EmptyBorder().update(pixels) is None
    assert EmptyBorder().update(frame(np.int16)) is None
    assert EmptyBorder().update(np.zeros((60, 80), np.uint16)) is None


def test_black_is_a_grey_level_of_8_bit_images_unless_they_are_rectified():
    pixels = np.full((60, 80), 90, np.uint8)
    pixels[:, :12] = 0
    assert EmptyBorder().update(pixels) is None
    assert not EmptyBorder().update(pixels, rectified=True)[:, :12].any()


def test_another_border_is_taken_over_when_it_stays():
    border = EmptyBorder()
    first = border.update(frame(np.uint16))
    assert border.update(frame(np.uint16, border=20)) is first
    for _ in range(5):
        latest = border.update(frame(np.uint16, border=20))
    assert not latest[:, :20].any()


@pytest.mark.parametrize("homography", [(), (1.0, 0.0, 4.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)])
def test_the_fused_image_is_the_visible_one_in_the_border_and_fades_into_it(tmp_path, homography):
    path = write_fusion_onnx(tmp_path / "average.onnx")
    network = Network(str(path), Fuser(load_engine(path, "onnxruntime_cpu")))
    settings = Settings(method=str(path), homography=homography)
    pipeline = Pipeline(settings, network, Monitor())
    visible = np.full((60, 80, 3), 60, np.uint8)
    for seed in range(3):
        fused = pipeline.fuse(frame(np.uint16, seed), visible)
    shift = 4 if homography else 0
    np.testing.assert_array_equal(fused[:, : 12 + shift], 60)
    inside = fused[:, 40:].astype(float).mean()
    assert abs(inside - 60) > 10
    edge = fused[20:40, 12 + shift : 18 + shift].astype(float).mean(axis=(0, 2)) - 60
    assert abs(edge[0]) < abs(edge[-1]) + 8
