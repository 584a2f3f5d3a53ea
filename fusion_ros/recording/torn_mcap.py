# SPDX-License-Identifier: AGPL-3.0-only
"""What is left of an mcap file without its end, as after a power failure, by the `mcap` library."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from fusion_ros.recording.storage import BagError, Record, Topic

__all__ = ["TornMcap"]

_LARGEST = 1 << 30
"""Length of a record in bytes beyond which its length is taken for damaged."""


class TornMcap:
    """The readable beginning of a file; see `Storage`. Opening reads through it once.

    Raises BagError if not even one message can be read.
    """

    kind = "rosbag2 mcap"
    ros1 = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._torn = ""
        counts: Counter[str] = Counter()
        types: dict[str, str] = {}
        first = last = 0
        for topic, kind, message in self._messages():
            counts[topic] += 1
            types[topic] = kind
            first = min(first or message.log_time, message.log_time)
            last = max(last, message.log_time)
        if not counts:
            raise BagError(
                f"'{path}' is not a bag: no message in it can be read"
                + (f" ({self._torn})" if self._torn else "")
            )
        self.start_ns, self.end_ns = first, last
        self.topics = {name: Topic(name, types[name], counts[name]) for name in counts}
        self.problem = (
            f"'{path.name}' has no proper end, as after a power failure or a copy that was cut off"
            f": only its first {1e-9 * (last - first):.1f} s, {sum(counts.values())} messages, can "
            "be read"
        )

    def records(
        self,
        topics: Collection[str],
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[Record]:
        """See `Storage`; in the order of receipt within each chunk of the file."""
        for topic, _, message in self._messages():
            if topic not in topics:
                continue
            late_enough = start_ns is None or message.log_time >= start_ns
            if late_enough and (stop_ns is None or message.log_time < stop_ns):
                yield Record(topic, message.log_time, message.data)

    def close(self) -> None:
        """Nothing stays open between two calls of `records`."""

    def _messages(self) -> Iterator[tuple[str, str, Message]]:
        """Topic, type and message of everything before the damage."""
        schemas: dict[int, str] = {}
        channels: dict[int, tuple[str, str]] = {}
        with self._path.open("rb") as file:
            reader = StreamReader(file, emit_chunks=True, record_size_limit=_LARGEST)
            records = iter(reader.records)
            while True:
                try:
                    record = next(records)
                    inside = breakup_chunk(record) if isinstance(record, Chunk) else [record]
                except StopIteration:
                    return
                except Exception as error:  # the library's own, struct's, the decompressors'
                    self._torn = f"{type(error).__name__}: {error}"[:200]
                    return
                ordered = sorted(
                    (one for one in inside if isinstance(one, Message)),
                    key=lambda message: message.log_time,
                )
                others = (one for one in inside if not isinstance(one, Message))
                for one in itertools.chain(others, ordered):
                    if isinstance(one, Schema):
                        schemas[one.id] = one.name
                    elif isinstance(one, Channel):
                        channels[one.id] = (one.topic, schemas.get(one.schema_id, ""))
                    elif isinstance(one, Message) and one.channel_id in channels:
                        yield (*channels[one.channel_id], one)
