# SPDX-License-Identifier: AGPL-3.0-only
"""A bond with nav2's lifecycle manager: signs of life that the manager waits for.

The protocol of the package bond_core: both sides publish bond/msg/Status on the topic `bond`, with
the node's name as id, several times a second. The manager takes a side that falls silent, or that
says it is not active, for dead.
"""

from __future__ import annotations

import threading
import uuid
from typing import Any

__all__ = ["Bond"]

_TOPIC = "bond"
_PERIOD_S = 0.1
_TIMEOUT_S = 4.0
"""What nav2's nodes announce: without a sign for so long, the other side is dead."""


class Bond:
    """Publishes signs of life in a thread of its own, until `close`.

    They stop when `alive` says so: then the manager can start the node anew.
    """

    def __init__(self, node: Any, status: type) -> None:
        self._node = node
        self._status = status
        self._instance = str(uuid.uuid4())
        self._closed = threading.Event()
        self._publisher = node.create_publisher(status, _TOPIC, 10)
        self._thread = threading.Thread(target=self._run, name="bond", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, node: Any) -> Bond | None:
        """A bond of this node; None where the package bond is not installed."""
        try:
            from bond.msg import Status
        except Exception:  # not installed, or built for another rclpy
            return None
        return cls(node, Status)

    def close(self) -> None:
        """Say that the node is no longer active, and end."""
        self._closed.set()
        self._thread.join(1.0)
        self._publish(active=False)
        self._node.destroy_publisher(self._publisher)

    def _run(self) -> None:
        while not self._closed.wait(_PERIOD_S) and not self._node.stuck:
            try:
                self._publish(active=True)
            except Exception:  # the context is shut down, or the publisher is gone
                return

    def _publish(self, active: bool) -> None:
        message = self._status(
            id=self._node.get_name(),
            instance_id=self._instance,
            active=active,
            heartbeat_timeout=_TIMEOUT_S,
            heartbeat_period=_PERIOD_S,
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
