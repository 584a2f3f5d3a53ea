# SPDX-License-Identifier: AGPL-3.0-only
"""The camera node as a process: its images and stamps, its end, and what it refuses."""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import CameraInfo, Image

from fusion_ros.cameras.street.scene import CameraModel
from fusion_ros.harness.observer import stamp_ns
from fusion_ros.harness.processes import Child
from fusion_ros.harness.rig import Rig

SMALL = {"width": 64, "height": 48}
PATIENCE_S = 240.0
pytestmark = pytest.mark.usefixtures("ros")
names = (f"camera_{number}" for number in itertools.count())


class Watch:
    """A rig with camera processes, and the messages of both cameras."""

    def __init__(self, logs: Path) -> None:
        self.rig = Rig(next(names))
        self._logs = logs
        self.received: dict[tuple[str, type], list] = {}
        for camera in ("thermal", "rgb"):
            for kind, topic in ((Image, "image_raw"), (CameraInfo, "camera_info")):
                messages = self.received[camera, kind] = []
                self.rig.node.create_subscription(kind, f"{camera}/{topic}", messages.append, 100)

    def start(self, camera: str, **parameters: object) -> Child:
        return self.rig.start(
            "camera_node",
            self._logs,
            {"camera": camera, **parameters},
            name=camera,
            namespace=camera,
            may_end=True,
        )

    def images(self, camera: str) -> list[Image]:
        return self.received[camera, Image]

    def wait_for_end(self, *children: Child) -> None:
        """Wait until the processes ended well and everything that they sent is here."""
        assert self.rig.wait(lambda: all(child.ended() for child in children))
        for child in children:
            assert child.code == 0, child.text()
            sent = int(re.search(r"(\d+) frames sent", child.text())[1])
            for kind in (Image, CameraInfo):
                messages = self.received[child.name, kind]
                assert self.rig.wait(lambda m=messages, n=sent: len(m) == n), (child.text(), sent)


@pytest.fixture
def watch(tmp_path) -> Iterator[Watch]:
    made = Watch(tmp_path)
    yield made
    made.rig.close()


def write_pairs(folder: Path, count: int) -> Path:
    for kind, suffix in (("ir", ".png"), ("vi", ".bmp")):
        (folder / kind).mkdir(parents=True)
        for k in range(count):
            assert cv2.imwrite(f"{folder}/{kind}/{k}{suffix}", np.full((12 + k, 16), k, np.uint8))
    return folder


def test_file_cameras_publish_the_same_pair_with_the_same_stamp(watch, tmp_path):
    folder = write_pairs(tmp_path / "pairs", 5)
    start = int(time.time())
    cameras = [
        watch.start(camera, source="files", path=str(folder), rate=20, start_time=start)
        for camera in ("thermal", "rgb")
    ]

    def common() -> set[int]:
        return set.intersection(
            *(set(map(stamp_ns, watch.images(camera))) for camera in ("thermal", "rgb"))
        )

    assert watch.rig.wait(lambda: len(common()) >= 12)
    for camera in cameras:
        camera.interrupt()
        assert camera.wait(PATIENCE_S) == 0
    for camera in ("thermal", "rgb"):
        for message in watch.images(camera):
            # A busy machine may skip frames; frame k still shows pair k.
            k, rest = divmod(stamp_ns(message) - start * 1_000_000_000, 50_000_000)
            assert rest == 0
            assert message.data[0] == k % 5 and message.height == 12 + k % 5
    encodings = [watch.images(camera)[0].encoding for camera in ("thermal", "rgb")]
    assert encodings == ["mono8", "bgr8"]


def test_a_simulated_camera_waits_for_its_subscriber_and_stamps_with_its_clock_offset(watch):
    camera = watch.start(
        "thermal", scene="night", rate=10, frames=8, clock_offset=0.037, wait_for_subscribers=1,
        width=96, height=80,
    )  # fmt: skip
    watch.wait_for_end(camera)
    frames, infos = watch.images("thermal"), watch.received["thermal", CameraInfo]
    assert len(frames) == 8
    stamps = np.array(list(map(stamp_ns, frames)))
    assert stamps.tolist() == list(map(stamp_ns, infos))
    assert set(stamps % 100_000_000) == {37_000_000}
    assert frames[0].encoding == "mono16" and len(frames[0].data) == 96 * 80 * 2
    k = CameraModel.from_fov(96, 80, 66.0).matrix
    assert np.allclose(infos[0].k, k.ravel()) and np.allclose(infos[0].p[:3], k[0])
    assert frames[0].header.frame_id == "thermal_optical_frame"


@pytest.mark.slow
def test_a_camera_that_draws_ahead_says_so_and_keeps_the_loop(watch, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    camera = watch.start(
        "thermal", scene="night", ahead=True, rate=10, frames=3, wait_for_subscribers=1,
        width=48, height=32,
    )  # fmt: skip
    watch.wait_for_end(camera)
    assert "drawn ahead: 720 of 720" in camera.text()  # a round of the traffic at 30 per second
    assert len(watch.images("thermal")) == 3
    (kept,) = (tmp_path / ".cache/fusion_ros/street").iterdir()
    assert kept.stat().st_size >= 720 * 48 * 32 * 2


def test_a_camera_that_starts_late_still_ends_at_its_last_frame_time(watch):
    start = time.time_ns() - 3_600_000_000_000
    camera = watch.start(
        "rgb", scene="day", rate=10, frames=36_050, start_time=str(start), wait_for_subscribers=1,
        **SMALL,
    )  # fmt: skip
    watch.wait_for_end(camera)
    stamps = np.array(list(map(stamp_ns, watch.images("rgb"))))
    assert len(stamps) <= 50 and (stamps < start + 3_605_000_000_000).all()


def test_a_folder_of_unreadable_images_ends_all_the_same(watch, tmp_path):
    folder = write_pairs(tmp_path / "pairs", 4)
    for k in range(1, 4):
        (folder / f"vi/{k}.bmp").write_bytes(b"no image")
    camera = watch.start("rgb", source="files", path=str(folder), rate=20, frames=8)
    assert camera.wait(PATIENCE_S) == 0
    assert "2 frames sent" in camera.text() and "frame left out" in camera.text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 3])
def test_signals_end_a_camera_that_sends(number, times, watch):
    camera = watch.start("rgb", scene="day", **SMALL)
    assert watch.rig.wait(lambda: watch.images("rgb"))
    for _ in range(times):
        camera.interrupt(number)
    assert camera.wait(PATIENCE_S) == 0
    assert "frames sent" in camera.text() and "Traceback" not in camera.text()


def test_an_interrupt_ends_a_camera_that_still_draws_its_scene(watch):
    # The street of this size takes minutes to draw.
    camera = watch.start("rgb", scene="tour", width=4096, height=4096)
    node = f"/{watch.rig.namespace}/rgb/camera_node"
    topic = f"{node}/get_parameters"
    assert watch.rig.wait(lambda: topic in dict(watch.rig.node.get_service_names_and_types())), (
        camera.text()
    )
    camera.interrupt()
    camera.interrupt()
    assert camera.wait(PATIENCE_S) == 0
    assert "Traceback" not in camera.text() and not watch.images("rgb")


def test_no_parameter_call_ends_the_process(watch):
    camera = watch.start("rgb", scene="day", rate=10, **SMALL)
    rig = watch.rig
    client = rig.node.create_client(SetParameters, "rgb/camera_node/set_parameters")
    assert rig.wait(client.service_is_ready)
    wrong = [ParameterMessage(name=name) for name in ("rate", "x" * 300, "use_sim_time", "")]
    future = client.call_async(SetParameters.Request(parameters=wrong))
    rig.wait(future.done, 5.0)  # no answer would be allowed, the end is not
    before = len(watch.images("rgb"))
    assert rig.wait(lambda: len(watch.images("rgb")) > before + 2)
    camera.interrupt()
    assert camera.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"scene": "fog"}, "parameter scene: .* day, dusk, night, glare, smoke"),
        ({"source": "files"}, "parameter path: needed"),
        ({"rate": 500}, "parameter rate: .* from 0.0 to 240.0"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(parameters, message, watch):
    camera = watch.start("rgb", **parameters)
    assert camera.wait(PATIENCE_S) == 1
    assert "Traceback" not in camera.text()
    assert re.search(message, camera.text()), camera.text()
