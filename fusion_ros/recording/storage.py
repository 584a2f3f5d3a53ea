# SPDX-License-Identifier: AGPL-3.0-only
"""What every kind of bag offers to its readers: topics, a span of time, and raw messages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BagError", "Record", "Storage", "Topic", "WriteError"]


class BagError(ValueError):
    """A bag that cannot be read or written; the text says what was found and what to do."""


class WriteError(BagError):
    """A bag that cannot be written."""


@dataclass(frozen=True)
class Topic:
    """One topic of a bag: its ROS 2 type, such as `sensor_msgs/msg/Image`, and its messages."""

    name: str
    type: str
    count: int


@dataclass(frozen=True)
class Record:
    """One message as it was recorded.

    log_ns: when the recorder received it, ns; data: serialized as the bag's ROS version does.
    """

    topic: str
    log_ns: int
    data: bytes


class Storage(Protocol):
    """An open bag. `records` may be called again and again; nothing is read whole.

    kind: name of the format; ros1: messages are serialized as in ROS 1. start_ns, end_ns: receipt
    of the first and of the last message, 0 without messages. problem: what of the bag cannot be
    read, in a sentence; empty for a sound bag, and perhaps before all of it was read.
    """

    kind: str
    ros1: bool
    topics: dict[str, Topic]
    start_ns: int
    end_ns: int
    problem: str

    def records(
        self,
        topics: Collection[str],
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[Record]:
        """Messages of `topics` in the order of receipt, from `start_ns` until before `stop_ns`."""

    def close(self) -> None:
        """Close all files."""
