# SPDX-License-Identifier: AGPL-3.0-only
"""Labels in YOLO and COCO form, and the data set that a detector trains on."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from fusion_models.detection.dataset import (
    CLASSES,
    Part,
    match_classes,
    read_labels,
    resized_pairs,
    write_dataset,
)
from fusion_models.detection.pictures import RULES, SOURCES, WeightedMean, pictures
from fusion_models.pairs import DataError, ImagePair, PairSet, list_pairs


@pytest.fixture
def pairs(tmp_path):
    root = tmp_path / "street" / "train"
    for name in ("ir", "vi"):
        (root / name).mkdir(parents=True)
        for stem in ("00001N", "00002D"):
            shape = (48, 64) if name == "ir" else (48, 64, 3)
            image = np.random.default_rng(int(stem[:5])).integers(0, 255, shape, np.uint8)
            cv2.imwrite(str(root / name / f"{stem}.png"), image)
    return PairSet("street/train", root, tuple(list_pairs(root)))


def label(pairs, stem, text, kind="fusion"):
    folder = pairs.root / "boxes" / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.txt").write_text(text)


def coco(pairs, annotations, categories=((7, "People"), (9, "Lamp"))):
    images = [
        {"id": i, "file_name": f"a/{s}.jpg", "width": 64, "height": 48}
        for i, s in enumerate(pairs.stems)
    ]
    text = {
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": box} for i, c, box in annotations
        ],
    }
    (pairs.root / "boxes.json").write_text(json.dumps(text))


def test_classes_are_matched_by_name_and_those_of_neither_are_listed():
    table, unmatched = match_classes(("Car", "People", "Lamp"), CLASSES)
    assert table.tolist() == [2, 0, -1]
    assert unmatched == ["Lamp"]


def test_yolo_labels_of_other_classes_are_mapped_and_the_rest_is_counted(pairs):
    (pairs.root / "classes.txt").write_text("Lamp\nPeople\n")
    label(pairs, "00001N", "1 .5 .5 .2 .4\n0 .2 .2 .1 .1\n")
    label(pairs, "00002D", "")
    labels, report = read_labels(pairs)
    assert labels["00001N"].classes.tolist() == [0] and len(labels["00002D"]) == 0
    assert report.objects == {"person": 1}
    assert report.problems["unmapped class lamp"] == ["street/train/00001N"]
    assert report.problems["empty files"] == ["fusion/00002D.txt"]


def test_coco_labels_give_the_same_boxes_and_what_is_wrong_with_them_is_named(pairs):
    coco(pairs, [
        (0, 7, [16, 12, 32, 24]),
        (0, 9, [0, 0, 5, 5]),
        (1, 7, [60, 40, -20, -20]),
        (1, 7, [70, 10, 5, 5]),
        (1, 7, [50, 10, 40, 10]),
        (8, 7, [1, 1, 5, 5]),
        (0, 3, [1, 1, 5, 5]),
    ])  # fmt: skip
    labels, report = read_labels(pairs)
    assert labels["00001N"].corners.tolist() == [[0.25, 0.25, 0.75, 0.75]]
    assert labels["00002D"].in_pixels(64, 48).round(3).tolist() == [
        [40, 20, 60, 40], [50, 10, 64, 20],
    ]  # fmt: skip
    assert {kind: len(places) for kind, places in report.problems.items()} == {
        "swapped corners, corrected": 1,
        "outside the image, left out": 1,
        "partly outside the image, clipped": 1,
        "unknown image 8": 1,
        "unknown class 3": 1,
        "unmapped class lamp": 1,
    }


def test_a_box_without_area_and_an_image_without_boxes_are_counted_in_coco_form(pairs):
    coco(pairs, [(0, 7, [16, 12, 0, 24]), (0, 7, [16, 12, 32, 24])])
    labels, report = read_labels(pairs)
    assert len(labels["00001N"]) == 1 and len(labels["00002D"]) == 0
    assert report.problems == {
        "without area, left out": ["boxes.json annotation 0"],
        "images without a box": ["00002D"],
    }


@pytest.mark.parametrize("box", [[1, 2, 3], ["a", 2, 3, 4], [1, 2, float("nan"), 4], None])
def test_a_coco_box_in_another_form_is_refused_with_its_number(pairs, box):
    coco(pairs, [(0, 7, [16, 12, 32, 24]), (0, 7, box)])
    with pytest.raises(DataError, match="annotation 1 has the bbox .*expected left, top, width"):
        read_labels(pairs)


def test_a_coco_image_without_a_size_is_refused(pairs):
    coco(pairs, [(0, 7, [16, 12, 32, 24])])
    text = (pairs.root / "boxes.json").read_text()
    (pairs.root / "boxes.json").write_text(text.replace('"width": 64', '"width": 0'))
    with pytest.raises(DataError, match="no width and height of 00001N"):
        read_labels(pairs)


def test_labels_of_no_wanted_class_and_files_in_another_form_end_with_a_message(pairs):
    (pairs.root / "classes.txt").write_text("lamp\n")
    label(pairs, "00001N", "0 .5 .5 .2 .4\n")
    with pytest.raises(
        DataError, match="no box of person, bicycle, car, bus; the labels have lamp"
    ):
        read_labels(pairs)
    (pairs.root / "boxes" / "fusion" / "00001N.txt").unlink()
    (pairs.root / "boxes" / "fusion").rmdir()
    (pairs.root / "boxes").rmdir()
    (pairs.root / "boxes.json").write_text("[1]")
    with pytest.raises(DataError, match="not in COCO form"):
        read_labels(pairs)


def test_pictures_are_the_cameras_alone_and_fused_luminances_in_the_visible_colours(pairs):
    pair = next(iter(pairs))
    every = pictures({"mine": lambda pair: pair.vi})
    assert list(every) == [*SOURCES, *RULES, "mine"]
    shown = {name: picture(pair) for name, picture in every.items()}
    assert {(p.shape, p.dtype.name) for p in shown.values()} == {((48, 64, 3), "uint8")}
    assert np.array_equal(shown["mine"], shown["visible"])
    assert np.array_equal(shown["infrared"][..., 0], pair.ir)
    assert np.ptp(shown["infrared"].astype(int), axis=2).max() == 0


def test_a_weighted_mean_weighs_and_may_raise_the_local_contrast():
    ramp = np.tile(np.arange(0, 240, dtype=np.uint8), (160, 1))
    pair = ImagePair("x", ramp, np.full_like(ramp, 100), None)
    assert np.array_equal(WeightedMean(0.0)(pair), pair.vi)
    assert np.array_equal(WeightedMean(1.0)(pair), pair.ir)
    assert WeightedMean(0.7)(pair)[0, 200] == round(0.7 * 200 + 0.3 * 100)
    checks = ImagePair("y", ((np.indices((160, 240)).sum(0) % 2) * 20 + 100).astype(np.uint8),
                       np.full((160, 240), 100, np.uint8), None)  # fmt: skip
    plain, raised = (WeightedMean(0.5, gain)(checks).astype(float) for gain in (1, 2))
    assert raised.std() == pytest.approx(2 * plain.std(), rel=0.05)


def test_a_data_set_has_a_label_file_for_each_picture_and_is_not_written_twice(pairs, tmp_path):
    label(pairs, "00001N", "0 .5 .5 .2 .4\n2 .9 .9 .01 .01\n")
    label(pairs, "00002D", "2 .5 .5 .5 .5\n")
    labels, _ = read_labels(pairs)
    kinds = pictures({})
    part = Part(pairs, labels, kinds, draws=2)
    folder = tmp_path / "set"
    yaml = write_dataset(folder, {"train": [part], "val": [Part(pairs, labels, SOURCES)]})
    names = sorted(p.stem for p in (folder / "images" / "train").iterdir())
    assert len(names) == 4
    assert names == sorted(p.stem for p in (folder / "labels" / "train").iterdir())
    for name in names:
        if name.endswith("00001N"):  # the car is smaller than any detector can see
            text = (folder / "labels" / "train" / f"{name}.txt").read_text()
            assert text == "0 0.500000 0.500000 0.200000 0.400000\n"
    record = json.loads((folder / "dataset.json").read_text())
    assert record["pictures"] == {"train": 4, "val": 4}
    assert json.loads(yaml.read_text())["names"]["1"] == "bicycle"

    def never(pair):
        raise AssertionError("it was there already")

    listed = (folder / "train.txt").read_text().splitlines()
    assert sorted(Path(line).stem for line in listed) == names
    again = Part(pairs, labels, dict.fromkeys(kinds, never), draws=2)
    write_dataset(folder, {"train": [again]})
    assert sorted(p.stem for p in (folder / "images" / "train").iterdir()) == names


def test_pictures_of_an_older_network_are_not_taken_for_those_of_the_new_one(pairs, tmp_path):
    label(pairs, "00001N", "0 .5 .5 .2 .4\n")
    labels, _ = read_labels(pairs)
    for mark in ("old", "new"):
        part = Part(pairs, labels, {"visible": SOURCES["visible"]}, marks={"visible": mark})
        write_dataset(tmp_path, {"train": [part]})
    assert len(list((tmp_path / "images" / "train").iterdir())) == 2
    listed = (tmp_path / "train.txt").read_text().splitlines()
    assert listed == ["./images/train/visible@new-street_train-00001N.jpg"]


def test_pictures_are_made_at_the_pairs_size_and_resized_after_it(pairs, tmp_path):
    label(pairs, "00001N", "0 .5 .5 .2 .4\n2 .9 .9 .1 .1\n")
    labels, _ = read_labels(pairs)
    (shape, *_) = {pair.ir.shape for pair in pairs}
    made_at = []

    def picture(pair):
        made_at.append(pair.ir.shape)
        return SOURCES["visible"](pair)

    half = max(shape) // 2
    part = Part(pairs, labels, {"visible": picture}, longest=half)
    write_dataset(tmp_path, {"train": [part]})
    (file,) = (tmp_path / "images" / "train").iterdir()
    assert made_at == [shape] and max(cv2.imread(str(file)).shape[:2]) == half
    boxes = (tmp_path / "labels" / "train" / f"{file.stem}.txt").read_text().splitlines()
    assert boxes[0] == "0 0.500000 0.500000 0.200000 0.400000", "shares of the picture stay"


def test_pairs_are_brought_to_another_size_once(pairs, tmp_path):
    resized = resized_pairs(pairs, tmp_path / "r", (32, 40))
    assert resized.stems == pairs.stems
    assert {(p.ir.shape, p.colour(p.vi).shape) for p in resized} == {((40, 32), (40, 32, 3))}
    marked = resized.files[0][0]
    cv2.imwrite(str(marked), np.zeros((40, 32), np.uint8))
    resized_pairs(pairs, tmp_path / "r", (32, 40))
    assert not cv2.imread(str(marked)).any()
