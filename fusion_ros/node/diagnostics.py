# SPDX-License-Identifier: AGPL-3.0-only
"""The node's report in /diagnostics: one status for each part, how it is made and how it is read.

Nothing here needs ROS. `messages.diagnostic_array` makes the message that `Report.read` reads.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusion_ros.frame.images import stamp_ns
from fusion_ros.frame.monitor import Monitor, Snapshot
from fusion_ros.frame.pairing import PairingCounts
from fusion_ros.frame.pipeline import Pipeline
from fusion_ros.node import advice
from fusion_ros.node.advice import Condition, Level
from fusion_ros.node.camera import Camera
from fusion_ros.node.parameters import Parameters

__all__ = [
    "FUSION",
    "PARTS",
    "Diagnostics",
    "Level",
    "Report",
    "Status",
    "Work",
    "status_name",
    "without_network",
]

FUSION = "fusion"
"""The part of the node whose status holds all counters."""
PARTS = ("thermal camera", "rgb camera", "registration", "detector", FUSION)

_RECENT_S = 5.0
"""A fault makes its part's status a warning for this long."""
_STANDING = ("unpaired", "_silent", "_incompatible_qos", "registration", "calibration", "_missing")
"""Faults, by the end of their counters' names, that a standing condition tells about."""
_SHARE_S = 10.0
"""Shares of images are taken from this long."""
_SOME = 0.2
"""Share of stale images above which that is reported."""
_LONGEST_VALUE, _LONGEST_MESSAGE = 500, 2000
"""Characters: names and texts of others can be of any length."""


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
        values: keys and values of the fusion's status as sent, and those of the other parts, whose
            keys begin with the first word of the part: `thermal_rate`, `registration_source`.
        level: the worst `Level` of all parts.
        message: summary of all parts in one line.
        parts: the status of each part by its name, one of `PARTS`.
    """

    stamp_ns: int
    values: dict[str, str]
    level: Level = Level.OK
    message: str = ""
    parts: dict[str, Status] = field(default_factory=dict)

    @classmethod
    def read(cls, msg: Any, node: str = "fuse_node") -> Report | None:
        """Read the report in a diagnostic_msgs/DiagnosticArray; None if it has none of `node`.

        node: full name of the node, namespace included, without the leading slash.
        """
        names = {status_name(node, part): part for part in PARTS}
        parts = {
            names[one.name]: Status(
                one.name,
                Level(one.level[0]),
                one.message,
                {value.key: value.value for value in one.values},
                one.hardware_id,
            )
            for one in msg.status
            if one.name in names
        }
        if FUSION not in parts:
            return None
        values = dict(parts[FUSION].values)
        for part, status in parts.items():
            if part != FUSION:
                prefix = part.partition(" ")[0]
                values.update({f"{prefix}_{key}": text for key, text in status.values.items()})
        wrong = [status.message for status in parts.values() if status.level != Level.OK]
        return cls(
            stamp_ns(msg.header),
            values,
            max(status.level for status in parts.values()),
            "; ".join(dict.fromkeys(wrong)) or parts[FUSION].message,
            parts,
        )

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


@dataclass(frozen=True)
class Work:
    """What is under way in the node's threads.

    in_progress: pairs and single images that are neither fused nor given up.
    pending: items that some thread has in hand or waits for, boxes of fused images included.
    frame_s, publishing_s: how long the frame and the message in hand have taken, s; 0 if there is
        none.
    detector_problem: why there is no detector although the parameters ask for one.
    pace: values on size and rate.
    """

    in_progress: int = 0
    pending: int = 0
    frame_s: float = 0.0
    publishing_s: float = 0.0
    detector_problem: str | None = None
    pace: Mapping[str, Any] = field(default_factory=dict)


class Diagnostics:
    """Checks the node's parts and sums them up, in one thread.

    Args:
        monitor, pipeline, cameras: what is checked and summed up.
        graph: what the node knows of other nodes; see `graph.Graph`.
        counts: the counters of the pairing.
        work: what is under way.
    """

    def __init__(
        self,
        monitor: Monitor,
        pipeline: Pipeline,
        cameras: Sequence[Camera],
        graph: Any,
        counts: Callable[[], PairingCounts],
        work: Callable[[], Work],
    ) -> None:
        self._monitor = monitor
        self._pipeline = pipeline
        self._cameras = cameras
        self._graph = graph
        self._counts = counts
        self._work = work
        self._active_since: float | None = None
        self._resets = 0
        self._compared: PairingCounts | None = None
        self._unpaired = ""
        self._history: deque[tuple[float, PairingCounts]] = deque()

    def restart(self) -> None:
        """Start again at activation: images from before it are not compared with later ones."""
        self._compared = None
        self._unpaired = ""
        self._history.clear()
        self._active_since = time.monotonic()

    def pause(self) -> None:
        """Note that the node is inactive from now on."""
        self._active_since = None

    def statuses(self, parameters: Parameters) -> list[Status]:
        """Check everything and return the present state, the fusion's status last."""
        work, counts, now = self._consistent()
        active = self._active_since is not None
        if active:
            self._check(counts, parameters)
        statuses = [self._camera(camera, now, active, parameters) for camera in self._cameras]
        statuses.append(self._registration(now, active))
        statuses.append(self._detector(now, work, active, parameters))
        statuses.append(self._fusion(now, work, counts, active, parameters))
        return statuses

    def rate(self) -> str:
        """Return rate, latency and losses in one line; empty before the first fused frame."""
        monitor = self._monitor.snapshot()
        counters = monitor.counters
        if not counters.get("fused"):
            return ""
        latency = monitor.latency_ms
        times = (
            f"latency p50 {latency.p50:.0f}, p95 {latency.p95:.0f}, p99 {latency.p99:.0f} ms"
            if latency
            else "no latency"
        )
        return (
            f"{self._pipeline.network.method}: {monitor.fps:.1f} fps, {times}, "
            f"fused {counters['fused']}, displaced {counters.get('displaced', 0)}, "
            f"rejected {counters.get('rejected', 0)}"
        )

    def _consistent(self) -> tuple[Work, PairingCounts, Snapshot]:
        """Counters of one moment: read again when a frame was finished in between."""
        for _ in range(10):
            counts, work = self._counts(), self._work()
            now = self._monitor.snapshot()
            if (counts, work.in_progress) == (self._counts(), self._work().in_progress):
                break
        return work, counts, now

    def _check(self, counts: PairingCounts, parameters: Parameters) -> None:
        """Count and log silent cameras, stamps that jump back, images that never make a pair."""
        for camera in self._cameras:
            if camera.silent:
                self._monitor.fault(
                    f"{camera.name}_silent",
                    advice.about_camera(camera, self._graph, parameters)[0].text,
                )
        if counts.resets > self._resets:
            self._resets = counts.resets
            self._monitor.fault("time_jump", f"stamps jumped back{self._who_jumped()}")
        text, judged = advice.about_pairing(self._compared, counts, self._cameras, parameters)
        if judged:
            self._compared, self._unpaired = counts, text
        if text:
            self._monitor.fault("unpaired", text)
        now = time.monotonic()
        self._history.append((now, counts))
        while now - self._history[0][0] > _SHARE_S:
            self._history.popleft()

    def _who_jumped(self) -> str:
        for camera in self._cameras:
            publishers = self._graph.publishers(camera.topic or camera.image_topic)
            if len(publishers) > 1:
                names = ", ".join(sorted(one.node for one in publishers))
                return (
                    f" and forth between the publishers of {camera.topic}, {names}: stop one of "
                    "them; pairing started anew"
                )
        return ", as when a bag loops or a camera restarts: pairing started anew"

    # --- The parts --------------------------------------------------------------------------------

    def _camera(
        self, camera: Camera, now: Snapshot, active: bool, parameters: Parameters
    ) -> Status:
        conditions = advice.about_camera(camera, self._graph, parameters) if active else []
        rate = camera.rate()
        expected = getattr(parameters, f"{camera.name}_rate") or camera.usual_rate
        values = {
            "topic": camera.topic or self._graph.resolve(camera.image_topic),
            "type": camera.kind or "unknown",
            "publishers": ", ".join(
                one.node for one in self._graph.publishers(camera.topic or camera.image_topic)
            )
            or "none",
            "rate": rate,
            "expected_rate": expected,
            "age_s": time.monotonic() - camera.heard,
            "share_repeated": camera.share_repeated,
            "share_refused": camera.share_refused,
            "calibrated": camera.calibration is not None,
        }
        part = f"{camera.name} camera"
        summary = f"{rate:.1f} images a second"
        return self._status(part, conditions, now, active, summary, values, camera.frame_id)

    def _registration(self, now: Snapshot, active: bool) -> Status:
        state = self._pipeline.registration_state
        conditions = [Condition(Level.WARN, text) for text in state.problems]
        values = {"source": state.source, "coverage": state.coverage}
        for name, size in (("thermal_size", state.thermal_size), ("rgb_size", state.rgb_size)):
            values[name] = str(size) if size else "unknown"
        return self._status("registration", conditions, now, active, f"by {state.source}", values)

    def _detector(self, now: Snapshot, work: Work, active: bool, parameters: Parameters) -> Status:
        detector = self._pipeline.detector
        conditions = []
        if parameters.detect and detector is None:
            problem = work.detector_problem or "it is not loaded yet"
            conditions.append(Condition(Level.WARN, f"fusing without a detector: {problem}"))
        if not parameters.detect:
            summary = "switched off"
        else:
            summary = detector.engine.description if detector else "none"
        values = {"engine": detector.engine.description if detector else "none"}
        values["detections"] = now.counters.get("detections", 0)
        device = detector.engine.device if detector else ""
        return self._status("detector", conditions, now, active, summary, values, device)

    def _fusion(
        self,
        now: Snapshot,
        work: Work,
        counts: PairingCounts,
        active: bool,
        parameters: Parameters,
    ) -> Status:
        engine = self._pipeline.network.fuser.engine
        shares = self._shares(counts)
        conditions = []
        # A frame that began before a deactivation can be stuck in an inactive node, too.
        if work.frame_s > parameters.stuck_timeout:
            conditions.append(
                Condition(
                    Level.ERROR,
                    f"the frame in hand has taken {work.frame_s:.0f} s, stuck_timeout is "
                    f"{parameters.stuck_timeout:g} s: the network hangs, or an engine is being "
                    "built (set image_size to build it when the node configures)",
                )
            )
        if work.publishing_s > parameters.stuck_timeout:
            conditions.append(
                Condition(
                    Level.ERROR,
                    f"the message in hand has been in publishing for {work.publishing_s:.0f} s: "
                    "the middleware hangs",
                )
            )
        if active:
            conditions += self._standing(now, shares, parameters)
        if engine.gpu_unused:
            conditions.append(Condition(Level.WARN, f"the GPU is not used: {engine.gpu_unused}"))
        summary = f"{now.fps:.1f} fps by {self._pipeline.network.method}"
        values = self._values(now, work, counts) | shares
        return self._status(FUSION, conditions, now, active, summary, values, engine.device)

    def _standing(
        self, now: Snapshot, shares: dict[str, float], parameters: Parameters
    ) -> list[Condition]:
        """What is wrong with the fusion while the node is active."""
        conditions = []
        idle_s = time.monotonic() - self._active_since
        if now.last_fused_s is not None:
            idle_s = min(idle_s, now.last_fused_s)
        if idle_s > max(2.0, 2 * parameters.camera_timeout):
            missed = [one.name for one in self._cameras if one.silent or one.share_refused == 1]
            why = f", since there are no usable images of {' and '.join(missed)}" if missed else ""
            conditions.append(Condition(Level.ERROR, f"no image was fused for {idle_s:.0f} s{why}"))
        if self._unpaired:
            conditions.append(Condition(Level.ERROR, self._unpaired))
        conditions += advice.about_topics(self._cameras)
        conditions += advice.about_clock(self._graph)
        for camera in ("thermal", "rgb"):
            if (share := shares[f"{camera}_share_stale"]) > _SOME:
                conditions.append(
                    Condition(
                        Level.WARN,
                        f"{share:.0%} of the {camera} images are stale: they come after newer ones "
                        "or with the stamp of the one before; see the status of the camera",
                    )
                )
        if namesakes := self._graph.namesakes():
            conditions.append(
                Condition(
                    Level.WARN,
                    f"{namesakes} more node(s) named /{self._graph.node_name}: parameters and "
                    "transitions reach one of them by chance; give each a name or namespace",
                )
            )
        return conditions

    def _values(self, now: Snapshot, work: Work, counts: PairingCounts) -> dict[str, Any]:
        pipeline = self._pipeline
        engine, detector = pipeline.network.fuser.engine, pipeline.detector
        values: dict[str, Any] = {
            "method": pipeline.network.method,
            "engine": engine.description,
            "engine_passed_over": "; ".join(map(str, engine.passed_over)) or "none",
            "detector": detector.engine.description if detector else "none",
            "size": "{}x{}".format(*pipeline.rgb_size) if pipeline.rgb_size else "unknown",
            "processing_size": pipeline.network.fuser.processing_size,
            **work.pace,
            "fps": now.fps,
            "mean_fps": now.mean_fps,
        }
        if work.detector_problem and not detector:
            values["detector_problem"] = work.detector_problem
        if now.latency_ms:
            for name, ms in dataclasses.asdict(now.latency_ms).items():
                values[f"latency_{name}_ms"] = ms
        for name, ms in now.stage_ms.items():
            values[f"stage_{name}_ms"] = ms
        for name, samples in now.samples.items():
            values[f"{name}_p50"], values[f"{name}_p95"] = samples.p50, samples.p95
        for camera, stream in (("thermal", counts.thermal), ("rgb", counts.visible)):
            for name, count in dataclasses.asdict(stream).items():
                values[f"{camera}_{name}"] = count
        values["resets"] = counts.resets
        values["in_progress"] = work.in_progress
        values["pending"] = work.pending
        # Pairs and single images are in progress, fused, displaced or rejected: these add up.
        counters = (
            "thermal_alone",
            "rgb_alone",
            "rgb_held",
            "fused",
            "displaced",
            "rejected",
            "searched",
            "detections",
        )
        values.update(dict.fromkeys(counters, 0))
        values.update(now.counters)
        return values

    def _shares(self, counts: PairingCounts) -> dict[str, float]:
        """Shares of the latest images of each camera that became stale or got no partner."""
        before = self._history[0][1] if self._history else counts
        shares = {}
        for camera, stream in (("thermal", "thermal"), ("rgb", "visible")):
            old, new = getattr(before, stream), getattr(counts, stream)
            received = max(new.received - old.received, 1)
            shares[f"{camera}_share_stale"] = (new.stale - old.stale) / received
            lost = sum(getattr(new, n) - getattr(old, n) for n in ("too_far", "missing"))
            shares[f"{camera}_share_unpaired"] = lost / received
        return shares

    def _status(
        self,
        part: str,
        conditions: list[Condition],
        now: Snapshot,
        active: bool,
        summary: str,
        values: dict[str, Any],
        hardware_id: str = "",
    ) -> Status:
        """The status of a part: what is wrong now, and which faults it had lately."""
        texts = [one.text for one in conditions]
        level = max((one.level for one in conditions), default=Level.OK)
        recent = [
            fault.text
            for fault in now.faults
            if _part_of(fault.name) == part
            and fault.age_s < _RECENT_S
            and not fault.name.endswith(_STANDING)
        ]
        if recent and not conditions:
            level = Level.WARN
        texts += [text for text in recent if text not in texts]
        if not active and level != Level.ERROR:
            level, texts = Level.STALE, ["the node is not active", *texts]
        name = status_name(self._graph.node_name, part)
        return make_status(name, level, "; ".join(texts) or summary, values, hardware_id)


def make_status(
    name: str, level: Level, message: str, values: dict[str, Any], hardware_id: str = ""
) -> Status:
    """A status with values as text, nothing of it longer than a reader wants."""
    texts = {_cut(str(key), 100): _cut(_text(one)) for key, one in values.items()}
    return Status(name, level, _cut(message, _LONGEST_MESSAGE), texts, _cut(hardware_id, 100))


def without_network(node: str, state: str, problem: str) -> list[Status]:
    """Statuses of a node that is not configured.

    state: its lifecycle state in a few words; problem: why it could not be configured, '' if it
    was not tried or is under way.
    """
    level = Level.ERROR if problem else Level.STALE
    statuses = [
        make_status(status_name(node, part), Level.STALE, f"the node is {state}", {})
        for part in PARTS
        if part != FUSION
    ]
    text = f"the node is {state}" + (f": {problem}" if problem else "")
    return [*statuses, make_status(status_name(node, FUSION), level, text, {"state": state})]


def _part_of(fault: str) -> str:
    """The part of the node that a fault belongs to, by the name of its counter."""
    for camera in ("thermal", "rgb"):
        if fault.startswith(f"{camera}_"):
            return f"{camera} camera"
    if fault in ("registration", "calibration"):
        return "registration"
    return "detector" if fault.startswith("detector") else FUSION


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _cut(text: str, longest: int = _LONGEST_VALUE) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
