# SPDX-License-Identifier: AGPL-3.0-only
"""A simulated GPU: its memory is the host's, and onnxruntime runs its TensorRT engines.

A "device address" is a host address. Work enqueued on the stream during a capture is done by each
launch of the graph. So the code around CUDA is tested on any machine.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime

from fusion_ros.inference.tensorrt import Build, Library
from fusion_ros.size import Size

_KINDS = ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice")
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class MadeUpGpu:
    """The part of cuda.bindings.runtime that the engine calls.

    copied, bytes, latest: number and bytes of copies of each kind, and what the latest one moved.
    built: name and size of each engine built. offset: error of engines of float16 models, whose
    outputs lie in [0, 1].
    """

    cudaHostAllocDefault, cudaStreamNonBlocking = 0, 1
    cudaMemcpyKind = SimpleNamespace(**{kind: kind for kind in _KINDS})
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.memory: dict[int, ctypes.Array] = {}
        self.capturing: list | None = None
        self.queue: list = []
        self.launches = 0
        self.copied, self.bytes = Counter(), Counter()
        self.latest: dict[str, bytes] = {}
        self.offset = 0.0
        self.built: list[tuple[str, Size | None]] = []
        self.library = Library(MadeUpTensorRT(self), "TensorRT")

    def holds(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + len(block)
            for start, block in self.memory.items()
        )

    def enqueue(self, work):
        (self.queue if self.capturing is None else self.capturing).append(work)
        return (0,)

    def build(self, library: Library, onnx: Path, size, **settings) -> Build:
        """Replace fusion_ros.inference.tensorrt.build."""
        self.built.append((onnx.name, size))
        offset = self.offset if "fp16" in onnx.name else 0.0
        head = b"fake %dx%d+%f\n" % (*size.shape, offset)
        return Build(head + onnx.read_bytes(), layers=3, seconds=0.1)

    def cudaGetDeviceCount(self):
        return 0, 1

    def cudaSetDevice(self, number):
        return (number,)  # any number but 0 is an error code

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
        assert self.holds(target, size) and self.holds(source, size)

        def work():
            ctypes.memmove(target, source, size)
            self.copied[kind] += 1
            self.bytes[kind] += size
            self.latest[kind] = ctypes.string_at(target, size)

        return self.enqueue(work)

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


class MadeUpTensorRT:
    """Loads what `MadeUpGpu.build` made.

    capturable: whether its work can be captured. kernels: those that TensorRT-RTX was given from
    the cache, at each start of an engine.
    """

    __version__ = "10.3.0"

    def __init__(self, gpu: MadeUpGpu) -> None:
        self.gpu = gpu
        self.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1})
        self.capturable = True
        self.kernels: list[bytes] = []

    def Runtime(self, logger):
        def deserialize_cuda_engine(data):
            if not data.startswith(b"fake "):
                logger.log(1, "not an engine")
                return None
            head, _, onnx = data.partition(b"\n")
            size, offset = head[5:].split(b"+")
            return _Engine(self, onnx, tuple(map(int, size.split(b"x"))), float(offset))

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)


class _Engine:
    """An engine of one size, and its own execution context."""

    def __init__(self, trt: MadeUpTensorRT, onnx: bytes, size, offset: float) -> None:
        self._trt, self._offset = trt, offset
        self._session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        free = dict(zip(("height", "width"), size))
        self._inputs = {
            tensor.name: np.zeros([free.get(n, n) for n in tensor.shape], _DTYPES[tensor.type])
            for tensor in self._session.get_inputs()
        }
        outputs = self._session.run(None, self._inputs)
        names = [tensor.name for tensor in self._session.get_outputs()]
        self._outputs = dict(zip(names, outputs))
        self._addresses: dict[str, int] = {}

    def create_execution_context(self, config: SimpleNamespace | None = None) -> _Engine:
        return self

    def create_runtime_config(self) -> SimpleNamespace:
        self._trt.kernels.append(b"")

        def deserialize(data: bytes) -> None:
            self._trt.kernels[-1] = data

        compiled = SimpleNamespace(deserialize=deserialize, serialize=lambda: b"compiled kernels")
        return SimpleNamespace(
            create_runtime_cache=lambda: compiled, set_runtime_cache=lambda kernels: None
        )

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._inputs | self._outputs)[name].shape

    def set_tensor_address(self, name: str, address: int) -> None:
        assert self._trt.gpu.holds(address, (self._inputs | self._outputs)[name].nbytes)
        start = max(start for start in self._trt.gpu.memory if start <= address)
        assert (address - start) % 256 == 0, "TensorRT wants aligned addresses"
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        if self._trt.gpu.capturing is not None and not self._trt.capturable:
            return False
        self._trt.gpu.enqueue(self._work)
        return True

    def _work(self) -> None:
        feeds = {name: self._at(name, array) for name, array in self._inputs.items()}
        for (name, array), result in zip(self._outputs.items(), self._session.run(None, feeds)):
            if array.dtype == np.uint8:
                result = np.clip(result + 255 * self._offset, 0, 255)
            else:
                result = result + np.float32(self._offset)
            self._at(name, array)[:] = result.astype(array.dtype)

    def _at(self, name: str, like: np.ndarray) -> np.ndarray:
        block = (ctypes.c_byte * like.nbytes).from_address(self._addresses[name])
        return np.frombuffer(block, like.dtype).reshape(like.shape)
