# SPDX-License-Identifier: AGPL-3.0-only
"""Recall and broken identities of objects over a sequence."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_models.evaluation.tracks import Record, Seen, shown_by, total


def seen(*objects) -> Seen:
    """Of (name or number, class, left)."""
    corners = np.array([(x, 0, x + 10, 20) for _, _, x in objects], np.float32).reshape(-1, 4)
    return Seen([n for n, _, _ in objects], [c for _, c, _ in objects], corners)


def follow(*images) -> Record:
    record = Record()
    for truth, found in images:
        record.add(seen(*truth), seen(*found))
    return record


def test_an_object_counts_where_a_detection_of_its_class_covers_it():
    truth = [("anna", "person", 0), ("van", "car", 50)]
    record = follow((truth, [(0, "person", 1), (0, "person", 50), (0, "car", 90)]), (truth, []))
    assert (record.shown, record.found, record.wrong) == (4, 1, 2)
    assert record.recall == 0.25 and record.as_dict()["wrong an image"] == 1


def test_an_image_in_which_nothing_is_found_counts_too():
    record, nothing = Record(), Seen([], [], [])
    record.add(seen(("anna", "person", 0)), nothing)
    record.add(nothing, seen((1, "person", 0)))
    assert (record.shown, record.found, record.wrong) == (1, 0, 1)
    one = seen((1, "person", 0))
    assert [len(s.names) for s in shown_by({"infrared": [one, nothing, one]}, least=2)] == [1, 0, 1]


def test_a_detection_finds_one_object_the_nearest():
    truth = [("anna", "person", 0), ("ben", "person", 2)]
    assert follow((truth, [(1, "person", 2)])).found == 1
    record = follow((truth, [(1, "person", 2)]), (truth, [(1, "person", 2), (2, "person", 0)]))
    assert record.found == 3 and record.breaks == 0


def test_an_identity_breaks_where_the_number_changes_even_after_a_gap():
    anna = [("anna", "person", 0)]
    record = follow(
        (anna, [(0, "person", 0)]), (anna, [(1, "person", 0)]), (anna, []),
        (anna, [(2, "person", 0)]),
        (anna, [(2, "person", 0)]), (anna, [(1, "person", 0)]),
    )  # fmt: skip
    assert record.breaks == 2 and record.found == 5
    assert record.as_dict()["breaks a hundred"] == 40


def test_an_object_of_a_video_is_what_one_camera_follows_and_counts_once():
    warm = [seen((1, "person", 0), (7, "car", 80)), seen((1, "person", 2)), seen((1, "person", 4))]
    seen_by_day = [seen((4, "person", 1)), seen((4, "person", 30)), seen((4, "person", 30))]
    objects = shown_by({"infrared": warm, "visible": seen_by_day}, least=3)
    assert [image.names for image in objects] == [
        [("infrared", 1)],  # the visible camera shows the same person; the car is seen only once
        [("infrared", 1), ("visible", 4)],
        [("infrared", 1), ("visible", 4)],
    ]
    assert objects[1].corners[:, 0].tolist() == [2, 30]
    assert objects[1].classes == ["person", "person"]
    other = shown_by({"infrared": warm, "visible": [seen((4, "car", 1))] * 3}, least=3)
    assert other[0].names == [("infrared", 1), ("visible", 4)]  # of another class: another object
    assert shown_by({}) == []


def test_sequences_add_up_and_none_has_no_recall():
    anna = ([("anna", "person", 0)], [(1, "person", 0)])
    both = total([follow(anna, anna), follow((anna[0], []))])
    assert (both.shown, both.found, both.images) == (3, 2, 3)
    assert np.isnan(Record().recall) and follow(([], [])).images == 1
    assert both.recall == pytest.approx(2 / 3)
