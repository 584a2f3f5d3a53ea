# SPDX-License-Identifier: AGPL-3.0-only
"""The node's report: what runs, what is wrong, and how others read it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from support import write_fusion_onnx

from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pairing import Pairer
from fusion_ros.frame.pipeline import Network, Pipeline
from fusion_ros.frame.settings import Settings
from fusion_ros.inference import cuda, load_engine
from fusion_ros.node.camera import Camera
from fusion_ros.node.diagnostics import Diagnostics, Level, Report, Status

SECOND = 1_000_000_000


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


class Watched:
    """Diagnostics of two cameras without a pipeline."""

    def __init__(self) -> None:
        self.monitor = Monitor()
        self.pairer = Pairer(50_000_000)
        self.cameras = (Camera("thermal"), Camera("rgb"))
        self.settings = Settings()
        self.diagnostics = Diagnostics(
            "front/fuse_node",
            self.monitor,
            self.pairer,
            SimpleNamespace(),
            self.cameras,
            lambda topic: f"/front/{topic}",
            lambda topic: 2,
        )

    def send(self, count: int, thermal_ahead_s: float, first_s: float = 100.0) -> None:
        for number in range(count):
            stamp = round((first_s + number) * SECOND)
            for camera, add, ahead in zip(
                self.cameras,
                (self.pairer.add_thermal, self.pairer.add_visible),
                (round(thermal_ahead_s * SECOND), 0),
            ):
                camera.stamp_ns = stamp + ahead
                add(stamp + ahead, number)

    def faults(self) -> dict[str, str]:
        """Faults by the name of their counter, after a check."""
        self.diagnostics.check(self.settings)
        return {fault.name: fault.text for fault in self.monitor.snapshot().faults}


def test_a_silent_camera_is_named_with_its_topic_and_the_publishers_there():
    watched = Watched()
    assert watched.faults() == {}
    watched.cameras[0].silent = True
    faults = watched.faults()
    assert list(faults) == ["thermal_silent"]
    assert "/front/thermal/image_raw (publishers: 2)" in faults["thermal_silent"]


def test_images_that_never_make_a_pair_are_reported_with_their_distance():
    watched = Watched()
    watched.faults()
    watched.send(4, thermal_ahead_s=0.4)
    assert watched.faults() == {}  # too few to tell
    watched.send(4, thermal_ahead_s=0.4, first_s=110.0)
    assert "stamps are +0.400 s from" in watched.faults()["unpaired"]


def test_images_that_make_pairs_are_not_reported_nor_those_from_before_a_restart():
    watched = Watched()
    watched.faults()
    watched.send(20, thermal_ahead_s=0.01)
    assert watched.faults() == {}
    watched.send(20, thermal_ahead_s=0.4, first_s=200.0)
    watched.diagnostics.restart()
    assert watched.faults() == {}


def test_stamps_that_jump_back_are_reported_once():
    watched = Watched()
    watched.send(3, 0.0)
    watched.send(3, 0.0, first_s=10.0)
    assert list(watched.faults()) == ["time_jump"]
    watched.faults()
    assert watched.monitor.snapshot().counters["time_jump"] == 1


def test_a_report_is_read_back_as_it_was_sent():
    messages = pytest.importorskip("fusion_ros.node.messages")
    from builtin_interfaces.msg import Time

    sent = Status("front/fuse_node: fusion", Level.WARN, "slow", {"fps": "3.000"}, "cpu")
    other = dataclasses.replace(sent, name="rear/fuse_node: fusion", values={"fused": "7"})
    array = messages.diagnostic_array([other, sent], Time(sec=3, nanosec=5))
    report = Report.read(array, "front/fuse_node")
    assert report == Report(3 * SECOND + 5, {"fps": "3.000"}, Level.WARN, "slow")
    assert (report.count("fused"), Report.read(array, "rear/fuse_node").count("fused")) == (0, 7)
    assert Report.read(array) is None


def test_stage_times_of_a_report_are_numbers_by_stage():
    report = Report(0, {"stage_fuse_ms": "12.500", "stage_warp_ms": "1.000", "fps": "30.000"})
    assert report.stage_ms == {"fuse": 12.5, "warp": 1.0}
