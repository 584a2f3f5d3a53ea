# SPDX-License-Identifier: AGPL-3.0-only
"""CUDA as the engines need it: which GPU there is, pinned memory, a stream, a captured graph."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from fusion_ros.inference.engine import EngineError, UnavailableError

_TRACES = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release", "/dev/nvmap")
"""Files of NVIDIA's driver and of a Jetson: there is a GPU, even if CUDA does not find it."""


@cache
def driver() -> ctypes.CDLL | None:
    """Return the initialised CUDA driver library, or None if it or a GPU is missing."""
    # By ctypes, because `auto` asks on machines without any CUDA package too.
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    return library


def gpu_is_present() -> bool:
    """Whether this machine has an NVIDIA GPU, usable or not."""
    return driver() is not None or any(Path(path).exists() for path in _TRACES)


def driver_major() -> int | None:
    """Return the newest CUDA release that the driver runs, such as 12; None without a driver."""
    version = ctypes.c_int()
    library = driver()
    if library is None or library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000


def device_name() -> str:
    """Name of the first GPU, such as 'NVIDIA GeForce RTX 4090'; empty without one."""
    name = ctypes.create_string_buffer(256)
    library = driver()
    if library is None or library.cuDeviceGetName(name, len(name), 0):
        return ""
    return name.value.decode()


def compute_capability() -> str:
    """Compute capability of the first GPU, such as '8.9'; empty without one."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library = driver()
    if library is None:
        return ""
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    for value, attribute in ((major, 75), (minor, 76)):
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
    return f"{major.value}.{minor.value}"


def runtime():
    """Import the CUDA runtime's Python module.

    Raises UnavailableError with the command that installs it.
    """
    try:
        from cuda.bindings import runtime as module
    except ImportError as error:
        raise UnavailableError(
            "TensorRT needs the Python package cuda-bindings to move images to the GPU, and it is "
            f"missing: `pip install 'cuda-bindings=={driver_major() or 12}.*'`"
        ) from error
    return module


def call(function: Callable, *arguments):
    """Call a function of `runtime()` and return its result; an error code raises EngineError."""
    status, *results = function(*arguments)
    if int(status):
        raise EngineError(
            f"CUDA: {function.__name__} failed with {status.name}; if it names the driver, "
            "install the cuda-bindings of the CUDA version that `nvidia-smi` shows"
        )
    return results[0] if results else None


class PinnedBlock:
    """Arrays in one piece of host memory that the GPU copies directly, and their device twin.

    hosts: the arrays by name, each valid for as long as anything refers to it; devices: addresses
    on the GPU by name, valid for as long as this object lives.
    """

    _ALIGNMENT = 256
    """Of the addresses that TensorRT takes, in bytes."""

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
        """Copy all arrays to the GPU at once."""
        self._copy(self._device, self._host, self._nbytes, "cudaMemcpyHostToDevice", stream)

    def download(self, stream) -> None:
        """Copy all arrays from the GPU at once."""
        self._copy(self._host, self._device, self._nbytes, "cudaMemcpyDeviceToHost", stream)

    def take(self, name: str, source: int, stream) -> None:
        """Copy one array from another place on the GPU."""
        kind = "cudaMemcpyDeviceToDevice"
        self._copy(self.devices[name], source, self._sizes[name], kind, stream)

    def _copy(self, target: int, source: int, size: int, kind: str, stream) -> None:
        kind = getattr(self._cuda.cudaMemcpyKind, kind)
        call(self._cuda.cudaMemcpyAsync, target, source, size, kind, stream)


class Stream:
    """A CUDA stream, and the graph captured from the work that it repeats."""

    def __init__(self) -> None:
        cuda = self._cuda = runtime()
        self.handle = call(cuda.cudaStreamCreateWithFlags, cuda.cudaStreamNonBlocking)
        weakref.finalize(self, cuda.cudaStreamDestroy, self.handle)
        self._graph = None

    def synchronize(self) -> None:
        call(self._cuda.cudaStreamSynchronize, self.handle)

    def capture(self, enqueue: Callable[[], None]) -> None:
        """Record what `enqueue` puts on the stream as the graph that `replay` launches."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cuda.cudaStreamBeginCapture, self.handle, mode)
        try:
            enqueue()
        except EngineError:
            cuda.cudaStreamEndCapture(self.handle)  # otherwise the stream stays unusable
            raise
        graph = call(cuda.cudaStreamEndCapture, self.handle)
        self._graph = call(cuda.cudaGraphInstantiate, graph, 0)
        cuda.cudaGraphDestroy(graph)
        weakref.finalize(self, cuda.cudaGraphExecDestroy, self._graph)

    def replay(self) -> None:
        call(self._cuda.cudaGraphLaunch, self._graph, self.handle)
