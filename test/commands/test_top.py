# SPDX-License-Identifier: AGPL-3.0-only
"""What `top` shows of a node's report, and of a node that says nothing."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest

pytest.importorskip("rich")

from rich.console import Console

from fusion_ros.commands.top import picture, view
from fusion_ros.node.diagnostics import Level, Report, Status


def shown(*arguments):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view("/fuse_node", *arguments))
    return console.export_text()


REPORT = Report(
    0,
    {
        "method": "cfi",
        "engine": "onnxruntime on the CPU",
        "fps": "12.4",
        "latency_p50_ms": "41",
        "latency_p95_ms": "60",
        "latency_p99_ms": "75",
        "stage_infer_ms": "31.5",
        "thermal_received": "90",
        "rgb_received": "300",
        "rgb_paired": "88",
        "fused": "88",
        "size": "640x480",
        "processing_size": "320",
    },
    Level.WARN,
    "no thermal image for 2.0 s",
    {"thermal camera": Status("a", Level.WARN, "no thermal image for 2.0 s: start the camera")},
)


def test_state_rates_counters_and_faults_with_their_advice_are_shown():
    text = shown(REPORT, 0.5, [3.0, 12.4])
    for part in (
        *("WARNING", "cfi on onnxruntime", "12.4 frames a second", "fused at 320 px", "p95 60"),
        *("infer 31.5", "300", "fused 88", "thermal camera: no thermal image", "start the camera"),
    ):
        assert part in text, part


def test_a_node_that_is_silent_or_was_never_heard_is_said():
    assert "is it running" in shown(None, None)
    assert "no report for 9 s" in shown(REPORT, 9.0)


def test_the_picture_keeps_its_colours_and_its_shape():
    image = np.zeros((60, 80, 3), np.uint8)
    image[:30] = (0, 0, 255)
    text = picture(image, 20)
    lines = text.plain.splitlines()
    assert (len(lines), len(lines[0])) == (8, 20)
    assert text.spans[0].style.color.triplet == (255, 0, 0)
    assert text.spans[-1].style.bgcolor.triplet == (0, 0, 0)


def test_the_report_of_a_running_node_is_shown():
    rclpy = pytest.importorskip("rclpy")
    pytest.importorskip("onnxruntime")
    from fusion_ros.harness.rig import Rig
    from fusion_ros.node.fuse_node import FuseNode

    rclpy.init()
    try:
        with Rig("topped") as rig:
            rig.run(FuseNode, backend="null", detect=False)
            rig.send(time.time_ns(), np.zeros((64, 80), np.uint8), np.zeros((64, 80, 3), np.uint8))
            assert rig.settle().count("fused") == 1
            report = rig.report
    finally:
        rclpy.try_shutdown()
    text = shown(report, 0.1)
    assert "null" in text
    assert "fused 1" in text
