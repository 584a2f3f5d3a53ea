# SPDX-License-Identifier: AGPL-3.0-only
"""CUDA as the engines need it: which GPU there is, pinned memory, a stream, a captured graph."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from fusion_ros.inference.engine import EngineError


@cache
def driver() -> ctypes.CDLL | None:
    """The initialised CUDA driver library, or None where it or a GPU is missing."""
    # By ctypes, so that asking needs no CUDA package: `auto` asks on every machine.
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    return library


def device_name() -> str:
    """Name of the first GPU, such as 'NVIDIA GeForce RTX 4090'; empty without one."""
    name = ctypes.create_string_buffer(256)
    library = driver()
    if library is None or library.cuDeviceGetName(name, len(name), 0):
        return ""
    return name.value.decode()


def compute_capability() -> str:
    """Of the first GPU, such as '8.9'; empty without one."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library = driver()
    if library is None:
        return ""
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    for value, attribute in ((major, 75), (minor, 76)):
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
    return f"{major.value}.{minor.value}"


def runtime():
    """The CUDA runtime's Python module, from cuda-python 12 or 13."""
    try:
        from cuda.bindings import runtime as module
    except ImportError:
        try:
            from cuda import cudart as module  # cuda-python before 12.6
        except ImportError as error:
            raise EngineError(
                "the Python package cuda-bindings is missing, which moves the images to the GPU: "
                "`pip install cuda-bindings` of your driver's CUDA, such as cuda-bindings==12.*"
            ) from error
    return module


def call(function: Callable, *arguments):
    """Call into `runtime()`: its result without the error code, which raises EngineError."""
    status, *results = function(*arguments)
    if int(status):
        raise EngineError(
            f"CUDA: {function.__name__} failed with {status.name}; if the driver is meant, install "
            "the cuda-bindings of its CUDA version, which `nvidia-smi` shows"
        )
    return results[0] if results else None


class PinnedBlock:
    """Arrays in one piece of host memory that the GPU copies directly, and their device twin.

    hosts: the arrays by name, each valid for as long as anything refers to it; devices: addresses
    on the GPU by name, valid for as long as this object lives.
    """

    _ALIGNMENT = 256
    """Of addresses that TensorRT takes."""

    def __init__(self, specs: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        cuda = self._cuda = runtime()
        self._sizes = {
            name: int(np.prod(shape)) * np.dtype(dtype).itemsize
            for name, (shape, dtype) in specs.items()
        }
        steps = [size + -size % self._ALIGNMENT for size in self._sizes.values()]
        offsets = dict(zip(specs, (sum(steps[:i]) for i in range(len(steps)))))
        self._nbytes = sum(steps)
        self._device = call(cuda.cudaMalloc, self._nbytes)
        weakref.finalize(self, cuda.cudaFree, self._device)
        self._host = call(cuda.cudaHostAlloc, self._nbytes, cuda.cudaHostAllocDefault)
        memory = (ctypes.c_byte * self._nbytes).from_address(int(self._host))
        weakref.finalize(memory, cuda.cudaFreeHost, self._host)
        self.hosts = {
            name: np.frombuffer(memory, dtype, int(np.prod(shape)), offsets[name]).reshape(shape)
            for name, (shape, dtype) in specs.items()
        }
        self.devices = {name: int(self._device) + offset for name, offset in offsets.items()}

    def upload(self, stream) -> None:
        """All arrays to the GPU, by one copy."""
        self._copy(self._device, self._host, self._nbytes, "cudaMemcpyHostToDevice", stream)

    def download(self, stream) -> None:
        """All arrays from the GPU, by one copy."""
        self._copy(self._host, self._device, self._nbytes, "cudaMemcpyDeviceToHost", stream)

    def take(self, name: str, source: int, stream) -> None:
        """One array from another place on the GPU."""
        kind = "cudaMemcpyDeviceToDevice"
        self._copy(self.devices[name], source, self._sizes[name], kind, stream)

    def _copy(self, target: int, source: int, size: int, kind: str, stream) -> None:
        kind = getattr(self._cuda.cudaMemcpyKind, kind)
        call(self._cuda.cudaMemcpyAsync, target, source, size, kind, stream)


class Stream:
    """One CUDA stream, and the graph captured from the work that it repeats."""

    def __init__(self) -> None:
        cuda = self._cuda = runtime()
        self.handle = call(cuda.cudaStreamCreateWithFlags, cuda.cudaStreamNonBlocking)
        weakref.finalize(self, cuda.cudaStreamDestroy, self.handle)
        self._graph = None

    def synchronize(self) -> None:
        call(self._cuda.cudaStreamSynchronize, self.handle)

    def capture(self, enqueue: Callable[[], None]) -> None:
        """Record what `enqueue` puts on the stream as a graph that `replay` launches at once."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cuda.cudaStreamBeginCapture, self.handle, mode)
        try:
            enqueue()
        except EngineError:
            cuda.cudaStreamEndCapture(self.handle)  # or the stream stays unusable
            raise
        graph = call(cuda.cudaStreamEndCapture, self.handle)
        self._graph = call(cuda.cudaGraphInstantiate, graph, 0)
        cuda.cudaGraphDestroy(graph)
        weakref.finalize(self, cuda.cudaGraphExecDestroy, self._graph)

    def replay(self) -> None:
        call(self._cuda.cudaGraphLaunch, self._graph, self.handle)
