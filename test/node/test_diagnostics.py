# SPDX-License-Identifier: AGPL-3.0-only
"""The node's report: what runs, and why not a better engine."""

from __future__ import annotations

import pytest
from support import write_fusion_onnx

from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pairing import Pairer
from fusion_ros.frame.pipeline import Network, Pipeline
from fusion_ros.frame.settings import Settings
from fusion_ros.inference import cuda, load_engine
from fusion_ros.node.diagnostics import Diagnostics, Level


@pytest.fixture
def status(tmp_path, monkeypatch):
    """Return the status of a node whose engine is chosen by `backend`."""
    monkeypatch.setattr(cuda, "driver", lambda: None)
    average = write_fusion_onnx(tmp_path / "average.onnx")

    def make(backend: str):
        network = Network(str(average), Fuser(load_engine(average, backend)))
        monitor = Monitor()
        pipeline = Pipeline(Settings(method=str(average)), network, monitor)
        diagnostics = Diagnostics(
            "fuse_node", monitor, Pairer(50_000_000), pipeline, (), str, lambda topic: 0
        )
        return lambda: diagnostics.statuses(0, None)[0]

    return make


def test_the_report_names_what_runs_and_why_each_better_engine_does_not(status, monkeypatch):
    monkeypatch.setattr(cuda, "gpu_is_present", lambda: False)
    report = status("auto")()
    assert report.values["engine"].startswith("onnxruntime ")
    passed_over = report.values["engine_passed_over"]
    assert "tensorrt not used: " in passed_over and "onnxruntime_cuda not used: " in passed_over
    assert report.level == Level.OK
    assert status("onnxruntime_cpu")().values["engine_passed_over"] == "none"


def test_a_gpu_that_is_not_used_is_a_warning_for_as_long_as_it_lasts(status, monkeypatch):
    monkeypatch.setattr(cuda, "gpu_is_present", lambda: True)
    report = status("auto")
    for _ in range(2):
        assert report().level == Level.WARN
        assert report().message.startswith("the GPU is not used: tensorrt not used: ")
    assert status("onnxruntime_cpu")().level == Level.OK
