# SPDX-License-Identifier: AGPL-3.0-only
"""The TensorRT engine: TensorRT 10.3 to 11 and TensorRT-RTX, which have one Python API."""

from __future__ import annotations

import functools
import re
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, perf_counter
from types import ModuleType

import numpy as np

from fusion_models.contract import FP16_LIMIT, FUSED, FUSED_IMAGE, reference_image
from fusion_ros.inference import cuda
from fusion_ros.inference.cache import (
    CachedEngine,
    EngineCache,
    EngineKey,
    StaleEngine,
    default_cache_dir,
    model_sha256,
)
from fusion_ros.inference.engine import (
    WORKSPACE_MIB,
    DeviceArray,
    Engine,
    EngineError,
    Feeds,
    Form,
    Log,
    ModelSpec,
    TensorSpec,
    UnavailableError,
    fill_shape,
    fp32_sibling,
    is_fp16,
)
from fusion_ros.inference.onnxruntime import OnnxRuntimeEngine, read_spec
from fusion_ros.size import Size

MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
PROGRESS_SECONDS = 5.0
KEPT_SIZES = 4
"""Input sizes whose engines stay on the GPU at the same time."""


@dataclass(frozen=True)
class Library:
    """An importable TensorRT. name: 'TensorRT' or 'TensorRT-RTX'."""

    module: ModuleType
    name: str

    @property
    def description(self) -> str:
        return f"{self.name} {self.module.__version__}"

    @property
    def is_rtx(self) -> bool:
        return self.name == "TensorRT-RTX"

    @functools.cached_property
    def logger(self):
        """TensorRT's logger, which keeps its error messages in `errors`."""
        trt = self.module

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity, message: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    self.errors.append(message)

        return Logger()

    def create(self, name: str):
        """Create TensorRT's object `name`. Raises EngineError if the driver does not suffice."""
        try:
            return getattr(self.module, name)(self.logger)
        except TypeError as error:  # raised by the bindings if C++ gives no object
            raise self.fail("does not start") from error

    def fail(self, what: str, kind: type[EngineError] = EngineError) -> EngineError:
        """Return an error that says `what` and TensorRT's messages since the last one."""
        reasons = "; ".join(self.logger.errors) or "it gave no reason"
        self.logger.errors.clear()
        return kind(f"{self.description} {what}: {reasons}")


@functools.cache
def import_library() -> Library:
    """Import the installed TensorRT, the full one rather than TensorRT-RTX.

    Raises UnavailableError without one.
    """
    reasons = []
    for name in MODULES:
        if find_spec(name) is None:
            continue
        try:
            trt = import_module(name)
            trt.init_libnvinfer_plugins(None, "")  # 10.x parses some operators to plugins
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            reasons.append(f"{name}: {error}")
        else:
            return Library(trt, "TensorRT-RTX" if "rtx" in name else "TensorRT")
    raise UnavailableError(
        "no usable TensorRT Python package for the NVIDIA GPU: install NVIDIA's `tensorrt`, or "
        "for an RTX GPU `pip install fusion_ros[tensorrt]`; on a Jetson it comes with JetPack, and "
        "a virtual environment sees it if it was made with --system-site-packages"
        + "".join(f" ({r})" for r in reasons)
    )


@dataclass(frozen=True)
class Build:
    """A serialized engine; layers: of the network that was parsed; seconds: the build took."""

    data: bytes
    layers: int
    seconds: float


def build(
    library: Library,
    onnx: Path,
    size: Size | None,
    *,
    workspace_mib: int = WORKSPACE_MIB,
    cache: EngineCache | None = None,
    target: str = "",
    log: Log = lambda message: None,
) -> Build:
    """Build `onnx` for one static input size.

    size: for the inputs' free dimensions; None where the model has none.
    workspace_mib: the most GPU memory that one layer may use for itself.
    cache: where timings of earlier builds are kept, which make the next ones faster.
    target: compute capability to build for, such as '8.9', instead of this machine's GPU;
        TensorRT-RTX only, and it needs no GPU.

    The network is strongly typed: every layer computes in the precision that the ONNX says.
    Raises EngineError with TensorRT's messages if it cannot be parsed or built.
    """
    trt = library.module
    start = monotonic()
    library.logger.errors.clear()
    builder = library.create("Builder")
    # TensorRT 11 and TensorRT-RTX have no other kind and ignore the flag; 10.x needs it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(onnx)):
        for error in map(parser.get_error, range(parser.num_errors)):
            library.logger.errors.append(
                f"{error.node_operator()} '{error.node_name()}': {error.desc()}"
            )
        raise library.fail(f"cannot parse {onnx.name}")
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if size is not None:
            tensor.shape = fill_shape(tuple(tensor.shape), size)
        elif -1 in tensor.shape:
            shape = tuple(tensor.shape)
            raise EngineError(f"input {shape} has free dimensions: give the size to build for")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32 in every backend
    if target:
        _set_target(library, config, target)
    with _timing_cache(library, config, cache), _progress(trt, config, onnx.name, log):
        data = builder.build_serialized_network(network, config)
    if data is None:
        raise library.fail(f"cannot build {onnx.name}")
    return Build(bytes(data), network.num_layers, monotonic() - start)


def _set_target(library: Library, config, target: str) -> None:
    capabilities = _capabilities(library)
    if target not in capabilities:
        raise EngineError(
            f"{library.description} cannot build for compute capability {target}: "
            f"{'choose one of ' + ', '.join(capabilities) if capabilities else 'only TensorRT-RTX'}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(capabilities[target], 0)


def _capabilities(library: Library) -> dict[str, object]:
    """Return the compute capabilities of TensorRT-RTX, '7.5' -> enumerator; {} for TensorRT."""
    members = getattr(library.module, "ComputeCapability", None) if library.is_rtx else None
    if members is None:
        return {}
    return {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in members.__members__.items()
        if name.startswith("SM")
    }


@contextmanager
def _timing_cache(library: Library, config, cache: EngineCache | None) -> Iterator[None]:
    """Give a build the timings of earlier ones and keep its own. TensorRT-RTX has none."""
    if cache is None or library.is_rtx:
        yield
        return
    made_on = re.sub(r"[^\w.-]+", "_", f"{library.description}-{cuda.device_name()}")
    path = cache.folder / f"{made_on}.timing"
    timings = config.create_timing_cache(cache.read(path))
    if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    yield
    cache.write(path, bytes(config.get_timing_cache().serialize()))


@contextmanager
def _progress(trt: ModuleType, config, name: str, log: Log) -> Iterator[None]:
    """Log the build's progress every few seconds: on a Jetson it takes minutes."""
    done = threading.Event()
    phase = "starting"
    start = monotonic()

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name, parent_phase, num_steps):
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name, step):
            nonlocal phase
            phase = f"{phase_name}, step {step + 1} of {self._steps.get(phase_name, '?')}"
            return True  # go on

        def phase_finish(self, phase_name):
            self._steps.pop(phase_name, None)

    def report() -> None:
        while not done.wait(PROGRESS_SECONDS):
            log(f"building {name} for TensorRT, {monotonic() - start:.0f} s so far: {phase}")

    monitor = Monitor()  # held by this name: TensorRT keeps no reference
    config.progress_monitor = monitor
    # On a thread, because a single step may take longer than the interval.
    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class TensorRTEngine(Engine):
    """`onnx` on the first NVIDIA GPU.

    One engine is built for each input size and cached on disk; the latest `KEPT_SIZES` stay on the
    GPU. With `size` the first is built at once, otherwise by the first `buffers` or `run`. If the
    model has no free dimension, `size` is only what its engine is named by. A float16 model is
    compared with its float32 form when it is built.

    Raises UnavailableError if there is no GPU, no TensorRT or no CUDA for Python; `buffers` and
    `run` raise EngineError if the model cannot be built for a size, and if the outputs of a
    float16 model differ by more than `FP16_LIMIT`.
    """

    backend = "tensorrt"
    reads_device = True

    def __init__(
        self,
        onnx: Path,
        size: Size | None = None,
        *,
        cache_dir: Path | None = None,
        workspace_mib: int = WORKSPACE_MIB,
        log: Log = lambda message: None,
    ) -> None:
        if cuda.driver() is None:
            raise UnavailableError(
                "no NVIDIA GPU with a driver was found: `nvidia-smi` should list it"
            )
        self._library = import_library()
        self._capability = cuda.compute_capability()
        known = _capabilities(self._library)
        if known and self._capability not in known:
            raise UnavailableError(
                f"{self._library.description} does not run on {cuda.device_name()} (compute "
                f"capability {self._capability}, expected {', '.join(known)}): install "
                "NVIDIA's full `tensorrt`, or use onnxruntime_cuda"
            )
        cuda.call(cuda.runtime().cudaGetDeviceCount)  # fails if the driver is too old
        super().__init__(read_spec(onnx))
        self.device = f"CUDA:0 {cuda.device_name()}"
        self.precision = "fp16" if is_fp16(onnx) else "fp32"
        self._onnx = onnx
        self._sha256 = model_sha256(onnx)
        self._cache = EngineCache(cache_dir or default_cache_dir(), log)
        self._workspace_mib = workspace_mib
        self._log = log
        self._programs: dict[Size, Program] = {}
        self._latest: Program | None = None
        self._fixed: Size | None = None
        if not any(None in spec.shape for spec in self.inputs):
            height, width = self.inputs[0].shape[-2:]
            self._fixed = size or Size(width, height)
        if size:
            self._program(size)

    @property
    def description(self) -> str:
        sizes = map(str, list(self._programs))  # a copy: another thread may add one
        return ", ".join((self._library.description, self.device, self.precision, *sizes))

    def buffers(self, size: Size, form: Form | None = None) -> dict[str, np.ndarray]:
        return dict(self._program(self._fixed or size).inputs.hosts)

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        feeds = self.check(feeds)
        height, width = feeds[self.inputs[0].name].shape[-2:]
        self._latest = self._program(self._fixed or Size(width, height))
        return self._latest.run(feeds)

    def on_device(self, output: str) -> DeviceArray | None:
        return self._latest and self._latest.on_device(output)

    def profile(self, repeats: int) -> dict[str, float]:
        """Median durations of the latest frame's parts, see `Program.profile`."""
        if self._latest is None:
            raise EngineError("nothing to profile: run the network once before")
        return self._latest.profile(repeats)

    def close(self) -> None:
        self._programs.clear()
        self._latest = None

    def _program(self, size: Size) -> Program:
        program = self._programs.pop(size, None) or self._load(size)
        self._programs[size] = program  # in the order of their last use
        if len(self._programs) > KEPT_SIZES:
            del self._programs[next(iter(self._programs))]
        return program

    def _load(self, size: Size) -> Program:
        key = EngineKey(
            model=self._onnx.name.partition(".")[0],
            onnx_sha256=self._sha256,
            library=self._library.description,
            device=cuda.device_name(),
            compute_capability=self._capability,
            precision=self.precision,
            height=size.height,
            width=size.width,
        )
        kernels = self._cache.folder / f"{key.filename}.kernels"

        def load(engine: CachedEngine) -> Program:
            # Negated, since float16 that overflows gives NaN.
            if engine.fp16_error is not None and not engine.fp16_error <= FP16_LIMIT:
                raise EngineError(
                    f"{self._onnx.name} differs from float32 by {255 * engine.fp16_error:.1f}/255 "
                    f"on this GPU (allowed {255 * FP16_LIMIT:.0f}/255)"
                )
            return Program(self._library, self.model, engine.data, self._cache, kernels, self._log)

        return self._cache.get(key, lambda: self._build(size), load)

    def _build(self, size: Size) -> CachedEngine:
        self._log(
            f"building {self._onnx.name} for {size} on {cuda.device_name()} with "
            f"{self._library.description}; kept in {self._cache.folder} for the next start"
        )
        built = build(
            self._library,
            self._onnx,
            size,
            workspace_mib=self._workspace_mib,
            cache=self._cache,
            log=self._log,
        )
        self._log(f"built {self._onnx.name}: {built.layers} layers, {built.seconds:.1f} s")
        try:
            return CachedEngine(built.data, self._fp16_error(built.data))
        except EngineError as error:
            raise EngineError(f"{self._onnx.name} was built and does not run: {error}") from error

    def _fp16_error(self, data: bytes) -> float | None:
        """Mean absolute difference of the fused image from float32; None if nothing is fused.

        Of outputs in [0, 1], on a reference pair. The float32 output is onnxruntime's on the CPU:
        a reference by other code on other hardware.
        """
        reference = fp32_sibling(self._onnx)
        name = self.outputs[0].name
        if not (is_fp16(self._onnx) and name in (FUSED, FUSED_IMAGE) and reference.is_file()):
            return None
        program = Program(self._library, self.model, data)
        feeds = {
            name: _reference_input(array.shape, array.dtype, seed)
            for seed, (name, array) in enumerate(program.inputs.hosts.items())
        }
        got = program.run(feeds)[name]
        wanted = OnnxRuntimeEngine(reference, "CPU").run(feeds)[name]
        return float(np.abs(np.subtract(got, wanted, dtype=np.float32)).mean()) / _white(got.dtype)


def _reference_input(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Return the reference image as an input, `[1, 1, H, W]` or `[1, H, W, 3]`."""
    colours = 3 if shape[-1] == 3 else 1
    height, width = shape[1:3] if colours == 3 else shape[2:]
    plane = reference_image(height, width, seed) * _white(dtype)
    return np.repeat(plane, colours).reshape(shape).astype(dtype)


def _white(dtype: np.dtype) -> float:
    return 255.0 if dtype == np.uint8 else 1.0


class Program:
    """A built engine on the GPU with its memory: one upload, one download, one CUDA graph.

    kernels: file in `cache` for the kernels that TensorRT-RTX compiles when an engine starts.
    Raises StaleEngine if the engine does not fit this GPU and library, EngineError if it cannot
    run.
    """

    def __init__(
        self,
        library: Library,
        model: ModelSpec,
        data: bytes,
        cache: EngineCache | None = None,
        kernels: Path | None = None,
        log: Log = lambda message: None,
    ) -> None:
        library.logger.errors.clear()
        self._library = library
        # CUDA keeps the current GPU for each thread.
        cuda.call(cuda.runtime().cudaSetDevice, 0)
        self._engine = library.create("Runtime").deserialize_cuda_engine(data)
        if self._engine is None:
            raise library.fail("cannot load the engine", StaleEngine)
        # TensorRT-RTX's kernels must live as long as the context.
        self._context, self._compiled = self._create_context(cache, kernels)
        if self._context is None:
            raise library.fail("cannot start the engine; is the GPU's memory full?")
        self._stream = cuda.Stream()
        self.inputs = self._allocate(model.inputs)
        self.outputs = self._allocate(model.outputs)
        # TensorRT finishes its preparations in the first run, which cannot be captured.
        self.inputs.upload(self._stream.handle)
        self._enqueue()
        self._stream.synchronize()
        try:
            self._stream.capture(self._enqueue)
            self._captured = True
        except EngineError as error:
            log(f"running without a CUDA graph, a little slower: {error}")
            self._captured = False
        compiled = self._compiled and self._compiled[1].serialize()
        if compiled is not None:
            cache.write(kernels, bytes(compiled))

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Return outputs by name, in pinned memory that the next run overwrites."""
        for name, host in self.inputs.hosts.items():
            feed = feeds[name]
            if feed is not host and not isinstance(feed, DeviceArray):
                np.copyto(host, feed)
        # Outside the graph, because some frames need no upload.
        there = {name: feed for name, feed in feeds.items() if isinstance(feed, DeviceArray)}
        if len(there) < len(self.inputs.hosts):
            self.inputs.upload(self._stream.handle)
        for name, feed in there.items():
            self.inputs.take(name, feed.address, self._stream.handle)
        if self._captured:
            self._stream.replay()
        else:
            self._enqueue()
        self._stream.synchronize()
        return self.outputs.hosts

    def on_device(self, output: str) -> DeviceArray:
        """Return the place of an output of the latest run, valid until the next."""
        host = self.outputs.hosts[output]
        return DeviceArray(self.outputs.devices[output], host.shape, host.dtype)

    def profile(self, repeats: int) -> dict[str, float]:
        """Median durations of a frame's parts, each waited for, in ms.

        `graph_ms` and `no_graph_ms`: upload, network and download with and without the CUDA graph;
        the former is left out where the network cannot be captured.
        """
        stream = self._stream

        def whole(repeat: Callable[[], None]) -> None:
            self.inputs.upload(stream.handle)
            repeat()

        parts = {
            "upload_ms": lambda: self.inputs.upload(stream.handle),
            "network_ms": self._execute,
            "download_ms": lambda: self.outputs.download(stream.handle),
            "no_graph_ms": lambda: whole(self._enqueue),
        }
        if self._captured:
            parts["graph_ms"] = lambda: whole(stream.replay)
        durations: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(repeats):
            for name, work in parts.items():
                start = perf_counter()
                work()
                stream.synchronize()
                durations[name].append(1e3 * (perf_counter() - start))
        return {name: statistics.median(ms) for name, ms in durations.items()}

    def _create_context(self, cache: EngineCache | None, kernels: Path | None):
        """Return an execution context, and TensorRT-RTX's runtime config and kernels, or None."""
        if not self._library.is_rtx or cache is None:
            return self._engine.create_execution_context(), None
        config = self._engine.create_runtime_config()
        compiled = config.create_runtime_cache()
        if known := cache.read(kernels):
            compiled.deserialize(known)  # which ignores what does not fit
        config.set_runtime_cache(compiled)
        return self._engine.create_execution_context(config), (config, compiled)

    def _allocate(self, specs: tuple[TensorSpec, ...]) -> cuda.PinnedBlock:
        shapes = {s.name: tuple(self._engine.get_tensor_shape(s.name)) for s in specs}
        for name, shape in shapes.items():
            if -1 in shape:
                raise EngineError(
                    f"the shape {shape} of '{name}' depends on the image's content: TensorRT needs "
                    "a fixed one"
                )
        block = cuda.PinnedBlock({s.name: (shapes[s.name], s.dtype) for s in specs})
        for name, address in block.devices.items():
            self._context.set_tensor_address(name, address)
        return block

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise self._library.fail("could not run the network")

    def _enqueue(self) -> None:
        self._execute()
        self.outputs.download(self._stream.handle)
