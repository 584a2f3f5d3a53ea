"""TensorRT: every shipped model builds, without a GPU; what runs on one, against a made-up GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import pair, write_fusion_onnx

from fusion_models import WEIGHTS_DIR
from fusion_ros.fuser import Fuser
from fusion_ros.inference import EngineError, cuda, load_engine, tensorrt
from fusion_ros.inference import build as build_engine
from fusion_ros.inference.tensorrt import Library, TensorRTEngine

MODELS = sorted(WEIGHTS_DIR.glob("*.onnx"))
TARGETS = ("7.5", "8.9", "12.0")


@pytest.fixture(scope="module")
def rtx() -> Library:
    return Library(pytest.importorskip("tensorrt_rtx_bindings"), "TensorRT-RTX")


@pytest.fixture
def average(tmp_path) -> Path:
    return write_fusion_onnx(tmp_path / "average.onnx")


# Building, for real and without a GPU


def lacks_float32_products(path: Path) -> bool:
    """Whether a model needs what TensorRT-RTX does not have for Turing: float32 matrix products.

    There the FP16 model serves, which must build.
    """
    operators = {node.op_type for node in pytest.importorskip("onnx").load(path).graph.node}
    return "MatMul" in operators and not path.name.endswith(".fp16.onnx")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("onnx", MODELS, ids=lambda path: path.name)
def test_every_shipped_model_builds_for_rtx_gpus(rtx, onnx, target):
    if target == "7.5" and lacks_float32_products(onnx):
        with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
            tensorrt.build(rtx, onnx, (480, 640), target=target)
        return
    built = tensorrt.build(rtx, onnx, (480, 640), target=target)
    assert built.layers > 0 and len(built.data) > 1000


@pytest.mark.parametrize("target", TARGETS)
def test_the_detector_builds_for_rtx_gpus(rtx, shared_data, target):
    onnx = shared_data / "weights/yolov8n_coco.onnx"
    if not onnx.is_file():
        pytest.skip(f"needs the detector {onnx}")
    built = tensorrt.build(rtx, onnx, None, target=target)
    assert built.layers > 100 and len(built.data) > 1_000_000


def test_a_model_with_an_unknown_operator_is_refused_with_its_name(rtx, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(write_fusion_onnx(tmp_path / "odd.onnx"))
    model.graph.node[0].op_type = "Compress"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(EngineError, match="cannot parse .*odd.onnx: .*Compress"):
        tensorrt.build(rtx, tmp_path / "odd.onnx", (480, 640), target="8.9")


def test_free_sizes_and_unknown_gpus_are_told(rtx, average):
    with pytest.raises(EngineError, match=r"say for which \(H, W\)"):
        tensorrt.build(rtx, average, None, target="8.9")
    with pytest.raises(EngineError, match="cannot build for compute capability 9.0: .*8.9"):
        tensorrt.build(rtx, average, (480, 640), target="9.0")


def test_a_long_build_reports_its_progress(rtx, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "PROGRESS_SECONDS", 0.001)
    lines = []
    onnx = write_fusion_onnx(tmp_path / "slow.onnx", "slow", layers=30)
    tensorrt.build(rtx, onnx, (480, 640), target="8.9", log=lines.append)
    assert lines and lines[-1].startswith("building slow.onnx for TensorRT, 0 s so far: ")
    assert any("step" in line for line in lines)


def test_build_engine_proves_a_model_on_the_command_line(rtx, average, capsys):
    arguments = [str(average), "--width", "333", "--height", "251", "--target"]
    assert build_engine.main([*arguments, "8.9"]) == 0
    assert capsys.readouterr().out.startswith("average.onnx: builds for 8.9, ")
    assert build_engine.main([*arguments, "3.0"]) == 1
    assert "choose one of 7.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "filled"),
    [
        ((-1, 1, -1, -1), (1, 1, 480, 640)),
        ((1, 3, 640, 640), (1, 3, 640, 640)),
        ((1, 1, 96, -1), (1, 1, 96, 640)),
    ],
)
def test_free_dimensions_take_the_size(shape, filled):
    assert tensorrt.static_shape(shape, (480, 640)) == filled


# Running, against a GPU that is plain memory: a "device address" is a host address, and work put
# on the stream while it is captured is done by each launch of the graph.


class FakeCuda:
    """As much of cuda.bindings.runtime as the engine calls."""

    cudaHostAllocDefault, cudaStreamNonBlocking = 0, 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        self.memory: dict[int, ctypes.Array] = {}
        self.capturing: list | None = None
        self.queue: list = []
        self.launches = 0

    def cudaGetDeviceCount(self):
        return 0, 1

    def enqueue(self, work):
        (self.queue if self.capturing is None else self.capturing).append(work)
        return (0,)

    def cudaMalloc(self, size):
        block = (ctypes.c_byte * size)()
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaHostAlloc(self, size, flags):
        return self.cudaMalloc(size)

    def cudaFree(self, address):
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert target in self.memory and source in self.memory
        return self.enqueue(lambda: ctypes.memmove(target, source, size))

    def cudaStreamCreateWithFlags(self, flags):
        return 0, 7

    def cudaStreamDestroy(self, stream):
        return (0,)

    def cudaStreamSynchronize(self, stream):
        assert stream == 7 and self.capturing is None
        for work in self.queue:
            work()
        self.queue = []
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        graph, self.capturing = self.capturing, None
        return 0, graph

    def cudaGraphInstantiate(self, graph, flags):
        return 0, list(graph)

    def cudaGraphDestroy(self, graph):
        return (0,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        self.queue += graph
        return (0,)


class FakeTensorRT:
    """A TensorRT whose engines, 'HxW+offset', give the average of `ir` and `vi` plus an offset."""

    __version__ = "10.3.0"

    def __init__(self, gpu: FakeCuda):
        self.gpu = gpu
        self.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1})
        self.capturable = True

    def Runtime(self, logger):
        def deserialize_cuda_engine(data):
            if not data.startswith(b"fake "):
                logger.log(1, "not an engine")
                return None
            size, offset = data[5:].split(b"+")
            shape = (1, 1, *map(int, size.split(b"x")))
            return SimpleNamespace(
                get_tensor_shape=lambda name: shape,
                create_execution_context=lambda: FakeContext(self, shape, float(offset)),
            )

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)


class FakeContext:
    def __init__(self, trt, shape, offset):
        self.trt, self.shape, self.offset, self.addresses = trt, shape, offset, {}

    def set_tensor_address(self, name, address):
        assert address in self.trt.gpu.memory
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        if self.trt.gpu.capturing is not None and not self.trt.capturable:
            return False

        def tensor(name):
            block = (ctypes.c_float * int(np.prod(self.shape))).from_address(self.addresses[name])
            return np.frombuffer(block, np.float32)

        def work():
            tensor("fused")[:] = (tensor("ir") + tensor("vi")) / 2 + self.offset

        self.trt.gpu.enqueue(work)
        return True


@pytest.fixture
def gpu(monkeypatch):
    """A GPU and a TensorRT that are not there; `offset` is what FP16 engines are wrong by."""
    device = FakeCuda()
    device.offset, device.built = 0.0, []
    library = Library(FakeTensorRT(device), "TensorRT")

    def build(library, onnx, size, **settings):
        device.built.append((onnx.name, size))
        offset = device.offset if "fp16" in onnx.name else 0
        return tensorrt.Build(b"fake %dx%d+%f" % (*size, offset), layers=3, seconds=0.1)

    monkeypatch.setattr(cuda, "driver", lambda: device)
    monkeypatch.setattr(cuda, "runtime", lambda: device)
    monkeypatch.setattr(cuda, "device_name", lambda: "Made-up GPU")
    monkeypatch.setattr(cuda, "compute_capability", lambda: "8.7")
    monkeypatch.setattr(tensorrt, "import_library", lambda: library)
    monkeypatch.setattr(tensorrt, "build", build)
    device.library = library
    return device


def feeds(height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random((1, 1, height, width), np.float32) for name in ("ir", "vi")}


def mean(pair):
    return (pair["ir"] + pair["vi"]) / 2


def test_frames_go_through_one_captured_graph(gpu, average, tmp_path):
    engine = load_engine(average, "tensorrt", (48, 64), cache_dir=tmp_path)
    for seed in range(3):
        frame = feeds(seed=seed)
        np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    assert gpu.launches == 3
    assert engine.description == "TensorRT 10.3.0, CUDA:0 Made-up GPU, fp32, 64x48"
    assert (engine.backend, engine.precision) == ("tensorrt", "fp32")


def test_a_network_that_cannot_be_captured_runs_without_a_graph(gpu, average, tmp_path):
    gpu.library.module.capturable = False
    lines = []
    engine = load_engine(average, "tensorrt", (48, 64), cache_dir=tmp_path, log=lines.append)
    frame = feeds()
    np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    assert gpu.launches == 0 and any("without a CUDA graph" in line for line in lines)


def test_the_second_start_builds_nothing(gpu, average, tmp_path):
    for _ in range(2):
        load_engine(average, "tensorrt", (48, 64), cache_dir=tmp_path)
    assert gpu.built == [("average.onnx", (48, 64))]


def test_another_model_of_the_same_name_is_built(gpu, tmp_path, average):
    load_engine(average, "tensorrt", (48, 64), cache_dir=tmp_path)
    write_fusion_onnx(average, "max")
    load_engine(average, "tensorrt", (48, 64), cache_dir=tmp_path)
    assert len(gpu.built) == 2


def test_a_cached_engine_that_does_not_load_is_rebuilt(gpu, average, tmp_path, monkeypatch):
    good = tensorrt.build
    monkeypatch.setattr(
        tensorrt, "build", lambda *a, **k: tensorrt.Build(b"of another driver", 1, 0.0)
    )
    with pytest.raises(EngineError, match="TensorRT 10.3.0 cannot load the engine: not an engine"):
        load_engine(average, "tensorrt", (48, 64), cache_dir=tmp_path)
    monkeypatch.setattr(tensorrt, "build", good)
    load_engine(average, "tensorrt", (48, 64), cache_dir=tmp_path)
    assert gpu.built == [("average.onnx", (48, 64))]


def test_a_new_size_is_built_when_it_comes_and_the_oldest_is_let_go(gpu, average, tmp_path):
    engine = load_engine(average, "tensorrt", cache_dir=tmp_path)
    assert gpu.built == []
    sizes = [(32 + 8 * i, 64) for i in range(6)]
    for size in (*sizes, sizes[-1]):
        frame = feeds(*size)
        np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
    assert [size for _, size in gpu.built] == sizes
    assert len(gpu.memory) == 6 * tensorrt.KEPT_SIZES  # three tensors, on both ends
    engine.close()
    assert not gpu.memory


def test_the_fuser_writes_straight_into_pinned_memory(gpu, average, tmp_path, monkeypatch):
    engine = load_engine(average, "tensorrt", cache_dir=tmp_path)
    fuser = Fuser(engine)
    thermal, visible = pair(61, 43)
    expected = fuser.fuse(thermal, visible)
    monkeypatch.setattr(np, "copyto", lambda *arrays: pytest.fail("an input was copied"))
    assert (fuser.fuse(thermal, visible) == expected).all()
    engine.close()
    assert len(gpu.memory) == 2, "what the fuser still holds stays valid"
    del fuser
    assert not gpu.memory


@pytest.fixture
def half(average) -> Path:
    average.with_name("average.fp16.onnx").write_bytes(average.read_bytes() + b"\x7a\x00")
    return average


def test_fp16_that_is_close_to_float32_is_used(gpu, half, tmp_path):
    gpu.offset = 1 / 255
    engine = load_engine(half, "tensorrt", (48, 64), "fp16", cache_dir=tmp_path)
    assert engine.precision == "fp16"
    assert gpu.built == [("average.fp16.onnx", (48, 64))]


@pytest.mark.parametrize(("offset", "said"), [(3 / 255, "3.0/255"), (np.nan, "nan/255")])
def test_fp16_that_is_far_from_float32_gives_way_to_it_for_good(
    gpu, half, tmp_path, offset, said
):
    gpu.offset = offset
    lines = []
    for _ in range(2):
        engine = load_engine(
            half, "tensorrt", (48, 64), "fp16", cache_dir=tmp_path, log=lines.append
        )
        frame = feeds()
        np.testing.assert_allclose(engine.run(frame)["fused"], mean(frame), atol=1e-6)
        assert engine.precision == "fp32" and "fp32" in engine.description
    assert gpu.built == [("average.fp16.onnx", (48, 64)), ("average.onnx", (48, 64))]
    assert sum(f"differs from float32 by {said}" in line for line in lines) == 2


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_told(gpu, rtx, average, monkeypatch):
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


@pytest.mark.gpu
def test_a_real_gpu_gives_what_onnxruntime_gives(tmp_path):
    for onnx in [*MODELS, write_fusion_onnx(tmp_path / "slow.onnx", "slow")]:
        engine = load_engine(onnx, "tensorrt", (96, 128), cache_dir=tmp_path)
        reference = load_engine(onnx, "onnxruntime_cpu")
        limit = 2 / 255 if "fp16" in onnx.name else 1e-3
        for seed in range(3):
            frame = feeds(96, 128, seed)
            error = np.abs(engine.run(frame)["fused"] - reference.run(frame)["fused"]).mean()
            assert error < limit, (onnx.name, seed)
