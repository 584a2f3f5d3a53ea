# SPDX-License-Identifier: AGPL-3.0-only
"""The rig: both cameras, an observer and nodes, in processes of their own or in this one.

A test, with `rclpy.init()` done, runs the node in this process:

    with Rig("front", keep_images=True) as rig:
        node = rig.run(FuseNode, method="baffm", backend="null", detect=False)
        stamp = time.time_ns()
        rig.send(stamp, thermal, visible)               # arrays; encodings=("mono8", "bgr8")
        assert rig.wait(lambda: stamp in rig.images)    # returns when it is there
        assert rig.set(dropout_policy="pass") == ""     # the parameter service; '' or why not
        assert rig.settle().count("fused") == 1         # a report with nothing left to do

A command starts processes and lets `wait` raise `ProcessError` when one of them fails:

    with ros_session(), Rig() as rig:
        rig.start("fuse_node", logs, {"method": "cfi"})
        rig.wait_until_heard(60)
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rclpy
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from fusion_ros.harness.environment import set_environment
from fusion_ros.harness.observer import Arrival, Observer
from fusion_ros.harness.processes import Child, node_command
from fusion_ros.harness.sender import Camera, Sender
from fusion_ros.node.diagnostics import Report

__all__ = ["Rig", "ros_session"]

T = TypeVar("T")

_PATIENCE_S = 60.0
"""Time limit of waits, s: so long that only a fault reaches it, not a busy machine."""
_SETTLE_NS = 200_000_000
"""An image may be on its way for so long: the node is idle by reports from later on."""
_LEFT = ("in_progress", "pending", "thermal_waiting", "rgb_waiting")


@contextmanager
def ros_session() -> Iterator[None]:
    """Initialise rclpy for a command: own environment, and signals as KeyboardInterrupt.

    With rclpy's own signal handlers, an interrupt would end the context before the processes that
    the command started.
    """
    set_environment()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        rclpy.try_shutdown()


class Rig:
    """Cameras, observer and nodes in one namespace; use it in a `with` block, in one thread.

    node: the rclpy node of cameras and observer, for further topics; see `Sender` and `Observer`
    for theirs. keep_images: keep the fused images, in `images`.
    """

    def __init__(
        self, namespace: str = "", fuse_node: str = "fuse_node", keep_images: bool = False
    ) -> None:
        self.namespace = namespace
        self.node = rclpy.create_node("rig", namespace=namespace or None)
        self.sender = Sender(self.node)
        self.observer = Observer(self.node, fuse_node, keep_images)
        self._client = self.node.create_client(
            SetParametersAtomically, f"{fuse_node}/set_parameters_atomically"
        )
        self._children: list[Child] = []
        self._local: Any = None
        self._local_executor: SingleThreadedExecutor | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- Nodes ----------------------------------------------------------------------------------

    def start(
        self,
        executable: str,
        logs: Path,
        parameters: Mapping[str, object] | None = None,
        *,
        name: str = "",
        namespace: str = "",
        may_end: bool = False,
    ) -> Child:
        """Start a node's process, in `namespace` below the rig's; `wait` notices if it fails.

        name: of the process and its log, the executable's by default.
        """
        where = f"{self.namespace}/{namespace}".strip("/")
        command = node_command(executable, parameters, where)
        child = Child(name or executable, command, logs, may_end)
        self._children.append(child)
        return child

    def stop(self, child: Child) -> None:
        """End a process that `start` started."""
        self._children.remove(child)
        child.stop()

    def check(self) -> None:
        """Raise `ProcessError` if one of the processes failed."""
        for child in self._children:
            child.check()

    def run(self, make: Callable[..., Any], start: bool = True, **parameters: object) -> Any:
        """Make a lifecycle node in this process, spin it in a thread, and return it.

        make: `FuseNode`, or what else takes `namespace` and `parameter_overrides` and has `start`
        and `close`. start: configure and activate it, and wait until all topics are connected.
        """
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self._local = node = make(namespace=self.namespace, parameter_overrides=overrides)
        if start:
            self.spin()
        return node

    def spin(self) -> None:
        """Start the node that `run(..., start=False)` made, and spin it in a thread."""
        if not self._local.start():
            raise RuntimeError("the node did not start; its log says why")
        self._local_executor = SingleThreadedExecutor()
        self._local_executor.add_node(self._local)
        self._thread = threading.Thread(target=self._local_executor.spin, daemon=True)
        self._thread.start()
        self.wait_until_heard()

    def pause(self) -> None:
        """Stop spinning the node in this process; its callbacks are not called any more."""
        if self._local_executor is not None:
            self._local_executor.shutdown()
            self._thread.join(_PATIENCE_S)
            self._local_executor = self._thread = None

    def close(self) -> None:
        """End all nodes, the latest first, and the rig's own."""
        try:
            for child in reversed(self._children):
                child.stop()
        finally:
            self._children.clear()
            self.pause()
            if self._local is not None:
                self._local.close()
                self._local.destroy_node()
                self._local = None
            self.observer.close()
            self.node.destroy_node()

    # --- Sending --------------------------------------------------------------------------------

    def send(
        self,
        stamp_ns: int,
        thermal: np.ndarray | Image | None = None,
        visible: np.ndarray | Image | None = None,
        encodings: tuple[str, str] = ("mono8", "bgr8"),
    ) -> None:
        """Publish images of one stamp: arrays in these encodings, or messages; None sends none."""
        sender = self.sender
        for camera, image, encoding in zip(
            (sender.thermal, sender.rgb), (thermal, visible), encodings
        ):
            if image is not None:
                self.send_image(camera, image, encoding, stamp_ns)

    def send_image(
        self, camera: Camera, image: np.ndarray | Image, encoding: str, stamp_ns: int
    ) -> None:
        """Publish one image of `sender.thermal` or `sender.rgb`."""
        message = image if isinstance(image, Image) else camera.message(image, encoding)
        camera.send(message, stamp_ns)

    def set(self, **values: object) -> str:
        """Set parameters by the node's service; return '' or the reason for its refusal."""
        if not self.wait(self._client.service_is_ready):
            raise TimeoutError(f"there is no service {self._client.srv_name}")
        request = SetParametersAtomically.Request()
        request.parameters = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        future = self._client.call_async(request)
        if not self.wait(future.done):
            raise TimeoutError(f"no answer from {self._client.srv_name}")
        result = future.result().result
        return "" if result.successful else result.reason

    # --- Waiting --------------------------------------------------------------------------------

    @property
    def stamps(self) -> list[int]:
        return self.observer.stamps

    @property
    def arrivals(self) -> dict[int, Arrival]:
        return self.observer.arrivals

    @property
    def images(self) -> dict[int, Image]:
        return self.observer.images

    @property
    def report(self) -> Report | None:
        return self.observer.report

    def count(self, name: str) -> int:
        """Counter of the node's latest report; 0 before the first."""
        return self.report.count(name) if self.report else 0

    def wait(self, done: Callable[[], T], seconds: float = _PATIENCE_S) -> T:
        """Take messages until `done` returns something true or `seconds` pass; return what it did.

        Raises `ProcessError` if a process fails meanwhile.
        """
        return self.observer.wait(done, seconds, self.check)

    def wait_until_heard(self, seconds: float = _PATIENCE_S) -> None:
        """Wait until the node subscribes to both cameras and publishes fused images."""

        def heard() -> bool:
            topic = self.node.resolve_topic_name("fused/image")
            return self.sender.heard() and self.node.count_publishers(topic) > 0

        if not self.wait(heard, seconds):
            raise TimeoutError(f"no fusion node in '/{self.namespace}' within {seconds:g} s")

    def next_report(self, seconds: float = _PATIENCE_S) -> Report:
        """Wait for a report that is stamped after this call."""
        return self._report_of(lambda report: True, time.time_ns(), seconds)

    def settle(self, seconds: float = _PATIENCE_S, unpaired: bool = False) -> Report:
        """Wait until the node reports that nothing of what was sent is left to do.

        unpaired: images that still wait for a partner do not count as left. Raises `TimeoutError`.
        """

        def idle(report: Report) -> bool:
            left = ("in_progress", "pending") if unpaired else _LEFT
            return not any(map(report.count, left))

        return self._report_of(idle, time.time_ns() + _SETTLE_NS, seconds)

    def _report_of(self, fits: Callable[[Report], bool], since_ns: int, seconds: float) -> Report:
        def found() -> Report | None:
            report = self.report
            return report if report and report.stamp_ns > since_ns and fits(report) else None

        report = self.wait(found, seconds)
        if report is None:
            latest = self.report.values if self.report else "none"
            raise TimeoutError(f"no such report within {seconds:g} s; the latest is {latest}")
        return report
