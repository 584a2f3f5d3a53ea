# SPDX-License-Identifier: AGPL-3.0-only
"""What the node has while it is active: subscriptions to the cameras, and timers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from fusion_ros.frame import images
from fusion_ros.frame.calibration import from_camera_info, is_rectified_topic
from fusion_ros.node.camera import Camera
from fusion_ros.node.configured import Configured
from fusion_ros.node.frames import Job
from fusion_ros.node.outputs import QOS_POLICIES

if TYPE_CHECKING:
    from fusion_ros.node.fuse_node import FuseNode

__all__ = ["Active"]

_IMAGES = 5
"""Depth of the image subscriptions: a longer queue would only add latency."""
_WATCH_S = 0.2
_REPORT_S = 1.0
_PACE_S = 0.25


class Active:
    """Takes images in, pairs them and hands them to the worker; all in the executor's thread."""

    def __init__(self, node: FuseNode, configured: Configured) -> None:
        self._node = node
        self._configured = configured
        self._entities: list[tuple[Callable[[Any], Any], Any]] = []
        configured.frames.await_calibration = not configured.parameters.homography
        configured.diagnostics.restart()
        configured.pace.restart()
        try:
            for camera in configured.cameras:
                camera.restart()
                self._subscribe(camera)
            self._start_timers()
        except Exception:
            self.close()
            raise
        configured.say_what_runs(configured.pipeline.network)

    def close(self) -> None:
        """Destroy subscriptions and timers, and drop what waits."""
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)
        self._configured.pause()

    def _start_timers(self) -> None:
        # A bag that pauses stops the node's clock; that a camera is silent must show even then.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        keep_pace = self._configured.keep_pace
        for period, callback in (
            (_WATCH_S, self.watch),
            (_REPORT_S, self.report),
            (_PACE_S, keep_pace),
            (self._configured.parameters.log_period, self._log_rate),
        ):
            if period:
                timer = self._node.create_timer(period, callback, clock=steady)
                self._entities.append((self._node.destroy_timer, timer))

    def _subscribe(self, camera: Camera) -> None:
        for kind, topic, callback in (
            (Image, camera.image_topic, self.on_image),
            (CameraInfo, camera.info_topic, self.on_info),
        ):
            subscription = self._node.create_subscription(
                kind,
                topic,
                functools.partial(callback, camera),
                self._qos(),
                event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=functools.partial(self.on_incompatible_qos, camera)
                ),
                qos_overriding_options=self._overridable(topic),
            )
            self._entities.append((self._node.destroy_subscription, subscription))

    def _qos(self) -> QoSProfile:
        reliable = self._configured.parameters.qos == "reliable"
        return QoSProfile(
            depth=_IMAGES,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )

    def _overridable(self, topic: str) -> QoSOverridingOptions:
        """The policies of `qos_overrides`.

        rclpy declares each as a read-only parameter, whose first value holds from then on. The
        parameter `qos` may change between two configurations: reliability is left to it, unless
        it is overridden.
        """
        name = f"qos_overrides.{self._node.resolve_topic_name(topic)}.subscription.reliability"
        overridden = name in self._node.overrides
        return QoSOverridingOptions(
            [p for p in QOS_POLICIES if overridden or p is not QoSPolicyKind.RELIABILITY]
        )

    def on_image(self, camera: Camera, msg: Image) -> None:
        """Pair an image, if it can be used."""
        configured = self._configured
        camera.hear()
        stamp_ns = Time.from_msg(msg.header.stamp).nanoseconds
        if not stamp_ns:
            configured.monitor.fault(
                f"{camera.name}_unstamped",
                f"{camera.name} images have no stamp: the driver must set header.stamp",
            )
            return
        try:
            images.view(msg)
        except images.ImageError as error:
            configured.monitor.fault(f"{camera.name}_unreadable", f"{camera.name} camera: {error}")
            return
        camera.stamp_ns = stamp_ns
        thermal, rgb = configured.cameras
        other = rgb if camera is thermal else thermal
        if other.silent and configured.parameters.dropout_policy != "wait":
            configured.monitor.count(f"{camera.name}_alone")
            configured.submit(Job(msg, None) if camera is thermal else Job(None, msg))
            return
        pairer = configured.pairer
        add = pairer.add_thermal if camera is thermal else pairer.add_visible
        configured.submit_pairs(add(stamp_ns, msg))

    def on_info(self, camera: Camera, msg: CameraInfo) -> None:
        """Take over a camera's calibration."""
        camera.info = msg
        topic = self._node.resolve_topic_name(camera.image_topic)
        calibration = from_camera_info(msg, is_rectified_topic(topic))
        if calibration != camera.calibration:
            camera.calibration = calibration
            self._configured.pipeline.change(**{f"{camera.name}_camera": calibration})
        camera.has_info.set()

    def on_incompatible_qos(self, camera: Camera, event: Any) -> None:
        """Name the parameter that makes the node match this camera's publisher."""
        self._configured.monitor.fault(
            "incompatible_qos",
            f"a publisher of the {camera.name} camera offers best effort only, this node requests "
            f"{self._configured.parameters.qos}, so nothing arrives: set the parameter "
            "qos:=best_effort",
        )

    def watch(self) -> None:
        """Find silent cameras; do without the partners that will not come from them."""
        configured = self._configured
        for camera in configured.cameras:
            camera.watch(configured.parameters.camera_timeout)
        waits = configured.parameters.dropout_policy == "wait"
        if (all if waits else any)(camera.silent for camera in configured.cameras):
            configured.submit_pairs(configured.pairer.flush())

    def report(self) -> None:
        """Check for what is wrong and publish the diagnostics."""
        self._configured.diagnostics.check(self._configured.parameters)
        self._configured.report()

    def _log_rate(self) -> None:
        if text := self._configured.diagnostics.rate():
            self._node.get_logger().info(text)
