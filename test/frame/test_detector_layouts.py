# SPDX-License-Identifier: AGPL-3.0-only
"""Layouts of detectors: what exporters write is read right, or refused with what was found."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support import write_outputs_onnx

from fusion_ros.frame.detector import Detector
from fusion_ros.frame.detector_layouts import LAYOUTS, find_layout
from fusion_ros.frame.detector_metadata import DetectorMetadata
from fusion_ros.inference import EngineError, load_engine
from fusion_ros.size import Size

CANVAS = Size(64, 64)
CELLS = 64 + 16 + 4
NAMES = {0: "person", 1: "car"}
DETECT = {"task": "detect", "names": str(NAMES)}
SCENE = ((0, 0.9, (10, 20, 40, 60)), (1, 0.7, (30, 10, 60, 30)))
"""Class id, score and corners in pixels of the canvas; what each layout below says."""


def scores_of(class_id, score, classes):
    return [score if i == class_id else 0.01 for i in range(classes)]


def table(row, rows, filler):
    """Rows of the scene, and `filler` for all others: (rows, values) float32."""
    found = [row(class_id, score, np.array(box, float)) for class_id, score, box in SCENE]
    return np.float32(found + [filler] * (rows - len(found)))


def centred(box):
    return [*(box[:2] + box[2:]) / 2, *box[2:] - box[:2]]


def yolov8(classes=2, rows=CELLS, extra=()):
    def row(class_id, score, box):
        return [*centred(box), *scores_of(class_id, score, classes), *extra]

    return table(row, rows, [20, 20, 8, 8, *[0.001] * classes, *extra]).T[None]


def yolov5(classes=2, rows=3 * CELLS, extra=()):
    def row(class_id, score, box):
        return [*centred(box), 0.95, *np.array(scores_of(class_id, score, classes)) / 0.95, *extra]

    return table(row, rows, [20, 20, 8, 8, 0.001, *[0.3] * classes, *extra])[None]


def yolox(classes=2):
    grid = np.concatenate(
        [
            np.stack([*np.meshgrid(range(n), range(n)), np.full((n, n), 64 // n)], -1).reshape(
                -1, 3
            )
            for n in (8, 4, 2)
        ]
    )
    places = yolov5(classes, CELLS)[0]
    places[2:, :2] = (grid[2:, :2] + 0.5) * grid[2:, 2:]
    raw = places.copy()
    raw[:, :2] = places[:, :2] / grid[:, 2:] - grid[:, :2]
    raw[:, 2:4] = np.log(places[:, 2:4] / grid[:, 2:])
    return raw[None], places[None]


def end2end(rows=300, extra=()):
    return table(lambda i, s, box: [*box, s, i, *extra], rows, [0, 0, 0, 0, 0, 0, *extra])[None]


def rtdetr(classes=2, ids=False):
    def row(class_id, score, box):
        tail = [score, class_id] if ids else scores_of(class_id, score, classes)
        return [*np.array(centred(box)) / 64, *tail]

    filler = [0.5, 0.5, 0.2, 0.2, *([0.001, 1] if ids else [0.001] * classes)]
    return table(row, 300, filler)[None]


def efficient_nms():
    rows = end2end(100)[0]
    return {
        "num_dets": np.int32([[2]]),
        "det_boxes": rows[None, :, :4],
        "det_scores": rows[None, :, 4],
        "det_classes": rows[None, :, 5].astype(np.int32),
    }


def detr():
    rows = end2end(300)[0]
    return {
        "labels": rows[None, :, 5].astype(np.int64),
        "boxes": rows[None, :, :4],
        "scores": rows[None, :, 4],
    }


def yolov7_nms():
    rows = end2end(2)[0]
    return np.column_stack((np.zeros(2), rows[:, :4], rows[:, 5], rows[:, 4])).astype(np.float32)


MASKS = np.ones((1, 32, 16, 16), np.float32)
MASK = (0.3,) * 32
POSE = {**DETECT, "task": "pose", "kpt_shape": "[17, 3]"}
POINTS = (30.0, 30.0, 0.5) * 17

EXPORTS = {
    "yolov8": (yolov8(), DETECT, {}),
    "yolov8 without a task": (yolov8(), {"names": str(NAMES)}, {}),
    "yolov8 with a list of names": (yolov8(), {"names": "['person', 'car']"}, {}),
    "yolov8 transposed": (yolov8().transpose(0, 2, 1), DETECT, {}),
    "yolov8 of free size": (yolov8(), DETECT, {"image": ("batch", 3, "h", "w"), "free": True}),
    "yolov8 float16": (yolov8().astype(np.float16), DETECT, {"dtype": np.float16}),
    "yolov8 batch of four": (yolov8().repeat(4, 0), DETECT, {"image": (4, 3, 64, 64)}),
    "pose": (yolov8(extra=POINTS), POSE, {}),
    "pose of free size": (
        yolov8(extra=POINTS),
        POSE,
        {"image": ("batch", 3, "h", "w"), "free": True},
    ),
    "segment": (
        {"output0": yolov8(extra=MASK), "output1": MASKS},
        {**DETECT, "task": "segment"},
        {},
    ),
    "obb upright": (yolov8(extra=(0.0,)), {**DETECT, "task": "obb"}, {}),
    "yolov5": (yolov5(), {"names": str(NAMES), "stride": "32"}, {}),
    "yolov5 of free size": (
        yolov5(),
        {"names": str(NAMES), "imgsz": "[64, 64]"},
        {"image": ("batch", 3, "h", "w"), "free": True},
    ),
    "yolov5 segment": (
        {"output0": yolov5(extra=MASK), "output1": MASKS},
        {"names": str(NAMES)},
        {},
    ),
    "yolov5 with its feature maps": (
        {"output0": yolov5(), "a": np.ones((1, 3, 8, 8, 7), np.float32)},
        {"names": str(NAMES)},
        {},
    ),
    "end2end": (end2end(), {**DETECT, "end2end": "True"}, {}),
    "end2end without the key": (end2end(), DETECT, {}),
    "end2end float16": (end2end(), DETECT, {"dtype": np.float16}),
    "end2end by suppression": (
        end2end(),
        {**DETECT, "end2end": "False", "args": "{'batch': 1, 'nms': True}"},
        {},
    ),
    "end2end segment": (
        {"output0": end2end(extra=MASK), "output1": MASKS},
        {**DETECT, "task": "segment", "end2end": "True"},
        {},
    ),
    "end2end pose": (end2end(extra=POINTS), {**POSE, "end2end": "True"}, {}),
    "yolov7 with suppression": (yolov7_nms(), {"names": str(NAMES)}, {"free": True}),
    "yolo-nas": (yolov7_nms()[:, [0, 1, 2, 3, 4, 6, 5]], {"names": str(NAMES)}, {"free": True}),
    "rtdetr": (rtdetr(), DETECT, {}),
    "rtdetr with ids": (rtdetr(ids=True), {**DETECT, "head": "RTDETRDecoder"}, {}),
    "efficient nms": (efficient_nms(), {"names": str(NAMES)}, {}),
    "d-fine": (detr(), {"names": str(NAMES)}, {"second_input": "orig_target_sizes"}),
    "yolox": (yolox()[0], {"names": str(NAMES)}, {}),
    "yolox decoded": (yolox()[1], {"names": str(NAMES)}, {}),
}


def detector(tmp_path, outputs, metadata, model=MappingProxyType({}), **options):
    if not isinstance(outputs, dict):
        outputs = {"output0": outputs}
    if isinstance(model.get("image", (1,))[0], str):
        metadata = {"imgsz": "[64, 64]", **metadata}
    path = write_outputs_onnx(tmp_path / "detector.onnx", outputs, metadata, **model)
    return Detector(load_engine(path, "onnxruntime_cpu", threads=1), **options)


def boxes(found):
    return [
        (d.class_name, round(d.score, 2), [d.x, d.y, d.x + d.width, d.y + d.height]) for d in found
    ]


@pytest.mark.parametrize("export", EXPORTS)
def test_each_export_gives_the_boxes_of_the_scene(tmp_path, export):
    found = boxes(detector(tmp_path, *EXPORTS[export]).detect(np.zeros((64, 64, 3), np.uint8)))
    assert [(name, score) for name, score, _ in found] == [("person", 0.9), ("car", 0.7)]
    for (_, _, corners), (_, _, expected) in zip(found, SCENE):
        np.testing.assert_allclose(corners, expected, atol=0.1)


@pytest.mark.parametrize("extra", [(0.0,), (np.pi / 2,), (np.pi / 4,)], ids=["0", "90", "45"])
@pytest.mark.parametrize("form", ["raw", "end2end"])
def test_a_turned_box_becomes_the_upright_one_around_it(tmp_path, extra, form):
    row = [32, 32, 20, 10, 0.9, 0.01, *extra]
    if form == "end2end":
        row[4:6] = [0.9, 0]
        outputs = np.float32([[row, *[[0] * 7] * 299]])
    else:
        outputs = np.float32([[row, *[[20, 20, 8, 8, 0, 0, 0]] * (CELLS - 1)]]).transpose(0, 2, 1)
    metadata = {**DETECT, "task": "obb", "end2end": str(form == "end2end")}
    ((_, _, corners),) = boxes(
        detector(tmp_path, outputs, metadata).detect(np.zeros((64, 64, 3), np.uint8))
    )
    cos, sin = np.cos(extra[0]), np.sin(extra[0])
    half = np.array([10 * cos + 5 * sin, 10 * sin + 5 * cos])
    np.testing.assert_allclose(corners, [*(32 - half), *(32 + half)], atol=1e-3)


def test_one_class_of_yolov5_is_not_taken_for_corners_score_and_class(tmp_path):
    found = detector(tmp_path, yolov5(1), {"names": "{0: 'person'}"}).detect(
        np.zeros((64, 64, 3), np.uint8)
    )
    np.testing.assert_allclose(boxes(found)[0][2], SCENE[0][2], atol=0.1)


def test_an_image_is_stretched_for_rtdetr_and_lies_at_the_corner_for_yolox(tmp_path):
    image = np.zeros((32, 64, 3), np.uint8)
    stretched = detector(tmp_path, *EXPORTS["rtdetr"]).detect(image)
    np.testing.assert_allclose(boxes(stretched)[0][2], (10, 10, 40, 30), atol=0.1)
    cornered = detector(tmp_path, *EXPORTS["yolox"]).detect(image)
    np.testing.assert_allclose(boxes(cornered)[0][2], (10, 20, 40, 32), atol=0.1)


@pytest.mark.parametrize(
    ("export", "channel", "value"), [("yolox", 0, 200), ("yolov8", 2, 200 / 255)]
)
def test_yolox_is_fed_bytes_of_bgr_and_others_fractions_of_rgb(tmp_path, export, channel, value):
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 200
    one = detector(tmp_path, *EXPORTS[export])
    fed = []
    run = one.engine.run
    one.engine.run = lambda feeds: fed.append(feeds["images"].copy()) or run(feeds)
    one.detect(image)
    assert fed[0][0, channel].mean() == pytest.approx(value)
    assert fed[0][0].sum() == pytest.approx(value * 64 * 64)


REFUSED = {
    "classify": (np.full((1, 6), 0.1, np.float32), {**DETECT, "task": "classify"}, "'classify'"),
    "depth": (np.ones((1, 1, 64, 64), np.float32), {**DETECT, "task": "depth"}, "'depth'"),
    "feature maps": (np.ones((1, 3, 8, 8, 7), np.float32), {"names": str(NAMES)}, "no layout"),
    "another number of names": (yolov8(), {"names": "['one']"}, "scores 2 classes, but 1 are"),
    "no names for two classes": (yolov8(), {}, "no class names.*detector_names"),
    "logits": (yolov8() * [[1]] * 4 * [[1]] - 3, DETECT, "scores from"),
    "nan": (yolov8() * np.float32(np.nan), DETECT, "not finite"),
    "scores in percent": (end2end() * np.float32(100), DETECT, "scores from 0 to 90"),
    "ids that are none": (
        end2end() + np.float32([0, 0, 0, 0, 0, 0.25]),
        {**DETECT, "end2end": "True"},
        "class ids such as 0.25",
    ),
    "more ids than names": (
        end2end() + np.float32([0, 0, 0, 0, 0, 5]),
        {**DETECT, "end2end": "True"},
        "class id 6 of 2",
    ),
    "names that cannot be read": (yolov8(), {"names": "{0: person"}, "names .* cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_with_what_was_found(tmp_path, case):
    outputs, metadata, message = REFUSED[case]
    with pytest.raises(EngineError, match=message):
        detector(tmp_path, np.float32(outputs), metadata)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ({"image": (1, 1, 64, 64)}, r"\[1, 1, 64, 64\]"),
        ({"image": (1, 64, 64, 3)}, r"\[1, 64, 64, 3\]"),
        ({"image": (1, 3, 4, 4)}, r"\[1, 3, 4, 4\]"),
        ({"image": (1, 3, 100000, 100000)}, "100000"),
        ({"image": (1000, 3, 64, 64)}, "1000"),
        ({"dtype": np.uint8}, "uint8"),
    ],
)
def test_inputs_of_another_kind_are_refused(tmp_path, model, found):
    with pytest.raises(EngineError, match=f"expected one input of float32.*got images.*{found}"):
        detector(tmp_path, yolov8(), DETECT, model)


def test_names_and_layout_by_parameter_settle_what_the_file_leaves_open(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    named = detector(tmp_path, yolov8(), {}, class_names=["a", "b"])
    assert [d.class_name for d in named.detect(image)] == ["a", "b"]
    told = detector(tmp_path, yolov8(extra=(0.0,)), {}, class_names=["a", "b"], layout="obb")
    assert boxes(told.detect(image))[0][1] == 0.9
    with pytest.raises(EngineError, match="yolov5"):
        detector(tmp_path, yolov8(), DETECT, layout="yolov5")
    with pytest.raises(ValueError, match="unknown layout 'yolov9': choose one of auto, yolov8"):
        detector(tmp_path, yolov8(), DETECT, layout="yolov9")


def test_eighty_classes_without_names_are_those_of_coco_and_one_class_needs_no_name(tmp_path):
    image = np.zeros((64, 64, 3), np.uint8)
    for outputs in (yolov8(80), yolov5(80), rtdetr(80)):
        found = detector(tmp_path, outputs, {}).detect(image)
        assert [d.class_name for d in found] == ["person", "bicycle"]
    assert detector(tmp_path, yolov8(1), {}).detect(image)[0].class_name == "class 0"


def test_rows_that_are_no_boxes_are_dropped_and_counted(tmp_path):
    good = end2end()
    bad = [
        [np.nan, 0, 10, 10, 0.8, 0],
        [40, 40, 20, 50, 0.8, 0],
        [0, 0, 1e9, 1e9, 0.8, 0],
        [500, 500, 520, 520, 0.8, 0],
        [1, 1, 9, 9, 0.8, 7],
    ]
    one = detector(tmp_path, good, DETECT)
    rows = good.copy()
    rows[0, 2:7] = bad
    one.engine.run = lambda feeds: {"output0": rows}
    found = one.detect(np.zeros((64, 64, 3), np.uint8))
    assert [d.class_name for d in found] == ["person", "car"]
    assert one.dropped == len(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf, 640.0, -1.0])
def test_an_image_whose_scores_are_none_costs_its_boxes(tmp_path, value):
    for export in ("yolov8", "yolov5", "end2end"):
        outputs, metadata, _ = EXPORTS[export]
        one = detector(tmp_path, outputs, metadata)
        broken = outputs.copy()
        (broken[0, 4:] if export == "yolov8" else broken[0, :, 4])[...] = value
        one.engine.run = lambda feeds, broken=broken: {"output0": broken}
        with pytest.raises(EngineError, match="expected 0 to 1"):
            one.detect(np.zeros((64, 64, 3), np.uint8))


FLOATS = st.one_of(
    st.floats(width=32, allow_subnormal=False),
    st.sampled_from([0.0, 0.5, 0.875, 1.0, 2.0, 10.0, 30.0, 64.0]),
)
TEXTS = st.one_of(
    st.sampled_from(
        [
            *("detect", "obb", "pose", "segment", "classify", ""),
            *("True", "False", "[17, 3]", "[64, 64]", "640", "[-1, 0]", "RTDETRDecoder"),
            *(str(NAMES), "['person', 'car']", "{0: 'a'}", "{'0': 'a'}", "{-1: 'a'}", "[" * 300),
            *("{0: 'a', 999999999999: 'b'}", "{0.5: 'a'}", "{}", "[]", "None", "1e400"),
        ]
    ),
    st.text(max_size=20),
)
METADATA = st.dictionaries(
    st.sampled_from(["task", "names", "end2end", "kpt_shape", "imgsz", "head", "args"]), TEXTS
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), metadata=METADATA, asked=st.sampled_from(LAYOUTS))
def test_whatever_a_model_gives_there_are_real_boxes_or_an_error(data, metadata, asked):
    names = data.draw(
        st.lists(st.sampled_from(["output0", "boxes", "scores", "labels", "num"]), min_size=1,
                 max_size=4, unique=True)
    )  # fmt: skip
    shapes = st.one_of(
        st.tuples(st.just(1), st.integers(0, 9), st.integers(0, 9)),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=8),
    )
    outputs = {n: data.draw(hnp.arrays(np.float32, shapes, elements=FLOATS)) for n in names}
    try:
        layout = find_layout(outputs, DetectorMetadata.read(metadata), CANVAS, asked)
        found = layout.decode(outputs, 0.25)
    except EngineError:
        return
    assert np.isfinite(found.corners).all()
    assert (found.corners[:, 2:] > found.corners[:, :2]).all()
    assert ((found.scores > 0.24) & (found.scores <= 1)).all()
    assert (found.ids >= 0).all()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(metadata=METADATA)
def test_metadata_of_any_text_is_read_or_refused(metadata):
    try:
        read = DetectorMetadata.read(metadata)
    except EngineError:
        read = DetectorMetadata.read(metadata, with_names=False)
    assert read.names is None or list(read.names) == list(range(len(read.names)))
    assert read.size is None or 0 < min(read.size) <= max(read.size) <= 8192
