"""The fuser: padding, colour, buffers."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from support import pair, write_detector_onnx, write_fusion_onnx

from fusion_ros.fuser import Fuser
from fusion_ros.inference import Engine, EngineError, ModelSpec, TensorSpec, load_engine

PLANE = (1, 1, None, None)


@pytest.fixture(scope="module")
def average(tmp_path_factory):
    onnx = write_fusion_onnx(tmp_path_factory.mktemp("fuser") / "average.onnx")
    return load_engine(onnx, "onnxruntime_cpu", threads=1)


@pytest.fixture(scope="module")
def visible_only(tmp_path_factory):
    onnx = write_fusion_onnx(tmp_path_factory.mktemp("fuser") / "null.onnx")
    return load_engine(onnx, "null")


class Recorder(Engine):
    """Keeps what it was fed and gives back `ir`."""

    backend, device, precision, description = "recorder", "CPU", "fp32", "records"

    def __init__(self):
        def spec(name):
            return TensorSpec(name, PLANE, np.dtype(np.float32))

        super().__init__(ModelSpec((spec("ir"), spec("vi")), (spec("fused"),)))

    def run(self, feeds):
        self.fed = {name: array.copy() for name, array in feeds.items()}
        return {"fused": feeds["ir"]}


@pytest.mark.parametrize("size", [(64, 48), (501, 333), (37, 41), (1, 1), (5, 3), (33, 700)])
def test_any_size_comes_back_as_the_average_of_the_two_lumas(average, size):
    thermal, visible = pair(*size)
    fused = Fuser(average).fuse(thermal, visible)
    assert fused.shape == visible.shape and fused.dtype == np.uint8
    ycrcb = cv2.cvtColor(visible, cv2.COLOR_BGR2YCrCb)
    mean = (ycrcb[..., 0].astype(np.float64) + thermal) / 2
    ycrcb[..., 0] = np.rint(mean)
    expected = cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2BGR)
    # A half rounds either way, and one step of luma is at most two of a colour.
    assert np.abs(fused.astype(int) - expected).max() <= 2
    assert (fused == expected).mean() > 0.4


@pytest.mark.parametrize("size", [(501, 333), (37, 41), (64, 48), (5, 3)])
def test_padding_is_the_reflection_of_the_image(size):
    engine = Recorder()
    thermal, visible = pair(*size)
    Fuser(engine).fuse(thermal, visible)
    height, width = engine.fed["ir"].shape[2:]
    assert height % 8 == width % 8 == 0 and min(height, width) >= 32
    grow = ((0, height - size[1]), (0, width - size[0]))
    luma = cv2.cvtColor(visible, cv2.COLOR_BGR2YCrCb)[..., 0]
    for name, image in (("ir", thermal), ("vi", luma)):
        expected = np.pad(image, grow, mode="reflect").astype(np.float32) / np.float32(255)
        np.testing.assert_allclose(engine.fed[name][0, 0], expected, atol=1e-6)


def test_colour_is_the_visible_images_own(visible_only):
    thermal, _ = pair(640, 480)
    rng = np.random.default_rng(1)
    smooth = cv2.resize(rng.integers(30, 226, (12, 16, 3), np.uint8), (640, 480))
    fused = Fuser(visible_only).fuse(thermal, smooth)
    assert np.abs(fused.astype(int) - smooth).max() <= 2


def test_a_constant_scene_stays_constant_whatever_else_is_in_the_picture(average):
    fuser = Fuser(average)
    thermal, visible = np.full((48, 64), 90, np.uint8), np.full((48, 64, 3), 120, np.uint8)
    before = fuser.fuse(thermal, visible)[0, 0].copy()
    thermal[30:], visible[30:] = 255, 0
    assert (fuser.fuse(thermal, visible)[0, 0] == before).all()


def test_luminance_alone_keeps_full_precision(average):
    rng = np.random.default_rng(0)
    ir, vi = rng.random((2, 333, 501), np.float32)
    fused = Fuser(average).fuse_luminance(ir, vi)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, (ir + vi) / 2, atol=1e-6)


def test_results_without_out_are_the_callers_to_keep(average):
    fuser = Fuser(average)
    first = fuser.fuse(*pair(seed=0))
    kept = first.copy()
    luminance = fuser.fuse_luminance(*np.zeros((2, 48, 64), np.float32))
    fuser.fuse(*pair(seed=1))
    assert (first == kept).all() and not luminance.any()


@pytest.mark.parametrize("size", [(640, 480), (501, 333)])
def test_nothing_of_image_size_is_allocated_after_the_first_frame(average, size):
    fuser = Fuser(average)
    thermal, visible = pair(*size)
    out = np.empty_like(visible)
    fuser.warmup(size)
    tracemalloc.start()
    try:
        for _ in range(3):
            fuser.fuse(thermal, visible, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


def test_out_is_filled_and_returned_and_must_fit(average):
    thermal, visible = pair()
    out = np.empty_like(visible)
    fuser = Fuser(average)
    assert fuser.fuse(thermal, visible, out) is out
    assert (out == fuser.fuse(thermal, visible)).all()
    with pytest.raises(ValueError, match="out must be"):
        fuser.fuse(thermal, visible, out[:10])
    with pytest.raises(ValueError, match="contiguous"):
        fuser.fuse(thermal, visible, np.empty((48, 128, 3), np.uint8)[:, ::2])


def test_visible_views_with_row_padding_are_read_correctly(average):
    thermal, visible = pair()
    padded = np.zeros((48, 80, 3), np.uint8)
    padded[:, :64] = visible
    fuser = Fuser(average)
    assert (fuser.fuse(thermal, padded[:, :64]) == fuser.fuse(thermal, visible)).all()


def test_stage_times_are_told(average):
    fuser = Fuser(average)
    fuser.warmup((64, 48))
    assert set(fuser.last_ms) == {"prepare", "infer", "colour"}
    assert all(0 < ms < 1000 for ms in fuser.last_ms.values())


@pytest.mark.parametrize(
    ("thermal", "visible", "message"),
    [
        (np.zeros((48, 64), np.uint16), np.zeros((48, 64, 3), np.uint8), "gain control"),
        (np.zeros((48, 60), np.uint8), np.zeros((48, 64, 3), np.uint8), "register"),
        (np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8), "visible must be"),
        (np.zeros((0, 0), np.uint8), np.zeros((0, 0, 3), np.uint8), "thermal must be"),
    ],
)
def test_images_that_do_not_fit_are_told(average, thermal, visible, message):
    with pytest.raises(ValueError, match=message):
        Fuser(average).fuse(thermal, visible)


def test_a_model_that_fuses_nothing_is_refused(tmp_path):
    onnx = write_detector_onnx(tmp_path / "boxes.onnx", [])
    with pytest.raises(EngineError, match="not a fusion model"):
        Fuser(load_engine(onnx, "onnxruntime_cpu"))
