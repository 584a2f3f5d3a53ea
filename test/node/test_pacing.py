# SPDX-License-Identifier: AGPL-3.0-only
"""A node that keeps the cameras' pace: sizes that change, and the detector beside fusion."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from support import write_detector_onnx

from fusion_ros.frame.detector import Detector
from fusion_ros.frame.pace import Change
from fusion_ros.harness.rig import Rig
from fusion_ros.inference import EngineError
from fusion_ros.node import loader
from fusion_ros.node.fuse_node import FuseNode
from fusion_ros.node.outputs import FUSED

pytestmark = pytest.mark.usefixtures("ros")
names = (f"test_pacing_{number}" for number in itertools.count())


@pytest.fixture
def rig(average):
    """Make a rig with a running node that fuses by the mean of both images."""
    rigs: list[Rig] = []

    def make(**parameters) -> Rig:
        one = Rig(next(names), keep_images=True)
        rigs.append(one)
        defaults = {"method": average, "backend": "onnxruntime_cpu", "threads": 1, "detect": False}
        one.local = one.run(FuseNode, **defaults | parameters)
        assert one.wait(lambda: one.local.configured.outputs.wanted(FUSED))
        return one

    yield make
    for one in rigs:
        one.close()


def fuse(rig: Rig, level: int = 100) -> int:
    """Send a pair of 96x72 pixels, wait for its fused image and return its stamp."""
    stamp = time.time_ns()
    rig.send(stamp, np.full((72, 96), level, np.uint8), np.full((72, 96, 3), level, np.uint8))
    assert rig.wait(lambda: stamp in rig.images)
    return stamp


def ask_for(rig: Rig, size: int, monkeypatch) -> None:
    """Have the pace ask for a size once."""
    pace = rig.local.configured.pace
    changes = [Change(size, f"to {size}")]
    monkeypatch.setattr(pace, "decide", lambda: changes.pop() if changes else None)


def test_no_frame_is_lost_while_another_size_is_loaded_and_taken_over(rig, monkeypatch):
    one = rig(min_processing_size=32)
    sent = [fuse(one)]
    configured = one.local.configured
    for size in (48, 64, 0):
        ask_for(one, size, monkeypatch)
        for _ in range(1000):
            sent.append(fuse(one))
            if configured.pipeline.running.fuser.processing_size == size:
                break
        else:
            pytest.fail(f"{size} px never ran")
    assert one.stamps == sent
    report = one.settle()
    assert report.count("displaced") == report.count("rejected") == 0
    assert report.values["processing_size"] == "0"
    assert report.values["processing_sizes_ready"] != "none"


def test_each_change_is_logged_once(rig, monkeypatch):
    one = rig()
    fuse(one)
    said: list[str] = []
    logger = one.local.get_logger()
    monkeypatch.setattr(logger, "info", lambda text: said.append(text))
    monkeypatch.setattr(one.local, "get_logger", lambda: logger)
    ask_for(one, 48, monkeypatch)
    assert one.wait(lambda: one.local.configured.pipeline.network.fuser.processing_size == 48)
    fuse(one)
    assert [text for text in said if "48" in text] == ["to 48"]


def test_a_size_whose_network_cannot_be_loaded_leaves_the_running_one_and_the_parameter(
    rig, monkeypatch
):
    one = rig()
    fuse(one)
    running = one.local.configured.pipeline.network

    def fail(*args):
        raise EngineError("no engine")

    monkeypatch.setattr(loader, "load_network", fail)
    ask_for(one, 48, monkeypatch)
    assert one.wait(lambda: one.report and "48 cannot be loaded: no" in one.report.message)
    fuse(one)
    assert one.local.configured.pipeline.network is running
    assert one.local.get_parameter("processing_size").value == "auto"
    assert one.local.configured.pace.size == running.fuser.processing_size


def test_a_fixed_size_is_left_alone_and_auto_takes_over_again(rig, monkeypatch):
    one = rig(processing_size=48)
    fuse(one)
    ask_for(one, 64, monkeypatch)
    one.next_report()
    fuse(one)
    assert one.settle().values["processing_size"] == "48"
    assert one.set(processing_size="auto") == ""
    assert one.wait(lambda: one.local.configured.pipeline.network.fuser.processing_size != 48)
    assert one.set(processing_size="40") == ""
    assert one.wait(lambda: one.local.configured.pipeline.network.fuser.processing_size == 40)
    assert one.local.get_parameter("processing_size").value == 40


def test_diagnostics_show_size_rate_and_what_limits_it(rig):
    one = rig()
    for _ in range(12):
        fuse(one)
    values = one.next_report().values
    assert values["processing_size_auto"] == "True"
    assert float(values["wanted_fps"]) > 0
    assert float(values["held_fps"]) > 0
    assert values["limited_by"] in ("nothing", "network", "detector", "conversion and publishing")


@pytest.fixture
def detector(tmp_path) -> str:
    return str(write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (8, 8, 40, 40))]))


def boxes_of(rig: Rig) -> list[int]:
    """Subscribe to the boxes; the list is filled with the stamps of those that come."""
    messages = pytest.importorskip("vision_msgs.msg")
    stamps: list[int] = []

    def keep(msg) -> None:
        stamps.append(msg.header.stamp.sec * 1_000_000_000 + msg.header.stamp.nanosec)

    rig.node.create_subscription(messages.Detection2DArray, "detections", keep, 10)
    assert rig.wait(lambda: rig.local.configured.outputs.wanted("detections"))
    return stamps


def test_every_third_frame_is_searched_and_boxes_carry_its_stamp(rig, detector):
    one = rig(detect=True, detector=detector, detect_every=3)
    stamps = boxes_of(one)
    sent = [fuse(one) for _ in range(9)]
    assert one.wait(lambda: len(stamps) == 3)
    assert stamps == sent[2::3]


def test_a_slow_detector_beside_fusion_delays_no_frame_and_boxes_carry_the_stamp_of_theirs(
    rig, detector, monkeypatch
):
    one = rig(detect=True, detector=detector)
    stamps = boxes_of(one)
    images: list[np.ndarray] = []
    waiting = True
    real = Detector.detect

    def slow(self, image, on_device=None):
        images.append(image.copy())
        while waiting:
            time.sleep(0.005)
        return real(self, image, on_device)

    monkeypatch.setattr(Detector, "detect", slow)
    sent = [fuse(one, 40)]
    assert one.wait(lambda: images)
    sent += [fuse(one, 80 + 10 * i) for i in range(5)]
    assert stamps == []
    waiting = False
    assert one.wait(lambda: stamps)
    assert stamps == sent[:1]
    assert abs(int(images[0][0, 0, 0]) - 40) <= 1
    last = fuse(one, 200)
    assert one.wait(lambda: len(stamps) == 2)
    assert stamps[1] == last
    report = one.settle()
    assert report.count("fused") == 7
    assert report.count("searched") == 2


def test_if_the_detector_fails_only_its_boxes_are_lost(rig, detector, monkeypatch):
    one = rig(detect=True, detector=detector)
    boxes_of(one)

    def fail(self, image, on_device=None):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Detector, "detect", fail)
    for _ in range(3):
        fuse(one)
    assert one.wait(lambda: one.count("detector_failed") >= 1)
    assert one.settle().count("fused") == 3
