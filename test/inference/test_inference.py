# SPDX-License-Identifier: AGPL-3.0-only
"""Engines: what is loaded, what runs, and what the error says if it cannot."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from support import write_fusion_onnx

from fusion_ros.inference import EngineError, cuda, load_engine, models

needs_no_gpu = pytest.mark.skipif(cuda.driver() is not None, reason="this machine has a GPU")


@pytest.fixture
def average(tmp_path):
    return write_fusion_onnx(tmp_path / "average.onnx", metadata={"method": "average"})


def feeds(height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random((1, 1, height, width), np.float32) for name in ("ir", "vi")}


def test_the_cpu_engine_computes_the_model(average):
    engine = load_engine(average, "onnxruntime_cpu", threads=1)
    for seed in (0, 1):  # the second run goes through bound buffers
        pair = feeds(seed=seed)
        fused = engine.run(pair)["fused"]
        np.testing.assert_allclose(fused, (pair["ir"] + pair["vi"]) / 2, atol=1e-6)


def test_an_engine_takes_changing_sizes(average):
    engine = load_engine(average, "onnxruntime_cpu", threads=1)
    for size in ((48, 64), (48, 64), (64, 48), (48, 64), (48, 64)):
        pair = feeds(*size)
        fused = engine.run(pair)["fused"]
        np.testing.assert_allclose(fused, (pair["ir"] + pair["vi"]) / 2, atol=1e-6)


def test_outputs_stay_in_one_buffer_while_the_size_stays(average):
    engine = load_engine(average, "onnxruntime_cpu", threads=1)
    first = engine.run(feeds())["fused"]
    second = engine.run(feeds(seed=1))["fused"]
    assert second.ctypes.data == first.ctypes.data


def test_an_array_that_is_not_contiguous_is_run_correctly(average):
    engine = load_engine(average, "onnxruntime_cpu", threads=1)
    wide = feeds(48, 128)
    for _ in range(2):
        pair = {name: array[..., ::2] for name, array in wide.items()}
        fused = engine.run(pair)["fused"]
        np.testing.assert_allclose(fused, (pair["ir"] + pair["vi"]) / 2, atol=1e-6)


def test_an_engine_names_what_runs(average):
    engine = load_engine(average, "onnxruntime_cpu", threads=2)
    assert (engine.backend, engine.device, engine.precision) == ("onnxruntime", "CPU", "fp32")
    assert engine.description == (
        f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider, 2 threads, fp32"
    )
    assert engine.metadata["method"] == "average"
    assert [(s.name, s.shape) for s in engine.inputs] == [
        ("ir", (1, 1, None, None)),
        ("vi", (1, 1, None, None)),
    ]
    assert [s.name for s in engine.outputs] == ["fused"]


@needs_no_gpu
def test_auto_falls_back_to_the_cpu_and_logs_why(average):
    lines = []
    engine = load_engine(average, "auto", log=lines.append)
    assert engine.device == "CPU"
    assert lines[0].startswith("tensorrt not used: ")
    assert lines[1].startswith("onnxruntime_cuda not used: ")


@needs_no_gpu
@pytest.mark.parametrize("backend", ["onnxruntime_cuda", "tensorrt"])
def test_a_named_backend_that_cannot_run_is_an_error(average, backend):
    with pytest.raises(EngineError, match="NVIDIA"):
        load_engine(average, backend)


def test_missing_files_and_unknown_names_are_refused(tmp_path, average):
    with pytest.raises(EngineError, match="nowhere.onnx"):
        load_engine(tmp_path / "nowhere.onnx")
    with pytest.raises(EngineError, match="average.fp16.onnx"):
        load_engine(average, precision="fp16")
    with pytest.raises(ValueError, match="onnxruntime_cpu"):
        load_engine(average, "openvino")
    with pytest.raises(ValueError, match="fp32, fp16"):
        load_engine(average, precision="int8")


def test_a_file_that_is_no_onnx_is_refused_by_name(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(EngineError, match="broken.onnx"):
        load_engine(broken, "onnxruntime_cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vi": None}, "no feed for input 'vi'"),
        ({"vi": np.zeros((1, 3, 48, 64), np.float32)}, r"'vi' takes float32 1x1x\?x\?"),
        ({"vi": np.zeros((1, 1, 48, 64), np.uint8)}, "got uint8 1x1x48x64"),
    ],
)
def test_feeds_that_do_not_fit_are_named(average, change, message):
    engine = load_engine(average, "onnxruntime_cpu", threads=1)
    with pytest.raises(EngineError, match=message):
        engine.run({k: v for k, v in {**feeds(), **change}.items() if v is not None})


def test_an_engine_survives_feeds_that_the_model_refuses(average):
    engine = load_engine(average, "onnxruntime_cpu", threads=1)
    bad = {**feeds(), "ir": np.zeros((1, 1, 7, 9), np.float32)}
    with pytest.raises(EngineError):
        engine.run(bad)
    good = feeds()
    np.testing.assert_allclose(engine.run(good)["fused"], (good["ir"] + good["vi"]) / 2, atol=1e-6)


def test_null_backend_passes_the_visible_image(average):
    engine = load_engine(average, "null")
    pair = feeds()
    assert engine.run(pair)["fused"] is pair["vi"]
    assert engine.backend == "null"


def test_shipped_methods_are_found_by_name_and_others_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "WEIGHTS_DIR", tmp_path)
    for name in ("zeta.onnx", "alpha.onnx", "alpha.fp16.onnx"):
        write_fusion_onnx(tmp_path / name)
    assert models.list_methods() == ["alpha", "zeta"]
    assert models.model_path("alpha") == tmp_path / "alpha.onnx"
    assert models.model_path("alpha", "fp16") == tmp_path / "alpha.fp16.onnx"
    assert models.model_path(str(tmp_path / "zeta.onnx")) == tmp_path / "zeta.onnx"
    with pytest.raises(ValueError, match="'nonsense': choose one of alpha, zeta"):
        models.model_path("nonsense")
    with pytest.raises(ValueError, match="no fp16"):
        models.model_path("zeta", "fp16")
    with pytest.raises(ValueError, match="no ONNX file"):
        models.model_path("elsewhere.onnx")


@pytest.mark.parametrize("method", models.list_methods())
def test_every_shipped_model_keeps_the_contract(method):
    engine = load_engine(models.model_path(method), "onnxruntime_cpu")
    assert {s.name: s.shape for s in engine.inputs} == {
        "ir": (1, 1, None, None),
        "vi": (1, 1, None, None),
    }
    fused = engine.run(feeds(64, 96))["fused"]
    assert fused.shape == (1, 1, 64, 96)
    assert fused.dtype == np.float32
    assert fused.min() >= 0 and fused.max() <= 1
    assert engine.metadata["method"] == method
