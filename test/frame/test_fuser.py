# SPDX-License-Identifier: AGPL-3.0-only
"""The fuser: padding, colour, buffers, and fusing at a smaller size."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from support import pair, write_detector_onnx, write_fusion_onnx

from fusion_ros.frame.fuser import Fuser, padded_size, processed_size
from fusion_ros.inference import Engine, EngineError, ModelSpec, TensorSpec, load_engine
from fusion_ros.size import Size

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
    """Keeps its feeds and returns `ir`."""

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
    # Halves round up or down, and one level of luma is at most two of a colour.
    assert np.abs(fused.astype(int) - expected).max() <= 2
    assert (fused == expected).mean() > 0.4


class Cropper(Recorder):
    """Gives an output of whole blocks of 32 pixels, at sizes that no trial run has."""

    def run(self, feeds):
        height, width = feeds["ir"].shape[2:]
        if width < 400:
            return {"fused": feeds["ir"]}
        return {"fused": feeds["ir"][..., : height // 32 * 32, : width // 32 * 32]}


def test_an_output_of_another_size_costs_the_frame_and_is_never_the_visible_image():
    fuser = Fuser(Cropper())
    with pytest.raises(EngineError, match=r"\[1, 1, 320, 480\] of images \[1, 1, 328, 504\]"):
        fuser.fuse(*pair(504, 328))
    with pytest.raises(EngineError, match="expected the same shape"):
        fuser.fuse_luminance(*np.zeros((2, 328, 504), np.float32))
    assert fuser.fuse(*pair(64, 48)).shape == (48, 64, 3)


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


def test_colour_is_that_of_the_visible_image(visible_only):
    thermal, _ = pair(640, 480)
    rng = np.random.default_rng(1)
    smooth = cv2.resize(rng.integers(30, 226, (12, 16, 3), np.uint8), (640, 480))
    fused = Fuser(visible_only).fuse(thermal, smooth)
    assert np.abs(fused.astype(int) - smooth).max() <= 2


def test_a_constant_region_stays_constant_beside_any_other_content(average):
    fuser = Fuser(average)
    thermal, visible = np.full((48, 64), 90, np.uint8), np.full((48, 64, 3), 120, np.uint8)
    before = fuser.fuse(thermal, visible)[0, 0].copy()
    thermal[30:], visible[30:] = 255, 0
    assert (fuser.fuse(thermal, visible)[0, 0] == before).all()


def test_fused_luminance_has_full_precision(average):
    rng = np.random.default_rng(0)
    ir, vi = rng.random((2, 333, 501), np.float32)
    fused = Fuser(average).fuse_luminance(ir, vi)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, (ir + vi) / 2, atol=1e-6)


def test_results_without_out_are_not_overwritten(average):
    fuser = Fuser(average)
    first = fuser.fuse(*pair(seed=0))
    kept = first.copy()
    luminance = fuser.fuse_luminance(*np.zeros((2, 48, 64), np.float32))
    fuser.fuse(*pair(seed=1))
    assert (first == kept).all() and not luminance.any()


@pytest.mark.parametrize("processing_size", [0, 320])
@pytest.mark.parametrize("size", [(640, 480), (501, 333)])
def test_nothing_of_image_size_is_allocated_after_the_first_frame(average, size, processing_size):
    fuser = Fuser(average, processing_size)
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


@pytest.mark.parametrize(
    ("size", "processing_size", "fused_at", "fed"),
    [
        ((640, 480), 320, (240, 320), (240, 320)),
        ((480, 640), 320, (320, 240), (320, 240)),
        ((1280, 720), 500, (281, 500), (288, 504)),
        ((501, 333), 320, (213, 320), (216, 320)),
        ((640, 480), 480, (360, 480), (360, 480)),
        ((640, 48), 64, (5, 64), (32, 64)),
        ((700, 1), 64, (1, 64), (32, 64)),
        ((640, 480), 640, (480, 640), (480, 640)),
        ((501, 333), 4000, (333, 501), (336, 504)),
        ((501, 333), 0, (333, 501), (336, 504)),
    ],
)  # fmt: skip
def test_the_network_sees_the_longer_side_at_the_processing_size(
    size, processing_size, fused_at, fed
):
    engine = Recorder()
    thermal, visible = pair(*size)
    Fuser(engine, processing_size).fuse(thermal, visible)
    fused_size = processed_size(Size(*size), processing_size)
    assert fused_size.shape == fused_at
    assert padded_size(fused_size).shape == fed
    luma = cv2.cvtColor(visible, cv2.COLOR_BGR2YCrCb)[..., 0]
    grow = tuple((0, padded - n) for n, padded in zip(fused_at, fed))
    for name, image in (("ir", thermal), ("vi", luma)):
        assert engine.fed[name].shape == (1, 1, *fed)
        small = image.astype(np.float32) / 255
        if fused_at != image.shape:
            small = cv2.resize(small, fused_at[::-1], interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(
            engine.fed[name][0, 0], np.pad(small, grow, mode="reflect"), atol=1e-6
        )


@pytest.mark.parametrize("processing_size", [501, 502, 16384])
def test_a_processing_size_above_the_images_size_changes_nothing(tmp_path, processing_size):
    engine = load_engine(write_fusion_onnx(tmp_path / "max.onnx", "max"), "onnxruntime_cpu")
    images = pair(501, 333)
    at_full_size = Fuser(engine)
    limited = Fuser(engine, processing_size)
    assert (at_full_size.fuse(*images) == limited.fuse(*images)).all()
    ir, vi = np.random.default_rng(0).random((2, 333, 501), np.float32)
    expected = at_full_size.fuse_luminance(ir, vi)
    assert (expected == limited.fuse_luminance(ir, vi)).all()


def blobs(width, height, seed):
    """Thermal and visible images with detail that is lost at half the size."""
    return [
        cv2.normalize(cv2.GaussianBlur(image, (0, 0), 1), None, 20, 230, cv2.NORM_MINMAX)
        for image in pair(width, height, seed)
    ]


@pytest.mark.parametrize("size", [(640, 480), (501, 333), (37, 41)])
def test_fusing_at_half_the_size_gives_nearly_the_same_image(average, size):
    images = blobs(*size, seed=3)
    full = Fuser(average).fuse(*images).astype(int)
    small = Fuser(average, max(size) // 2).fuse(*images)
    assert np.abs(small - full).mean() < 2
    enlarged = [cv2.resize(x, (size[0] // 2, size[1] // 2)) for x in images]
    enlarged = cv2.resize(Fuser(average).fuse(*enlarged), size)
    assert np.abs(small - full).mean() < 0.2 * np.abs(enlarged - full).mean()


def test_luminance_is_fused_at_the_processing_size_too(average):
    thermal, visible = blobs(640, 480, seed=3)
    visible = cv2.merge([visible[..., 0]] * 3)
    fused = Fuser(average, 320).fuse(thermal, visible)[..., 0]
    ir, vi = (x.astype(np.float32) / 255 for x in (thermal, visible[..., 0]))
    luminance = Fuser(average, 320).fuse_luminance(ir, vi)
    assert luminance.dtype == np.float32 and luminance.shape == (480, 640)
    assert np.abs(luminance * 255 - fused).max() <= 1.01
    assert 0 < np.abs(luminance - Fuser(average).fuse_luminance(ir, vi)).max()


def test_network_output_beyond_the_range_is_clipped():
    class Steeper(Recorder):
        def run(self, feeds):
            return {"fused": 1.4 * feeds["vi"] - 0.2}

    visible = np.zeros((48, 64, 3), np.uint8)
    visible[:24], visible[:, :8] = 255, 128
    fused = Fuser(Steeper()).fuse(np.full((48, 64), 90, np.uint8), visible)
    assert (fused[:24, 8:] == 255).all() and (fused[24:, 8:] == 0).all()
    assert np.abs(fused[:, :8].astype(int) - 128).max() <= 1


def test_upsampled_pixels_below_zero_are_black():

    class Darker(Recorder):
        def run(self, feeds):
            return {"fused": feeds["vi"] - 0.2 * (feeds["ir"] > 0.5)}

    thermal = np.where(np.arange(64) < 31, 255, 0).astype(np.uint8)[None].repeat(48, 0)
    visible = cv2.merge([255 - thermal] * 3) // 4
    assert Fuser(Darker(), 32).fuse(thermal, visible)[:, :28].max() == 0


def test_several_resolutions_may_alternate(average):
    fuser = Fuser(average, 64)
    for size in ((96, 64), (64, 48), (501, 333), (48, 40)):
        images = pair(*size)
        assert (fuser.fuse(*images) == Fuser(average, 64).fuse(*images)).all()


def test_a_negative_processing_size_is_refused(average):
    with pytest.raises(ValueError, match="processing_size .* got -1"):
        Fuser(average, -1)


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


def test_stage_times_are_kept(average):
    fuser = Fuser(average)
    fuser.warmup((64, 48))
    assert set(fuser.last_ms) == {"prepare", "infer", "colour"}
    assert all(0 < ms < 1000 for ms in fuser.last_ms.values())
    fuser = Fuser(average, 32)
    fuser.warmup((64, 48))
    assert list(fuser.last_ms) == ["prepare", "infer", "upsample", "colour"]
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
def test_images_that_do_not_fit_are_refused(average, thermal, visible, message):
    with pytest.raises(ValueError, match=message):
        Fuser(average).fuse(thermal, visible)


def test_a_model_that_is_no_fusion_model_is_refused(tmp_path):
    onnx = write_detector_onnx(tmp_path / "boxes.onnx", [])
    with pytest.raises(EngineError, match="not a fusion model"):
        Fuser(load_engine(onnx, "onnxruntime_cpu"))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 3, None, None), np.float32), ((1, None, None), np.float32), (PLANE, np.uint8)],
)
def test_tensors_of_another_kind_are_refused_with_what_is_expected(shape, dtype):
    engine = Recorder()
    spec = TensorSpec("vi", shape, np.dtype(dtype))
    engine.model = ModelSpec((engine.inputs[0], spec), engine.outputs)
    with pytest.raises(EngineError, match=r"expected .* float32 \[1, 1, H, W\], got .*vi"):
        Fuser(engine)


@pytest.mark.parametrize("size", [(128, 96), (64, 48), (200, 30)])
def test_a_model_of_one_size_fuses_larger_images_at_its_size(tmp_path, size):
    onnx = pytest.importorskip("onnx")
    path = write_fusion_onnx(tmp_path / "fixed.onnx")
    model = onnx.load(path)
    for tensor in (*model.graph.input, *model.graph.output):
        for dimension, n in zip(tensor.type.tensor_type.shape.dim[2:], (48, 64)):
            dimension.dim_value = n
    onnx.save(model, path)
    fuser = Fuser(load_engine(path, "onnxruntime_cpu"))
    thermal, visible = blobs(*size, seed=3)
    fused = fuser.fuse(thermal, visible)
    average = Fuser(load_engine(write_fusion_onnx(path), "onnxruntime_cpu"))
    full = average.fuse(thermal, visible)
    assert np.abs(fused.astype(int) - full).mean() < 3
    assert "upsample" in fuser.last_ms
