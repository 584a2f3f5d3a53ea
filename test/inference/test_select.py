# SPDX-License-Identifier: AGPL-3.0-only
"""The choice of an engine: which candidate runs, and why each better one does not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from support import pair, write_detector_onnx, write_fusion_onnx

from fusion_ros.frame.detector import Detector
from fusion_ros.frame.fuser import Fuser
from fusion_ros.inference import (
    Candidate,
    EngineError,
    FeedError,
    cuda,
    load_engine,
    onnxruntime,
    select,
    tensorrt,
)
from fusion_ros.size import Size

SIZE = Size(64, 48)


@pytest.fixture
def average(tmp_path):
    return write_fusion_onnx(tmp_path / "average.onnx")


@pytest.fixture
def half(average):
    average.with_name("average.fp16.onnx").write_bytes(average.read_bytes())
    return average


@pytest.fixture
def cuda_provider(monkeypatch):
    """Let onnxruntime's CPU provider stand for its CUDA provider."""
    real = onnxruntime._session
    monkeypatch.setattr(
        onnxruntime,
        "_session",
        lambda onnx, provider, *a, **k: real(onnx, "CPUExecutionProvider", *a, **k),
    )


def feeds(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random((1, 1, 48, 64), np.float32) for name in ("ir", "vi")}


def assert_fuses(engine, seed=0):
    given = feeds(seed)
    expected = (given["ir"] + given["vi"]) / 2
    np.testing.assert_allclose(engine.run(given)["fused"], expected, atol=1e-6)


class Failing:
    """Candidates that fail: at the start, or once they run, with a given error."""

    def __init__(self, monkeypatch):
        self.at_start: dict[str, Exception] = {}
        self.running: dict[str, Exception] = {}
        self.tried: list[str] = []
        real = select.Selection._engine

        def engine(selection, candidate, onnx, size):
            name = str(candidate)
            if size is not None or not candidate.rewritten:
                self.tried.append(name)
            for failing, error in self.at_start.items():
                if name.startswith(failing):
                    raise error
            made = real(selection, candidate, onnx, size)
            run = made.run

            def run_or_fail(feeds):
                for failing, error in self.running.items():
                    if name.startswith(failing):
                        raise error
                return run(feeds)

            made.run = run_or_fail
            return made

        monkeypatch.setattr(select.Selection, "_engine", engine)


@pytest.fixture
def failing(monkeypatch):
    return Failing(monkeypatch)


def load_engine_on_cpu(path):
    return load_engine(path, "onnxruntime_cpu")


def named(selection) -> list[str]:
    return [str(passed) for passed in selection.passed_over]


def test_the_best_candidate_runs_and_nothing_is_passed_over(gpu, average, tmp_path):
    fuser = Fuser(load_engine(average, cache_dir=tmp_path))
    fuser.warmup(SIZE)
    assert fuser.engine.candidate == Candidate("tensorrt", "fp32", rewritten=True)
    assert fuser.engine.passed_over == [] and fuser.engine.gpu_unused == ""


def test_candidates_are_tried_in_one_order_until_one_starts(
    gpu, cuda_provider, failing, half, tmp_path
):
    failing.at_start = {"tensorrt": EngineError("bad"), "onnxruntime_cuda": EngineError("worse")}
    lines = []
    fuser = Fuser(load_engine(half, precision="fp16", cache_dir=tmp_path, log=lines.append))
    thermal, visible = pair()
    expected = Fuser(load_engine_on_cpu(half)).fuse(thermal, visible)
    assert (fuser.fuse(thermal, visible) == expected).all()
    assert str(fuser.engine.candidate) == "onnxruntime_cpu fp32"
    assert sorted(named(fuser.engine)) == sorted(lines)
    assert {line.partition(" not used: ")[0] for line in lines} >= {
        "tensorrt fp16",
        "tensorrt fp32",
        "onnxruntime_cuda fp16",
        "onnxruntime_cpu fp16",
    }
    assert "tensorrt fp16 not used: bad" in fuser.engine.gpu_unused
    assert "onnxruntime_cpu" not in fuser.engine.gpu_unused


@pytest.mark.parametrize(
    ("fails", "runs"),
    [
        ((), "tensorrt fp32, images converted on the GPU"),
        (("tensorrt fp32, images",), "tensorrt fp16, images converted on the GPU"),
        (("tensorrt fp32, images", "tensorrt fp16, images"), "tensorrt fp32"),
        (("tensorrt fp32", "tensorrt fp16, images"), "tensorrt fp16"),
        (("tensorrt",), "onnxruntime_cuda fp32, images converted on the GPU"),
        (("tensorrt", "onnxruntime_cuda fp32, images"), "onnxruntime_cuda fp32"),
        (("tensorrt", "onnxruntime_cuda"), "onnxruntime_cpu fp32"),
    ],
)
@pytest.mark.parametrize("when", ["at_start", "running"])
def test_the_next_candidate_takes_over_whenever_one_cannot_start(
    gpu, cuda_provider, failing, half, tmp_path, fails, runs, when
):
    # An engine is run once when it starts, so an engine that cannot run counts as not started.
    setattr(failing, when, dict.fromkeys(fails, RuntimeError("no luck")))
    fuser = Fuser(load_engine(half, cache_dir=tmp_path))
    fuser.warmup(SIZE)
    assert str(fuser.engine.candidate) == runs
    assert all(passed.reason == "no luck" for passed in fuser.engine.passed_over)
    assert bool(fuser.engine.passed_over) == bool(fails)


def test_a_candidate_that_was_passed_over_is_not_tried_again(
    gpu, cuda_provider, failing, average, tmp_path
):
    failing.at_start = {"tensorrt fp32, images": EngineError("bad")}
    fuser = Fuser(load_engine(average, cache_dir=tmp_path))
    for size in (SIZE, Size(80, 48), SIZE):
        fuser.warmup(size)
    assert failing.tried.count("tensorrt fp32, images converted on the GPU") == 1
    assert len(fuser.engine.passed_over) == 1


def test_a_backend_that_fails_while_it_runs_costs_one_frame(
    gpu, cuda_provider, failing, average, tmp_path
):
    fuser = Fuser(load_engine(average, cache_dir=tmp_path))
    thermal, visible = pair()
    before = fuser.fuse(thermal, visible)
    failing.running = {"tensorrt": RuntimeError("the GPU has fallen off the bus")}
    with pytest.raises(EngineError, match="fallen off the bus"):
        fuser.fuse(thermal, visible)
    after = fuser.fuse(thermal, visible)
    assert np.abs(after.astype(int) - before).max() <= 2
    assert fuser.engine.candidate.backend == "onnxruntime_cuda"
    assert named(fuser.engine) == [
        "tensorrt not used: it failed while running: the GPU has fallen off the bus"
    ]


def test_a_detector_that_fails_while_it_runs_costs_one_image(gpu, cuda_provider, failing, tmp_path):
    boxes = [(0, 0.9, (8, 8, 24, 40)), (1, 0.7, (30, 8, 50, 40))]
    onnx = write_detector_onnx(tmp_path / "boxes.onnx", boxes)
    detector = Detector(load_engine(onnx, cache_dir=tmp_path))
    image = pair()[1]
    found = detector.detect(image)
    failing.running = {"tensorrt": RuntimeError("lost"), "onnxruntime_cuda": RuntimeError("too")}
    with pytest.raises(EngineError, match="lost"):
        detector.detect(image)
    assert detector.detect(image) == found and len(found) == 2
    assert detector.engine.device == "CPU" and not detector.converts_on_gpu


def test_a_named_backend_that_fails_while_it_runs_runs_the_next_frame(failing, average):
    engine = load_engine(average, "onnxruntime_cpu")
    assert_fuses(engine)
    failing.running = {"onnxruntime_cpu": RuntimeError("out of memory")}
    engine = load_engine(average, "onnxruntime_cpu")
    with pytest.raises(EngineError, match="out of memory"):
        engine.run(feeds())
    failing.running = {}
    assert_fuses(engine)
    assert engine.passed_over == []


def test_feeds_that_do_not_fit_pass_no_candidate_over(gpu, average, tmp_path):
    engine = load_engine(average, cache_dir=tmp_path)
    for bad in ({"ir": feeds()["ir"]}, {**feeds(), "vi": np.zeros((1, 3, 48, 64), np.float32)}):
        with pytest.raises(FeedError):
            engine.run(bad)
    assert engine.passed_over == []
    assert_fuses(engine)


def test_an_error_of_all_candidates_names_the_reason_of_each(gpu, failing, half, tmp_path):
    failing.at_start = {"tensorrt fp32": EngineError("one"), "tensorrt fp16": EngineError("two")}
    with pytest.raises(EngineError, match="tensorrt fp32 not used: one; tensorrt fp16 .*: two"):
        load_engine(half, "tensorrt", cache_dir=tmp_path)


# A GPU that is there and not used


def test_a_gpu_that_is_not_used_is_named_with_the_reasons(average, monkeypatch):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    monkeypatch.setattr(cuda, "gpu_is_present", lambda: True)
    engine = load_engine(average)
    assert engine.device == "CPU"
    assert engine.gpu_unused.startswith("tensorrt not used: no NVIDIA GPU with a driver")
    assert "onnxruntime_cuda not used: " in engine.gpu_unused


def test_a_gpu_is_present_if_its_driver_has_device_files(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    monkeypatch.setattr(cuda, "_TRACES", (str(tmp_path / "nv_tegra_release"),))
    assert not cuda.gpu_is_present()
    (tmp_path / "nv_tegra_release").touch()
    assert cuda.gpu_is_present()


def test_no_unused_gpu_is_reported_without_one_or_if_the_backend_needs_none(average, monkeypatch):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    monkeypatch.setattr(cuda, "gpu_is_present", lambda: False)
    assert load_engine(average).gpu_unused == ""
    monkeypatch.setattr(cuda, "gpu_is_present", lambda: True)
    assert load_engine(average, "onnxruntime_cpu").gpu_unused == ""
    assert load_engine(average, "null").gpu_unused == ""


@pytest.mark.parametrize(("driver", "wanted"), [(12, "12"), (13, "13"), (None, "12")])
def test_missing_cuda_bindings_are_a_lasting_reason_with_the_pip_command(
    gpu, average, tmp_path, monkeypatch, driver, wanted
):
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "driver", lambda: object())
    monkeypatch.setattr(cuda, "driver_major", lambda: driver)
    monkeypatch.setattr(cuda, "device_name", lambda: "Orin")
    monkeypatch.setattr(cuda, "compute_capability", lambda: "8.7")
    monkeypatch.setattr(tensorrt, "import_library", lambda: gpu.library)
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    engine = load_engine(average, cache_dir=tmp_path)
    assert engine.device == "CPU"
    for _ in range(2):
        assert_fuses(engine)
        assert f"`pip install 'cuda-bindings=={wanted}.*'`" in engine.gpu_unused


# What is missing


def test_a_missing_onnxruntime_is_named_with_the_command_that_installs_it(average):
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from fusion_ros.inference import EngineError, load_engine\n"
        "try:\n"
        f"    load_engine({str(average)!r})\n"
        "except EngineError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "onnxruntime cannot be imported" in said.stdout
    assert "`pip install 'onnxruntime>=1.18'`" in said.stdout


def test_a_model_too_new_for_onnxruntime_is_refused_with_both_versions_and_the_remedy(average):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(average)
    model.ir_version = 99
    onnx.save(model, average)
    for backend in ("onnxruntime_cpu", "auto"):
        with pytest.raises(EngineError, match=r"IR version 99, but onnxruntime \d+\.") as raised:
            load_engine(average, backend)
        assert "`pip install --upgrade 'onnxruntime>=1.18'`" in str(raised.value)


def test_a_model_of_an_opset_too_new_is_refused_with_both_numbers(average):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(average)
    model.opset_import[0].version = 99
    onnx.save(model, average)
    with pytest.raises(
        EngineError, match=r"ONNX opset 99, but onnxruntime \S+ reads only up to \d"
    ):
        load_engine(average, "onnxruntime_cpu")


def test_a_float16_model_on_the_cpu_gives_way_to_the_float32_model(half, monkeypatch):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    engine = load_engine(half, precision="fp16")
    assert engine.precision == "fp32"
    assert engine.passed_over[-1].candidate == Candidate("onnxruntime_cpu", "fp16")
    assert load_engine(half, "onnxruntime_cpu", precision="fp16").precision == "fp16"
