# SPDX-License-Identifier: AGPL-3.0-only
"""Simulated cameras rendered ahead: the frames of a loop, where they are kept, and the bounds."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fusion_ros.cameras.street import ahead
from fusion_ros.cameras.street.ahead import Loop, LoopPlan, loop_seconds
from fusion_ros.cameras.street.scene import CameraModel
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal

SMALL = CameraModel.from_fov(64, 48, 60.0)
ODD = CameraModel.from_fov(63, 47, 60.0)


def _plan(camera="thermal", model=SMALL, **changes) -> LoopPlan:
    return LoopPlan(
        camera, **{"scene_name": "day", "rate": 4.0, "seconds": 1.0, **changes}, model=model
    )


@pytest.mark.parametrize(
    ("camera", "make", "model"),
    [
        ("thermal", SimulatedThermal, SMALL),
        ("rgb", SimulatedRgb, ODD),
    ],
)
def test_a_loop_repeats_what_the_camera_renders(tmp_path, camera, make, model):
    loop, expected = Loop(_plan(camera, model), tmp_path), make(model, "day", 0)
    for time_s in (0.0, 0.75, 0.25):
        assert np.array_equal(loop.render(time_s), expected.render(time_s))
        assert np.array_equal(loop.render(time_s + 3.0), expected.render(time_s))


def test_rgb_frames_of_even_size_lose_only_resolution_of_colour(tmp_path):
    plan = _plan("rgb")
    assert plan.bytes == 4 * 64 * 48 * 3 // 2
    frame = Loop(plan, tmp_path).render(0.5)
    expected = SimulatedRgb(SMALL, "day", 0).render(0.5)
    assert frame.shape == expected.shape and frame.dtype == np.uint8
    weights = (0.114, 0.587, 0.299)
    assert np.abs(frame @ weights - expected @ weights).mean() < 3


def test_the_faint_scene_is_played_in_8_bits(tmp_path):
    assert Loop(_plan(scene_name="faint"), tmp_path).render(0.0).dtype == np.uint8


def test_a_second_run_finds_the_frames_of_the_first(tmp_path):
    drawn = []
    plan = _plan()
    first = Loop(plan, tmp_path, lambda done, count: drawn.append((done, count)))
    assert drawn == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again = Loop(plan, tmp_path, lambda done, count: drawn.append((done, count)))
    assert len(drawn) == 4
    assert np.array_equal(first.render(0.5), again.render(0.5))
    assert [path.name for path in tmp_path.iterdir()] == [plan.path.name]


def test_a_damaged_loop_is_drawn_again(tmp_path):
    plan = _plan()
    expected = Loop(plan, tmp_path).render(0.0).copy()
    (tmp_path / plan.path).write_bytes(b"cut short")
    assert np.array_equal(Loop(plan, tmp_path).render(0.0), expected)
    assert np.array_equal(Loop(plan, tmp_path).render(0.0), expected)


def test_without_a_folder_that_can_be_written_the_frames_stay_in_memory(tmp_path):
    (tmp_path / "file").write_text("no folder")
    loop = Loop(_plan(), tmp_path / "file")
    assert np.array_equal(loop.render(0.25), SimulatedThermal(SMALL, "day", 0).render(0.25))


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path):
    def interrupt(done, count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Loop(_plan(), tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_loops_used_longest_ago_are_deleted(tmp_path, monkeypatch):
    plans = [_plan(seed=seed) for seed in range(3)]
    size = plans[0].bytes + 200  # with the file's header
    monkeypatch.setattr(ahead, "MOST_BYTES", 2 * size)
    for age, plan in zip((300, 200), plans):
        Loop(plan, tmp_path)
        os.utime(tmp_path / plan.path, (1e9 - age, 1e9 - age))
    Loop(plans[0], tmp_path)  # used again: the other one goes
    Loop(plans[2], tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {plans[0].path.name, plans[2].path.name}


def test_each_setting_that_changes_the_frames_makes_another_loop():
    plans = [
        _plan(),
        _plan("rgb"),
        _plan(seed=1),
        _plan(scene_name="night"),
        _plan(rate=5.0),
        _plan(seconds=2.0),
        _plan(model=ODD),
    ]
    assert len({plan.path for plan in plans}) == len(plans)
    assert _plan(seconds=0.0).seconds == loop_seconds("day")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera": "sonar"}, "rgb or thermal"),
        ({"scene_name": "fog"}, "day, dusk"),
        ({"rate": 0.0}, "positive rate"),
        ({"seconds": -1.0}, "0 .*or more"),
        ({"seconds": 1e6}, "at most 1024 MiB; give a lower rate"),
    ],
)
def test_an_impossible_loop_is_refused_with_what_is_expected(changes, message):
    with pytest.raises(ValueError, match=message):
        _plan(**changes)
