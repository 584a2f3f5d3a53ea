# SPDX-License-Identifier: AGPL-3.0-only
"""What is wrong with a camera, with the pairing or with the clock, and what to do about it.

Each piece of advice comes from what the node knows: publishers, their types and QoS, stamps,
clocks and counts. Nothing here needs ROS: `graph` has the interface of `graph.Graph`.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_ros.frame.images import ENCODINGS
from fusion_ros.frame.pairing import PairingCounts
from fusion_ros.node.camera import Camera
from fusion_ros.node.parameters import Parameters

__all__ = [
    "Condition",
    "Level",
    "about_camera",
    "about_clock",
    "about_pairing",
    "about_topics",
    "far_apart",
]

_SOME = 0.2
"""Share of images, such as those with a repeated stamp, above which it is no accident."""
_FEW_IMAGES = 5
"""Images of each camera that may stay without a pair before that is reported."""
_COUNTS = ("mono16", "16UC1", "16SC1", "32FC1")
"""Encodings that thermal cameras use, and RGB cameras hardly ever."""
_CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
_SINCE_BOOT_S = 600.0
"""Stamps within this of the time since boot are taken for such."""
_NAMED = 5
"""Topics or nodes that a text names at most."""


class Level(enum.IntEnum):
    """Levels of a diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Condition:
    """Something that is wrong for as long as it is reported; `text` says what to do."""

    level: Level
    text: str


def about_camera(camera: Camera, graph: Any, parameters: Parameters) -> list[Condition]:
    """What is wrong with a camera, the worst first."""
    publishers = graph.publishers(camera.image_topic)
    if camera.topic and camera.topic != graph.resolve(camera.image_topic):
        publishers = graph.publishers(camera.topic)
    fitting = [one for one in publishers if one.kind == camera.kind]
    mismatched = [one for one in fitting if camera.reliable and not one.reliable]
    found: list[Condition] = []
    if camera.silent:
        found.append(_silence(camera, graph, publishers, fitting, mismatched))
    elif len(fitting) < len(publishers):
        found.append(Condition(Level.WARN, _other_types(camera, publishers)))
    if mismatched and not (camera.silent and len(mismatched) == len(fitting)):
        found.append(Condition(Level.WARN, _mismatch(camera, mismatched)))
    if len(fitting) > 1:
        found.append(
            Condition(
                Level.WARN,
                f"{len(fitting)} publishers on {camera.topic} ({_names(fitting)}): their images "
                "mix; expected one, so stop the others or remap them",
            )
        )
    infos = graph.publishers(camera.info_topic)
    if infos and all(one.kind != _CAMERA_INFO for one in infos):
        found.append(
            Condition(
                Level.WARN,
                f"{_names(infos)} publishes {infos[0].kind} on {graph.resolve(camera.info_topic)}, "
                f"expected {_CAMERA_INFO}, so the camera counts as uncalibrated: remap the topic",
            )
        )
    if not camera.silent:
        found += _images(camera, parameters)
    return sorted(found, key=lambda one: -one.level)


def about_topics(cameras: Sequence[Camera]) -> list[Condition]:
    """Return a condition if the cameras seem to have each other's topic."""
    thermal, rgb = cameras
    colour = ENCODINGS.get(thermal.encoding)
    if colour is None or colour.channels < 3 or rgb.encoding not in _COUNTS:
        return []
    return [
        Condition(
            Level.WARN,
            f"thermal images are {thermal.encoding}, which is colour, and RGB images "
            f"{rgb.encoding}, as a thermal camera sends: if {thermal.topic} and {rgb.topic} are "
            "swapped, remap each to the other",
        )
    ]


def about_clock(graph: Any) -> list[Condition]:
    """What is wrong with the node's clock."""
    if graph.sim_time and not graph.now_ns():
        if graph.publishers("/clock"):
            text = "/clock has a publisher, but no time has come from it: start its playback"
        else:
            text = (
                "nobody publishes /clock: play the bag with --clock, start the simulator, or set "
                "use_sim_time to false"
            )
        return [Condition(Level.WARN, f"use_sim_time is set, but {text}; there is no latency")]
    return []


def about_pairing(
    before: PairingCounts | None,
    counts: PairingCounts,
    cameras: Sequence[Camera],
    parameters: Parameters,
) -> tuple[str, bool]:
    """What is wrong if no images make a pair, '' if nothing is; whether there is enough to judge.

    before: the counts at the last pair, or when it was judged last.
    """
    if before is None or counts.visible.paired > before.visible.paired:
        return "", True
    new = [
        getattr(counts, stream).received - getattr(before, stream).received
        for stream in ("thermal", "visible")
    ]
    thermal, rgb = cameras
    if min(new) < _FEW_IMAGES or None in (thermal.stamp_ns, rgb.stamp_ns):
        return "", False
    text = f"none of the latest {new[0]} thermal and {new[1]} RGB images make a pair: "
    return text + _why_unpaired(thermal, rgb, parameters), True


def far_apart(latency_ms: float, sim_time: bool) -> str:
    """What to do about images whose stamps are far from the node's time."""
    seconds = 1e-3 * latency_ms
    apart = f"{abs(seconds):.1f} s {'before' if seconds > 0 else 'after'}"
    now_s = time.time()
    if abs(now_s - seconds - time.monotonic()) < _SINCE_BOOT_S:
        cause = "they count from the machine's start: set stamp_source to arrival"
    elif sim_time:
        cause = "this node's time is that of /clock: the cameras must use it too"
    elif seconds > 0:
        cause = "set use_sim_time and play with --clock if this is a bag; else set the clocks"
    else:
        cause = "they are ahead: synchronise the clocks of camera and node (NTP, PTP)"
    return f"images are stamped {apart} this node's time, so there is no latency; {cause}"


def _silence(
    camera: Camera, graph: Any, publishers: list, fitting: list, mismatched: list
) -> Condition:
    for_s = camera.clock() - camera.heard
    start = f"no {camera.name} image for {for_s:.1f} s on {camera.topic}"
    count = f"(publishers: {len(publishers)})"
    if publishers and not fitting:
        text = _other_types(camera, publishers)
    elif mismatched and len(mismatched) == len(fitting):
        text = _mismatch(camera, mismatched)
    elif fitting:
        text = (
            f"{_names(fitting)} publishes it, but sends nothing: look at that node's log and camera"
        )
    elif raw := _raw_beside(camera, graph):
        text = (
            f"{_names(raw)} publishes the images on {graph.resolve(camera.image_topic)} "
            "uncompressed: set input_transport to auto or raw"
        )
    else:
        others = [topic for topic in graph.image_topics() if topic != camera.topic]
        text = "start the camera or remap the topic"
        if others:
            named = ", ".join(others[:_NAMED]) + (", ..." if len(others) > _NAMED else "")
            text += f"; topics with images: {named}"
    return Condition(Level.ERROR, f"{start} {count}: {text}")


def _raw_beside(camera: Camera, graph: Any) -> list[Any]:
    """Publishers of raw images on the camera's topic, where those beside it are subscribed to."""
    topic = graph.resolve(camera.image_topic)
    if camera.topic in ("", topic):
        return []
    return [one for one in graph.publishers(topic) if one.kind.endswith("/Image")]


def _other_types(camera: Camera, publishers: Iterable[Any]) -> str:
    others = [one for one in publishers if one.kind != camera.kind]
    kinds = ", ".join(sorted({one.kind for one in others}))
    if all("CompressedImage" in one.kind for one in others):
        todo = "set input_transport to auto or compressed"
    else:
        todo = "remap the topic to one of images"
    return f"{_names(others)} publishes {kinds} on {camera.topic}, expected {camera.kind}: {todo}"


def _mismatch(camera: Camera, mismatched: Sequence[Any]) -> str:
    return (
        f"{_names(mismatched)} offers the {camera.name} images on {camera.topic} best effort, "
        "this node asks for reliable, so nothing of it arrives: set the parameter qos:=best_effort"
    )


def _images(camera: Camera, parameters: Parameters) -> list[Condition]:
    """What is wrong with the images that come."""
    found = []
    if text := camera.depth.assumption:
        found.append(Condition(Level.WARN, text))
    expected = getattr(parameters, f"{camera.name}_rate") or camera.usual_rate
    rate = camera.rate()
    if expected and camera.received > 1 and rate < expected / 2:
        found.append(
            Condition(
                Level.WARN,
                f"{rate:.1f} {camera.name} images a second, usual are {expected:.1f}: look at the "
                "camera, the network and the processor's load",
            )
        )
    if camera.share_repeated > _SOME:
        found.append(
            Condition(
                Level.WARN,
                f"{camera.share_repeated:.0%} of the {camera.name} images repeat the stamp of the "
                "image before and are left out: correct the driver, or set stamp_source to "
                "arrival",
            )
        )
    if camera.share_refused > _SOME:
        level = Level.ERROR if camera.share_refused == 1 else Level.WARN
        text = f"{camera.share_refused:.0%} of the {camera.name} images cannot be used"
        found.append(Condition(level, f"{text}: {camera.refusal}" if camera.refusal else text))
    return found


def _why_unpaired(thermal: Camera, rgb: Camera, parameters: Parameters) -> str:
    for camera in (thermal, rgb):
        if camera.share_repeated > _SOME:
            return (
                f"{camera.share_repeated:.0%} of the {camera.name} images repeat the stamp of the "
                "image before: correct the driver, or set stamp_source to arrival"
            )
    ahead = 1e-9 * (thermal.stamp_ns - rgb.stamp_ns) + parameters.thermal_time_offset
    text = (
        f"thermal stamps are {ahead:+.3f} s from the RGB ones, the tolerance is "
        f"{parameters.tolerance:g} s; "
    )
    needed = parameters.thermal_time_offset - ahead
    low, high = type(parameters).specs()["thermal_time_offset"].limits
    if not low <= needed <= high:
        return text + (
            "the cameras' clocks do not count from the same moment, and no thermal_time_offset "
            f"reaches that far ({low:g} to {high:g} s): set stamp_source to arrival, or have the "
            "drivers stamp by the system's time"
        )
    if abs(ahead) <= 2 * parameters.tolerance:
        return text + "set tolerance"
    return text + f"set thermal_time_offset, to about {needed:.3f}, or tolerance"


def _names(publishers: Iterable[Any]) -> str:
    names = sorted(one.node for one in publishers)
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
