# SPDX-License-Identifier: AGPL-3.0-only
"""The fusion node over DDS: life cycle, images in and out, faults, changes while it runs."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from support import write_detector_onnx, write_fusion_onnx

from fusion_ros.frame import images
from fusion_ros.inference import EngineError
from fusion_ros.inference.models import list_methods
from fusion_ros.node.frames import Job
from fusion_ros.node.fuse_node import FuseNode

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
STREAM_ENDS = ("paired", "too_far", "missing", "stale", "waiting")
names = (f"test_{number}" for number in itertools.count())


def until(true: Callable[[], object], seconds: float = 10.0) -> object:
    """Wait for something to become true and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := true():
            return result
        time.sleep(0.01)
    return true()


def picture(encoding: str, level: int = 100, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A grey image of some structure; `level` of 255 for 8 bit, times 256 for 16."""
    dtype, channels = ENCODINGS[encoding]
    image = np.full((size[1], size[0], channels), level, np.uint8)
    image[: size[1] // 2] //= 2
    return (image.astype(dtype) * (256 if dtype == np.uint16 else 1)).squeeze()


class Listener(Node):
    """All that one fusion node publishes."""

    def __init__(self, namespace: str) -> None:
        super().__init__("listener", namespace=namespace)
        self.fused: list[tuple[int, str, np.ndarray]] = []
        self.annotated: list[int] = []
        self.boxes: dict[int, list] = {}
        self.levels: list[bytes] = []
        self.status: dict[str, str] = {}
        self.message = ""
        self.create_subscription(Image, "fused/image", self._on_fused, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def listen_for_boxes(self) -> None:
        from vision_msgs.msg import Detection2DArray

        self.create_subscription(
            Image, "fused/image_annotated", lambda msg: self.annotated.append(stamp_ns(msg)), 100
        )
        self.create_subscription(Detection2DArray, "detections", self._on_detections, 100)

    def count(self, name: str) -> int:
        return int(self.status.get(name, 0))

    def _on_fused(self, msg: Image) -> None:
        assert msg.encoding == "bgr8"
        self.fused.append((stamp_ns(msg), msg.header.frame_id, images.view(msg).copy()))

    def _on_detections(self, msg) -> None:
        self.boxes[stamp_ns(msg)] = list(msg.detections)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name == f"{self.get_namespace()[1:]}/fuse_node: fusion":
                self.status = {value.key: value.value for value in status.values}
                self.message = status.message


def stamp_ns(msg) -> int:
    return Time.from_msg(msg.header.stamp).nanoseconds


class Bench:
    """A fusion node, two cameras and a listener in a namespace of their own."""

    def __init__(self, **parameters) -> None:
        self.namespace = next(names)
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = FuseNode(namespace=self.namespace, parameter_overrides=overrides)
        self.listener = Listener(self.namespace)
        publisher = self.listener.create_publisher
        self.thermal = publisher(Image, "thermal/image_raw", 100)
        self.rgb = publisher(Image, "rgb/image_raw", 100)
        self._client = self.listener.create_client(
            SetParametersAtomically, "fuse_node/set_parameters_atomically"
        )
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._executor.add_node(self.listener)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)

    def start(self) -> Bench:
        assert self.node.start()
        self._thread.start()
        assert until(self.connected)
        return self

    def connected(self) -> bool:
        return (
            self.thermal.get_subscription_count() > 0
            and self.rgb.get_subscription_count() > 0
            and self.listener.count_publishers("fused/image") > 0
        )

    def send(
        self,
        stamp: int,
        thermal: np.ndarray | None = None,
        visible: np.ndarray | None = None,
        encodings: tuple[str, str] = ("mono8", "bgr8"),
    ) -> None:
        """Publish a pair, of one stamp; what is not given is grey."""
        for publisher, image, encoding, frame in (
            (self.thermal, thermal, encodings[0], "thermal_frame"),
            (self.rgb, visible, encodings[1], "rgb_frame"),
        ):
            self.send_image(
                publisher, picture(encoding) if image is None else image, encoding, stamp, frame
            )

    @staticmethod
    def send_image(publisher, image, encoding: str, stamp: int, frame: str = "") -> None:
        header = Header(stamp=Time(nanoseconds=stamp).to_msg(), frame_id=frame)
        publisher.publish(images.fill(Image(), image, encoding, header))

    def fuse(self, **kwargs) -> tuple[int, str, np.ndarray] | None:
        """Send one pair and wait for its fused image."""
        stamp = time.time_ns()
        for attempt in range(3):  # pairs are certain once newer frames have come
            self.send(stamp + attempt, **kwargs)
            if fused := until(lambda: self.latest(stamp), 1.5):
                return fused
        return None

    def latest(self, since: int) -> tuple[int, str, np.ndarray] | None:
        return next((one for one in self.listener.fused if one[0] >= since), None)

    def set(self, **values) -> str:
        """Set parameters as others would; '' or why not."""
        assert self._client.wait_for_service(5)
        request = SetParametersAtomically.Request()
        request.parameters = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        future = self._client.call_async(request)
        assert until(future.done)
        return "" if future.result().result.successful else future.result().result.reason

    def get(self, name: str):
        return self.node.get_parameter(name).value

    def stop(self) -> None:
        """End the executor: no callback runs any more."""
        self._executor.shutdown()
        if self._thread.is_alive():
            self._thread.join(5)

    def close(self) -> None:
        self.stop()
        self.node.close()
        self.node.destroy_node()
        self.listener.destroy_node()


@pytest.fixture(scope="module", autouse=True)
def ros():
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope="module")
def average(tmp_path_factory) -> str:
    return str(write_fusion_onnx(tmp_path_factory.mktemp("models") / "average.onnx"))


@pytest.fixture
def bench(average):
    benches: list[Bench] = []

    def make(**parameters) -> Bench:
        defaults = {"method": average, "backend": "onnxruntime_cpu", "threads": 1, "detect": False}
        benches.append(Bench(**defaults | parameters))
        return benches[-1]

    yield make
    for one in benches:
        one.close()


def assert_adds_up(status: dict[str, str]) -> None:
    count = {key: int(value) for key, value in status.items() if value.isdigit()}
    for stream in ("thermal", "rgb"):
        ends = sum(count[f"{stream}_{end}"] for end in STREAM_ENDS)
        assert count[f"{stream}_received"] == ends, status
    done = count["fused"] + count["displaced"] + count["rejected"] + count["in_progress"]
    assert count["rgb_paired"] + count["thermal_alone"] + count["rgb_alone"] == done, status


# --- Life cycle ----------------------------------------------------------------------------------


def test_life_cycle_goes_round_twice_and_listens_only_while_active(bench):
    node = bench().node
    success = TransitionCallbackReturn.SUCCESS
    topic = node.resolve_topic_name("rgb/image_raw")

    def subscriptions() -> int:
        return len([s for s in node.subscriptions if s.topic_name == topic])

    for _ in range(2):
        assert node.trigger_configure() == success
        assert subscriptions() == 0
        for _ in range(2):
            assert node.trigger_activate() == success
            assert subscriptions() == 1
            assert node.trigger_deactivate() == success
            assert subscriptions() == 0
        assert node.trigger_cleanup() == success
    assert node.start()
    assert node.trigger_shutdown() == success
    assert node._state_machine.current_state[0] == State.PRIMARY_STATE_FINALIZED


def test_images_unpaired_before_a_pause_are_not_reported_after_it(bench):
    node = bench().node
    assert node.start()
    node.active.report()
    for number in range(8):
        for camera, ahead in zip(node.configured.cameras, (0, 500_000_000)):
            stamp = Time(nanoseconds=1_000_000_000 * (1 + number) + ahead)
            header = Header(stamp=stamp.to_msg())
            node.active.on_image(camera, images.fill(Image(), picture("mono8"), "mono8", header))
    assert node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    for _ in range(2):
        node.active.report()
    assert "unpaired" not in node.configured.monitor.snapshot().counters


def test_a_model_that_is_none_leaves_the_node_unconfigured_and_able_to_try_again(bench, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    node = bench(method=str(broken)).node
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert node._state_machine.current_state[0] == State.PRIMARY_STATE_UNCONFIGURED
    write_fusion_onnx(broken)
    assert node.start()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method:=nonsense", "choose one of"),
        ("tolerance:=-3.0", "tolerance"),
        ("qos:=5", "reliable"),
    ],
)
def test_a_wrong_parameter_ends_the_process_with_one_line_that_names_the_choices(override, says):
    run = subprocess.run(
        [sys.executable, "-m", "fusion_ros.node.main", "--ros-args", "-p", override],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 1
    assert says in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("override", "status", "says"),
    [
        ("image_size:=61x43", 0, "ready for images of 61x43: "),
        ("threads:=1", 0, "ready for images of 640x480: "),
        ("image_size:=large", 1, "'large' is no size"),
        ("detector:=/nowhere.onnx", 1, "/nowhere.onnx"),
    ],
)
def test_with_build_only_the_process_makes_the_networks_ready_and_ends(
    override, status, says, average
):
    command = [sys.executable, "-m", "fusion_ros.node.main", "--ros-args"]
    for parameter in ("build_only:=true", f"method:={average}", override):
        command += ["-p", parameter]
    run = subprocess.run(
        [*command, "-r", f"__ns:=/{next(names)}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (run.returncode, "Traceback" in run.stderr) == (status, False), run.stderr
    assert says in run.stderr and "fusing by" not in run.stderr


def test_engines_for_the_expected_size_are_built_when_the_node_configures(
    bench, gpu, average, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    boxes = write_detector_onnx(tmp_path / "boxes.onnx", [(0, 0.9, (8, 8, 24, 40))])
    one = bench(backend="tensorrt", image_size="64x48", detect=True, detector=str(boxes))
    assert one.node.build()
    assert gpu.built == [("average.onnx", (64, 48)), ("boxes.onnx", (64, 48))]
    assert "64x48" in one.node.configured.pipeline.network.fuser.engine.description
    one.node.trigger_cleanup()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_cleanly(number, average):
    command = [
        sys.executable,
        "-m",
        "fusion_ros.node.main",
        "--ros-args",
        "-p",
        "detect:=false",
    ]
    command += ["-p", f"method:={average}", "-r", f"__ns:=/{next(names)}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "fusing by" in line:
                break
        process.send_signal(number)
        _, log = process.communicate(timeout=15)
    assert process.returncode == 0, log
    assert "Traceback" not in log


BUSY = """
import sys, time
from fusion_ros.node import main
from fusion_ros.node.frames import Frames, Job
from fusion_ros.node.frames import Job
from fusion_ros.node.fuse_node import FuseNode

start = FuseNode.start

def start_and_be_busy(node):
    assert start(node)
    node.configured.submit(Job(None, None))
    return True

def process(frames, job):
    print("busy", file=sys.stderr, flush=True)
    time.sleep(60)

FuseNode.start = start_and_be_busy
Frames.process = process
sys.exit(main.main())
"""


def test_a_frame_in_hand_does_not_keep_the_process_from_ending(average):
    command = [sys.executable, "-c", BUSY, "--ros-args", "-p", "detect:=false"]
    command += ["-p", f"method:={average}", "-r", f"__ns:=/{next(names)}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("busy"):
                break
        process.send_signal(signal.SIGINT)
        try:
            _, log = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert "Traceback" not in log


def test_networks_are_freed_after_the_frame_in_hand_and_not_before(bench, monkeypatch):
    one = bench().start()
    pipeline, held, go_on = one.node.configured.pipeline, threading.Event(), threading.Event()
    monkeypatch.setattr(pipeline, "fuse", lambda *pair: held.set() or go_on.wait(10))
    freed = threading.Event()
    network = pipeline.network.fuser
    monkeypatch.setattr(network, "close", freed.set)
    stamp = time.time_ns()
    for number in range(3):
        one.send(stamp + number)
    assert held.wait(10)
    one.stop()
    assert one.node.close(timeout=0.01) is False
    assert not freed.is_set()
    go_on.set()
    assert freed.wait(10)


# --- Images --------------------------------------------------------------------------------------


def test_a_fused_image_is_bgr8_with_the_header_of_the_rgb_image(bench):
    one = bench().start()
    _stamp, frame, fused = one.fuse(thermal=picture("mono8", 200), visible=picture("bgr8", 100))
    assert frame == "rgb_frame"
    assert fused.shape == (48, 64, 3)
    np.testing.assert_allclose(fused[40], 150, atol=1)
    np.testing.assert_allclose(fused[4], 75, atol=1)


def test_every_encoding_comes_in_and_others_cost_only_themselves(bench):
    one = bench(gain_mode="none").start()
    for encoding in ENCODINGS:
        for pair in ((encoding, "bgr8"), ("mono8", encoding)):
            _, _, fused = one.fuse(encodings=pair)
            np.testing.assert_allclose(fused[40], 100, atol=2, err_msg=str(pair))

    bad = Image(height=48, width=64, encoding="bayer_rggb8", step=64)
    bad.header.stamp = Time(nanoseconds=time.time_ns()).to_msg()
    short = images.fill(Image(), picture("bgr8"), "bgr8", bad.header)
    short.height = 4800
    unstamped = images.fill(Image(), picture("bgr8"), "bgr8", Header())
    for msg in (bad, bad, short, unstamped):
        one.rgb.publish(msg)
        one.thermal.publish(bad)
    assert one.fuse() is not None
    assert until(lambda: one.listener.count("rgb_unstamped") == 1)
    assert one.listener.count("rgb_unreadable") == 3
    assert one.listener.count("thermal_unreadable") == 4
    assert_adds_up(one.listener.status)


def test_a_pair_that_cannot_be_fused_is_counted_and_the_next_one_goes_on(bench):
    # A homography whose horizon lies in the thermal image, but not in a small one.
    one = bench(homography=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.01, 0.0, -1.0]).start()
    assert one.fuse(thermal=picture("mono8", size=(200, 48))) is None
    assert until(lambda: one.listener.count("rejected") > 0)
    assert "horizon" in one.listener.message or "infinity" in one.listener.message
    assert one.fuse(thermal=picture("mono8", size=(50, 48))) is not None
    assert until(lambda: one.listener.count("fused") > 0)
    assert_adds_up(one.listener.status)


def test_calibrated_cameras_are_registered_from_the_first_frame_on(bench):
    one = bench().start()
    publishers = [
        one.listener.create_publisher(CameraInfo, f"{camera}/camera_info", 10)
        for camera in ("thermal", "rgb")
    ]
    assert until(lambda: all(each.get_subscription_count() for each in publishers))
    for publisher, focal in zip(publishers, (100.0, 50.0)):
        k = [focal, 0.0, 31.5, 0.0, focal, 23.5, 0.0, 0.0, 1.0]
        publisher.publish(CameraInfo(width=64, height=48, k=k))
    _, _, fused = one.fuse(thermal=picture("mono8", 200), visible=np.zeros((48, 64, 3), np.uint8))
    assert fused[30, 32].min() > 90  # seen by both
    assert fused[40, 4].max() == 0  # by the RGB camera only


def test_calibration_is_awaited_under_a_remapped_topic(bench, monkeypatch):
    node = bench().node
    monkeypatch.setattr(node, "resolve_topic_name", lambda topic: f"/remapped/{topic}")
    asked: list[str] = []
    monkeypatch.setattr(node, "count_publishers", lambda topic: asked.append(topic) or 0)
    assert node.configured is None and node.start()
    with contextlib.suppress(AttributeError):  # a job without images ends after the wait
        node.configured.frames.process(Job(None, None))
    assert asked == ["/remapped/thermal/camera_info", "/remapped/rgb/camera_info"]


def test_a_silent_camera_is_named_and_the_other_goes_on_if_the_policy_says_so(bench):
    one = bench(camera_timeout=0.2).start()
    visible = picture("bgr8", 100)

    def rgb_only() -> tuple | None:
        stamp = time.time_ns()
        one.send_image(one.rgb, visible, "bgr8", stamp, "rgb_frame")
        return until(lambda: one.latest(stamp), 0.3)

    time.sleep(0.3)
    assert rgb_only() is None  # wait
    assert until(lambda: one.listener.count("thermal_silent"))
    for policy, level in (("pass", 100), ("blank", 50)):
        assert one.set(dropout_policy=policy) == ""
        _stamp, frame, fused = until(rgb_only)
        assert frame == "rgb_frame"
        np.testing.assert_allclose(fused[40], level, atol=1)
    assert until(lambda: one.listener.count("rgb_alone") >= 2)
    assert one.fuse() is not None  # both again


def test_counts_add_up_and_none_waits_while_one_camera_is_passed_through(bench):
    one = bench(camera_timeout=0.5, dropout_policy="pass").start()
    one.send(time.time_ns())

    def alone() -> bool:
        one.send_image(one.rgb, picture("bgr8"), "bgr8", time.time_ns())
        time.sleep(0.05)
        return one.listener.count("rgb_alone") >= 3

    assert until(alone)
    assert one.listener.count("rgb_waiting") == one.listener.count("thermal_waiting") == 0
    assert_adds_up(one.listener.status)


def test_a_best_effort_camera_is_told_from_a_silent_one(bench):
    one = bench().start()
    qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    one.listener.create_publisher(Image, "rgb/image_raw", qos)
    assert until(lambda: one.listener.count("incompatible_qos"))


def test_best_effort_by_parameter_matches_any_camera(bench):
    one = bench(qos="best_effort").start()
    assert one.fuse() is not None


def test_clocks_that_differ_are_measured_and_an_offset_brings_pairs(bench):
    one = bench().start()

    def send_apart() -> bool:
        stamp = time.time_ns()
        one.send_image(one.thermal, picture("mono8"), "mono8", stamp - 2_500_000_000)
        one.send_image(one.rgb, picture("bgr8"), "bgr8", stamp)
        return bool(until(lambda: one.listener.fused, 0.05))

    assert until(lambda: send_apart() or one.listener.count("unpaired"))
    assert not one.listener.fused
    assert "-2.5" in one.listener.message and "thermal_time_offset" in one.listener.message
    assert one.set(thermal_time_offset=2.5) == ""
    assert until(send_apart)


def test_nothing_is_lost_without_vision_msgs_but_the_boxes_topic(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "vision_msgs", None)
    monkeypatch.setitem(sys.modules, "vision_msgs.msg", None)
    assert bench().start().fuse() is not None


# --- Detector ------------------------------------------------------------------------------------


def test_boxes_are_published_in_rgb_pixels_and_only_if_somebody_looks(bench, tmp_path):
    pytest.importorskip("vision_msgs.msg")
    model = write_detector_onnx(tmp_path / "yolo.onnx", [(1, 0.9, (16, 16, 48, 32))])
    one = bench(detector=str(model), detect=True).start()
    assert one.fuse() is not None
    assert until(lambda: one.listener.count("fused"))
    assert one.listener.count("detections") == 0
    one.listener.listen_for_boxes()
    found = until(lambda: one.fuse() and next(iter(one.listener.boxes.items()), None))
    assert found, one.listener.status
    stamp, (box,) = found
    assert box.results[0].hypothesis.class_id == "car"
    assert box.results[0].hypothesis.score == pytest.approx(0.9)
    # A 64x48 image lies 8 pixels down in the detector's 64x64.
    centre = box.bbox.center.position
    assert (centre.x, centre.y, box.bbox.size_x, box.bbox.size_y) == pytest.approx((32, 16, 32, 16))
    assert until(lambda: stamp in one.listener.annotated)
    assert one.set(classes=["person"]) == ""
    assert "truck" in one.set(classes=["truck"])
    assert one.set(confidence=0.5) == ""


def test_a_node_without_detector_weights_fuses_on(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = bench(detect=True).start()
    assert one.fuse() is not None
    assert until(lambda: one.listener.count("detector_missing"))
    assert one.listener.status["detector"] == "none"


def test_a_detector_that_was_named_must_be_there(bench):
    node = bench(detect=True, detector="/nowhere/yolo.onnx").node
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE


# --- Changes while it runs ------------------------------------------------------------------------


def test_parameters_that_cannot_be_used_or_changed_now_are_refused_with_the_reason(bench):
    one = bench().start()
    assert "choose one of" in one.set(method="nonsense")
    assert "from 0 to 1" in one.set(confidence=1.5) or "range" in one.set(confidence=1.5)
    assert "percentile, linear, none" in one.set(gain_mode="magic")
    assert "gain_high" in one.set(gain_low=99.5)
    assert "cleanup" in one.set(backend="null")
    assert one.get("gain_mode") == "percentile"
    assert one.set(tolerance=0.05, gain_mode="linear", camera_timeout=2) == ""
    assert one.fuse() is not None


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_running_and_says_why(
    bench, average, tmp_path
):
    one = bench().start()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    assert one.set(method=str(broken)) == ""
    assert until(lambda: one.listener.count("method_load_failed") == 1)
    assert "broken.onnx" in one.listener.message
    assert until(lambda: one.get("method") == average)
    assert one.fuse() is not None
    assert until(lambda: one.listener.count("fused"))
    assert one.listener.status["method"] == average


def test_the_processing_size_changes_while_it_runs_and_is_set_back_if_that_fails(
    bench, monkeypatch
):
    one = bench().start()
    assert one.set(processing_size=32) == ""
    assert until(lambda: one.listener.status.get("processing_size") == "32")
    assert one.fuse() is not None
    assert until(lambda: one.listener.count("fused"))
    assert "stage_upsample_ms" in one.listener.status

    def fail(*arguments, **options):
        raise EngineError("no engine of this size")

    monkeypatch.setattr("fusion_ros.frame.pipeline.load_engine", fail)
    assert one.set(processing_size=48) == ""
    assert until(lambda: one.listener.count("method_load_failed") == 1)
    assert "with processing_size 48 cannot be loaded: no engine" in one.listener.message
    assert until(lambda: one.get("processing_size") == 32)
    assert one.fuse() is not None
    assert one.listener.status["processing_size"] == "32"


def test_switching_through_all_methods_under_load_loses_no_frame(bench):
    methods = list_methods()
    if len(methods) < 2:
        pytest.skip(f"needs two shipped methods to switch between, has {methods}")
    one = bench(method=methods[0]).start()
    size, period, sent = (96, 64), 0.1, []
    thermal, visible = picture("mono8", 150, size), picture("bgr8", 90, size)
    stop = threading.Event()

    def send() -> None:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due += period
            sent.append(time.time_ns())
            one.send(sent[-1], thermal, visible)

    sender = threading.Thread(target=send)
    sender.start()
    seen = [methods[0]]
    try:
        assert until(lambda: one.listener.fused)
        for method in (*methods[1:], methods[0]):
            assert one.set(method=method) == ""
            assert until(lambda m=method: one.listener.status.get("method") == m, 20), method
            seen.append(method)
    finally:
        stop.set()
        sender.join()
    assert until(lambda: one.listener.count("fused") == len(sent)), one.listener.status
    assert one.listener.count("displaced") == one.listener.count("rejected") == 0
    assert [stamp for stamp, _, _ in one.listener.fused] == sent
    assert seen == [*methods, methods[0]]


# --- Several processes ----------------------------------------------------------------------------


class Process:
    """A node in a process of its own, with its log."""

    def __init__(self, log: Path, module: str, namespace: str, **parameters) -> None:
        self.log = log
        command = [sys.executable, "-m", module, "--ros-args", "-r", f"__ns:={namespace}"]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={str(value).lower() if value is True else value}"]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)

    def stop(self) -> str:
        """End it as Ctrl-C does, and return its log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        finally:
            self.process.kill()
        return self.log.read_text()


@pytest.fixture
def listen():
    """Makes listeners and gives a function that waits while they listen."""
    executor, nodes = SingleThreadedExecutor(), []

    def make(namespace: str) -> Listener:
        nodes.append(Listener(namespace))
        executor.add_node(nodes[-1])
        return nodes[-1]

    def spin(done: Callable[[], object], seconds: float) -> object:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
        return done()

    yield make, spin
    for node in nodes:
        node.destroy_node()


@pytest.mark.slow
def test_cameras_of_two_rates_and_clocks_for_ten_seconds(average, tmp_path, listen):
    make, spin = listen
    namespace = next(names)
    listener = make(namespace)
    offset = 0.31
    processes = [
        Process(
            tmp_path / "fuse",
            "fusion_ros.node.main",
            f"/{namespace}",
            method=average,
            detect=False,
            thermal_time_offset=-offset,
            threads=1,
        )
    ]
    try:
        assert spin(lambda: listener.count_subscribers("rgb/image_raw") == 1, 15)
        # So late that both cameras have found the node by then.
        start = time.time_ns() + 6_000_000_000
        shared = {"scene": "night", "wait_for_subscribers": 1, "start_time": f"'{start}'"}
        for camera, rate, clock_offset in (("rgb", 30.0, 0.0), ("thermal", 9.0, offset)):
            processes.append(
                Process(
                    tmp_path / camera,
                    "fusion_ros.cameras.camera_node",
                    f"/{namespace}/{camera}",
                    camera=camera,
                    rate=rate,
                    clock_offset=clock_offset,
                    frames=int(10 * rate),
                    width=160,
                    height=120,
                    **shared,
                )
            )
        assert spin(lambda: all(p.process.poll() is not None for p in processes[1:]), 40)
        # A busy machine may skip frames; none that was sent may be lost.
        sent = {
            p.log.name: int(re.search(r"(\d+) frames sent", p.log.read_text())[1])
            for p in processes[1:]
        }
        skipped = 390 - sum(sent.values())
        assert skipped < 20, sent

        def settled() -> bool:
            left = ("in_progress", "rgb_waiting", "thermal_waiting")
            received = {name: listener.count(f"{name}_received") for name in sent}
            return received == sent and not any(map(listener.count, left))

        assert spin(settled, 8), (sent, listener.status)
    finally:
        logs = [process.stop() for process in processes]
    assert not any("Traceback" in log or "xception" in log for log in logs), logs
    status = listener.status
    assert_adds_up(status)
    assert listener.count("thermal_paired") == listener.count("rgb_paired") >= 90 - skipped, status
    assert listener.count("rejected") == 0
    published = [stamp for stamp, _, _ in listener.fused]
    assert len(published) == len(set(published)) > 60
    # Frame k of the RGB camera is stamped so; the thermal camera's stamps lie between.
    numbers = [round((stamp - start) * 30e-9) for stamp in published]
    assert published == [start + round(number * 1e9 / 30) for number in numbers]
    assert all(frame == "rgb_optical_frame" for _, frame, _ in listener.fused)
    assert 7 < float(status["mean_fps"]) < 10


@pytest.mark.slow
def test_published_boxes_are_those_of_ultralytics_on_the_same_fused_images(
    shared_data, average, tmp_path, listen
):
    pytest.importorskip("vision_msgs.msg")
    weights = shared_data / "weights"
    yolo = pytest.importorskip("ultralytics").YOLO(str(weights / "yolov8n_coco.pt"))
    make, spin = listen
    namespace = next(names)
    listener = make(namespace)
    listener.listen_for_boxes()
    count = 12
    shared = {
        "source": "files",
        "path": shared_data / "data/roadscene/test",
        "rate": 2.0,
        "frames": count,
        "start_time": f"'{time.time_ns() + 8_000_000_000}'",
        "wait_for_subscribers": 1,
    }
    processes = [
        Process(
            tmp_path / "fuse",
            "fusion_ros.node.main",
            f"/{namespace}",
            method=average,
            detector=weights / "yolov8n_coco.onnx",
        ),
        *(
            Process(
                tmp_path / camera,
                "fusion_ros.cameras.camera_node",
                f"/{namespace}/{camera}",
                camera=camera,
                **shared,
            )
            for camera in ("thermal", "rgb")
        ),
    ]
    try:
        spin(lambda: len(listener.boxes) == count, 30)
    finally:
        logs = [process.stop() for process in processes]
    compared = 0
    fused = {stamp: image for stamp, _, image in listener.fused}
    assert len(listener.boxes) == count, logs
    for stamp, boxes in listener.boxes.items():
        if stamp not in fused:
            continue
        # rect=False: the letterbox of the exported model, 640x640.
        result = yolo.predict(fused[stamp], conf=0.25, iou=0.45, rect=False, verbose=False)[0]
        ours = np.array(
            [
                [b.bbox.center.position.x, b.bbox.center.position.y, b.bbox.size_x, b.bbox.size_y]
                for b in boxes
            ]
        ).reshape(-1, 4)
        ids = [b.results[0].hypothesis.class_id for b in boxes]
        for box in result.boxes:
            if float(box.conf) > 0.5:
                same = [i for i, name in enumerate(ids) if name == result.names[int(box.cls)]]
                best = max(overlap(box.xywh[0].numpy(), ours[i]) for i in same)
                assert best > 0.9
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
