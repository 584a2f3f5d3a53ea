# SPDX-License-Identifier: AGPL-3.0-only
"""Monitor: frames per second, percentiles, stages, and faults that are not logged too often."""

from __future__ import annotations

import threading

import pytest

from fusion_ros.frame.monitor import Fault, Monitor, Percentiles, percentiles


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(monitor: Monitor, clock: Clock, rate: float, seconds: float) -> None:
    for _ in range(round(rate * seconds)):
        monitor.fused(10.0)
        clock.now += 1 / rate


def test_a_monitor_without_events_reports_zeros(clock):
    snapshot = Monitor(clock=clock).snapshot()
    assert (snapshot.fps, snapshot.mean_fps, snapshot.latency_ms) == (0, 0, None)
    assert (snapshot.stage_ms, snapshot.counters, snapshot.faults) == ({}, {}, ())


def test_one_frame_alone_gives_no_rate(clock):
    monitor = Monitor(clock=clock)
    monitor.fused(5.0)
    clock.now += 0.1
    snapshot = monitor.snapshot()
    assert (snapshot.fps, snapshot.mean_fps, snapshot.counters["fused"]) == (0, 0, 1)


@pytest.mark.parametrize("seconds", [2, 5, 60])
def test_the_rate_is_that_of_the_frames(clock, seconds):
    monitor = Monitor(clock=clock)
    run(monitor, clock, 30, seconds)
    snapshot = monitor.snapshot()
    assert snapshot.fps == pytest.approx(30, abs=0.6)
    assert snapshot.mean_fps == pytest.approx(30, rel=1e-6)


def test_the_rate_falls_to_zero_when_frames_stop(clock):
    monitor = Monitor(clock=clock, window_s=5)
    run(monitor, clock, 20, 10)
    clock.now += 2.5
    assert monitor.snapshot().fps == pytest.approx(10, abs=0.5)
    clock.now += 10
    snapshot = monitor.snapshot()
    assert snapshot.fps == 0
    assert snapshot.mean_fps == pytest.approx(20, rel=1e-6)


def test_percentiles_are_by_nearest_rank():
    assert percentiles([7.0]) == Percentiles(7, 7, 7)
    assert percentiles([*range(100, 0, -1)]) == Percentiles(50, 95, 99)
    assert percentiles([1, 2, 3]) == Percentiles(2, 3, 3)


def test_latency_and_stages_cover_the_latest_frames_only(clock):
    monitor = Monitor(clock=clock)
    for ms in [1e6] * 10 + [20.0] * 1000:
        monitor.fused(ms)
        monitor.stage("infer", ms)
    snapshot = monitor.snapshot()
    assert snapshot.latency_ms == Percentiles(20, 20, 20)
    assert snapshot.stage_ms == {"infer": 20}


def test_a_stage_that_fails_is_not_timed(clock):
    monitor = Monitor(clock=clock)
    with monitor.timed("good"):
        pass
    with pytest.raises(RuntimeError), monitor.timed("bad"):
        raise RuntimeError
    assert set(monitor.snapshot().stage_ms) == {"good"}


def test_each_fault_is_counted_every_time_and_logged_once_a_minute(clock):
    log: list[str] = []
    monitor = Monitor(log.append, clock=clock)
    for _ in range(200):
        monitor.fault("rgb_unreadable", "set another encoding")
        clock.now += 0.5
    monitor.fault("frame_failed", "something else")
    assert log == [
        "set another encoding",
        "set another encoding (119 more since the last such message)",
        "something else",
    ]
    assert monitor.snapshot().counters == {"rgb_unreadable": 200, "frame_failed": 1}


def test_faults_are_listed_with_their_age_latest_first(clock):
    monitor = Monitor(clock=clock)
    monitor.fault("time_jump", "stamps jumped back")
    monitor.fault("rgb_silent", "no image for 1 s")
    clock.now += 3
    monitor.fault("rgb_silent", "no image for 4 s")
    clock.now += 1
    assert monitor.snapshot().faults == (
        Fault("rgb_silent", "no image for 4 s", 1),
        Fault("time_jump", "stamps jumped back", 4),
    )


def test_counts_from_several_threads_add_up():
    monitor = Monitor()

    def count() -> None:
        for _ in range(2000):
            monitor.count("displaced")
            monitor.fused(1.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.snapshot().counters == {"displaced": 8000, "fused": 8000}
