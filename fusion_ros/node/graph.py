# SPDX-License-Identifier: AGPL-3.0-only
"""What a node can know of the others: publishers of a topic, their types and QoS, their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

__all__ = ["COMPRESSED", "IMAGE", "Graph", "Publisher"]

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"


@dataclass(frozen=True)
class Publisher:
    """A publisher of a topic.

    node: full name of its node; kind: the messages' type, such as `sensor_msgs/msg/Image`.
    reliable, latched: what it offers: reliable delivery, and its latest messages to those who come
    later (transient local).
    """

    node: str
    kind: str
    reliable: bool = True
    latched: bool = False


class Graph:
    """The graph of nodes and topics as one node sees it; usable from any thread.

    Topics are named relative to the node and remapped as its own are.
    """

    def __init__(self, node: Any) -> None:
        self._node = node

    @property
    def node_name(self) -> str:
        """Full name of the node, without the leading slash."""
        return self._node.get_fully_qualified_name().lstrip("/")

    def resolve(self, topic: str) -> str:
        """Full name of a topic; a name that is full already stays as it is."""
        return topic if topic.startswith("/") else self._node.resolve_topic_name(topic)

    def publishers(self, topic: str) -> list[Publisher]:
        """All publishers of a topic, whatever their type."""
        return [
            Publisher(
                f"{one.node_namespace.rstrip('/')}/{one.node_name}",
                one.topic_type,
                one.qos_profile.reliability != ReliabilityPolicy.BEST_EFFORT,
                one.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
            )
            for one in self._node.get_publishers_info_by_topic(self.resolve(topic))
        ]

    def image_topics(self) -> list[str]:
        """Full names of all topics that carry images, but for this node's own."""
        own = {publisher.topic_name for publisher in self._node.publishers}
        return sorted(
            name
            for name, kinds in self._node.get_topic_names_and_types()
            if name not in own and {IMAGE, COMPRESSED} & set(kinds) and self._published(name)
        )

    def namesakes(self) -> int:
        """Number of other nodes of the same full name."""
        full = self._node.get_fully_qualified_name()
        names = self._node.get_node_names_and_namespaces()
        return sum(f"{space.rstrip('/')}/{name}" == full for name, space in names) - 1

    @property
    def sim_time(self) -> bool:
        """Whether the node's time comes from /clock."""
        return bool(self._node.get_parameter("use_sim_time").value)

    def now_ns(self) -> int:
        """The node's clock; 0 while it waits for /clock."""
        return self._node.get_clock().now().nanoseconds

    def _published(self, name: str) -> bool:
        return bool(self._node.get_publishers_info_by_topic(name))
