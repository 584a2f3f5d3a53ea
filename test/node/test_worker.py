# SPDX-License-Identifier: AGPL-3.0-only
"""Worker: one item at a time, and of those that wait the newest."""

from __future__ import annotations

import threading
import time

from fusion_ros.node.worker import Worker


class Gate:
    """A handler that notes its items and is slow on demand."""

    def __init__(self) -> None:
        self.handled: list[int] = []
        self.started, self.go_on = threading.Event(), threading.Event()

    def __call__(self, item: int) -> None:
        self.started.set()
        assert self.go_on.wait(5)
        self.handled.append(item)


def test_the_newest_of_the_waiting_items_wins_and_the_others_are_told():
    gate = Gate()
    worker = Worker(gate, "test", print)
    assert worker.submit(1) is False
    assert gate.started.wait(5)
    assert [worker.submit(item) for item in (2, 3, 4)] == [False, True, True]
    assert worker.pending == 2
    gate.go_on.set()
    while worker.pending:
        time.sleep(0.001)
    assert worker.stop(5) is False
    assert gate.handled == [1, 4]


def test_stopping_ends_the_item_in_hand_and_drops_the_one_that_waits():
    gate = Gate()
    worker = Worker(gate, "test", print)
    worker.submit(1)
    assert gate.started.wait(5)
    worker.submit(2)
    threading.Timer(0.1, gate.go_on.set).start()
    assert worker.stop(5) is True
    assert gate.handled == [1]


def test_a_handler_that_hangs_does_not_keep_stop_from_returning():
    gate = Gate()
    worker = Worker(gate, "test", print)
    worker.submit(1)
    assert gate.started.wait(5)
    assert worker.stop(timeout=0.05) is False
    assert worker.alive
    gate.go_on.set()
    worker.stop(5)
    assert not worker.alive
