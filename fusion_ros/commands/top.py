# SPDX-License-Identifier: AGPL-3.0-only
"""The command `top`: a running node in a terminal: state, rates, counters, faults, picture."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusion_ros.commands import CommandError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType

    from fusion_ros.node.diagnostics import Report

__all__ = ["parser", "picture", "run", "view"]

_STREAM = ("received", "paired", "too_far", "missing", "stale", "waiting")
_COUNTERS = ("fused", "displaced", "rejected", "detections", "in_progress", "resets")
_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {0: "green", 1: "yellow", 2: "red", 3: "magenta"}
_WORDS = {0: "OK", 1: "WARNING", 2: "ERROR", 3: "STALE"}


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="fusion_ros top", description="Watch a fusion node in the terminal; Ctrl-C ends it."
    )
    add = made.add_argument
    add("--node", default="/fuse_node", help="full name of the node")
    add("--no-picture", action="store_true", help="without the fused image")
    add("--width", type=int, default=64, help="of the picture, characters")
    add("--seconds", type=float, default=0.0, help="end after so long; 0: never")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Watch until Ctrl-C; 1 if the node was never heard in the given time."""
    if not 8 <= arguments.width <= 400:
        raise CommandError("--width is 8 to 400 characters")
    import time

    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.executors import SingleThreadedExecutor
    from rich.console import Console
    from rich.live import Live
    from sensor_msgs.msg import Image

    from fusion_ros.frame import images
    from fusion_ros.harness.rig import ros_session
    from fusion_ros.node.diagnostics import Report

    name = arguments.node.strip("/")
    namespace = name.rpartition("/")[0]
    seen: dict[str, Any] = {"report": None, "picture": None, "at": 0.0}
    rates: deque[float] = deque(maxlen=60)

    def on_diagnostics(message: DiagnosticArray) -> None:
        report = Report.read(message, name)
        if report is not None:
            seen["report"], seen["at"] = report, time.monotonic()
            rates.append(float(report.values.get("fps", 0)))

    def on_image(message: Image) -> None:
        if time.monotonic() - seen.get("drawn", 0.0) > 0.5:
            seen["drawn"] = time.monotonic()
            seen["picture"] = picture(images.visible_bgr(message), arguments.width)

    with ros_session():
        node = rclpy.create_node("fusion_top", namespace=namespace or None)
        node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
        if not arguments.no_picture:
            node.create_subscription(Image, "fused/image", on_image, 1)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        end = time.monotonic() + arguments.seconds if arguments.seconds else float("inf")
        drawn = 0.0
        with Live(console=Console(), auto_refresh=False, screen=False) as live:
            while time.monotonic() < end:
                executor.spin_once(timeout_sec=0.1)
                if time.monotonic() - drawn > 0.5:
                    drawn = time.monotonic()
                    age_s = drawn - seen["at"] if seen["report"] else None
                    live.update(
                        view(arguments.node, seen["report"], age_s, rates, seen["picture"]),
                        refresh=True,
                    )
        node.destroy_node()
    return 0 if seen["report"] else 1


def view(
    node: str,
    report: Report | None,
    age_s: float | None,
    rates: Sequence[float] = (),
    shown: RenderableType | None = None,
) -> RenderableType:
    """What the terminal shows.

    report: the node's latest one and its age in s, None before the first; rates: latest frames a
    second, the newest last; shown: of `picture`.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    if report is None:
        text = f"nothing in /diagnostics from {node} yet: is it running, on this ROS_DOMAIN_ID?"
        return Panel(Text(text), title="fusion_ros top", border_style="yellow")
    old = age_s is not None and age_s > 3
    level = 3 if old else int(report.level)
    values = report.values
    head = Text(f"{_WORDS[level]}  ", style=f"bold {_COLOURS[level]}")
    head.append(f"no report for {age_s:.0f} s" if old else report.message, style="default")
    facts = Table.grid(padding=(0, 2))
    size, reduced = values.get("size", "unknown"), values.get("processing_size", "0")
    for key, text in (
        ("method", f"{values.get('method', '?')} on {values.get('engine', '?')}"),
        ("size", size + ("" if reduced in ("0", "") else f", fused at {reduced} px")),
        ("rate", f"{float(values.get('fps', 0)):.1f} frames a second  {_sparks(rates)}"),
        ("latency", _latency(values)),
        ("stages", ", ".join(f"{k} {v:.1f}" for k, v in report.stage_ms.items()) + " ms"),
        ("detector", values.get("detector", "none")),
    ):
        facts.add_row(Text(key, style="dim"), Text(text))
    streams = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("camera", *_STREAM):
        streams.add_column(
            column.replace("_", " "), justify="left" if column == "camera" else "right"
        )
    for camera in ("thermal", "rgb"):
        streams.add_row(camera, *(str(report.count(f"{camera}_{each}")) for each in _STREAM))
    counters = Text(
        "  ".join(f"{each.replace('_', ' ')} {report.count(each)}" for each in _COUNTERS)
    )
    parts: list[RenderableType] = [head, facts, streams, counters]
    for part, status in report.parts.items():
        if status.level:
            line = Text(f"{part}: ", style=f"bold {_COLOURS[int(status.level)]}")
            parts.append(line.append(status.message, style="default"))
    if shown is not None:
        parts.append(shown)
    return Panel(Group(*parts), title=f"fusion_ros top {node}", border_style=_COLOURS[level])


def _latency(values: dict[str, str]) -> str:
    if "latency_p50_ms" not in values:
        return "no frame yet"
    found = (f"{p} {float(values[f'latency_{p}_ms']):.0f}" for p in ("p50", "p95", "p99"))
    return ", ".join(found) + " ms from stamp to publishing"


def _sparks(rates: Sequence[float]) -> str:
    top = max(rates, default=0.0)
    if top <= 0:
        return ""
    return "".join(_BARS[min(int(rate / top * 7.999), 7)] for rate in rates)


def picture(image: np.ndarray, width: int) -> RenderableType:
    """An (H, W, 3) uint8 BGR image as half blocks, two pixels a character."""
    import cv2
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    height = max(2, round(image.shape[0] * width / image.shape[1] / 2) * 2)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)[..., ::-1]
    text = Text()
    for upper, lower in zip(small[::2], small[1::2]):
        for a, b in zip(upper.tolist(), lower.tolist()):
            text.append("▀", Style(color=Color.from_rgb(*a), bgcolor=Color.from_rgb(*b)))
        text.append("\n")
    return text
