# SPDX-License-Identifier: AGPL-3.0-only
"""The choice of an engine, and of another one when it fails; no other module does that.

When a candidate of the ordered list of (backend, precision, form) cannot be started for a size of
image, the next one is tried; when one fails while it runs, that frame is lost and the candidates of
the next backend follow; why each was passed over is kept in `Selection.passed_over`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from fusion_ros.inference import cuda
from fusion_ros.inference.engine import (
    PRECISIONS,
    WORKSPACE_MIB,
    DeviceArray,
    Engine,
    EngineError,
    FeedError,
    Feeds,
    Form,
    Log,
    UnavailableError,
    fp16_sibling,
    fp32_sibling,
    is_fp16,
)
from fusion_ros.inference.onnx_file import check_onnx_file
from fusion_ros.inference.rewrite import rewritten_file
from fusion_ros.size import Size

__all__ = ["BACKENDS", "Candidate", "PassedOver", "Selection", "load_engine"]

ORDER = {
    "auto": ("tensorrt", "onnxruntime_cuda", "onnxruntime_cpu"),
    "tensorrt": ("tensorrt",),
    "onnxruntime": ("onnxruntime_cuda", "onnxruntime_cpu"),
    "onnxruntime_cuda": ("onnxruntime_cuda",),
    "onnxruntime_cpu": ("onnxruntime_cpu",),
    "null": ("null",),
}
"""What each value of `backend` tries, best first."""
BACKENDS = tuple(ORDER)
_ON_GPU = ("tensorrt", "onnxruntime_cuda")


@dataclass(frozen=True)
class Candidate:
    """One way to run a model.

    backend: 'tensorrt', 'onnxruntime_cuda', 'onnxruntime_cpu' or 'null'. precision: 'fp32' or
    'fp16'. rewritten: whether it runs the `Form` of the model that `buffers` is given (the form
    that converts camera images on the GPU) instead of the model as it is.
    """

    backend: str
    precision: str = "fp32"
    rewritten: bool = False

    def __str__(self) -> str:
        form = ", images converted on the GPU" if self.rewritten else ""
        return f"{self.backend} {self.precision}{form}"


_CPU_FP16 = Candidate("onnxruntime_cpu", "fp16")


@dataclass(frozen=True)
class PassedOver:
    """A candidate that does not run, and why.

    whole_backend: the reason holds for every candidate of this backend.
    """

    candidate: Candidate
    reason: str
    whole_backend: bool = False

    def __str__(self) -> str:
        name = self.candidate.backend if self.whole_backend else self.candidate
        return f"{name} not used: {self.reason}"


class Selection(Engine):
    """The engine of the first candidate that runs; see the head of this file for what follows.

    passed_over: what is better and does not run, best first, each with its reason; empty where the
        first candidate runs. A candidate that was passed over stays so until another engine is
        loaded. One exception: if none is left for one size, another size starts the list again.
    gpu_unused: why the GPU that this machine has is not used; empty if it is used, if there is
        none, and if `backend` names what runs without it. To be shown for as long as it lasts.
    candidate: what runs.

    `backend`, `device`, `precision`, `description` and `reads_device` are those of what runs;
    `model`, `inputs` and `outputs` those of the model as it is.
    """

    def __init__(
        self,
        onnx: Path,
        backend: str,
        *,
        threads: int = 0,
        cache_dir: Path | None = None,
        workspace_mib: int = WORKSPACE_MIB,
        log: Log = lambda message: None,
    ) -> None:
        self._onnx, self._asked_backend = onnx, backend
        self._threads, self._cache_dir, self._workspace_mib = threads, cache_dir, workspace_mib
        self._log = log
        self._all = _candidates(onnx, backend)
        self._left = list(self._all)
        self.passed_over: list[PassedOver] = []
        self._opened: tuple[Candidate, Engine] | None = None
        self._rewritten: Engine | None = None
        self._ready: Size | None = None  # of the model as it is, where that is what runs
        self._refused: dict[Size, str] = {}
        self.candidate, plain = self._first(form=None, start=self._open)
        super().__init__(plain.model)

    backend = property(lambda self: self._running.backend)
    device = property(lambda self: self._running.device)
    precision = property(lambda self: self._running.precision)
    reads_device = property(lambda self: self._running.reads_device)
    description = property(lambda self: self._running.description)

    @property
    def gpu_unused(self) -> str:
        """Why the GPU that is there is not used, in one line; empty if nothing is amiss."""
        wanted = any(name in _ON_GPU for name in ORDER[self._asked_backend])
        if not wanted or self.candidate.backend in _ON_GPU or not cuda.gpu_is_present():
            return ""
        return "; ".join(str(p) for p in self.passed_over if p.candidate.backend in _ON_GPU)

    def buffers(self, size: Size, form: Form | None = None) -> dict[str, np.ndarray]:
        """Start the first candidate that runs inputs of `size`, and return its inputs.

        form: the form of the model that candidates may run instead, for images of `form.size`.
        Where another candidate is left, the engine is run once to see that it works.
        Raises EngineError with the reasons of all if none runs; the same size then raises at once.
        """
        if size in self._refused:
            raise EngineError(self._refused[size])
        if not self._left:
            self._left, self.passed_over = list(self._all), []
        self._ready = None
        self._close_rewritten()
        try:
            self.candidate, feeds = self._first(
                form, lambda candidate: self._start(candidate, size, form)
            )
        except EngineError as error:
            if not self._left:
                self._refused[size] = str(error)
            raise
        self._ready = None if self.candidate.rewritten else size
        return feeds

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        first = feeds.get(self.inputs[0].name)
        if first is not None and self._ready != _size_of(first):
            self.check(feeds)
            self.buffers(_size_of(first))
        try:
            return self._running.run(feeds)
        except FeedError:
            raise
        except Exception as error:  # the libraries' exceptions share no base class
            self._fail_running(error)
            raise EngineError(str(error)) from error

    def trial(self, feeds: Feeds) -> dict[str, np.ndarray]:
        # Always by onnxruntime on the CPU: building an engine for one trial would
        # take minutes on a GPU.
        from fusion_ros.inference.onnxruntime import run_once

        path = fp32_sibling(self._onnx)
        feeds = self.check(feeds)
        return run_once(path if path.is_file() else self._onnx, feeds, self._threads)

    def profile(self, repeats: int) -> dict[str, float]:
        """Durations of a frame's parts in ms by name, where TensorRT runs; else EngineError."""
        profile = getattr(self._running, "profile", None)
        if profile is None:
            raise EngineError(f"{self.description} does not tell the durations of its parts")
        return profile(repeats)

    def on_device(self, output: str) -> DeviceArray | None:
        return self._running.on_device(output)

    def close(self) -> None:
        self._close_rewritten()
        if self._opened is not None:
            self._opened[1].close()
        self._ready = None

    @property
    def _running(self) -> Engine:
        return self._rewritten or self._opened[1]

    def _first(self, form: Form | None, start):
        """Return the first candidate that `start` starts, with what `start` returns for it."""
        failed: list[PassedOver] = []
        last = None
        for candidate in list(self._left):
            if candidate not in self._left or (candidate.rewritten and form is None):
                continue
            try:
                return candidate, start(candidate)
            except FeedError:
                raise
            except Exception as error:  # the libraries' exceptions share no base class
                failed.append(self._pass_over(candidate, error))
                last = error
        self._left.clear()
        failed = failed or self.passed_over
        # On a machine without a GPU, only the reasons that concern the model are of use.
        failed = [passed for passed in failed if not passed.whole_backend] or failed
        if len(failed) == 1:
            raise EngineError(failed[0].reason) from last
        raise EngineError("nothing runs this model: " + "; ".join(map(str, failed))) from last

    def _pass_over(self, candidate: Candidate, error: Exception) -> PassedOver:
        whole = isinstance(error, UnavailableError)
        passed = PassedOver(candidate, str(error) or repr(error), whole)
        self._left = [
            other
            for other in self._left
            if other != candidate and not (whole and other.backend == candidate.backend)
        ]
        self.passed_over.append(passed)
        if self._left:  # otherwise the error that follows says it
            self._log(str(passed))
        return passed

    def _fail_running(self, error: Exception) -> None:
        """Go on to the next backend, if there is one."""
        backends = {candidate.backend for candidate in self._left}
        if backends - {self.candidate.backend}:
            self._pass_over(self.candidate, UnavailableError(f"it failed while running: {error}"))
            self._ready = None
            self._close_rewritten()

    def _open(self, candidate: Candidate) -> Engine:
        """Have the engine of the model as it is; it takes no GPU memory before it runs."""
        same = Candidate(candidate.backend, candidate.precision)
        if self._opened is None or self._opened[0] != same:
            engine = self._engine(same, self._path(same), None)
            if self._opened is not None:
                self._opened[1].close()
            self._opened = (same, engine)
        return self._opened[1]

    def _start(self, candidate: Candidate, size: Size, form: Form | None) -> dict[str, np.ndarray]:
        engine = self._open(candidate)
        with ExitStack() as stack:
            if candidate.rewritten:
                path = rewritten_file(self._path(candidate), form.rewrite)
                engine = self._engine(candidate, stack.enter_context(path), form.size)
                size = form.size
            feeds = engine.buffers(size)
            # onnxruntime reads the file again in the first run; and a failure here costs no frame.
            if candidate.rewritten or len(self._left) > 1:
                engine.run(feeds)
        if candidate.rewritten:
            self._rewritten = engine
        return feeds

    def _engine(self, candidate: Candidate, onnx: Path, size: Size | None) -> Engine:
        if candidate == _CPU_FP16 and Candidate("onnxruntime_cpu") in self._all:
            raise EngineError("the CPU computes float16 no faster, so the float32 model runs there")
        # Imported here: each library is optional.
        if candidate.backend == "tensorrt":
            from fusion_ros.inference.tensorrt import TensorRTEngine

            return TensorRTEngine(
                onnx,
                size,
                cache_dir=self._cache_dir,
                workspace_mib=self._workspace_mib,
                log=self._log,
            )
        if candidate.backend == "null":
            from fusion_ros.inference.null import NullEngine

            return NullEngine(onnx)
        from fusion_ros.inference.onnxruntime import OnnxRuntimeEngine

        provider = "CUDA" if candidate.backend == "onnxruntime_cuda" else "CPU"
        return OnnxRuntimeEngine(onnx, provider, self._threads)

    def _path(self, candidate: Candidate) -> Path:
        if candidate.precision == _precision(self._onnx):
            return self._onnx
        return (fp16_sibling if candidate.precision == "fp16" else fp32_sibling)(self._onnx)

    def _close_rewritten(self) -> None:
        if self._rewritten is not None:
            self._rewritten.close()
            self._rewritten = None


def load_engine(
    onnx: Path | str,
    backend: str = "auto",
    size: Size | None = None,
    precision: str = "fp32",
    *,
    threads: int = 0,
    cache_dir: Path | None = None,
    workspace_mib: int = WORKSPACE_MIB,
    log: Log = lambda message: None,
) -> Selection:
    """Load `onnx` into the best engine that `backend` allows.

    `auto` tries TensorRT, then onnxruntime on CUDA, then on the CPU; `onnxruntime` is the latter
    two. Any other name means that backend and nothing else. `null` computes nothing: for measuring
    everything around the network.

    size: of the inputs, to start the engine at once; without it the first run does.
    precision: 'fp16' runs `<model>.fp16.onnx` beside `onnx`. Under `auto` and `onnxruntime` the
        CPU runs the float32 model instead, since it computes float16 no faster.
    threads: of the CPU provider; 0 means one for each core that this process may use.
    cache_dir: of built TensorRT engines, default `~/.cache/fusion_ros`.
    log: called with one line for each candidate that is passed over and each engine that is built.

    Raises EngineError naming what is missing and how to get it, ValueError for unknown names.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend '{backend}': choose one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision '{precision}': choose one of {', '.join(PRECISIONS)}")
    path = Path(onnx).expanduser()
    if precision == "fp16":
        path = fp16_sibling(path)
    check_onnx_file(path)
    selection = Selection(
        path,
        backend,
        threads=threads,
        cache_dir=cache_dir,
        workspace_mib=workspace_mib,
        log=log,
    )
    if size is not None:
        selection.buffers(size)
    return selection


def _candidates(onnx: Path, backend: str) -> list[Candidate]:
    """Return the ordered list: the better backend first, then the better form, then precision."""
    asked = _precision(onnx)
    other = "fp32" if asked == "fp16" else "fp16"
    has_other = (fp16_sibling if other == "fp16" else fp32_sibling)(onnx).is_file()
    found = []
    for name in ORDER[backend]:
        precisions = [asked]
        if has_other and name == "tensorrt":
            # Some GPUs have only one of the two: TensorRT-RTX for Turing has no float32 matrix
            # products, and float16 may overflow.
            precisions.append(other)
        if has_other and name == "onnxruntime_cpu" and backend != name:
            precisions = ["fp16", "fp32"] if asked == "fp16" else ["fp32"]
        forms = (True, False) if name in _ON_GPU else (False,)
        found += [Candidate(name, p, form) for form, p in product(forms, precisions)]
    return found


def _precision(onnx: Path) -> str:
    return "fp16" if is_fp16(onnx) else "fp32"


def _size_of(array: np.ndarray | DeviceArray) -> Size:
    return Size(array.shape[-1], array.shape[-2]) if len(array.shape) > 1 else Size(1, 1)
