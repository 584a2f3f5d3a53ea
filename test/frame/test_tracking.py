# SPDX-License-Identifier: AGPL-3.0-only
"""Objects keep their numbers from image to image."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_ros.frame.detector import Detection
from fusion_ros.frame.tracking import Tracker


def seen(x, y=100.0, score=0.9, kind=0, size=(20.0, 50.0)) -> Detection:
    return Detection(("person", "car")[kind], kind, score, x, y, *size)


def numbers(detections) -> list[int]:
    return [d.track_id for d in detections]


def follow(frames, rate=30.0, **settings) -> list[list[int]]:
    tracker = Tracker(**settings)
    return [numbers(tracker.update(frame, i / rate, 0.25)) for i, frame in enumerate(frames)]


def test_an_object_gets_a_number_when_a_second_image_confirms_it():
    assert follow([[seen(10)], [seen(12)], [seen(14)]]) == [[0], [1], [1]]


def test_detections_keep_their_order_and_all_but_their_number():
    tracker = Tracker()
    tracker.update([seen(10), seen(300)], 0.0)
    found = tracker.update([seen(301, score=0.8), seen(11)], 0.1)
    assert [(d.x, d.score) for d in found] == [(301, 0.8), (11, 0.9)]
    assert sorted(numbers(found)) == [1, 2]


def test_two_that_pass_each_other_keep_their_numbers():
    frames = [[seen(6 * i), seen(240 - 6 * i, y=110)] for i in range(41)]
    found = follow(frames)
    assert found[1] == found[-1] and len(set(found[-1])) == 2


def test_an_object_behind_a_pole_keeps_its_number_and_one_away_for_long_gets_a_new_one():
    walk = [[seen(4 * i)] for i in range(60)]
    hidden = [frame if not 20 <= i < 30 else [] for i, frame in enumerate(walk)]
    assert follow(hidden)[-1] == [1]
    away = [frame if not 12 <= i < 50 else [] for i, frame in enumerate(walk)]
    assert follow(away)[-1] == [2]


def test_a_weak_detection_continues_a_track_but_begins_none():
    frames = [[seen(3 * i, score=0.9 if i < 5 else 0.3)] for i in range(20)]
    assert follow(frames)[-1] == [1]
    assert follow([[seen(3 * i, score=0.3)] for i in range(20)])[-1] == [0]


def test_what_one_image_alone_shows_is_no_object():
    frames = [[seen(10)], [seen(12), seen(400)], [seen(14)], [seen(16), seen(100)], [seen(18)]]
    found = follow(frames)
    assert found[1] == [1, 0] and found[3] == [1, 0] and found[4] == [1]


def test_classes_are_never_mixed():
    found = follow([[seen(10, kind=0)], [seen(10, kind=0)], [seen(10, kind=1)]])
    assert found == [[0], [1], [0]]


def test_a_slow_camera_s_long_steps_are_followed():
    frames = [[seen(3 * i)] for i in range(12)]
    assert {n for frame in follow(frames, rate=5.0)[1:] for n in frame} == {1}


def test_time_that_runs_backwards_forgets_all_objects_but_gives_no_number_twice():
    tracker = Tracker()
    for i in range(3):
        tracker.update([seen(10)], 100 + i / 30)
    assert numbers(tracker.update([seen(10)], 5.0)) == [0]
    assert numbers(tracker.update([seen(10)], 5.1)) == [2]
    tracker.clear()
    assert numbers(tracker.update([seen(10)], 5.2)) == [0]


@pytest.mark.parametrize("count", [0, 40])
def test_no_objects_and_many(count):
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 4000, (count, 2))
    tracker = Tracker()
    for i in range(5):
        found = tracker.update([seen(x + i, y) for x, y in places], i / 30)
    assert sorted(numbers(found)) == sorted(set(numbers(found))) and len(found) == count
    assert all(numbers(found))
