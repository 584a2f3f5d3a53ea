# SPDX-License-Identifier: AGPL-3.0-only
"""Mixed precision of an exported network: float16 between its first and its last convolution."""

from __future__ import annotations

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
    shape_inference,
)

LINEAR = ("Conv", "ConvTranspose", "MatMul", "Gemm")
KEPT_FLOAT = ("Softmax", "ReduceMean", "ReduceSum", "GlobalAveragePool", "Cast")
"""Long sums and exponentials stay float32, as in autocast; a Cast has its own type."""

TYPED = {"Resize": 1}
"""Operators of which only the first inputs have the type of the features; a Resize's scales are
always float32."""


def to_half(model: ModelProto) -> ModelProto:
    """Copy of a float32 network that computes in float16 where that is safe.

    Inputs and outputs stay float32, and so does what comes before the first or after the last
    convolution or matrix product (the head with its logarithms) and what :data:`KEPT_FLOAT` names.
    Precision is a matter of the model, not of the engine: TensorRT from 11 on and TensorRT-RTX take
    the types as they find them.

    Raises:
        ValueError: a parameter is too large for float16, or the graph has subgraphs.
    """
    model = shape_inference.infer_shapes(model)
    graph = model.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        raise ValueError("networks with control flow (If, Loop, Scan) are not supported")
    return _Converter(model, _between_linear(graph)).run()


def _between_linear(graph: GraphProto) -> set[str]:
    """Names of the outputs of all nodes that have a linear operator before and one behind them."""
    fed: set[str] = set()  # tensors that depend on a linear operator
    for node in graph.node:
        if node.op_type in LINEAR or fed.intersection(node.input):
            fed.update(node.output)
    needed: set[str] = set()  # tensors on which a linear operator depends
    between: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in LINEAR or needed.intersection(node.output):
            needed.update(node.input)
            between.update(fed.intersection(node.output))
    return between


class _Converter:
    def __init__(self, model: ModelProto, between: set[str]):
        self.model, self.between = model, between
        graph = model.graph
        self.parameters = {t.name: t for t in graph.initializer}
        values = (*graph.value_info, *graph.input, *graph.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.types.update({t.name: t.data_type for t in graph.initializer})
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.added: list[TensorProto] = []

    def run(self) -> ModelProto:
        graph = self.model.graph
        results = {value.name for value in graph.output}
        for node in graph.node:
            half = node.op_type not in KEPT_FLOAT and bool(self.between.intersection(node.output))
            wanted = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            floating = any(self.types.get(o) == TensorProto.FLOAT for o in node.output)
            if floating:  # a Shape, say, takes its input as it comes
                for i, name in enumerate(node.input[: TYPED.get(node.op_type)]):
                    node.input[i] = self.cast(name, wanted)
            self.nodes.append(node)
            for i, output in enumerate(node.output):
                if half and self.types.get(output) == TensorProto.FLOAT:
                    if output in results:
                        result = node.output[i] = self.casts[output, wanted] = f"{output}_fp16"
                        self.nodes.append(self._cast_node(result, output, TensorProto.FLOAT))
                    else:
                        self.types[output] = wanted
        used = {name for node in self.nodes for name in node.input}
        parameters = [t for t in (*graph.initializer, *self.added) if t.name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(parameters)
        return self.model

    def cast(self, name: str, wanted: int) -> str:
        """Name of tensor `name` in the wanted floating type, converted once if it has the other."""
        given = self.types.get(name)
        if given == wanted or given not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            return name
        if (name, wanted) not in self.casts:
            result = f"{name}_{'fp16' if wanted == TensorProto.FLOAT16 else 'fp32'}"
            self.casts[name, wanted] = result
            if name in self.parameters:
                self.added.append(self._half_parameter(self.parameters[name], result))
            else:
                self.nodes.append(self._cast_node(name, result, wanted))
        return self.casts[name, wanted]

    @staticmethod
    def _cast_node(name: str, result: str, to: int) -> NodeProto:
        return helper.make_node("Cast", [name], [result], f"{name}_to_{result}", to=to)

    @staticmethod
    def _half_parameter(tensor: TensorProto, name: str) -> TensorProto:
        values = numpy_helper.to_array(tensor)
        limit = np.finfo(np.float16).max
        if np.abs(values).max(initial=0.0) > limit:
            raise ValueError(f"parameter '{tensor.name}' exceeds float16's largest number {limit}")
        return numpy_helper.from_array(values.astype(np.float16), name)
