# SPDX-License-Identifier: AGPL-3.0-only
"""A thread that publishes the diagnostics, whatever the executor and the worker are doing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos_overriding_options import QoSOverridingOptions

from fusion_ros.node import messages
from fusion_ros.node.diagnostics import Status
from fusion_ros.node.guard import describe
from fusion_ros.node.outputs import QOS_POLICIES

__all__ = ["DIAGNOSTICS", "PERIOD_S", "Reporter"]

DIAGNOSTICS = "/diagnostics"
PERIOD_S = 1.0
"""Time between two reports, s."""
_QUEUE = 10


class Reporter:
    """Publishes what `statuses` returns, every `PERIOD_S` and at each call of `report_now`.

    It is no lifecycle publisher: a node that is not active has something to report, too.
    """

    def __init__(self, node: Any, statuses: Callable[[], Sequence[Status]]) -> None:
        self._node = node
        self._statuses = statuses
        self._failure = ""
        self._wake = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._stopped = False
        self._publisher = node.create_publisher(
            DiagnosticArray,
            DIAGNOSTICS,
            _QUEUE,
            qos_overriding_options=QoSOverridingOptions(QOS_POLICIES),
        )
        self._thread = threading.Thread(target=self._run, name="diagnostics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def report_now(self) -> None:
        """Publish at once, in the reporter's thread."""
        self._wake.set()

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread; waits up to `timeout` seconds."""
        self._stopped = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopped:
            self.report()
            self._wake.wait(PERIOD_S)
            self._wake.clear()

    def report(self) -> None:
        """Publish the present state, in the caller's thread."""
        with self._one_at_a_time:
            self._report()

    def _report(self) -> None:
        try:
            # Before the state is read: who asks for what was after a moment must not get less.
            stamp = self._node.get_clock().now().to_msg()
            message = messages.diagnostic_array(self._statuses(), stamp)
            self._publisher.publish(message)
            self._failure = ""
        except Exception as error:
            if self._stopped or not self._node.context.ok():
                return
            failure = describe(error)
            if failure != self._failure:
                self._failure = failure
                self._node.get_logger().error(f"the diagnostics failed: {failure}")
