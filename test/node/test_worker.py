# SPDX-License-Identifier: AGPL-3.0-only
"""Worker: one item at a time, and of the waiting items of a kind the newest."""

from __future__ import annotations

import threading

import pytest

from fusion_ros.node.worker import Worker

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
