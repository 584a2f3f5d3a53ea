# SPDX-License-Identifier: AGPL-3.0-only
"""The demonstration: what it refuses, what it leaves, and that its figures add up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy  # noqa: F401, without which the demo says nothing
from support import write_detector_onnx, write_fusion_onnx

from fusion_ros.commands.demo.recorder import Stills
from fusion_ros.inference.models import list_methods

KEYS = [
    "method",
    "engine",
    "width",
    "height",
    "frames_thermal",
    "frames_rgb",
    "paired",
    "too_far",
    "missing",
    "stale",
    "displaced",
    "rejected",
    "fused",
    "fps",
    "latency_ms",
    "stage_ms",
    "detector",
    "detections",
    "processing_size",
    "streams",
]


def demo(*arguments: str | Path, seconds: float = 180) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fusion_ros", "demo", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def test_an_unknown_method_is_refused_with_the_choices_before_anything_starts(tmp_path):
    run = demo("--method", "nonsense", "--output", tmp_path / "out")
    assert run.returncode != 0
    assert all(method in run.stderr for method in ["nonsense", *list_methods()])
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    run = demo("--output", tmp_path / "file" / "out")
    assert run.returncode == 2
    assert f"cannot write to {tmp_path}/file/out" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("option", ["--data", "--detector"])
def test_files_that_are_not_there_are_named(option, tmp_path):
    run = demo(option, tmp_path / "nowhere", "--output", tmp_path / "out")
    assert run.returncode != 0
    assert "nowhere" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("detector", "says"), [("none", "no detector: `make detector`"), ("onnxruntime", "0")]
)
def test_a_missing_detector_is_reported_and_not_as_zero_objects(detector, says):
    from fusion_ros.commands.demo.recorder import Summary

    values = dict.fromkeys(KEYS, 0) | {"latency_ms": {}, "stage_ms": {}, "streams": {}}
    summary = Summary(**values | {"detector": detector})
    assert str(summary).splitlines()[-1].split(maxsplit=1)[1].startswith(says)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "log", "says"),
    [
        ("start=0.0", "fuse_node.log", "has reported nothing"),
        ("late=-60.0", "thermal_camera.log", "it should have sent its last frame"),
    ],
)
def test_a_process_that_takes_too_long_is_named_with_its_log(limit, log, says, tmp_path):
    method = write_fusion_onnx(tmp_path / "average.onnx")
    code = (
        "import functools, sys\n"
        "from fusion_ros.commands import main\n"
        "from fusion_ros.commands.demo import session\n"
        f"patience = session.Patience({limit})\n"
        "session.demonstrate = functools.partial(session.demonstrate, patience=patience)\n"
        "sys.exit(main.main(['demo', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, "--method", method, "--output", tmp_path / "out"]
    command += ["--pairs", "10", "--rate", "10", "--width", "160", "--height", "120", "--live"]
    run = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 1
    assert log in run.stderr and says in run.stderr
    assert "Traceback" not in run.stderr


def kept(stills: Stills, folder: Path) -> dict[str, int]:
    """Grey level of each still by name."""
    stills.write(folder)
    return {file.stem: int(cv2.imread(str(file)).mean()) for file in folder.glob("still_*.png")}


def test_a_still_of_each_condition_is_kept_from_its_best_moment(tmp_path):
    stills = Stills(12.0)
    for condition, times in (("day", (0.1, 1.8, 2.5)), ("dusk", (4.2, 5.1)), ("night", (11.9,))):
        for time_s in times:
            stills.offer(np.full((8, 8, 3), 10 * time_s, np.uint8), time_s, condition)
    # By day one when gain control has settled; of the others what a busy machine has shown.
    assert kept(stills, tmp_path) == {"still_1_day": 18, "still_2_dusk": 51, "still_3_night": 119}


def test_stills_of_files_are_spread_over_the_time(tmp_path):
    stills = Stills(10.0)
    for time_s in np.arange(0, 10.3, 0.25):
        stills.offer(np.full((8, 8, 3), 10 * time_s, np.uint8), float(time_s))
    assert sorted(kept(stills, tmp_path).values()) == [10, 30, 50, 70, 90]


@pytest.mark.slow
def test_it_leaves_stills_a_video_and_a_summary_that_adds_up(tmp_path):
    method = write_fusion_onnx(tmp_path / "average.onnx")
    detector = write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (8, 8, 40, 40))])
    output = tmp_path / "out"
    small = ["--pairs", "50", "--rate", "10", "--width", "160", "--height", "120", "--live"]
    run = demo("--method", method, "--detector", detector, "--output", output, *small)
    assert run.returncode == 0, run.stderr + run.stdout
    report = json.loads((output / "report.json").read_text())
    assert report["pairs"]["fused"] > 0
    assert "<h2" in (output / "index.html").read_text()
    assert not (output / ".run").exists()
    summary = json.loads((output / "summary.json").read_text())
    assert list(summary) == KEYS
    assert list(summary["latency_ms"]) == ["p50", "p95", "p99"]
    assert (summary["width"], summary["height"]) == (160, 120)
    # On a busy machine a camera may skip frames; every frame that was sent is accounted for.
    for name in ("thermal", "rgb"):
        log = (output / "log" / f"{name}_camera.log").read_text()
        sent = int(re.search(r"(\d+) frames sent", log)[1])
        stream = summary["streams"][name]
        assert stream["received"] == summary[f"frames_{name}"] == sent
        ends = ("paired", "too_far", "missing", "stale", "waiting")
        assert stream["received"] == sum(stream[end] for end in ends)
    assert summary["paired"] == sum(summary[end] for end in ("fused", "displaced", "rejected"))
    assert summary["fused"] > 0 and summary["detections"] > 0
    stills = sorted(output.glob("still_*.png"))
    # On a busy machine the first frame that is fused may show a later part of the tour.
    assert re.fullmatch("still_1_(day|dusk|night)", stills[0].stem)
    assert cv2.imread(str(stills[0])).shape == (390, 3 * 480, 3)
    video = cv2.VideoCapture(str(output / "fusion.mp4"))
    assert 0 < video.get(cv2.CAP_PROP_FRAME_COUNT) <= 50
    assert video.read()[0]
    for text in ("average", "frames in", "p50 / p95 / p99"):
        assert text in run.stdout
