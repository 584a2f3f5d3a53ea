# SPDX-License-Identifier: AGPL-3.0-only
"""The observer: collects what a fusion node publishes, and waits for it."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image

from fusion_ros.frame import images
from fusion_ros.node.diagnostics import Report

__all__ = ["Arrival", "Observer", "stamp_ns"]

T = TypeVar("T")

_QUEUE = 100
_CHECK_S = 0.05
"""Interval at which a condition is checked, s: the end of a process sends no message."""
_STAMP = {0: ">iI", 1: "<iI"}
"""A CDR message begins with four bytes, of which the second gives the byte order, and the stamp."""


@dataclass(frozen=True)
class Arrival:
    """Times of one fused image, ns since 1970: published by the node, received by the observer."""

    published_ns: int
    received_ns: int


class Observer:
    """Subscribes to the topics of one fusion node, all in the thread that calls `wait`.

    stamps: of fused images in the order of arrival, ns; arrivals: times of each fused image by its
    stamp; images: the messages by stamp, with keep_images only; boxes: of `detections` by stamp,
    annotated: stamps of annotated images, both after `listen_for_boxes`; report: the latest one.

    When an image was published is the middleware's source timestamp, so it does not matter when
    the observer takes it; on Humble, whose callbacks get none, it is the time of receipt.
    """

    def __init__(self, node: Node, fuse_node: str = "fuse_node", keep_images: bool = False) -> None:
        self.stamps: list[int] = []
        self.arrivals: dict[int, Arrival] = {}
        self.images: dict[int, Image] = {}
        self.boxes: dict[int, list[Any]] = {}
        self.annotated: list[int] = []
        self.report: Report | None = None
        self._node, self._keep_images = node, keep_images
        self._name = f"{node.get_namespace().strip('/')}/{fuse_node}".lstrip("/")
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        # Iron brought callbacks with the middleware's timestamps.
        informed = hasattr(Subscription, "CallbackType")
        callback = self._on_fused if informed else lambda raw: self._on_fused(raw, {})
        node.create_subscription(Image, "fused/image", callback, _QUEUE, raw=True)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def listen_for_boxes(self) -> None:
        """Subscribe to annotated images and, where vision_msgs can be used, to detections."""
        self._node.create_subscription(
            Image, "fused/image_annotated", self._on_annotated, _QUEUE, raw=True
        )
        try:
            from vision_msgs.msg import Detection2DArray

            self._node.create_subscription(
                Detection2DArray, "detections", self._on_detections, _QUEUE
            )
        except Exception:  # not installed, or built for another rclpy: the node logs that
            pass

    def wait(
        self,
        done: Callable[[], T],
        seconds: float,
        check: Callable[[], object] = lambda: None,
    ) -> T:
        """Take messages until `done` returns something true or `seconds` pass; return what it did.

        check: called repeatedly; raises an error if waiting has become useless.
        """
        end = time.monotonic() + seconds
        while not (result := done()):
            check()
            left = end - time.monotonic()
            if left <= 0:
                return result
            self._executor.spin_once(timeout_sec=min(left, _CHECK_S))
        return result

    def forget(self) -> None:
        """Drop everything that was seen, to observe another node of the same name."""
        self.wait(lambda: False, 0.1)
        for seen in (self.stamps, self.arrivals, self.images, self.boxes, self.annotated):
            seen.clear()
        self.report = None

    def close(self) -> None:
        self._executor.shutdown()

    def _on_fused(self, raw: bytes, info: Any) -> None:
        stamp = _serialized_stamp_ns(raw)
        times = info if isinstance(info, dict) else vars(info)
        received = times.get("received_timestamp") or time.time_ns()
        self.stamps.append(stamp)
        self.arrivals[stamp] = Arrival(times.get("source_timestamp") or received, received)
        if self._keep_images:
            self.images[stamp] = deserialize_message(raw, Image)

    def _on_annotated(self, raw: bytes) -> None:
        self.annotated.append(_serialized_stamp_ns(raw))

    def _on_detections(self, msg: Any) -> None:
        self.boxes[stamp_ns(msg)] = list(msg.detections)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        self.report = Report.read(msg, self._name) or self.report


def stamp_ns(msg: Any) -> int:
    """Stamp of a message with a header, ns."""
    return images.stamp_ns(msg.header)


def _serialized_stamp_ns(raw: bytes) -> int:
    seconds, nanoseconds = struct.unpack_from(_STAMP[raw[1] & 1], raw, 4)
    return seconds * 1_000_000_000 + nanoseconds
