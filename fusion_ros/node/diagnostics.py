# SPDX-License-Identifier: AGPL-3.0-only
"""The node's report in /diagnostics: the checks behind it, how it is made and how it is read.

Nothing here needs ROS. `messages.diagnostic_array` makes the message that `Report.read` reads.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pairing import Pairer, PairingCounts
from fusion_ros.frame.pipeline import Pipeline
from fusion_ros.frame.settings import Settings
from fusion_ros.node.camera import Camera

__all__ = ["FUSION", "Diagnostics", "Level", "Report", "Status", "status_name"]

FUSION = "fusion"
"""The part of the node whose status holds all counters."""

_FEW_IMAGES = 5
"""Images of each camera that may stay without a pair before that is reported."""
_RECENT_S = 5.0
"""A fault makes the status a warning for this long."""


class Level(enum.IntEnum):
    """Levels of a diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


def status_name(node: str, part: str) -> str:
    """Name of the status of one part of a node, given by its full name without leading slash."""
    return f"{node}: {part}"


@dataclass(frozen=True)
class Status:
    """One diagnostic status, as diagnostic_msgs/DiagnosticStatus has it."""

    name: str
    level: Level
    message: str
    values: dict[str, str] = field(default_factory=dict)
    hardware_id: str = ""


@dataclass(frozen=True)
class Report:
    """What a fusion node reported.

    Attributes:
        stamp_ns: the node's clock at that time, ns.
        values: keys and values as sent.
        level: `Level` of the status.
        message: summary in one line.
    """

    stamp_ns: int
    values: dict[str, str]
    level: Level = Level.OK
    message: str = ""

    @classmethod
    def read(cls, msg: Any, node: str = "fuse_node") -> Report | None:
        """Read the report in a diagnostic_msgs/DiagnosticArray; None if it has none of `node`.

        node: full name of the node, namespace included, without the leading slash.
        """
        name = status_name(node, FUSION)
        for status in msg.status:
            if status.name == name:
                stamp = msg.header.stamp
                return cls(
                    stamp.sec * 1_000_000_000 + stamp.nanosec,
                    {value.key: value.value for value in status.values},
                    Level(status.level[0]),
                    status.message,
                )
        return None

    def count(self, name: str) -> int:
        """Return a counter; 0 for an event that has not happened yet."""
        return int(self.values.get(name, 0))

    @property
    def stage_ms(self) -> dict[str, float]:
        """Mean duration of each stage of a frame, ms."""
        return {
            key.removeprefix("stage_").removesuffix("_ms"): float(value)
            for key, value in self.values.items()
            if key.startswith("stage_")
        }


class Diagnostics:
    """Checks the node's parts and sums them up.

    Args:
        node: the node's full name without leading slash.
        monitor, pairer, pipeline, cameras: what is checked and summed up.
        resolve: full name of a topic.
        count_publishers: number of publishers of a topic that is named relative to the node.
    """

    def __init__(
        self,
        node: str,
        monitor: Monitor,
        pairer: Pairer,
        pipeline: Pipeline,
        cameras: Sequence[Camera],
        resolve: Callable[[str], str],
        count_publishers: Callable[[str], int],
    ) -> None:
        self._node = node
        self._monitor = monitor
        self._pairer = pairer
        self._pipeline = pipeline
        self._cameras = cameras
        self._resolve = resolve
        self._count_publishers = count_publishers
        self._resets = 0
        self._compared: PairingCounts | None = None

    def restart(self) -> None:
        """Start again at activation: images from before it are not compared with later ones."""
        self._compared = None

    def check(self, settings: Settings) -> None:
        """Report silent cameras, stamps that jump back and images that never make a pair."""
        for camera in self._cameras:
            if camera.silent:
                self._report_silence(camera)
        counts = self._pairer.counts
        if counts.resets > self._resets:
            self._resets = counts.resets
            self._monitor.fault("time_jump", "stamps jumped back: pairing has started again")
        self._check_pairing(counts, settings)

    def statuses(
        self,
        in_progress: int,
        detector_problem: str | None,
        pace: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Status]:
        """Return the present state.

        in_progress: frames that the worker has or waits for; detector_problem: why there is no
        detector; pace: values on size and rate.
        """
        monitor, pipeline = self._monitor.snapshot(), self._pipeline
        engine, detector = pipeline.network.fuser.engine, pipeline.detector
        values: dict[str, Any] = {
            "method": pipeline.network.method,
            "engine": engine.description,
            "engine_passed_over": "; ".join(map(str, engine.passed_over)) or "none",
            "detector": detector.engine.description if detector else "none",
            "size": "{}x{}".format(*pipeline.rgb_size) if pipeline.rgb_size else "unknown",
            "processing_size": pipeline.network.fuser.processing_size,
            **pace,
            "fps": monitor.fps,
            "mean_fps": monitor.mean_fps,
        }
        if detector_problem and not detector:
            values["detector_problem"] = detector_problem
        if monitor.latency_ms:
            for name, ms in dataclasses.asdict(monitor.latency_ms).items():
                values[f"latency_{name}_ms"] = ms
        for name, ms in monitor.stage_ms.items():
            values[f"stage_{name}_ms"] = ms
        counts = self._pairer.counts
        for camera, stream in (("thermal", counts.thermal), ("rgb", counts.visible)):
            for name, count in dataclasses.asdict(stream).items():
                values[f"{camera}_{name}"] = count
        values["resets"] = counts.resets
        values["in_progress"] = in_progress
        # Pairs and single images are in progress, fused, displaced or rejected: these add up.
        counters = (
            "thermal_alone",
            "rgb_alone",
            "fused",
            "displaced",
            "rejected",
            "searched",
            "detections",
        )
        values.update(dict.fromkeys(counters, 0))
        values.update(monitor.counters)
        recent = [fault.text for fault in monitor.faults if fault.age_s < _RECENT_S]
        problems = list(recent)
        if engine.gpu_unused:
            problems.append(f"the GPU is not used: {engine.gpu_unused}")
        return [
            Status(
                status_name(self._node, FUSION),
                Level.WARN if problems else Level.OK,
                "; ".join(problems) or f"{monitor.fps:.1f} fps by {values['method']}",
                {key: _text(value) for key, value in values.items()},
                engine.device,
            )
        ]

    def rate(self) -> str:
        """Return rate, latency and losses in one line; empty before the first fused frame."""
        monitor = self._monitor.snapshot()
        if not monitor.latency_ms:
            return ""
        latency, counters = monitor.latency_ms, monitor.counters
        return (
            f"{self._pipeline.network.method}: {monitor.fps:.1f} fps, latency "
            f"p50 {latency.p50:.0f}, p95 {latency.p95:.0f}, p99 {latency.p99:.0f} ms, "
            f"fused {counters['fused']}, displaced {counters.get('displaced', 0)}, "
            f"rejected {counters.get('rejected', 0)}"
        )

    def _report_silence(self, camera: Camera) -> None:
        self._monitor.fault(
            f"{camera.name}_silent",
            f"no {camera.name} image for {time.monotonic() - camera.heard:.1f} s on "
            f"{self._resolve(camera.image_topic)} (publishers: "
            f"{self._count_publishers(camera.image_topic)}): start the camera or remap the topic",
        )

    def _check_pairing(self, counts: PairingCounts, settings: Settings) -> None:
        """Report that both cameras send images, but none of them make a pair."""
        before, self._compared = self._compared, counts
        if before is None or counts.visible.paired > before.visible.paired:
            return
        new = [
            getattr(counts, stream).received - getattr(before, stream).received
            for stream in ("thermal", "visible")
        ]
        thermal, rgb = self._cameras
        if min(new) < _FEW_IMAGES or None in (thermal.stamp_ns, rgb.stamp_ns):
            self._compared = before
            return
        ahead = 1e-9 * (thermal.stamp_ns - rgb.stamp_ns) + settings.thermal_time_offset
        self._monitor.fault(
            "unpaired",
            f"none of the latest {new[0]} thermal and {new[1]} RGB images make a pair: thermal "
            f"stamps are {ahead:+.3f} s from the RGB ones, the tolerance is "
            f"{settings.tolerance:g} s; set thermal_time_offset or tolerance",
        )


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
