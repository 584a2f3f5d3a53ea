# SPDX-License-Identifier: AGPL-3.0-only
"""A lifecycle node whose callbacks cannot end the process.

Each callback that is given to the node (of a subscription, its events, a timer or a service) is
wrapped when it is registered, rclpy's own parameter services included. `spin` catches what rclpy
itself raises between the callbacks, such as for a message that cannot be decoded.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode

__all__ = ["GuardedNode", "describe", "spin"]

_WAKE_S = 0.2
"""Interval at which `spin` checks whether to go on, s."""
_RETRY_S = 0.01
"""Pause after an exception, s: one that recurs must not keep a core busy."""


class GuardedNode(LifecycleNode):
    """Reports an exception in a callback with `callback_failed`, and goes on."""

    def callback_failed(self, what: str, error: Exception) -> None:
        """Report that `what` raised `error`."""
        self.get_logger().error(f"{what} failed: {describe(error)}")

    def guard(
        self,
        what: str,
        callback: Callable[..., Any],
        otherwise: Callable[..., Any] = lambda *args: None,
    ) -> Callable[..., Any]:
        """`callback`, which on an exception reports it and returns `otherwise(*args)`."""

        # rclpy looks at a callback's signature: wraps() keeps it.
        @functools.wraps(callback)
        def guarded(*args: Any) -> Any:
            try:
                return callback(*args)
            except Exception as error:
                self.callback_failed(what, error)
                return otherwise(*args)

        return guarded

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Subscribe as rclpy does, with guarded callbacks."""
        callback = self.guard(f"the callback of {topic}", callback)
        self._guard_events(f"an event of {topic}", kwargs.get("event_callbacks"))
        return super().create_subscription(msg_type, topic, callback, *args, **kwargs)

    def create_timer(
        self, timer_period_sec: float, callback: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Create a timer as rclpy does, with a guarded callback."""
        if callback is not None:
            callback = self.guard("a timer", callback)
        return super().create_timer(timer_period_sec, callback, *args, **kwargs)

    def create_service(
        self, srv_type: Any, srv_name: str, callback: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Offer a service as rclpy does; a request that fails is answered with what is filled."""
        callback = self.guard(
            f"a request to {srv_name}", callback, lambda request, response: response
        )
        return super().create_service(srv_type, srv_name, callback, *args, **kwargs)

    def forget_destroyed(self) -> None:
        """Drop what rclpy keeps of destroyed publishers, subscriptions and timers."""
        group = self.default_callback_group
        group.entities = {entity for entity in group.entities if entity() is not None}

    def _guard_events(self, what: str, events: Any) -> None:
        for name, callback in vars(events).items() if events is not None else ():
            if callable(callback):
                setattr(events, name, self.guard(what, callback))


def describe(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def spin(node: GuardedNode, stopped: Callable[[], bool]) -> None:
    """Run the node's callbacks until `stopped` says so or the context is shut down."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    try:
        while not stopped() and node.context.ok():
            try:
                executor.spin_once(timeout_sec=_WAKE_S)
            except (ExternalShutdownException, ShutdownException):
                return
            except Exception as error:
                node.callback_failed("taking a message or request", error)
                time.sleep(_RETRY_S)
    finally:
        executor.shutdown(timeout_sec=0)
