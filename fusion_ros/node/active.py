# SPDX-License-Identifier: AGPL-3.0-only
"""What the node has while it is active: subscriptions to the cameras, timers, a bond."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from fusion_ros.frame import images
from fusion_ros.frame.calibration import from_camera_info, is_rectified_topic
from fusion_ros.frame.shutter import fingerprint
from fusion_ros.node.bond import Bond
from fusion_ros.node.camera import Camera
from fusion_ros.node.configured import Configured
from fusion_ros.node.frames import Job, check
from fusion_ros.node.inputs import CameraInput

if TYPE_CHECKING:
    from fusion_ros.node.fuse_node import FuseNode

__all__ = ["Active"]

_WATCH_S = 0.2
_PACE_S = 0.25
_DUE = 0.9
"""Share of the usual time between thermal images after which one is fused again in a pause."""


class Active:
    """Takes images in, pairs them and hands them to the worker; all in the executor's thread."""

    def __init__(self, node: FuseNode, configured: Configured) -> None:
        self._node = node
        self._configured = configured
        self._timers: list[Any] = []
        self._inputs: list[CameraInput] = []
        self._bond: Bond | None = None
        self._latest_thermal: Image | CompressedImage | None = None
        self._paused = False
        self._handed_over = 0.0
        configured.frames.await_calibration = not configured.parameters.homography
        configured.diagnostics.restart()
        configured.pace.restart()
        try:
            for camera in configured.cameras:
                camera.restart()
                self._inputs.append(self._input(camera))
                self._inputs[-1].open()
            self._start_timers()
            if configured.parameters.bond:
                self._bond = Bond.start(node)
        except Exception:
            self.close()
            raise
        configured.say_what_runs(configured.pipeline.network)

    def close(self) -> None:
        """Destroy subscriptions and timers, and drop what waits."""
        if self._bond is not None:
            self._bond.close()
            self._bond = None
        while self._timers:
            self._node.destroy_timer(self._timers.pop())
        while self._inputs:
            self._inputs.pop().close()
        self._configured.pause()

    def _start_timers(self) -> None:
        # A bag that pauses stops the node's clock; that a camera is silent must show even then.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        keep_pace = self._configured.keep_pace
        for period, callback in (
            (_WATCH_S, self.watch),
            (_PACE_S, keep_pace),
            (self._configured.parameters.log_period, self._log_rate),
        ):
            if period:
                self._timers.append(self._node.create_timer(period, callback, clock=steady))

    def _input(self, camera: Camera) -> CameraInput:
        one: tuple[Callable[..., None], ...] = (
            self.on_image,
            self.on_info,
            self.on_incompatible_qos,
        )
        callbacks = (functools.partial(callback, camera) for callback in one)
        configured = self._configured
        return CameraInput(self._node, camera, configured.graph, configured.parameters, *callbacks)

    def on_image(self, camera: Camera, msg: Image | CompressedImage) -> None:
        """Pair an image, if it can be used."""
        configured = self._configured
        camera.hear(msg.header.frame_id, getattr(msg, "encoding", ""))
        configured.monitor.count(f"{camera.name}_images")
        try:
            stamp = self._stamp(camera, msg)
            check(camera, msg)
        except _UnstampedError as error:
            camera.refuse(str(error))
            configured.monitor.fault(f"{camera.name}_unstamped", str(error))
            return
        except images.ImageError as error:
            camera.refuse(str(error))
            configured.monitor.fault(f"{camera.name}_unreadable", f"{camera.name} camera: {error}")
            return
        camera.use(stamp)
        if camera.name == "thermal":
            self._watch_shutter(msg)
            self._latest_thermal = msg
        thermal, rgb = configured.cameras
        other = rgb if camera is thermal else thermal
        if other.silent and configured.parameters.dropout_policy != "wait":
            configured.monitor.count(f"{camera.name}_alone")
            configured.submit(Job(msg, None) if camera is thermal else Job(None, msg))
            return
        if camera is rgb and self._is_held():
            configured.monitor.count("rgb_held")
            configured.flush()  # what waits is older, and must not follow
            configured.submit(Job(self._latest_thermal, msg))
            return
        configured.pair(camera, stamp, msg)

    def on_info(self, camera: Camera, msg: CameraInfo) -> None:
        """Take over a camera's calibration."""
        camera.info = msg
        calibration = from_camera_info(msg, is_rectified_topic(camera.topic))
        if calibration != camera.calibration:
            camera.calibration = calibration
            self._configured.pipeline.change(**{f"{camera.name}_camera": calibration})
        camera.has_info.set()

    def on_incompatible_qos(self, camera: Camera, event: Any) -> None:
        """Name the parameter that makes the node match this camera's publisher."""
        self._configured.monitor.fault(
            f"{camera.name}_incompatible_qos",
            f"a publisher of the {camera.name} camera offers best effort only, this node asks for "
            f"{self._configured.parameters.qos}, so nothing arrives: set the parameter "
            "qos:=best_effort",
        )

    def watch(self) -> None:
        """Find silent cameras and do without their images; follow those that change."""
        configured = self._configured
        for one in self._inputs:
            one.update()
        for camera in configured.cameras:
            camera.watch(configured.parameters.camera_timeout)
        waits = configured.parameters.dropout_policy == "wait"
        if (all if waits else any)(camera.silent for camera in configured.cameras):
            configured.flush()

    def _watch_shutter(self, msg: Image | CompressedImage) -> None:
        """Count freezes of the thermal camera: no fault, they end by themselves."""
        shutter, monitor = self._configured.shutter, self._configured.monitor
        if shutter.add(fingerprint(msg.data), time.monotonic()):
            monitor.count("thermal_freezes")
        if shutter.frozen:
            monitor.count("thermal_frozen")

    def _is_held(self) -> bool:
        """Whether the thermal camera pauses and its latest image is due to be fused again."""
        configured, now = self._configured, time.monotonic()
        paused_s = configured.shutter.paused_s(now)
        before, self._paused = self._paused, 0 < paused_s <= configured.parameters.thermal_hold
        # At two RGB images in a row: after a stall of this process, images of both cameras wait
        # in the queues, and one of each is taken in turn.
        if not (before and self._paused and self._latest_thermal):
            return False
        # No more often than thermal images usually come.
        due = now - self._handed_over >= _DUE * configured.shutter.usual_s
        if due:
            self._handed_over = now
        return due

    def _stamp(self, camera: Camera, msg: Any) -> int:
        """Time by which an image is paired, ns. Raises `_UnstampedError` where it has none."""
        if self._configured.parameters.stamp_source == "arrival":
            return time.monotonic_ns()
        stamp = images.stamp_ns(msg.header)
        if stamp > 0:
            return stamp
        raise _UnstampedError(
            f"{camera.name} images have {'no stamp' if not stamp else 'a negative stamp'}: the "
            "driver must set header.stamp, or set stamp_source to arrival"
        )

    def _log_rate(self) -> None:
        if text := self._configured.diagnostics.rate():
            self._node.get_logger().info(text)


class _UnstampedError(ValueError):
    """An image without a stamp that pairing can use."""
