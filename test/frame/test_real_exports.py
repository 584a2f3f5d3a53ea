# SPDX-License-Identifier: AGPL-3.0-only
"""Models as ultralytics exports them, with random weights: boxes are those ultralytics reads."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from fusion_ros.frame.detector import Detector
from fusion_ros.inference import EngineError, load_engine

SIDE = 64
CONFIDENCE = 0.35
RTDETR = """
nc: 80
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [[2, 3, 4], 1, RTDETRDecoder, [nc, 32, 30, 4, 4, 1]]
"""
"""A small network with the head of RT-DETR, whose own configurations take 20 s to export."""
IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8), (96, 72))


@pytest.fixture
def export(tmp_path, monkeypatch):
    """Export a model of ultralytics' configuration `name`, of random weights, as ONNX."""
    torch = pytest.importorskip("torch")
    monkeypatch.setitem(os.environ, "YOLO_AUTOINSTALL", "0")
    ultralytics = pytest.importorskip("ultralytics")
    monkeypatch.chdir(tmp_path)  # where ultralytics exports to

    @torch.no_grad()
    def enliven(network) -> None:
        """Give the outputs values that differ: fresh layers carry almost none to the end."""
        noise = torch.nn.functional.interpolate(torch.rand(4, 3, 12, 12), size=(SIDE, SIDE))
        network.train()
        network.model[-1].training = False
        for _ in range(4):
            network(noise)  # normalisation takes over means and deviations
        network.eval()
        head = network.model[-1]
        for branch in (*(getattr(head, "cv3", None) or ()), *getattr(head, "one2one_cv3", ())):
            branch[-1].bias.fill_(-1.0)
            branch[-1].weight.mul_(3.0)

    def write(name: str, **options) -> Path:
        torch.manual_seed(0)
        if name == "rtdetr":
            Path("rtdetr.yaml").write_text(RTDETR)
        model = (ultralytics.RTDETR if name == "rtdetr" else ultralytics.YOLO)(f"{name}.yaml")
        if hasattr(model.model.model[-1], "cv3"):
            for module in model.model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 0.5
            enliven(model.model)
        return Path(model.export(format="onnx", imgsz=SIDE, simplify=False, **options)).absolute()

    return write


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n-cls", "yolo26n-cls"])
def test_a_real_export_without_boxes_is_refused_by_its_task(export, name):
    path = export(name)
    with pytest.raises(EngineError, match="its task is 'classify', which gives no boxes"):
        Detector(load_engine(path, "onnxruntime_cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "layout"),
    [
        ("yolov8n", {}, "yolov8"),
        ("yolov5n", {"dynamic": True}, "yolov8"),
        ("yolov10n", {"nms": False}, "end2end"),
        ("yolo11n", {"half": True}, "yolov8"),
        ("yolo11n", {"batch": 2}, "yolov8"),
        ("yolo11n", {"nms": True, "conf": CONFIDENCE, "iou": 0.45}, "end2end"),
        ("yolo11n-seg", {"dynamic": True}, "yolov8"),
        ("yolo11n-pose", {}, "yolov8"),
        ("yolo11n-obb", {}, "obb"),
        ("yolo26n", {}, "yolov8"),
        ("yolo26n", {"nms": False, "dynamic": True}, "end2end"),
        ("yolo26n-seg", {"nms": False}, "end2end"),
        ("yolo26n-pose", {"nms": False}, "end2end"),
        ("yolo26n-obb", {"nms": False}, "end2end"),
        ("rtdetr", {}, "rtdetr"),
    ],
    ids=str,
)
def test_boxes_of_a_real_export_are_those_that_ultralytics_reads(export, name, options, layout):
    path = export(name, **options)
    engine = load_engine(path, "onnxruntime_cpu", threads=1)
    detector = Detector(engine, confidence=0.0 if layout == "rtdetr" else CONFIDENCE)
    assert detector.layout.name == layout
    found = detector.detect(IMAGE)
    ours = np.array([(b.x, b.y, b.x + b.width, b.y + b.height, b.score, b.class_id) for b in found])

    task = {"obb": "obb", "seg": "segment", "pose": "pose"}.get(name.partition("-")[2], "detect")
    ultralytics = pytest.importorskip("ultralytics")
    network = ultralytics.RTDETR(path) if name == "rtdetr" else ultralytics.YOLO(path, task=task)
    (theirs,) = network.predict(
        IMAGE, imgsz=SIDE, conf=detector.confidence, iou=detector.iou, rect=False, verbose=False
    )
    boxes = theirs.boxes if theirs.obb is None else theirs.obb
    height, width = IMAGE.shape[:2]
    corners = np.clip(boxes.xyxy.numpy(), 0, (width, height, width, height))
    expected = np.column_stack((corners, boxes.conf.numpy(), boxes.cls.numpy()))
    if task == "obb":  # random weights give some that are wider than any object
        expected = expected[boxes.xywhr.numpy()[:, 2:4].max(axis=1) < 500]
    if task in ("detect", "pose"):
        # Of segmentation, ultralytics leaves out boxes without a mask; turned boxes it compares
        # as such, and the detector by their upright ones.
        assert len(ours) == len(expected)
    assert len(expected) > 3
    for box in expected:
        apart = np.abs(ours - box)
        near = (apart[:, :4].max(axis=1) < 1) & (apart[:, 4] < 0.01) & (apart[:, 5] == 0)
        assert near.any(), box
