# SPDX-License-Identifier: AGPL-3.0-only
"""A thread that handles one item at a time; a newer waiting item replaces an older one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker(Generic[T]):
    """Calls `handle` with the latest item submitted, in a thread of its own.

    One item can wait, so a slow handler works on recent items instead of falling behind.

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
        self._waiting: T | None = None
        self._busy = False
        self._stopped = False
        # A daemon: a handler that hangs in a driver must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: T) -> bool:
        """Hand over an item, not None; return whether a waiting item was displaced."""
        with self._changed:
            displaced = self._waiting is not None
            self._waiting = item
            self._changed.notify_all()
            return displaced

    @property
    def pending(self) -> int:
        """Number of items in progress: the one being handled and the waiting one."""
        with self._changed:
            return self._busy + (self._waiting is not None)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; after `stop` this means that its last item is not finished."""
        return self._thread.is_alive()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until nothing is in progress; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy and self._waiting is None, timeout)

    def clear(self) -> bool:
        """Drop the waiting item; return whether there was one."""
        with self._changed:
            dropped = self._waiting is not None
            self._waiting = None
            self._changed.notify_all()
            return dropped

    def stop(self, timeout: float) -> bool:
        """End the thread after the current item; return whether a waiting item was dropped.

        Waits up to `timeout` seconds. If that is not enough, `alive` is true and the
        thread ends later.
        """
        with self._changed:
            self._stopped = True
        dropped = self.clear()
        self._thread.join(timeout)
        return dropped

    def _run(self) -> None:
        while (item := self._next()) is not None:
            self._call(self._handle, item)
        self._call(self._at_end)

    def _next(self) -> T | None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._waiting is not None)
            if self._stopped:
                return None
            item, self._waiting, self._busy = self._waiting, None, True
            return item

    def _call(self, function: Callable[..., None], *args: T) -> None:
        try:
            function(*args)
        except Exception as error:
            self._failed(error)
