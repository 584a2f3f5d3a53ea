# SPDX-License-Identifier: AGPL-3.0-only
"""The interface of every inference engine: what a model is, how it is fed, how it fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion_ros.size import Size

if TYPE_CHECKING:
    from onnx import ModelProto

Log = Callable[[str], None]
Rewrite = Callable[["ModelProto"], "ModelProto"]

PRECISIONS = ("fp32", "fp16")
WORKSPACE_MIB = 1024
"""Most GPU memory that one layer of a TensorRT engine may use for itself, in MiB."""


class EngineError(RuntimeError):
    """A model cannot be loaded or run; the message says what is missing and what to do."""


class UnavailableError(EngineError):
    """A backend cannot run any model on this machine."""


class FeedError(EngineError):
    """The arrays given to `Engine.run` are not what the model takes."""


@dataclass(frozen=True)
class Form:
    """Another form of a model, made by `rewrite`, with inputs of `size` and no free dimension.

    `rewrite` takes and returns an `onnx.ModelProto` and raises EngineError if it cannot.
    """

    size: Size
    rewrite: Rewrite


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in GPU memory, at `address` until the engine that owns it runs again."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype


Feeds = Mapping[str, "np.ndarray | DeviceArray"]
"""Input name -> array of the input's shape and dtype; a DeviceArray only where `reads_device`."""


def fill_shape(shape: Sequence[int | None], size: Size) -> tuple[int, ...]:
    """Fill free dimensions (None or -1) of a shape: the last two from `size`, others with 1."""
    fill = (1,) * (len(shape) - 2) + size.shape
    return tuple(have if want in (None, -1) else want for want, have in zip(shape, fill))


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (None where a dimension is free) and dtype of an input or output."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype

    def filled(self, size: Size) -> tuple[int, ...]:
        """Return the shape without free dimensions, see `fill_shape`."""
        return fill_shape(self.shape, size)


@dataclass(frozen=True)
class ModelSpec:
    """Tensors and `metadata_props` of an ONNX file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


class Engine(ABC):
    """One loaded model. Not thread-safe: one thread runs it at a time.

    backend: 'tensorrt', 'onnxruntime' or 'null'; device: 'CPU', 'CUDA:0 <GPU name>' or 'none';
    precision: 'fp32' or 'fp16', of the arithmetic inside, not of the inputs and outputs.
    All three name what runs, not what was asked for. reads_device: whether `run` takes a
    `DeviceArray` as an input. passed_over, gpu_unused: what would be better and why it does not
    run, see `Selection`; empty for an engine that was not selected.
    """

    backend: str
    device: str
    precision: str
    reads_device = False
    passed_over: Sequence[object] = ()
    gpu_unused = ""

    def __init__(self, model: ModelSpec) -> None:
        self.model = model

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self.model.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self.model.outputs

    @property
    def metadata(self) -> Mapping[str, str]:
        """The ONNX file's `metadata_props`."""
        return self.model.metadata

    @property
    @abstractmethod
    def description(self) -> str:
        """One line on what runs: library, version, provider or GPU, threads, precision."""

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the model once on `feeds`.

        Returns output name -> array. The arrays are the engine's own buffers, valid until the
        next `run`. Raises FeedError naming the tensor for feeds that do not fit, EngineError if
        the model fails.
        """

    def buffers(self, size: Size, form: Form | None = None) -> dict[str, np.ndarray]:
        """Make ready for inputs of `size`; return the arrays to fill and to pass to `run`.

        `run` takes any arrays, but copies these the least: for TensorRT they are pinned memory.
        `size` fills the inputs' free dimensions. form: another form of the model that may be run
        instead; only a `Selection` does so, and then returns the inputs of that form.
        Raises EngineError if no engine can be made for this size.
        """
        return {spec.name: np.zeros(spec.filled(size), spec.dtype) for spec in self.inputs}

    def trial(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the unchanged model once on `feeds`, as a check; return its outputs.

        The arrays belong to the caller. Raises what `run` raises.
        """
        return {name: array.copy() for name, array in self.run(feeds).items()}

    def on_device(self, output: str) -> DeviceArray | None:
        """Place of an output of the latest run in GPU memory; None if it is not there."""
        return None

    def close(self) -> None:  # noqa: B027
        """Free what the engine holds; it cannot run afterwards."""

    def check(self, feeds: Feeds) -> dict[str, np.ndarray | DeviceArray]:
        """Return the feeds as C-contiguous arrays (copied only if they are not).

        Raises FeedError where a name, shape or dtype is not the model's.
        """
        checked = {}
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is None:
                names = ", ".join(s.name for s in self.inputs)
                raise FeedError(f"no feed for input '{spec.name}': the model takes {names}")
            fits = len(array.shape) == len(spec.shape) and all(
                want is None or want == have for want, have in zip(spec.shape, array.shape)
            )
            if not fits or array.dtype != spec.dtype:
                shape = "x".join("?" if n is None else str(n) for n in spec.shape)
                given = "x".join(map(str, array.shape))
                raise FeedError(
                    f"input '{spec.name}' takes {spec.dtype} {shape}, got {array.dtype} {given}"
                )
            on_device = isinstance(array, DeviceArray)
            if on_device and not self.reads_device:
                raise FeedError(
                    f"input '{spec.name}' is on the GPU, where {self.backend} cannot read it"
                )
            checked[spec.name] = array if on_device else np.ascontiguousarray(array)
        return checked


def fp16_sibling(onnx: Path) -> Path:
    """Return `<model>.fp16.onnx`, the mixed-precision form of `<model>.onnx` beside it."""
    return onnx.with_name(f"{fp32_sibling(onnx).stem}.fp16.onnx")


def fp32_sibling(onnx: Path) -> Path:
    """Return `<model>.onnx` for `<model>.fp16.onnx`, and any other path unchanged."""
    return onnx.with_name(onnx.name.replace(".fp16.onnx", ".onnx"))


def is_fp16(onnx: Path) -> bool:
    """Whether a file is the mixed-precision form of a model, by its name."""
    return onnx.name.endswith(".fp16.onnx")
