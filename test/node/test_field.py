# SPDX-License-Identifier: AGPL-3.0-only
"""Situations that users reported (docs/field.md), over DDS: what the node does and says."""

from __future__ import annotations

import array
import itertools
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import rclpy
from onnx import TensorProto, helper
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from support import write_detector_onnx, write_fusion_onnx

from fusion_ros.frame import images
from fusion_ros.harness.rig import Rig
from fusion_ros.harness.sender import time_message
from fusion_ros.node.bond import Bond
from fusion_ros.node.diagnostics import Level
from fusion_ros.node.fuse_node import FuseNode
from fusion_ros.node.outputs import FUSED

ROOT = Path(__file__).resolve().parents[2]
SECOND = 1_000_000_000
PATIENCE_S = 60
pytestmark = pytest.mark.usefixtures("ros")
names = (f"field_{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def thermal_only(tmp_path_factory) -> str:
    """A fusion model that gives the thermal image, so that tests see where it lands."""
    free = [1, 1, "height", "width"]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, free)
        for name in ("ir", "vi", "fused")
    ]
    nodes = [
        helper.make_node("Sub", ["vi", "vi"], ["nothing"]),
        helper.make_node("Add", ["ir", "nothing"], ["fused"]),
    ]
    graph = helper.make_graph(nodes, "thermal", tensors[:2], tensors[2:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    path = tmp_path_factory.mktemp("models") / "thermal.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


@pytest.fixture
def field(average):
    """Make a rig with a node; remap: full topics by the node's own names."""
    rigs: list[Rig] = []

    def make(start: bool = True, remap=(), sim_time: bool = False, **parameters) -> Rig:
        rig = Rig(next(names), keep_images=True)
        rigs.append(rig)
        values = {"method": average, "backend": "onnxruntime_cpu", "threads": 1, "detect": False}
        arguments = [part for rule in remap for part in ("-r", rule)]
        values |= {"use_sim_time": True} if sim_time else {}

        def node(**kwargs):
            if arguments:
                kwargs["cli_args"] = ["--ros-args", *arguments]
            return FuseNode(**kwargs)

        rig.run(node, start=False, **values | parameters)
        if start:
            rig.spin()
            assert rig.wait(lambda: rig._local.configured.outputs.wanted(FUSED))
        return rig

    yield make
    for rig in rigs:
        rig.close()


def says(rig: Rig, part: str, text: str, level: Level | None = None) -> bool:
    """Wait until the status of a part says `text`, at a level."""

    def found() -> bool:
        status = rig.report and rig.report.parts.get(part)
        return bool(status) and text in status.message and level in (None, status.level)

    return bool(rig.wait(found))


def fuse(rig: Rig, thermal, visible, encodings=("mono8", "bgr8")) -> np.ndarray:
    """Send a pair and return the fused image."""
    stamp = time.time_ns()
    rig.send(stamp, thermal, visible, encodings)
    assert rig.wait(lambda: stamp in rig.images), rig.report
    return images.view(rig.images[stamp])


def compressed(
    pixels: np.ndarray, form: str, stamp_ns: int, extension: str = ""
) -> CompressedImage:
    data = array.array("B")
    data.frombytes(cv2.imencode(extension or f".{form[:3].replace('jpe', 'jpg')}", pixels)[1])
    message = CompressedImage(format=form, data=data)
    message.header.stamp = time_message(stamp_ns)
    return message


# --- Calibration ----------------------------------------------------------------------------------


def camera_info(matrix, size, p=None, roi=None) -> CameraInfo:
    info = CameraInfo(width=size[0], height=size[1], distortion_model="plumb_bob")
    info.k = [float(value) for value in matrix]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    k = info.k
    info.p = [float(v) for v in p or (k[0], 0, k[2], 0, 0, k[4], k[5], 0, 0, 0, 1, 0)]
    if roi:
        info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = roi
    return info


def spot(fused: np.ndarray) -> tuple[float, float, int]:
    """Centre and width of what is bright."""
    y, x = np.nonzero(fused[..., 0] > 128)
    return x.mean(), y.mean(), x.max() - x.min() + 1


@pytest.mark.parametrize("kept", [False, True], ids=["while it runs", "once before it starts"])
@pytest.mark.parametrize(
    ("thermal", "rgb", "expected"),
    [
        (
            camera_info([1000, 0, 319.5, 0, 1000, 239.5, 0, 0, 1], (640, 480)),
            camera_info(
                [1000, 0, 639.5, 0, 1000, 479.5, 0, 0, 1], (1280, 960), roi=(320, 240, 640, 480)
            ),
            (419.5, 319.5, 40),
        ),
        (
            camera_info([500, 0, 319.5, 0, 500, 239.5, 0, 0, 1], (640, 480)),
            camera_info([0] * 9, (640, 480), [300, 0, 319.5, 0, 0, 300, 239.5, 0, 0, 0, 1, 0]),
            (379.5, 287.5, 24),
        ),
    ],
    ids=["region of interest", "only P"],
)
def test_camera_info_puts_a_thermal_target_where_it_belongs(
    field, thermal_only, thermal, rgb, expected, kept
):
    rig = field(start=False, method=thermal_only)
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    if kept:
        for name, info in (("thermal", thermal), ("rgb", rgb)):
            rig.node.create_publisher(CameraInfo, f"{name}/camera_info", qos).publish(info)
    rig.spin()
    cameras = rig._local.configured.cameras
    if not kept:
        for camera, info in ((rig.sender.thermal, thermal), (rig.sender.rgb, rgb)):
            assert rig.wait(camera.infos.get_subscription_count)
            camera.infos.publish(info)
    assert rig.wait(lambda: all(camera.has_info.is_set() for camera in cameras))
    warm = np.full((480, 640), 20, np.uint8)
    warm[300:340, 400:440] = 255
    fused = fuse(rig, warm, np.full((480, 640, 3), 60, np.uint8))
    assert spot(fused) == pytest.approx(expected, abs=1)
    assert says(rig, "registration", "by camera_info", Level.OK)


# --- Thermal formats ------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 2], ids=["without telemetry", "with two rows of telemetry"])
def test_rows_of_telemetry_do_not_change_the_contrast(field, thermal_only, rows):
    rig = field(method=thermal_only)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scene = (29300 + rng.normal(0, 8, (120 + rows, 160))).astype(np.uint16)
        scene[40:100, 60:90] = 30600
        if rows:
            scene[120:] = 0
            scene[120, :20], scene[121, :10] = rng.integers(0, 65535, 20), 58744
        visible = np.full((120 + rows, 160, 3), 60, np.uint8)
        fused = fuse(rig, scene, visible, ("mono16", "bgr8"))
    assert fused[10:30, 10:40].mean() < 12
    assert fused[50:90, 65:85].min() > 250


def test_an_encoding_that_does_not_exist_is_named_and_cut_for_as_long_as_it_comes(field):
    rig = field()
    message = images.fill(
        Image(),
        np.zeros((48, 64, 3), np.uint8),
        "bgr8",
        rig.sender.rgb.message(np.zeros((48, 64, 3), np.uint8), "bgr8").header,
    )
    message.encoding = "RGB8" + "x" * 100_000
    for _ in range(5):
        rig.send(time.time_ns(), np.zeros((48, 64), np.uint8), message)
    assert says(rig, "rgb camera", "unsupported image encoding 'RGB8xxx", Level.ERROR)
    report = rig.report
    longest = max(len(text) for part in report.parts.values() for text in part.values.values())
    assert longest <= 500
    assert len(report.parts["rgb camera"].message) <= 2000


def test_a_box_tells_the_temperature_of_its_object(field, tmp_path):
    pytest.importorskip("vision_msgs.msg")
    model = write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (16, 16, 48, 32))])
    rig = field(detector=str(model), detect=True, detect_every=1)
    rig.observer.listen_for_boxes()
    assert rig.wait(lambda: rig._local.configured.outputs.wanted("detections"))
    warm = np.full((48, 64), 29315, np.uint16)
    warm[8:24, 16:48] = 30975
    fuse(rig, warm, np.full((48, 64, 3), 60, np.uint8), ("mono16", "bgr8"))
    assert rig.wait(lambda: rig.observer.boxes)
    ((box,),) = rig.observer.boxes.values()
    assert [one.hypothesis.class_id for one in box.results] == ["person", "temperature=36.6"]
    assert max(box.results, key=lambda one: one.hypothesis.score) is box.results[0]


def test_a_shutter_that_repeats_images_is_counted_and_no_fault(field):
    rig = field(camera_timeout=3600.0, thermal_rate=0.01)
    visible = np.full((48, 64, 3), 60, np.uint8)
    images_of = [np.random.default_rng(n).integers(0, 255, (48, 64), np.uint8) for n in range(8)]
    for number, thermal in enumerate((*images_of, *images_of[-1:] * 8, *images_of)):
        fuse(rig, thermal, visible)
        rig.wait(lambda: False, 0.05 if number < 8 else 0.1)
    report = rig.settle()
    assert report.count("fused") == 24
    assert report.count("thermal_freezes") >= 1
    assert report.count("thermal_frozen") >= 1
    assert report.parts["thermal camera"].level == Level.OK


def test_while_the_shutter_pauses_the_latest_thermal_image_is_fused_again(field):
    rig = field(thermal_hold=60.0, camera_timeout=3600.0)
    shutter = rig._local.configured.shutter
    visible = np.full((48, 64, 3), 60, np.uint8)
    rng = np.random.default_rng(0)
    while shutter.usual_s is None:
        fuse(rig, rng.integers(0, 100, (48, 64), np.uint8), visible)
    last = np.full((48, 64), 200, np.uint8)
    fuse(rig, last, visible)

    def send_rgb_alone() -> bool:
        rig.send(time.time_ns(), None, visible)
        rig.wait(lambda: False, 0.02)
        return rig.count("rgb_held") >= 3

    assert rig.wait(send_rgb_alone)
    report = rig.settle(unpaired=True)
    assert report.count("rgb_received") + report.count("rgb_held") == report.count("rgb_images")
    assert report.count("pairs") + report.count("rgb_held") == report.count("fused")
    assert list(rig.images) == sorted(rig.images)
    held = list(rig.images.values())[-report.count("rgb_held") :]
    assert all((images.view(image) == 130).all() for image in held)  # of 200 and 60
    fuse(rig, rng.integers(0, 100, (48, 64), np.uint8), visible)
    assert rig.settle(unpaired=True).count("thermal_freezes") == 1


# --- Compressed images ----------------------------------------------------------------------------


def test_compressed_images_beside_the_topic_are_taken_where_there_are_no_raw_ones(field):
    rig = field(start=False)
    rig.node.destroy_publisher(rig.sender.rgb.images)
    publisher = rig.node.create_publisher(CompressedImage, "rgb/image_raw/compressed", 10)
    rig.sender.rgb.images = publisher  # for the rig's own waits
    rig.spin()
    thermal = rig.sender.thermal.message(np.full((48, 64), 100, np.uint8), "mono8")
    visible = np.full((48, 64, 3), 200, np.uint8)
    for form in ("jpeg", "rgb8; jpeg compressed bgr8", "png"):
        stamp = time.time_ns()
        publisher.publish(compressed(visible, form, stamp, ".png" if form == "png" else ".jpg"))
        rig.sender.thermal.send(thermal, stamp)
        assert rig.wait(lambda s=stamp: s in rig.images), rig.report
        np.testing.assert_allclose(images.view(rig.images[stamp]), 150, atol=2)
    # One that is cut off costs itself and is named.
    message = compressed(visible, "jpeg", time.time_ns(), ".jpg")
    message.data = message.data[:-20]
    publisher.publish(message)
    assert rig.wait(lambda: rig.count("rgb_unreadable") == 1)
    assert "cut off" in rig.report.message
    assert rig.report.values["rgb_type"] == "sensor_msgs/msg/CompressedImage"


def test_once_an_image_cannot_be_decoded_the_next_ones_are_refused_before_they_have_a_partner(
    field,
):
    rig = field(start=False)
    rig.node.destroy_publisher(rig.sender.rgb.images)
    publisher = rig.node.create_publisher(CompressedImage, "rgb/image_raw/compressed", 10)
    rig.sender.rgb.images = publisher
    rig.spin()
    visible = np.full((48, 64, 3), 200, np.uint8)

    def send(damaged: bool) -> int:
        stamp = time.time_ns()
        message = compressed(visible, "jpeg", stamp, ".jpg")
        if damaged:  # its table of codes is none
            message.data[message.data.tobytes().index(b"\xff\xc4") + 5] = 255
        publisher.publish(message)
        rig.send(stamp, np.full((48, 64), 100, np.uint8))
        return stamp

    send(damaged=True)
    assert rig.wait(lambda: rig.count("rejected") == 1)
    for number in range(2):
        send(damaged=True)
        assert rig.wait(lambda n=number: rig.count("rgb_unreadable") == n + 1)
    assert rig.count("pairs") == 1
    stamp = send(damaged=False)
    assert rig.wait(lambda: stamp in rig.images)
    assert says(rig, "rgb camera", "of the rgb images cannot be used: OpenCV cannot decode")


def test_compressed_images_on_the_topic_itself_are_taken(field):
    # Before the node starts, as a bag that is played: rgb/image_raw is remapped to such a topic.
    topic = f"/{next(names)}/cam/compressed"
    rig = field(start=False, remap=[f"rgb/image_raw:={topic}"])
    publisher = rig.node.create_publisher(CompressedImage, topic, 10)
    rig.node.destroy_publisher(rig.sender.rgb.images)
    rig.sender.rgb.images = publisher
    rig.spin()
    stamp = time.time_ns()
    visible = np.full((48, 64, 3), 200, np.uint8)
    publisher.publish(compressed(visible, "jpeg", stamp, ".jpg"))
    rig.send(stamp, np.full((48, 64), 100, np.uint8))
    assert rig.wait(lambda: stamp in rig.images), rig.report


def test_a_compressed_topic_is_named_where_raw_images_are_asked_for(field):
    rig = field(start=False, input_transport="raw", camera_timeout=0.2)
    rig.node.destroy_publisher(rig.sender.rgb.images)
    rig.sender.rgb.images = SimpleNamespace(get_subscription_count=lambda: 1)
    # In a context of its own: one cannot have two types of a topic.
    context = rclpy.Context()
    context.init()
    driver = rclpy.create_node("driver", namespace=rig.namespace, context=context)
    try:
        driver.create_publisher(CompressedImage, "rgb/image_raw", 10)
        rig.spin()
        kind = "sensor_msgs/msg/CompressedImage"
        assert says(rig, "rgb camera", f"driver publishes {kind}", Level.ERROR)
        assert "set input_transport to auto or compressed" in rig.report.message
    finally:
        driver.destroy_node()
        context.try_shutdown()


def test_fused_images_are_compressed_for_those_who_subscribe_to_that(field):
    rig, received = field(), []
    rig.node.create_subscription(CompressedImage, "fused/image/compressed", received.append, 10)
    outputs = rig._local.configured.outputs
    assert rig.wait(lambda: outputs.wanted("fused/image/compressed"))
    fused = fuse(rig, np.full((48, 64), 100, np.uint8), np.full((48, 64, 3), 200, np.uint8))
    assert rig.wait(lambda: received)
    decoded = cv2.imdecode(np.frombuffer(received[0].data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(decoded.astype(int), fused, atol=3)
    assert received[0].format == "bgr8; jpeg compressed bgr8"


# --- Clocks and stamps ----------------------------------------------------------------------------


def test_a_camera_that_stamps_since_boot_is_fused_by_the_advice_that_it_gets(field):
    rig = field()
    thermal, visible = np.full((48, 64), 99, np.uint8), np.full((48, 64, 3), 60, np.uint8)

    def send() -> int:
        stamp = time.time_ns()
        rig.send(time.monotonic_ns(), thermal)
        rig.send(stamp, None, visible)
        return stamp

    def advised() -> bool:
        send()
        rig.wait(lambda: False, 0.05)
        return bool(rig.report) and "set stamp_source to arrival" in rig.report.message

    assert rig.wait(advised)
    assert rig.set(stamp_source="arrival", tolerance=0.5) == ""

    def fused() -> bool:
        send()
        rig.wait(lambda: False, 0.1)
        return bool(rig.images)

    assert rig.wait(fused)


def test_negative_and_missing_stamps_are_refused_by_name_and_the_node_goes_on(field):
    rig = field()
    thermal, visible = np.full((48, 64), 99, np.uint8), np.full((48, 64, 3), 60, np.uint8)
    message = rig.sender.thermal.message(thermal, "mono8")
    message.header.stamp.sec = -5
    rig.sender.thermal.images.publish(message)
    assert rig.wait(lambda: rig.count("thermal_unstamped") == 1)
    assert "negative stamp" in rig.report.message
    fuse(rig, thermal, visible)


def test_simulated_time_without_a_clock_is_told_and_gives_no_latency(field):
    rig = field(sim_time=True)
    fuse(rig, np.full((48, 64), 99, np.uint8), np.full((48, 64, 3), 60, np.uint8))
    assert says(rig, "fusion", "nobody publishes /clock", Level.WARN)
    assert rig.wait(lambda: rig.count("fused") == 1)
    assert "latency_p50_ms" not in rig.report.values
    assert "odd_stamps" not in rig.report.values


def test_simulated_time_may_be_set_while_the_node_runs(field):
    rig = field()
    pair = np.full((48, 64), 99, np.uint8), np.full((48, 64, 3), 60, np.uint8)
    rig._local.set_parameters([rclpy.Parameter("use_sim_time", value=True)])
    fuse(rig, *pair)
    assert says(rig, "fusion", "nobody publishes /clock", Level.WARN)
    assert rig.wait(lambda: rig.count("fused") == 1)
    assert "odd_stamps" not in rig.report.values
    rig._local.set_parameters([rclpy.Parameter("use_sim_time", value=False)])
    fuse(rig, *pair)
    assert rig.wait(lambda: "latency_p50_ms" in rig.report.values)


def test_a_parameter_that_the_node_does_not_have_is_refused_by_name(field):
    rig = field(start=False)
    refused = rig._local.set_parameters([rclpy.Parameter("confidense", value=0.5)])
    assert not refused[0].successful
    assert "none of that name: do you mean 'confidence'?" in refused[0].reason
    values = [rclpy.Parameter("confidence", value=0.5), rclpy.Parameter("nothing", value=1)]
    result = rig._local.set_parameters_atomically(values)
    assert not result.successful and "'nothing'" in result.reason
    assert rig._local.get_parameter("confidence").value == 0.25


@pytest.mark.parametrize(
    "values",
    [
        [("gain_mode", "m" * 100_000)],
        [("method", "m" * 100_000)],
        [("classes", ["c" * 1000] * 1000)],
        [("m" * 100_000, 1)],
        [(f"nothing_{number}", 1) for number in range(1000)],
    ],
    ids=["choice", "method", "list", "name", "names"],
)
def test_an_answer_to_absurd_parameters_is_short_and_the_node_goes_on(field, values):
    rig = field(start=False)
    result = rig._local.set_parameters_atomically([rclpy.Parameter(n, value=v) for n, v in values])
    if values[0][0] != "classes":  # known only once a detector is loaded
        assert not result.successful
    assert len(result.reason) < 1100
    assert rig._local.start()


# --- Nodes and processes --------------------------------------------------------------------------


def test_two_topics_of_one_name_are_refused_with_both_names(field):
    rig = field(start=False, remap=["thermal/image_raw:=/x", "rgb/image_raw:=/x"])
    assert not rig._local.start()
    assert says(rig, "fusion", "rgb/image_raw are both remapped to /x", Level.ERROR)


@pytest.mark.parametrize(
    ("remap", "says_so"),
    [
        (["fused/image:=rgb/image_raw"], "rgb/image_raw and fused/image are both remapped to"),
        (
            ["fused/image:=/x", "rgb/image_raw:=/x/compressed"],
            "rgb/image_raw and fused/image/compressed are both remapped to /x/compressed",
        ),
    ],
)
def test_results_cannot_be_remapped_to_what_is_fused(field, remap, says_so):
    rig = field(start=False, remap=remap)
    assert not rig._local.start()
    assert says(rig, "fusion", says_so, Level.ERROR)


def test_a_12_bit_camera_in_16_bit_messages_is_bright_and_told_until_it_is_settled(field):
    rig = field()
    thermal = np.full((48, 64), 128, np.uint8)
    rgb = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (48, 1))
    fused = fuse(rig, thermal, rgb, ("mono8", "mono16"))
    assert fused[..., 0].max() > 180
    assert says(rig, "rgb camera", "set rgb_bits to 12 if that is right", Level.WARN)
    assert rig.set(rgb_bits=16) == ""
    assert fuse(rig, thermal, rgb, ("mono8", "mono16"))[..., 0].max() < 90
    assert rig.set(rgb_bits=12) == ""
    np.testing.assert_array_equal(fuse(rig, thermal, rgb, ("mono8", "mono16")), fused)
    assert rig.wait(lambda: "rgb_bits" not in rig.report.parts["rgb camera"].message)


def test_another_node_of_the_same_name_is_told(field):
    rig = field()
    other = rclpy.create_node("fuse_node", namespace=rig.namespace)
    try:
        assert says(rig, "fusion", f"1 more node(s) named /{rig.namespace}/fuse_node", Level.WARN)
    finally:
        other.destroy_node()


def test_a_node_that_is_not_active_reports_its_state_and_why(field, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    rig = field(start=False, method=str(broken))
    assert says(rig, "fusion", "the node is unconfigured", Level.STALE)
    assert not rig._local.start()
    assert says(rig, "fusion", "broken.onnx", Level.ERROR)
    write_fusion_onnx(broken)
    rig.spin()
    assert rig._local.trigger_deactivate()
    assert says(rig, "rgb camera", "the node is not active", Level.STALE)


def hold(rig: Rig, monkeypatch) -> threading.Event:
    """Hold the next frame until the event is set."""
    go_on, pipeline = threading.Event(), rig._local.configured.pipeline
    run = pipeline.prepare

    def held(*args):
        assert go_on.wait(PATIENCE_S)
        return run(*args)

    monkeypatch.setattr(pipeline, "prepare", held)
    return go_on


def test_a_stuck_frame_is_an_error_while_it_lasts_and_can_end_the_process(field, monkeypatch):
    rig = field(stuck_timeout=0.2, exit_when_stuck=True)
    node, ended = rig._local, threading.Event()
    node.on_stuck = ended.set
    go_on = hold(rig, monkeypatch)
    rig.send(time.time_ns(), np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.uint8))
    assert says(rig, "fusion", "the frame in hand has taken", Level.ERROR)
    assert ended.wait(PATIENCE_S)
    assert node.stuck
    go_on.set()
    assert rig.wait(lambda: rig.report.parts["fusion"].level != Level.ERROR)


def test_a_publisher_that_is_held_holds_no_frame(field, monkeypatch):
    rig = field()
    go_on, publisher = threading.Event(), rig._local.configured.outputs._publishers[FUSED]
    publish, held = publisher.publish, threading.Event()

    def slow(message):
        held.set()
        assert go_on.wait(PATIENCE_S)
        publish(message)

    monkeypatch.setattr(publisher, "publish", slow)
    pair = np.full((48, 64), 99, np.uint8), np.full((48, 64, 3), 60, np.uint8)
    worker = rig._local.configured.worker
    stamps = []
    for number in range(4):
        stamps.append(time.time_ns())
        rig.send(stamps[-1], *pair)
        assert rig.wait(lambda n=number: rig._local.configured.counts().visible.paired == n + 1)
        assert worker.wait(PATIENCE_S)
        assert held.wait(PATIENCE_S)
    go_on.set()
    assert rig.wait(lambda: stamps[-1] in rig.images)
    report = rig.settle()
    assert list(rig.images) == [stamps[0], stamps[-1]]
    assert (report.count("fused"), report.count("displaced")) == (2, 2)
    assert report.count("unpublished") == 2


def test_a_publisher_that_raises_costs_that_frame_and_the_next_one_is_published(field, monkeypatch):
    rig = field()
    publisher = rig._local.configured.outputs._publishers[FUSED]
    publish, raised = publisher.publish, []

    def fail(message):
        if not raised:
            raised.append(message)
            raise RuntimeError("the middleware is out of memory")
        publish(message)

    monkeypatch.setattr(publisher, "publish", fail)
    pair = np.full((48, 64), 99, np.uint8), np.full((48, 64, 3), 60, np.uint8)
    first = time.time_ns()
    rig.send(first, *pair)
    assert rig.wait(lambda: raised)
    assert says(rig, "fusion", "publishing failed: RuntimeError: the middleware is out of memory")
    fuse(rig, *pair)
    report = rig.settle()
    assert first not in rig.images
    assert (report.count("fused"), report.count("rejected")) == (1, 1)
    assert report.count("publishing_failed") == 1


def test_a_bond_shows_signs_of_life_until_the_node_is_stuck_or_inactive():
    sent = []

    class Status(SimpleNamespace):
        def __init__(self, **fields):
            super().__init__(header=SimpleNamespace(stamp=None), **fields)

    node = SimpleNamespace(
        stuck=False,
        get_name=lambda: "fuse_node",
        create_publisher=lambda *args: SimpleNamespace(publish=sent.append),
        destroy_publisher=lambda publisher: None,
        get_clock=lambda: SimpleNamespace(now=lambda: SimpleNamespace(to_msg=lambda: 0)),
    )
    bond = Bond(node, Status)
    end = time.monotonic() + PATIENCE_S
    while len(sent) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert {(one.id, one.active) for one in sent} == {("fuse_node", True)}
    assert len({one.instance_id for one in sent}) == 1
    node.stuck = True
    bond._thread.join(PATIENCE_S)
    assert not bond._thread.is_alive()
    bond.close()
    assert not sent[-1].active


def test_without_the_package_bond_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "bond", None)
    assert Bond.start(SimpleNamespace()) is None


def test_the_sros2_policy_names_each_topic_and_service_of_the_node(field):
    rig = field()
    node, prefix = rig._local, f"/{rig.namespace}/"
    policy = ElementTree.parse(ROOT / "config" / "sros2_policy.xml")
    own = {f"{prefix}fuse_node/": "~/", prefix: ""}

    def short(name: str) -> str:
        for full, start in own.items():
            if name.startswith(full):
                return start + name[len(full) :]
        return name

    topics, services = ({one.text for one in policy.iter(kind)} for kind in ("topic", "service"))
    used = {short(one.topic_name) for one in (*node.publishers, *node.subscriptions)}
    assert used <= topics, used - topics
    assert {"fused/image", "rgb/image_raw"} <= used
    offered = {
        short(name)
        for name, _ in node.get_service_names_and_types_by_node(
            node.get_name(), node.get_namespace()
        )
    }
    assert offered <= services, offered - services
    assert "~/change_state" in offered
