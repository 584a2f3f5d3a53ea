# SPDX-License-Identifier: AGPL-3.0-only
"""The recorder: side-by-side stills, a video and the summary of a demonstration."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image

from fusion_ros.cameras.street.scene import TOUR_FADE_S, TOUR_STOP_S, weather
from fusion_ros.commands.demo.plan import Plan
from fusion_ros.frame import images
from fusion_ros.frame.thermal import GainControl
from fusion_ros.harness.observer import stamp_ns
from fusion_ros.node.diagnostics import Report
from fusion_ros.size import Size

__all__ = ["Recorder", "Stills", "Summary"]

_STILLS = 5
_STREAM = ("received", "paired", "too_far", "missing", "stale", "waiting")
_KEPT_FRAMES = 60
_VIDEO_HZ = 10.0
"""Most frames per second of the video: composing and encoding it takes the node's cores."""
_LEAST_PANEL, _TITLE = 480, 30


class Stills:
    """Images to keep of a demonstration: one of each condition, or some spread over its time.

    duration_s: of the demonstration, where its images have no condition.
    """

    def __init__(self, duration_s: float) -> None:
        self._period_s = duration_s / _STILLS
        self._kept: dict[str, tuple[float, np.ndarray]] = {}

    def offer(self, image: np.ndarray, since_s: float, condition: str = "") -> None:
        """Keep an image, `since_s` after the start, if none kept so far serves better."""
        if condition:
            # Late, when gain control has settled, but before the next condition fades in.
            at = since_s % TOUR_STOP_S
            off = max(0.4 * TOUR_STOP_S - at, at - (TOUR_STOP_S - TOUR_FADE_S), 0.0)
        else:
            part = min(int(since_s / self._period_s), _STILLS - 1)
            condition, off = str(part), max((part + 0.5) * self._period_s - since_s, 0.0)
        if condition not in self._kept or off < self._kept[condition][0]:
            self._kept[condition] = (off, image)

    def write(self, folder: Path) -> None:
        """Write `still_<number>_<condition>.png`, in the order in which they were seen."""
        for number, (condition, (_, image)) in enumerate(self._kept.items(), 1):
            name = f"still_{number}" + ("" if condition.isdigit() else f"_{condition}")
            cv2.imwrite(str(folder / f"{name}.png"), image)


class Recorder:
    """Listens to the cameras and the node; keeps stills and writes the video.

    node: the rclpy node whose executor takes the messages; scene: name of the simulated scene,
    None for files; start_ns: the cameras' start time, to be set before their first image; report:
    the node's latest report, to be set for titles; codec: of the video, empty while there is none.
    """

    def __init__(self, node: Node, output: Path, plan: Plan, scene: str | None) -> None:
        self.start_ns = 0
        self.report: Report | None = None
        self.codec = ""
        self._output, self._plan, self._scene = output, plan, scene
        self._gain = GainControl(**plan.gain())
        self._thermal: OrderedDict[int, np.ndarray] = OrderedDict()
        self._rgb: OrderedDict[int, Image] = OrderedDict()
        self._fps = min(plan.rate, _VIDEO_HZ)
        self._written = 0
        self._stills = Stills(plan.duration_s)
        self._video: cv2.VideoWriter | None = None
        self._panel: Size | None = None
        self._thermal_title = "thermal"
        for topic, callback in (
            ("thermal/image_raw", self._on_thermal),
            ("rgb/image_raw", self._on_rgb),
            ("fused/image_annotated", self._on_annotated),
        ):
            node.create_subscription(Image, topic, callback, 10)

    def finish(self, report: Report) -> Summary:
        """Write the stills and `summary.json` by the node's last report; close the video."""
        if self._video is not None:
            self._video.release()
        self._stills.write(self._output)
        summary = Summary.of(report)
        text = json.dumps(asdict(summary), indent=2)
        (self._output / "summary.json").write_text(text + "\n")
        return summary

    def _on_thermal(self, msg: Image) -> None:
        thermal = images.thermal_array(msg)
        bits = 8 * thermal.itemsize
        self._thermal_title = f"thermal, {msg.width}x{msg.height}, {bits} bit"
        _keep(self._thermal, msg, self._gain.apply(thermal))

    def _on_rgb(self, msg: Image) -> None:
        _keep(self._rgb, msg, msg)

    def _on_annotated(self, msg: Image) -> None:
        stamp = stamp_ns(msg)
        message = self._rgb.get(stamp)
        since_s = 1e-9 * (stamp - self.start_ns)
        due = since_s >= self._written / self._fps - 0.5 / self._plan.rate
        if message is None or not self._thermal or not due:
            return
        rgb = images.visible_bgr(message)
        thermal = self._thermal[min(self._thermal, key=lambda other: abs(other - stamp))]
        condition = weather(self._scene, max(since_s, 0)).first if self._scene else ""
        image = self._side_by_side(thermal, rgb, images.visible_bgr(msg), condition)
        self._write(image, since_s)
        self._stills.offer(image, max(since_s, 0.0), condition)

    def _side_by_side(
        self, thermal: np.ndarray, rgb: np.ndarray, fused: np.ndarray, condition: str
    ) -> np.ndarray:
        height, width = rgb.shape[:2]
        if self._panel is None:
            # One size for the whole video, large enough to read; codecs need even numbers.
            scale = max(1.0, _LEAST_PANEL / width)
            self._panel = Size(round(width * scale / 2) * 2, round(height * scale / 2) * 2)
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

    def _write(self, image: np.ndarray, since_s: float) -> None:
        """Append an image as often as its time asks for: frames may be missing before it."""
        if self._video is None:
            self._video, self.codec = _open_video(self._output, image, self._fps)
            self._written = round(since_s * self._fps)
        while self._written <= round(since_s * self._fps):
            self._video.write(image)
            self._written += 1


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`; counts without a stream are those of RGB frames.

    latency_ms: from the header stamp until all of a frame is published. fps: of fused frames,
    from the first to the last. processing_size: the latest, px, 0 for full size. detector: what
    runs it, or 'none'. streams: what became of each camera's frames.
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
    processing_size: int
    streams: dict[str, dict[str, int]]

    @classmethod
    def of(cls, report: Report) -> Summary:
        """Read it from the node's report."""
        values, count = report.values, report.count
        width, height = map(int, values["size"].split("x"))
        streams = {
            name: {key: count(f"{name}_{key}") for key in _STREAM} for name in ("thermal", "rgb")
        }
        rgb = streams["rgb"]
        return cls(
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
            processing_size=count("processing_size"),
            streams=streams,
        )

    def __str__(self) -> str:
        """Return it as a table."""
        latency = " / ".join(f"{ms:.0f}" for ms in self.latency_ms.values())
        stages = ", ".join(f"{name} {ms:.1f}" for name, ms in self.stage_ms.items())
        dropped = self.too_far + self.missing + self.stale + self.displaced + self.rejected
        rows = {
            "method": self.method,
            "runs on": self.engine,
            "resolution": f"{self.width}x{self.height}, fused at "
            + (f"{self.processing_size} px at last" if self.processing_size else "full size"),
            "frames in": f"{self.frames_thermal} thermal, {self.frames_rgb} RGB",
            "paired": f"{self.paired} ({self.paired / max(self.frames_rgb, 1):.1%} of RGB)",
            "fused": f"{self.fused}",
            "dropped": f"{dropped}: {self.too_far} too far, {self.missing} missing, "
            f"{self.stale} stale, {self.displaced} displaced, {self.rejected} rejected",
            "frames per second": f"{self.fps:.2f}",
            "latency, ms": f"{latency} (p50 / p95 / p99, stamp to publish)",
            "stages, ms": stages,
            "detections": "no detector: `make detector` gets one"
            if self.detector == "none"
            else f"{self.detections}",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _keep(frames: OrderedDict[int, Any], msg: Image, image: Any) -> None:
    frames[stamp_ns(msg)] = image
    if len(frames) > _KEPT_FRAMES:
        frames.popitem(last=False)


def _panel(image: np.ndarray, size: Size, title: str) -> np.ndarray:
    """Fit the image into `size`, under a bar with its title."""
    width, height = size
    panel = np.full((height + _TITLE, width, 3), 24, np.uint8)
    scale = min(width / image.shape[1], height / image.shape[0])
    fitted = cv2.resize(
        image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR),
        (min(width, round(image.shape[1] * scale)), min(height, round(image.shape[0] * scale))),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
    )
    top = _TITLE + (height - fitted.shape[0]) // 2
    left = (width - fitted.shape[1]) // 2
    panel[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    white, font = (235, 235, 235), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(panel, title, (8, _TITLE - 10), font, 0.55, white, 1, cv2.LINE_AA)
    return panel


def _open_video(output: Path, image: np.ndarray, rate: float) -> tuple[cv2.VideoWriter, str]:
    # OpenCV often comes without an H.264 encoder and would report it as an error.
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
    set_log_level = getattr(cv2.utils, "logging", cv2).setLogLevel  # OpenCV 4.5 has it in cv2
    level = set_log_level(0)
    size = (image.shape[1], image.shape[0])
    path, name = str(output / "fusion.mp4"), "H.264"
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"avc1"), rate, size)
    if not video.isOpened():
        video, name = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), rate, size), "MPEG-4"
    set_log_level(level)
    return video, name
