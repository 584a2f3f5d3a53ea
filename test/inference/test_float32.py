# SPDX-License-Identifier: AGPL-3.0-only
"""Models of other floats than float32, and outputs whose shape depends on the image."""

from __future__ import annotations

import numpy as np
import pytest
from support import IR_VERSION, OPSET, write_fusion_onnx, write_outputs_onnx

from fusion_ros.inference import FeedError, as_float32, load_engine
from fusion_ros.size import Size


def test_a_model_of_float32_stays_as_it_is(tmp_path):
    engine = load_engine(write_fusion_onnx(tmp_path / "average.onnx"), "onnxruntime_cpu")
    assert as_float32(engine) is engine


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floats_go_in_and_come_out_as_float32_and_integers_stay(tmp_path, kind):
    outputs = {"a": np.array([[0.25, 0.5]], kind), "b": np.int64([[7]])}
    path = write_outputs_onnx(tmp_path / "model.onnx", outputs, {"task": "x"}, dtype=kind)
    engine = as_float32(load_engine(path, "onnxruntime_cpu"))
    assert [s.dtype for s in engine.inputs] == [np.float32]
    assert [s.dtype for s in engine.outputs] == [np.float32, np.int64]
    assert engine.metadata == {"task": "x"} and engine.backend == "onnxruntime"
    feeds = engine.buffers(Size(64, 64))
    assert feeds["images"].dtype == np.float32
    for run in (engine.run, engine.trial):
        results = run(feeds)
        assert results["a"].dtype == np.float32 and results["a"].tolist() == [[0.25, 0.5]]
        assert results["b"].dtype == np.int64 and results["b"].tolist() == [[7]]
    with pytest.raises(FeedError, match="takes float32"):
        engine.run({"images": feeds["images"].astype(kind)})


def test_outputs_may_have_another_shape_in_each_run(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Neg", ["x"], ["y"])],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [
            helper.make_tensor_value_info("places", TensorProto.INT64, [2, "n"]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]),
        ],
    )
    model = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    onnx.save(model, tmp_path / "model.onnx")
    engine = load_engine(tmp_path / "model.onnx", "onnxruntime_cpu")
    for columns in ([], [1], [0, 1, 2, 3], [2], []):
        x = np.zeros((1, 4), np.float32)
        x[0, columns] = 1
        results = engine.run({"x": x})
        assert results["places"][1].tolist() == columns
        assert (results["y"] == -x).all()
