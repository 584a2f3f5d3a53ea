# SPDX-License-Identifier: AGPL-3.0-only
"""Thermal and visible frames find each other by stamp, and every frame is accounted for."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest

from fusion_ros.frame.pairing import Pair, Pairer, StreamCounts

MS = 1_000_000
SECOND = 1000 * MS
THERMAL, VISIBLE = "thermal", "visible"


@dataclass(frozen=True)
class Arrival:
    """A frame on its way: when it arrives, from which camera, and its stamp; all in ns."""

    at: int
    camera: str
    stamp: int


def stream(
    camera: str,
    hz: float,
    *,
    seconds: float = 3.0,
    start: int = 0,
    lag: int = 0,
    jitter: int = 0,
    drop: float = 0.0,
    seed: int = 0,
) -> list[Arrival]:
    """A camera's frames: stamps from `start` on, arriving `lag` ns after they were taken."""
    rng = random.Random(f"{camera}{seed}")
    arrivals = []
    for index in range(int(seconds * hz)):
        stamp = start + round(index * SECOND / hz) + rng.randint(-jitter, jitter)
        if rng.random() >= drop:
            arrivals.append(Arrival(stamp + lag, camera, stamp))
    return arrivals


def assert_counts_add_up(pairer: Pairer) -> None:
    counts = pairer.counts
    for one in (counts.thermal, counts.visible):
        parts = (one.paired, one.too_far, one.missing, one.stale, one.waiting)
        assert one.received == sum(parts), one
        assert min(parts) >= 0, one


def play(pairer: Pairer, *streams: list[Arrival], flush: bool = True) -> list[Pair]:
    """All pairs, in the order of emission; every call leaves the counters right."""
    pairs = []
    for arrival in sorted(itertools.chain(*streams), key=lambda arrival: arrival.at):
        add = pairer.add_thermal if arrival.camera == THERMAL else pairer.add_visible
        pairs += add(arrival.stamp, arrival)
        assert_counts_add_up(pairer)
    if flush:
        pairs += pairer.flush()
        assert_counts_add_up(pairer)
        assert pairer.counts.thermal.waiting == pairer.counts.visible.waiting == 0
    return pairs


def stamps(pairs: list[Pair]) -> list[tuple[int, int]]:
    return [(pair.thermal.stamp_ns, pair.visible.stamp_ns) for pair in pairs]


def nearest_first(
    thermal: list[Arrival], visible: list[Arrival], tolerance: int
) -> list[tuple[int, int]]:
    """Brute force: of all couples take the closest whose frames are free, again and again."""
    couples = sorted((abs(t.stamp - v.stamp), t.stamp, v.stamp) for t in thermal for v in visible)
    free_thermal, free_visible = {t.stamp for t in thermal}, {v.stamp for v in visible}
    pairs = []
    for gap, t, v in couples:
        if gap <= tolerance and t in free_thermal and v in free_visible:
            free_thermal.remove(t)
            free_visible.remove(v)
            pairs.append((t, v))
    return sorted(pairs)


def test_two_frames_with_one_stamp_are_paired_at_once():
    pairer = Pairer(10 * MS)
    assert pairer.add_thermal(5 * SECOND, "t") == []
    (pair,) = pairer.add_visible(5 * SECOND + 3 * MS, "v")
    assert (pair.thermal.item, pair.visible.item) == ("t", "v")
    assert (pair.thermal.stamp_ns, pair.visible.stamp_ns) == (5 * SECOND, 5 * SECOND + 3 * MS)
    assert pairer.counts.thermal == pairer.counts.visible == StreamCounts(received=1, paired=1)


@pytest.mark.parametrize("offset", [0, 5 * MS, -5 * MS])
def test_equal_rates_pair_every_frame(offset):
    pairer = Pairer(10 * MS)
    pairs = play(pairer, stream(THERMAL, 30), stream(VISIBLE, 30, start=offset), flush=False)
    assert len(pairs) == 90
    assert all(v - t == offset for t, v in stamps(pairs))


@pytest.mark.parametrize("camera", [THERMAL, VISIBLE])
@pytest.mark.parametrize("lag", [0, 20 * MS, 50 * MS, 120 * MS])
@pytest.mark.parametrize("start", [0, 7 * MS, 12 * MS, 20 * MS, 26 * MS])
def test_a_slow_transport_does_not_change_the_pairs(camera, lag, start):
    lags = {THERMAL: 0, VISIBLE: 0, camera: lag}
    thermal = stream(THERMAL, 30, lag=lags[THERMAL])
    visible = stream(VISIBLE, 30, start=start, lag=lags[VISIBLE])
    pairs = stamps(play(Pairer(16 * MS), thermal, visible))
    expected = nearest_first(thermal, visible, 16 * MS)
    # What the period is takes two frames to know; nothing but the first pair may differ.
    assert set(expected[2:]) <= set(pairs) and len(pairs) - len(expected) in (-1, 0, 1)


@pytest.mark.parametrize("rates", [(9, 30), (30, 9), (8.7, 29.97), (60, 25), (30, 30), (9, 9)])
@pytest.mark.parametrize("seed", range(8))
def test_pairs_are_those_of_brute_force(rates, seed):
    rng = random.Random(seed)
    thermal_hz, visible_hz = rates
    slow_ms = 1000 / min(rates)
    jitter = 2 * MS
    # Half a period apart both neighbours are as good as each other: leave that corner out.
    start = rng.randint(0, min(10, round(0.3 * 1000 / max(rates)))) * MS
    tolerance = round(min(0.45 * slow_ms, 20) * MS)
    thermal = stream(THERMAL, thermal_hz, jitter=jitter, seed=seed, lag=rng.randint(0, 40) * MS)
    visible = stream(
        VISIBLE, visible_hz, jitter=jitter, seed=seed, start=start, lag=rng.randint(0, 40) * MS
    )
    pairs = stamps(play(Pairer(tolerance, queue_size=20), thermal, visible))
    expected = nearest_first(thermal, visible, tolerance)
    settled = 300 * MS
    ours = {pair for pair in pairs if min(pair) > settled}
    theirs = {pair for pair in expected if min(pair) > settled}
    # A stream's jitter may bring the other neighbour closer than its period let expect.
    assert len(ours ^ theirs) <= max(2, 0.02 * len(theirs)), sorted(ours ^ theirs)
    best = sum(abs(t - v) for t, v in expected) / len(expected)
    assert sum(abs(t - v) for t, v in pairs) / len(pairs) <= 1.05 * best + 0.2 * MS


@pytest.mark.parametrize("seed", range(20))
def test_irregular_frames_pair_closest_first_given_time_to_wait(seed, monkeypatch):
    rng = random.Random(seed)
    taken = rng.sample(range(4000), 120)
    thermal = [Arrival(0, THERMAL, 10 * SECOND + t * MS) for t in sorted(taken[:60])]
    visible = [Arrival(0, VISIBLE, 10 * SECOND + v * MS + 1) for v in sorted(taken[60:])]
    pairer = Pairer(30 * MS, queue_size=1000)
    # No prediction: every decision that another frame could change waits for that frame.
    monkeypatch.setattr(pairer, "_closer_may_come", lambda *args: args[-1] is not None)
    pairs = [pairer.add_thermal(arrival.stamp, None) for arrival in thermal]
    pairs += [pairer.add_visible(arrival.stamp, None) for arrival in visible]
    pairs = stamps([*itertools.chain(*pairs), *pairer.flush()])
    couples = sorted((abs(t.stamp - v.stamp), t.stamp, v.stamp) for t in thermal for v in visible)
    expected: list[tuple[int, int]] = []
    for gap, t, v in couples:
        free = all(t != other_t and v != other_v for other_t, other_v in expected)
        crosses = any((t - other_t) * (v - other_v) < 0 for other_t, other_v in expected)
        if gap <= 30 * MS and free and not crosses:
            expected.append((t, v))
    assert pairs == sorted(expected)


def test_thirty_and_nine_hertz_with_an_offset_pair_every_slow_frame():
    pairer = Pairer(20 * MS, thermal_offset_ns=-2 * SECOND)
    thermal = stream(THERMAL, 9, start=2 * SECOND + 4 * MS, lag=-2 * SECOND)
    pairs = play(pairer, thermal, stream(VISIBLE, 30))
    assert len(pairs) == len(thermal)
    assert all(abs(t - 2 * SECOND - v) <= 17 * MS for t, v in stamps(pairs))
    counts = pairer.counts
    assert counts.thermal.paired == counts.visible.paired == len(thermal)
    # The other visible frames have no partner, since their thermal neighbours are paired.
    assert counts.visible.missing == counts.visible.received - len(thermal)


def test_a_pair_waits_no_longer_than_a_period():
    for thermal_hz, visible_hz, start, lag in itertools.product(
        (9, 30), (9, 30), (0, 9 * MS, 15 * MS, 20 * MS, 29 * MS), (0, 25 * MS, 60 * MS)
    ):
        pairer = Pairer(25 * MS)
        thermal = stream(THERMAL, thermal_hz, jitter=MS, lag=lag)
        visible = stream(VISIBLE, visible_hz, jitter=MS, start=start)
        period = SECOND / min(thermal_hz, visible_hz)
        for arrival in sorted(thermal + visible, key=lambda arrival: arrival.at):
            add = pairer.add_thermal if arrival.camera == THERMAL else pairer.add_visible
            for pair in add(arrival.stamp, arrival):
                there = max(pair.thermal.item.at, pair.visible.item.at)
                assert arrival.at - there <= period + 3 * MS


def test_a_pair_is_returned_when_the_camera_that_could_send_a_closer_frame_falls_silent():
    pairer = Pairer(25 * MS)
    thermal = stream(THERMAL, 30, seconds=1)
    last = thermal[-1].stamp
    visible = stream(VISIBLE, 30, seconds=2, start=20 * MS)
    # The last thermal frame's closer neighbour is lost, so the frame 20 ms after it will do,
    # unless the next thermal frame, expected 13 ms after that, comes.
    visible = [v for v in visible if not last - 20 * MS < v.stamp < last]
    soon = [v for v in visible if v.stamp < last + 60 * MS]
    pairs = stamps(play(pairer, thermal, soon[:-1], flush=False))
    assert pairs[-1][0] < last
    (pair,) = pairer.add_visible(soon[-1].stamp, None)
    assert stamps([pair]) == [(last, last + 20 * MS)]


def test_a_full_queue_returns_the_waiting_pair():
    pairer = Pairer(100 * MS, queue_size=3)
    play(pairer, stream(THERMAL, 9, seconds=1), stream(VISIBLE, 120, seconds=1), flush=False)
    begin = 2 * SECOND
    assert pairer.add_thermal(begin, None) == []
    for wait in (70, 78, 86):
        assert pairer.add_visible(begin + wait * MS, None) == []
    assert stamps(pairer.add_visible(begin + 94 * MS, None)) == [(begin, begin + 70 * MS)]
    assert_counts_add_up(pairer)


def test_frames_of_one_camera_alone_are_counted_as_missing_and_not_kept():
    pairer = Pairer(20 * MS, queue_size=5)
    assert play(pairer, stream(VISIBLE, 30, seconds=10), flush=False) == []
    assert pairer.counts.visible == StreamCounts(received=300, missing=295, waiting=5)
    assert pairer.counts.thermal == StreamCounts()


def test_a_camera_that_comes_back_is_paired_again():
    pairer = Pairer(10 * MS)
    thermal = [t for t in stream(THERMAL, 30, seconds=9) if not SECOND < t.stamp < 6 * SECOND]
    pairs = play(pairer, thermal, stream(VISIBLE, 30, seconds=9))
    assert len(pairs) == len(thermal)
    assert pairer.counts.visible.missing == 270 - len(thermal)


def test_clocks_too_far_apart_are_counted_as_too_far():
    pairer = Pairer(10 * MS)
    assert play(pairer, stream(THERMAL, 30), stream(VISIBLE, 30, start=16 * MS)) == []
    assert pairer.counts.thermal.too_far >= 89 and pairer.counts.visible.too_far >= 89


@pytest.mark.parametrize("ahead", [THERMAL, VISIBLE])
def test_a_clock_ahead_by_seconds_shows_as_too_far_and_stale(ahead):
    behind = VISIBLE if ahead == THERMAL else THERMAL
    pairer = Pairer(10 * MS)
    early = stream(ahead, 30, start=10 * SECOND, lag=-10 * SECOND)
    assert play(pairer, early, stream(behind, 30)) == []
    assert getattr(pairer.counts, ahead).too_far > 70
    other = getattr(pairer.counts, behind)
    assert other.stale + other.too_far > 70


def test_a_constant_clock_offset_is_removed_by_the_parameter():
    pairer = Pairer(10 * MS, thermal_offset_ns=10 * SECOND + 4 * MS)
    visible = stream(VISIBLE, 30, start=10 * SECOND, lag=-10 * SECOND)
    pairs = play(pairer, stream(THERMAL, 30), visible)
    assert len(pairs) == 90
    # Frames keep the stamps that their camera gave them.
    assert stamps(pairs)[0] == (0, 10 * SECOND)


def test_the_offset_can_be_corrected_while_running():
    pairer = Pairer(10 * MS)
    thermal = stream(THERMAL, 30, seconds=6, start=7 * SECOND, lag=-7 * SECOND)
    visible = stream(VISIBLE, 30, seconds=6)
    half = 3 * SECOND
    before = [arrival for arrival in thermal + visible if arrival.at < half]
    assert play(pairer, before, flush=False) == []
    pairer.thermal_offset_ns = -7 * SECOND
    assert_counts_add_up(pairer)
    stale = pairer.counts.visible.stale
    thermal = [t for t in thermal if t.at >= half][6::2]
    assert len(play(pairer, thermal, [v for v in visible if v.at >= half])) >= 41
    # Under the new offset the thermal frames decided before are not ahead of the visible ones.
    assert pairer.counts.visible.stale == stale


def test_the_tolerance_can_be_changed_while_running():
    pairer = Pairer(MS)
    assert play(pairer, stream(THERMAL, 10), stream(VISIBLE, 10, start=5 * MS), flush=False) == []
    pairer.tolerance_ns = 8 * MS
    late = 10 * SECOND
    pairs = play(pairer, stream(THERMAL, 10, start=late), stream(VISIBLE, 10, start=late + 5 * MS))
    assert len(pairs) == 30


@pytest.mark.parametrize("length", [0.4, 3.0])
def test_pairs_survive_a_bag_that_loops(length):
    pairer = Pairer(10 * MS)
    pairs = []
    for _ in range(4):
        thermal = stream(THERMAL, 30, seconds=length, start=100 * SECOND, lag=9 * MS)
        visible = stream(VISIBLE, 30, seconds=length, start=100 * SECOND + 3 * MS)
        pairs.append(len(play(pairer, thermal, visible, flush=False)))
    assert pairer.counts.resets == 3
    assert all(count >= 30 * length - 3 for count in pairs), pairs
    # Each round drops what waits at its end, not more.
    assert pairer.counts.thermal.stale + pairer.counts.visible.stale <= 12


def test_both_cameras_jumping_back_is_one_reset():
    pairer = Pairer(10 * MS)
    before = stream(THERMAL, 30, start=50 * SECOND) + stream(VISIBLE, 30, start=50 * SECOND)
    play(pairer, before, flush=False)
    thermal, visible = stream(THERMAL, 30), stream(VISIBLE, 30, lag=150 * MS)
    assert len(play(pairer, thermal, visible)) == 90
    assert pairer.counts.resets == 1


def test_a_camera_that_restarts_its_clock_does_not_stall_the_other():
    pairer = Pairer(10 * MS)
    before = stream(THERMAL, 30, start=50 * SECOND) + stream(VISIBLE, 30, start=50 * SECOND)
    play(pairer, before, flush=False)
    play(pairer, stream(THERMAL, 30, seconds=2), flush=False)
    both = (stream(THERMAL, 30, start=60 * SECOND), stream(VISIBLE, 30, start=60 * SECOND))
    assert len(play(pairer, *both)) >= 88


def test_a_single_frame_out_of_order_is_only_stale():
    pairer = Pairer(10 * MS)
    play(pairer, stream(THERMAL, 30, seconds=1), stream(VISIBLE, 30, seconds=1), flush=False)
    assert pairer.add_thermal(800 * MS, "late") == []
    assert pairer.counts.thermal.stale == 1 and pairer.counts.resets == 0
    more = (stream(THERMAL, 30, start=SECOND), stream(VISIBLE, 30, start=SECOND))
    assert len(play(pairer, *more)) == 90


def test_all_duplicates_are_stale():
    pairer = Pairer(10 * MS)
    for _ in range(20):
        pairer.add_thermal(SECOND, "t")
        pairer.add_visible(SECOND, "v")
    assert pairer.counts.thermal == StreamCounts(received=20, paired=1, stale=19)
    assert pairer.counts.resets == 0


def test_one_stamp_from_the_far_future_does_not_end_pairing():
    pairer = Pairer(10 * MS)
    play(pairer, stream(THERMAL, 30, seconds=1), stream(VISIBLE, 30, seconds=1), flush=False)
    pairer.add_visible(10**6 * SECOND, "glitch")
    more = (stream(THERMAL, 30, start=SECOND), stream(VISIBLE, 30, start=SECOND))
    assert len(play(pairer, *more)) >= 88


def test_a_slower_stream_is_reused_if_the_setting_is_on():
    pairer = Pairer(60 * MS, queue_size=10, reuse_slower=True)
    thermal, visible = stream(THERMAL, 9, seconds=5), stream(VISIBLE, 30, seconds=5)
    pairs = stamps(play(pairer, thermal, visible))
    used = [v for _, v in pairs]
    assert used == sorted(set(used)) and len(used) >= 0.97 * len(visible)
    nearest = {v.stamp: min(thermal, key=lambda t: abs(t.stamp - v.stamp)).stamp for v in visible}
    settled = [(t, v) for t, v in pairs if v > SECOND]
    gaps = [(abs(t - v), abs(nearest[v] - v)) for t, v in settled]
    assert all(ours == best for ours, best in gaps)
    counts = pairer.counts
    assert counts.visible.paired == len(pairs)
    # A frame that is reused is still one frame.
    assert counts.thermal.paired == len({t for t, _ in pairs}) >= len(thermal) - 1


def test_reuse_ends_with_the_slower_camera():
    pairer = Pairer(60 * MS, reuse_slower=True)
    pairs = play(pairer, stream(THERMAL, 9, seconds=2), stream(VISIBLE, 30, seconds=6))
    assert max(v for _, v in stamps(pairs)) < 2 * SECOND + 60 * MS
    assert pairer.counts.visible.missing > 100


def test_reuse_can_be_switched_on_and_off_while_running():
    pairer = Pairer(60 * MS)
    seen = []
    for i in range(6):
        pairer.reuse_slower = bool(i % 2)
        begin = i * 2 * SECOND
        thermal = stream(THERMAL, 9, seconds=2, start=begin)
        visible = stream(VISIBLE, 30, seconds=2, start=begin)
        seen.append(len(play(pairer, thermal, visible, flush=False)))
    assert max(seen[0::2]) < 22 and min(seen[1::2]) > 50
    pairer.flush()
    assert_counts_add_up(pairer)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_every_frame_is_counted_exactly_once(seed, reuse):
    rng = random.Random(seed)
    pairer = Pairer(
        rng.choice([0, 5, 20, 60]) * MS,
        queue_size=rng.choice([1, 2, 10]),
        thermal_offset_ns=rng.choice([0, -37 * MS, 5 * SECOND]),
        reuse_slower=reuse,
    )
    received = {THERMAL: 0, VISIBLE: 0}
    clock = {THERMAL: 0, VISIBLE: rng.randint(0, 50) * MS}
    period = {camera: SECOND // rng.choice([9, 25, 30, 60]) for camera in received}
    silent: str | None = None
    pairs: list[Pair] = []
    resets = 0
    for _ in range(600):
        camera = min(clock, key=clock.__getitem__)
        event = rng.random()
        clock[camera] += period[camera]
        if event < 0.01:
            silent = rng.choice([None, THERMAL, VISIBLE])
        elif event < 0.02:
            clock = {each: time - rng.randint(1, 5) * SECOND for each, time in clock.items()}
        elif event < 0.025:
            clock[camera] += rng.choice([-3, -0.2, 2, 100]) * SECOND
            clock[camera] = int(clock[camera])
        elif event < 0.03:
            pairer.thermal_offset_ns += rng.randint(-100, 100) * MS
        elif event < 0.035:
            pairer.reuse_slower = not pairer.reuse_slower
        elif event < 0.04:
            pairer.tolerance_ns = rng.randint(0, 80) * MS
        elif event < 0.042:
            pairs += pairer.flush()
        if camera == silent or event > 0.9:
            continue
        add = pairer.add_thermal if camera == THERMAL else pairer.add_visible
        stamp = clock[camera] + rng.randint(-3, 3) * MS
        for _ in range(2 if 0.88 < event else 1):
            received[camera] += 1
            new = add(stamp, (camera, received[camera]))
            for pair in new:
                gap = pair.thermal.stamp_ns + pairer.thermal_offset_ns - pair.visible.stamp_ns
                assert abs(gap) <= pairer.tolerance_ns
            pairs += new
            assert_counts_add_up(pairer)
        counts = pairer.counts
        assert counts.thermal.received == received[THERMAL]
        assert counts.visible.received == received[VISIBLE]
        bound = pairer.queue_size * (pairer.queue_size + 1)
        assert max(counts.thermal.waiting, counts.visible.waiting) <= bound
        assert counts.resets >= resets
        resets = counts.resets
    pairs += pairer.flush()
    assert_counts_add_up(pairer)
    counts = pairer.counts
    # Frames leave in the order they came, each at most once unless it may be reused.
    for name, paired in ((THERMAL, counts.thermal.paired), (VISIBLE, counts.visible.paired)):
        serials = [getattr(pair, name).item[1] for pair in pairs]
        assert serials == sorted(serials)
        assert len(set(serials)) == paired
    used = {(pair.thermal.item[1], pair.visible.item[1]) for pair in pairs}
    assert len(used) == len(pairs)
    # After any of these events, two regular streams are paired again soon.
    pairer.reuse_slower = False
    pairer.tolerance_ns, pairer.thermal_offset_ns = 10 * MS, 0
    begin = 10**5 * SECOND
    healthy = (stream(THERMAL, 30, start=begin), stream(VISIBLE, 30, start=begin))
    assert len(play(pairer, *healthy)) >= 88


def test_without_reuse_no_frame_is_in_two_pairs():
    pairer = Pairer(60 * MS)
    pairs = play(pairer, stream(THERMAL, 9, jitter=5 * MS), stream(VISIBLE, 30, jitter=5 * MS))
    for column in zip(*stamps(pairs)):
        assert len(set(column)) == len(column)


def test_flush_pairs_the_waiting_frames():
    pairer = Pairer(25 * MS)
    play(pairer, stream(THERMAL, 30, seconds=1), stream(VISIBLE, 30, seconds=1), flush=False)
    assert pairer.add_thermal(2 * SECOND, "t") == []
    assert pairer.add_visible(2 * SECOND + 20 * MS, "v") == []
    assert stamps(pairer.flush()) == [(2 * SECOND, 2 * SECOND + 20 * MS)]
    assert pairer.flush() == []


def test_counts_are_a_copy():
    pairer = Pairer(10 * MS)
    before = pairer.counts
    pairer.add_thermal(0, None)
    assert before.thermal.received == 0 and pairer.counts.thermal.received == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tolerance_ns": -1}, "tolerance_ns is -1, expected 0 or more"),
        ({"tolerance_ns": 1, "queue_size": 0}, "queue_size is 0, expected at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Pairer(**settings)


def test_a_long_stream_of_pairs_leaves_the_queues_short():
    pairer = Pairer(16 * MS)
    frames = sorted(
        stream(THERMAL, 30, seconds=30) + stream(VISIBLE, 30, seconds=30, start=12 * MS),
        key=lambda arrival: arrival.at,
    )
    for arrival in frames:
        add = pairer.add_thermal if arrival.camera == THERMAL else pairer.add_visible
        add(arrival.stamp, None)
        assert pairer.counts.thermal.waiting <= 2
        assert pairer.counts.visible.waiting <= 2
