# SPDX-License-Identifier: AGPL-3.0-only
"""Subscriptions to one camera: its images, raw or compressed, and its camera_info."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from fusion_ros.node.camera import Camera
from fusion_ros.node.graph import COMPRESSED, IMAGE, Graph
from fusion_ros.node.outputs import QOS_POLICIES, compressed_topic
from fusion_ros.node.parameters import Parameters

__all__ = ["CameraInput"]

_IMAGES = 5
"""Depth of the image subscriptions: in a longer queue the images would only grow old."""
_KINDS = {IMAGE: Image, COMPRESSED: CompressedImage}


class CameraInput:
    """What the node subscribes to for one camera.

    camera_info is received however it is published: one subscription takes what comes. Where a
    publisher keeps what it published before (transient local), another one takes that.

    Args:
        on_image: called with an Image or a CompressedImage.
        on_info: called with a CameraInfo, with some of them twice.
        on_incompatible: called when a publisher of images offers less than is asked for.
    """

    def __init__(
        self,
        node: Any,
        camera: Camera,
        graph: Graph,
        parameters: Parameters,
        on_image: Callable[[Any], None],
        on_info: Callable[[Any], None],
        on_incompatible: Callable[[Any], None],
    ) -> None:
        self._node = node
        self._camera = camera
        self._graph = graph
        self._parameters = parameters
        self._on_image = on_image
        self._on_info = on_info
        self._on_incompatible = on_incompatible
        self._images: Any = None
        self._info: Any = None
        self._kept_info: Any = None

    def open(self) -> None:
        """Subscribe."""
        self._subscribe_to_images(*self._choice())
        topic = self._camera.info_topic
        live = QoSProfile(depth=_IMAGES, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._info = self._subscribe(CameraInfo, topic, self._on_info, live, overridable=True)
        self._follow_kept_info()

    def close(self) -> None:
        """End all subscriptions."""
        for subscription in (self._images, self._info, self._kept_info):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._images = self._info = self._kept_info = None

    def update(self) -> None:
        """Follow the camera to the transport and the QoS that it is published by."""
        self._follow_kept_info()
        topic, kind = self._choice()
        if (self._graph.resolve(topic), kind) != (self._camera.topic, self._camera.kind):
            self._node.get_logger().info(
                f"{self._camera.name} images: {kind} on {self._graph.resolve(topic)}"
            )
            # First the old one ends: a node cannot have two types of one topic.
            self._node.destroy_subscription(self._images)
            self._images = None
            self._subscribe_to_images(topic, kind)

    def _follow_kept_info(self) -> None:
        # Not in advance: every other publisher would warn of a subscription that asks too much.
        topic = self._camera.info_topic
        if self._kept_info is None and any(one.latched for one in self._graph.publishers(topic)):
            qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._kept_info = self._subscribe(CameraInfo, topic, self._on_info, qos)

    def _choice(self) -> tuple[str, str]:
        """Topic and type of the images to take."""
        topic, transport = self._camera.image_topic, self._parameters.input_transport
        if transport == "raw":
            return topic, IMAGE
        kinds = {publisher.kind for publisher in self._graph.publishers(topic)}
        beside = self._graph.resolve(topic) + "/compressed"
        if transport == "compressed":
            # A topic that is remapped to a compressed one is meant itself.
            itself = COMPRESSED in kinds or topic_is_compressed(self._graph.resolve(topic))
            return (topic if itself else beside), COMPRESSED
        if IMAGE not in kinds:
            if COMPRESSED in kinds:
                return topic, COMPRESSED
            if any(one.kind == COMPRESSED for one in self._graph.publishers(beside)):
                return beside, COMPRESSED
        return topic, IMAGE

    def _subscribe_to_images(self, topic: str, kind: str) -> None:
        reliable = self._parameters.qos == "reliable"
        qos = QoSProfile(
            depth=_IMAGES,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        self._images = self._subscribe(
            _KINDS[kind], topic, self._on_image, qos, self._on_incompatible, overridable=True
        )
        camera = self._camera
        camera.topic, camera.kind = self._graph.resolve(topic), kind
        camera.reliable = self._images.qos_profile.reliability == ReliabilityPolicy.RELIABLE

    def _subscribe(
        self,
        kind: type,
        topic: str,
        callback: Callable[[Any], None],
        qos: QoSProfile,
        on_incompatible: Callable[[Any], None] = lambda event: None,
        overridable: bool = False,
    ) -> Any:
        options = {"qos_overriding_options": self._overridable(topic)} if overridable else {}
        return self._node.create_subscription(
            kind,
            topic,
            callback,
            qos,
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=on_incompatible, use_default_callbacks=False
            ),
            **options,
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


def topic_is_compressed(topic: str) -> bool:
    """Whether a topic is named as image_transport names those of compressed images."""
    return topic.endswith(compressed_topic(""))
