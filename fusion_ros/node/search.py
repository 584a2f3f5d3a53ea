# SPDX-License-Identifier: AGPL-3.0-only
"""The detector beside fusion: in a thread of low priority, in the time that fusion leaves."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_ros.node.worker import Worker

__all__ = ["Search"]

_NICE = 10
"""Added to the thread's nice value, which its network's threads take over."""


@dataclass(frozen=True)
class _Image:
    pixels: np.ndarray
    header: Any


class Search:
    """Hands images to `handle` one at a time; images offered in the meantime are left out.

    The thread has a low priority, so under load the detector skips frames before fusion does.

    Args:
        handle: called with a copy of the image and its header.
        failed: called with an exception that `handle` raised.
    """

    def __init__(
        self, handle: Callable[[np.ndarray, Any], None], failed: Callable[[Exception], None]
    ) -> None:
        self._handle = handle
        self._worker: Worker[_Image] = Worker(self._run, "search", failed)
        self._lowered = False

    def offer(self, image: np.ndarray, header: Any) -> bool:
        """Search an image, unless another one is being searched; return whether it is taken."""
        if self._worker.pending:
            return False
        self._worker.submit(_Image(image.copy(), header))
        return True

    @property
    def pending(self) -> int:
        """Number of images in progress."""
        return self._worker.pending

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._worker.alive

    def pause(self, timeout: float) -> None:
        """Drop the waiting image; wait up to `timeout` seconds for the current one."""
        self._worker.clear()
        self._worker.wait(timeout)

    def stop(self, timeout: float) -> None:
        """End the thread after the current image; wait up to `timeout` seconds for that."""
        self._worker.stop(timeout)

    def _run(self, image: _Image) -> None:
        if not self._lowered:
            self._lowered = True
            _lower_priority()
        self._handle(image.pixels, image.header)


def _lower_priority() -> None:
    """Lower the priority of this thread alone, as only Linux can."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)
