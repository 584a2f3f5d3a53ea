# SPDX-License-Identifier: AGPL-3.0-only
"""The fusion node over DDS: lifecycle, images in and out, faults, changes while it runs."""

from __future__ import annotations

import gc
import itertools
import resource
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from support import write_detector_onnx, write_fusion_onnx

from fusion_models.pairs import list_pairs
from fusion_ros.frame import images
from fusion_ros.frame.thermal import MODES
from fusion_ros.harness.rig import Rig
from fusion_ros.inference import EngineError
from fusion_ros.inference.models import list_methods
from fusion_ros.node.fuse_node import FuseNode
from fusion_ros.node.outputs import FUSED

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
PATIENCE_S = 60
SECOND = 1_000_000_000
STREAM_ENDS = ("paired", "too_far", "missing", "stale", "waiting")
ENCODINGS = {
    "mono8": (np.uint8, 1),
    "mono16": (np.uint16, 1),
    "rgb8": (np.uint8, 3),
    "bgr8": (np.uint8, 3),
    "rgba8": (np.uint8, 4),
    "bgra8": (np.uint8, 4),
    "8UC1": (np.uint8, 1),
    "16UC1": (np.uint16, 1),
    "8UC3": (np.uint8, 3),
}
pytestmark = pytest.mark.usefixtures("ros")
names = (f"test_node_{number}" for number in itertools.count())


def picture(encoding: str, level: int = 100, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Grey image whose upper half is darker; `level` of 255 for 8 bit, times 256 for 16."""
    dtype, channels = ENCODINGS[encoding]
    image = np.full((size[1], size[0], channels), level, np.uint8)
    image[: size[1] // 2] //= 2
    return (image.astype(dtype) * (256 if dtype == np.uint16 else 1)).squeeze()


def message(encoding: str = "bgr8", stamp_ns: int | None = None) -> Image:
    stamp = Time(nanoseconds=time.time_ns() if stamp_ns is None else stamp_ns).to_msg()
    return images.fill(Image(), picture(encoding), encoding, Header(stamp=stamp))


@dataclass
class Bench:
    """A fusion node in this process, and the rig around it."""

    rig: Rig
    node: FuseNode

    def fuse(
        self,
        thermal: np.ndarray | None = None,
        visible: np.ndarray | None = None,
        encodings: tuple[str, str] = ("mono8", "bgr8"),
    ) -> Image:
        """Send a pair of one stamp and return its fused image; what is not given is grey."""
        stamp = time.time_ns()
        pair = [
            picture(encoding) if image is None else image
            for image, encoding in zip((thermal, visible), encodings)
        ]
        self.rig.send(stamp, *pair, encodings)
        assert self.rig.wait(lambda: stamp in self.rig.images), self.status
        return self.rig.images[stamp]

    def counted(self, name: str, at_least: int = 1) -> bool:
        """Wait until the node reports a counter of at least this value."""
        return bool(self.rig.wait(lambda: self.rig.count(name) >= at_least))

    def reports(self, name: str, value: str) -> bool:
        """Wait until the node reports a value."""
        return bool(self.rig.wait(lambda: self.status.get(name) == value))

    def get(self, name: str):
        return self.node.get_parameter(name).value

    @property
    def status(self) -> dict[str, str]:
        return self.rig.report.values if self.rig.report else {}

    @property
    def text(self) -> str:
        """The latest summary."""
        return self.rig.report.message if self.rig.report else ""


def pixels(msg: Image) -> np.ndarray:
    return images.view(msg)


@pytest.fixture
def bench(average):
    """Make a node that fuses by the mean of both images; start=False leaves it unconfigured."""
    rigs: list[Rig] = []

    def make(start: bool = True, **parameters) -> Bench:
        defaults = {"method": average, "backend": "onnxruntime_cpu", "threads": 1, "detect": False}
        rig = Rig(next(names), keep_images=True)
        rigs.append(rig)
        node = rig.run(FuseNode, start, **defaults | parameters)
        if start:
            assert rig.wait(lambda: node.configured.outputs.wanted(FUSED))
        return Bench(rig, node)

    yield make
    for rig in rigs:
        rig.close()


def assert_adds_up(status: dict[str, str]) -> None:
    count = {key: int(value) for key, value in status.items() if value.isdigit()}
    for stream in ("thermal", "rgb"):
        ends = sum(count[f"{stream}_{end}"] for end in STREAM_ENDS)
        assert count[f"{stream}_received"] == ends, status
    done = count["fused"] + count["displaced"] + count["rejected"] + count["in_progress"]
    single = count["thermal_alone"] + count["rgb_alone"] + count["rgb_held"]
    assert count["rgb_paired"] + single == done, status


# --- Lifecycle ----------------------------------------------------------------------------------


def test_the_lifecycle_can_be_repeated_and_the_node_subscribes_only_while_active(bench):
    node = bench(start=False).node
    topic = node.resolve_topic_name("rgb/image_raw")

    def subscriptions() -> int:
        return len([s for s in node.subscriptions if s.topic_name == topic])

    for _ in range(2):
        assert node.trigger_configure() == SUCCESS
        assert subscriptions() == 0
        for _ in range(2):
            assert node.trigger_activate() == SUCCESS
            assert subscriptions() == 1
            assert node.trigger_deactivate() == SUCCESS
            assert subscriptions() == 0
        assert node.trigger_cleanup() == SUCCESS
    assert node.start()
    assert node.trigger_shutdown() == SUCCESS
    assert subscriptions() == 0
    assert node.trigger_configure() != SUCCESS


@pytest.mark.slow
def test_a_hundred_lifecycle_cycles_leave_nothing_behind(bench):
    node = bench(start=False).node

    def cycle() -> None:
        assert node.start()
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS

    def held() -> tuple[int, ...]:
        """Numbers of subscriptions, publishers, timers, services, what rclpy keeps, threads."""
        own = (node.subscriptions, node.publishers, node.timers, node.services)
        own += (node.default_callback_group.entities,)
        return (*(len(list(one)) for one in own), threading.active_count())

    for _ in range(10):
        cycle()
    before, memory_mb = held(), [resident_mb()]
    for _ in range(3):
        for _ in range(30):
            cycle()
        memory_mb.append(resident_mb())
    assert held() == before
    # What leaks grows all the time; an allocator that keeps some pages more does so once.
    assert min(later - earlier for earlier, later in itertools.pairwise(memory_mb)) < 1, memory_mb


def test_the_buffers_of_a_configuration_are_freed_by_its_cleanup(bench):
    node = bench(start=False).node
    assert node.start()
    configured = weakref.ref(node.configured)
    assert node.trigger_deactivate() == SUCCESS
    assert node.trigger_cleanup() == SUCCESS
    assert configured() is None


def resident_mb() -> float:
    """Memory of this process, MB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_images_unpaired_before_a_pause_are_not_reported_after_it(bench):
    node = bench(start=False).node
    node.reporter.stop()  # from now on the test says when
    assert node.start()
    node.reporter.report()
    for number in range(8):
        for camera, ahead in zip(node.configured.cameras, (0, SECOND // 2)):
            node.active.on_image(camera, message("mono8", (1 + number) * SECOND + ahead))
    assert node.trigger_deactivate() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    for _ in range(2):
        node.reporter.report()
    assert "unpaired" not in node.configured.monitor.snapshot().counters


def test_a_node_without_a_usable_model_stays_unconfigured_and_can_try_again(bench, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    node = bench(start=False, method=str(broken)).node
    assert node.trigger_configure() == FAILURE
    assert node.configured is None
    write_fusion_onnx(broken)
    assert node.start()


def test_an_activation_that_fails_leaves_the_node_inactive_with_nothing_subscribed(
    bench, monkeypatch
):
    node = bench(start=False).node
    create, made = node.create_subscription, []

    def create_two(*args, **kwargs):
        if len(made) == 2:
            raise RuntimeError("no more topics")
        made.append(create(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(node, "create_subscription", create_two)
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == FAILURE
    assert node.active is None
    assert not set(made) & set(node.subscriptions)
    monkeypatch.undo()
    assert node.trigger_activate() == SUCCESS


def test_engines_for_the_expected_size_are_built_when_the_node_configures(
    bench, gpu, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    boxes = write_detector_onnx(tmp_path / "boxes.onnx", [(0, 0.9, (8, 8, 24, 40))])
    parameters = {"image_size": "64x48", "detect": True, "detector": str(boxes)}
    node = bench(start=False, backend="tensorrt", **parameters).node
    assert node.build()
    assert gpu.built == [("average.onnx", (64, 48)), ("boxes.onnx", (64, 48))]
    assert "64x48" in node.configured.pipeline.network.fuser.engine.description
    assert node.trigger_cleanup() == SUCCESS


class Hold:
    """Replaces a pipeline's `prepare` by one that waits, as for an engine that is being built."""

    def __init__(self, node: FuseNode, monkeypatch) -> None:
        self.held, self.go_on, self.freed = (threading.Event() for _ in range(3))
        pipeline = node.configured.pipeline
        fuser, prepare = pipeline.network.fuser, pipeline.prepare
        close = fuser.close

        def wait_and_prepare(*images):
            self.held.set()
            assert self.go_on.wait(PATIENCE_S)
            return prepare(*images)

        def close_and_tell():
            close()
            self.freed.set()

        monkeypatch.setattr(pipeline, "prepare", wait_and_prepare)
        monkeypatch.setattr(fuser, "close", close_and_tell)


@pytest.fixture
def busy(bench, monkeypatch):
    """An active node whose worker has a frame that takes long."""
    one = bench()
    hold = Hold(one.node, monkeypatch)
    one.rig.send(time.time_ns(), picture("mono8"), picture("bgr8"))
    assert one.rig.wait(hold.held.is_set)
    one.rig.pause()
    yield one, hold
    hold.go_on.set()


def test_deactivation_does_not_wait_for_a_frame_that_takes_long(busy):
    one, hold = busy
    configured = one.node.configured
    assert one.node.trigger_deactivate() == SUCCESS
    assert configured.worker.pending == 1
    hold.go_on.set()
    assert configured.worker.wait(PATIENCE_S)
    counters = configured.monitor.snapshot().counters
    assert (counters["displaced"], counters.get("fused", 0)) == (1, 0)
    assert one.node.trigger_activate() == SUCCESS
    assert not hold.freed.is_set()


def test_a_node_can_be_active_again_before_that_frame_is_done(busy):
    one, hold = busy
    assert one.node.trigger_deactivate() == SUCCESS
    assert one.node.trigger_activate() == SUCCESS
    hold.go_on.set()
    assert one.node.configured.worker.wait(PATIENCE_S)
    assert one.node.configured.outputs.wait(PATIENCE_S)
    assert one.node.configured.monitor.snapshot().counters["fused"] == 1


def test_networks_are_freed_after_the_frame_in_progress_and_not_before(busy):
    one, hold = busy
    assert one.node.close(timeout=0.01) is False
    assert not hold.freed.is_set()
    assert one.node.close(timeout=0.01) is False  # still, though nothing is configured
    hold.go_on.set()
    assert hold.freed.wait(PATIENCE_S)


def test_a_node_configures_again_while_a_long_frame_is_in_progress(busy):
    one, hold = busy
    assert one.node.trigger_deactivate() == SUCCESS
    assert one.node.trigger_cleanup() == SUCCESS
    assert one.node.start()
    assert not hold.freed.is_set()
    hold.go_on.set()
    assert hold.freed.wait(PATIENCE_S)


# --- Images -------------------------------------------------------------------------------------


def test_a_fused_image_is_bgr8_with_the_header_of_the_rgb_image(bench):
    fused = bench().fuse(picture("mono8", 200), picture("bgr8", 100))
    assert fused.encoding == "bgr8"
    assert fused.header.frame_id == "rgb_optical_frame"
    assert pixels(fused).shape == (48, 64, 3)
    np.testing.assert_allclose(pixels(fused)[40], 150, atol=1)
    np.testing.assert_allclose(pixels(fused)[4], 75, atol=1)


def test_images_of_each_encoding_are_fused_and_unusable_ones_cost_only_themselves(bench):
    one = bench(gain_mode="none")
    for encoding in ENCODINGS:
        for pair in ((encoding, "bgr8"), ("mono8", encoding)):
            fused = pixels(one.fuse(encodings=pair))
            np.testing.assert_allclose(fused[40], 100, atol=2, err_msg=str(pair))
    unknown = message()
    unknown.encoding = "nonsense"
    short = message()
    short.height = 4800
    for msg in (unknown, unknown, short, message(stamp_ns=0)):
        one.rig.sender.rgb.images.publish(msg)
        one.rig.sender.thermal.images.publish(unknown)
    one.fuse()
    report = one.rig.settle()
    assert report.count("rgb_unstamped") == 1
    assert report.count("rgb_unreadable") == 3
    assert report.count("thermal_unreadable") == 4
    assert_adds_up(report.values)


def test_a_pair_that_cannot_be_fused_is_counted_and_the_next_one_is_fused(bench, monkeypatch):
    one = bench()
    fuse, failing = type(one.node.configured.pipeline).prepare, ["the first frame"]

    def fails_once(pipeline, *images, **more):
        if failing:
            raise ValueError(f"cannot fuse {failing.pop()}")
        return fuse(pipeline, *images, **more)

    monkeypatch.setattr(type(one.node.configured.pipeline), "prepare", fails_once)
    one.rig.send(time.time_ns(), picture("mono8"), picture("bgr8"))
    assert one.counted("rejected")
    assert "cannot fuse the first frame" in one.text
    one.fuse()
    report = one.rig.settle()
    assert (report.count("rejected"), report.count("fused")) == (1, 1)
    assert_adds_up(report.values)


def test_a_homography_that_cannot_be_used_costs_no_frame(bench):
    # Its horizon lies in the thermal image.
    one = bench(homography=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.01, 0.0, -1.0])
    one.fuse(picture("mono8", size=(200, 48)))
    report = one.rig.settle()
    assert (report.count("rejected"), report.count("fused")) == (0, 1)


def test_an_exception_in_a_callback_is_counted_and_the_next_image_is_taken(bench, monkeypatch):
    one = bench()
    add = one.node.configured.pairer.add_thermal
    calls = itertools.count()

    def fail_once(*args):
        if next(calls) == 0:
            raise KeyError("no such stream")
        return add(*args)

    monkeypatch.setattr(one.node.configured.pairer, "add_thermal", fail_once)
    one.rig.send(time.time_ns(), picture("mono8"))
    assert one.counted("callback_failed")
    assert "thermal/image_raw failed: KeyError" in one.text
    one.fuse()


def test_nothing_but_the_boxes_is_lost_without_vision_msgs(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "vision_msgs", None)
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", None)
    bench().fuse()


# --- Calibration --------------------------------------------------------------------------------


def calibration(focal: float) -> np.ndarray:
    return np.array([[focal, 0.0, 31.5], [0.0, focal, 23.5], [0.0, 0.0, 1.0]])


def test_calibrated_cameras_are_registered_from_the_first_frame_on(bench):
    one = bench()
    cameras = (one.rig.sender.thermal, one.rig.sender.rgb)
    assert one.rig.wait(lambda: all(c.infos.get_subscription_count() for c in cameras))
    for camera, focal in zip(cameras, (100.0, 50.0)):
        camera.infos.publish(camera.info(64, 48, calibration(focal)))
    fused = pixels(one.fuse(picture("mono8", 200), np.full((48, 64, 3), 60, np.uint8)))
    assert fused[30, 32].min() > 100  # seen by both
    np.testing.assert_allclose(fused[40, 4], 60, atol=1)  # by the RGB camera only


def test_the_first_frame_waits_for_calibration_on_a_remapped_topic(bench, monkeypatch):
    node = bench(start=False).node
    monkeypatch.setattr(node, "resolve_topic_name", lambda topic: f"/remapped/{topic}")
    asked: list[str] = []
    monkeypatch.setattr(
        node, "get_publishers_info_by_topic", lambda topic: asked.append(topic) or []
    )
    assert node.start()
    for camera in node.configured.cameras:
        node.active.on_image(camera, message("mono8", SECOND))
    assert node.configured.worker.wait(PATIENCE_S)
    wanted = {"/remapped/thermal/camera_info", "/remapped/rgb/camera_info"}
    # The diagnostics ask in a thread of their own.
    assert {topic for topic in asked if topic.endswith("camera_info")} == wanted


def test_subscribers_get_the_camera_info_of_the_rgb_camera_with_the_fused_image(bench):
    one = bench()
    camera, infos = one.rig.sender.rgb, []
    assert one.rig.wait(camera.infos.get_subscription_count)
    info = camera.info(64, 48, calibration(50.0))
    info.distortion_model, info.d = "plumb_bob", [0.1, 0.0, 0.0, 0.0, 0.0]
    camera.infos.publish(info)
    assert one.rig.wait(one.node.configured.cameras[1].has_info.is_set)
    one.fuse()
    one.rig.node.create_subscription(CameraInfo, "fused/camera_info", infos.append, 10)
    assert one.rig.wait(lambda: one.node.configured.outputs.wanted("fused/camera_info"))
    fused = one.fuse()
    assert one.rig.wait(lambda: infos)
    assert len(infos) == 1
    assert infos[0].header == fused.header
    assert (infos[0].width, infos[0].height) == (64, 48)
    assert (list(infos[0].k), list(infos[0].d)) == (list(info.k), list(info.d))


# --- Silent cameras, clocks and QoS --------------------------------------------------------------


def test_a_silent_camera_is_named_and_the_policy_decides_about_the_other_one(bench):
    one = bench(camera_timeout=0.2)
    assert one.counted("thermal_silent")
    assert "thermal/image_raw (publishers: 1)" in one.text
    visible = picture("bgr8", 100)
    one.rig.send(time.time_ns(), None, visible)
    assert one.counted("rgb_missing")
    assert not one.rig.images  # it waits
    for policy, level in (("pass", 100), ("blank", 50)):
        assert one.rig.set(dropout_policy=policy) == ""
        stamp = time.time_ns()
        one.rig.send(stamp, None, visible)
        assert one.rig.wait(lambda s=stamp: s in one.rig.images)
        np.testing.assert_allclose(pixels(one.rig.images[stamp])[40], level, atol=1)
        assert one.rig.images[stamp].header.frame_id == "rgb_optical_frame"
    assert one.rig.set(camera_timeout=60.0) == ""
    one.fuse()  # both again
    report = one.rig.settle()
    assert (report.count("rgb_alone"), report.count("fused")) == (2, 3)
    assert_adds_up(report.values)


def test_an_image_that_waits_for_a_silent_camera_is_released(bench):
    one = bench(camera_timeout=0.5, dropout_policy="pass")
    one.fuse()
    one.rig.send(time.time_ns(), None, picture("bgr8"))
    report = one.rig.settle()
    assert report.count("rgb_missing") + report.count("rgb_alone") == 1
    assert_adds_up(report.values)


def test_the_qos_that_matches_a_best_effort_camera_is_named(bench):
    one = bench()
    qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    one.rig.node.create_publisher(Image, "rgb/image_raw", qos)
    assert one.counted("rgb_incompatible_qos")
    assert "qos:=best_effort" in one.text


def reliability(node: FuseNode, topic: str) -> ReliabilityPolicy:
    (info,) = node.get_subscriptions_info_by_topic(node.resolve_topic_name(topic))
    return info.qos_profile.reliability


def test_qos_may_change_between_two_configurations(bench):
    node = bench(start=False).node
    assert node.start()
    assert reliability(node, "rgb/image_raw") == ReliabilityPolicy.RELIABLE
    assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
    assert node.set_parameters([Parameter("qos", value="best_effort")])[0].successful
    assert node.start()
    assert reliability(node, "rgb/image_raw") == ReliabilityPolicy.BEST_EFFORT


def test_qos_overrides_hold_for_one_topic():
    namespace = next(names)
    node = FuseNode(
        namespace=namespace,
        parameter_overrides=[
            Parameter("detect", value=False),
            Parameter("backend", value="null"),
            Parameter(
                f"qos_overrides./{namespace}/rgb/image_raw.subscription.reliability",
                value="best_effort",
            ),
            Parameter(f"qos_overrides./{namespace}/fused/image.publisher.depth", value=3),
        ],
    )
    try:
        assert node.start()
        assert reliability(node, "rgb/image_raw") == ReliabilityPolicy.BEST_EFFORT
        assert reliability(node, "thermal/image_raw") == ReliabilityPolicy.RELIABLE
        depth = f"qos_overrides./{namespace}/fused/image.publisher.depth"
        assert node.get_parameter(depth).value == 3
    finally:
        node.close()
        node.destroy_node()


def test_an_offset_between_clocks_is_measured_and_the_parameter_corrects_it(bench):
    one = bench()

    def send_apart() -> None:
        stamp = time.time_ns()
        one.rig.send(stamp - 5 * SECOND // 2, picture("mono8"))
        one.rig.send(stamp, None, picture("bgr8"))

    def unpaired() -> int:
        send_apart()
        return one.rig.count("unpaired")

    assert one.rig.wait(unpaired)
    assert not one.rig.images
    assert "-2.5" in one.text
    assert "thermal_time_offset" in one.text
    assert one.rig.set(thermal_time_offset=2.5) == ""
    send_apart()
    assert one.rig.wait(lambda: one.rig.images)


# --- Detector -----------------------------------------------------------------------------------


def test_boxes_are_published_in_rgb_pixels_and_only_for_subscribers(bench, tmp_path):
    pytest.importorskip("vision_msgs.msg")
    model = write_detector_onnx(tmp_path / "yolo.onnx", [(1, 0.9, (16, 16, 48, 32))])
    one = bench(detector=str(model), detect=True)
    one.fuse()
    assert one.rig.settle().count("detections") == 0
    one.rig.observer.listen_for_boxes()
    outputs, observer = one.node.configured.outputs, one.rig.observer
    both = ("detections", "fused/image_annotated")
    assert one.rig.wait(lambda: all(map(outputs.wanted, both)))
    stamp = Time.from_msg(one.fuse().header.stamp).nanoseconds
    assert one.rig.wait(lambda: stamp in observer.boxes and stamp in observer.annotated)
    (box,) = observer.boxes[stamp]
    assert box.results[0].hypothesis.class_id == "car"
    assert box.results[0].hypothesis.score == pytest.approx(0.9)
    # A 64x48 image lies 8 pixels down in the detector's 64x64.
    centre = box.bbox.center.position
    assert (centre.x, centre.y, box.bbox.size_x, box.bbox.size_y) == pytest.approx((32, 16, 32, 16))
    assert one.rig.set(classes=["person"]) == ""
    assert "truck" in one.rig.set(classes=["truck"])
    assert one.rig.set(confidence=0.5) == ""


def test_tracked_boxes_carry_the_number_of_their_object(bench, tmp_path):
    pytest.importorskip("vision_msgs.msg")
    model = write_detector_onnx(tmp_path / "yolo.onnx", [(1, 0.9, (16, 16, 48, 32))])
    one = bench(detector=str(model), detect=True, track=True, detect_every=1)
    one.rig.observer.listen_for_boxes()
    assert one.rig.wait(lambda: one.node.configured.outputs.wanted("detections"))

    def ids() -> list[str]:
        stamp = Time.from_msg(one.fuse().header.stamp).nanoseconds
        assert one.rig.wait(lambda: stamp in one.rig.observer.boxes)
        return [box.id for box in one.rig.observer.boxes[stamp]]

    assert ids() == [""]  # one image alone is no track
    assert ids() == ids() == ["1"]
    assert one.rig.set(track=False) == ""
    assert ids() == [""]


def test_a_node_without_a_detector_says_so_once_and_fuses(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("fusion_ros.frame.detector.SHIPPED", tmp_path / "none.onnx")
    one = bench(detect=True)
    one.fuse()
    assert one.counted("detector_missing")
    assert one.status["detector"] == "none"
    assert "make detector" in one.status["detector_problem"]
    for confidence in (0.3, 0.4):  # neither needs a detector, so none is looked for
        assert one.rig.set(confidence=confidence) == ""
        assert one.rig.set(processing_size=round(100 * confidence) + 10) == ""
        assert one.reports("processing_size", f"{100 * confidence + 10:.0f}")
    assert one.rig.count("detector_missing") == 1
    assert one.rig.set(detect=False) == one.rig.set(detect=True) == ""
    assert one.counted("detector_missing", 2)


def test_a_detector_that_appears_is_loaded_when_it_is_asked_for_again(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("fusion_ros.frame.detector.SHIPPED", tmp_path / "none.onnx")
    one = bench(detect=True)
    assert one.counted("detector_missing")
    folder = tmp_path / ".cache/fusion_ros"
    folder.mkdir(parents=True, exist_ok=True)
    write_detector_onnx(folder / "detector.onnx", [(1, 0.9, (16, 16, 48, 32))])
    assert one.rig.set(detect=False) == one.rig.set(detect=True) == ""
    assert one.rig.wait(lambda: one.status.get("detector", "none") != "none")
    assert "detector_problem" not in one.status


def test_a_detector_that_cannot_be_loaded_stops_nothing_but_a_build(bench):
    one = bench(detect=True, detector="/nowhere/yolo.onnx")
    assert one.counted("detector_missing")
    assert "/nowhere/yolo.onnx" in one.status["detector_problem"]
    assert one.fuse() is not None
    node = bench(start=False, detect=True, detector="/nowhere/yolo.onnx", build_only=True).node
    assert node.trigger_configure() == FAILURE


def test_what_a_detector_raises_costs_boxes_and_no_frame(bench, tmp_path):
    pytest.importorskip("vision_msgs.msg")
    model = write_detector_onnx(tmp_path / "yolo.onnx", [(1, 0.9, (16, 16, 48, 32))])
    one = bench(detector=str(model), detect=True, detect_every=1)
    one.rig.observer.listen_for_boxes()
    one.rig.wait(lambda: one.node.configured.outputs.wanted("detections"))
    one.fuse()
    kinds = (KeyError("x"), IndexError("y"), PermissionError("z"), MemoryError(), ValueError("w"))
    for n, error in enumerate(kinds, 1):
        one.node.configured.pipeline.detector.detect = Mock(side_effect=error)
        one.fuse()
        assert one.counted("detector_failed", n)
    assert one.rig.count("rejected") == 0 and one.counted("fused", 1 + len(kinds))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1", b"PK\x03\x04"])
def test_a_detector_of_another_kind_of_file_is_named_while_the_node_fuses(bench, tmp_path, content):
    path = tmp_path / "yolo.onnx"
    path.write_bytes(content)
    one = bench(detector=str(path), detect=True)
    one.fuse()
    assert one.counted("detector_missing")
    assert "not an ONNX file" in one.status["detector_problem"]


# --- Changes while it runs ----------------------------------------------------------------------

IMPOSSIBLE = [
    ("method", "nonsense", "choose one of"),
    ("method", "~no-such-user/x.onnx", "parameter method"),
    ("method", "x" * 300 + ".onnx", "parameter method"),
    ("method", "a\0b.onnx", "parameter method"),
    ("confidence", 1.5, "from 0 to 1"),
    ("gain_mode", "magic", ", ".join(MODES)),
    ("gain_low", 99.5, "gain_high"),
    ("qos", "nonsense", "reliable, best_effort"),
    ("image_size", "large", "640x480"),
    ("homography", [1.0], "9 numbers"),
    ("tolerance", None, "a number"),  # `ros2 param delete`
    ("n" * 300, 1, ""),
]


@pytest.mark.parametrize("start", [True, False], ids=["active", "unconfigured"])
def test_impossible_values_are_refused_with_the_reason_in_each_state(bench, start):
    one = bench(start=start)
    if not start:
        one.node.start = lambda: True  # the rig spins it as it is
        one.rig.wait_until_heard = lambda: None
        one.rig.spin()
    before = {name: one.get(name) for name in ("method", "confidence", "qos", "tolerance")}
    for name, value, reason in IMPOSSIBLE:
        refusal = one.rig.set(**{name: value})
        assert refusal
        assert reason in refusal, (name, refusal)
    assert {name: one.get(name) for name in before} == before
    assert one.rig.set(tolerance=0.05, gain_mode="linear", camera_timeout=2) == ""
    assert (one.get("tolerance"), one.get("camera_timeout")) == (0.05, 2.0)


def test_values_that_are_read_at_configuration_are_refused_later_and_say_how(bench):
    one = bench()
    assert "cleanup" in one.rig.set(backend="null")
    assert one.rig.set(backend=one.get("backend"), confidence=0.5) == ""


def test_a_wrong_value_can_be_corrected_before_the_node_configures(bench):
    node = bench(start=False, method="nonsense", gain_low=99.5).node
    assert node.trigger_configure() == FAILURE
    for name, value in (("gain_low", 2.0), ("method", list_methods()[0])):
        (result,) = node.set_parameters([Parameter(name, value=value)])
        assert result.successful, result.reason
    assert node.trigger_configure() == SUCCESS


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_running_and_says_why(
    bench, average, tmp_path
):
    one = bench()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    assert one.rig.set(method=str(broken)) == ""
    assert one.counted("method_load_failed")
    assert "broken.onnx" in one.text
    assert one.rig.wait(lambda: one.get("method") == average)
    one.fuse()
    assert one.rig.settle().values["method"] == average


def test_the_processing_size_changes_while_it_runs_and_is_set_back_if_that_fails(
    bench, monkeypatch
):
    one = bench()
    assert one.rig.set(processing_size=32) == ""
    assert one.reports("processing_size", "32")
    one.fuse()
    assert "stage_upsample_ms" in one.rig.settle().values

    def fail(*arguments, **options):
        raise EngineError("no engine of this size")

    monkeypatch.setattr("fusion_ros.frame.pipeline.load_engine", fail)
    assert one.rig.set(processing_size=48) == ""
    assert one.counted("method_load_failed")
    assert "with processing_size 48 cannot be loaded: no engine" in one.text
    assert one.rig.wait(lambda: one.get("processing_size") == 32)
    one.fuse()
    assert one.rig.settle().values["processing_size"] == "32"


def test_frames_between_changes_of_the_method_are_fused_in_order_and_none_is_lost(bench):
    methods = list_methods()
    if len(methods) < 2:
        pytest.skip(f"needs two shipped methods to switch between, has {methods}")
    one = bench(method=methods[0])
    for method in (*methods[1:], methods[0]):
        one.fuse()
        assert one.rig.set(method=method) == ""
        one.fuse()  # by the old one or the new one
        assert one.reports("method", method), method
    one.fuse()
    report = one.rig.settle()
    assert one.rig.stamps == sorted(set(one.rig.stamps))
    assert report.count("fused") == len(one.rig.stamps) == 2 * len(methods) + 1
    assert report.count("displaced") == report.count("rejected") == 0
    assert_adds_up(report.values)


# --- Several processes --------------------------------------------------------------------------


@pytest.mark.slow
def test_images_of_two_rates_and_clocks_are_paired_by_time_and_each_is_counted(average, tmp_path):
    offset, counts = 0.31, {"rgb": 120, "thermal": 36}
    with Rig(next(names)) as rig:
        parameters = {"method": average, "detect": False, "threads": 1}
        rig.start("fuse_node", tmp_path, parameters | {"thermal_time_offset": -offset})
        rig.wait(lambda: rig.node.count_subscribers(rig.node.resolve_topic_name("rgb/image_raw")))
        # Late enough for both cameras to find the node first.
        start = time.time_ns() + 6 * SECOND
        shared = {"scene": "night", "wait_for_subscribers": 1, "start_time": str(start)}
        cameras = [
            rig.start(
                "camera_node",
                tmp_path,
                shared
                | {"camera": camera, "rate": rate, "clock_offset": clock_offset}
                | {"frames": counts[camera], "width": 160, "height": 120},
                name=camera,
                namespace=camera,
                may_end=True,
            )
            for camera, rate, clock_offset in (("rgb", 30.0, 0.0), ("thermal", 9.0, offset))
        ]
        assert rig.wait(lambda: all(camera.ended() for camera in cameras))
        report = rig.settle()
        # A busy machine may make the cameras skip frames; each one that was sent is counted.
        sent = {c.name: int(c.text().rpartition(" frames sent")[0].split()[-1]) for c in cameras}
        assert {name: report.count(f"{name}_received") for name in sent} == sent
        assert_adds_up(report.values)
        assert report.count("rejected") == 0
        skipped = sum(counts.values()) - sum(sent.values())
        assert report.count("thermal_paired") >= counts["thermal"] - 2 - skipped
        # Frame k of the RGB camera is stamped start + k / 30 s; the thermal stamps lie between.
        numbers = [round((stamp - start) * 30e-9) for stamp in rig.stamps]
        assert rig.stamps == [start + round(number * 1e9 / 30) for number in numbers]
        assert numbers == sorted(set(numbers))


@pytest.mark.slow
def test_published_boxes_are_those_of_ultralytics_on_the_same_fused_images(
    shared_data, average, tmp_path
):
    pytest.importorskip("vision_msgs.msg")
    weights = shared_data / "weights"
    yolo = pytest.importorskip("ultralytics").YOLO(str(weights / "yolov8n_coco.pt"))
    files = list_pairs(shared_data / "data/roadscene/test")[::4]
    with Rig(next(names), keep_images=True) as rig:
        rig.observer.listen_for_boxes()
        detector = str(weights / "yolov8n_coco.onnx")
        rig.start(
            "fuse_node",
            tmp_path,
            {"method": average, "detector": detector, "detect_every": 1, "processing_size": 0},
        )
        rig.wait_until_heard()
        images = [
            (cv2.imread(str(thermal), cv2.IMREAD_GRAYSCALE), cv2.imread(str(visible)))
            for thermal, visible in files
        ]
        # A node that does not know yet who listens to its boxes searches nothing.
        for _ in range(30):
            rig.send(time.time_ns(), *images[0])
            if rig.wait(lambda: rig.observer.boxes, 2):
                break
        rig.settle()
        stamps = []
        for pair_of_images in images:
            # One at a time: a detector slower than the cameras searches some images only.
            stamps.append(time.time_ns())
            rig.send(stamps[-1], *pair_of_images)
            assert rig.wait(lambda: stamps[-1] in rig.observer.boxes, 240), rig.report
        compared = 0
        for stamp in stamps:
            boxes = rig.observer.boxes[stamp]
            # rect=False: the letterbox of the exported model, 640x640.
            fused = pixels(rig.images[stamp])
            result = yolo.predict(fused, conf=0.25, iou=0.45, rect=False, verbose=False)[0]
            ours = [
                (b.bbox.center.position.x, b.bbox.center.position.y, b.bbox.size_x, b.bbox.size_y)
                for b in boxes
            ]
            ids = [b.results[0].hypothesis.class_id for b in boxes]
            for box in result.boxes:
                if float(box.conf) > 0.5:
                    same = [i for i, name in enumerate(ids) if name == result.names[int(box.cls)]]
                    theirs = box.xywh[0].numpy()
                    assert max(overlap(theirs, np.array(ours[i])) for i in same) > 0.9
                    compared += 1
            confident = sum(b.results[0].hypothesis.score > 0.5 for b in boxes)
            assert confident <= sum(float(box.conf) > 0.45 for box in result.boxes)
    assert compared > 10


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x, y, width, height, by centre."""
    low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    common = np.prod(np.clip(high - low, 0, None))
    return common / (np.prod(a[2:]) + np.prod(b[2:]) - common)
