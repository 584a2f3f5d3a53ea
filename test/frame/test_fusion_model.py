# SPDX-License-Identifier: AGPL-3.0-only
"""Fusion models of one's own: adapted where that is safe, else refused before the first frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import IR_VERSION, OPSET, pair

from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.fusion_model import check_fusion_model
from fusion_ros.inference import Engine, EngineError, ModelSpec, TensorSpec, load_engine
from fusion_ros.inference.models import list_methods, model_path

FREE = (1, 1, "height", "width")
SIZE = (64, 48)


def write(folder: Path, nodes, shape=FREE, kind="FLOAT", out_shape=None, inputs=(), outputs=()):
    """Write a model of `ir` and `vi` to `fused`; nodes: (operator, inputs, output, attributes)."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def tensor(name, dims, of=kind):
        return helper.make_tensor_value_info(name, getattr(TensorProto, of), dims)

    weights = [
        numpy_helper.from_array(
            np.array(value, helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))), name
        )
        for name, value in (("zero", 0), ("two", 2), ("many", 255), ("half", 0.5), ("one", 1))
    ]
    weights.append(numpy_helper.from_array(np.float32([1, 1, 0.5, 0.5]), "smaller"))
    graph = helper.make_graph(
        [helper.make_node(op, names, [out], **attributes) for op, names, out, attributes in nodes],
        "model",
        [tensor("ir", shape), tensor("vi", shape), *(tensor(n, FREE) for n in inputs)],
        [tensor("fused", out_shape or shape), *(tensor(n, shape) for n in outputs)],
        weights,
    )
    model = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    onnx.save(model, folder / "model.onnx")
    return load_engine(folder / "model.onnx", "onnxruntime_cpu", threads=1)


AVERAGE = [("Mean", ["ir", "vi"], "fused", {})]
SUM = ("Add", ["ir", "vi"], "sum", {})
MEAN = ("Div", ["sum", "two"], "mean", {})


def expected(thermal, visible):
    luma = cv2.cvtColor(visible, cv2.COLOR_BGR2YCrCb)
    luma[..., 0] = np.rint((luma[..., 0].astype(float) + thermal) / 2)
    return cv2.cvtColor(luma, cv2.COLOR_YCrCb2BGR)


@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE"])
@pytest.mark.parametrize("shape", [FREE, (1, 1, 48, 64)])
def test_float16_and_float64_tensors_are_cast(tmp_path, kind, shape):
    fuser = Fuser(write(tmp_path, [SUM, ("Div", ["sum", "two"], "fused", {})], shape, kind))
    images = pair(*SIZE)
    for _ in range(2):
        fused = fuser.fuse(*images)
    assert np.abs(fused.astype(int) - expected(*images)).max() <= 2
    assert fuser.engine.device == "CPU" and "onnxruntime" in fuser.engine.description


@pytest.mark.parametrize("shape", [("batch", 1, "h", "w"), ("a", "b", "c", "d"), (1, 1, "h", 64)])
def test_free_dimensions_of_any_name_are_filled(tmp_path, shape):
    images = pair(*SIZE)
    fused = Fuser(write(tmp_path, AVERAGE, shape)).fuse(*images)
    assert np.abs(fused.astype(int) - expected(*images)).max() <= 2


@pytest.mark.parametrize("multiple", [16, 32, 64])
def test_sides_are_padded_to_what_the_network_can_take(tmp_path, multiple):
    engine = write(
        tmp_path,
        [
            SUM,
            ("Div", ["sum", "two"], "mean", {}),
            ("SpaceToDepth", ["mean"], "deep", {"blocksize": multiple}),
            ("DepthToSpace", ["deep"], "fused", {"blocksize": multiple}),
        ],
    )
    assert check_fusion_model(engine) == multiple
    images = pair(72, 40)
    assert np.abs(Fuser(engine).fuse(*images).astype(int) - expected(*images)).max() <= 2


def test_another_output_beside_the_fused_image_is_left_alone(tmp_path):
    engine = write(tmp_path, [*AVERAGE, SUM], outputs=["sum"])
    images = pair(*SIZE)
    assert np.abs(Fuser(engine).fuse(*images).astype(int) - expected(*images)).max() <= 2


REFUSED = {
    "three channels": ((AVERAGE, (1, 3, "h", "w")), "'ir' has 3 channels"),
    "uint8": (
        ([("BitShift", ["ir", "vi"], "fused", {"direction": "RIGHT"})], FREE, "UINT8"),
        "'ir' is uint8",
    ),
    "a batch of four": ((AVERAGE, (4, 1, "h", "w")), "batch of 4"),
    "rank three": ((AVERAGE, (1, "h", "w")), "3 dimensions"),
    "a fixed size and half of it": (
        (
            [SUM, MEAN, ("Resize", ["mean", "", "smaller"], "fused", {"mode": "nearest"})],
            (1, 1, 48, 64),
            "FLOAT",
            (1, 1, 24, 32),
        ),
        "'fused' has another size than 'ir'",
    ),
    "half the size": (
        ([SUM, MEAN, ("Resize", ["mean", "", "smaller"], "fused", {"mode": "nearest"})],),
        "does not fuse images of .* the fused image has shape",
    ),
    "0 to 255": (([SUM, MEAN, ("Mul", ["mean", "many"], "fused", {})],), "values from .* to 2"),
    "-1 to 1": (([SUM, ("Sub", ["sum", "one"], "fused", {})],), "values from -"),
    "a constant": (
        ([SUM, ("Mul", ["sum", "zero"], "none", {}), ("Add", ["none", "half"], "fused", {})],),
        "the same value, 0.5",
    ),
    "NaN": (
        ([SUM, ("Mul", ["sum", "zero"], "none", {}), ("Div", ["none", "none"], "fused", {})],),
        "not finite",
    ),
    "a third input": (
        ([("Mean", ["ir", "vi", "mask"], "fused", {})], FREE, "FLOAT", None, ["mask"]),
        "it needs mask too",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gives_no_fused_image_is_refused_with_what_was_found(tmp_path, case):
    model, message = REFUSED[case]
    engine = write(tmp_path, *model)
    with pytest.raises(EngineError, match=message):
        Fuser(engine)


def test_other_names_are_refused_with_those_expected(tmp_path):
    onnx = pytest.importorskip("onnx")
    write(tmp_path, AVERAGE)
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = "infrared"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="lacks ir: expected inputs 'ir' and 'vi'.*infrared"):
        Fuser(load_engine(tmp_path / "model.onnx", "onnxruntime_cpu"))


@pytest.mark.parametrize("method", list_methods())
def test_the_shipped_networks_pass(method):
    assert check_fusion_model(load_engine(model_path(method), "onnxruntime_cpu")) == 8


class Later(Engine):
    """Gives the mean of both images in its trial, and `value` afterwards."""

    backend, device, precision, description = "later", "CPU", "fp32", "fails later"

    def __init__(self, value):
        def spec(name):
            return TensorSpec(name, (1, 1, None, None), np.dtype(np.float32))

        super().__init__(ModelSpec((spec("ir"), spec("vi")), (spec("fused"),)))
        self.value = value

    def trial(self, feeds):
        return {"fused": (feeds["ir"] + feeds["vi"]) / 2}

    def run(self, feeds):
        fused = self.trial(feeds)["fused"]
        fused[0, 0, 3, 5] += self.value
        return {"fused": fused}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6])
def test_one_wild_pixel_costs_the_frame(value):
    fuser = Fuser(Later(value))
    with pytest.raises(EngineError, match="the mean of the network's output is"):
        fuser.fuse(*pair(*SIZE))
    fuser.engine.value = 0
    assert fuser.fuse(*pair(*SIZE)).any()


SHAPES = st.lists(
    st.one_of(st.none(), st.integers(-1, 9), st.sampled_from([48, 10**9])), max_size=6
)
TENSORS = st.builds(
    lambda name, shape, kind: TensorSpec(name, tuple(shape), np.dtype(kind)),
    st.sampled_from(["ir", "vi", "fused", "x", ""]),
    st.one_of(SHAPES, st.just([1, 1, None, None]), st.just([1, 1, 48, 64])),
    st.sampled_from([np.float32, np.float16, np.uint8, np.int64, np.bool_]),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(TENSORS, max_size=3), st.lists(TENSORS, max_size=3), st.integers(-2, 2))
def test_whatever_tensors_a_model_declares_it_is_taken_or_refused(inputs, outputs, value):
    class Declared(Later):
        def __init__(self):
            super().__init__(0)
            self.model = ModelSpec(tuple(inputs), tuple(outputs))

        def trial(self, feeds):
            return {s.name: sum(feeds.values()) * np.float32(value) for s in self.outputs}

    try:
        Fuser(Declared())
    except EngineError as error:
        assert "not a fusion model" in str(error)  # noqa: PT017
