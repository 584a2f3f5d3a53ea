# SPDX-License-Identifier: AGPL-3.0-only
"""A thread that handles one item at a time; of the items that wait for it, the newest wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker(Generic[T]):
    """Calls `handle` with what was submitted last, in a thread of its own.

    There is room for one waiting item, so a slow handler works on what is new instead of falling
    behind. `handle` deals with its own errors.
    """

    def __init__(self, handle: Callable[[T], None], name: str) -> None:
        self._handle = handle
        self._changed = threading.Condition()
        self._waiting: T | None = None
        self._busy = False
        self._stopped = False
        # A daemon: a handler that hangs in a driver must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T) -> bool:
        """Hand over an item, not None; True if it displaced another one."""
        with self._changed:
            displaced = self._waiting is not None
            self._waiting = item
            self._changed.notify()
            return displaced

    @property
    def pending(self) -> int:
        """Items not done with: the one in hand and the one that waits."""
        with self._changed:
            return self._busy + (self._waiting is not None)

    @property
    def alive(self) -> bool:
        """Whether the thread still runs: after `stop`, that the item in hand took too long."""
        return self._thread.is_alive()

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread once the item in hand is done; True if another one was waiting.

        Waits for that, or at most `timeout` seconds.
        """
        with self._changed:
            self._stopped = True
            dropped = self._waiting is not None
            self._waiting = None
            self._changed.notify()
        self._thread.join(timeout)
        return dropped

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.wait_for(lambda: self._stopped or self._waiting is not None)
                if self._stopped:
                    return
                item, self._waiting, self._busy = self._waiting, None, True
            self._handle(item)
