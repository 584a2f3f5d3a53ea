# SPDX-License-Identifier: AGPL-3.0-only
"""Average precision and missed objects, against pycocotools and by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="average precision needs it: pip install .[detector]")

from fusion_models.boxes import Boxes
from fusion_models.evaluation.detection import (
    Found,
    Matches,
    found_objects,
    interval,
    misses,
    paired_interval,
)
from fusion_models.evaluation.misses import MissesPage

CLASSES = ("person", "bicycle", "car")


def boxes(*rows) -> Boxes:
    """Of (class, left, top, right, bottom)."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Boxes(table[:, 0].astype(np.int64), table[:, 1:])


def found(*rows) -> Found:
    """Of (class, score, left, top, right, bottom)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Found(table[:, 0].astype(np.int64), table[:, 2:], table[:, 1])


def made_up(seed=0, images=30):
    """Labels, and detections of which some are near, some doubled, some wrong."""
    rng = np.random.default_rng(seed)
    truth, answers = {}, {}
    for number in range(images):
        rows, seen = [], []
        for _ in range(rng.integers(0, 6)):
            corner, size = rng.random(2) * 0.7, 0.05 + 0.2 * rng.random(2)
            kind = rng.integers(3)
            box = np.concatenate((corner, corner + size))
            rows.append((kind, *box))
            for _ in range(rng.integers(0, 3)):
                moved = box + np.tile(size, 2) * rng.normal(0, 0.12, 4)
                seen.append((kind if rng.random() < 0.9 else rng.integers(3), rng.random(), *moved))
        for _ in range(rng.integers(0, 3)):
            corner = rng.random(2) * 0.8
            seen.append((rng.integers(3), 0.6 * rng.random(), *corner, *(corner + 0.1)))
        stem = f"{number:05d}{'ND'[number % 2]}"
        truth[stem], answers[stem] = boxes(*rows), found(*seen)
    return truth, answers


def test_average_precision_is_that_of_pycocotools_by_class_and_threshold():
    matches = Matches(*made_up(), CLASSES)
    matches.evaluation.accumulate()
    table = matches.evaluation.eval["precision"][:, :, :, 0, 0]  # thresholds, recalls, classes
    ours = matches.precision()
    assert list(ours.ap50.values()) == pytest.approx(table[0].mean(0), abs=1e-9)
    assert list(ours.ap.values()) == pytest.approx(table.mean((0, 1)), abs=1e-9)
    assert 0.1 < ours.mean < ours.mean50 < 0.9


def test_average_precision_over_some_images_is_that_of_these_images_alone():
    truth, answers = made_up()
    night = [stem for stem in truth if stem.endswith("N")]
    alone = Matches({s: truth[s] for s in night}, {s: answers[s] for s in night}, CLASSES)
    assert Matches(truth, answers, CLASSES).precision(night).ap == pytest.approx(
        alone.precision().ap, abs=1e-9
    )


def test_a_hand_made_case():
    truth = {"a": boxes((0, 0.1, 0.1, 0.3, 0.5), (0, 0.6, 0.1, 0.8, 0.5))}
    answers = {"a": found((0, 0.9, 0.1, 0.1, 0.3, 0.5), (0, 0.8, 0.4, 0.6, 0.5, 0.9))}
    result = Matches(truth, answers, CLASSES).precision()
    # One of two is found before anything wrong: precision 1 at the 51 recalls up to one half.
    assert result.ap50["person"] == pytest.approx(51 / 101)
    assert np.isnan(result.ap50["car"]) and result.mean50 == pytest.approx(51 / 101)


def test_the_interval_covers_the_figure_and_a_row_does_not_differ_from_itself():
    truth, answers = made_up(images=40)
    matches = Matches(truth, answers, CLASSES)
    samples = matches.resampled(60)
    low, high = interval([s.mean50 for s in samples])
    assert low < matches.precision().mean50 < high
    assert paired_interval(samples, matches.resampled(60)) == (0.0, 0.0)
    none = {stem: found() for stem in truth}
    low, high = paired_interval(samples, Matches(truth, none, CLASSES).resampled(60))
    assert 0 < low < high


def test_images_without_detections_and_labels_without_objects_are_named():
    truth, answers = made_up(images=3)
    with pytest.raises(ValueError, match="no detections of 1 labelled images, such as 00001D"):
        Matches(truth, {s: a for s, a in answers.items() if s != "00001D"}, CLASSES)
    with pytest.raises(ValueError, match="none of the 1 images has a labelled object"):
        Matches({"a": Boxes.empty()}, {"a": found()}, CLASSES)


def test_each_detection_finds_one_object_of_its_class_and_weak_ones_find_none():
    truth = boxes((0, 0.1, 0.1, 0.3, 0.5), (0, 0.12, 0.1, 0.32, 0.5), (2, 0.6, 0.6, 0.9, 0.9))
    one = found((0, 0.9, 0.1, 0.1, 0.3, 0.5))
    assert found_objects(truth, one).tolist() == [True, False, False]
    weak = found((0, 0.9, 0.1, 0.1, 0.3, 0.5), (0, 0.2, 0.12, 0.1, 0.32, 0.5))
    assert found_objects(truth, weak).tolist() == [True, False, False]
    assert found_objects(truth, found((0, 0.9, 0.6, 0.6, 0.9, 0.9))).sum() == 0


def test_misses_are_objects_that_one_camera_shows_and_the_page_shows_them(tmp_path):
    person, car = (0, 0.1, 0.1, 0.3, 0.5), (2, 0.6, 0.6, 0.9, 0.9)
    truth = {"00001N": boxes(person, car)}
    seen = {
        "infrared": found((0, 0.9, *person[1:])),
        "visible": found((2, 0.9, *car[1:])),
        "good": found((0, 0.8, *person[1:]), (2, 0.8, *car[1:])),
        "poor": found((2, 0.8, *car[1:])),
    }
    rows = {name: Matches(truth, {"00001N": f}, CLASSES) for name, f in seen.items()}
    lost = misses(rows)
    assert lost["good"] == []
    assert [(m.stem, m.number, m.by) for m in lost["poor"]] == [("00001N", 0, ("infrared",))]
    page = MissesPage(lost, CLASSES)
    assert page.stems == {"00001N"}
    assert page.pictures("00001N") == ["infrared", "visible", "poor"]
    picture = np.full((48, 64, 3), 90, np.uint8)
    page.add("00001N", truth["00001N"], dict.fromkeys(seen, picture), seen)
    page.write(tmp_path / "misses.html", "made up")
    text = (tmp_path / "misses.html").read_text()
    assert "poor: 1 objects lost" in text and "found in infrared" in text
    assert text.count("data:image/jpeg;base64,") == 3
