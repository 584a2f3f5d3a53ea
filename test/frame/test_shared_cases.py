# SPDX-License-Identifier: AGPL-3.0-only
"""Models that users reported, from the folder of cases beside the checkout: right boxes or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusion_ros.frame.detector import Detector
from fusion_ros.frame.fuser import Fuser
from fusion_ros.inference import EngineError, load_engine

MODELS = Path(__file__).resolve().parents[3] / "shared" / "cases" / "common" / "models"
IMAGE = np.full((48, 64, 3), 120, np.uint8)
UPRIGHT, TURNED = (22, 9, 20, 30), (14, 6, 35, 35)
"""The person in the outputs of the models, in pixels of `IMAGE`: of a turned box the upright one
around it."""

pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason=f"needs the models of {MODELS}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[
            (name, UPRIGHT)
            for name in ("dyn_detect", "dyn_pose", "dyn_v5", "listnames", "noname1", "v5")
        ],
        *[(name, UPRIGHT) for name in ("v5_1class", "y11_pose", "y26_e2e", "y26_half_in")],
        *[(name, TURNED) for name in ("dyn_obb", "y11_obb")],
    ],
)
def test_a_reported_detector_gives_the_box_of_its_person(name, expected):
    detector = Detector(load_engine(MODELS / f"{name}.onnx", "onnxruntime_cpu"))
    (box,) = detector.detect(IMAGE)
    assert box.class_name in ("person", "class 0") and box.score > 0.8
    assert (box.x, box.y, box.width, box.height) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("name", ["dyn", "v5_dyn", "y11_obb_dyn", "y11_pose_dyn", "y26_seg_e2e"])
def test_a_reported_detector_whose_boxes_are_none_gives_no_phantoms(name):
    detector = Detector(load_engine(MODELS / f"{name}.onnx", "onnxruntime_cpu"))
    assert detector.detect(IMAGE) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v7_trt", "EfficientNMS_TRT, which belongs to another runtime"),
        ("y11_cls", "its task is 'classify'"),
        ("grey", r"got images float32 \[1, 1, 64, 64\]"),
        ("average", r"got ir float32 \[1, 1, \?, \?\]"),
    ],
)
def test_a_reported_model_that_is_no_detector_is_refused_with_what_it_is(name, says):
    with pytest.raises(EngineError, match=says):
        Detector(load_engine(MODELS / f"{name}.onnx", "onnxruntime_cpu"))


@pytest.mark.parametrize("size", [(80, 60), (64, 64), (40, 60)])
def test_a_reported_fusion_model_of_one_size_fuses_every_size(size):
    fuser = Fuser(load_engine(MODELS / "static64.onnx", "onnxruntime_cpu"))
    width, height = size
    thermal, visible = np.full((height, width), 200, np.uint8), np.full((height, width, 3), 60)
    fused = fuser.fuse(thermal, visible.astype(np.uint8))
    assert fused.shape == (height, width, 3)
    np.testing.assert_allclose(fused, 130, atol=2)


def test_a_reported_fusion_model_of_other_names_is_refused():
    with pytest.raises(EngineError, match="lacks ir"):
        Fuser(load_engine(MODELS / "other_names.onnx", "onnxruntime_cpu"))
