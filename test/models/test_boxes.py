# SPDX-License-Identifier: AGPL-3.0-only
"""Boxes beside pairs: the union over both cameras, and bad labels by name and count."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_models.boxes import Boxes, BoxReport, class_names, iou, read_boxes, read_yolo, union
from fusion_models.pairs import DataError, PairSet


def boxes(*rows):
    table = np.array(rows, float).reshape(-1, 5)
    return Boxes(table[:, 0].astype(np.int64), table[:, 1:].astype(np.float32))


@pytest.fixture
def labelled(tmp_path):
    """`labelled({"infrared": {"a": text}})` is a set of the pairs a, b, c with these labels."""

    def make(files, stems="abc"):
        root = tmp_path / "city" / "train"
        (root / "ir").mkdir(parents=True)
        for stem in stems:
            (root / "ir" / f"{stem}.png").touch()
        for kind, texts in files.items():
            (root / "boxes" / kind).mkdir(parents=True)
            for stem, text in texts.items():
                (root / "boxes" / kind / f"{stem}.txt").write_text(text)
        pairs = tuple((root / "ir" / f"{s}.png", root / "vi" / f"{s}.png") for s in stems)
        return PairSet("city/train", root, pairs)

    return make


def test_iou_is_the_shared_part_of_both_areas():
    first = np.array([[0, 0, 2, 2]], np.float32)
    second = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [5, 5, 6, 6]], np.float32)
    np.testing.assert_allclose(iou(first, second), [[1 / 3, 1, 0]])


def test_the_union_adds_visible_boxes_that_no_infrared_one_of_the_class_overlaps():
    infrared = boxes([0, 0.1, 0.1, 0.3, 0.5])
    visible = boxes(
        [0, 0.12, 0.1, 0.3, 0.5],  # the same person
        [2, 0.12, 0.1, 0.3, 0.5],  # a car at the same place
        [0, 0.25, 0.1, 0.45, 0.5],  # a neighbour who overlaps a little
    )
    joined = union(infrared, visible)
    assert joined.classes.tolist() == [0, 2, 0]
    np.testing.assert_array_equal(joined.corners, np.r_[infrared.corners, visible.corners[1:]])


def test_the_union_of_nothing_is_nothing():
    some = boxes([1, 0.1, 0.1, 0.2, 0.2])
    assert len(union(Boxes.empty(), Boxes.empty())) == 0
    assert len(union(some, Boxes.empty())) == len(union(Boxes.empty(), some)) == 1


def test_boxes_survive_writing_and_reading(tmp_path):
    written = boxes([2, 0.25, 0.125, 0.5, 0.75], [0, 0.0, 0.5, 1.0, 1.0])
    (tmp_path / "a.txt").write_text(written.as_yolo())
    report = BoxReport()
    read = read_yolo(tmp_path / "a.txt", ("person", "bicycle", "car"), report)
    np.testing.assert_array_equal(read.classes, written.classes)
    np.testing.assert_allclose(read.corners, written.corners, atol=2e-6)
    assert not report.problems
    np.testing.assert_allclose(read.in_pixels(640, 480)[0], [160, 60, 320, 360], atol=1e-2)


@pytest.mark.parametrize(("line", "problem", "kept"), [
    ("0 .5 .5 -.2 .2", "swapped corners, corrected", 1),
    ("0 .95 .5 .2 .2", "partly outside the image, clipped", 1),
    ("0 1.5 .5 .2 .2", "outside the image, left out", 0),
    ("0 .5 .5 0 .2", "without area, left out", 0),
    ("7 .5 .5 .2 .2", "unknown class 7", 0),
    ("", "empty files", 0),
])  # fmt: skip
def test_a_bad_label_is_named_with_its_place(labelled, line, problem, kept):
    pairs = labelled({"fusion": dict.fromkeys("abc", f"{line}\n")})
    found, report = read_boxes(pairs)
    assert list(report.problems) == [problem] and len(report.problems[problem]) == 3
    assert report.problems[problem][0].startswith("fusion/a.txt")
    assert f"{problem}: 3 (fusion/a.txt" in str(report)
    for box in found.values():
        assert len(box) == kept and (box.corners >= 0).all() and (box.corners <= 1).all()
        assert (box.corners[:, 2:] > box.corners[:, :2]).all()


@pytest.mark.parametrize(
    "line", ["0 .5 .5 .2", "person .5 .5 .2 .2", "0 nan .5 .2 .2", "0.5 0 0 1 1"]
)
def test_a_line_in_another_form_is_refused(labelled, line):
    with pytest.raises(DataError, match="a.txt:2: .*expected class x y width height"):
        read_boxes(labelled({"fusion": {"a": f"0 .5 .5 .2 .2\n{line}\n"}}))


def test_pairs_without_labels_and_labels_without_pairs_are_counted(labelled):
    line = "2 .5 .5 .2 .2\n"
    pairs = labelled({"infrared": {"a": line, "z": line}, "visible": {"b": line}})
    found, report = read_boxes(pairs)
    assert sorted(found) == ["a", "b"] and report.objects == {"car": 2}
    assert report.problems["no infrared labels"] == ["b", "c"]
    assert report.problems["no visible labels"] == ["a", "c"]
    assert report.problems["labels without a pair"] == ["infrared/z.txt"]


def test_one_camera_alone_can_be_asked_for(labelled):
    line = "0 .5 .5 .2 .2\n"
    pairs = labelled({"infrared": {"a": line}, "visible": {"a": line + "1 .2 .2 .1 .1\n"}})
    assert len(read_boxes(pairs, "infrared")[0]["a"]) == 1
    assert len(read_boxes(pairs, "visible")[0]["a"]) == 2
    with pytest.raises(DataError, match="no fusion/ with YOLO labels; there is infrared, visible"):
        read_boxes(pairs, "fusion")


def test_the_classes_are_those_of_the_set(labelled):
    pairs = labelled({"fusion": {"a": "1 .5 .5 .2 .2\n"}})
    assert class_names(pairs.root) == ("person", "bicycle", "car")
    (pairs.root.parent / "classes.txt").write_text("People\nCar\n")
    assert read_boxes(pairs)[1].objects == {"car": 1}


def test_hidden_files_are_no_labels(labelled):
    pairs = labelled({"fusion": {"a": "0 .5 .5 .2 .2\n", "._a": "\0\5", ".b": "?"}})
    found, report = read_boxes(pairs)
    assert list(found) == ["a"] and "labels without a pair" not in report.problems


def test_the_labels_of_msrs_are_read(shared_data):
    from fusion_models.pairs import find_sets

    (pairs,) = find_sets(shared_data / "data", ["msrs/test"])
    found, _ = read_boxes(pairs)
    _, infrared = read_boxes(pairs, "infrared")
    _, visible = read_boxes(pairs, "visible")
    assert infrared.objects["person"] == 205 and visible.objects["person"] == 111
    assert len(found) == 60
