# SPDX-License-Identifier: AGPL-3.0-only
"""The detector: boxes in image pixels, agreeing with ultralytics."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from support import write_detector_onnx, write_fusion_onnx

from fusion_ros.frame.annotation import draw
from fusion_ros.frame.coco import COCO_NAMES
from fusion_ros.frame.detector import (
    Detection,
    Detector,
    default_detector_path,
    own_detector_path,
)
from fusion_ros.inference import EngineError, load_engine

BOXES = [
    (0, 0.9, (8, 8, 24, 40)),
    (0, 0.8, (9, 9, 24, 40)),  # the first box again
    (1, 0.7, (8, 8, 24, 40)),  # another class in the same place
    (0, 0.4, (40, 20, 60, 30)),
]


@pytest.fixture(params=[False, True], ids=["raw", "end_to_end"])
def detector(request, tmp_path):
    boxes = [b for b in BOXES if b[1] != 0.8] if request.param else BOXES
    onnx = write_detector_onnx(tmp_path / "boxes.onnx", boxes, end_to_end=request.param)
    return Detector(load_engine(onnx, "onnxruntime_cpu", threads=1))


def square() -> np.ndarray:
    return np.zeros((64, 64, 3), np.uint8)


def test_overlapping_boxes_are_suppressed_within_a_class_only(detector):
    found = detector.detect(square())
    assert [(d.class_name, round(d.score, 3)) for d in found] == [
        ("person", 0.9),
        ("car", 0.7),
        ("person", 0.4),
    ]
    first = found[0]
    assert (first.class_id, first.x, first.y, first.width, first.height) == (0, 8, 8, 16, 32)


def random_boxes(count=300):
    rng = np.random.default_rng(1)
    corners = rng.random((count, 2)) * 56
    sizes = 8 + rng.random((count, 2)) * 24
    scores = rng.permutation(np.linspace(0.3, 0.9, count))
    classes = rng.integers(0, 3, count)
    return [
        (int(c), float(s), (x, y, x + w, y + h))
        for c, s, (x, y), (w, h) in zip(classes, scores, corners, sizes)
    ]


def suppressed(boxes, iou_limit):
    """Scores that greedy suppression within each class keeps, strongest first."""
    kept = []
    for class_id, score, box in sorted(boxes, key=lambda b: -b[1]):
        same = (np.array(other) for c, _, other in kept if c == class_id)
        if all(iou(np.array(box), other) <= iou_limit for other in same):
            kept.append((class_id, score, box))
    return [(class_id, score) for class_id, score, _ in kept]


def test_suppression_is_that_of_the_definition_on_every_opencv(tmp_path, monkeypatch):
    # OpenCV 4.5, which Ubuntu 22.04 has, lacks this function.
    monkeypatch.delattr(cv2.dnn, "NMSBoxesBatched", raising=False)
    boxes = random_boxes()
    onnx = write_detector_onnx(tmp_path / "boxes.onnx", boxes, names=("a", "b", "c"))
    found = Detector(load_engine(onnx, "onnxruntime_cpu")).detect(square())
    expected = suppressed(boxes, 0.45)
    assert 50 < len(found) < 250
    assert [d.class_id for d in found] == [class_id for class_id, _ in expected]
    np.testing.assert_allclose([d.score for d in found], [score for _, score in expected], 1e-6)


def test_boxes_come_in_pixels_of_the_image_given(detector):
    wide = np.zeros((240, 640, 3), np.uint8)  # scaled by 1/10 to 64x24, 20 rows of padding above
    last = detector.detect(wide)[-1]
    assert (last.x, last.y, last.width, last.height) == pytest.approx((400, 0, 200, 100), abs=1e-3)


def test_boxes_end_at_the_images_border(detector):
    for d in detector.detect(np.zeros((100, 640, 3), np.uint8)):
        assert d.x >= 0 and d.y >= 0 and d.x + d.width <= 640 and d.y + d.height <= 100


def test_confidence_and_classes_change_between_two_images(detector):
    detector.confidence = 0.5
    assert len(detector.detect(square())) == 2
    detector.classes = ["car"]
    assert [d.class_name for d in detector.detect(square())] == ["car"]
    detector.classes, detector.confidence = [], 0.95
    assert detector.detect(square()) == []


def test_a_name_that_several_classes_have_keeps_the_boxes_of_each(tmp_path):
    boxes = [(i, 0.9, (10 + 20 * i, 10, 24 + 20 * i, 30)) for i in range(3)]
    onnx = write_detector_onnx(tmp_path / "boxes.onnx", boxes, names=("car", "dog", "car"))
    engine = load_engine(onnx, "onnxruntime_cpu")
    detector = Detector(engine, classes=["car"], layout="yolov8")
    assert [(d.class_name, d.class_id) for d in detector.detect(square())] == [
        ("car", 0),
        ("car", 2),
    ]


def test_a_high_iou_keeps_overlapping_boxes(tmp_path):
    onnx = write_detector_onnx(tmp_path / "boxes.onnx", BOXES)
    assert len(Detector(load_engine(onnx, "onnxruntime_cpu"), iou=0.99).detect(square())) == 4


def test_settings_out_of_range_are_refused(detector):
    with pytest.raises(ValueError, match="no class 'dragon': expected person, car"):
        detector.classes = ["dragon"]
    with pytest.raises(ValueError, match="confidence must lie in 0..1"):
        detector.confidence = 1.5
    with pytest.raises(ValueError, match="iou must lie in 0..1"):
        detector.iou = -1
    with pytest.raises(ValueError, match="must be"):
        detector.detect(np.zeros((64, 64), np.uint8))


def test_class_names_can_be_given(tmp_path):
    onnx = write_detector_onnx(tmp_path / "boxes.onnx", BOXES)
    engine = load_engine(onnx, "onnxruntime_cpu")
    found = Detector(engine, class_names=["pedestrian", "vehicle"]).detect(square())
    assert found[0].class_name == "pedestrian"
    with pytest.raises(EngineError, match="scores 2 classes, but 1 are named"):
        Detector(engine, class_names=["pedestrian"])


def test_a_model_that_is_no_detector_is_refused(tmp_path):
    onnx = write_fusion_onnx(tmp_path / "average.onnx")
    with pytest.raises(EngineError, match="not a detection model"):
        Detector(load_engine(onnx, "onnxruntime_cpu"))


def test_drawing_marks_the_boxes_on_a_copy():
    image = np.full((480, 640, 3), 90, np.uint8)
    corner = Detection("person", 0, 0.87, 600.0, 2.0, 39.0, 100.0)
    marked = draw(image, [corner, Detection("car", 2, 0.5, 50.0, 200.0, 120.0, 80.0)])
    assert (image == 90).all()
    changed = (marked != 90).any(axis=2)
    assert changed[200, 60:160].all() and changed[50, 600] and not changed[240, 100]
    assert changed[4:16, 560:640].any(), "the label of a box in the corner lies inside the image"
    assert (draw(image, []) == image).all()


def test_the_users_own_detector_comes_before_the_one_that_ships(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    own, shipped = tmp_path / ".cache/fusion_ros/detector.onnx", tmp_path / "shipped.onnx"
    monkeypatch.setattr("fusion_ros.frame.detector.SHIPPED", shipped)
    assert default_detector_path() == own_detector_path() == own
    shipped.touch()
    assert default_detector_path() == shipped
    own.parent.mkdir(parents=True)
    own.touch()
    assert default_detector_path() == own


def test_coco_has_eighty_names():
    assert len(set(COCO_NAMES)) == 80
    assert (COCO_NAMES[0], COCO_NAMES[79]) == ("person", "toothbrush")


def iou(a: np.ndarray, b: np.ndarray) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = np.prod(np.clip(high - low, 0, None))
    return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


@pytest.mark.parametrize("scene", ["day", "night"])
def test_kept_boxes_and_their_places_agree_with_ultralytics(tmp_path, scene):
    """Both get the same raw output: overlapping boxes of two classes."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ultralytics")
    from ultralytics.utils import nms, ops

    image = cv2.imread(str(Path(__file__).resolve().parents[1] / "data" / "vi" / f"{scene}.png"))
    rng = np.random.default_rng(len(scene))
    centres = rng.uniform(60, 260, (6, 2))[rng.integers(6, size=40)] + rng.normal(0, 8, (40, 2))
    sides = rng.uniform(30, 60, (40, 2))
    corners = np.hstack([centres - sides / 2, centres + sides / 2])
    scores = rng.permutation(np.linspace(0.05, 0.95, 40))
    found = [(int(rng.integers(2)), float(s), tuple(c)) for s, c in zip(scores, corners)]
    path = write_detector_onnx(tmp_path / "detector.onnx", found, size=320)
    ours = Detector(load_engine(path, "onnxruntime_cpu"), confidence=0.25, iou=0.5).detect(image)

    raw = np.zeros((1, 6, 40), np.float32)
    for i, (class_id, score, (x1, y1, x2, y2)) in enumerate(found):
        raw[0, :4, i] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        raw[0, 4 + class_id, i] = score
    (kept,) = nms.non_max_suppression(torch.from_numpy(raw), conf_thres=0.25, iou_thres=0.5)
    kept[:, :4] = ops.scale_boxes((320, 320), kept[:, :4], image.shape)
    theirs = kept.numpy()[kept[:, 4].argsort(descending=True).numpy()]
    ours.sort(key=lambda d: -d.score)
    assert len(ours) == len(theirs) > 5
    boxes = np.array([(d.x, d.y, d.x + d.width, d.y + d.height) for d in ours])
    np.testing.assert_allclose(boxes, theirs[:, :4], atol=0.6)
    np.testing.assert_allclose([d.score for d in ours], theirs[:, 4], atol=1e-4)
    assert [d.class_id for d in ours] == theirs[:, 5].astype(int).tolist()


def test_boxes_agree_with_ultralytics(shared_data):
    weights = shared_data / "weights"
    if not (weights / "yolov8n_coco.pt").is_file():
        pytest.skip(f"needs the detector weights of {weights}")
    ultralytics = pytest.importorskip("ultralytics")
    torch = pytest.importorskip("torch")
    torch.set_num_threads(2)
    reference = ultralytics.YOLO(weights / "yolov8n_coco.pt")
    detector = Detector(
        load_engine(weights / "yolov8n_coco.onnx", "onnxruntime_cpu"), confidence=0.25, iou=0.7
    )
    assert tuple(detector.class_names[i] for i in range(80)) == COCO_NAMES
    folder = shared_data / "data/roadscene/test/vi"
    compared = 0
    for path in sorted(folder.iterdir())[::5][:10]:
        image = cv2.imread(str(path))
        (result,) = reference.predict(
            image, imgsz=640, rect=False, conf=0.25, iou=0.7, device="cpu", verbose=False
        )
        ours = detector.detect(image)
        theirs = result.boxes.data.numpy()
        boxes = np.array([(d.x, d.y, d.x + d.width, d.y + d.height) for d in ours])
        for *box, score, class_id in theirs[theirs[:, 4] > 0.5]:
            same = [i for i, d in enumerate(ours) if d.class_id == class_id]
            best = max(same, key=lambda i: iou(boxes[i], np.array(box)))
            assert iou(boxes[best], np.array(box)) > 0.9, (path.name, box)
            assert ours[best].score == pytest.approx(score, abs=0.02)
            compared += 1
        sure = sum(d.score > 0.5 for d in ours)
        assert (
            abs(sure - (theirs[:, 4] > 0.5).sum()) <= 1
        )  # a score near 0.5 may lie on either side
    assert compared > 20
