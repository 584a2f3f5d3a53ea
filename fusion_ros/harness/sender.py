# SPDX-License-Identifier: AGPL-3.0-only
"""The sender: publishes as the two cameras, one pair at a time or at a steady rate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from fusion_ros.frame import images

__all__ = ["Camera", "Sender", "Sending", "send_at_rate", "time_message"]


@dataclass
class Sending:
    """Log of pairs that were sent at one rate.

    stamps_ns: of the pairs, in order, ns since 1970; late_ms: delay of each pair after its due
    time; skipped: pairs left out because the next one was due already; seconds: from the first
    pair's due time to the end of the last one's period; cpu_s: processor time of the sender.
    """

    rate: float
    stamps_ns: list[int] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    @property
    def offered_hz(self) -> float:
        """The rate that was kept."""
        return len(self.stamps_ns) / self.seconds if self.seconds else 0.0


def send_at_rate(
    rate: float, frames: int, send: Callable[[], int], wait_until: Callable[[float], object]
) -> Sending:
    """Call `send`, which returns a stamp in ns, `frames` times, every 1/`rate` seconds.

    wait_until: called with a monotonic time in s, returns then. A pair that is more than a period
    late is left out, as by a camera, instead of being sent in a burst with the next one.
    """
    sending = Sending(rate)
    cpu_s, begun = sum(os.times()[:2]), time.monotonic()
    index = 0
    while index < frames:
        due = begun + index / rate
        wait_until(due)
        sending.late_ms.append(1e3 * (time.monotonic() - due))
        sending.stamps_ns.append(send())
        following = max(index + 1, int((time.monotonic() - begun) * rate))
        sending.skipped += min(following, frames) - index - 1
        index = following
    wait_until(begun + frames / rate)
    sending.seconds = time.monotonic() - begun
    sending.cpu_s = sum(os.times()[:2]) - cpu_s
    return sending


class Camera:
    """Publishers of one camera: `<name>/image_raw` and `<name>/camera_info`.

    name: thermal or rgb. Both publishers take serialized messages (bytes) too.
    """

    def __init__(self, node: Node, name: str, depth: int = 10) -> None:
        self.name = name
        self.frame_id = f"{name}_optical_frame"
        self.images = node.create_publisher(Image, f"{name}/image_raw", depth)
        self.infos = node.create_publisher(CameraInfo, f"{name}/camera_info", depth)

    def message(self, pixels: np.ndarray, encoding: str) -> Image:
        """Make an image message of `pixels`, (H, W) or (H, W, C), without a stamp."""
        return images.fill(Image(), pixels, encoding, Header(frame_id=self.frame_id))

    def info(self, width: int, height: int, matrix: np.ndarray) -> CameraInfo:
        """Make a camera_info message; a (3, 3) `matrix` of zeros means uncalibrated."""
        k = matrix.ravel().tolist()
        header = Header(frame_id=self.frame_id)
        return CameraInfo(header=header, width=width, height=height, k=k)

    def send(self, message: Image, stamp_ns: int, info: CameraInfo | None = None) -> None:
        """Publish the image, and its camera_info if there is one, with this stamp."""
        stamp = time_message(stamp_ns)
        message.header.stamp = stamp
        self.images.publish(message)
        if info is not None:
            info.header.stamp = stamp
            self.infos.publish(info)


class Sender:
    """The thermal and the RGB camera."""

    def __init__(self, node: Node, depth: int = 10) -> None:
        self.thermal = Camera(node, "thermal", depth)
        self.rgb = Camera(node, "rgb", depth)

    def heard(self) -> bool:
        """Whether both cameras' images have a subscriber."""
        cameras = (self.thermal, self.rgb)
        return all(camera.images.get_subscription_count() for camera in cameras)


def time_message(stamp_ns: int) -> Time:
    """Make the ROS message of a time in ns."""
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)
