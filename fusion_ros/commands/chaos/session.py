# SPDX-License-Identifier: AGPL-3.0-only
"""One run of `chaos`: cameras at a rate, faults in between, and the account at the end."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from fusion_ros.commands import CommandError
from fusion_ros.commands.chaos.faults import FAULTS, Feed
from fusion_ros.harness.rig import Rig, ros_session
from fusion_ros.harness.sender import time_message
from fusion_ros.node.diagnostics import Report

__all__ = ["Account", "Chaos", "ChaosReport", "Planned", "account", "schedule"]

_QUIET_S = (1.5, 4.0)
"""Between two faults."""
_WARM_S = 8.0
_FINAL_S = 12.0
_FLAT_MB = 20.0
_SETTLED_S = 300.0
"""What memory is compared with: the state after this time."""
_FULL_RATE = 0.95
_SAMPLE_S = 5.0
_SIZE = (160, 120)
_ENDS = ("paired", "too_far", "missing", "stale", "waiting")
_READER = """
import sys, rclpy
from rclpy.qos import HistoryPolicy, QoSProfile
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("reader")
qos = QoSProfile(history=HistoryPolicy.KEEP_ALL, depth=0)
node.create_subscription(Image, sys.argv[1], lambda message: None, qos)
rclpy.spin(node)
"""


@dataclass(frozen=True)
class Planned:
    """A fault of the plan: its name, its begin in s and its duration in s."""

    name: str
    begin_s: float
    seconds: float


def schedule(seed: int, seconds: float) -> list[Planned]:
    """Faults for so many seconds, in an order that the seed decides; each is drawn as often."""
    rng, plan, now = random.Random(seed), [], 0.0
    names: list[str] = []
    while True:
        if not names:
            names = rng.sample(sorted(FAULTS), len(FAULTS))
        now += rng.uniform(*_QUIET_S)
        name = names.pop()
        length = rng.uniform(*FAULTS[name].seconds)
        if now + length > seconds:
            return plan
        plan.append(Planned(name, now, length))
        now += length


@dataclass(frozen=True)
class Account:
    """Where images and pairs went; `missing` are those that no counter names.

    images: counted when they arrive; each is paired, too far, missing, stale or waiting, or it was
    refused (unstamped, unreadable), used alone, or fused with a thermal image that was held. done:
    fused, displaced, rejected, in progress.
    """

    images: dict[str, int]
    ends: dict[str, int]
    pairs: int
    done: dict[str, int]

    @property
    def received(self) -> int:
        """Number of images of both cameras."""
        return sum(self.images.values())

    @property
    def missing(self) -> int:
        """Number of images and pairs that no counter names."""
        gone = abs(self.received - sum(self.ends.values()))
        return gone + abs(self.pairs - sum(self.done.values()))


def account(report: Report) -> Account:
    """The account in a report."""
    ends = {}
    for camera in ("thermal", "rgb"):
        for end in (*_ENDS, "unstamped", "unreadable", "alone", "held"):
            ends[f"{camera}_{end}"] = report.count(f"{camera}_{end}")
    single = sum(report.count(name) for name in ("thermal_alone", "rgb_alone", "rgb_held"))
    return Account(
        {camera: report.count(f"{camera}_images") for camera in ("thermal", "rgb")},
        ends,
        report.count("pairs") + single,
        {name: report.count(name) for name in ("fused", "displaced", "rejected", "in_progress")},
    )


@dataclass
class ChaosReport:
    """What a run found.

    samples: (seconds, fused images a second, resident memory in MB) every few seconds.
    """

    rate: float
    seconds: float = 0.0
    faults: list[Planned] = field(default_factory=list)
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    final_fps: float = 0.0
    final_sent: float = 0.0
    growth_mb: float = 0.0
    refused: list[str] = field(default_factory=list)
    ended: str = ""

    @property
    def problems(self) -> list[str]:
        """What does not hold, in words."""
        found = [self.ended] if self.ended else []
        lost = sum(one.missing for one in self.accounts)
        if lost:
            found.append(f"{lost} images or pairs are not accounted for")
        if not self.accounts:
            found.append("there is no account: the node reported nothing at the end")
        if self.final_fps < _FULL_RATE * self.final_sent:
            found.append(
                f"{self.final_fps:.1f} fps after the last fault, sent are {self.final_sent:.1f}"
            )
        if self.growth_mb > _FLAT_MB:
            found.append(f"memory grew by {self.growth_mb:.1f} MB, allowed are {_FLAT_MB:g}")
        return found

    @property
    def holds(self) -> bool:
        return not self.problems

    def text(self) -> str:
        # The counters begin anew with a configuration, and go on after a deactivation.
        following = [one.received for one in self.accounts[1:]] + [0]
        ends = [one for one, then in zip(self.accounts, following) if then < one.received]
        total = sum(one.received for one in ends)
        fused = sum(one.done["fused"] for one in ends)
        lines = [
            f"{len(self.faults)} faults of {len({one.name for one in self.faults})} kinds in "
            f"{self.seconds / 60:.1f} min; {total} images received, {fused} fused",
            f"{self.final_fps:.1f} fps of {self.final_sent:.1f} after the last fault; memory grew "
            f"by {self.growth_mb:.1f} MB",
        ]
        return "\n".join([*lines, *(self.problems or ["everything is accounted for"])])

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        content = asdict(self) | {"holds": self.holds, "problems": self.problems}
        path.write_text(json.dumps(content, indent=1) + "\n")

    def plot(self, path: Path) -> None:
        """Draw rate and memory over time, with the faults; nothing without matplotlib."""
        try:
            import matplotlib
        except ImportError:
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(11, 6))
        minutes, fps, memory = zip(*((s / 60, f, m) for s, f, m in self.samples))
        above.plot(minutes, fps, lw=0.8)
        above.axhline(self.rate, color="grey", lw=0.5)
        above.set_ylabel("fused images a second")
        below.plot(minutes, memory)
        below.set_ylabel("resident memory, MB")
        below.set_xlabel("minutes")
        for one in self.faults:
            for axes in (above, below):
                axes.axvspan(one.begin_s / 60, (one.begin_s + one.seconds) / 60, alpha=0.1, lw=0)
        above.set_title(f"{len(self.faults)} faults (shaded) in {self.seconds / 60:.0f} minutes")
        figure.tight_layout()
        figure.savefig(path, dpi=80)
        pyplot.close(figure)


class Chaos:
    """Sends as both cameras, and lets faults begin and end by plan.

    Attributes that faults use: feed, child (the node's process), reader (a process that subscribes
    to the fused image), second (another node), others (publishers that send RGB images too),
    foreign (path of a file that is no model).
    """

    image_type = Image

    def __init__(self, plan: list[Planned], rate: float, method: str, folder: Path) -> None:
        self.feed = Feed()
        self.others: list[Any] = []
        self.report = ChaosReport(rate, faults=plan)
        self._plan = list(plan)
        self._rate = rate
        self._folder = folder
        self._parameters: dict[str, object] = {"detect": False, "log_period": 0.0}
        self._parameters |= {"method": method} if method else {"backend": "null"}
        self.foreign = str(folder / "no_model.onnx")
        Path(self.foreign).write_text("this is no model")
        self._sampled: tuple[float, int] | None = None
        self._start = 0.0
        self._sent = 0
        self._due = 0.0
        self._begun: list[tuple[float, Callable[[], None]]] = []
        self._fault_at = 0.0
        self._calls: list[Any] = []

    def run(self) -> ChaosReport:
        """Run the plan and return what was found."""
        with ros_session(), Rig("chaos") as rig:
            self._rig = rig
            self.second = self.make_node("second")
            self._messages = self._make_messages()
            self.child = rig.start("fuse_node", self._folder, self._parameters)
            topic = rig.node.resolve_topic_name("fused/image")
            with subprocess.Popen([sys.executable, "-c", _READER, topic]) as self.reader:
                try:
                    rig.wait_until_heard()
                    self._clients()
                    self._run()
                except Exception as error:
                    self.report.ended = f"the run ended early: {error}"
                finally:
                    self.reader.kill()
                    self.second.destroy_node()
        return self.report

    # --- For the faults ---------------------------------------------------------------------------

    def make_node(self, name: str) -> Any:
        return rclpy.create_node(name, namespace=self._rig.namespace)

    def set(self, **values: object) -> None:
        """Set parameters, without waiting for the answer."""
        request = SetParametersAtomically.Request()
        request.parameters = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        self._call(self._setter, request)

    def transition(self, number: int) -> None:
        """Ask for a transition and wait for it, while images go on."""
        request = ChangeState.Request()
        request.transition.id = number
        future = self._call(self._changer, request)
        end = time.monotonic() + 20
        while not future.done() and time.monotonic() < end:
            self._send_next()

    def send_infos(self, change: Callable[[Any], Any]) -> None:
        """Publish camera_info of both cameras."""
        for camera in (self._rig.sender.thermal, self._rig.sender.rgb):
            matrix = np.array([[150.0, 0, 79.5], [0, 150.0, 59.5], [0, 0, 1]])
            camera.infos.publish(change(camera.info(*_SIZE, matrix)))

    def account(self) -> None:
        """Note where all images went so far: the next transition may begin new counters."""
        self.feed = Feed(silent=frozenset({"thermal", "rgb"}))
        try:
            self.report.accounts.append(account(self._rig.settle(20.0, unpaired=True)))
        finally:
            self.feed = Feed()

    # --- The run ----------------------------------------------------------------------------------

    def _run(self) -> None:
        self.send_infos(lambda info: info)
        self._due = time.monotonic()
        self._pass(_WARM_S)
        self._start = time.monotonic()
        while self._plan:
            self._send_next()
            self._change_faults()
        while self._begun:
            self._send_next()
            self._change_faults()
        self.report.seconds = time.monotonic() - self._start
        self._pass(_FINAL_S / 3)
        fused, sent, begun = len(self._rig.stamps), self._sent, time.monotonic()
        self._pass(_FINAL_S)
        seconds = time.monotonic() - begun
        self.report.final_fps = (len(self._rig.stamps) - fused) / seconds
        self.report.final_sent = (self._sent - sent) / seconds
        self.account()
        self._measure_growth()

    def _pass(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._send_next()

    def _change_faults(self) -> None:
        now = time.monotonic()
        for ending in [one for one in self._begun if one[0] <= now]:
            self._begun.remove(ending)
            ending[1]()
        if self._plan and not self._begun and now - self._start >= self._plan[0].begin_s:
            planned = self._plan.pop(0)
            self._fault_at = now
            fault = FAULTS[planned.name]
            self._begun.append((now + planned.seconds, fault.begin(self)))

    def _send_next(self) -> None:
        """Send one pair when it is due, and take messages until then."""
        self._due = max(self._due + 1 / self._rate, time.monotonic() - 0.5)
        self._rig.wait(lambda: False, self._due - time.monotonic())
        true, since = time.time_ns(), time.monotonic() - self._fault_at
        sender, feed = self._rig.sender, self.feed
        for camera in (sender.thermal, sender.rgb):
            if camera.name in feed.silent:
                continue
            message = feed.change.get(camera.name, lambda one: one)(self._messages[camera.name])
            stamp = feed.stamp(camera.name, true, since)
            message.header.stamp = time_message(stamp)
            for _ in range(feed.times):
                camera.images.publish(message)
        for other in self.others:
            message = self._messages["rgb"]
            message.header.stamp = time_message(true - 700_000_000)
            other.publish(message)
        self._sent += 1
        self._sample()

    def _sample(self) -> None:
        now, fused = time.monotonic(), len(self._rig.stamps)
        if self._sampled is None:
            self._sampled = (now, fused)
        since, before = self._sampled
        if now - since >= _SAMPLE_S:
            fps = (fused - before) / (now - since)
            seconds = now - self._start if self._start else 0.0
            self.report.samples.append((seconds, fps, _resident_mb(self.child.pid)))
            self._sampled = (now, fused)

    def _measure_growth(self) -> None:
        samples = self.report.samples
        settled = min(_SETTLED_S, samples[-1][0] / 3)
        before = [memory for seconds, _, memory in samples if 0 <= seconds <= settled]
        after = [memory for seconds, _, memory in samples if seconds > settled]
        self.report.growth_mb = max(after) - before[-1] if before and after else 0.0

    def _clients(self) -> None:
        node = self._rig.node
        self._setter = node.create_client(
            SetParametersAtomically, "fuse_node/set_parameters_atomically"
        )
        self._changer = node.create_client(ChangeState, "fuse_node/change_state")
        for client in (self._setter, self._changer):
            if not self._rig.wait(client.service_is_ready, 30.0):
                raise CommandError(f"there is no service {client.srv_name}", 1)

    def _call(self, client: Any, request: Any) -> Any:
        future = client.call_async(request)
        self._calls = [one for one in self._calls if not one.done()] + [future]
        return future

    def _make_messages(self) -> dict[str, Image]:
        rng = np.random.default_rng(0)
        width, height = _SIZE
        thermal = rng.normal(29500, 200, (height, width)).astype(np.uint16)
        rgb = rng.integers(0, 255, (height, width, 3), np.uint8)
        sender = self._rig.sender
        return {
            "thermal": sender.thermal.message(thermal, "mono16"),
            "rgb": sender.rgb.message(rgb, "bgr8"),
        }


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
