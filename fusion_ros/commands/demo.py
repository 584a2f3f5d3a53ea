# SPDX-License-Identifier: AGPL-3.0-only
"""The demonstration: two cameras and the fusion node as processes, and what came of them.

Leaves side-by-side stills, a video, `summary.json` and the processes' logs in a folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from sensor_msgs.msg import Image

from fusion_ros.cameras.files import FilesError, PairFolder
from fusion_ros.cameras.street.scene import CONDITIONS, TOUR_FADE_S, TOUR_STOP_S, weather
from fusion_ros.frame import images
from fusion_ros.frame.detector import default_detector_path
from fusion_ros.frame.pipeline import load_detector, load_network
from fusion_ros.frame.thermal import GainControl
from fusion_ros.harness.processes import Child, ProcessError, ros_arguments, set_environment
from fusion_ros.inference import EngineError
from fusion_ros.inference.models import model_path
from fusion_ros.node.parameters import Parameters
from fusion_ros.node.diagnostics import Report

SIZES = ((640, 480), (480, 360), (400, 300), (320, 240))
LONGEST_S, MOST_PER_S = 36.0, 10.0
SHARE = 0.6
"""Of the time between two pairs, what the networks may take; the rest is for all other work."""
PAIRS = 100
STILLS = 5
LEAD_S, LONGEST_END_S = 5.0, 6.0
LONGEST_START_S, LATEST_S = 60.0, 15.0
"""What the node may take until it reports, and the cameras beyond the time of their frames."""
SETTLE_NS = 200_000_000
"""What was received may still wait to be taken in: a status is judged from so much later."""
STREAM = ("received", "paired", "too_far", "missing", "stale", "waiting")
KEPT_FRAMES = 30
LEAST_PANEL, TITLE = 480, 30


class DemoError(Exception):
    """The demonstration cannot go on; the text says why, and what to do."""


@dataclass(frozen=True)
class Plan:
    """What the cameras send. Without `size`, files are sent as they are stored."""

    size: tuple[int, int] | None
    rate: float
    pairs: int

    @property
    def duration_s(self) -> float:
        return self.pairs / self.rate

    def gain(self) -> dict[str, float]:
        """Gain control, which counts in frames, as fast as it is at 30 per second."""
        frames = 30 / self.rate
        return {
            "smoothing": Parameters.gain_smoothing**frames,
            "max_step": min(Parameters.gain_max_step * frames, 255.0),
        }


def main(args: list[str] | None = None) -> int:
    """Run the demonstration; 0 if it went well, 2 for arguments that cannot be used."""
    options = _options(args)
    try:
        parameters = _check(options)
    except (DemoError, FilesError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    set_environment()
    try:
        summary = _run(options, parameters)
    except KeyboardInterrupt:
        return 130
    except (DemoError, ProcessError, FilesError, EngineError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(summary)
    print(f"\nstills, video, summary.json and logs are in {options.output}/")
    return 0


def _options(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--method", default=Parameters.method, help="fusion method, or a model's path (*.onnx)")
    add("--data", type=Path, help="folder with ir/ and vi/ to fuse instead of the simulated scene")
    add("--detector", default="", help="ONNX file of a YOLO instead of the one in ~/.cache")
    add("--output", "--out", type=Path, default=Path("demo_output"), help="folder of the results")
    add("--pairs", type=int, default=0, help=f"pairs to send (default: {PAIRS} or a whole tour)")
    add("--rate", type=float, default=0.0, help="pairs per second (default: what can be followed)")
    add("--width", type=int, default=0, help="of the images (default: what can be followed)")
    add("--height", type=int, default=0)
    return parser.parse_args(args)


def _check(options: argparse.Namespace) -> Parameters:
    """The node's parameters; raises an error that names the choices for what cannot be used."""
    if min(options.pairs, options.rate, options.width, options.height) < 0:
        raise DemoError("--pairs, --rate, --width and --height are more than 0")
    if bool(options.width) != bool(options.height):
        raise DemoError("give both --width and --height, or none")
    if options.detector and not Path(options.detector).is_file():
        raise DemoError(f"no ONNX file {options.detector}; `make detector` puts one in ~/.cache")
    if options.data:
        PairFolder(options.data)
    # One's own model by its full path: the node may run elsewhere.
    if options.method.endswith(".onnx"):
        options.method = str(model_path(options.method).resolve())
    return Parameters(method=options.method, detector=options.detector)


# --- What two cores can follow --------------------------------------------------------------------


def _plan(options: argparse.Namespace, parameters: Parameters) -> Plan:
    """Measure the networks, and choose size and rate so that they keep up."""
    if options.width:
        sizes = ((options.width, options.height),)
    elif options.data:
        sizes = (_largest(PairFolder(options.data)),)
    else:
        sizes = SIZES
    network = load_network(parameters, None, lambda text: None)
    names, found_s = f"{network.method} takes", 0.0
    if parameters.detector or default_detector_path().is_file():
        detector = load_detector(parameters, None, lambda text: None)
        found_s = _seconds(lambda: detector.warmup((640, 480)))
        names = f"{network.method} and the detector take"
    enough = options.rate or (options.pairs or PAIRS) / LONGEST_S
    for size in sizes:
        spent = found_s + _seconds(lambda: network.fuser.warmup(size))
        if spent * enough <= SHARE:
            break
    # No slower than that, on a machine busy with other work either: it displaces frames then.
    rate = options.rate or min(max(SHARE / spent, enough), MOST_PER_S)
    tour = 0 if options.data else math.ceil(rate * TOUR_STOP_S * len(CONDITIONS))
    plan = Plan(
        None if options.data and not options.width else size,
        rate,
        options.pairs or max(PAIRS, tour),
    )
    print(
        f"{names} {1e3 * spent:.0f} ms at {size[0]}x{size[1]} here: "
        f"{plan.pairs} pairs at {rate:.1f} per second, {plan.duration_s:.0f} s"
        + (", too many to follow" if spent * rate > 1 else ""),
        flush=True,
    )
    return plan


def _largest(pairs: PairFolder) -> tuple[int, int]:
    """Width and height of the largest of some of the images."""
    some = range(0, len(pairs), math.ceil(len(pairs) / 16))
    height, width = max((pairs.visible(i).shape[:2] for i in some), key=math.prod)
    return width, height


def _seconds(work: Callable[[], object]) -> float:
    """Duration of `work` once it is warm, in s."""
    work()
    durations = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)


# --- Processes ------------------------------------------------------------------------------------


def _camera(name: str, options: argparse.Namespace, plan: Plan, logs: Path, start_ns: int) -> Child:
    values = {
        "camera": name,
        "rate": plan.rate,
        "frames": plan.pairs,
        "start_time": str(start_ns),
        "wait_for_subscribers": 2,  # the node and the recorder
    }
    if options.data:
        values |= {"source": "files", "path": str(options.data.resolve())}
    if plan.size and (options.data or name == "rgb"):
        values |= {"width": plan.size[0], "height": plan.size[1]}
    arguments = ["-r", f"__ns:=/{name}", *ros_arguments(values)]
    return Child(f"{name}_camera", "fusion_ros.cameras.camera_node", logs, *arguments)


# --- What came of it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Still:
    """One side-by-side image, and the condition of the simulated scene it shows."""

    image: np.ndarray
    condition: str


class Recorder(Node):
    """Listens to the cameras and the node; keeps stills and writes the video."""

    def __init__(self, output: Path, plan: Plan, scene: str | None) -> None:
        super().__init__("demo")
        self.start_ns = 0
        self.report: Report | None = None
        self.codec = ""
        self._output, self._plan, self._scene = output, plan, scene
        self._gain = GainControl(**plan.gain())
        self._thermal: OrderedDict[int, np.ndarray] = OrderedDict()
        self._rgb: OrderedDict[int, np.ndarray] = OrderedDict()
        self._stills: list[Still] = []
        self._video: cv2.VideoWriter | None = None
        self._panel: tuple[int, int] | None = None
        self._thermal_title = "thermal"
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        for topic, callback in (
            ("thermal/image_raw", self._on_thermal),
            ("rgb/image_raw", self._on_rgb),
            ("fused/image_annotated", self._on_annotated),
        ):
            self.create_subscription(Image, topic, callback, 10)
        # Listening to all that the node offers, so that it does all of its work.
        self.create_subscription(Image, "fused/image", lambda msg: None, 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        try:
            from vision_msgs.msg import Detection2DArray

            self.create_subscription(Detection2DArray, "detections", lambda msg: None, 10)
        except Exception:  # not installed, or built for another rclpy: the node says so
            pass

    def spin(self) -> None:
        """Take in what comes within a tenth of a second."""
        self._executor.spin_once(timeout_sec=0.1)

    def settled(self, since_ns: int) -> bool:
        """Whether the node has reported, by the stamp of its report, that nothing is left to do."""
        left = ("in_progress", "thermal_waiting", "rgb_waiting")
        report = self.report
        return report.stamp_ns > since_ns and not any(report.count(name) for name in left)

    def finish(self) -> Summary:
        """Write stills and `summary.json`, close the video."""
        if self._video is not None:
            self._video.release()
        for number, still in enumerate(self._stills, 1):
            name = f"still_{number}{still.condition and '_'}{still.condition}.png"
            cv2.imwrite(str(self._output / name), still.image)
        summary = self._summary()
        text = json.dumps(asdict(summary), indent=2)
        (self._output / "summary.json").write_text(text + "\n")
        return summary

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        self.report = Report.read(msg) or self.report

    def _on_thermal(self, msg: Image) -> None:
        thermal = images.thermal_array(msg)
        bits = 8 * thermal.itemsize
        self._thermal_title = f"thermal, {msg.width}x{msg.height}, {bits} bit"
        _keep(self._thermal, msg, self._gain.apply(thermal))

    def _on_rgb(self, msg: Image) -> None:
        _keep(self._rgb, msg, images.visible_bgr(msg))

    def _on_annotated(self, msg: Image) -> None:
        stamp_ns = _stamp_ns(msg)
        rgb = self._rgb.get(stamp_ns)
        if rgb is None or not self._thermal:
            return
        thermal = self._thermal[min(self._thermal, key=lambda other: abs(other - stamp_ns))]
        since_s = 1e-9 * (stamp_ns - self.start_ns)
        condition = weather(self._scene, max(since_s, 0)).first if self._scene else ""
        image = self._side_by_side(thermal, rgb, images.visible_bgr(msg), condition)
        self._write(image)
        if self._is_due(since_s, condition):
            self._stills.append(Still(image, condition))

    def _is_due(self, since_s: float, condition: str) -> bool:
        """Whether to keep a still: one of each condition, or some evenly over the time."""
        if self._scene:
            # Late, so that gain control has settled, but before the next one fades in.
            new = condition not in (still.condition for still in self._stills)
            return new and 0.4 * TOUR_STOP_S < since_s % TOUR_STOP_S < TOUR_STOP_S - TOUR_FADE_S
        due = (len(self._stills) + 0.5) * self._plan.duration_s / STILLS
        return since_s >= due and len(self._stills) < STILLS

    def _side_by_side(
        self, thermal: np.ndarray, rgb: np.ndarray, fused: np.ndarray, condition: str
    ) -> np.ndarray:
        height, width = rgb.shape[:2]
        if self._panel is None:
            # One size for the whole video, large enough to read; even, as codecs want it.
            scale = max(1.0, LEAST_PANEL / width)
            self._panel = (round(width * scale / 2) * 2, round(height * scale / 2) * 2)
        values = self.report.values if self.report else {}
        title = f"fused by {Path(values.get('method', '')).stem}"
        if values.get("detector", "none") != "none":
            title += ", with boxes"
        return np.hstack(
            [
                _panel(thermal, self._panel, self._thermal_title),
                _panel(rgb, self._panel, f"RGB, {width}x{height}{condition and ', '}{condition}"),
                _panel(fused, self._panel, title),
            ]
        )

    def _write(self, image: np.ndarray) -> None:
        if self._video is None:
            self._video, self.codec = _open_video(self._output, image, self._plan.rate)
        self._video.write(image)

    def _summary(self) -> Summary:
        report = self.report
        values, count = report.values, report.count
        width, height = map(int, values["size"].split("x"))
        streams = {
            name: {key: count(f"{name}_{key}") for key in STREAM} for name in ("thermal", "rgb")
        }
        rgb = streams["rgb"]
        return Summary(
            method=values["method"],
            engine=values["engine"],
            width=width,
            height=height,
            frames_thermal=streams["thermal"]["received"],
            frames_rgb=rgb["received"],
            paired=rgb["paired"],
            too_far=rgb["too_far"],
            missing=rgb["missing"],
            stale=rgb["stale"],
            displaced=count("displaced"),
            rejected=count("rejected"),
            fused=count("fused"),
            fps=float(values["mean_fps"]),
            latency_ms={p: float(values[f"latency_{p}_ms"]) for p in ("p50", "p95", "p99")},
            stage_ms=report.stage_ms,
            detector=values["detector"],
            detections=count("detections"),
            streams=streams,
        )


@dataclass(frozen=True)
class Summary:
    """What `summary.json` says; counts without a stream are those of RGB frames.

    latency_ms: from the header stamp until all of a frame is published. fps: of fused frames,
    from the first to the last. detector: what runs it, or 'none'. streams: what became of each
    camera's frames.
    """

    method: str
    engine: str
    width: int
    height: int
    frames_thermal: int
    frames_rgb: int
    paired: int
    too_far: int
    missing: int
    stale: int
    displaced: int
    rejected: int
    fused: int
    fps: float
    latency_ms: dict[str, float]
    stage_ms: dict[str, float]
    detector: str
    detections: int
    streams: dict[str, dict[str, int]]

    def __str__(self) -> str:
        """A table of it."""
        latency = " / ".join(f"{ms:.0f}" for ms in self.latency_ms.values())
        stages = ", ".join(f"{name} {ms:.1f}" for name, ms in self.stage_ms.items())
        dropped = self.too_far + self.missing + self.stale + self.displaced + self.rejected
        rows = {
            "method": self.method,
            "runs on": self.engine,
            "resolution": f"{self.width}x{self.height}",
            "frames in": f"{self.frames_thermal} thermal, {self.frames_rgb} RGB",
            "paired": f"{self.paired} ({self.paired / max(self.frames_rgb, 1):.1%} of RGB)",
            "fused": f"{self.fused}",
            "dropped": f"{dropped}: {self.too_far} too far, {self.missing} missing, "
            f"{self.stale} stale, {self.displaced} displaced, {self.rejected} rejected",
            "frames per second": f"{self.fps:.2f}",
            "latency, ms": f"{latency} (p50 / p95 / p99, stamp to publish)",
            "stages, ms": stages,
            "detections": "none looked for: `make detector` gets a detector"
            if self.detector == "none"
            else f"{self.detections}",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _keep(frames: OrderedDict[int, np.ndarray], msg: Image, image: np.ndarray) -> None:
    frames[_stamp_ns(msg)] = image
    if len(frames) > KEPT_FRAMES:
        frames.popitem(last=False)


def _stamp_ns(msg: Image) -> int:
    return Time.from_msg(msg.header.stamp).nanoseconds


def _panel(image: np.ndarray, size: tuple[int, int], title: str) -> np.ndarray:
    """The image fitted into `size` (width, height), under a bar with its title."""
    width, height = size
    panel = np.full((height + TITLE, width, 3), 24, np.uint8)
    scale = min(width / image.shape[1], height / image.shape[0])
    fitted = cv2.resize(
        image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR),
        (min(width, round(image.shape[1] * scale)), min(height, round(image.shape[0] * scale))),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
    )
    top = TITLE + (height - fitted.shape[0]) // 2
    left = (width - fitted.shape[1]) // 2
    panel[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    white, font = (235, 235, 235), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(panel, title, (8, TITLE - 10), font, 0.55, white, 1, cv2.LINE_AA)
    return panel


def _open_video(output: Path, image: np.ndarray, rate: float) -> tuple[cv2.VideoWriter, str]:
    # That OpenCV comes without an H.264 encoder is ordinary: nothing for the user to read.
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    size = (image.shape[1], image.shape[0])
    for codec, name in (("avc1", "H.264"), ("mp4v", "MPEG-4")):
        path = str(output / "fusion.mp4")
        video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*codec), rate, size)
        if video.isOpened():
            break
    cv2.utils.logging.setLogLevel(level)
    return video, name


def _run(options: argparse.Namespace, parameters: Parameters) -> Summary:
    output, logs = options.output, options.output / "log"
    shutil.rmtree(logs, ignore_errors=True)
    for old in [*output.glob("still_*.png"), *output.glob("fusion.mp4"), output / "summary.json"]:
        old.unlink(missing_ok=True)
    logs.mkdir(parents=True)
    plan = _plan(options, parameters)
    # Interrupts are exceptions here, so that the other processes are ended too.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    children: list[Child] = []
    try:
        values = {f"gain_{name}": value for name, value in plan.gain().items()}
        values["method"] = options.method
        values["camera_timeout"] = max(Parameters.camera_timeout, 3 / plan.rate)
        if options.detector:
            values["detector"] = str(Path(options.detector).resolve())
        begun = time.monotonic()
        fusion = Child("fuse_node", "fusion_ros.node.main", logs, *ros_arguments(values))
        children.append(fusion)
        recorder = Recorder(output, plan, scene=None if options.data else "tour")
        while not recorder.report:
            fusion.check()
            if time.monotonic() > begun + LONGEST_START_S:
                raise fusion.error(f"has reported nothing for {LONGEST_START_S:.0f} s")
            recorder.spin()
        # Time for the cameras to start and to be found, longer where the node took longer too.
        lead_s = max(LEAD_S, 1.5 * (time.monotonic() - begun))
        recorder.start_ns = time.time_ns() + round(lead_s * 1e9)
        cameras = [
            _camera(name, options, plan, logs, recorder.start_ns) for name in ("thermal", "rgb")
        ]
        children += cameras
        latest = time.monotonic() + lead_s + plan.duration_s + LATEST_S
        while running := [camera for camera in cameras if not camera.ended()]:
            fusion.check()
            for camera in cameras:
                camera.check(may_end=True)
            if time.monotonic() > latest:
                raise running[0].error(f"should have ended {LATEST_S:.0f} s ago")
            recorder.spin()
        for camera in cameras:
            camera.check(may_end=True)
        ended, ended_ns = time.monotonic(), time.time_ns() + SETTLE_NS
        while not recorder.settled(ended_ns) and time.monotonic() < ended + LONGEST_END_S:
            fusion.check()
            recorder.spin()
        if not recorder.codec:
            raise DemoError(f"nothing was fused; the logs are in {logs}/")
        print(f"video: {output / 'fusion.mp4'} ({recorder.codec})\n")
        return recorder.finish()
    finally:
        for child in children:
            child.stop()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
