# SPDX-License-Identifier: AGPL-3.0-only
"""`make detector`: weights of ultralytics become the ONNX file that the node looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def export(home: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the script as one whose home folder is `home`, and who has no network."""
    env = os.environ | {"HOME": str(home), "PYTHONPATH": str(ROOT), "YOLO_OFFLINE": "1"}
    env.pop("XDG_CACHE_HOME", None)
    command = [sys.executable, ROOT / "training" / "export_detector.py", *arguments]
    return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, check=False)


def test_the_exported_detector_lies_where_the_node_looks_and_names_its_classes(
    shared_data, tmp_path
):
    pytest.importorskip("ultralytics")
    onnxruntime = pytest.importorskip("onnxruntime")
    run = export(tmp_path, str(shared_data / "weights" / "yolov8n_coco.pt"))
    assert run.returncode == 0, run.stdout + run.stderr
    path = tmp_path / ".cache" / "fusion_ros" / "detector.onnx"
    assert list(path.parent.iterdir()) == [path]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 640, 640]
    assert session.get_outputs()[0].shape == [1, 84, 8400]
    assert "person" in session.get_modelmeta().custom_metadata_map["names"]


def test_missing_weights_are_named_and_leave_nothing(tmp_path):
    pytest.importorskip("cv2")
    run = export(tmp_path, "nowhere/yolo.pt")
    assert run.returncode == 1
    assert "no weights at nowhere/yolo.pt" in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / ".cache").exists()
