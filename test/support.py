# SPDX-License-Identifier: AGPL-3.0-only
"""Small ONNX models and images for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

IR_VERSION, OPSET = 10, 18  # read by onnxruntime 1.18 and TensorRT 10.3


def write_fusion_onnx(
    path: Path, kind: str = "average", metadata: Mapping[str, str] = {}, layers: int = 8
) -> Path:
    """Write a fusion model of the contract (inputs `ir`, `vi`, output `fused`, free H and W).

    kind: "average" or "max" of the pixels, "vi" alone; "slow" is the average, but after `layers`
        convolutions of 32 channels (8 layers at 640x480: some 150 ms on two cores).
    """
    from onnx import helper, numpy_helper

    nodes, weights = [], []
    if kind == "max":
        nodes.append(helper.make_node("Max", ["ir", "vi"], ["mixed"]))
    elif kind == "vi":
        nodes.append(helper.make_node("Mean", ["vi"], ["mixed"]))
    elif kind in ("average", "slow"):
        nodes.append(helper.make_node("Mean", ["ir", "vi"], ["mixed"]))
    else:
        raise ValueError(kind)
    if kind == "slow":
        # The result of the convolutions, times 1e-9, is added, so that no optimiser removes them.
        rng, name = np.random.default_rng(0), "mixed"
        for i in range(layers):
            shape = (1 if i == layers - 1 else 32, 32 if i else 1, 3, 3)
            kernel = rng.normal(0, 0.08, shape).astype(np.float32)
            weights.append(numpy_helper.from_array(kernel, f"kernel{i}"))
            nodes.append(
                helper.make_node("Conv", [name, f"kernel{i}"], [f"conv{i}"], pads=[1, 1, 1, 1])
            )
            name = f"conv{i}"
        weights.append(numpy_helper.from_array(np.array(1e-9, np.float32), "tiny"))
        nodes.append(helper.make_node("Mul", [name, "tiny"], ["trace"]))
        nodes.append(helper.make_node("Add", ["mixed", "trace"], ["sum"]))
    weights.append(numpy_helper.from_array(np.array(0, np.float32), "low"))
    weights.append(numpy_helper.from_array(np.array(1, np.float32), "high"))
    last = "sum" if kind == "slow" else "mixed"
    nodes.append(helper.make_node("Clip", [last, "low", "high"], ["fused"]))
    free = [1, 1, "height", "width"]
    return _save(path, nodes, {"ir": free, "vi": free}, {"fused": free}, weights, metadata)


def write_detector_onnx(
    path: Path,
    boxes: Sequence[tuple[int, float, tuple[float, float, float, float]]],
    names: Sequence[str] = ("person", "car"),
    size: int = 64,
    end_to_end: bool = False,
) -> Path:
    """Write a detector of ultralytics' form that finds the same boxes in every image.

    boxes: (class id, score, (x1, y1, x2, y2) in pixels of its `size` x `size` input).
    end_to_end: `[1, N, 6]` corners, score, class instead of `[1, 4 + classes, N]`.
    """
    from onnx import helper, numpy_helper

    rows = []
    for class_id, score, (x1, y1, x2, y2) in boxes:
        if end_to_end:
            rows.append([x1, y1, x2, y2, score, class_id])
        else:
            scores = [score if i == class_id else 0 for i in range(len(names))]
            rows.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *scores])
    width = 6 if end_to_end else 4 + len(names)
    # Padded with empty boxes: from seven on, the two forms have different shapes.
    table = np.zeros((max(len(rows), 8), width), np.float32)
    table[: len(rows)] = np.array(rows, np.float32).reshape(-1, width)
    table = (table if end_to_end else table.T)[None]
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(table), "table"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["table", "nothing"], ["output0"]),
    ]
    return _save(
        path,
        nodes,
        {"images": [1, 3, size, size]},
        {"output0": list(table.shape)},
        weights,
        {"names": str(dict(enumerate(names)))},
    )


def write_outputs_onnx(
    path: Path,
    outputs: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] = {},
    image: Sequence[int | str] = (1, 3, 64, 64),
    dtype: type = np.float32,
    free: bool = False,
    second_input: str = "",
) -> Path:
    """Write a model of one image input that gives the same `outputs` for every image.

    image: shape of the input `images`, of `dtype`. free: whether the outputs' shapes are left out.
    second_input: name of an int64 input [1, 2] that has no effect.
    """
    import onnx
    from onnx import helper, numpy_helper

    def declare(name, kind, shape):
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), shape)

    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    weights = [numpy_helper.from_array(np.array(0, np.float32), "zero")]
    tensors = []
    for name, value in outputs.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_table"))
        nodes.append(helper.make_node("Cast", ["nothing"], [f"{name}_nothing"], to=kind))
        nodes.append(helper.make_node("Add", [f"{name}_table", f"{name}_nothing"], [name]))
        shape = [f"{name}_{i}" for i in range(value.ndim)] if free else list(value.shape)
        tensors.append(declare(name, value.dtype, shape))
    inputs = [declare("images", np.dtype(dtype), list(image))]
    if second_input:
        inputs.append(declare(second_input, np.dtype(np.int64), [1, 2]))
    graph = helper.make_graph(nodes, path.stem, inputs, tensors, weights)
    model = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return path


def pair(width: int = 64, height: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Thermal (H, W) uint8 and visible (H, W, 3) uint8 BGR noise."""
    rng = np.random.default_rng(seed)
    thermal = rng.integers(0, 256, (height, width), np.uint8)
    return thermal, rng.integers(0, 256, (height, width, 3), np.uint8)


def _save(path, nodes, inputs, outputs, weights, metadata) -> Path:
    import onnx
    from onnx import TensorProto, helper

    def tensors(shapes):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

    graph = helper.make_graph(nodes, path.stem, tensors(inputs), tensors(outputs), weights)
    model = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
