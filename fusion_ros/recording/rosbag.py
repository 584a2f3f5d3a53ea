# SPDX-License-Identifier: AGPL-3.0-only
"""Sound bags of all formats by `rosbags`: rosbag2 (sqlite3, mcap, compressed, split) and ROS 1."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rosbags.rosbag1 import Reader as Rosbag1
from rosbags.rosbag2 import Reader as Rosbag2

from fusion_ros.recording.storage import Record, Topic

__all__ = ["Rosbag"]


class Rosbag:
    """One rosbag2 folder, one storage file, several of them, or a ROS 1 file; see `Storage`.

    files: storage files in any order, or one folder with its metadata.yaml.
    passed_over: called with a file of several that cannot be opened and the reason.
    Raises the exceptions of `rosbags` for files that it cannot open.
    """

    def __init__(
        self,
        files: Collection[Path],
        passed_over: Callable[[Path, Exception], None] | None = None,
    ) -> None:
        self.problem = ""
        self.ros1 = all(path.suffix == ".bag" for path in files)
        self._stack = ExitStack()
        readers: list[Any] = []
        try:
            for path in files:
                try:
                    reader = Rosbag1(path) if self.ros1 else Rosbag2(path)
                    readers.append(self._stack.enter_context(reader))
                except Exception as error:
                    if passed_over is None:
                        raise
                    passed_over(path, error)
        except BaseException:
            self.close()
            raise
        self._readers = sorted(readers, key=lambda reader: reader.start_time)
        self.kind = "ROS 1 bag" if self.ros1 else f"rosbag2 {_storage_of(files)}"
        full = [reader for reader in self._readers if reader.message_count]
        self.start_ns = min((reader.start_time for reader in full), default=0)
        self.end_ns = max((reader.end_time - 1 for reader in full), default=0)
        self.topics: dict[str, Topic] = {}
        for reader in self._readers:
            for each in reader.connections:
                known = self.topics.get(each.topic)
                count = each.msgcount + (known.count if known else 0)
                self.topics[each.topic] = Topic(each.topic, each.msgtype, count)

    def records(
        self,
        topics: Collection[str],
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[Record]:
        """See `Storage`. What is broken inside the bag ends the iteration and sets `problem`."""
        for reader in self._readers:
            wanted = [each for each in reader.connections if each.topic in topics]
            if not wanted:
                continue
            messages = reader.messages(connections=wanted, start=start_ns, stop=stop_ns)
            latest = read = 0
            try:
                for connection, log_ns, data in messages:
                    latest, read = log_ns, read + 1
                    yield Record(connection.topic, log_ns, bytes(data))
            except GeneratorExit:
                raise
            except Exception as error:  # sqlite3, zstd and struct errors of a damaged file
                after = (
                    f"{1e-9 * (latest - self.start_ns):.1f} s" if latest else "its first message"
                )
                self.problem = (
                    f"the bag is damaged after {after}: {_short(error)}; what comes later in that "
                    "file was not read"
                )
                continue
            named = sum(each.msgcount for each in wanted)
            if start_ns is None and stop_ns is None and read < named:
                self.problem = (
                    f"{named - read} of {named} messages of the cameras cannot be found: the bag "
                    "is damaged inside"
                )

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._stack.close()


def _storage_of(files: Collection[Path]) -> str:
    names = [path.name for path in files]
    for path in files:
        if path.is_dir():
            names += [inside.name for inside in path.iterdir()]
    return "mcap" if any(".mcap" in name for name in names) else "sqlite3"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
