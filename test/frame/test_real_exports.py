# SPDX-License-Identifier: AGPL-3.0-only
"""Models as ultralytics exports them, with random weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusion_ros.frame.detector import Detector
from fusion_ros.inference import EngineError, load_engine

SIDE = 64


@pytest.fixture
def export(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(os.environ, "YOLO_AUTOINSTALL", "0")
    ultralytics = pytest.importorskip("ultralytics")
    monkeypatch.chdir(tmp_path)  # where ultralytics exports to

    def write(name: str, **options) -> Path:
        torch.manual_seed(0)
        model = ultralytics.YOLO(f"{name}.yaml")
        with torch.no_grad():
            for parameter in model.model.parameters():
                if parameter.ndim == 4:
                    parameter *= 1.5  # so that scores differ from one place to the next
        return Path(model.export(format="onnx", imgsz=SIDE, simplify=False, **options)).absolute()

    return write


@pytest.mark.slow
def test_a_real_export_without_boxes_is_refused_by_its_task(export):
    path = export("yolo11n-cls")
    with pytest.raises(EngineError, match="its task is 'classify', which gives no boxes"):
        Detector(load_engine(path, "onnxruntime_cpu"))
