# SPDX-License-Identifier: AGPL-3.0-only
"""The size that `processing_size: auto` chooses, on a made-up clock and a made-up machine."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from fusion_ros.frame.pace import Pace, Shares, sizes_for


@dataclass
class Frame:
    """A frame in hand.

    left: work left, s; came: when, s; parts: of the network and of the search in its work; begun:
    what `Shares` gave for it.
    """

    left: float
    came: float
    size: int
    parts: tuple[float, float]
    begun: float


@dataclass
class Machine:
    """Cameras, a worker with room for one waiting pair, and the pace, one second after another.

    A frame takes `rest` s and, for each million pixels of a square image, `network` s, both times
    `load`. `lanes` of them can be in hand; two at a time make the machine `gain` times as fast. A
    change of size takes effect `loading` s after it was decided. Pairs come up to `jitter` s late.
    """

    longest: int = 640
    network: float = 0.2
    rest: float = 0.006
    rate: float = 30.0
    least: int = 160
    target_rate: float = 0.0
    start: int = 320
    noise: float = 0.0
    loading: float = 0.1
    search: float = 0.0
    load: float = 1.0
    lanes: int = 1
    gain: float = 1.18
    jitter: float = 0.0
    now: float = 100.0
    changes: list[tuple[float, int]] = field(default_factory=list)
    sent: int = 0
    fused: int = 0
    lost: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace(self.start, self.least, self.target_rate, clock=lambda: self.now)
        self.pace.lanes = self.lanes
        self.pace.images(self.longest)
        self.size = self.start
        self._shares = Shares(clock=lambda: self.now)
        self._random = random.Random(0)
        self._in_hand: list[Frame] = []
        self._waiting: float | None = None
        self._next_look = self.now
        self._next_pair = self._camera = self.now
        self._arrives: tuple[float, int] | None = None

    def run(self, seconds: float) -> Machine:
        """Let time pass; counters are of this time only."""
        self.sent = self.fused = self.lost = 0
        self.latencies: list[float] = []
        until = self.now + seconds
        while True:
            # Two frames in hand share the machine, which then does more in all.
            speed = (1.0 if len(self._in_hand) < 2 else self.gain) / max(1, len(self._in_hand))
            first = min(self._in_hand, key=lambda frame: frame.left, default=None)
            events = [self._next_pair, self._next_look, until]
            events += [t for t in (self._arrives and self._arrives[0],) if t]
            end = self.now + first.left / speed if first else float("inf")
            passed = min(*events, end) - self.now
            for frame in self._in_hand:
                frame.left -= passed * speed
            self.now += passed
            if self.now >= until:
                return self
            if end <= min(events):
                self._finish(first)
            elif self._arrives and self.now == self._arrives[0]:
                self.size, self._arrives = self._arrives[1], None
            elif self.now >= self._next_pair:
                self._pair()
            else:
                self._look()

    def _pair(self) -> None:
        self.pace.pair(round(1e9 * self._camera))
        self.sent += 1
        self._camera += 1 / self.rate
        late = self._random.uniform(0, self.jitter) if self.jitter else 0.0
        self._next_pair = max(self.now, self._camera + late)
        if self._waiting is not None:
            self.lost += 1
            self.pace.lost()
        self._waiting = self.now
        self._begin()

    def _begin(self) -> None:
        if self._waiting is None or len(self._in_hand) >= self.lanes:
            return
        pixels = min(self.size or self.longest, self.longest) ** 2
        slow = self.load * self._random.uniform(1 - self.noise, 1 + self.noise)
        network = slow * self.network * 1e-6 * pixels
        work = network + slow * self.rest + self.search
        parts = (network / work, self.search / work)
        frame = Frame(work, self._waiting, self.size, parts, self._shares.begin())
        self._in_hand.append(frame)
        self._waiting = None

    def _finish(self, frame: Frame) -> None:
        self._in_hand.remove(frame)
        self.fused += 1
        self.latencies.append(self.now - frame.came)
        busy = self._shares.end(frame.begun)
        self.pace.frame(frame.size, busy, *(busy * part for part in frame.parts))
        self._begin()

    def _look(self) -> None:
        self._next_look += 0.25
        change = self.pace.decide()
        if change:
            self.changes.append((self.now, change.size))
            self._arrives = (self.now + self.loading, change.size)

    @property
    def share(self) -> float:
        """Share of the time between two pairs that a frame takes at the present size."""
        pixels = min(self.size or self.longest, self.longest) ** 2
        return self.load * (self.rest + self.network * 1e-6 * pixels) * self.rate


def test_a_machine_with_time_goes_to_full_size_and_stays_there():
    machine = Machine(network=0.03).run(60)
    assert machine.size == 0
    assert len(machine.changes) == 1
    assert machine.run(60).lost == 0


def test_a_gpu_that_is_fast_enough_never_leaves_full_size():
    machine = Machine(network=0.02, rate=60.0, start=0).run(60)
    assert machine.changes == []
    assert machine.pace.state().limit == "nothing"


@pytest.mark.parametrize("network", [0.1, 0.2, 0.4, 0.8])
@pytest.mark.parametrize("rate", [10.0, 30.0])
@pytest.mark.parametrize("start", [0, 320])
def test_it_settles_at_a_size_that_holds_the_rate_and_is_not_much_too_small(network, rate, start):
    machine = Machine(network=network, rate=rate, start=start, noise=0.1).run(20)
    settled = len(machine.changes)
    machine.run(60)
    assert len(machine.changes) == settled
    assert machine.lost <= 0.05 * machine.sent
    assert machine.fused >= 0.95 * machine.sent
    # Two steps more would be too much.
    sizes = sizes_for(640, 160)
    place = sizes.index(machine.size)
    if place > 1:
        larger = sizes[place - 2] or 640
        assert rate * (machine.rest + network * 1e-6 * larger**2) > 0.7


def test_it_follows_load_down_and_comes_back_when_that_ends():
    machine = Machine(noise=0.1).run(30)
    before = machine.size
    machine.load = 2.0
    machine.run(10)
    assert 0 < machine.size < before
    assert machine.run(20).lost <= 0.05 * machine.sent
    machine.load = 1.0
    machine.run(20)
    sizes = sizes_for(640, 160)
    assert sizes.index(machine.size) - sizes.index(before) in (0, 1)


def test_it_does_not_oscillate_where_a_size_costs_more_than_its_pixels_suggest():
    machine = Machine(noise=0.15)
    honest = machine._begin

    def steep() -> None:
        machine.load = 1.6 if machine.size == 0 or machine.size > 320 else 1.0
        honest()

    machine._begin = steep
    machine.run(200)
    assert len(machine.changes) <= 9
    assert machine.run(150).lost <= 0.05 * machine.sent
    assert len(machine.changes) <= 11


def test_load_that_comes_and_goes_causes_at_most_one_change_in_five_seconds_once_settled():
    machine = Machine(noise=0.2).run(15)
    del machine.changes[:]
    for second in range(120):
        machine.load = 1.0 + (second % 3)
        machine.run(1)
    times = [at for at, _ in machine.changes]
    assert all(b - a >= 5 for a, b in zip(times, times[1:]))


@pytest.mark.parametrize("least", [160, 256])
def test_it_never_goes_below_the_least_size(least):
    machine = Machine(network=5.0, least=least).run(30)
    assert machine.size == least
    assert machine.pace.state().limit == "network"
    assert min(size for _, size in machine.changes) == least


def test_the_least_size_may_be_above_the_images_size():
    machine = Machine(network=5.0, longest=320, least=400).run(30)
    assert machine.changes == []


def test_a_lower_target_rate_gives_larger_images():
    at_cameras_rate = Machine(network=0.4).run(30)
    at_ten = Machine(network=0.4, target_rate=10.0).run(30)
    assert at_ten.size == 0 or at_ten.size > at_cameras_rate.size
    assert at_ten.fused >= 10 * 30 - 40
    assert at_ten.pace.state().wanted_fps == pytest.approx(10)


def test_a_target_rate_above_the_cameras_changes_nothing():
    assert Machine(target_rate=100.0).run(30).size == Machine().run(30).size


def test_a_change_loses_no_pair_where_there_is_time_before_and_after():
    machine = Machine(network=0.03, loading=3.0).run(30)
    assert machine.changes
    assert machine.lost == 0
    assert machine.sent - machine.fused <= 1


def test_jitter_that_loses_pairs_counts_as_too_large():
    machine = Machine(noise=0.75).run(60)
    calm = Machine(noise=0.0).run(60)
    assert machine.size < calm.size
    assert machine.run(60).lost <= 0.06 * machine.sent


def test_a_size_that_cannot_be_loaded_is_not_asked_for_again():
    machine = Machine(network=0.03)
    asked = []
    for _ in range(80):
        machine.now += 1 / 30
        machine.pace.pair(round(1e9 * machine.now))
        machine.pace.frame(320, 0.005, 0.003)
        if change := machine.pace.decide():
            asked.append(change.size)
            machine.pace.refuse(change.size)
    assert asked[0] == 0
    assert len(asked) == len(set(asked))


def test_another_network_is_measured_from_the_start():
    machine = Machine(network=0.03).run(20)
    machine.network = 0.4
    machine.pace.use(machine.size)
    machine.run(20)
    assert 0 < machine.size < 320


def test_pairs_that_never_arrive_at_a_busy_node_count_as_the_cameras_rate():
    now = 10.0
    pace = Pace(320, 160, clock=lambda: now)
    pace.images(640)
    for number in range(120):
        now = 10.0 + number / 30
        if number % 4 != 1:
            pace.pair(round(1e9 * now))
    assert pace.state().wanted_fps == pytest.approx(30, rel=0.05)


def test_a_bag_at_half_speed_counts_by_the_time_that_passes():
    now = 10.0
    pace = Pace(320, 160, clock=lambda: now)
    for number in range(60):
        now = 10.0 + number / 15
        pace.pair(round(1e9 * number / 30))
    assert pace.state().wanted_fps == pytest.approx(15, rel=0.05)


def test_the_sizes_ahead_are_those_that_the_next_change_may_ask_for():
    machine = Machine(network=0.02, start=0).run(20)
    assert machine.pace.neighbours() == []
    machine = Machine().run(20)
    sizes = sizes_for(640, 160)
    assert {abs(sizes.index(s) - sizes.index(machine.size)) for s in machine.pace.neighbours()} <= {
        1
    }
    before = machine.size
    machine.load = 1.15
    machine.run(4)
    ahead = machine.pace.neighbours()
    assert sizes[sizes.index(before) + 1] in ahead or machine.size != before


@pytest.mark.parametrize(
    ("search", "rest", "limit"),
    [(0.0, 0.004, "network"), (0.03, 0.004, "detector"), (0.0, 0.03, "conversion and publishing")],
)
def test_it_names_what_takes_the_time(search, rest, limit):
    machine = Machine(network=0.5, search=search, rest=rest).run(20)
    assert machine.pace.state().limit == limit


def test_the_reason_of_a_change_names_the_times():
    machine = Machine(start=0, network=0.4)
    for _ in range(60):
        machine.now += 1 / 30
        machine.pace.pair(round(1e9 * machine.now))
        machine.pace.frame(0, 0.16, 0.15)
        change = machine.pace.decide()
        if change:
            break
    assert change.reason == f"fusing at {change.size} px from now on: a frame takes 160 of 33 ms"


@pytest.mark.parametrize("network", [0.25, 0.6, 0.8])
def test_two_frames_at_a_time_give_no_smaller_images_and_lose_no_more(network):
    one, two = (
        Machine(network=network, noise=0.7, jitter=0.008, lanes=lanes).run(30) for lanes in (1, 2)
    )
    assert two.size >= one.size
    assert two.run(60).lost <= one.run(60).lost
    assert two.lost <= 0.01 * two.sent


def test_at_the_least_size_two_frames_at_a_time_hold_a_rate_that_one_does_not():
    one, two = (Machine(network=1.1, noise=0.7, jitter=0.008, lanes=n).run(90) for n in (1, 2))
    assert one.size == two.size == 160
    assert one.lost > 0.05 * one.sent
    assert two.lost < 0.05 * two.sent
    periods = [seconds * two.rate for seconds in sorted(two.latencies)]
    assert periods[len(periods) // 2] < 2
    assert periods[len(periods) * 95 // 100] < 4


def test_frames_in_hand_share_the_time_and_add_up_to_it():
    now = [10.0]
    shares = Shares(clock=lambda: now[0])
    first = shares.begin()
    now[0] += 3
    second = shares.begin()
    now[0] += 2
    assert shares.end(first) == pytest.approx(3 + 1)
    now[0] += 4
    assert shares.end(second) == pytest.approx(1 + 4)
    now[0] += 7  # nothing in hand
    third = shares.begin()
    now[0] += 1
    assert shares.end(third) == pytest.approx(1)
