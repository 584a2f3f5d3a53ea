# SPDX-License-Identifier: AGPL-3.0-only
"""Export: what is written equals the network, and its float16 form stays close to it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export needs torch: pip install .[train]")
onnx = pytest.importorskip("onnx", reason="the export needs onnx: pip install .[train]")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from support import IR_VERSION, OPSET  # noqa: E402

from fusion_models import WEIGHTS_DIR, list_models  # noqa: E402
from fusion_models.contract import FP16_LIMIT, reference_pair  # noqa: E402
from fusion_models.deploy.export import (  # noqa: E402
    ExportError,
    ExportInfo,
    export_fp16,
    export_onnx,
)
from fusion_models.deploy.half import to_half  # noqa: E402


@pytest.fixture(params=list_models())
def files(request):
    """A shipped network and its float16 form."""
    path = WEIGHTS_DIR / f"{request.param}.onnx"
    assert path.is_file(), f"{request.param} ships no ONNX"
    return path, path.with_suffix(".fp16.onnx")


def run(path, pair):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["fused"], {"ir": pair[0], "vi": pair[1]})[0]


def types(model):
    """Element type of every tensor of a graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def network(tmp_path, nodes, weights=()):
    """Writes a graph from `ir`, `vi` to `fused` and returns its path."""
    shape = [1, 1, "height", "width"]
    tensor = helper.make_tensor_value_info
    inputs = [tensor(name, TensorProto.FLOAT, shape) for name in ("ir", "vi")]
    graph = helper.make_graph(
        nodes, "test", inputs, [tensor("fused", TensorProto.FLOAT, shape)], list(weights)
    )
    opset = [helper.make_opsetid("", OPSET)]
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), path)
    return path


def kernel(name, value):
    return numpy_helper.from_array(np.full((1, 1, 1, 1), value, np.float32), name)


def test_float16_stays_within_the_limit_of_float32(files):
    full, half = files
    pair = reference_pair(96, 128, seed=1)
    assert np.abs(run(half, pair) - run(full, pair)).mean() < FP16_LIMIT
    # With every result rounded, as no GPU does worse, and another pair than the export's own.
    pair = reference_pair(32, 40, seed=1)
    with np.errstate(over="ignore"):
        rounded = ReferenceEvaluator(str(half)).run(None, {"ir": pair[0], "vi": pair[1]})[0]
    assert np.abs(rounded - run(full, pair)).mean() < FP16_LIMIT


def test_the_shipped_float16_form_is_that_of_the_shipped_network(tmp_path):
    shipped = WEIGHTS_DIR / "refinefuse.onnx"
    full = tmp_path / shipped.name
    full.write_bytes(shipped.read_bytes())
    half = export_fp16(full)
    assert half == tmp_path / "refinefuse.fp16.onnx"
    made, expected = (onnx.load(path) for path in (half, shipped.with_suffix(".fp16.onnx")))
    assert list(made.graph.node) == list(expected.graph.node)
    assert list(made.graph.initializer) == list(expected.graph.initializer)


def test_float16_keeps_the_contract_and_the_metadata(files):
    full, half = (onnx.load(file) for file in files)
    assert list(half.graph.input) == list(full.graph.input)
    assert list(half.graph.output) == list(full.graph.output)
    metadata = {p.key: p.value for p in half.metadata_props}
    assert metadata.pop("precision") == "fp16"
    assert metadata == {p.key: p.value for p in full.metadata_props}


def test_convolutions_are_float16_and_logarithms_and_softmax_float32(files):
    model = onnx.load(files[1])
    found = types(model)
    kept = {"Softmax", "ReduceMean", "Log", "Tanh"}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert found[node.output[0]] == TensorProto.FLOAT16, node.name
        # Log and Tanh are the head's: there is no other in the four networks.
        if node.op_type in kept:
            assert found[node.output[0]] == TensorProto.FLOAT, node.name


def test_a_resize_keeps_its_float32_scales(tmp_path):
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    nodes = [
        helper.make_node("Conv", ["ir", "one"], ["a"]),
        helper.make_node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["b", "", "scales"], ["c"], mode="linear"),
        helper.make_node("Conv", ["c", "one"], ["fused"]),
    ]
    model = to_half(onnx.load(network(tmp_path, nodes, [kernel("one", 1.0), scales])))
    found = types(model)
    assert found["c"] == TensorProto.FLOAT16 and found["scales"] == TensorProto.FLOAT


def test_a_network_that_overflows_in_float16_is_refused(tmp_path):
    nodes = [
        helper.make_node("Conv", ["ir", "large"], ["a"]),
        helper.make_node("Conv", ["a", "large"], ["b"]),
        helper.make_node("Conv", ["b", "small"], ["c"]),
        helper.make_node("Conv", ["c", "small"], ["fused"]),
    ]
    path = network(tmp_path, nodes, [kernel("large", 6e4), kernel("small", 1 / 6e4)])
    with pytest.raises(ExportError, match="differs from float32.*ship float32 only"):
        export_fp16(path)
    assert not path.with_suffix(".fp16.onnx").exists()


def test_a_parameter_beyond_float16_is_named(tmp_path):
    nodes = [helper.make_node("Conv", ["ir", "huge"], ["fused"])]
    with pytest.raises(ExportError, match="'huge' exceeds float16's largest number 65504"):
        export_fp16(network(tmp_path, nodes, [kernel("huge", 1e5)]))


def test_an_export_that_is_not_the_trained_network_is_refused(tmp_path):
    class Average(torch.nn.Module):
        offset = 0.0

        def forward(self, ir, vi):
            return (ir + vi) / 2 + self.offset

        def deploy(self):
            folded = Average()
            folded.offset = 0.01
            return folded

    with pytest.raises(ExportError, match="differs from the trained network by"):
        export_onnx(Average(), tmp_path / "average.onnx", ExportInfo("average"))
