# SPDX-License-Identifier: AGPL-3.0-only
"""The camera node: publishes `image_raw` and `camera_info` of a simulated camera or of files.

Frame k is due at start_time + k / rate on the node's clock. Two camera processes with the same
`start_time` therefore agree on every due time without any exchange: simulated cameras show the
same moment of the same scene, file cameras the same pair with the same stamp.
"""

from __future__ import annotations

import math
import signal
import sys
import time

import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from fusion_ros.cameras.files import FilesError
from fusion_ros.cameras.parameters import ParameterError, declare
from fusion_ros.cameras.sources import FilesSource, SimulatedSource, encode
from fusion_ros.frame import images

_MAX_JITTER = 0.45  # greatest jitter, as a share of a period: frames keep their order
_RECEIPT_S = 5.0
"""Longest wait at the end for the receipt of what was sent."""


class CameraNode(Node):
    """Publishes `image_raw` and `camera_info` in its namespace, for one camera.

    sent, skipped: number of frames published, and left out because they were late.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__("camera_node", **kwargs)
        self.settings = declare(self)
        make = FilesSource if self.settings.source == "files" else SimulatedSource
        self._source = make(self.settings)
        qos = QoSProfile(
            depth=5,
            reliability=ReliabilityPolicy.RELIABLE
            if self.settings.reliable
            else ReliabilityPolicy.BEST_EFFORT,
        )
        self._images = self.create_publisher(Image, "image_raw", qos)
        self._infos = self.create_publisher(CameraInfo, "camera_info", qos)
        self._image = Image()
        # The thread that sends frames also serves callbacks between them: /clock, parameters.
        self._waiter = SingleThreadedExecutor(context=self.context)
        self._waiter.add_node(self)
        self._stopping = False
        self.sent = self.skipped = 0

    def run(self) -> int:
        """Send frames until the last one, `stop` or shutdown; return the number sent."""
        if self.settings.wait_for_subscribers:
            self._wait_for_subscribers()
        self._send()
        self._wait_for_receipt()
        return self.sent

    def stop(self) -> None:
        """Make `run` return soon; may be called by a signal handler."""
        self._stopping = True

    def _going_on(self) -> bool:
        return self.context.ok() and not self._stopping

    def _serve(self, seconds: float) -> None:
        """Run one callback, or wait `seconds` for one; no callback's error ends the process."""
        try:
            self._waiter.spin_once(timeout_sec=seconds)
        except ExternalShutdownException:
            self.stop()
        except Exception as error:
            if self.context.ok():
                text = f"a callback failed: {type(error).__name__}: {error}"
                self.get_logger().error(text, throttle_duration_sec=10.0)

    def _send(self) -> None:
        s = self.settings
        index = self._next_index()
        origin = self._origin(index)
        tried = 0
        while self._going_on():
            # Cameras that share a grid count by it, so that a late one ends with the other.
            if s.frames and (index if s.start_ns else tried) >= s.frames:
                break
            if index - origin >= self._source.count:
                break
            exposed = s.start_ns + round(index * 1e9 / s.rate) + self._jitter_ns(index)
            # Rendered ahead of time, so that only sending is left when the frame is due.
            frame = self._frame(index - origin, (exposed - s.start_ns) * 1e-9)
            if not self._sleep_until(exposed):  # the clock went back, or shutdown
                index = self._next_index()
                origin = self._origin(index)
                continue
            tried += 1  # counts unreadable frames too: otherwise the node might never end
            if frame is not None:
                self._try_to_publish(frame, exposed + s.offset_ns)
            following = max(index + 1, self._next_index())
            if following > index + 1:
                self.skipped += following - index - 1
                self.get_logger().warning(
                    f"cannot keep up with {s.rate:g} frames per second, {self.skipped} skipped so "
                    "far: lower rate, width or height",
                    throttle_duration_sec=10.0,
                )
            index = following

    def _origin(self, index: int) -> int:
        """Index on the grid of the source's frame 0."""
        return 0 if self.settings.start_ns or math.isinf(self._source.count) else index

    def _next_index(self) -> int:
        """Index of the next frame on the grid; one that is late by < 1/2 period is due now."""
        while self._going_on():
            now = self.get_clock().now().nanoseconds
            if now > 0:  # simulated time has begun
                periods = (now - self.settings.start_ns) * self.settings.rate * 1e-9
                return max(0, math.ceil(periods - 0.5))
            self._serve(0.01)
        return 0

    def _jitter_ns(self, index: int) -> int:
        s = self.settings
        if not s.jitter:
            return 0
        draw = np.random.default_rng([s.seed, index, len(s.camera)]).normal() * s.jitter
        limit = _MAX_JITTER / s.rate
        return round(1e9 * min(max(draw, -limit), limit))

    def _frame(self, number: int, scene_s: float) -> np.ndarray | None:
        try:
            return self._source.frame(number, scene_s)
        except Exception as error:  # a frame that cannot be published is left out
            self._leave_out(error)
            return None

    def _try_to_publish(self, frame: np.ndarray, stamp_ns: int) -> None:
        try:
            self._publish(frame, stamp_ns)
        except Exception as error:
            if self.context.ok():
                self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        text = str(error) if isinstance(error, FilesError) else f"{type(error).__name__}: {error}"
        self.get_logger().error(f"frame left out: {text}", throttle_duration_sec=60.0)

    def _sleep_until(self, target_ns: int) -> bool:
        """Wait for a time of the node's clock; False if it jumped back, or at the end.

        Each round reads the clock again, so that no error accumulates.
        """
        last = self.get_clock().now().nanoseconds
        self._serve(0)
        while self._going_on():
            now = self.get_clock().now().nanoseconds
            if now < last - 100_000_000:
                return False
            if now >= target_ns:
                return True
            last = now
            # Simulated time runs at any speed: each message of /clock ends the wait.
            self._serve(min((target_ns - now) * 1e-9, 0.05))
        return False

    def _publish(self, frame: np.ndarray, stamp_ns: int) -> None:
        pixels, encoding = encode(frame, self.settings.encoding, self._source.span)
        header = Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id=self.settings.frame_id)
        images.fill(self._image, np.ascontiguousarray(pixels), encoding, header)
        self._images.publish(self._image)
        self._infos.publish(self._info(header, pixels.shape[1], pixels.shape[0]))
        self.sent += 1

    def _info(self, header: Header, width: int, height: int) -> CameraInfo:
        """Intrinsics; all zero, which means uncalibrated, for images from files."""
        info = CameraInfo(header=header, width=width, height=height)
        model = self._source.model
        if model is not None:
            info.distortion_model = "plumb_bob"
            info.d = [0.0] * 5
            info.k = model.matrix.ravel().tolist()
            info.r = np.eye(3).ravel().tolist()
            info.p = np.hstack([model.matrix, np.zeros((3, 1))]).ravel().tolist()
        return info

    def _wait_for_subscribers(self) -> None:
        awaited = self.settings.wait_for_subscribers
        asked = time.monotonic()
        while self._going_on():
            found = self._images.get_subscription_count()
            if found >= awaited:
                break
            self._serve(0.05)
            if time.monotonic() - asked > 5.0:
                asked = time.monotonic()
                self.get_logger().info(
                    f"waiting for subscribers of {self._images.topic_name}: {found} of {awaited}"
                )
        # The subscriber discovers this publisher a little later than this one discovers it.
        time.sleep(0.3)

    def _wait_for_receipt(self) -> None:
        """Wait until all messages were received, so that the end loses none."""
        end = time.monotonic() + _RECEIPT_S
        for publisher in (self._images, self._infos):
            received = False
            try:
                # In short waits: a signal is not handled before the wait returns.
                while not received and self._going_on() and time.monotonic() < end:
                    received = publisher.wait_for_all_acked(Duration(seconds=0.1))
            except Exception:  # rclpy's RCLError: the context was shut down meanwhile
                if self.context.ok():
                    raise
                return
            if not received and self._going_on():
                self.get_logger().warning(f"not all of {publisher.topic_name} was received")


def main(args: list[str] | None = None) -> int:
    """Run the node; 0 after the last frame or an interrupt, 1 for a bad parameter.

    args: ROS arguments, by default those of the process. Must run in the main thread.
    """
    # Once the node runs, signals only set a flag: as an exception, one could hit any destructor and
    # be lost there, and `ros2 launch` repeats the Ctrl-C that the terminal sent already.
    running: CameraNode | None = None
    signals = 0

    def stop(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        if running is not None:
            running.stop()
        elif signals == 1:
            raise KeyboardInterrupt  # drawing the scene takes seconds

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    status = 0
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = CameraNode()
        running = node
        if not signals:
            node.run()
        print(
            f"{node.settings.camera} camera: {node.sent} frames sent, {node.skipped} skipped",
            flush=True,
        )
        node.destroy_node()
    except KeyboardInterrupt:
        pass
    except (ParameterError, FilesError) as error:
        print(f"camera_node: {error}", file=sys.stderr)
        status = 1
    finally:
        rclpy.try_shutdown()
        # Python's end would set our handlers back to the default, which kills.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    sys.exit(main())
