# SPDX-License-Identifier: AGPL-3.0-only
"""A fusion node between two cameras and an observer, each a process of its own, with their times.

Run as a program it shows where the milliseconds of a frame go:
`python test/runtime_rig.py [rate=30] [seconds=60] [thermal=mono16:640x512] [<parameter>=<value>]`
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fusion_ros.harness.environment import PROFILE_VARIABLE  # noqa: E402

_PICTURES = 4


@dataclass(frozen=True)
class Camera:
    """What a camera sends: noise of this encoding and size in pixels."""

    encoding: str
    width: int = 640
    height: int = 480


@dataclass
class Run:
    """Pairs of stamps `begin_ns` + k / `rate`, and when their fused images arrived, all in ns.

    late: images that a camera sent more than half a period after their stamp.
    """

    rate: float
    frames: int
    begin_ns: int
    late: int = 0
    arrivals: dict[int, int] = field(default_factory=dict)

    def stamps(self) -> list[int]:
        return [due_ns(self.begin_ns, k, self.rate) for k in range(self.frames)]

    @property
    def lost(self) -> int:
        return sum(stamp not in self.arrivals for stamp in self.stamps())

    @property
    def ages_ms(self) -> list[float]:
        """From stamp to arrival, in the order of arrival."""
        ours = [(at, stamp) for stamp, at in self.arrivals.items() if stamp >= self.begin_ns]
        return [1e-6 * (at - stamp) for at, stamp in sorted(ours)]


def due_ns(begin_ns: int, k: int, rate: float) -> int:
    return begin_ns + round(k * 1e9 / rate)


def until(true: Callable[[], object], seconds: float) -> object:
    end = time.monotonic() + seconds
    while not (result := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return result


class Rig:
    """Processes in namespace `name`: two cameras and an observer at once, the node by `start_node`.

    delay: seconds that the null engine sleeps; parameters: the node's, beside method and backend.
    """

    def __init__(
        self,
        name: str,
        thermal: Camera = Camera("mono8"),
        rgb: Camera = Camera("bgr8"),
        delay: float = 0.0,
        **parameters: object,
    ) -> None:
        self._name = name
        self._delay = delay
        self._parameters = {
            "method": "baffm",
            "backend": "null",
            "detect": False,
            "log_period": 0.0,
        } | parameters
        self._env = os.environ | {
            PROFILE_VARIABLE: str(ROOT / "config" / "fastdds_shm.xml"),
            "PYTHONPATH": str(ROOT),
        }
        self.arrivals: dict[int, int] = {}
        self._status: tuple[float, dict[str, str]] = (0.0, {})
        self._observer = self._python(__file__, "observer", name)
        self._cameras = [
            self._python(
                __file__,
                "camera",
                f"/{name}/{topic}/image_raw",
                camera.encoding,
                str(camera.width),
                str(camera.height),
            )
            for topic, camera in (("thermal", thermal), ("rgb", rgb))
        ]
        self.node: subprocess.Popen | None = None
        for process in (self._observer, *self._cameras):
            assert process.stdout.readline() == "ready\n"
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *error: object) -> None:
        # In order: what is killed leaves its shared memory behind.
        processes = [p for p in (self.node, *self._cameras, self._observer) if p is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_node(self) -> None:
        """Start the process; returns at once."""
        arguments = ["--ros-args", "-r", f"__ns:=/{self._name}"]
        for name, value in self._parameters.items():
            arguments += ["-p", f"{name}:={json.dumps(value)}"]
        if self._delay:
            self.node = self._python("-c", _SLEEPY_NODE, str(self._delay), *arguments)
        else:
            self.node = self._python("-m", "fusion_ros.node.main", *arguments)

    def warm_up(self) -> None:
        """Start the node and send pairs until they come back."""
        self.start_node()
        for _ in range(20):
            if self.send(30, 10).arrivals:
                return
        raise AssertionError("no fused image in 20 attempts")

    def send(self, rate: float, frames: int) -> Run:
        """Send pairs at `rate` per second, and wait for what comes of them."""
        run = self.begin(rate, frames)
        for camera in self._cameras:
            run.late += int(camera.stdout.readline())
        time.sleep(0.3 + self._delay)
        run.arrivals = {stamp: at for stamp, at in self.arrivals.items() if stamp >= run.begin_ns}
        return run

    def begin(self, rate: float, frames: int) -> Run:
        """Have the cameras send; returns at once."""
        run = Run(rate, frames, time.time_ns() + 100_000_000)
        for camera in self._cameras:
            camera.stdin.write(f"{run.begin_ns} {rate} {frames}\n")
            camera.stdin.flush()
        return run

    def status(self) -> dict[str, str]:
        """The node's diagnostics of at least a second after this call."""
        asked = time.monotonic()
        assert until(lambda: self._status[0] > asked + 1.1, 10), "no diagnostics"
        return self._status[1]

    def memory_mb(self) -> dict[str, float]:
        """Resident memory of the node: all, and that of neither files nor shared segments."""
        lines = Path(f"/proc/{self.node.pid}/status").read_text().splitlines()
        kb = {
            name: text.split()[0]
            for name, _, text in (line.partition(":") for line in lines)
            if name in ("VmRSS", "RssAnon")
        }
        return {"resident": int(kb["VmRSS"]) / 1024, "anonymous": int(kb["RssAnon"]) / 1024}

    def cpu_s(self) -> float:
        """Processor time of the node so far, of all its threads."""
        stat = Path(f"/proc/{self.node.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def _python(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._env,
            text=True,
        )

    def _listen(self) -> None:
        for line in self._observer.stdout:
            if line.startswith("{"):
                self._status = (time.monotonic(), json.loads(line))
            else:
                stamp, at = line.split()
                self.arrivals.setdefault(int(stamp), int(at))


_SLEEPY_NODE = """
import sys, time
from fusion_ros.node import main
from fusion_ros.inference.null import NullEngine

delay, run = float(sys.argv.pop(1)), NullEngine.run

def sleep_and_run(engine, feeds):
    time.sleep(delay)
    return run(engine, feeds)

NullEngine.run = sleep_and_run
sys.exit(main.main())
"""


def run_camera(topic: str, encoding: str, width: str, height: str) -> None:
    """Publish what each line of the input asks for: first stamp in ns, rate, number of images."""
    from rclpy.qos import QoSProfile
    from rclpy.time import Time
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from fusion_ros.frame import images

    with node("camera") as own:
        publisher = own.create_publisher(Image, topic, QoSProfile(depth=5))
        message = Image()
        pictures = noise(Camera(encoding, int(width), int(height)))
        images.fill(message, pictures[0], encoding, Header())
        print("ready", flush=True)
        for line in sys.stdin:
            begin, rate, frames = line.split()
            late = 0
            for k in range(int(frames)):
                due = due_ns(int(begin), k, float(rate))
                time.sleep(max(0.0, 1e-9 * (due - time.time_ns())))
                late += time.time_ns() - due > 0.5e9 / float(rate)
                header = Header(stamp=Time(nanoseconds=due).to_msg(), frame_id=topic)
                publisher.publish(images.fill(message, pictures[k % _PICTURES], encoding, header))
            print(late, flush=True)


def run_observer(namespace: str) -> None:
    """Print stamp and time of arrival of fused images, in ns, and each report of the node."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from sensor_msgs.msg import Image

    def on_fused(raw: bytes) -> None:
        now = time.time_ns()
        # After four bytes of encapsulation a serialised image begins with its stamp.
        seconds, nanoseconds = struct.unpack_from("=iI", raw, 4)
        print(seconds * 1_000_000_000 + nanoseconds, now, flush=True)

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{namespace}/fuse_node: fusion":
                print(json.dumps({value.key: value.value for value in status.values}), flush=True)

    with node("observer", namespace) as own:
        own.create_subscription(Image, "fused/image", on_fused, 100, raw=True)
        own.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
        print("ready", flush=True)
        while True:
            # Returns now and then, since signals are not seen while it waits.
            rclpy.spin_once(own, timeout_sec=0.2)


@contextmanager
def node(name: str, namespace: str = "") -> Iterator[Any]:
    """A node that ends in order with this process, or by SIGTERM."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    own = rclpy.create_node(name, namespace=namespace or None)
    try:
        yield own
    finally:
        own.destroy_node()
        rclpy.shutdown()


def noise(camera: Camera) -> list[np.ndarray]:
    colour = camera.encoding in ("bgr8", "rgb8")
    shape = (camera.height, camera.width, *((3,) if colour else ()))
    deep = "16" in camera.encoding
    low, high, dtype = (7000, 9000, np.uint16) if deep else (0, 256, np.uint8)
    rng = np.random.default_rng(0)
    return [rng.integers(low, high, shape, dtype) for _ in range(_PICTURES)]


def report(run: Run, status: Mapping[str, str], cpu_ms: float) -> str:
    """Where the milliseconds of a frame went, by the node's own stages, and what was lost."""
    stages = {name: float(status[f"stage_{name}_ms"]) for name in _STAGES}
    whole = {p: float(status[f"latency_{p}_ms"]) for p in ("p50", "p95", "p99")}
    rows = {"camera's publish, transport, receive, pair": whole["p50"] - sum(stages.values())}
    rows |= stages | {f"header stamp to published, {p}": ms for p, ms in whole.items()}
    rows["processor time of the node"] = cpu_ms
    lines = [f"{name:45s}{ms:8.2f}" for name, ms in rows.items()]
    lines.append(f"lost {run.lost} of {run.frames}, sent late {run.late}")
    return "\n".join(lines)


_STAGES = ("queue", "convert", "gain", "register", "prepare", "infer", "colour", "publish")


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments)
    rate, seconds = float(given.pop("rate", 30)), float(given.pop("seconds", 60))
    cameras = {}
    for name, usual in (("thermal", "mono8:640x480"), ("rgb", "bgr8:640x480")):
        encoding, _, size = given.pop(name, usual).partition(":")
        cameras[name] = Camera(encoding, *map(int, size.split("x")))
    parameters = {name: json.loads(text) for name, text in given.items()}
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    with Rig("rig", **cameras, **parameters) as rig:
        rig.warm_up()
        before = rig.cpu_s()
        run = rig.send(rate, round(rate * seconds))
        cpu_ms = 1e3 * (rig.cpu_s() - before) / run.frames
        print(report(run, rig.status(), cpu_ms))


if __name__ == "__main__":
    if sys.argv[1:2] == ["camera"]:
        run_camera(*sys.argv[2:])
    elif sys.argv[1:2] == ["observer"]:
        run_observer(*sys.argv[2:])
    else:
        main(sys.argv[1:])
