# SPDX-License-Identifier: AGPL-3.0-only
"""Networks that convert camera images themselves: as exact as the conversion on the CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from support import pair, write_detector_onnx, write_fusion_onnx

from fusion_ros.frame import image_graph
from fusion_ros.frame.detector import Detector
from fusion_ros.frame.fuser import Fuser, padded_size
from fusion_ros.frame.letterbox import Letterbox
from fusion_ros.inference import EngineError, load_engine
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.size import Size

onnx = pytest.importorskip("onnx")


def run(model, feeds):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0][0]


def images(width, height, seed=0):
    """Images with smooth and noisy parts, all colours and both ends of the range."""
    thermal, visible = pair(width, height, seed)
    visible[: height // 2] = np.linspace(0, 255, width * 3).reshape(1, width, 3)
    visible[0], visible[-1], thermal[0], thermal[-1] = 0, 255, 255, 0
    return thermal, visible


def fused_in_the_graph(path, thermal, visible):
    size = Size.of(thermal)
    model = image_graph.fuse_images(onnx.load(path), size, padded_size(size))
    feeds = {"thermal_image": thermal[None, None], "visible_image": visible[None]}
    return run(model, feeds)


@pytest.mark.parametrize("size", [(64, 48), (61, 43), (20, 13), (33, 32)])
@pytest.mark.parametrize("kind", ["average", "max"])
def test_the_graph_fuses_images_as_the_cpu_does(tmp_path, kind, size):
    path = write_fusion_onnx(tmp_path / "model.onnx", kind)
    thermal, visible = images(*size)
    expected = Fuser(load_engine(path, "onnxruntime_cpu")).fuse(thermal, visible)
    got = fused_in_the_graph(path, thermal, visible)
    assert (got.shape, got.dtype) == (expected.shape, np.uint8)
    assert np.abs(got.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("method", list_methods())
def test_the_shipped_networks_fuse_images_as_the_cpu_does(method):
    thermal, visible = images(123, 77)
    path = model_path(method)
    expected = Fuser(load_engine(path, "onnxruntime_cpu")).fuse(thermal, visible).astype(int)
    error = np.abs(fused_in_the_graph(path, thermal, visible) - expected)
    # The graph does not round luminance: a difference of up to half a level, which is amplified.
    assert error.mean() < 0.6 and np.quantile(error, 0.999) <= 3


def test_a_thermal_image_equal_to_the_visible_luminance_changes_no_colour(tmp_path):
    _, visible = images(64, 48)
    grey = np.repeat(visible[:, :, :1], 3, axis=2)
    path = write_fusion_onnx(tmp_path / "max.onnx", "max")
    assert np.abs(fused_in_the_graph(path, grey[:, :, 0], grey).astype(int) - grey).max() <= 1


def letterboxed_by_the_cpu(detector, image):
    seen = []
    detector.engine.run = lambda feeds: (
        seen.append(feeds["images"].copy()) or {"output0": np.zeros((1, 6, 8), np.float32)}
    )
    detector.detect(image)
    return seen[0][0]


@pytest.mark.parametrize("size", [(64, 64), (64, 48), (640, 480), (48, 99), (30, 20)])
def test_the_graph_sees_the_image_that_the_cpu_letterboxes(tmp_path, size):
    detector = Detector(
        load_engine(write_detector_onnx(tmp_path / "boxes.onnx", []), "onnxruntime_cpu")
    )
    _, image = pair(*size)
    expected = letterboxed_by_the_cpu(detector, image)
    see = onnx.load(tmp_path / "boxes.onnx")
    # A network that returns its input.
    del see.graph.node[:], see.graph.initializer[:], see.graph.output[:]
    see.graph.node.append(onnx.helper.make_node("Identity", ["images"], ["output0"]))
    see.graph.output.append(
        onnx.helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, [1, 3, 64, 64])
    )
    got = run(detector.form(Size(*size)).rewrite(see), {"camera_image": image[None]})
    # OpenCV rounds resized levels, and positions between pixels to 1/2048.
    assert np.abs(got - expected).max() < 1.5 / 255


def test_a_real_detector_finds_the_same_in_the_graph(shared_data):
    cv2 = pytest.importorskip("cv2")
    path = shared_data / "weights/yolov8n_coco.onnx"
    if not path.is_file():
        pytest.skip(f"needs the detector {path}")
    detector = Detector(load_engine(path, "onnxruntime_cpu"))
    folder = shared_data / "data/roadscene/test/vi"
    found = 0
    for file in sorted(folder.iterdir())[:3]:
        image = cv2.imread(str(file))
        expected = [d for d in detector.detect(image) if d.score > 0.4]
        model = detector.form(Size.of(image)).rewrite(onnx.load(path))
        output = run(model, {"camera_image": image[None]})[None]
        boxes = detector.layout.decode({detector.layout.output[0]: output}, 0.25)
        ids, letterbox = boxes.ids, Letterbox.fit(Size.of(image), Size(640, 640))
        corners = letterbox.to_source(boxes.corners)
        for one in expected:
            left = np.array((one.x, one.y, one.x + one.width, one.y + one.height))
            best = np.abs(corners[ids == one.class_id] - left).max(axis=1).min()
            assert best < 3, (file.name, one)
            found += 1
    assert found > 5


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 20])
def test_detectors_of_older_and_newer_exports_are_resized_alike(tmp_path, opset):
    path = write_detector_onnx(tmp_path / "boxes.onnx", [(0, 0.9, (8, 8, 24, 40))])
    detector = Detector(load_engine(path, "onnxruntime_cpu"))
    model = onnx.load(path)
    model.opset_import[0].version = opset
    _, image = pair(200, 100)
    got = run(detector.form(Size(200, 100)).rewrite(model), {"camera_image": image[None]})
    expected = load_engine(path, "onnxruntime_cpu").run(
        {"images": letterboxed_by_the_cpu(detector, image)[None]}
    )
    np.testing.assert_allclose(got, expected["output0"][0], atol=1e-3)


def test_a_model_of_an_old_opset_is_refused(tmp_path):
    model = onnx.load(write_fusion_onnx(tmp_path / "average.onnx"))
    model.opset_import[0].version = 9
    with pytest.raises(EngineError, match="its ONNX opset is 9: export it with 11 or a later one"):
        image_graph.fuse_images(model, Size(64, 48), Size(64, 48))


def test_the_model_that_is_extended_stays_as_it_is(tmp_path):
    model = onnx.load(write_fusion_onnx(tmp_path / "average.onnx"))
    before = model.SerializeToString()
    image_graph.fuse_images(model, Size(64, 48), Size(64, 48))
    assert model.SerializeToString() == before
