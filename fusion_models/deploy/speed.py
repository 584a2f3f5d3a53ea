# SPDX-License-Identifier: AGPL-3.0-only
"""Times of a network's forms (ONNX, folded, plain eager), and its work: operations and bytes."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, shape_inference
from torch import nn

from fusion_models.deploy.eager import eager_form
from fusion_models.registry import deploy_form

WARMUP = 2
PAUSE = 0.05
"""Seconds between two forms: the idle threads of one spin for a while, on the other's cores."""


@dataclass(frozen=True)
class Timing:
    """Wall times of one form, in milliseconds."""

    median_ms: float
    min_ms: float
    p95_ms: float
    runs: int

    @classmethod
    def of(cls, times_ms: list[float]) -> Timing:
        ordered = sorted(times_ms)
        p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
        return cls(
            round(statistics.median(ordered), 3), round(ordered[0], 3), round(p95, 3), len(ordered)
        )


@dataclass(frozen=True)
class Stages:
    """Times of one pair on a GPU: both inputs to it, the network, the output back."""

    upload: Timing
    network: Timing
    download: Timing


@dataclass(frozen=True)
class Work:
    """Work of an exported network for one pair.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products.
        bytes_moved: of all tensors read and written, each operator on its own except activations,
            which every runtime applies within the convolution before them.
        parameters: numbers stored in the file.
    """

    macs: int
    bytes_moved: int
    parameters: int


def interleaved(
    forms: dict[str, Callable[[], object]],
    repeats: int,
    warmup: int = WARMUP,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Times several callables in turn, so that a busy machine disturbs all of them alike.

    Args:
        repeats: timed runs of each, after ``warmup`` others. pause: before each run, in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    for step in range(warmup + repeats):
        for name, run in forms.items():
            time.sleep(pause)
            start = time.perf_counter()
            run()
            if step >= warmup:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: Timing.of(values) for name, values in times.items()}


def torch_forms(model: nn.Module, pair: np.ndarray) -> dict[str, Callable[[], object]]:
    """Two forms of a network on the CPU: `torch` (deploy form) and `eager` (plain, see `eager.py`).

    Args:
        pair: `ir` and `vi`, `[2, 1, 1, H, W]` float32.
    """
    ir, vi = torch.from_numpy(pair)

    def runner(form: nn.Module) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return form(ir, vi)

        return run

    return {"torch": runner(deploy_form(model)), "eager": runner(eager_form(model))}


def torch_cuda(model: nn.Module, pair: np.ndarray, repeats: int) -> Stages:
    """Times of the deploy form on CUDA in float16 as one CUDA graph; transfers from pinned memory.

    Args:
        pair: `ir` and `vi`, `[2, 1, 1, H, W]` float32.
    """
    form = deploy_form(model).to("cuda", torch.float16)
    host = torch.from_numpy(pair).pin_memory()
    given = torch.empty(pair.shape, device="cuda")
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):  # allocations and kernel choices before the capture
            form(*given.half())
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            fused = form(*given.half()).float()
        result = torch.empty(fused.shape, pin_memory=True)
        steps = (
            lambda: given.copy_(host, non_blocking=True),
            graph.replay,
            lambda: result.copy_(fused, non_blocking=True),
        )
        times: list[list[float]] = [[], [], []]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        for step in range(WARMUP + repeats):
            marks[0].record()
            for run, mark in zip(steps, marks[1:]):
                run()
                mark.record()
            stream.synchronize()
            if step >= WARMUP:
                for values, first, last in zip(times, marks, marks[1:]):
                    values.append(first.elapsed_time(last))
    return Stages(*map(Timing.of, times))


def onnxruntime_cuda(path: Path, pair: np.ndarray, repeats: int) -> Stages:
    """Times of an ONNX file in onnxruntime's CUDA provider as one CUDA graph.

    Args:
        path: float32 or float16 network. pair: `ir` and `vi`, `[2, 1, 1, H, W]` float32.
    Raises:
        RuntimeError: onnxruntime has no CUDA provider or could not start it.
    """
    import onnxruntime as ort

    options = _session_options(pair)
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN where pip put them
    provider = ("CUDAExecutionProvider", {"enable_cuda_graph": "1", "use_tf32": "0"})
    session = ort.InferenceSession(str(path), options, [provider])
    if session.get_providers()[0] != provider[0]:
        raise RuntimeError("onnxruntime could not start its CUDA provider")
    given = {n: ort.OrtValue.ortvalue_from_numpy(p, "cuda", 0) for n, p in zip(("ir", "vi"), pair)}
    fused = ort.OrtValue.ortvalue_from_numpy(np.zeros_like(pair[0]), "cuda", 0)
    binding = session.io_binding()
    for name, value in given.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output("fused", fused)

    def upload() -> None:
        for value, picture in zip(given.values(), pair):
            value.update_inplace(picture)

    timed = interleaved(
        {
            "upload": upload,
            "network": lambda: session.run_with_iobinding(binding),
            "download": fused.numpy,
        },
        repeats,
        warmup=WARMUP + 2,  # the first runs record the graph
    )
    return Stages(timed["upload"], timed["network"], timed["download"])


def _session_options(pair: np.ndarray):
    """onnxruntime's, with H and W fixed to the pair's: it merges some operators only then."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    for dimension, size in zip(("height", "width"), pair.shape[-2:]):
        options.add_free_dimension_override_by_name(dimension, size)
    return options


def operator_shares(
    path: Path, pair: np.ndarray, threads: int, repeats: int = 7
) -> dict[str, float]:
    """Milliseconds of each kind of operator in onnxruntime on the CPU, the largest first.

    Reorder operators are onnxruntime's own: in and out of the blocked layout of its convolutions.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = _session_options(pair)
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        for _ in range(WARMUP + repeats):
            session.run(["fused"], {"ir": pair[0], "vi": pair[1]})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"] / 1e3)
            kinds[event["name"]] = event["args"]["op_name"]
    shares: dict[str, float] = defaultdict(float)
    for name, values in times.items():
        shares[kinds[name]] += statistics.median(values)
    return {k: round(v, 2) for k, v in sorted(shares.items(), key=lambda item: -item[1])}


def count_work(path: Path, size: tuple[int, int]) -> Work:
    """Multiply-accumulates and traffic of an exported network for inputs of `size` (H, W)."""
    model = onnx.load(path)
    for tensor in (*model.graph.input, *model.graph.output):
        dims = tensor.type.tensor_type.shape.dim
        dims[2].dim_value, dims[3].dim_value = size
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes, widths = {}, {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        shapes[value.name] = [d.dim_value for d in tensor.shape.dim]
        widths[value.name] = _bytes(tensor.elem_type)
    for parameter in graph.initializer:
        shapes[parameter.name] = list(parameter.dims)
        widths[parameter.name] = _bytes(parameter.data_type)
    views = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape"}
    activations = {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh"}
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    macs = moved = 0
    for node in graph.node:
        result = int(np.prod(shapes[node.output[0]]))
        if node.op_type == "Conv":
            macs += result * int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type in ("MatMul", "Gemm"):
            macs += result * shapes[node.input[0]][-1]
        merged = node.op_type in activations and made_by.get(node.input[0]) == "Conv"
        if node.op_type not in views and not merged:
            moved += sum(
                int(np.prod(shapes[name])) * widths[name]
                for name in (*node.input, *node.output)
                if name in shapes
            )
    parameters = sum(int(np.prod(p.dims)) for p in graph.initializer)
    return Work(macs, moved, parameters)


def _bytes(kind: int) -> int:
    if kind == TensorProto.UNDEFINED:
        return 0
    return onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
