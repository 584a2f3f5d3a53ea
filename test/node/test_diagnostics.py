# SPDX-License-Identifier: AGPL-3.0-only
"""The node's report: what runs, what is wrong, and how others read it."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest
from support import pair, write_fusion_onnx

from fusion_ros.frame.calibration import Calibration
from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pairing import Pairer
from fusion_ros.frame.pipeline import Network, Pipeline
from fusion_ros.inference import cuda, load_engine
from fusion_ros.node.advice import far_apart
from fusion_ros.node.camera import Camera
from fusion_ros.node.diagnostics import (
    Diagnostics,
    Level,
    Report,
    Status,
    Work,
    without_network,
)
from fusion_ros.node.parameters import Parameters

SECOND = 1_000_000_000
PARTS = dict.fromkeys(("thermal camera", "rgb camera", "registration", "detector", "fusion"))


@dataclasses.dataclass
class MadeUpGraph:
    """Other nodes and topics as a test says; all topics are below /front."""

    node_name: str = "front/fuse_node"
    sim_time: bool = False
    now: int = 1
    twins: int = 0
    topics: dict[str, list[SimpleNamespace]] = dataclasses.field(default_factory=dict)

    def resolve(self, topic: str) -> str:
        return topic if topic.startswith("/") else f"/front/{topic}"

    def publishers(self, topic: str) -> list[SimpleNamespace]:
        return self.topics.get(self.resolve(topic), [])

    def image_topics(self) -> list[str]:
        return sorted(self.topics)

    def namesakes(self) -> int:
        return self.twins

    def now_ns(self) -> int:
        return self.now

    def publish(self, topic: str, node: str, kind: str = "sensor_msgs/msg/Image", **qos) -> None:
        """Add a publisher."""
        offered = {"reliable": True, "latched": False} | qos
        one = SimpleNamespace(node=node, kind=kind, **offered)
        self.topics.setdefault(self.resolve(topic), []).append(one)


class Watched:
    """Diagnostics of two cameras that publish, on a clock that the test moves."""

    def __init__(self, path, backend: str = "onnxruntime_cpu", **parameters) -> None:
        average = write_fusion_onnx(path / "average.onnx")
        self.parameters = Parameters(method=str(average), detect=False, **parameters)
        self.now = 1000.0
        network = Network(str(average), Fuser(load_engine(average, backend)))
        self.monitor = Monitor()
        self.pipeline = Pipeline(self.parameters, network, self.monitor)
        self.pairer = Pairer(50_000_000)
        self.cameras = tuple(Camera(name, clock=lambda: self.now) for name in ("thermal", "rgb"))
        self.graph = MadeUpGraph()
        self.work = Work()
        for camera in self.cameras:
            camera.topic = self.graph.resolve(camera.image_topic)
            camera.kind = "sensor_msgs/msg/Image"
            self.graph.publish(camera.image_topic, f"/front/{camera.name}_driver")
        self.diagnostics = Diagnostics(
            self.monitor,
            self.pipeline,
            self.cameras,
            self.graph,
            lambda: self.pairer.counts,
            lambda: self.work,
        )
        self.diagnostics.restart()

    def send(
        self,
        count: int,
        thermal_ahead_s: float = 0.0,
        first_s: float = 100.0,
        rate: float = 10.0,
        step_s: float = 1.0,
    ) -> None:
        for number in range(count):
            self.now += 1 / rate
            stamp = round((first_s + number * step_s) * SECOND)
            for camera, add, ahead in zip(
                self.cameras,
                (self.pairer.add_thermal, self.pairer.add_visible),
                (round(thermal_ahead_s * SECOND), 0),
            ):
                camera.hear()
                camera.use(stamp + ahead)
                add(stamp + ahead, number)

    def fall_silent(self, seconds: float = 5.0) -> None:
        self.now += seconds
        for camera in self.cameras * 2:
            camera.watch(1.0)

    def statuses(self) -> dict[str, Status]:
        """The status of each part by its name."""
        statuses = self.diagnostics.statuses(self.parameters)
        return {status.name.partition(": ")[2]: status for status in statuses}

    def status(self, part: str) -> tuple[Level, str]:
        """Level and message, the same at the second time: nothing is told as an event."""
        first, second = self.statuses()[part], self.statuses()[part]
        assert first.level == second.level
        assert first.message[:20] == second.message[:20]
        return second.level, second.message

    def faults(self) -> dict[str, str]:
        """Faults by the name of their counter, after a check."""
        self.statuses()
        return {fault.name: fault.text for fault in self.monitor.snapshot().faults}


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


# --- What runs ------------------------------------------------------------------------------------


def test_each_part_has_a_status_and_the_fusion_is_the_last(watched):
    watched.send(30)
    statuses = watched.statuses()
    assert list(statuses) == list(PARTS)
    assert {status.level for status in statuses.values()} == {Level.OK}
    assert all(status.name.startswith("front/fuse_node: ") for status in statuses.values())


def test_the_report_names_what_runs_and_why_each_better_engine_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    monkeypatch.setattr(cuda, "gpu_is_present", lambda: False)
    report = Watched(tmp_path, "auto").statuses()["fusion"]
    assert report.values["engine"].startswith("onnxruntime ")
    passed_over = report.values["engine_passed_over"]
    assert "tensorrt not used: " in passed_over and "onnxruntime_cuda not used: " in passed_over
    assert report.level == Level.OK
    named = Watched(tmp_path, "onnxruntime_cpu").statuses()["fusion"]
    assert named.values["engine_passed_over"] == "none"


def test_a_gpu_that_is_not_used_is_a_warning_for_as_long_as_it_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    monkeypatch.setattr(cuda, "gpu_is_present", lambda: True)
    level, text = Watched(tmp_path, "auto").status("fusion")
    assert level == Level.WARN
    assert text.startswith("the GPU is not used: tensorrt not used: ")
    assert Watched(tmp_path, "onnxruntime_cpu").status("fusion")[0] == Level.OK


def test_an_inactive_node_reports_stale_parts_and_what_is_wrong_all_the_same(watched):
    watched.diagnostics.pause()
    assert {status.level for status in watched.statuses().values()} == {Level.STALE}
    watched.work = Work(in_progress=1, pending=1, frame_s=100.0)
    assert watched.status("fusion")[0] == Level.ERROR


def test_an_unconfigured_node_reports_why(watched):
    statuses = without_network("front/fuse_node", "unconfigured", "there is no such model")
    assert [status.name for status in statuses] == [f"front/fuse_node: {part}" for part in PARTS]
    assert statuses[-1].level == Level.ERROR
    assert "no such model" in statuses[-1].message
    assert statuses[0].level == Level.STALE


def test_values_and_messages_are_cut_where_they_are_too_long(watched):
    watched.cameras[0].topic = "/" + "a" * 100_000
    watched.cameras[0].hear()
    watched.cameras[0].refuse("b" * 100_000)
    status = watched.statuses()["thermal camera"]
    assert len(status.message) <= 2000
    assert max(map(len, status.values.values())) <= 500


# --- Cameras ------------------------------------------------------------------------------------


def test_a_silent_camera_is_an_error_that_names_its_topic_and_publisher(watched):
    watched.send(30)
    watched.fall_silent()
    level, text = watched.status("thermal camera")
    assert level == Level.ERROR
    assert "/front/thermal/image_raw (publishers: 1)" in text
    assert "/front/thermal_driver publishes it, but sends nothing" in text
    assert "thermal_silent" in watched.faults()


def test_a_camera_that_nobody_publishes_is_told_with_the_topics_there_are(watched):
    watched.graph.topics.clear()
    watched.graph.publish("/lepton/image", "/lepton_driver")
    watched.fall_silent()
    level, text = watched.status("thermal camera")
    assert level == Level.ERROR
    assert "start the camera or remap the topic; topics with images: /lepton/image" in text


def test_raw_images_where_compressed_ones_are_asked_for_are_named(watched):
    rgb = watched.cameras[1]
    rgb.topic, rgb.kind = f"{rgb.topic}/compressed", "sensor_msgs/msg/CompressedImage"
    watched.fall_silent()
    level, text = watched.status("rgb camera")
    assert level == Level.ERROR
    assert "/front/rgb_driver publishes the images on /front/rgb/image_raw uncompressed" in text
    assert "set input_transport to auto or raw" in text


def test_a_publisher_of_another_type_is_named_with_the_type(watched):
    watched.graph.topics.clear()
    kind = "sensor_msgs/msg/CompressedImage"
    watched.graph.publish("rgb/image_raw", "/usb_cam", kind)
    watched.graph.publish("thermal/image_raw", "/talker", "std_msgs/msg/String")
    watched.fall_silent()
    level, text = watched.status("rgb camera")
    assert (level, "start the camera" in text) == (Level.ERROR, False)
    assert f"/usb_cam publishes {kind} on /front/rgb/image_raw" in text
    assert "input_transport" in text
    assert "std_msgs/msg/String" in watched.status("thermal camera")[1]
    assert "remap" in watched.status("thermal camera")[1]


def test_a_topic_of_calibrations_that_carries_something_else_is_named(watched):
    assert "calibrat" not in watched.status("rgb camera")[1]
    watched.graph.publish("rgb/camera_info", "/talker", "std_msgs/msg/String")
    level, text = watched.status("rgb camera")
    assert level == Level.WARN
    assert "/talker publishes std_msgs/msg/String on /front/rgb/camera_info" in text
    watched.graph.publish("rgb/camera_info", "/driver", "sensor_msgs/msg/CameraInfo")
    assert watched.status("rgb camera")[0] == Level.OK


def test_a_qos_mismatch_is_told_of_every_camera_for_as_long_as_it_lasts(watched):
    watched.graph.topics.clear()
    for camera in watched.cameras:
        watched.graph.publish(camera.image_topic, "/bag", reliable=False)
    watched.fall_silent()
    for camera in watched.cameras:
        level, text = watched.status(f"{camera.name} camera")
        assert level == Level.ERROR
        assert "qos:=best_effort" in text
        camera.reliable = False
    assert "qos:=best_effort" not in watched.status("rgb camera")[1]


def test_a_second_publisher_of_a_camera_is_named(watched):
    watched.graph.publish("rgb/image_raw", "/bag_player")
    watched.send(30)
    level, text = watched.status("rgb camera")
    assert level == Level.WARN
    assert "/bag_player, /front/rgb_driver" in text


def test_a_camera_below_half_its_usual_rate_is_a_warning(watched):
    watched.send(60, rate=20.0)
    assert watched.status("rgb camera")[0] == Level.OK
    watched.send(40, first_s=200.0, rate=8.0)
    level, text = watched.status("rgb camera")
    assert level == Level.WARN
    assert "8.0 rgb images a second, usual are 20.0" in text
    watched.send(90, first_s=300.0, rate=15.0)
    assert watched.status("rgb camera")[0] == Level.OK


def test_the_expected_rate_can_be_a_parameter(tmp_path):
    watched = Watched(tmp_path, rgb_rate=30.0)
    watched.send(30, rate=10.0)
    assert watched.status("rgb camera")[0] == Level.WARN
    assert watched.status("thermal camera")[0] == Level.OK


def test_repeated_stamps_are_a_warning_that_offers_the_arrival(watched):
    for _ in range(50):
        watched.send(1)
    level, text = watched.status("thermal camera")
    assert level == Level.WARN
    assert "98% of the thermal images repeat the stamp" in text
    assert "stamp_source to arrival" in text


def test_images_that_are_all_refused_are_an_error_with_the_reason(watched):
    for _ in range(10):
        watched.cameras[1].hear()
        watched.cameras[1].refuse("unsupported image encoding 'jpeg2000'")
    level, text = watched.status("rgb camera")
    assert level == Level.ERROR
    assert "100% of the rgb images cannot be used: unsupported image encoding 'jpeg2000'" in text


# --- Pairing, clocks, nodes -----------------------------------------------------------------------


def test_images_that_never_make_a_pair_are_an_error_with_their_distance(watched):
    watched.faults()
    watched.send(4, thermal_ahead_s=0.4)
    assert watched.faults() == {}  # too few to tell
    watched.send(4, thermal_ahead_s=0.4, first_s=110.0)
    level, text = watched.status("fusion")
    assert level == Level.ERROR
    assert "stamps are +0.400 s from" in text
    assert "thermal_time_offset, to about -0.400" in text
    assert "unpaired" in watched.faults()
    watched.send(20, first_s=200.0)
    assert "stamps are" not in watched.status("fusion")[1]


def test_an_offset_that_no_parameter_can_set_leads_to_the_stamps_of_arrival(watched):
    watched.faults()
    watched.send(10, thermal_ahead_s=-1.7e9 + 5000, first_s=1.7e9)
    text = watched.status("fusion")[1]
    assert "stamp_source to arrival" in text
    assert "set thermal_time_offset" not in text


def test_images_that_make_pairs_are_not_reported_nor_those_from_before_a_restart(watched):
    watched.faults()
    watched.send(20, thermal_ahead_s=0.01)
    assert watched.faults() == {}
    watched.send(20, thermal_ahead_s=0.4, first_s=200.0)
    watched.diagnostics.restart()
    assert watched.faults() == {}


def test_stamps_that_jump_back_are_reported_once(watched):
    watched.send(3, 0.0)
    watched.send(3, 0.0, first_s=10.0)
    assert list(watched.faults()) == ["time_jump"]
    watched.faults()
    assert watched.monitor.snapshot().counters["time_jump"] == 1


def test_two_publishers_whose_stamps_jump_are_named(watched):
    watched.graph.publish("rgb/image_raw", "/bag_player")
    watched.send(3, 0.0)
    watched.send(3, 0.0, first_s=10.0)
    text = watched.faults()["time_jump"]
    assert "/bag_player, /front/rgb_driver" in text
    assert "stop one of them" in text


def test_a_large_share_of_stale_images_is_a_warning_while_it_lasts(watched):
    watched.statuses()
    for number in range(30):
        watched.send(1, first_s=100.0 + number // 2)
    level, text = watched.status("fusion")
    assert level == Level.WARN
    assert "50% of the thermal images are stale" in text
    assert watched.statuses()["fusion"].values["thermal_share_stale"] == "0.500"


def test_time_that_never_comes_from_clock_is_told_by_its_cause(watched):
    watched.graph.sim_time, watched.graph.now = True, 0
    level, text = watched.status("fusion")
    assert level == Level.WARN
    assert "nobody publishes /clock" in text
    watched.graph.publish("/clock", "/player", "rosgraph_msgs/msg/Clock")
    assert "start its playback" in watched.status("fusion")[1]
    watched.graph.now = 5
    assert watched.status("fusion")[0] == Level.OK


@pytest.mark.parametrize(
    ("thermal", "rgb", "swapped"),
    [
        ("bgr8", "mono16", True),
        ("bayer_rggb8", "16UC1", False),
        ("rgba8", "32FC1", True),
        ("rgb8", "bgr8", False),  # thermal images in false colours
        ("mono16", "bgr8", False),
        ("", "mono16", False),  # compressed
    ],
)
def test_cameras_that_seem_to_have_each_others_topic_are_named(watched, thermal, rgb, swapped):
    watched.send(3)
    for camera, encoding in zip(watched.cameras, (thermal, rgb)):
        camera.hear("frame", encoding)
    level, text = watched.status("fusion")
    assert ("swapped, remap each to the other" in text) == swapped
    assert level == (Level.WARN if swapped else Level.OK)


@pytest.mark.parametrize(
    ("stamped_s_ago", "sim_time", "advice"),
    [
        (time.time() - time.monotonic(), False, "stamp_source to arrival"),
        (3600.0, False, "set use_sim_time"),
        (3600.0, True, "/clock"),
        (-3600.0, False, "synchronise the clocks"),
    ],
    ids=["since the start of the machine", "of a recording", "without a clock", "of the future"],
)
def test_stamps_far_from_the_nodes_time_lead_to_their_cause(stamped_s_ago, sim_time, advice):
    text = far_apart(1e3 * stamped_s_ago, sim_time)
    assert advice in text
    assert f"{abs(stamped_s_ago):.1f} s {'before' if stamped_s_ago > 0 else 'after'} this" in text


def test_a_node_of_the_same_name_is_told(watched):
    watched.graph.twins = 1
    level, text = watched.status("fusion")
    assert level == Level.WARN
    assert "1 more node(s) named /front/fuse_node" in text


def test_a_frame_that_never_ends_is_an_error_for_as_long_as_it_lasts(watched):
    watched.work = Work(in_progress=1, pending=1, frame_s=31.0)
    level, text = watched.status("fusion")
    assert level == Level.ERROR
    assert "taken 31 s, stuck_timeout is 30 s" in text
    watched.work = Work()
    assert watched.status("fusion")[0] == Level.OK


# --- Registration and detector --------------------------------------------------------------------


def test_images_that_stay_unregistered_are_a_warning_for_as_long_as_they_do(watched):
    thermal, visible = pair()
    for _ in range(3):
        watched.pipeline.fuse(np.ascontiguousarray(thermal[:40, :50]), visible)
    level, text = watched.status("registration")
    assert level == Level.WARN
    assert "thermal images are 50x40 and RGB images 64x48" in text
    status = watched.statuses()["registration"]
    assert status.values["source"] == "none, as if aligned"
    watched.pipeline.fuse(thermal, visible)
    assert watched.status("registration")[0] == Level.OK


def test_a_camera_that_lacks_its_calibration_is_named(watched):
    watched.pipeline.change(rgb_camera=Calibration((50.0, 0, 32, 0, 50.0, 24, 0, 0, 1)))
    watched.pipeline.fuse(*pair())
    level, text = watched.status("registration")
    assert level == Level.WARN
    assert "the thermal camera sends none" in text
    watched.pipeline.change(thermal_camera=Calibration((60.0, 0, 32, 0, 60.0, 24, 0, 0, 1)))
    watched.pipeline.fuse(*pair())
    assert watched.status("registration") == (Level.OK, "by camera_info")


def test_a_calibration_that_cannot_be_used_is_told_for_as_long_as_it_is_there(watched):
    broken = Calibration((float("nan"),) * 9)
    watched.pipeline.change(rgb_camera=broken, thermal_camera=broken)
    watched.pipeline.fuse(*pair())
    level, text = watched.status("registration")
    assert level == Level.WARN
    assert "calibration cannot be used" in text


def test_a_detector_that_is_missing_is_a_warning_for_as_long_as_it_is(watched):
    assert watched.status("detector") == (Level.OK, "switched off")
    watched.parameters = watched.parameters.replace(detect=True)
    watched.work = Work(detector_problem="there is no file yolo.onnx")
    level, text = watched.status("detector")
    assert level == Level.WARN
    assert "there is no file yolo.onnx" in text


# --- Reading --------------------------------------------------------------------------------------


def test_a_report_is_read_back_as_it_was_sent():
    messages = pytest.importorskip("fusion_ros.node.messages")
    from builtin_interfaces.msg import Time

    sent = Status("front/fuse_node: fusion", Level.WARN, "slow", {"fps": "3.000"}, "cpu")
    other = dataclasses.replace(sent, name="rear/fuse_node: fusion", values={"fused": "7"})
    array = messages.diagnostic_array([other, sent], Time(sec=3, nanosec=5))
    report = Report.read(array, "front/fuse_node")
    parts = {"fusion": sent}
    assert report == Report(3 * SECOND + 5, {"fps": "3.000"}, Level.WARN, "slow", parts)
    assert (report.count("fused"), Report.read(array, "rear/fuse_node").count("fused")) == (0, 7)
    assert Report.read(array) is None


def test_a_report_sums_up_all_parts():
    messages = pytest.importorskip("fusion_ros.node.messages")
    from builtin_interfaces.msg import Time

    node = "front/fuse_node"
    array = messages.diagnostic_array(
        [
            Status(f"{node}: thermal camera", Level.ERROR, "silent", {"rate": "0.000"}),
            Status(f"{node}: registration", Level.WARN, "none", {"source": "none"}),
            Status(f"{node}: fusion", Level.OK, "3 fps", {"fps": "3.000"}),
        ],
        Time(),
    )
    report = Report.read(array, node)
    assert (report.level, report.message) == (Level.ERROR, "silent; none")
    expected = {"fps": "3.000", "thermal_rate": "0.000", "registration_source": "none"}
    assert report.values == expected
    assert report.parts["registration"].level == Level.WARN


def test_stage_times_of_a_report_are_numbers_by_stage():
    report = Report(0, {"stage_fuse_ms": "12.500", "stage_warp_ms": "1.000", "fps": "30.000"})
    assert report.stage_ms == {"fuse": 12.5, "warp": 1.0}
