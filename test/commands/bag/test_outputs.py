# SPDX-License-Identifier: AGPL-3.0-only
"""The bag that an evaluation writes, read back by two libraries that did not write it so."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")
pytest.importorskip("jinja2")
pytest.importorskip("tqdm")
pytest.importorskip("onnxruntime")

from mcap.reader import make_reader
from rosbags.highlevel import AnyReader
from support_bags import small_plan

from fusion_ros.commands import main
from fusion_ros.commands.bag.make_bag import make_bag
from fusion_ros.commands.bag.outputs import BagOutputs
from fusion_ros.commands.bag.request import Request
from fusion_ros.frame import images
from fusion_ros.frame.detector import Detection
from fusion_ros.frame.settings import Settings

EVALUATE = ["--backend", "null", "--samples", "2"]


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """A recording and what its evaluation wrote."""
    folder = tmp_path_factory.mktemp("write")
    plan = small_plan(folder / "drive", seconds=1.5)
    make_bag(plan)
    written = folder / "fused"
    arguments = [str(plan.output), "--out", str(folder / "out"), "--write-bag", str(written)]
    assert main.main(["evaluate_bag", *arguments, *EVALUATE]) == 0
    return plan.output, written


def test_rosbags_reads_fused_images_with_the_stamps_of_the_rgb_images(bags):
    original, written = bags
    with AnyReader([original]) as reader:
        rgb = {}
        for connection, _, raw in reader.messages():
            if connection.topic == "/rgb/image_raw":
                message = reader.deserialize(raw, connection.msgtype)
                stamp = message.header.stamp
                rgb[stamp.sec, stamp.nanosec] = np.array(images.visible_bgr(message))
    with AnyReader([written]) as reader:
        assert {"/fused/image", "/fused/camera_info", "/diagnostics", "/evaluation/events"} <= set(
            reader.topics
        )
        fused = [
            reader.deserialize(raw, connection.msgtype)
            for connection, _, raw in reader.messages()
            if connection.topic == "/fused/image"
        ]
        texts = [
            reader.deserialize(raw, connection.msgtype).msg
            for connection, _, raw in reader.messages()
            if connection.topic == "/evaluation/events"
        ]
    assert len(fused) == 15
    for message in fused:
        stamp = message.header.stamp
        pixels = images.view(message).astype(int)
        # The engine `null` passes the visible image through, but for rounding of colours.
        assert np.abs(pixels - rgb[stamp.sec, stamp.nanosec]).max() <= 6
    assert any(text.startswith("Set tolerance") for text in texts)


def test_the_official_mcap_library_reads_it_with_schemas_and_times_of_receipt(bags):
    _, written = bags
    with next(written.glob("*.mcap")).open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert {schema.encoding for schema in summary.schemas.values()} == {"ros2msg"}
        times = [message.log_time for _, _, message in reader.iter_messages(["/fused/image"])]
    assert len(times) == 15
    assert times == sorted(times)


def test_boxes_are_written_as_detections_and_as_annotations(tmp_path):
    box = Detection("person", 0, 0.9, 10.0, 20.0, 30.0, 40.0)
    request = Request(Settings(), methods=("baffm",), detect=True, write_bag=tmp_path / "bag")
    from types import SimpleNamespace

    from fusion_ros.commands.bag.offline import PairOfMessages

    stamp = SimpleNamespace(sec=10**9, nanosec=0)
    rgb = SimpleNamespace(header=SimpleNamespace(frame_id="rgb", stamp=stamp))
    pair = PairOfMessages(None, rgb, 10**18, 10**18, 10**18 + 5)
    with BagOutputs(None, request, "baffm") as outputs:
        outputs.frame(pair, np.zeros((8, 8, 3), np.uint8), [box], None)
    with AnyReader([tmp_path / "bag"]) as reader:
        found = {
            connection.topic: reader.deserialize(raw, connection.msgtype)
            for connection, _, raw in reader.messages()
        }
    detection = found["/detections"].detections[0]
    assert detection.results[0].hypothesis.class_id == "person"
    assert (detection.bbox.center.position.x, detection.bbox.size_y) == (25.0, 40.0)
    corners = [(p.x, p.y) for p in found["/fused/annotations"].points[0].points]
    assert corners == [(10, 20), (40, 20), (40, 60), (10, 60)]


def test_a_name_that_is_taken_is_refused_before_the_work(bags, tmp_path, capsys):
    original, written = bags
    arguments = [str(original), "--out", str(tmp_path / "out"), "--write-bag", str(written)]
    assert main.main(["evaluate_bag", *arguments, *EVALUATE]) == 4
    assert "exists already" in capsys.readouterr().err
