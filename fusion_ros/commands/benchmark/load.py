# SPDX-License-Identifier: AGPL-3.0-only
"""The load: sends pairs from memory at a set rate while the fused images are observed.

Both cameras and the observer are one process with one thread, since every further process and
thread takes time from the node on a machine of few cores. The messages are made beforehand, and of
a fused image only the stamp is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from fusion_ros.commands.benchmark.pairs import BenchmarkInput
from fusion_ros.harness.rig import Rig
from fusion_ros.harness.sender import Sending, send_at_rate

__all__ = ["Load"]


class Load:
    """Sends `pairs` in turn through the cameras of `rig`."""

    def __init__(self, rig: Rig, pairs: BenchmarkInput) -> None:
        thermal, rgb = rig.sender.thermal, rig.sender.rgb
        matrices = pairs.matrices or (np.zeros((3, 3)), np.zeros((3, 3)))
        self._rig = rig
        self._next = 0
        self._pairs = [
            (thermal.message(ir, pairs.thermal_encoding), rgb.message(vi, "bgr8"))
            for ir, vi in zip(pairs.thermal, pairs.visible)
        ]
        self._infos = (
            thermal.info(*pairs.thermal_size, matrices[0]),
            rgb.info(*pairs.visible_size, matrices[1]),
        )

    def send(self, rate: float, frames: int, watch: Callable[[], object] = lambda: None) -> Sending:
        """Send `frames` pairs, one every 1/`rate` seconds, and observe meanwhile.

        watch: called before each pair.
        """

        def wait_until(due: float) -> None:
            watch()
            self._rig.wait(lambda: False, due - time.monotonic())

        return send_at_rate(rate, frames, self._send_pair, wait_until)

    def _send_pair(self) -> int:
        pair = self._pairs[self._next % len(self._pairs)]
        self._next += 1
        now = time.time_ns()
        sender = self._rig.sender
        for camera, message, info in zip((sender.thermal, sender.rgb), pair, self._infos):
            camera.send(message, now, info)
        return now
