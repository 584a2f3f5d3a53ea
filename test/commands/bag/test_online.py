# SPDX-License-Identifier: AGPL-3.0-only
"""A bag played to the node gives the pairs and the pixels that its evaluation gives without ROS."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")
pytest.importorskip("jinja2")
pytest.importorskip("tqdm")
pytest.importorskip("onnxruntime")
pytest.importorskip("rclpy")
pytest.importorskip("rosgraph_msgs")

from pathlib import Path

import rclpy
from support_bags import small_plan

from fusion_ros.commands.bag.evaluation import evaluate
from fusion_ros.commands.bag.make_bag import make_bag
from fusion_ros.commands.bag.online import Played, node_parameters, play
from fusion_ros.commands.bag.request import Request
from fusion_ros.frame import images
from fusion_ros.frame.settings import Settings
from fusion_ros.harness.rig import Rig
from fusion_ros.node.fuse_node import FuseNode
from fusion_ros.recording.bag import find_cameras, open_bag


class Kept:
    """Takes the fused images of an evaluation."""

    def __init__(self, *given):
        self.fused = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def frame(self, pair, fused, boxes, info):
        self.fused[pair.rgb_ns] = fused.copy()

    def finish(self, report):
        pass


@pytest.fixture
def ros():
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
def test_online_and_offline_agree_in_pairs_and_pixels(tmp_path, ros, compressed):
    changes = {"compressed": compressed}
    plan = small_plan(tmp_path / "bag", seconds=1.2, thermal=changes, rgb=changes)
    make_bag(plan)
    settings = Settings(method="cfi", backend="onnxruntime_cpu", processing_size=0, detect=False)
    kept = Kept()
    request = Request(settings, ("method", "backend"), ("cfi",), samples=1, progress=False)
    report = evaluate(Path(plan.output), request, lambda *given: kept).report
    parameters = node_parameters(report)
    used = {k: tuple(v) if isinstance(v, list) else v for k, v in report["settings"].items()}
    with Rig("online", keep_images=True) as rig, open_bag(plan.output) as bag:
        rig.run(FuseNode, **{k: v for k, v in parameters.items() if v != ()})
        played = play(bag, find_cameras(bag), Settings(**used), rig, rate=0)
        assert set(played.due) == set(kept.fused)
        assert played.fused == len(kept.fused) == 12
        for stamp, offline in kept.fused.items():
            online = images.view(rig.images[stamp]).astype(int)
            assert np.abs(online - offline).max() <= 1
    assert played.summary()["lost"] == 0
    assert played.summary()["latency_ms"]["p50"] > 0


@pytest.mark.parametrize("rate", [0, 4])
def test_each_round_of_a_loop_counts_with_its_own_images(tmp_path, ros, rate):
    plan = small_plan(tmp_path / "bag", seconds=1.5)
    make_bag(plan)
    settings = Settings(backend="null", processing_size=0, detect=False)
    with Rig("looped") as rig, open_bag(plan.output) as bag:
        rig.run(FuseNode, backend="null", processing_size=0, detect=False, use_sim_time=True)
        played = Played()
        for rounds in (1, 2):
            play(bag, find_cameras(bag), settings, rig, rate=rate, played=played)
            assert len(played.due) == 15 * rounds
        assert rig.wait(lambda: rig.report and rig.report.count("fused") == played.fused)
        assert rig.report.count("resets") == 1
    assert len(played.latency_ms) == played.fused
    assert min(played.latency_ms) > 0
    assert rate or played.fused == 30


def test_a_ros_1_bag_of_planes_and_big_endian_counts_is_played_as_it_is(tmp_path, ros):
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    kind, store = "sensor_msgs/msg/Image", get_typestore(Stores.ROS1_NOETIC)
    names = (kind, "std_msgs/msg/Header", "builtin_interfaces/msg/Time")
    make_image, make_header, make_time = (store.types[name] for name in names)

    def image(stamp_ns, encoding, size, step, data, big=0):
        stamp = make_time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        header = make_header(seq=0, stamp=stamp, frame_id="camera")
        message = make_image(
            header=header,
            height=size[1],
            width=size[0],
            encoding=encoding,
            is_bigendian=big,
            step=step,
            data=np.frombuffer(data, np.uint8),
        )
        return store.serialize_ros1(message, kind)

    counts = np.random.default_rng(0).integers(29000, 30000, (48, 64)).astype(">u2")
    with Writer(tmp_path / "drive.bag") as writer:
        thermal, rgb = (
            writer.add_connection(topic, kind, typestore=store)
            for topic in ("/thermal/image_raw", "/rgb/image_raw")
        )
        for number in range(5):
            stamp = 10**18 + number * 10**8
            writer.write(thermal, stamp, image(stamp, "mono16", (64, 48), 128, counts.tobytes(), 1))
            writer.write(rgb, stamp + 1, image(stamp, "nv12", (64, 48), 64, bytes(64 * 72)))
    settings = Settings(backend="null", processing_size=0, detect=False)
    with Rig("planes") as rig, open_bag(tmp_path / "drive.bag") as bag:
        rig.run(FuseNode, backend="null", processing_size=0, detect=False, use_sim_time=True)
        played = play(bag, find_cameras(bag), settings, rig, rate=0)
    assert (len(played.due), played.fused) == (5, 5)
