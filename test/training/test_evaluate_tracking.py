# SPDX-License-Identifier: AGPL-3.0-only
"""The command that measures tracking over simulated sequences, in short form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

for module in ("torch", "omegaconf", "onnxruntime", "onnx"):
    pytest.importorskip(module, reason=f"needs {module}: pip install '.[train,detector]'")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from support import write_detector_onnx  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when it runs as a script
import evaluate_tracking  # noqa: E402
from evaluate_tracking import simulate  # noqa: E402

from fusion_ros.size import Size  # noqa: E402


def test_each_row_is_measured_on_each_scene(tmp_path, capsys):
    detector = write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (8, 8, 40, 40))])
    arguments = [
        f"detector={detector}", "methods=none", "pictures=visible,mean .8", "scenes=day",
        "images=2", "size=96x72", f"output={tmp_path}", "threads=1",
    ]  # fmt: skip
    assert evaluate_tracking.main(arguments) == 0
    rows = json.loads((tmp_path / "tracking.json").read_text())["simulated"]
    assert list(rows) == ["visible", "mean .8"]
    assert rows["visible"]["day"]["wrong an image"] <= 1
    assert "recall, day" in (tmp_path / "tracking.md").read_text()
    assert evaluate_tracking.main([*arguments, "images=1"]) == 2
    assert evaluate_tracking.main([*arguments, "detector=nowhere.onnx"]) == 2
    assert "no detector at nowhere.onnx" in capsys.readouterr().err


def test_objects_of_a_video_are_what_either_camera_shows(tmp_path, capsys):
    for folder in ("ir", "vi"):
        (tmp_path / "m3svd" / "a" / folder).mkdir(parents=True)
        for number in range(4):
            image = np.full((72, 96, 3 if folder == "vi" else 1), 90, np.uint8)
            cv2.imwrite(str(tmp_path / "m3svd" / "a" / folder / f"{number}.png"), image)
    detector = write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (8, 8, 40, 40))])
    arguments = [
        f"detector={detector}", "methods=none", "pictures=visible,infrared,mean .8", "scenes=",
        "videos=m3svd", "least=2", f"data={tmp_path}", f"output={tmp_path / 'o'}", "threads=1",
    ]  # fmt: skip
    assert evaluate_tracking.main(arguments) == 0
    rows = json.loads((tmp_path / "o" / "tracking.json").read_text())["videos"]
    assert {row["m3svd/a"]["recall"] for row in rows.values()} == {1.0}
    # The tracker numbers an object from its second image on, so that three of four count.
    assert rows["visible"]["m3svd/a"]["shown"] == 3
    assert evaluate_tracking.main([*arguments, "pictures=visible"]) == 2
    assert "needs the pictures visible, infrared" in capsys.readouterr().err
    assert evaluate_tracking.main([*arguments, "videos="]) == 2
    assert "give scenes= or videos=" in capsys.readouterr().err


def test_objects_of_a_sequence_keep_their_names_and_lie_in_the_picture(tmp_path):
    sequence = simulate(tmp_path / "day", "day", 2, 10.0, Size(160, 120), 0)
    first, second = (set(seen.names) for seen in sequence.truth)
    assert len(first & second) >= 1
    for pair, seen in zip(sequence.pairs, sequence.truth):
        assert pair.ir.shape == (120, 160)
        assert all(0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 120 for x1, y1, x2, y2 in seen.corners)
