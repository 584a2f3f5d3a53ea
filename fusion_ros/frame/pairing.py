# SPDX-License-Identifier: AGPL-3.0-only
"""Pairing of thermal and visible frames by stamp.

The rule: of all thermal and visible frames that are neighbours in time, the two closest form a
pair, then the two closest of the remaining ones, and so on, within the tolerance. Every frame
belongs to at most one pair, and pairs never cross. `Pairer` applies the rule while frames
arrive: it returns a pair as soon as no closer partner can arrive for either frame, judged by the
stamps seen so far and the measured periods of the streams.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

__all__ = ["Frame", "Pair", "Pairer", "PairingCounts", "StreamCounts"]

_JUMP_NS = 1_000_000_000
"""A frame that is older than its predecessor by more than this means that time jumped back."""

_GAPS = 8
"""Number of gaps whose median is the period: a few dropped frames do not change it."""

_SLOWER = 1.25
"""A stream is the slower one if its period is longer than the other by this factor."""


@dataclass(frozen=True)
class Frame:
    """An `item`, such as an image message, and its stamp in ns on its camera's clock."""

    stamp_ns: int
    item: Any


@dataclass(frozen=True)
class Pair:
    """A thermal and a visible frame of the same moment."""

    thermal: Frame
    visible: Frame


@dataclass
class StreamCounts:
    """Number of frames of one stream by outcome; `received` is always the sum of the others.

    Attributes:
        received: frames that were added.
        paired: frames in a pair (a frame of a slower stream that is reused counts once).
        too_far: the nearest frame of the other stream was outside the tolerance.
        missing: the other stream was silent, or its nearest frame had a closer partner.
        stale: dropped when time jumped back, or older than what was already decided.
        waiting: not decided yet.
    """

    received: int = 0
    paired: int = 0
    too_far: int = 0
    missing: int = 0
    stale: int = 0
    waiting: int = 0


@dataclass
class PairingCounts:
    """Counters of both streams, and the number of times that time jumped back."""

    thermal: StreamCounts = field(default_factory=StreamCounts)
    visible: StreamCounts = field(default_factory=StreamCounts)
    resets: int = 0


@dataclass
class _Entry:
    """A buffered frame. `time` is its stamp on the visible camera's clock, in ns."""

    frame: Frame
    time: int
    others: int
    """Frames received from the other stream before this one."""
    late: bool
    """Whether newer frames of the other stream were already decided when it arrived."""
    rivals: int = 0
    """Frames of the other stream whose nearest is this one; counted once this one is decided."""
    used: bool = False
    """Whether it is in a pair already and is kept to be reused."""


@dataclass
class _Decided:
    """The latest decided frame of a stream."""

    time: int
    paired: bool


class _Stream:
    """The waiting frames of one camera, oldest first, and its timing."""

    def __init__(self) -> None:
        self.counts = StreamCounts()
        self.entries: deque[_Entry] = deque()
        self.newest: int | None = None
        self.period: float | None = None
        self.shortest_gap = 0
        self.decided: _Decided | None = None
        self.epoch = 0
        self.out_of_order = False
        self.awaited_after: int | None = None
        self.awaited_since = 0.0
        self._gaps: deque[int] = deque(maxlen=_GAPS)

    def append(self, entry: _Entry) -> None:
        if self.newest is not None and entry.time > self.newest:
            self._gaps.append(entry.time - self.newest)
            self.period = median(self._gaps)
            self.shortest_gap = min(self._gaps)
        self.newest = entry.time
        self.entries.append(entry)

    def shift(self, delta: int) -> None:
        """Add `delta` ns to all times."""
        for entry in self.entries:
            entry.time += delta
        if self.newest is not None:
            self.newest += delta


class Pairer:
    """Pairs two streams of any rate, with jitter, lost frames and a constant clock offset.

    A silent stream delays a pair by at most one period. A frame without a partner is dropped
    when `queue_size` newer ones wait behind it. When the time of a stream jumps back (a bag that
    loops, a camera that restarts), both buffers are cleared and pairing starts again.

    Not thread safe: callers that add from several threads hold a lock. Adding costs O(queue).

    Attributes, which may be set at any time:
        tolerance_ns: greatest distance of the stamps of a pair.
        thermal_offset_ns: added to the thermal stamps before they are compared.
        reuse_slower: give every frame of the faster stream the nearest of the slower stream,
            which then belongs to several pairs.
    """

    def __init__(
        self,
        tolerance_ns: int,
        queue_size: int = 10,
        thermal_offset_ns: int = 0,
        reuse_slower: bool = False,
    ):
        """Raises `ValueError` for a negative tolerance or a queue of less than one frame."""
        if queue_size < 1:
            raise ValueError(f"queue_size is {queue_size}, expected at least 1")
        self.tolerance_ns = tolerance_ns
        self.queue_size = queue_size
        self.reuse_slower = reuse_slower
        self._thermal_offset_ns = thermal_offset_ns
        self._thermal = _Stream()
        self._visible = _Stream()
        self._resets = 0

    @property
    def tolerance_ns(self) -> int:
        return self._tolerance_ns

    @tolerance_ns.setter
    def tolerance_ns(self, value: int) -> None:
        if value < 0:
            raise ValueError(f"tolerance_ns is {value}, expected 0 or more")
        self._tolerance_ns = value

    @property
    def thermal_offset_ns(self) -> int:
        return self._thermal_offset_ns

    @thermal_offset_ns.setter
    def thermal_offset_ns(self, value: int) -> None:
        self._thermal.shift(value - self._thermal_offset_ns)
        self._thermal_offset_ns = value
        # Decisions made with the old offset do not apply to new frames.
        for stream in (self._thermal, self._visible):
            stream.decided = stream.awaited_after = None

    @property
    def counts(self) -> PairingCounts:
        """A copy of the counters as they stand."""
        thermal, visible = copy.copy(self._thermal.counts), copy.copy(self._visible.counts)
        for counts, own, other in (
            (thermal, self._thermal, self._visible),
            (visible, self._visible, self._thermal),
        ):
            counts.waiting = sum(not entry.used for entry in own.entries)
            counts.waiting += sum(entry.rivals for entry in other.entries)
        return PairingCounts(thermal, visible, self._resets)

    def add_thermal(self, stamp_ns: int, item: Any) -> list[Pair]:
        """Add a thermal frame; returns the pairs that are certain now, oldest first."""
        return self._add(self._thermal, Frame(stamp_ns, item), self._thermal_offset_ns)

    def add_visible(self, stamp_ns: int, item: Any) -> list[Pair]:
        """Add a visible frame; returns the pairs that are certain now, oldest first."""
        return self._add(self._visible, Frame(stamp_ns, item), 0)

    def flush(self) -> list[Pair]:
        """End both streams; returns the waiting pairs, oldest first, and counts all frames."""
        pairs = list(self._decide(latest=None))
        for stream in (self._thermal, self._visible):
            while stream.entries:
                self._drop(stream)
        return pairs

    def _add(self, stream: _Stream, frame: Frame, offset_ns: int) -> list[Pair]:
        other = self._other(stream)
        time = frame.stamp_ns + offset_ns
        stream.counts.received += 1
        if stream.newest is not None and time <= stream.newest:
            if not self._went_back(stream, time):
                stream.counts.stale += 1
                return []
            self._reset(stream)
        stream.out_of_order = False
        late = other.decided is not None and time < other.decided.time
        stream.append(_Entry(frame, time, other.counts.received, late))
        pairs = list(self._decide(latest=stream))
        if len(stream.entries) > self.queue_size:
            pairs += self._decide(latest=None)
            while len(stream.entries) > self.queue_size:
                self._drop(stream)
        return pairs

    def _went_back(self, stream: _Stream, time: int) -> bool:
        """Whether a frame that is not newer than its predecessor means a jump back in time.

        A single frame out of order does not; a second one in a row, or a large step, does.
        """
        back = stream.newest - time
        if back == 0:
            return False
        again, stream.out_of_order = stream.out_of_order, True
        return again or back > _JUMP_NS

    def _reset(self, stream: _Stream) -> None:
        """Drop the frames from before the time of `stream` jumped back.

        When a bag loops, both streams jump, one after the other. The frames that the first one
        has sent since its jump are kept when the second one jumps.
        """
        other = self._other(stream)
        streams = [stream]
        if stream.epoch < other.epoch:
            stream.epoch = other.epoch
        else:
            stream.epoch += 1
            self._resets += 1
            streams.append(other)
        for each in streams:
            for entry in each.entries:
                each.counts.stale += not entry.used
                self._other(each).counts.stale += entry.rivals
            each.entries.clear()
            each.decided = None
            each.awaited_after = None
        stream.newest = None

    def _other(self, stream: _Stream) -> _Stream:
        return self._visible if stream is self._thermal else self._thermal

    def _decide(self, latest: _Stream | None) -> Iterator[Pair]:
        """Decide all frames that can be decided.

        latest: the stream that the newest frame belongs to; None when no more frames will come.
        """
        slower = self._slower() if self.reuse_slower else None
        for stream in (self._thermal, self._visible):
            if stream is not slower and stream.entries and stream.entries[0].used:
                self._retire(stream, paired=True)
        if slower is None:
            return self._decide_once_each(latest)
        return self._decide_reusing(slower, self._other(slower), latest)

    def _slower(self) -> _Stream | None:
        thermal, visible = self._thermal, self._visible
        if thermal.period is None or visible.period is None:
            return None
        if thermal.period > _SLOWER * visible.period:
            return thermal
        return visible if visible.period > _SLOWER * thermal.period else None

    def _decide_once_each(self, latest: _Stream | None) -> Iterator[Pair]:
        """Apply the rule in the docstring of this module, starting at the oldest frame."""
        thermal, visible = self._thermal, self._visible
        while thermal.entries and visible.entries:
            first = visible if visible.entries[0].time < thermal.entries[0].time else thermal
            other = self._other(first)
            a, b = first.entries[0], other.entries[0]
            # Frames of one stream arrive in order, so none that is closer to a can still arrive.
            closest: bool | None = False
            if b.time - a.time <= self.tolerance_ns:
                closest = self._is_closest(first, other, latest)
            if closest is None:
                return
            if closest:
                yield self._pair(first, a, b)
                self._retire(first, paired=True)
                self._retire(other, paired=True)
            else:
                self._drop(first, b)

    def _is_closest(self, first: _Stream, other: _Stream, latest: _Stream | None) -> bool | None:
        """Whether the oldest frames of both streams are a pair; None if that is not known yet.

        Call the frames of `first` y0, y2, y4, ... and those of `other` y1, y3, ... As long as y2
        is closer to y1 than y0 is, y3 closer to y2 than y1 is, and so on, every frame prefers
        the next; the last two of that run are a pair, so those two before them are, and so on
        back: y0 and y1 are one if the number of steps is even.
        """
        streams = (first, other)
        gap = other.entries[0].time - first.entries[0].time
        step = 0
        while True:
            preferred, asked = streams[step % 2], streams[1 - step % 2]
            target = asked.entries[(step + 1) // 2].time
            index = step // 2 + 1
            if index == len(preferred.entries):
                if self._closer_may_come(preferred, asked, target, gap, latest):
                    return None
                break
            closer = abs(preferred.entries[index].time - target)
            if closer >= gap:
                break
            gap = closer
            step += 1
        return step % 2 == 0

    def _decide_reusing(
        self, slow: _Stream, fast: _Stream, latest: _Stream | None
    ) -> Iterator[Pair]:
        """Pair each frame of `fast` with the nearest frame of `slow`, which can be reused."""
        while fast.entries and slow.entries:
            frame, nearest = fast.entries[0], slow.entries[0]
            gap = abs(frame.time - nearest.time)
            if len(slow.entries) > 1:
                if abs(frame.time - slow.entries[1].time) <= gap:
                    self._drop(slow, frame)
                    continue
            elif frame.time > nearest.time and self._closer_may_come(
                slow, fast, frame.time, gap, latest
            ):
                return
            if gap <= self.tolerance_ns:
                yield self._pair(fast, frame, nearest)
            elif frame.late:
                fast.counts.stale += 1
            elif gap > slow.period and slow.counts.received == frame.others:
                fast.counts.missing += 1
            else:
                fast.counts.too_far += 1
            self._retire(fast, paired=frame.used)

    def _closer_may_come(
        self, awaited: _Stream, other: _Stream, target: int, gap: int, latest: _Stream | None
    ) -> bool:
        """Whether to wait for a frame of `awaited` that may be within `gap` of `target`.

        It may if it arrives after the shortest of the latest gaps, which allows for jitter. The
        wait lasts at most one period, measured by the stamps of `other`.
        """
        if latest is None or awaited.period is None:
            return False
        if awaited.newest + awaited.shortest_gap - target >= gap:
            return False
        if awaited.awaited_after != awaited.newest:
            awaited.awaited_after = awaited.newest
            awaited.awaited_since = other.newest
            if latest is awaited and other.period is not None:
                # It arrived after the newest of the other stream, but it is unknown how long after.
                awaited.awaited_since += other.period
        return other.newest < awaited.awaited_since + awaited.period

    def _pair(self, first: _Stream, a: _Entry, b: _Entry) -> Pair:
        """Pair a, from stream `first`, with b, from the other stream."""
        other = self._other(first)
        for stream, entry in ((first, a), (other, b)):
            stream.counts.paired += not entry.used
            entry.used = True
            self._settle_rivals(stream, entry, paired=True)
        if first is self._thermal:
            return Pair(a.frame, b.frame)
        return Pair(b.frame, a.frame)

    def _drop(self, stream: _Stream, right: _Entry | None = None) -> None:
        """Drop the oldest frame of `stream`; `right` is the next of the other stream, if any."""
        entry, other = stream.entries[0], self._other(stream)
        self._retire(stream, paired=entry.used)
        if entry.used:
            return
        left = other.decided
        left_gap = float("inf") if left is None else abs(entry.time - left.time)
        right_gap = float("inf") if right is None else abs(entry.time - right.time)
        nothing_came = right is None and other.counts.received == entry.others
        if entry.late:
            stream.counts.stale += 1
        elif nothing_came or min(left_gap, right_gap) <= self.tolerance_ns:
            stream.counts.missing += 1
        elif right_gap < left_gap and right.rivals < self.queue_size and not right.used:
            right.rivals += 1
        elif left is not None and left_gap <= right_gap and left.paired:
            stream.counts.missing += 1
        else:
            stream.counts.too_far += 1

    def _retire(self, stream: _Stream, paired: bool) -> None:
        """Remove the oldest frame from the buffer of `stream`."""
        entry = stream.entries.popleft()
        stream.decided = _Decided(entry.time, paired)
        self._settle_rivals(stream, entry, paired)

    def _settle_rivals(self, stream: _Stream, entry: _Entry, paired: bool) -> None:
        """Count the frames of the other stream whose nearest frame `entry` was."""
        counts = self._other(stream).counts
        if paired:
            counts.missing += entry.rivals
        else:
            counts.too_far += entry.rivals
        entry.rivals = 0
