# SPDX-License-Identifier: AGPL-3.0-only
"""The interface of every inference engine, and the choice of one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

Log = Callable[[str], None]
Size = tuple[int, int]
"""Height and width in pixels."""
Rewrite = Callable[["ModelProto"], "ModelProto"]

BACKENDS = ("auto", "tensorrt", "onnxruntime", "onnxruntime_cuda", "onnxruntime_cpu", "null")
PRECISIONS = ("fp32", "fp16")


class EngineError(RuntimeError):
    """A model that cannot be loaded or run; the message says what is missing and what to do."""


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in GPU memory, at `address` until the engine that owns it runs again."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype


Feeds = Mapping[str, "np.ndarray | DeviceArray"]
"""Input name -> array of the input's shape and dtype; on the GPU only where `reads_device`."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (None where a dimension is free) and dtype of an input or output."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class ModelSpec:
    """What an ONNX file says of itself: its tensors and its `metadata_props`."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


class Engine(ABC):
    """One loaded model. Not thread-safe: one thread runs it at a time.

    backend: 'tensorrt', 'onnxruntime' or 'null'; device: 'CPU', 'CUDA:0 <GPU name>' or 'none';
    precision: 'fp32' or 'fp16', of the arithmetic inside, whatever inputs and outputs are.
    All three tell what really runs, not what was asked for. reads_device: whether `run` takes a
    `DeviceArray` for an input.
    """

    backend: str
    device: str
    precision: str
    reads_device = False

    def __init__(self, model: ModelSpec) -> None:
        self.model = model

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.model.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.model.outputs

    @property
    def metadata(self) -> Mapping[str, str]:
        """The ONNX file's `metadata_props`."""
        return self.model.metadata

    @property
    @abstractmethod
    def description(self) -> str:
        """One line on what really runs: library, version, provider or GPU, threads, precision."""

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the model once on `feeds`.

        Returns output name -> array. The arrays are the engine's own buffers: they hold until
        the next `run`. Raises EngineError for feeds that do not fit, naming the tensor.
        """

    def buffers(self, height: int, width: int) -> dict[str, np.ndarray]:
        """Arrays to fill and feed for inputs whose free dimensions are `height` and `width`.

        `run` takes any arrays, but copies these the least: for TensorRT they are pinned memory.
        Raises EngineError where an engine for this size cannot be built.
        """
        return {
            spec.name: np.zeros(
                [1 if n is None else n for n in spec.shape[:-2]]
                + [free if n is None else n for n, free in zip(spec.shape[-2:], (height, width))],
                spec.dtype,
            )
            for spec in self.inputs
        }

    def on_device(self, output: str) -> DeviceArray | None:
        """Where the GPU still has an output of the latest run; None if it has not."""
        return None

    def rewritten(self, rewrite: Rewrite, size: Size) -> Engine | None:
        """The same kind of engine of a model that `rewrite` made of this one's.

        For what pays on a GPU, such as conversion of images in the network's graph: None, with a
        line in the log, where it cannot be had, and always for engines on the CPU.
        size: (H, W) of what the rewritten model takes; it leaves no dimension free.
        """
        return None

    def close(self) -> None:
        """Free what the engine holds; it cannot run afterwards."""

    def check(self, feeds: Feeds) -> dict[str, np.ndarray | DeviceArray]:
        """The feeds as C-contiguous arrays (copied only if they are not).

        Raises EngineError where a name, shape or dtype is not the model's.
        """
        checked = {}
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None:
                names = ", ".join(s.name for s in self.inputs)
                raise EngineError(f"no feed for input '{spec.name}': the model takes {names}")
            fits = len(array.shape) == len(spec.shape) and all(
                want is None or want == have for want, have in zip(spec.shape, array.shape)
            )
            if not fits or array.dtype != spec.dtype:
                shape = "x".join("?" if n is None else str(n) for n in spec.shape)
                given = "x".join(map(str, array.shape))
                raise EngineError(
                    f"input '{spec.name}' takes {spec.dtype} {shape}, got {array.dtype} {given}"
                )
            on_device = isinstance(array, DeviceArray)
            if on_device and not self.reads_device:
                raise EngineError(f"input '{spec.name}' is on the GPU: {self.backend} wants a copy")
            checked[spec.name] = array if on_device else np.ascontiguousarray(array)
        return checked


def fp16_sibling(onnx: Path) -> Path:
    """`<model>.fp16.onnx`, where the export puts the mixed-precision form of `<model>.onnx`."""
    return onnx.with_name(f"{fp32_sibling(onnx).stem}.fp16.onnx")


def fp32_sibling(onnx: Path) -> Path:
    """`<model>.onnx` of `<model>.fp16.onnx`; other paths come back as they are."""
    return onnx.with_name(onnx.name.replace(".fp16.onnx", ".onnx"))


def is_fp16(onnx: Path) -> bool:
    return onnx.name.endswith(".fp16.onnx")


def load_engine(
    onnx: Path | str,
    backend: str = "auto",
    shape: tuple[int, int] | None = None,
    precision: str = "fp32",
    *,
    threads: int = 0,
    cache_dir: Path | None = None,
    log: Log = lambda message: None,
) -> Engine:
    """Load `onnx` into the engine that `backend` names.

    `auto` tries TensorRT, then onnxruntime on CUDA, then on the CPU, and logs why one was passed
    over; `onnxruntime` is the latter two. Any other name means that backend and nothing else.
    `null` computes nothing: for measuring everything around the network.

    shape: (height, width) that free dimensions will have, so that TensorRT can build at once;
        without it TensorRT builds on the first run. Other shapes still run, after a build.
    precision: 'fp16' runs `<model>.fp16.onnx` beside `onnx`. Under `auto` and `onnxruntime` the
        CPU runs the float32 model instead, since it has no float16 arithmetic to gain from.
    threads: of the CPU provider; 0 means one for each core that this process may use.
    cache_dir: of built TensorRT engines, default `~/.cache/fusion_ros`.
    log: called with one line for each thing a user should know.

    Raises EngineError naming what is missing and how to get it, ValueError for unknown names.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend '{backend}': choose one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision '{precision}': choose one of {', '.join(PRECISIONS)}")
    path = Path(onnx).expanduser()
    if precision == "fp16":
        path = fp16_sibling(path)
    if not path.is_file():
        raise EngineError(f"no ONNX file {path}: give the path of an exported model")

    # The backends are imported here because they import this module, and TensorRT is optional.
    def tensorrt() -> Engine:
        from fusion_ros.inference.tensorrt import TensorRTEngine

        return TensorRTEngine(path, shape, cache_dir=cache_dir, log=log)

    def onnxruntime_cuda() -> Engine:
        from fusion_ros.inference.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(path, "CUDA", log=log)

    def onnxruntime_cpu() -> Engine:
        from fusion_ros.inference.onnxruntime import OnnxRuntimeEngine

        chosen = path
        if backend != "onnxruntime_cpu" and is_fp16(path) and fp32_sibling(path).is_file():
            chosen = fp32_sibling(path)
            log(f"the CPU gains nothing from {path.name}: running {chosen.name}")
        return OnnxRuntimeEngine(chosen, "CPU", threads)

    def null() -> Engine:
        from fusion_ros.inference.null import NullEngine

        return NullEngine(path)

    order: tuple[Callable[[], Engine], ...] = {
        "auto": (tensorrt, onnxruntime_cuda, onnxruntime_cpu),
        "tensorrt": (tensorrt,),
        "onnxruntime": (onnxruntime_cuda, onnxruntime_cpu),
        "onnxruntime_cuda": (onnxruntime_cuda,),
        "onnxruntime_cpu": (onnxruntime_cpu,),
        "null": (null,),
    }[backend]
    return _first_that_loads(order, log)


def _first_that_loads(order: tuple[Callable[[], Engine], ...], log: Log) -> Engine:
    for i, candidate in enumerate(order[:-1]):
        try:
            return _UnlessItFails(candidate(), order[i + 1 :], log)
        except EngineError as error:
            log(f"{candidate.__name__} not used: {error}")
    return order[-1]()


class _UnlessItFails(Engine):
    """An engine, until its first run: if that fails, the next in the `order` takes its place.

    TensorRT finds out what it cannot build only when it is told the size.
    """

    def __init__(self, engine: Engine, order: tuple[Callable[[], Engine], ...], log: Log) -> None:
        super().__init__(engine.model)
        self._engine, self._order, self._log = engine, order, log
        self._proven = False

    backend = property(lambda self: self._engine.backend)
    device = property(lambda self: self._engine.device)
    precision = property(lambda self: self._engine.precision)
    reads_device = property(lambda self: self._engine.reads_device)
    description = property(lambda self: self._engine.description)

    def buffers(self, height: int, width: int) -> dict[str, np.ndarray]:
        return self._try(lambda engine: engine.buffers(height, width))

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        if not self._proven:
            self.check(feeds)  # which is no engine's fault
        results = self._try(lambda engine: engine.run(feeds))
        self._proven = True
        return results

    def on_device(self, output: str) -> DeviceArray | None:
        return self._engine.on_device(output)

    def rewritten(self, rewrite: Rewrite, size: Size) -> Engine | None:
        return self._engine.rewritten(rewrite, size)

    def close(self) -> None:
        self._engine.close()

    def _try(self, work: Callable[[Engine], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        try:
            return work(self._engine)
        except EngineError as error:
            if self._proven or not self._order:
                raise
            self._log(f"{self._engine.backend} not used: {error}")
        failed, self._engine = self._engine, _first_that_loads(self._order, self._log)
        self._order = ()  # what took its place has its own
        failed.close()
        return work(self._engine)
