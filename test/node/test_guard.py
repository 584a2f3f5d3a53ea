# SPDX-License-Identifier: AGPL-3.0-only
"""No callback of a guarded node ends the process, and none leaves a caller without an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import rclpy
from rcl_interfaces.srv import ListParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from fusion_ros.node.guard import GuardedNode, describe, spin
from fusion_ros.node.inputs import SubscriptionEventCallbacks

PATIENCE_S = 60


class Guarded(GuardedNode):
    """Keeps the reports of failed callbacks."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []
        super().__init__("guarded", namespace="test_guard")

    def callback_failed(self, what: str, error: Exception) -> None:
        self.failures.append((what, describe(error)))


@pytest.fixture
def peer():
    """A guarded node that spins in a thread, another node, and a function that waits."""
    rclpy.init()
    guarded, other = Guarded(), rclpy.create_node("other", namespace="test_guard")
    ended = threading.Event()
    thread = threading.Thread(target=spin, args=(guarded, ended.is_set))
    thread.start()
    executor = SingleThreadedExecutor()
    executor.add_node(other)

    def wait(done: Callable[[], object]) -> object:
        executor.spin_once(timeout_sec=0)
        for _ in range(20 * PATIENCE_S):
            if result := done():
                return result
            executor.spin_once(timeout_sec=0.05)
        return done()

    yield guarded, other, wait
    ended.set()
    thread.join(PATIENCE_S)
    guarded.destroy_node()
    other.destroy_node()
    rclpy.try_shutdown()


def fail(*args: object) -> None:
    raise OSError(36, "File name\ntoo long")


FAILURE = "OSError: [Errno 36] File name too long"


def test_exceptions_of_subscriptions_and_timers_are_reported_and_later_calls_go_on(peer):
    guarded, other, wait = peer
    guarded.create_subscription(Image, "image", fail, 1)
    publisher = other.create_publisher(Image, "image", 1)
    assert wait(publisher.get_subscription_count)
    subscribed = ("the callback of image", FAILURE)
    for number in (1, 2):
        publisher.publish(Image())
        assert wait(lambda n=number: guarded.failures.count(subscribed) == n)
    guarded.create_timer(0.01, fail)
    assert wait(lambda: guarded.failures.count(("a timer", FAILURE)) > 1)


def test_exceptions_of_events_are_reported(peer):
    guarded, other, wait = peer
    events = SubscriptionEventCallbacks(incompatible_qos=fail)
    guarded.create_subscription(Image, "image", lambda msg: None, 1, event_callbacks=events)
    best_effort = rclpy.qos.QoSProfile(depth=1, reliability=rclpy.qos.ReliabilityPolicy.BEST_EFFORT)
    other.create_publisher(Image, "image", best_effort)
    assert wait(lambda: ("an event of image", FAILURE) in guarded.failures)


def test_bytes_that_are_no_message_cost_that_message_only(peer):
    guarded, other, wait = peer
    received: list[str] = []
    guarded.create_subscription(Image, "image", lambda msg: received.append(msg.encoding), 3)
    publisher = other.create_publisher(Image, "image", 3)
    assert wait(publisher.get_subscription_count)
    wire = serialize_message(Image(encoding="mono8"))
    publisher.publish(wire[:9])
    publisher.publish(wire.replace(b"mono8", b"\xff\xfeno8"))  # no UTF-8
    publisher.publish(wire)
    assert wait(lambda: "mono8" in received)


def test_exceptions_in_the_executor_itself_are_reported_and_it_goes_on(peer):
    guarded, _, wait = peer
    assert wait(lambda: guarded.executor)
    failure = ("taking a message or request", FAILURE)
    for number in (1, 2):
        guarded.executor.create_task(fail)  # not by way of the node, so nothing guards it
        assert wait(lambda n=number: guarded.failures.count(failure) == n)


def test_a_request_that_fails_is_answered(peer):
    guarded, other, wait = peer
    client = other.create_client(SetParameters, "guarded/set_parameters")
    assert wait(client.service_is_ready)
    request = SetParameters.Request()
    request.parameters = [rclpy.Parameter("use_sim_time", value=False).to_parameter_msg()]
    request.parameters[0].value.type = 99  # there is no such type
    answer = client.call_async(request)
    assert wait(answer.done)
    assert guarded.failures[0][0] == "a request to guarded/set_parameters"
    others = other.create_client(ListParameters, "guarded/list_parameters")
    assert wait(others.service_is_ready)
    answer = others.call_async(ListParameters.Request())
    assert wait(answer.done)
    assert "use_sim_time" in answer.result().result.names
