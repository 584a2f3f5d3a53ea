# SPDX-License-Identifier: AGPL-3.0-only
"""Threads that handle the latest items; a newer waiting item replaces one of its kind."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Lanes", "Worker"]

T = TypeVar("T")


class Worker(Generic[T]):
    """Calls `handle` with the latest items submitted, in a thread of its own.

    One item of each kind can wait, so a slow handler works on recent items instead of falling
    behind. Kinds take turns in the order in which their first item came.

    Args:
        handle: called with each item.
        name: name of the thread.
        failed: called with an exception that `handle` or `at_end` raised.
        at_end: called in the thread after its last item, to free what `handle` used. That is the
            only safe moment if `stop` did not wait until the current item was finished.
    """

    def __init__(
        self,
        handle: Callable[..., Any],
        name: str,
        failed: Callable[[Exception], None],
        at_end: Callable[[], None] = lambda: None,
        *,
        threads: int = 1,
    ) -> None:
        self._handle = handle
        self._failed = failed
        self._at_end = at_end
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, T] = {}
        self._in_hand: dict[int, tuple[Hashable, float]] = {}
        self._stopped = False
        self._running = threads
        # Daemons: a handler that hangs in a driver must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=name, daemon=True)
            for lane in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: T, kind: Hashable = None) -> bool:
        """Hand over an item; return whether a waiting item of the same kind was displaced."""
        with self._changed:
            displaced = kind in self._waiting
            self._waiting[kind] = item
            self._changed.notify_all()
            return displaced

    @property
    def pending(self) -> int:
        """Number of items in progress: those in hand and the waiting ones."""
        with self._changed:
            return len(self._in_hand) + len(self._waiting)

    def pending_of(self, kind: Hashable) -> int:
        """Number of items of one kind in progress."""
        with self._changed:
            in_hand = sum(kind == one for one, _ in self._in_hand.values())
            return in_hand + (kind in self._waiting)

    @property
    def busy_s(self) -> float:
        """How long the oldest item in hand has been worked on, s; 0 if there is none."""
        with self._changed:
            since = [since for _, since in self._in_hand.values()]
            return time.monotonic() - min(since) if since else 0.0

    @property
    def alive(self) -> bool:
        """Whether a thread runs; after `stop` this means that its last item is not finished."""
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until nothing is in progress; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._in_hand and not self._waiting, timeout)

    def clear(self) -> int:
        """Drop the waiting items; return how many there were."""
        with self._changed:
            dropped = len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            return dropped

    def stop(self, timeout: float) -> int:
        """End the thread after the item in hand; return how many waiting items were dropped.

        Waits up to `timeout` seconds. If that is not enough, `alive` is true and the
        thread ends later.
        """
        with self._changed:
            self._stopped = True
        dropped = self.clear()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return dropped

    def _run(self, lane: int) -> None:
        while in_hand := self._next(lane):
            self._work(lane, *in_hand)
        with self._changed:
            self._running -= 1
            last = not self._running
        if last:
            self._call(self._at_end)

    def _next(self, lane: int) -> tuple[T, ...]:
        """Take the next item in hand and return it; nothing at the end."""
        with self._changed:
            self._in_hand.pop(lane, None)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or (self._waiting and self._free(lane)))
            if self._stopped:
                return ()
            kind = next(iter(self._waiting))
            self._in_hand[lane] = (kind, time.monotonic())
            self._took(lane)
            return (self._waiting.pop(kind),)

    def _free(self, lane: int) -> bool:
        """Whether this thread may take an item."""
        return True

    def _took(self, lane: int) -> None:
        """Note that this thread takes an item."""

    def _work(self, lane: int, item: T) -> None:
        self._call(self._handle, item)

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            self._failed(error)


class Lanes(Worker[T]):
    """A worker that can have several items in hand, each in a lane of its own.

    Items start in the order in which they are taken, overlap, and end in that order.

    Args:
        handle: called with an item and its lane, from 0; a generator that yields twice. Up to its
            first `yield` no other item starts; from there to the second one it runs beside the
            others; what follows runs once all items that were taken earlier have ended.
        lanes: greatest number of items in hand.

    Attributes:
        width: number of items in hand from now on, 1 to `lanes`.
    """

    def __init__(
        self,
        handle: Callable[[T, int], Generator[None, None, None]],
        name: str,
        failed: Callable[[Exception], None],
        at_end: Callable[[], None] = lambda: None,
        *,
        lanes: int = 2,
    ) -> None:
        self.width = lanes
        self._starting = False
        self._taken = 0
        self._ended = 0
        self._numbers: dict[int, int] = {}
        super().__init__(handle, name, failed, at_end, threads=lanes)

    def _free(self, lane: int) -> bool:
        # The lowest one: what a lane holds in memory it takes when an item first needs it.
        return not self._starting and lane == self._lowest() and len(self._in_hand) < self.width

    def _lowest(self) -> int:
        return next(lane for lane in itertools.count() if lane not in self._in_hand)

    def _took(self, lane: int) -> None:
        self._starting = True
        self._numbers[lane] = self._taken
        self._taken += 1

    def _work(self, lane: int, item: T) -> None:
        steps: Iterator[None] = iter(())

        def overlap() -> None:
            nonlocal steps
            try:
                steps = self._handle(item, lane)
                next(steps, None)
            finally:
                with self._changed:
                    self._starting = False
                    self._changed.notify_all()
            next(steps, None)

        self._call(overlap)
        with self._changed:
            self._changed.wait_for(lambda: self._ended == self._numbers[lane])
        # A generator that raised has nothing left to do here.
        self._call(next, steps, None)
        with self._changed:
            self._ended += 1
            self._changed.notify_all()
