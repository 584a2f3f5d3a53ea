# SPDX-License-Identifier: AGPL-3.0-only
"""The node's publishers of results: fused images, their camera_info, boxes.

They publish in a thread of their own: a reader that stops taking reliable messages can hold a
publisher for tens of milliseconds, and that must not hold the fusion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.qos import QoSPolicyKind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from fusion_ros.frame import images
from fusion_ros.frame.compressed import encode_jpeg
from fusion_ros.frame.detector import Detection
from fusion_ros.node import messages
from fusion_ros.node.guard import describe
from fusion_ros.node.worker import Worker

__all__ = [
    "ANNOTATED",
    "DETECTIONS",
    "FUSED",
    "FUSED_INFO",
    "QOS_POLICIES",
    "NotActiveError",
    "Outputs",
    "compressed_topic",
]

FUSED = "fused/image"
FUSED_INFO = "fused/camera_info"
ANNOTATED = "fused/image_annotated"
DETECTIONS = "detections"

QOS_POLICIES = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)
"""What `qos_overrides.<topic>.<publisher or subscription>.<policy>` may change."""

_QUEUE = 10

Done = Callable[["Exception | None"], None]
"""Called in the publishing thread: None for a message that was published, or why it was not."""


class NotActiveError(Exception):
    """The node was deactivated before a message could be published."""


@dataclass(frozen=True)
class _Message:
    """What waits to be published: `publish` does it."""

    publish: Callable[[], None]
    done: Done


class Outputs:
    """Lifecycle publishers and their thread, from the node's configuration to its cleanup.

    A newer message of a topic replaces one that still waits: `displaced` is called with the topic.

    Args:
        displaced: called in the thread that hands messages over.
        failed: called with the exception of a message that could not be published, in the
            publishing thread.

    Attributes:
        jpeg_quality: of `<topic>/compressed`, 1 to 100.
    """

    def __init__(
        self,
        node: Any,
        displaced: Callable[[str], None] = lambda topic: None,
        failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.jpeg_quality = 95
        self._node = node
        self._displaced = displaced
        self._failed = failed
        self._publishers: dict[str, Any] = {}
        # Filled messages are used again: rclpy serializes before it returns.
        self._spare: dict[str, deque[Image]] = {FUSED: deque(), ANNOTATED: deque()}
        self._thread: Worker[_Message] = Worker(self._publish, "publishing", lambda error: None)
        try:
            self._advertise(Image, FUSED)
            self._advertise(CameraInfo, FUSED_INFO)
            self._advertise(Image, ANNOTATED)
            for topic in (FUSED, ANNOTATED):
                self._advertise(CompressedImage, compressed_topic(topic))
            self._advertise_detections()
        except Exception:
            self.close()
            raise

    @property
    def active(self) -> bool:
        """Whether messages are published at all: not after a deactivation."""
        publisher = self._publishers.get(FUSED)
        return publisher is not None and publisher.is_activated

    @property
    def pending(self) -> int:
        """Number of messages that wait or are being published."""
        return self._thread.pending

    @property
    def pending_images(self) -> int:
        """Number of fused images among them."""
        return self._thread.pending_of(FUSED)

    @property
    def busy_s(self) -> float:
        """How long the message in hand has taken, s; 0 if there is none."""
        return self._thread.busy_s

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until all is published; return whether that is so."""
        return self._thread.wait(timeout)

    def wanted(self, *topics: str) -> bool:
        """Whether one of `topics` has a subscriber."""
        publishers = (self._publishers.get(topic) for topic in topics)
        return any(one is not None and one.get_subscription_count() > 0 for one in publishers)

    def wanted_image(self, topic: str) -> bool:
        """Whether an image topic has a subscriber, compressed or not."""
        return self.wanted(topic, compressed_topic(topic))

    def image(
        self, topic: str, pixels: np.ndarray, header: Header, done: Done = lambda error: None
    ) -> None:
        """Publish an (H, W, 3) uint8 BGR image, if it has subscribers.

        `done` is called in any case, unless a newer image takes its place: then `displaced` is.
        """
        if not self.wanted_image(topic):
            done(None)
            return
        spare = self._spare[topic]
        message = images.fill(spare.pop() if spare else Image(), pixels, "bgr8", header)

        def publish() -> None:
            if self.wanted(topic):
                self._publishers[topic].publish(message)
            if self.wanted(compressed_topic(topic)):
                self._publish_compressed(topic, message)
            spare.append(message)

        self._hand_over(topic, _Message(publish, done))

    def info(self, info: CameraInfo | None, header: Header) -> None:
        """Publish the calibration that belongs to the fused image, if known and subscribed."""
        if info is not None and self.wanted(FUSED_INFO):
            self._hand_over_message(FUSED_INFO, messages.camera_info(info, header))

    def detections(self, found: Sequence[Detection], header: Header) -> None:
        """Publish boxes, if they have subscribers."""
        if self.wanted(DETECTIONS):
            self._hand_over_message(DETECTIONS, messages.detection_array(found, header))

    def close(self) -> None:
        """End the thread and destroy the publishers."""
        self._thread.stop(0.1)
        while self._publishers:
            self._node.destroy_lifecycle_publisher(self._publishers.popitem()[1])

    def _hand_over_message(self, topic: str, message: Any) -> None:
        publisher = self._publishers[topic]
        self._hand_over(topic, _Message(lambda: publisher.publish(message), lambda error: None))

    def _hand_over(self, topic: str, message: _Message) -> None:
        if self._thread.submit(message, topic):
            self._displaced(topic)

    def _publish(self, message: _Message) -> None:
        if not self.active:
            message.done(NotActiveError("the node is not active"))
            return
        try:
            message.publish()
        except Exception as error:
            message.done(error)
            self._failed(error)
        else:
            message.done(None)

    def _publish_compressed(self, topic: str, image: Image) -> None:
        data = encode_jpeg(images.view(image), self.jpeg_quality)
        message = messages.compressed_image(data, "bgr8; jpeg compressed bgr8", image.header)
        self._publishers[compressed_topic(topic)].publish(message)

    def _advertise(self, kind: type, topic: str) -> None:
        # As image_transport names it: after the name to which the image's topic is remapped.
        base, _, suffix = topic.rpartition("/")
        name = f"{self._node.resolve_topic_name(base)}/{suffix}" if suffix == _COMPRESSED else topic
        self._publishers[topic] = self._node.create_lifecycle_publisher(
            kind, name, _QUEUE, qos_overriding_options=QoSOverridingOptions(QOS_POLICIES)
        )

    def _advertise_detections(self) -> None:
        try:
            from vision_msgs.msg import Detection2DArray
        except Exception as error:  # not installed, or built for another rclpy
            self._node.get_logger().warning(
                f"publishing no detections, since vision_msgs cannot be used ({describe(error)}): "
                "apt install ros-$ROS_DISTRO-vision-msgs; everything else works"
            )
        else:
            self._advertise(Detection2DArray, DETECTIONS)


_COMPRESSED = "compressed"


def compressed_topic(topic: str) -> str:
    """Topic of the CompressedImage that belongs to a topic of images."""
    return f"{topic}/{_COMPRESSED}"
