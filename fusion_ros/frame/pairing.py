# SPDX-License-Identifier: AGPL-3.0-only
"""Pairing of thermal and visible frames by stamp.

The rule: of all neighbours in time, one thermal and one visible, the two closest are a pair,
then the two closest of those left, and so on, within the tolerance. Every frame belongs to one
pair at most, and pairs never cross. `Pairer` applies the rule while the frames come in: it
gives out a pair once no closer partner can come for either, judged by the stamps it has and the
streams' measured periods.
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
"""One frame older than its predecessor by more than this means that time went back."""

_GAPS = 8
"""A period is the median of so many gaps: a few dropped frames do not disturb it."""

_SLOWER = 1.25
"""One stream counts as slower than the other where its period is longer by this factor."""


@dataclass(frozen=True)
class Frame:
    """An `item` (an image message, say) and the nanoseconds of its own clock it was stamped at."""

    stamp_ns: int
    item: Any


@dataclass(frozen=True)
class Pair:
    """Two frames that belong together."""

    thermal: Frame
    visible: Frame


@dataclass
class StreamCounts:
    """What became of the frames of one stream; `received` is the sum of the others, always.

    Attributes:
        received: frames that were added.
        paired: belong to a pair (a slower stream's frame that is reused counts once).
        too_far: the nearest frame of the other stream was outside the tolerance.
        missing: the other stream was silent, or its nearest frame went to a closer one.
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
    """Counters of both streams, and how often time jumped back."""

    thermal: StreamCounts = field(default_factory=StreamCounts)
    visible: StreamCounts = field(default_factory=StreamCounts)
    resets: int = 0


@dataclass
class _Entry:
    """A buffered frame. `time` is its stamp on the visible camera's clock, in ns."""

    frame: Frame
    time: int
    others: int
    """Frames the other stream had sent when this one came."""
    late: bool
    """Came when newer frames of the other stream were decided already."""
    rivals: int = 0
    """Frames of the other stream that lost this one, and are counted once its own fate is known."""
    used: bool = False
    """Belongs to a pair already and is kept to be reused."""


@dataclass
class _Decided:
    """The latest frame of a stream whose fate is known."""

    time: int
    paired: bool


class _Stream:
    """One camera's frames, oldest first, and what is known of its timing."""

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
        """Move everything known by `delta` ns."""
        for entry in self.entries:
            entry.time += delta
        if self.newest is not None:
            self.newest += delta


class Pairer:
    """Pairs two streams of any rates, with jitter, drops and a constant offset of the clocks.

    A stream that goes silent delays a pair by one period at most, and frames that find no
    partner leave when `queue_size` newer ones wait behind them. When a stream's time jumps back
    (a bag that loops, a camera that restarts), both buffers are dropped and pairing begins anew.

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
        # What was decided under the other offset says nothing about the frames to come.
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
        """Take in a thermal frame; the pairs that are certain now, oldest first."""
        return self._add(self._thermal, Frame(stamp_ns, item), self._thermal_offset_ns)

    def add_visible(self, stamp_ns: int, item: Any) -> list[Pair]:
        """Take in a visible frame; the pairs that are certain now, oldest first."""
        return self._add(self._visible, Frame(stamp_ns, item), 0)

    def flush(self) -> list[Pair]:
        """End of the streams: the pairs that wait, oldest first; what is left is counted."""
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
        """Whether a frame that is not newer than its predecessor starts time anew.

        One that is just out of order does not; a second one in a row does, or a large step.
        """
        back = stream.newest - time
        if back == 0:
            return False
        again, stream.out_of_order = stream.out_of_order, True
        return again or back > _JUMP_NS

    def _reset(self, stream: _Stream) -> None:
        """Forget what came before the time of `stream` jumped back.

        When a bag loops both streams jump, one after the other. The second only catches up, so
        the frames that the first one has sent since are kept.
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
        """Decide every frame that can be; `latest` just got a frame, None: nothing more comes."""
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
        """Apply the rule of this file's first lines, from the oldest frame on."""
        thermal, visible = self._thermal, self._visible
        while thermal.entries and visible.entries:
            first = visible if visible.entries[0].time < thermal.entries[0].time else thermal
            other = self._other(first)
            a, b = first.entries[0], other.entries[0]
            # Frames of one stream come in order, so nothing can come between a and b any more
            # that is closer to a.
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
        """Whether the oldest frames of both are a pair, None if that is not known yet.

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
        """Give each frame of `fast` the nearest of `slow`, which stays to be given again."""
        while fast.entries and slow.entries:
            frame, nearest = fast.entries[0], slow.entries[0]
            gap = abs(frame.time - nearest.time)
            if len(slow.entries) > 1:
                if abs(frame.time - slow.entries[1].time) <= gap:
                    self._drop(slow, frame)
                    continue
            elif frame.time > nearest.time:
                if self._closer_may_come(slow, fast, frame.time, gap, latest):
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
        """Whether to wait for the next frame of `awaited`: may it be within `gap` of `target`?

        It may when it comes as early as any came lately, which allows for jitter. The wait is
        no longer than a period, by the clock that the stamps of `other` are.
        """
        if latest is None or awaited.period is None:
            return False
        if awaited.newest + awaited.shortest_gap - target >= gap:
            return False
        if awaited.awaited_after != awaited.newest:
            awaited.awaited_after = awaited.newest
            awaited.awaited_since = other.newest
            if latest is awaited and other.period is not None:
                # It came after the newest of the other, how long after is not known.
                awaited.awaited_since += other.period
        return other.newest < awaited.awaited_since + awaited.period

    def _pair(self, first: _Stream, a: _Entry, b: _Entry) -> Pair:
        """The pair of a, from stream `first`, and b from the other."""
        other = self._other(first)
        for stream, entry in ((first, a), (other, b)):
            stream.counts.paired += not entry.used
            entry.used = True
            self._settle_rivals(stream, entry, paired=True)
        if first is self._thermal:
            return Pair(a.frame, b.frame)
        return Pair(b.frame, a.frame)

    def _drop(self, stream: _Stream, right: _Entry | None = None) -> None:
        """Give up the oldest frame of `stream`; `right` is the next of the other stream, if any."""
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
        """Take the oldest frame out of the buffer of `stream`."""
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
