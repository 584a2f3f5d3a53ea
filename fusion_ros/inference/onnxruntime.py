# SPDX-License-Identifier: AGPL-3.0-only
"""The onnxruntime engine: CUDA or CPU, with bound input and output buffers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fusion_ros.inference import cuda
from fusion_ros.inference.engine import (
    Engine,
    EngineError,
    Feeds,
    ModelSpec,
    TensorSpec,
    UnavailableError,
    is_fp16,
)

try:
    import onnxruntime as ort
except ImportError as error:
    raise UnavailableError(
        f"onnxruntime cannot be imported ({error}): `pip install 'onnxruntime>=1.18'`, for an "
        "NVIDIA GPU `pip install onnxruntime-gpu[cuda,cudnn]`, on a Jetson NVIDIA's wheel of "
        "onnxruntime-gpu for your JetPack"
    ) from error

_VERSION = tuple(int(part) for part in ort.__version__.split(".")[:2])
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeEngine(Engine):
    """`onnx` on `provider`, 'CUDA' or 'CPU'.

    The session is optimised for one size of the inputs, and recreated for another, which takes 7
    to 35 ms on the CPU: with free sizes baffm takes a sixth longer. The output buffers are kept as
    long as the session.

    Raises UnavailableError if the provider cannot run, EngineError if it cannot load the model.
    """

    backend = "onnxruntime"

    def __init__(self, onnx: Path, provider: str, threads: int = 0) -> None:
        self._onnx = onnx
        self._provider = f"{provider}ExecutionProvider"
        self._threads = threads or len(os.sched_getaffinity(0))
        # Shows that the provider runs, and reads the model's tensors.
        session = _session(onnx, self._provider, self._threads, optimise=False)
        super().__init__(_spec(session))
        self._named = {tensor.name: tensor.shape for tensor in session.get_inputs()}
        self.precision = "fp16" if is_fp16(onnx) else "fp32"
        self.device = "CPU" if provider == "CPU" else f"CUDA:0 {cuda.device_name()}"
        self._session: ort.InferenceSession | None = None
        self._binding: ort.IOBinding | None = None
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        self._results: dict[str, np.ndarray] = {}
        self._varying: list[str] = []

    @property
    def description(self) -> str:
        runs_on = f"{self._threads} threads" if self.device == "CPU" else self.device
        return f"onnxruntime {ort.__version__} {self._provider}, {runs_on}, {self.precision}"

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        feeds = self.check(feeds)
        shapes = tuple(array.shape for array in feeds.values())
        try:
            if shapes != self._shapes:
                self._start(feeds, shapes)
            else:
                for name, array in feeds.items():
                    self._bind(self._binding.bind_input, name, array)
                for name in self._varying:
                    self._binding.bind_output(name, "cpu")
                self._session.run_with_iobinding(self._binding)
                if self._varying:
                    values = dict(zip(self._results, self._binding.get_outputs()))
                    self._results.update({n: values[n].numpy() for n in self._varying})
        except EngineError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise EngineError(f"onnxruntime could not run the model: {error}") from error
        return self._results

    def _start(self, feeds: dict[str, np.ndarray], shapes: tuple[tuple[int, ...], ...]) -> None:
        """Make a session for inputs of these shapes and run it once."""
        self.close()  # two sessions might be more than fits into a GPU
        sizes = {
            dimension: size
            for name, array in feeds.items()
            for dimension, size in zip(self._named[name], array.shape)
            if isinstance(dimension, str)
        }
        session = _session(self._onnx, self._provider, self._threads, sizes)
        # The shape of an output with free dimensions is known only once the model has run.
        arrays = session.run(None, feeds)
        self._session, self._binding = session, session.io_binding()
        self._results = {s.name: array for s, array in zip(self.outputs, arrays)}
        # An output whose shape depends on the image, such as boxes after suppression, gets memory
        # in each run.
        self._varying = [
            output.name
            for output in session.get_outputs()
            if not all(isinstance(n, int) and n > 0 for n in output.shape)
        ]
        for name, array in self._results.items():
            self._bind(self._binding.bind_output, name, array)
        self._shapes = shapes

    @staticmethod
    def _bind(bind, name: str, array: np.ndarray) -> None:
        # Host memory on both ends: onnxruntime copies to and from the GPU by itself.
        bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def close(self) -> None:
        self._binding = self._session = self._shapes = None


def read_spec(onnx: Path) -> ModelSpec:
    """Read inputs, outputs and metadata of an ONNX file. Raises EngineError if it is none."""
    return _spec(_session(onnx, "CPUExecutionProvider", 1, optimise=False))


def _spec(session: ort.InferenceSession) -> ModelSpec:
    def tensors(arguments) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                argument.name,
                tuple(n if isinstance(n, int) else None for n in argument.shape),
                _dtype(argument),
            )
            for argument in arguments
        )

    return ModelSpec(
        tensors(session.get_inputs()),
        tensors(session.get_outputs()),
        dict(session.get_modelmeta().custom_metadata_map),
    )


def run_once(onnx: Path, feeds: Feeds, threads: int = 0) -> dict[str, np.ndarray]:
    """Run a model once on the CPU, without the time that optimising it takes.

    feeds: arrays of the inputs' shapes and dtypes. Raises EngineError if that fails.
    """
    session = _session(onnx, "CPUExecutionProvider", threads, optimise=False)
    try:
        arrays = session.run(None, dict(feeds))
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise EngineError(f"onnxruntime could not run the model: {error}") from error
    return {output.name: np.asarray(a) for output, a in zip(session.get_outputs(), arrays)}


def _dtype(argument: ort.NodeArg) -> np.dtype:
    if argument.type not in DTYPES:
        raise EngineError(
            f"the model's '{argument.name}' is a {argument.type}: expected tensors of numbers"
        )
    return np.dtype(DTYPES[argument.type])


def _session(
    onnx: Path,
    provider: str,
    threads: int,
    sizes: Mapping[str, int] | None = None,
    optimise: bool = True,
) -> ort.InferenceSession:
    """Start a session; sizes: of the model's free dimensions by name, where they are known."""
    if provider not in ort.get_available_providers():
        raise UnavailableError(
            f"this onnxruntime {ort.__version__} has no {provider}: for an NVIDIA GPU replace it, "
            "`pip uninstall onnxruntime && pip install onnxruntime-gpu[cuda,cudnn]`"
        )
    if provider == "CUDAExecutionProvider" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN where pip put them
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # Threads that spin while they wait take the cores from the cameras, DDS and each other: on two
    # shared cores a network took 1.5 times as long and twice the CPU time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Memory planned in one piece takes half to four fifths more than arenas, and is no faster.
    options.enable_mem_pattern = False
    for dimension, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(dimension, size)
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # float32 means float32 in every backend; otherwise CUDA rounds factors to 10 bits (TF32).
    settings = {}
    if provider == "CUDAExecutionProvider" and _VERSION >= (1, 18):  # older ones lack the setting
        settings["use_tf32"] = "0"
    try:
        # Only CUDA may fall back: a damaged model would be read twice, with a note on the terminal.
        fallback = int(provider != "CPUExecutionProvider")
        session = ort.InferenceSession(
            str(onnx), options, [provider], [settings], enable_fallback=fallback
        )
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise EngineError(_explain(onnx, str(error))) from error
    if session.get_providers()[0] != provider:
        raise UnavailableError(
            f"onnxruntime {ort.__version__} could not start its {provider}: it needs an NVIDIA "
            "driver and CUDA with cuDNN, `pip install onnxruntime-gpu[cuda,cudnn]`; "
            "`nvidia-smi` should list the GPU"
        )
    return session


def _explain(onnx: Path, error: str) -> str:
    """Say which version reads the model if this onnxruntime is too old for it."""
    versions = re.search(r"model IR version: (\d+), max supported IR version: (\d+)", error)
    opset = re.search(r"Opset (\d+) is under development.*? is till opset (\d+)", error, re.DOTALL)
    foreign = re.search(r"(\S+?)\(-?\d+\) is not a registered function", error)
    if foreign:
        return (
            f"{onnx} needs the operator {foreign[1]}, which belongs to another runtime: export "
            "the model without it, a detector without suppression by a plugin"
        )
    if opset:
        return (
            f"{onnx} has ONNX opset {opset[1]}, but onnxruntime {ort.__version__} reads only up to "
            f"{opset[2]}: install a newer one by `pip install --upgrade onnxruntime`, or export "
            "the model with an older opset"
        )
    if not versions:
        return f"onnxruntime {ort.__version__} cannot load {onnx}: {error}"
    return (
        f"{onnx} has ONNX IR version {versions[1]}, but onnxruntime {ort.__version__} reads only "
        f"up to {versions[2]}: install a newer one (1.18 reads 10) by `pip install --upgrade "
        "'onnxruntime>=1.18'`, or export the model with an older IR version"
    )
