# SPDX-License-Identifier: AGPL-3.0-only
"""What the node does around its network: order, counts, memory. How fast it is, `benchmark` tells.

Steps are driven by events: a held network lets the test decide when a frame is done.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
import tracemalloc

import numpy as np
import pytest
from std_msgs.msg import Header

from fusion_ros.frame import images
from fusion_ros.harness.rig import Rig
from fusion_ros.harness.sender import time_message
from fusion_ros.node.diagnostics import Report
from fusion_ros.node.fuse_node import FuseNode

HOMOGRAPHY = [1.02, 0.01, 3.0, 0.01, 1.02, 4.0, 0.0, 0.0, 1.0]
ALIGNED = {"thermal": ("mono8", 640, 480), "rgb": ("bgr8", 640, 480)}
REGISTERED = {
    "thermal": ("mono16", 640, 512),
    "rgb": ("rgb8", 640, 480),
    "homography": HOMOGRAPHY,
}
STREAM_ENDS = ("paired", "too_far", "missing", "stale", "waiting")
PERIOD_NS = 33_000_000
PLANE = 640 * 480
"""Bytes of the smallest image that there is, one of eight bits a pixel."""
PATIENCE_S = 60.0
pytestmark = pytest.mark.usefixtures("ros")
names = (f"runtime_{number}" for number in itertools.count())


def noise(encoding: str, width: int, height: int) -> np.ndarray:
    shape = (height, width, 3) if encoding in ("bgr8", "rgb8") else (height, width)
    low, high, dtype = (7000, 9000, np.uint16) if "16" in encoding else (0, 256, np.uint8)
    return np.random.default_rng(0).integers(low, high, shape, dtype)


class HeldNetwork:
    """Holds each frame before its network runs, until `release`."""

    def __init__(self, node: FuseNode) -> None:
        self._engine = node.configured.pipeline.network.fuser.engine
        self._run = self._engine.run
        self.held = threading.Semaphore(0)
        self._released = threading.Semaphore(0)
        self._engine.run = self._hold

    def _hold(self, feeds):
        self.held.release()
        assert self._released.acquire(timeout=PATIENCE_S)
        return self._run(feeds)

    def wait(self) -> None:
        """Wait until a frame is held."""
        assert self.held.acquire(timeout=PATIENCE_S)

    def release(self) -> None:
        self._released.release()

    def let_go(self) -> None:
        """Hold no frame from now on."""
        self._engine.run = self._run
        self._released.release()


class Bench:
    """A node in this process with a network that passes the visible image through."""

    def __init__(self, rig: Rig, thermal: tuple, rgb: tuple, **parameters: object) -> None:
        self.rig = rig
        values = {"method": "baffm", "backend": "null", "detect": False, "log_period": 0.0}
        self.node = rig.run(FuseNode, **values | parameters)
        self.begin_ns = time.time_ns()
        self.messages = [
            (camera, camera.message(noise(*form), form[0]))
            for camera, form in ((rig.sender.thermal, thermal), (rig.sender.rgb, rgb))
        ]

    def stamp(self, k: int) -> int:
        return self.begin_ns + k * PERIOD_NS

    def send(self, k: int) -> None:
        for camera, message in self.messages:
            camera.send(message, self.stamp(k))

    def number(self, stamp: int) -> int:
        return (stamp - self.begin_ns) // PERIOD_NS

    def fuse(self, k: int) -> None:
        """Send the k-th pair and wait until it is fused."""
        self.send(k)
        assert self.rig.wait(lambda: self.stamp(k) in self.rig.arrivals)

    def settle(self, pairs: int) -> Report:
        """Wait for a report that counts all pairs sent and leaves none in progress."""

        def done() -> bool:
            report = self.rig.report
            counted = report and report.count("rgb_received") == pairs
            return bool(counted) and not report.count("in_progress")

        assert self.rig.wait(done), self.rig.report
        return self.rig.report


@pytest.fixture
def bench():
    rigs: list[Rig] = []

    def make(setup: dict, **parameters: object) -> Bench:
        rigs.append(Rig(next(names)))
        return Bench(rigs[-1], **setup, **parameters)

    yield make
    for rig in rigs:
        rig.close()


def assert_adds_up(report: Report) -> None:
    """Each image and each pair is counted exactly once."""
    for camera in ("thermal", "rgb"):
        ends = sum(report.count(f"{camera}_{end}") for end in STREAM_ENDS)
        assert report.count(f"{camera}_received") == ends, report
    done = sum(map(report.count, ("fused", "displaced", "rejected", "in_progress")))
    assert report.count("rgb_paired") == done, report


# --- Order and counts -----------------------------------------------------------------------------


@pytest.mark.parametrize("setup", [ALIGNED, REGISTERED], ids=["aligned", "registered"])
def test_every_pair_that_the_network_has_time_for_is_fused_once_and_in_order(setup, bench):
    one = bench(setup)
    for k in range(20):
        one.fuse(k)
    report = one.settle(20)
    assert list(map(one.number, one.rig.stamps)) == list(range(20))
    assert report.count("fused") == report.count("rgb_paired") == 20
    assert_adds_up(report)


def test_a_slow_network_gets_the_newest_pair_next_and_the_others_are_counted(bench):
    one = bench(ALIGNED)
    one.fuse(0)
    network = HeldNetwork(one.node)
    sent = 1
    for _ in range(3):
        one.send(sent)
        sent += 1
        network.wait()
        for _ in range(5):
            one.send(sent)
            sent += 1
        # All were received while the network was busy.
        assert one.rig.wait(lambda n=sent: one.rig.count("rgb_paired") == n)
        network.release()
        network.wait()
        network.release()
        newest = one.stamp(sent - 1)
        assert one.rig.wait(lambda stamp=newest: stamp in one.rig.arrivals)
    report = one.settle(sent)
    assert [one.number(stamp) for stamp in one.rig.stamps] == [0, 1, 6, 7, 12, 13, 18]
    assert (report.count("fused"), report.count("displaced")) == (7, 12)
    assert_adds_up(report)


def test_pairs_at_a_rate_are_all_accounted_for(bench):
    """At any load of the machine: in = fused + displaced, and frames are fused in order.

    What a busy machine's transport drops before the node takes it is not in.
    """
    one = bench(REGISTERED)
    one.fuse(0)
    for k in range(1, 60):
        one.send(k)
        one.rig.wait(lambda: False, 0.01)
    newest = one.stamp(59)
    assert one.rig.wait(lambda: newest in one.rig.arrivals)
    report = one.rig.settle()
    assert 1 < report.count("rgb_received") <= 60
    assert report.count("fused") + report.count("displaced") == report.count("rgb_paired")
    assert_adds_up(report)
    numbers = list(map(one.number, one.rig.stamps))
    assert numbers == sorted(set(numbers)) and len(numbers) == report.count("fused")


# --- Memory ---------------------------------------------------------------------------------------


def allocated(one: Bench) -> int:
    """Bytes held at once beyond those before, over ten pairs from callback to publish.

    Images are handed over as a subscription does, without a transport that allocates by itself.
    """
    node = one.node

    def give(k: int) -> None:
        for camera, (_, message) in zip(node.configured.cameras, one.messages):
            handed = copy.copy(message)  # with the same pixels
            handed.header = Header(stamp=time_message(one.stamp(k)))
            node.active.on_image(camera, handed)
        assert node.configured.worker.wait(PATIENCE_S)
        assert node.configured.outputs.wait(PATIENCE_S)

    one.rig.pause()
    for k in range(5):
        give(k)
    tracemalloc.start()
    try:
        for k in range(5, 15):
            give(k)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "setup",
    [
        ALIGNED,
        REGISTERED,
        REGISTERED | {"rgb": ("mono8", 640, 480), "gain_mode": "none"},
        ALIGNED | {"thermal": ("rgb8", 320, 240), "gain_stretch_8bit": True},
    ],
    ids=[
        "aligned",
        "registered",
        "16 bit beside grey, no gain",
        "false colour, resized, stretched",
    ],
)
def test_no_image_is_allocated_from_callback_to_publish(setup, bench):
    assert allocated(bench(setup)) < PLANE / 2


def test_the_check_for_allocations_finds_an_image(bench):
    one = bench(REGISTERED)
    frames = one.node.configured.frames
    frames._converters = [lane | {"rgb": images.visible_bgr} for lane in frames._converters]
    assert allocated(one) > 3 * PLANE
