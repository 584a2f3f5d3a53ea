# SPDX-License-Identifier: AGPL-3.0-only
"""The load: sends pairs at a set rate, and takes note of the fused images that come back.

Both cameras and the observer are one process with one thread, since every process and thread more
takes time from the node on a machine of few cores; the two images of a pair are due at the same
moment anyway. It waits for absolute times, sends messages that were made beforehand, and reads of
a fused image only its stamp. When the node published it is the middleware's source timestamp, so
it does not matter when the observer gets round to it (where a middleware gives none, the time of
receipt stands for it).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from fusion_ros.commands.benchmark.measurement import Arrival, Sending
from fusion_ros.commands.benchmark.pairs import Pairs
from fusion_ros.frame import images
from fusion_ros.node.diagnostics import Report

__all__ = ["Load"]

_QUEUE = 10
_POLL_S = 0.05
_STAMP = {0: ">iI", 1: "<iI"}
"""A CDR message begins with four bytes, of which the second says the byte order, and the stamp."""


class Load:
    """Publishes as the two cameras and watches the node's topics; all in the caller's thread.

    boxes: listen to the boxes too, which the node looks for only then.
    sent_ns: the latest pair's stamp; arrivals: of fused images, by stamp; report: the node's
    latest.
    alive: called again and again while waiting; raises an error if there is nothing to wait for.
    """

    def __init__(self, node: Node, pairs: Pairs, boxes: bool) -> None:
        self.alive: Callable[[], None] = lambda: None
        self.arrivals: dict[int, Arrival] = {}
        self.report: Report | None = None
        self.sent_ns = 0
        self._next = 0
        cameras = ("thermal", "rgb")
        matrices = pairs.matrices or (np.zeros((3, 3)), np.zeros((3, 3)))
        encodings = (pairs.thermal_encoding, "bgr8")
        self._pairs = [
            [
                images.fill(Image(), pixels, encoding, Header(frame_id=f"{camera}_optical_frame"))
                for camera, encoding, pixels in zip(cameras, encodings, pair)
            ]
            for pair in zip(pairs.thermal, pairs.visible)
        ]
        self._infos = [
            CameraInfo(
                header=Header(frame_id=f"{camera}_optical_frame"),
                width=width,
                height=height,
                k=matrix.ravel().tolist(),
            )
            for camera, matrix, (width, height) in zip(
                cameras, matrices, (pairs.thermal_size, pairs.visible_size)
            )
        ]
        self._image_publishers = [
            node.create_publisher(Image, f"{camera}/image_raw", _QUEUE) for camera in cameras
        ]
        self._info_publishers = [
            node.create_publisher(CameraInfo, f"{camera}/camera_info", _QUEUE) for camera in cameras
        ]
        self._fused = _listen(node, Image, "fused/image", raw=True)
        self._reports = _listen(node, DiagnosticArray, "/diagnostics")
        self._unread = [_listen_to_boxes(node)] if boxes else []

    def forget(self) -> None:
        """Know nothing of a node that was watched before."""
        self.poll()
        self.arrivals.clear()
        self.report = None

    def send(self, rate: float, frames: int) -> Sending:
        """Send so many pairs, one pair every 1/`rate` seconds, and watch meanwhile.

        A pair that is more than a period late is left out, as by a camera: it is not sent in a
        burst with the next one.
        """
        sending = Sending(rate)
        cpu_s, begun = sum(os.times()[:2]), time.monotonic()
        index = 0
        while index < frames:
            due = begun + index / rate
            self.watch(due)
            sending.late_ms.append(1e3 * (time.monotonic() - due))
            sending.stamps_ns.append(self._send_pair())
            following = max(index + 1, int((time.monotonic() - begun) * rate))
            sending.skipped += min(following, frames) - index - 1
            index = following
        self.watch(begun + frames / rate)
        sending.seconds = time.monotonic() - begun
        sending.cpu_s = sum(os.times()[:2]) - cpu_s
        return sending

    def watch(self, until: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Take in what comes until that monotonic time, or until `done` says so; what it said."""
        while True:
            self.poll()
            self.alive()
            if done():
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _POLL_S))
            if left <= _POLL_S:
                # Nothing between the wait and what is due now.
                return False

    def poll(self) -> None:
        """Take in what has come."""
        while (taken := _take(self._fused)) is not None:
            data, info = taken
            seconds, nanoseconds = struct.unpack_from(_STAMP[data[1] & 1], data, 4)
            received = info["received_timestamp"] or time.time_ns()
            self.arrivals[seconds * 1_000_000_000 + nanoseconds] = Arrival(
                info["source_timestamp"] or received, received
            )
        while (taken := _take(self._reports)) is not None:
            self.report = Report.read(taken[0]) or self.report
        for subscription in self._unread:
            while _take(subscription) is not None:
                pass

    def _send_pair(self) -> int:
        pair = self._pairs[self._next % len(self._pairs)]
        self._next += 1
        self.sent_ns = now = time.time_ns()
        stamp = Time(sec=now // 1_000_000_000, nanosec=now % 1_000_000_000)
        for publishers, messages in (
            (self._image_publishers, pair),
            (self._info_publishers, self._infos),
        ):
            for publisher, message in zip(publishers, messages):
                message.header.stamp = stamp
                publisher.publish(message)
        return now


def _listen(node: Node, kind: type, topic: str, raw: bool = False) -> Subscription:
    return node.create_subscription(kind, topic, lambda message: None, _QUEUE, raw=raw)


def _listen_to_boxes(node: Node) -> Subscription:
    try:
        from vision_msgs.msg import Detection2DArray

        return _listen(node, Detection2DArray, "detections", raw=True)
    except Exception:  # not installed, or built for another rclpy: the node draws them as well
        return _listen(node, Image, "fused/image_annotated", raw=True)


def _take(subscription: Subscription) -> tuple | None:
    """A message and what the middleware knows of it, or None if nothing has come.

    What rclpy's executors do, without waking up for each message. Their callbacks learn of the
    middleware's timestamps only from Iron on.
    """
    with subscription.handle:
        return subscription.handle.take_message(subscription.msg_type, subscription.raw)
