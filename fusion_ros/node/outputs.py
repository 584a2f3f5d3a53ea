# SPDX-License-Identifier: AGPL-3.0-only
"""The node's publishers: fused images, their camera_info, boxes and diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import QoSPolicyKind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from fusion_ros.frame import images
from fusion_ros.frame.detector import Detection
from fusion_ros.node import messages
from fusion_ros.node.diagnostics import Status
from fusion_ros.node.guard import describe

__all__ = ["ANNOTATED", "DETECTIONS", "FUSED", "FUSED_INFO", "QOS_POLICIES", "Outputs"]

FUSED = "fused/image"
FUSED_INFO = "fused/camera_info"
ANNOTATED = "fused/image_annotated"
DETECTIONS = "detections"
DIAGNOSTICS = "/diagnostics"

QOS_POLICIES = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)
"""What `qos_overrides.<topic>.<publisher or subscription>.<policy>` may change."""

_QUEUE = 10


class Outputs:
    """Lifecycle publishers, from the node's configuration to its cleanup.

    A publisher of a deactivated node drops its messages.
    """

    def __init__(self, node: Any) -> None:
        self._node = node
        self._publishers: dict[str, Any] = {}
        # One message per topic is filled again and again: rclpy serializes before it returns.
        self._images = {FUSED: Image(), ANNOTATED: Image()}
        try:
            self._advertise(Image, FUSED)
            self._advertise(CameraInfo, FUSED_INFO)
            self._advertise(Image, ANNOTATED)
            self._advertise(DiagnosticArray, DIAGNOSTICS)
            self._advertise_detections()
        except Exception:
            self.close()
            raise

    @property
    def active(self) -> bool:
        """Whether the publishers are active: they are not after a deactivation."""
        return FUSED in self._publishers and self._publishers[FUSED].is_activated

    def wanted(self, *topics: str) -> bool:
        """Whether one of `topics` has a subscriber."""
        return any(
            topic in self._publishers and self._publishers[topic].get_subscription_count() > 0
            for topic in topics
        )

    def image(self, topic: str, pixels: np.ndarray, header: Header) -> None:
        """Publish an (H, W, 3) uint8 BGR image, if it has subscribers."""
        if self.wanted(topic):
            message = images.fill(self._images[topic], pixels, "bgr8", header)
            self._publishers[topic].publish(message)

    def info(self, info: CameraInfo | None, header: Header) -> None:
        """Publish the calibration that belongs to the fused image, if known and subscribed."""
        if info is not None and self.wanted(FUSED_INFO):
            self._publishers[FUSED_INFO].publish(messages.camera_info(info, header))

    def detections(self, found: Sequence[Detection], header: Header) -> None:
        """Publish boxes, if they have subscribers."""
        if self.wanted(DETECTIONS):
            self._publishers[DETECTIONS].publish(messages.detection_array(found, header))

    def diagnostics(self, statuses: Sequence[Status]) -> None:
        stamp = self._node.get_clock().now().to_msg()
        self._publishers[DIAGNOSTICS].publish(messages.diagnostic_array(statuses, stamp))

    def close(self) -> None:
        """Destroy the publishers."""
        while self._publishers:
            self._node.destroy_lifecycle_publisher(self._publishers.popitem()[1])

    def _advertise(self, kind: type, topic: str) -> None:
        self._publishers[topic] = self._node.create_lifecycle_publisher(
            kind, topic, _QUEUE, qos_overriding_options=QoSOverridingOptions(QOS_POLICIES)
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
