# SPDX-License-Identifier: AGPL-3.0-only
"""TensorRT: every shipped model builds, without a GPU; what runs on one, on a simulated GPU."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import pair, write_fusion_onnx

from fusion_models import WEIGHTS_DIR
from fusion_ros.commands.main import main
from fusion_ros.frame.detector import Detector
from fusion_ros.frame.fuser import Fuser
from fusion_ros.inference import EngineError, cuda, load_engine, tensorrt
from fusion_ros.inference.cache import EngineCache
from fusion_ros.inference.engine import fill_shape
from fusion_ros.inference.rewrite import rewritten_file
from fusion_ros.inference.tensorrt import Library, TensorRTEngine, build
from fusion_ros.size import Size

MODELS = sorted(WEIGHTS_DIR.glob("*.onnx"))
HALF = [path for path in MODELS if path.name.endswith(".fp16.onnx")]


@pytest.fixture(scope="module")
def rtx() -> Library:
    return Library(pytest.importorskip("tensorrt_rtx_bindings"), "TensorRT-RTX")


@pytest.fixture
def average(tmp_path) -> Path:
    return write_fusion_onnx(tmp_path / "average.onnx")


# Building, by TensorRT-RTX, without a GPU


def lacks_float32_products(path: Path) -> bool:
    """Whether a model needs what TensorRT-RTX does not have for Turing: float32 matrix products.

    There the FP16 model serves, which must build.
    """
    operators = {node.op_type for node in pytest.importorskip("onnx").load(path).graph.node}
    return "MatMul" in operators and not path.name.endswith(".fp16.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["7.5", "12.0"])
@pytest.mark.parametrize("onnx", HALF, ids=lambda path: path.name)
def test_every_float16_model_builds_for_the_oldest_and_the_newest_rtx_gpus(rtx, onnx, target):
    built = tensorrt.build(rtx, onnx, Size(640, 480), target=target)
    assert built.layers > 0 and len(built.data) > 1000


def test_a_model_that_does_not_build_for_a_gpu_is_refused_with_the_reason(rtx):
    onnx = next(filter(lacks_float32_products, MODELS))
    with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
        tensorrt.build(rtx, onnx, Size(640, 480), target="7.5")


@pytest.mark.parametrize("onnx", MODELS, ids=lambda path: path.name)
def test_every_shipped_model_builds_in_the_form_that_converts_images(rtx, onnx):
    """That is the whole network and more: conversion, padding and the colours."""
    size = Size(501, 333)
    fuser = Fuser(load_engine(onnx, "onnxruntime_cpu"))
    with rewritten_file(onnx, fuser.form(size).rewrite) as path:
        built = tensorrt.build(rtx, path, size, target="8.9")
    assert built.layers > 0 and len(built.data) > 1000


def test_the_detector_builds_in_the_form_that_converts_images(rtx, shared_data):
    onnx = shared_data / "weights/yolov8n_coco.onnx"
    if not onnx.is_file():
        pytest.skip(f"needs the detector {onnx}")
    detector = Detector(load_engine(onnx, "onnxruntime_cpu"))
    size = Size(1920, 1080)  # is resized
    with rewritten_file(onnx, detector.form(size).rewrite) as path:
        built = tensorrt.build(rtx, path, size, target="8.9")
    assert built.layers > 100 and len(built.data) > 1_000_000


def test_a_model_with_an_unknown_operator_is_refused_with_its_name(rtx, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(write_fusion_onnx(tmp_path / "odd.onnx"))
    model.graph.node[0].op_type = "Compress"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(EngineError, match="cannot parse .*odd.onnx: .*Compress"):
        tensorrt.build(rtx, tmp_path / "odd.onnx", Size(640, 480), target="8.9")


def test_free_sizes_and_unknown_gpus_are_refused(rtx, average):
    with pytest.raises(EngineError, match="has free dimensions: give the size"):
        tensorrt.build(rtx, average, None, target="8.9")
    with pytest.raises(EngineError, match="cannot build for compute capability 9.0: .*8.9"):
        tensorrt.build(rtx, average, Size(640, 480), target="9.0")


def test_a_long_build_reports_its_progress(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "PROGRESS_SECONDS", 0.001)
    lines = []
    onnx = write_fusion_onnx(tmp_path / "slow.onnx", "slow", layers=30)
    tensorrt.build(rtx, onnx, Size(640, 480), target="8.9", log=lines.append)
    assert lines and all(" s so far: " in line for line in lines)
    assert any("step" in line for line in lines)


def test_build_engine_proves_a_model_on_the_command_line(rtx, average, capsys):
    arguments = [str(average), "--width", "333", "--height", "251", "--target"]
    assert main(["build_engine", *arguments, "8.9"]) == 0
    assert capsys.readouterr().out.startswith("average.onnx: builds for 8.9, ")
    assert main(["build_engine", *arguments, "3.0"]) == 1
    assert "choose one of 7.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "filled"),
    [
        ((-1, 1, -1, -1), (1, 1, 480, 640)),
        ((None, 1, None, None), (1, 1, 480, 640)),
        ((1, 3, 640, 640), (1, 3, 640, 640)),
        ((1, 1, 96, -1), (1, 1, 96, 640)),
    ],
)
def test_free_dimensions_take_the_size(shape, filled):
    assert fill_shape(shape, Size(640, 480)) == filled


# Running, on a simulated GPU


class Status(IntEnum):
    cudaErrorMemoryAllocation = 2


def feeds(height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random((1, 1, height, width), np.float32) for name in ("ir", "vi")}


def mean(pair):
    return (pair["ir"] + pair["vi"]) / 2


def test_frames_go_through_one_captured_graph(gpu, average, tmp_path):
    engine = load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)
    started = gpu.launches
    for seed in range(3):
        frame = feeds(seed=seed)
        np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    assert gpu.launches == started + 3
    assert engine.description == "TensorRT 10.3.0, CUDA:0 Made-up GPU, fp32, 64x48"
    assert (engine.backend, engine.precision) == ("tensorrt", "fp32")


def test_a_network_that_cannot_be_captured_runs_without_a_graph(gpu, average, tmp_path):
    gpu.library.module.capturable = False
    lines = []
    engine = load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path, log=lines.append)
    frame = feeds()
    np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    assert gpu.launches == 0 and any("without a CUDA graph" in line for line in lines)


def test_the_second_start_builds_nothing(gpu, average, tmp_path):
    for _ in range(2):
        load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)
    assert gpu.built == [("average.onnx", Size(64, 48))]


@pytest.mark.parametrize("readable", [True, False], ids=["readable", "a folder instead"])
def test_kernels_that_tensorrt_rtx_compiled_serve_the_next_start(
    gpu, average, tmp_path, monkeypatch, readable
):
    library = Library(gpu.library.module, "TensorRT-RTX")
    monkeypatch.setattr(tensorrt, "import_library", lambda: library)
    cache = tmp_path / "cache"
    load_engine(average, "tensorrt", Size(64, 48), cache_dir=cache)
    (kernels,) = cache.glob("*.kernels")
    assert kernels.read_bytes() == b"compiled kernels"
    if not readable:
        kernels.unlink()
        kernels.mkdir()
    lines = []
    engine = load_engine(average, "tensorrt", Size(64, 48), cache_dir=cache, log=lines.append)
    assert library.module.kernels == [b"", b"compiled kernels" if readable else b""]
    assert any(f"cannot read {kernels.name}" in line for line in lines) is not readable
    frame = feeds()
    np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)


class Timings:
    """A module `tensorrt` whose builder notes the timings that it starts from and adds its own.

    A cache of timings that was written for something else is not taken.
    """

    __version__ = "10.3.0"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0)
    MemoryPoolType = SimpleNamespace(WORKSPACE=0)
    BuilderFlag = SimpleNamespace(TF32=0)
    IProgressMonitor = type("IProgressMonitor", (), {})
    ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1})

    def __init__(self) -> None:
        self.started_from: list[bytes] = []
        self.builds = True

    def Builder(self, logger):
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(num_inputs=0, num_layers=1),
            create_builder_config=self._config,
            build_serialized_network=self._build,
        )

    def OnnxParser(self, network, logger):
        return SimpleNamespace(parse_from_file=lambda path: True)

    def _config(self):
        def accept(timings, ignore_mismatch):
            known = timings.serialize()
            if known and not known.startswith(b"timings"):
                return False
            config.timings = known
            return True

        config = SimpleNamespace(
            timings=b"",
            set_memory_pool_limit=lambda pool, size: None,
            clear_flag=lambda flag: None,
            create_timing_cache=lambda data: SimpleNamespace(serialize=lambda: data),
            set_timing_cache=accept,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: config.timings),
        )
        return config

    def _build(self, network, config):
        self.started_from.append(config.timings)
        if not self.builds:
            return None
        config.timings = (config.timings or b"timings") + b"+"
        return b"engine"


@pytest.fixture
def timings(gpu, average, tmp_path):
    module, lines = Timings(), []
    cache = EngineCache(tmp_path / "cache", lines.append)
    cache.folder.mkdir()

    def start() -> None:
        build(Library(module, "TensorRT"), average, None, cache=cache)

    return SimpleNamespace(module=module, start=start, lines=lines, folder=cache.folder)


def test_a_build_starts_from_the_timings_of_earlier_ones(timings):
    for _ in range(3):
        timings.start()
    assert timings.module.started_from == [b"", b"timings+", b"timings++"]
    (path,) = timings.folder.iterdir()
    assert path.name == "TensorRT_10.3.0-Made-up_GPU.timing"


@pytest.mark.parametrize("damage", ["other", "folder"])
def test_timings_that_cannot_be_used_cost_time_and_not_the_build(timings, damage):
    timings.start()
    (path,) = timings.folder.iterdir()
    path.unlink()
    if damage == "other":
        path.write_bytes(b"of another TensorRT")
    else:
        path.mkdir()
    timings.start()
    assert timings.module.started_from == [b"", b""]
    assert damage == "other" or any("cannot read" in line for line in timings.lines)


def test_a_build_that_fails_keeps_the_timings_of_earlier_ones(timings):
    timings.start()
    timings.module.builds = False
    with pytest.raises(EngineError, match="cannot build average.onnx"):
        timings.start()
    (path,) = timings.folder.iterdir()
    assert path.read_bytes() == b"timings+"


def test_another_model_of_the_same_name_is_built(gpu, tmp_path, average):
    load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)
    write_fusion_onnx(average, "max")
    load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)
    assert len(gpu.built) == 2


def test_a_cached_engine_that_does_not_load_is_rebuilt(gpu, average, tmp_path, monkeypatch):
    good = tensorrt.build
    monkeypatch.setattr(
        tensorrt, "build", lambda *a, **k: tensorrt.Build(b"of another driver", 1, 0.0)
    )
    with pytest.raises(EngineError, match="TensorRT 10.3.0 cannot load the engine: not an engine"):
        load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)
    monkeypatch.setattr(tensorrt, "build", good)
    load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)
    assert gpu.built == [("average.onnx", Size(64, 48))]


def test_a_new_size_is_built_and_the_least_recent_one_is_freed(gpu, average, tmp_path):
    engine = load_engine(average, "tensorrt", cache_dir=tmp_path)
    assert gpu.built == []
    sizes = [Size(64, 32 + 8 * i) for i in range(6)]
    for size in (*sizes, sizes[-1]):
        frame = feeds(*size.shape)
        np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    assert [size for _, size in gpu.built] == sizes
    assert len(gpu.memory) == 4 * tensorrt.KEPT_SIZES  # inputs and outputs, on both ends
    engine.close()
    assert not gpu.memory


def test_the_fuser_writes_straight_into_pinned_memory(gpu, average, tmp_path, monkeypatch):
    engine = load_engine(average, "tensorrt", cache_dir=tmp_path)
    fuser = Fuser(engine, convert_on_gpu=False)
    thermal, visible = pair(61, 43)
    expected = fuser.fuse(thermal, visible)
    monkeypatch.setattr(np, "copyto", lambda *arrays: pytest.fail("an input was copied"))
    assert (fuser.fuse(thermal, visible) == expected).all()
    engine.close()
    assert len(gpu.memory) == 1, "the arrays that the fuser holds stay valid"
    del fuser
    assert not gpu.memory


@pytest.fixture
def half(average) -> Path:
    average.with_name("average.fp16.onnx").write_bytes(average.read_bytes() + b"\x7a\x00")
    return average


def test_a_float16_model_close_to_float32_runs(gpu, half, tmp_path):
    gpu.offset = 1 / 255
    engine = load_engine(half, "tensorrt", Size(64, 48), "fp16", cache_dir=tmp_path)
    assert engine.precision == "fp16"
    assert gpu.built == [("average.fp16.onnx", Size(64, 48))]


@pytest.mark.parametrize(("offset", "said"), [(3 / 255, "3.0/255"), (np.nan, "nan/255")])
def test_a_float16_model_far_from_float32_is_replaced_by_it_at_each_start(
    gpu, half, tmp_path, offset, said
):
    gpu.offset = offset
    lines = []
    for _ in range(2):
        engine = load_engine(
            half, "tensorrt", Size(64, 48), "fp16", cache_dir=tmp_path, log=lines.append
        )
        frame = feeds()
        np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
        assert engine.precision == "fp32" and "fp32" in engine.description
    assert gpu.built == [("average.fp16.onnx", Size(64, 48)), ("average.onnx", Size(64, 48))]
    assert sum(f"differs from float32 by {said}" in line for line in lines) == 2


@pytest.fixture
def turing(gpu, monkeypatch):
    """Simulate a GPU for which float32 models cannot be built."""

    def build(library, onnx, size, **settings):
        if "fp16" not in onnx.name:
            gpu.built.append((onnx.name, size))
            raise EngineError("FP32 GEMM is not supported")
        return gpu.build(library, onnx, size, **settings)

    monkeypatch.setattr(tensorrt, "build", build)
    return gpu


def test_a_float32_model_that_cannot_be_built_is_replaced_by_float16(turing, half, tmp_path):
    lines = []
    engine = load_engine(half, "tensorrt", Size(64, 48), cache_dir=tmp_path, log=lines.append)
    assert engine.precision == "fp16"
    assert lines.count("tensorrt fp32 not used: FP32 GEMM is not supported") == 1
    frame = feeds()
    np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    fuser = Fuser(load_engine(half, "tensorrt", cache_dir=tmp_path))
    fuser.warmup((64, 48))
    assert fuser.engine.precision == "fp16" and fuser.converts_on_gpu


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_error_is_raised_if_neither_precision_runs(turing, half, tmp_path, precision):
    turing.offset = 1.0
    with pytest.raises(EngineError, match="FP32 GEMM"):
        load_engine(half, "tensorrt", Size(64, 48), precision, cache_dir=tmp_path)


def test_a_float32_model_without_a_float16_form_is_an_error(turing, average, tmp_path):
    with pytest.raises(EngineError, match="FP32 GEMM"):
        load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)


def test_a_model_that_cannot_be_built_is_not_built_again_for_each_frame(turing, average, tmp_path):
    fuser = Fuser(load_engine(average, "tensorrt", cache_dir=tmp_path))
    errors = set()
    for _ in range(3):
        with pytest.raises(EngineError, match="FP32 GEMM") as raised:
            fuser.fuse(*pair())
        errors.add(raised.value)
    assert len(errors) == 3, "an error that is raised again keeps what each frame held"
    assert len(turing.built) == 2, "in the form that converts images and without"
    with pytest.raises(EngineError):
        fuser.fuse(*pair(80, 48))
    assert len(turing.built) == 4


def test_an_engine_that_does_not_load_is_not_built_again_for_each_frame(
    gpu, average, tmp_path, monkeypatch
):
    def build(library, onnx, size, **settings):
        gpu.built.append((onnx.name, size))
        return tensorrt.Build(b"of another driver", 1, 0.0)

    monkeypatch.setattr(tensorrt, "build", build)
    fuser = Fuser(load_engine(average, "tensorrt", cache_dir=tmp_path))
    for _ in range(3):
        with pytest.raises(EngineError, match="not an engine"):
            fuser.fuse(*pair())
    assert len(gpu.built) == 2


def test_auto_falls_back_to_onnxruntime_if_tensorrt_cannot_build(turing, average, tmp_path):
    lines = []
    fuser = Fuser(load_engine(average, "auto", cache_dir=tmp_path, log=lines.append))
    assert fuser.engine.backend == "tensorrt"
    for seed in range(2):
        thermal, visible = pair(seed=seed)
        expected = Fuser(load_engine(average, "onnxruntime_cpu")).fuse(thermal, visible)
        assert (fuser.fuse(thermal, visible) == expected).all()
    assert (fuser.engine.backend, fuser.engine.device) == ("onnxruntime", "CPU")
    assert lines.count("tensorrt fp32 not used: FP32 GEMM is not supported") == 1
    engine = load_engine(average, "auto", cache_dir=tmp_path)
    frame = feeds()
    np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    assert engine.backend == "onnxruntime"


def test_feeds_that_do_not_fit_keep_tensorrt(gpu, average, tmp_path):
    engine = load_engine(average, "auto", cache_dir=tmp_path)
    with pytest.raises(EngineError, match="no feed for input 'vi'"):
        engine.run({"ir": feeds()["ir"]})
    assert engine.backend == "tensorrt"
    frame = feeds()
    np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    assert engine.backend == "tensorrt" and "TensorRT 10.3.0" in engine.description


def test_a_gpu_that_is_out_of_memory_keeps_the_cached_engine(gpu, average, tmp_path, monkeypatch):
    load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)
    monkeypatch.setattr(gpu, "cudaMalloc", lambda size: (Status.cudaErrorMemoryAllocation,))
    gpu.cudaMalloc.__name__ = "cudaMalloc"
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
        load_engine(average, "tensorrt", Size(64, 48), cache_dir=tmp_path)
    assert len(gpu.built) == 1


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused(gpu, rtx, average, monkeypatch):
    monkeypatch.setattr(tensorrt, "import_library", lambda: rtx)
    monkeypatch.setattr(cuda, "compute_capability", lambda: "9.0")
    with pytest.raises(EngineError, match="does not run on Made-up GPU .*9.0"):
        TensorRTEngine(average)


def test_without_tensorrt_the_error_says_how_to_get_it(gpu, average, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "driver", lambda: object())
    monkeypatch.setattr(tensorrt, "MODULES", ("tensorrt_that_is_not_there",))
    tensorrt.import_library.cache_clear()
    with pytest.raises(EngineError, match="pip install"):
        load_engine(average, "tensorrt")


@pytest.mark.parametrize(("processing_size", "size"), [("0", Size(64, 48)), ("40", Size(40, 32))])
def test_build_engine_keeps_the_engine_that_the_node_will_run(
    gpu, average, tmp_path, capsys, processing_size, size
):
    options = ["--width", "64", "--height", "48", "--processing-size", processing_size]
    for _ in range(2):
        assert main(["build_engine", str(average), *options, "--cache-dir", str(tmp_path)]) == 0
        assert f"average.onnx: ready, TensorRT 10.3.0, CUDA:0 Made-up GPU, fp32, {size}" in (
            capsys.readouterr().out
        )
    assert gpu.built == [("average.onnx", size)]


def test_build_engine_fails_without_a_gpu(average, capsys, monkeypatch):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    assert main(["build_engine", str(average)]) == 1
    assert "no NVIDIA GPU with a driver was found" in capsys.readouterr().err


def test_build_engine_refuses_a_model_that_does_not_exist_before_it_builds(gpu, average, capsys):
    assert main(["build_engine", str(average), "nope"]) == 2
    assert "unknown method 'nope': choose one of baffm" in capsys.readouterr().err
    assert not gpu.built


@pytest.mark.gpu
def test_a_real_gpu_gives_what_onnxruntime_gives(tmp_path):
    for onnx in [*MODELS, write_fusion_onnx(tmp_path / "slow.onnx", "slow")]:
        engine = load_engine(onnx, "tensorrt", Size(128, 96), cache_dir=tmp_path)
        reference = load_engine(onnx, "onnxruntime_cpu")
        limit = 2 / 255 if "fp16" in onnx.name else 1e-3
        for seed in range(3):
            frame = feeds(96, 128, seed)
            error = np.abs(engine.run(frame)["fused"] - reference.run(frame)["fused"]).mean()
            assert error < limit, (onnx.name, seed)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime_cuda"])
def test_a_real_gpu_fuses_images_as_the_cpu_does(tmp_path, backend):
    thermal, visible = pair(123, 77)
    for onnx in MODELS:
        fuser = Fuser(load_engine(onnx, backend, cache_dir=tmp_path))
        expected = Fuser(load_engine(onnx, "onnxruntime_cpu")).fuse(thermal, visible)
        for _ in range(2):
            error = np.abs(fuser.fuse(thermal, visible).astype(int) - expected)
        assert fuser.converts_on_gpu, "the CPU converted the images"
        assert error.mean() < 2, onnx.name
