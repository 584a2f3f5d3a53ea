# SPDX-License-Identifier: AGPL-3.0-only
"""A thread that handles one item at a time; a newer waiting item replaces one of its kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Worker"]

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
        handle: Callable[[T], None],
        name: str,
        failed: Callable[[Exception], None],
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._handle = handle
        self._failed = failed
        self._at_end = at_end
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, T] = {}
        self._kind: Hashable = None
        self._busy_since: float | None = None
        self._stopped = False
        # A daemon: a handler that hangs in a driver must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T, kind: Hashable = None) -> bool:
        """Hand over an item; return whether a waiting item of the same kind was displaced."""
        with self._changed:
            displaced = kind in self._waiting
            self._waiting[kind] = item
            self._changed.notify_all()
            return displaced

    @property
    def pending(self) -> int:
        """Number of items in progress: the one in hand and the waiting ones."""
        with self._changed:
            return (self._busy_since is not None) + len(self._waiting)

    def pending_of(self, kind: Hashable) -> int:
        """Number of items of one kind in progress."""
        with self._changed:
            in_hand = self._busy_since is not None and self._kind == kind
            return in_hand + (kind in self._waiting)

    @property
    def busy_s(self) -> float:
        """How long the item in hand has been worked on, s; 0 if there is none."""
        with self._changed:
            return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    @property
    def alive(self) -> bool:
        """Whether the thread runs; after `stop` this means that its last item is not finished."""
        return self._thread.is_alive()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until nothing is in progress; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._busy_since is None and not self._waiting, timeout
            )

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
        self._thread.join(timeout)
        return dropped

    def _run(self) -> None:
        while in_hand := self._next():
            self._call(self._handle, *in_hand)
        self._call(self._at_end)

    def _next(self) -> tuple[T, ...]:
        """Take the next item in hand and return it; nothing at the end."""
        with self._changed:
            self._busy_since = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._waiting)
            if self._stopped:
                return ()
            self._kind = next(iter(self._waiting))
            self._busy_since = time.monotonic()
            return (self._waiting.pop(self._kind),)

    def _call(self, function: Callable[..., None], *args: T) -> None:
        try:
            function(*args)
        except Exception as error:
            self._failed(error)
