# SPDX-License-Identifier: AGPL-3.0-only
"""Images on a simulated GPU: what is copied to it and back, and when the CPU converts."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from support import pair, write_detector_onnx, write_fusion_onnx

from fusion_ros.frame.detector import Detector
from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pipeline import Pipeline, load_detector, load_network
from fusion_ros.frame.settings import Settings
from fusion_ros.inference import EngineError, load_engine, onnxruntime, tensorrt
from fusion_ros.size import Size

UP, DOWN, ACROSS = (
    f"cudaMemcpy{kind}" for kind in ("HostToDevice", "DeviceToHost", "DeviceToDevice")
)
BOXES = [(0, 0.9, (8, 8, 24, 40)), (1, 0.7, (30, 8, 50, 40))]


@pytest.fixture
def average(tmp_path):
    return write_fusion_onnx(tmp_path / "average.onnx")


@pytest.fixture
def fuser(gpu, average, tmp_path):
    return Fuser(load_engine(average, "tensorrt", cache_dir=tmp_path))


def on_the_cpu(average, thermal, visible):
    return Fuser(load_engine(average, "onnxruntime_cpu")).fuse(thermal, visible)


def assert_close(image, expected):
    assert np.abs(image.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("size", [(64, 48), (61, 43)])
def test_a_pair_is_uploaded_once_and_the_fused_image_downloaded_once(gpu, fuser, average, size):
    for seed in range(2):
        thermal, visible = pair(*size, seed)
        fuser.warmup(size)
        gpu.copied.clear(), gpu.bytes.clear()
        fused = fuser.fuse(thermal, visible)
        assert_close(fused, on_the_cpu(average, thermal, visible))
        assert gpu.copied == {UP: 1, DOWN: 1}
        # Arrays begin at multiples of 256 bytes.
        assert gpu.bytes[UP] < thermal.nbytes + visible.nbytes + 512
        assert gpu.bytes[DOWN] < visible.nbytes + 512  # the image and its mean


def test_a_new_size_gets_a_network_of_its_own_and_the_old_one_is_freed(gpu, fuser, average):
    for size in ((64, 48), (80, 48), (64, 48)):
        thermal, visible = pair(*size)
        assert_close(fuser.fuse(thermal, visible), on_the_cpu(average, thermal, visible))
        assert len(gpu.memory) == 4, "inputs and outputs, on both ends"
    assert gpu.built == [("average.onnx", Size(64, 48)), ("average.onnx", Size(80, 48))]
    fuser.close()
    assert not gpu.memory


def test_the_second_start_builds_nothing(gpu, average, tmp_path):
    for _ in range(2):
        Fuser(load_engine(average, "tensorrt", cache_dir=tmp_path)).warmup((64, 48))
    assert len(gpu.built) == 1


@pytest.fixture
def pipeline(gpu, average, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    boxes = write_detector_onnx(tmp_path / "boxes.onnx", BOXES)
    parameters = Settings(
        method=str(average), backend="tensorrt", detector=str(boxes), dropout_policy="pass"
    )
    pipeline = Pipeline(parameters, load_network(parameters, None, print), Monitor())
    pipeline.change(detector=load_detector(parameters, None, print))
    pipeline.detect(pipeline.fuse(*pair(64, 48, seed=9)))
    return pipeline


def test_the_detector_reads_the_fused_image_on_the_gpu(gpu, pipeline, tmp_path):
    for seed in range(2):
        fused = pipeline.fuse(*pair(64, 48, seed))
        gpu.copied.clear(), gpu.bytes.clear()
        found = pipeline.detect(fused)
        assert gpu.copied == {ACROSS: 1, DOWN: 1}
        assert gpu.bytes[ACROSS] == fused.nbytes
    cpu = Detector(load_engine(tmp_path / "boxes.onnx", "onnxruntime_cpu"))
    assert found == cpu.detect(fused) and len(found) == 2
    assert gpu.latest[ACROSS] == fused.tobytes()


def test_an_image_that_was_not_fused_is_uploaded_for_the_detector(gpu, pipeline):
    thermal, visible = pair(64, 48)
    pipeline.fuse(thermal, visible)
    passed = pipeline.fuse(None, visible)  # the thermal camera is silent
    gpu.copied.clear()
    assert len(pipeline.detect(passed)) == 2
    assert gpu.copied == {UP: 1, DOWN: 1}


def test_a_small_processing_size_is_converted_by_the_cpu(gpu, average, tmp_path):
    fuser = Fuser(load_engine(average, "tensorrt", cache_dir=tmp_path), processing_size=32)
    fuser.warmup((64, 48))
    assert not fuser.converts_on_gpu and gpu.built == [("average.onnx", Size(32, 32))]
    assert fuser.on_device() is None
    fuser.warmup((32, 24))  # not reduced
    assert fuser.converts_on_gpu


def test_without_the_package_onnx_the_cpu_converts_and_the_log_names_it(
    gpu, average, tmp_path, monkeypatch
):
    lines = []
    fuser = Fuser(load_engine(average, "tensorrt", cache_dir=tmp_path, log=lines.append))
    monkeypatch.setitem(sys.modules, "onnx", None)
    thermal, visible = pair(64, 48)
    for _ in range(2):
        fused = fuser.fuse(thermal, visible)
    assert sum("pip install onnx" in line for line in lines) == 1
    monkeypatch.undo()
    assert (fused == on_the_cpu(average, thermal, visible)).all()


def test_images_that_tensorrt_refuses_are_converted_by_the_cpu(gpu, average, tmp_path, monkeypatch):
    def refuse(library, onnx, size, **settings):
        if onnx != average:
            raise EngineError("no UINT8 here")
        return gpu.build(library, onnx, size, **settings)

    monkeypatch.setattr(tensorrt, "build", refuse)
    lines = []
    fuser = Fuser(load_engine(average, "tensorrt", cache_dir=tmp_path, log=lines.append))
    thermal, visible = pair(64, 48)
    assert (fuser.fuse(thermal, visible) == on_the_cpu(average, thermal, visible)).all()
    assert lines.count("tensorrt fp32, images converted on the GPU not used: no UINT8 here") == 1


def test_on_a_full_disk_the_cpu_converts(gpu, average, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    lines = []
    fuser = Fuser(load_engine(average, "tensorrt", cache_dir=tmp_path, log=lines.append))
    monkeypatch.setattr(pytest.importorskip("onnx"), "save", full)
    thermal, visible = pair(64, 48)
    for _ in range(2):
        fused = fuser.fuse(thermal, visible)
    assert (fused == on_the_cpu(average, thermal, visible)).all()
    assert sum("No space left" in line for line in lines) == 1


def test_a_model_of_one_size_converts_smaller_images(gpu, average, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(average)
    for tensor in (*model.graph.input, *model.graph.output):
        for dimension, size in zip(tensor.type.tensor_type.shape.dim[2:], (64, 96)):
            dimension.dim_value = size
    path = tmp_path / "fixed.onnx"
    onnx.save(model, path)
    thermal, visible = pair(64, 48)
    fuser = Fuser(load_engine(path, "tensorrt", cache_dir=tmp_path))
    assert_close(fuser.fuse(thermal, visible), on_the_cpu(path, thermal, visible))
    assert fuser.converts_on_gpu
    assert fuser.form(Size(96, 80)) is None, "larger than the model takes"


@pytest.fixture
def cuda_provider(monkeypatch):
    """Let onnxruntime's CPU provider stand for its CUDA provider."""
    real = onnxruntime._session

    def session(onnx, provider, *arguments, **settings):
        return real(onnx, "CPUExecutionProvider", *arguments, **settings)

    monkeypatch.setattr(onnxruntime, "_session", session)


def test_onnxruntime_converts_images_on_the_gpu_too(cuda_provider, average):
    fuser = Fuser(load_engine(average, "onnxruntime_cuda"))
    for size in ((64, 48), (61, 43), (64, 48)):
        for seed in range(2):
            thermal, visible = pair(*size, seed)
            assert_close(fuser.fuse(thermal, visible), on_the_cpu(average, thermal, visible))
        assert fuser.converts_on_gpu and fuser.on_device() is None
    fuser.close()


def test_onnxruntime_detects_in_images_on_the_gpu_too(cuda_provider, tmp_path):
    path = write_detector_onnx(tmp_path / "boxes.onnx", BOXES)
    detector = Detector(load_engine(path, "onnxruntime_cuda"))
    cpu = Detector(load_engine(path, "onnxruntime_cpu"))
    for size in ((64, 48), (200, 100)):
        image = pair(*size)[1]
        assert detector.detect(image) == cpu.detect(image) and len(cpu.detect(image)) == 2
        assert detector.converts_on_gpu


def test_images_that_onnxruntime_refuses_are_converted_by_the_cpu(
    cuda_provider, average, tmp_path, monkeypatch
):
    played = onnxruntime._session

    def refuse(onnx, *arguments, **settings):
        if onnx.parent != tmp_path:
            raise EngineError("no UINT8 here")
        return played(onnx, *arguments, **settings)

    monkeypatch.setattr(onnxruntime, "_session", refuse)
    lines = []
    fuser = Fuser(load_engine(average, "onnxruntime_cuda", log=lines.append))
    thermal, visible = pair(64, 48)
    for _ in range(2):
        fused = fuser.fuse(thermal, visible)
    assert (fused == on_the_cpu(average, thermal, visible)).all()
    assert sum("no UINT8 here" in line for line in lines) == 1


@pytest.mark.parametrize(("offset", "precision"), [(1 / 255, "fp16"), (4 / 255, "fp32")])
def test_fp16_is_compared_with_float32_by_fused_images_too(
    gpu, average, tmp_path, offset, precision
):
    average.with_name("average.fp16.onnx").write_bytes(average.read_bytes())
    gpu.offset = offset
    fuser = Fuser(load_engine(average, "tensorrt", precision="fp16", cache_dir=tmp_path))
    fuser.warmup((64, 48))
    assert fuser.engine.precision == precision
    assert precision in fuser.engine.description


def test_luminances_and_images_may_alternate(gpu, fuser, average):
    ir, vi = np.random.default_rng(0).random((2, 48, 64), np.float32)
    thermal, visible = pair(64, 48)
    for _ in range(2):
        assert_close(fuser.fuse(thermal, visible), on_the_cpu(average, thermal, visible))
        np.testing.assert_allclose(fuser.fuse_luminance(ir, vi), (ir + vi) / 2, atol=1e-6)
        assert fuser.on_device() is None
    assert len(gpu.built) == 2


def test_the_cpu_converts_for_a_network_on_the_cpu(average):
    fuser = Fuser(load_engine(average, "onnxruntime_cpu"))
    fuser.warmup((64, 48))
    assert not fuser.converts_on_gpu


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_what_is_no_image_costs_the_frame_on_the_gpu_too(cuda_provider, tmp_path, value):
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    # Wild where the RGB image is black, which it is not in the trial run.
    path = write_fusion_onnx(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(value), "wild"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.001), "black"))
    model.graph.node[-1].output[0] = "sound"
    model.graph.node.append(helper.make_node("ReduceMax", ["vi"], ["most"]))
    model.graph.node.append(helper.make_node("Less", ["most", "black"], ["dark"]))
    model.graph.node.append(helper.make_node("Where", ["dark", "wild", "sound"], ["fused"]))
    onnx.save(model, path)
    fuser = Fuser(load_engine(path, "onnxruntime"))
    thermal, visible = pair()
    assert fuser.fuse(thermal, visible).any() and fuser.converts_on_gpu
    with pytest.raises(EngineError, match="the mean of the network's output is"):
        fuser.fuse(thermal, np.zeros_like(visible))
