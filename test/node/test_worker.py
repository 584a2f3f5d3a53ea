# SPDX-License-Identifier: AGPL-3.0-only
"""Worker and Lanes: items in hand, and of the waiting items of a kind the newest."""

from __future__ import annotations

import threading

import pytest

from fusion_ros.node.worker import Lanes, Worker

PATIENCE_S = 30


class Gate:
    """A handler that notes its items and waits until it may go on."""

    def __init__(self) -> None:
        self.handled: list[int] = []
        self.failures: list[Exception] = []
        self.started, self.go_on, self.ended = (threading.Event() for _ in range(3))

    def __call__(self, item: int) -> None:
        self.started.set()
        assert self.go_on.wait(PATIENCE_S)
        if item < 0:
            raise ValueError(f"item {item}")
        self.handled.append(item)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.go_on.set()


@pytest.fixture
def worker(gate):
    return Worker(gate, "test", gate.failures.append, gate.ended.set)


def test_a_new_item_displaces_the_waiting_one(gate, worker):
    assert worker.submit(1) is False
    assert gate.started.wait(PATIENCE_S)
    assert [worker.submit(item) for item in (2, 3, 4)] == [False, True, True]
    assert worker.pending == 2
    gate.go_on.set()
    assert worker.wait(PATIENCE_S)
    assert worker.pending == 0
    assert worker.stop(PATIENCE_S) == 0
    assert gate.handled == [1, 4]


def test_clear_drops_the_waiting_item_and_keeps_the_current_one(gate, worker):
    worker.submit(1)
    assert gate.started.wait(PATIENCE_S)
    worker.submit(2)
    assert (worker.clear(), worker.clear()) == (1, 0)
    assert worker.wait(0.001) is False
    gate.go_on.set()
    assert worker.wait(PATIENCE_S)
    assert gate.handled == [1]


def test_stop_finishes_the_current_item_and_drops_the_waiting_one(gate, worker):
    worker.submit(1)
    assert gate.started.wait(PATIENCE_S)
    worker.submit(2)
    gate.go_on.set()
    assert worker.stop(PATIENCE_S) in (0, 1)  # the second may have begun
    assert not worker.alive
    assert gate.handled[0] == 1


def test_stop_returns_while_a_handler_hangs_and_the_end_follows_the_handler(gate, worker):
    worker.submit(1)
    assert gate.started.wait(PATIENCE_S)
    assert worker.stop(timeout=0.01) == 0
    assert worker.alive
    assert not gate.ended.is_set()
    gate.go_on.set()
    assert gate.ended.wait(PATIENCE_S)
    assert gate.handled == [1]


def test_an_exception_costs_its_item_only(gate, worker):
    gate.go_on.set()
    worker.submit(-1)
    assert worker.wait(PATIENCE_S)
    worker.submit(2)
    assert worker.wait(PATIENCE_S)
    assert [str(error) for error in gate.failures] == ["item -1"]
    assert gate.handled == [2]


def test_an_exception_at_the_end_is_reported(gate):
    def fail() -> None:
        raise OSError("no device")

    worker = Worker(gate, "test", gate.failures.append, fail)
    worker.stop(PATIENCE_S)
    assert [str(error) for error in gate.failures] == ["no device"]


def test_items_of_each_kind_wait_and_take_turns(gate, worker):
    worker.submit(1, "image")
    assert gate.started.wait(PATIENCE_S)
    assert [worker.submit(*item) for item in ((2, "boxes"), (3, "image"))] == [False, False]
    assert worker.submit(4, "boxes") is True
    assert [worker.pending_of(kind) for kind in ("image", "boxes", "others")] == [2, 1, 0]
    gate.go_on.set()
    assert worker.wait(PATIENCE_S)
    assert gate.handled == [1, 4, 3]


def test_the_time_of_the_item_in_hand_is_known(gate, worker):
    assert worker.busy_s == 0
    worker.submit(1)
    assert gate.started.wait(PATIENCE_S)
    assert worker.busy_s > 0
    gate.go_on.set()
    assert worker.wait(PATIENCE_S)
    assert worker.busy_s == 0


class Steps:
    """A handler for `Lanes` that notes each part of an item and waits in the middle one."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failures: list[Exception] = []
        self.lanes: dict[int, int] = {}
        self._changed = threading.Condition()
        self._allowed: set[int] = set()
        self.freed = threading.Event()

    def __call__(self, item: int, lane: int):
        self.lanes[item] = lane
        self._note(f"begin {item}")
        yield
        with self._changed:
            assert self._changed.wait_for(lambda: item in self._allowed, PATIENCE_S)
        if item < 0:
            raise ValueError(f"item {item}")
        self._note(f"middle {item}")
        yield
        self._note(f"end {item}")

    def allow(self, *items: int) -> None:
        with self._changed:
            self._allowed.update(items)
            self._changed.notify_all()

    def _note(self, text: str) -> None:
        with self._changed:
            self.log.append(text)
            self._changed.notify_all()

    def wait(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.log, PATIENCE_S), self.log


@pytest.fixture
def steps():
    steps = Steps()
    yield steps
    steps.allow(*range(-9, 10))


@pytest.fixture
def lanes(steps):
    lanes = Lanes(steps, "test", steps.failures.append, steps.freed.set)
    yield lanes
    lanes.stop(0)


def submit_two(lanes, steps, first=1, second=2):
    for item in (first, second):
        lanes.submit(item)
        steps.wait(f"begin {item}")


def test_two_items_overlap_in_lanes_of_their_own(lanes, steps):
    submit_two(lanes, steps)
    assert lanes.pending == 2
    assert sorted(steps.lanes.values()) == [0, 1]
    steps.allow(1, 2)
    assert lanes.wait(PATIENCE_S)


def test_items_end_in_the_order_in_which_they_were_taken(lanes, steps):
    submit_two(lanes, steps)
    steps.allow(2)
    steps.wait("middle 2")
    assert "end 2" not in steps.log
    steps.allow(1)
    assert lanes.wait(PATIENCE_S)
    assert [text for text in steps.log if "end" in text] == ["end 1", "end 2"]


def test_a_third_item_waits_for_a_lane_and_gives_way_to_a_fourth(lanes, steps):
    submit_two(lanes, steps)
    assert [lanes.submit(3), lanes.submit(4)] == [False, True]
    steps.allow(1, 2, 4)
    assert lanes.wait(PATIENCE_S)
    assert "begin 3" not in steps.log
    assert "end 4" in steps.log


def test_an_item_that_fails_is_reported_and_holds_no_other_up(lanes, steps):
    submit_two(lanes, steps, -1, 2)
    steps.allow(2, -1)
    assert lanes.wait(PATIENCE_S)
    assert [str(error) for error in steps.failures] == ["item -1"]
    assert "end 2" in steps.log


def test_with_a_width_of_one_items_follow_each_other(lanes, steps):
    lanes.width = 1
    lanes.submit(1)
    steps.wait("begin 1")
    lanes.submit(2)
    steps.allow(1, 2)
    assert lanes.wait(PATIENCE_S)
    assert steps.log == [f"{part} {n}" for n in (1, 2) for part in ("begin", "middle", "end")]


def test_items_that_do_not_overlap_all_go_to_the_first_lane(lanes, steps):
    """So that the second one takes no memory before it is needed."""
    items = range(1, 10)
    steps.allow(*items)
    for item in items:
        lanes.submit(item)
        assert lanes.wait(PATIENCE_S)
    assert [steps.lanes[item] for item in items] == [0] * len(items)


def test_what_the_lanes_used_is_freed_after_the_last_of_them(lanes, steps):
    submit_two(lanes, steps)
    assert lanes.stop(0.0) == 0
    steps.allow(1)
    steps.wait("end 1")
    assert not steps.freed.is_set()
    assert lanes.alive
    steps.allow(2)
    assert steps.freed.wait(PATIENCE_S)
    assert steps.log[-1] == "end 2"
