# SPDX-License-Identifier: AGPL-3.0-only
"""Rates, gaps, clocks, pairs and recommended settings, found in stamps that are known."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_ros.recording.timing import Times, compare_clocks, describe_stream, pair, recommend

START = 1_700_000_000_000_000_000


def times(
    rate, seconds=60.0, offset_s=0.0, drift_ppm=0.0, jitter_s=0.0, lost=(), delay_s=0.004, seed=0
):
    """A stream as a camera with these faults and the recorder would stamp it."""
    rng = np.random.default_rng(seed)
    count = round(seconds * rate)
    at = np.arange(count) / rate + rng.normal(0, jitter_s or 1e-12, count)
    received = at + delay_s * (1 + 0.1 * rng.standard_normal(count).clip(-3, 3))
    kept = np.setdiff1d(np.arange(count), lost)
    stamps = np.rint((offset_s + at * (1 + 1e-6 * drift_ppm)) * 1e9).astype(np.int64) + START
    logs = np.rint(received * 1e9).astype(np.int64) + START
    return Times(stamps[kept], logs[kept])


def test_rate_jitter_and_drops_of_a_stream_are_those_that_were_put_in():
    lost = [3, 4, 100, 511]
    stream = describe_stream(times(30, jitter_s=0.002, lost=lost))
    assert stream.rate_hz == pytest.approx(30, rel=1e-3)
    assert stream.jitter_ms == pytest.approx(2, rel=0.1)
    assert stream.dropped == len(lost)
    assert [missing for _, _, missing in stream.gaps] == [2, 1, 1]


def test_stamps_that_repeat_or_go_back_are_counted():
    stamps = np.arange(100) * 33_000_000 + START
    stamps[50] = stamps[49]
    stamps[70:] -= 2_000_000_000
    stream = describe_stream(Times(stamps, np.arange(100)))
    assert (stream.repeated, stream.back, stream.jumps) == (1, 1, 1)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_stream_of_few_images_has_no_rate_but_no_error_either(count):
    stream = describe_stream(Times.of([START] * count, [START] * count))
    assert (stream.count, stream.dropped, stream.rate_hz) == (count, 0, 0.0)


@pytest.mark.parametrize("drift_ppm", [0.0, 200.0, -1000.0])
def test_offset_and_drift_of_the_clocks_are_found(drift_ppm):
    thermal = times(9, offset_s=0.08, drift_ppm=drift_ppm, jitter_s=0.001, seed=1)
    clocks = compare_clocks(thermal, times(30, jitter_s=0.001, lost=range(5, 60, 7)))
    middle_ms = 80 + drift_ppm * 30 * 1e-3
    assert clocks.offset_ms == pytest.approx(middle_ms, abs=2)
    assert clocks.drift_ppm == pytest.approx(drift_ppm, rel=0.1, abs=3)
    assert clocks.drifts == bool(drift_ppm)


def test_a_transport_that_stalls_for_a_while_does_not_move_the_offset():
    thermal = times(10, offset_s=0.02)
    thermal.logs[200:230] += 400_000_000
    assert compare_clocks(thermal, times(10, seed=2)).offset_ms == pytest.approx(20, abs=2)


def test_clocks_are_unknown_where_the_recording_repeats_the_stamps():
    thermal, rgb = times(10), times(30)
    for each in (thermal, rgb):
        each.logs[:] = each.stamps
    assert not compare_clocks(thermal, rgb).known


@pytest.mark.parametrize(
    ("thermal", "rgb"),
    [
        (times(9, offset_s=0.08, jitter_s=0.001), times(30, seed=1, jitter_s=0.001)),
        (times(9, offset_s=-0.3, drift_ppm=300), times(30, seed=1)),
        (times(10, offset_s=0.2, jitter_s=0.003), times(10, seed=1, jitter_s=0.003)),
        (times(30, lost=range(7, 900, 50)), times(30, seed=1, lost=range(20, 900, 31))),
    ],
    ids=["9 and 30 Hz", "drift", "equal rates", "drops"],
)
def test_the_recommended_settings_make_99_percent_of_the_possible_pairs(thermal, rgb):
    found = recommend(thermal, rgb, compare_clocks(thermal, rgb))
    made = pair(thermal, rgb, found.tolerance, found.thermal_time_offset)
    possible = min(
        np.intersect1d(
            *(np.rint((t.logs - START) * 1e-9 * 30).astype(int) for t in (thermal, rgb))
        ).size
        if len(thermal) > 1000
        else len(thermal),
        len(rgb),
    )
    assert made.pairs >= 0.99 * possible
    assert np.abs(made.distances_ms).max() <= 1000 * found.tolerance


def test_cameras_with_a_constant_distance_of_their_images_are_shifted_onto_each_other():
    thermal = times(30)
    thermal.stamps += 12_000_000
    thermal.logs[:] = thermal.stamps
    rgb = times(30)
    rgb.logs[:] = rgb.stamps
    found = recommend(thermal, rgb, compare_clocks(thermal, rgb))
    assert found.thermal_time_offset == pytest.approx(-0.012, abs=1e-3)
    assert found.tolerance <= 0.005


def test_one_camera_alone_gets_the_usual_settings_and_a_reason():
    found = recommend(times(30), Times.of([], []), compare_clocks(times(30), Times.of([], [])))
    assert found.pairable == 0
    assert "few" in found.reason or "near" in found.reason
