# SPDX-License-Identifier: AGPL-3.0-only
"""Benchmark of the networks: what is counted and timed, and the script's JSON."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from support import write_fusion_onnx

torch = pytest.importorskip("torch", reason="the benchmark needs torch: pip install .[train]")
pytest.importorskip("kornia", reason="the networks need kornia: pip install .[train]")
pytest.importorskip("onnxruntime")

from fusion_models.deploy.speed import (  # noqa: E402
    Timing,
    count_work,
    interleaved,
    operator_shares,
)
from training import time_networks  # noqa: E402


def test_forms_run_in_turn_and_warm_up_does_not_count():
    order = []
    timings = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=1
    )
    assert order == ["a", "b"] * 4
    assert timings["a"].runs == timings["b"].runs == 3


def test_a_timing_is_the_median_the_least_and_the_95th_percentile():
    assert Timing.of([5.0, 1.0, 3.0]) == Timing(3.0, 1.0, 5.0, 3)
    assert Timing.of([float(ms) for ms in range(101)]) == Timing(50.0, 0.0, 95.0, 101)


def test_work_is_counted_from_the_shapes(tmp_path):
    # A 3x3 convolution from 1 to 32 channels, one back, then sums of two maps.
    work = count_work(write_fusion_onnx(tmp_path / "slow.onnx", "slow", layers=2), (48, 64))
    assert work.macs == 48 * 64 * 2 * 9 * 32
    assert work.parameters >= 2 * 9 * 32
    # Mean 3 maps, convolutions 1 + 32 and 32 + 1, Mul 2, Add 3, Clip 2; and the kernels.
    assert work.bytes_moved == pytest.approx(4 * 48 * 64 * (3 + 33 + 33 + 2 + 3 + 2), rel=0.01)


def test_operators_of_a_network_are_told_apart(tmp_path):
    path = write_fusion_onnx(tmp_path / "slow.onnx", "slow", layers=4)
    shares = operator_shares(path, np.zeros((2, 1, 1, 64, 64), np.float32), threads=1, repeats=2)
    assert next(iter(shares)) == "Conv" and shares["Conv"] > 0


def test_the_script_writes_what_it_measured(tmp_path, capsys):
    output = tmp_path / "time_networks.json"
    settings = ["methods=caf", "width=64", "height=64", "repeats=2", "threads=1", "profile=true"]
    assert time_networks.main([*settings, f"output={output}"]) == 0
    record = json.loads(output.read_text())
    figures = record["methods"]["caf"]
    assert set(figures["cpu"]) == {"onnx", "torch", "eager"}
    assert all(0 < t["min_ms"] <= t["median_ms"] for t in figures["cpu"].values())
    assert len(figures["onnx_sha256"]) == 64 and figures["operators_ms"]["Conv"] > 0
    assert record["host"]["cores"] >= 1 and "torch" in record["versions"]
    assert "caf" in capsys.readouterr().out


def test_whole_images_are_timed_on_a_gpu_by_who_converts_them(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_fusion_onnx(tmp_path / "average.onnx")
    config = SimpleNamespace(width=64, height=48, repeats=2)
    timings = time_networks.on_images(path, config)
    forms = [f"tensorrt_fp32_converted_by_{converter}" for converter in ("gpu", "cpu")]
    assert list(timings) == forms and all(t.median_ms > 0 for t in timings.values())
    assert len(gpu.built) == 2, "one network of images and one of floats"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("methods=nonsense", "unknown method 'nonsense': choose from .*baffm"),
        ("width=100", "multiples of 8"),
        ("repeats=0", "at least 1"),
        ("weights=/nowhere", "/nowhere/baffm.onnx is missing"),
        ("speed=fast", "unknown settings speed"),
    ],
)
def test_wrong_settings_are_refused_with_a_message(setting, told, capsys):
    assert time_networks.main([setting]) == 2
    assert re.search(told, capsys.readouterr().err)
