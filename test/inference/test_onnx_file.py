# SPDX-License-Identifier: AGPL-3.0-only
"""Files that are given as an ONNX model and are none: each is named, with what to do."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import write_detector_onnx, write_fusion_onnx

from fusion_ros.inference import EngineError, load_engine
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.inference.onnx_file import check_onnx_file, external_data


def checkpoint():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("yolov8n/data.pkl", pickle.dumps({"model": 1}))
    return data.getvalue()


def engine_of_ultralytics():
    metadata = json.dumps({"task": "detect"}).encode()
    return len(metadata).to_bytes(4, "little") + metadata + b"ftrt" + bytes(40)


def safetensors():
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


FILES = {
    "empty": (b"", "it is empty"),
    "checkpoint": (checkpoint(), "PyTorch checkpoint.*format=onnx"),
    "old checkpoint": (pickle.dumps({"model": 1}), "PyTorch checkpoint.*format=onnx"),
    "engine": (b"ftrt" + bytes(60), "a TensorRT engine.*ONNX file that it was made from"),
    "engine of ultralytics": (engine_of_ultralytics(), "a TensorRT engine"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345678\n",
        "a Git LFS pointer.*git lfs pull",
    ),
    "page": (b"\n<!DOCTYPE html><html><title>404</title></html>", "a web page.*download"),
    "openvino": (b'<?xml version="1.0"?><net></net>', "OpenVINO"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(60), "TensorFlow Lite"),
    "safetensors": (safetensors(), "safetensors"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "compressed"),
    "json": (b'{"message": "not found"}', "JSON"),
    "text": (b"hello, world", "no field of an ONNX model"),
    "zeros": (bytes(4096), "no field of an ONNX model"),
    "no graph": (b"\x08\x0a", "it has no graph"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path, kind):
    content, message = FILES[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=f"{path.name}.*{message}"):
        load_engine(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(EngineError, match="is a folder"):
        load_engine(tmp_path)
    with pytest.raises(EngineError, match="no ONNX file"):
        load_engine(tmp_path / "none.onnx")
    with pytest.raises(EngineError, match="cannot be read"):
        check_onnx_file(tmp_path / ("x" * 300))


def test_a_link_is_followed_and_one_to_nothing_is_named(tmp_path):
    path = write_fusion_onnx(tmp_path / "model.onnx")
    (tmp_path / "link.onnx").symlink_to(path)
    check_onnx_file(tmp_path / "link.onnx")
    (tmp_path / "broken.onnx").symlink_to("/nowhere/model.onnx")
    with pytest.raises(EngineError, match="is a link to /nowhere/model.onnx, where no file is"):
        check_onnx_file(tmp_path / "broken.onnx")
    with pytest.raises(ValueError, match="is a link to /nowhere/model.onnx"):
        model_path(tmp_path / "broken.onnx")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("file:///models/own.onnx", "it is a URI, expected a path: /models/own.onnx"),
        ("https://example.org/own.onnx", "nothing is downloaded, fetch the file first"),
        ("package://robot/own.onnx", "nothing is downloaded"),
    ],
)
def test_a_uri_is_no_path_and_told_so(uri, says):
    with pytest.raises(ValueError, match=says):
        model_path(uri)
    with pytest.raises(EngineError, match=says):
        load_engine(uri)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_ordinary_file_is_not_read(tmp_path, make):
    make(tmp_path / "endless.onnx")
    with pytest.raises(EngineError, match="it is no ordinary file"):
        check_onnx_file(tmp_path / "endless.onnx")


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    path = write_fusion_onnx(tmp_path / "model.onnx", metadata={"name": "average"})
    data = path.read_bytes()
    check_onnx_file(path)
    for length in range(1, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(EngineError):
            load_engine(path, "onnxruntime_cpu")


@pytest.mark.parametrize("method", list_methods())
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_shipped_models_are_whole(method, precision):
    check_onnx_file(model_path(method, precision))


def test_the_files_of_external_weights_are_found(tmp_path):
    onnx = pytest.importorskip("onnx")
    path = write_detector_onnx(tmp_path / "model.onnx", [(0, 0.9, (8, 8, 24, 40))])
    (tmp_path / "weights").mkdir()
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location="weights/../model.onnx.data",
        size_threshold=0,
    )
    assert external_data(path.read_bytes()) == ["weights/../model.onnx.data"]
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(EngineError, match="model.onnx.data"):
        load_engine(path, "onnxruntime_cpu")


def test_an_operator_of_another_runtime_is_named(tmp_path):
    onnx = pytest.importorskip("onnx")
    path = write_fusion_onnx(tmp_path / "model.onnx")
    model = onnx.load(path)
    node = model.graph.node[-1]
    node.op_type, node.domain = "EfficientNMS_TRT", "TRT"
    model.opset_import.append(onnx.helper.make_opsetid("TRT", 1))
    onnx.save(model, path)
    with pytest.raises(EngineError, match="operator .*EfficientNMS_TRT.* another runtime"):
        load_engine(path, "onnxruntime_cpu")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_model_with_changed_bytes_runs_or_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("changed") / "model.onnx"
    content = bytearray(write_fusion_onnx(path).read_bytes())
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
        content[place] = value
    path.write_bytes(content)
    try:
        engine = load_engine(path, "onnxruntime_cpu", threads=1)
    except EngineError:
        return
    assert engine.inputs is not None
