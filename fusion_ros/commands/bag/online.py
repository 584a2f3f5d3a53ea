# SPDX-License-Identifier: AGPL-3.0-only
"""`--online`: the bag played over DDS to a fusion node, and what came of it.

The player publishes both cameras' messages and /clock, and pairs them itself as the node does, so
that it knows which fused images are due.
"""

from __future__ import annotations

import array
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_msgs.msg import Header

from fusion_ros.commands import CommandError
from fusion_ros.frame import compressed, images
from fusion_ros.frame.bit_depth import BitDepth
from fusion_ros.frame.monitor import percentiles
from fusion_ros.frame.pairing import Pairer
from fusion_ros.frame.settings import Settings
from fusion_ros.harness.processes import ProcessError
from fusion_ros.harness.rig import Rig, ros_session
from fusion_ros.harness.sender import time_message
from fusion_ros.recording.bag import Bag, Cameras, find_cameras, open_bag
from fusion_ros.recording.messages import IMAGE
from fusion_ros.recording.storage import Record

__all__ = ["Online", "Played", "play"]

_START_S = 120.0
_DUE_S = 20.0
"""Longest wait for a fused image that is due."""
_REST_S = 3.0


@dataclass(frozen=True)
class Online:
    """Plays a bag to `node`, one that runs (its full name), or to one that is started.

    rate: speed of playing, 1 as recorded; 0 waits for each fused image before the next message.
    loop: times to play the bag.
    """

    node: str = ""
    rate: float = 1.0
    loop: int = 1

    def __call__(self, path: Path, report: dict[str, Any]) -> dict[str, Any]:
        """The section `online` of the report; raises CommandError if no node answers."""
        parameters = node_parameters(report)
        namespace, _, name = self.node.strip("/").rpartition("/")
        with (
            tempfile.TemporaryDirectory() as logs,
            ros_session(),
            Rig(namespace, name or "fuse_node") as rig,
        ):
            if not self.node:
                rig.start("fuse_node", Path(logs), parameters)
            try:
                played = self._play(path, report, rig)
            except (ProcessError, TimeoutError) as error:
                raise CommandError(f"playing the bag to the node failed: {error}", 3) from None
        return {
            "node": self.node or "a node started for this",
            "rate": self.rate,
            "loop": self.loop,
            **played.summary(),
        }

    def _play(self, path: Path, report: dict[str, Any], rig: Rig) -> Played:
        request = report["request"]
        with open_bag(path) as bag:
            cameras = find_cameras(bag, request["thermal"], request["rgb"])
            first = bag.start_ns + round(1e9 * request["start"])
            stop = first + round(1e9 * request["duration"]) if request["duration"] else None
            settings = Settings(**{k: _tuples(v) for k, v in report["settings"].items()})
            played = Played()
            by_arrival = request["stamps"] == "arrival"
            for _ in range(self.loop):
                play(bag, cameras, settings, rig, self.rate, (first, stop), played, by_arrival)
            return played


def node_parameters(report: dict[str, Any]) -> dict[str, Any]:
    """The node's parameters with which it does what the report's first method did."""
    usual = Settings()
    values = {
        name: value
        for name, value in report["settings"].items()
        if _tuples(value) != getattr(usual, name) and value != []
    }
    method = report["quality"]["methods"][0]
    # The size that was used: the node would look for one that this machine holds.
    values["processing_size"] = report["speed"]["methods"][method]["processing_size"]
    values["use_sim_time"] = True
    if report["request"]["stamps"] == "arrival":
        values["stamp_source"] = "arrival"
    if not report["request"]["detect"]:
        values["detect"] = False
    return values


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass
class Played:
    """What was played: stamps of the due images and when the later message of each was sent, ns."""

    due: list[int] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    fused: int = 0
    seconds: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The figures of the report."""
        latency = percentiles(self.latency_ms) if self.latency_ms else None
        return {
            "pairs": len(self.due),
            "fused": self.fused,
            "lost": len(self.due) - self.fused,
            "fps": self.fused / self.seconds if self.seconds else 0.0,
            "latency_ms": {
                name: getattr(latency, name) if latency else 0.0 for name in ("p50", "p95", "p99")
            },
            "counters": self.counters,
        }


def play(
    bag: Bag,
    cameras: Cameras,
    settings: Settings,
    rig: Rig,
    rate: float,
    span: tuple[int | None, int | None] = (None, None),
    played: Played | None = None,
    by_arrival: bool = False,
) -> Played:
    """Play a bag to the node of `rig` once; see `Online` for the rate.

    by_arrival: the node pairs by arrival, which is that of the recording at rate 1 alone.

    Raises TimeoutError if no node listens, or none fuses the first pair.
    """
    played = Played() if played is None else played
    rig.wait_until_heard(_START_S)
    clock = rig.node.create_publisher(Clock, "/clock", 10)
    pairer = Pairer(
        round(1e9 * settings.tolerance),
        settings.queue_size,
        round(1e9 * settings.thermal_time_offset),
        settings.reuse_slower,
    )
    # In the bag the first calibration may come after the first images.
    for name, topics in cameras.named():
        for record in bag.records([topics.info] if topics.info else [], *span):
            camera = rig.sender.thermal if name == "thermal" else rig.sender.rgb
            with contextlib.suppress(images.ImageError):
                camera.infos.publish(_info(bag.message(record)))
                break
    sent: dict[int, int] = {}
    before, fused_before = len(played.due), played.fused
    rig.observer.forget()  # in a loop the stamps are those of the round before
    begun, first_ns = time.monotonic(), None
    for name, record, message, usable in _messages(bag, cameras, span, BitDepth(settings.rgb_bits)):
        if first_ns is None:
            first_ns = record.log_ns
        if rate:
            due = begun + 1e-9 * (record.log_ns - first_ns) / rate
            rig.observer.wait(lambda due=due: time.monotonic() >= due, 3600.0, rig.check)
        clock.publish(Clock(clock=time_message(record.log_ns)))
        camera = rig.sender.thermal if name == "thermal" else rig.sender.rgb
        if isinstance(message, CameraInfo):
            camera.infos.publish(message)
            continue
        stamp_ns = bag.stamp_ns(record) if usable else 0
        pairing_ns = record.log_ns if by_arrival and usable else stamp_ns
        now_ns = time.time_ns()
        camera.images.publish(message)
        add = pairer.add_thermal if name == "thermal" else pairer.add_visible
        for pair in add(pairing_ns, stamp_ns) if pairing_ns > 0 else ():
            _await(rig, pair.visible.item, now_ns, sent, rate)
    for pair in pairer.flush():
        # The node waits for a partner until the cameras are silent.
        _await(rig, pair.visible.item, time.time_ns(), sent, rate)
    rig.observer.wait(lambda: all(s in rig.arrivals for s in sent), _REST_S, rig.check)
    played.seconds += time.monotonic() - begun
    played.due += sent
    for stamp, at_ns in sent.items():
        if stamp in rig.arrivals:
            played.fused += 1
            played.latency_ms.append(1e-6 * (rig.arrivals[stamp].received_ns - at_ns))
    if len(played.due) > before and played.fused == fused_before:
        raise TimeoutError("the node fused not one of the pairs that it was sent")
    if rig.report is not None:
        names = ("displaced", "rejected", "thermal_too_far", "rgb_too_far", "resets")
        played.counters = {each: rig.report.count(each) for each in names}
    return played


def _await(rig: Rig, stamp_ns: int, now_ns: int, sent: dict[int, int], rate: float) -> None:
    sent[stamp_ns] = now_ns
    if not rate:
        rig.observer.wait(lambda: stamp_ns in rig.arrivals, _DUE_S, rig.check)


def _messages(
    bag: Bag, cameras: Cameras, span: tuple[int | None, int | None], depth: BitDepth
) -> Iterator[tuple[str, Record, Any, bool]]:
    """Camera, record, message to publish, and whether the node can use it.

    The message is serialized where the bag has what ROS 2 takes.
    """
    names = {topics.image: name for name, topics in cameras.named()}
    infos = {topics.info: name for name, topics in cameras.named() if topics.info}
    plain = not bag.ros1
    for record in bag.records([*names, *infos], *span):
        if record.topic in infos:
            with contextlib.suppress(images.ImageError):
                yield infos[record.topic], record, _info(bag.message(record)), True
            continue
        name, as_it_is = names[record.topic], plain and bag.topics[record.topic].type == IMAGE
        try:
            message = bag.message(record)
            if as_it_is:
                images.view(message)
            else:
                message = _image(name, message, depth)
        except images.ImageError:
            # The node is to refuse it too, where it can be sent at all.
            if as_it_is:
                yield name, record, record.data, False
            continue
        yield name, record, record.data if as_it_is else message, True


def _header(message: Any) -> Header:
    stamp = message.header.stamp
    return Header(
        stamp=Time(sec=int(stamp.sec), nanosec=int(stamp.nanosec)),
        frame_id=message.header.frame_id,
    )


def _image(camera: str, message: Any, depth: BitDepth) -> Image:
    """The image of a ROS 1 message, or decompressed: the player publishes raw images only.

    depth: of 16-bit RGB images. Raises ImageError for an image that the evaluation leaves out too.
    """
    if not hasattr(message, "format"):
        images.view(message)
        return Image(
            header=_header(message),
            height=message.height,
            width=message.width,
            encoding=message.encoding,
            is_bigendian=int(message.is_bigendian),
            step=message.step,
            data=array.array("B", bytes(message.data)),
        )
    if camera == "rgb":
        pixels, encoding = compressed.visible_bgr(message, depth=depth), "bgr8"
    else:
        pixels = compressed.thermal_array(message)
        encoding = "mono16" if pixels.dtype == np.uint16 else "mono8"
    return images.fill(Image(), pixels, encoding, _header(message))


def _info(message: Any) -> CameraInfo:
    roi = message.roi
    return CameraInfo(
        header=_header(message),
        height=message.height,
        width=message.width,
        distortion_model=message.distortion_model,
        **{name: [float(v) for v in getattr(message, name)] for name in ("d", "k", "r", "p")},
        binning_x=message.binning_x,
        binning_y=message.binning_y,
        roi=RegionOfInterest(
            x_offset=roi.x_offset,
            y_offset=roi.y_offset,
            height=roi.height,
            width=roi.width,
            do_rectify=bool(roi.do_rectify),
        ),
    )
