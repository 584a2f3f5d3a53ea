# SPDX-License-Identifier: AGPL-3.0-only
"""The size at which images are fused so that the cameras' rate is held (`processing_size: auto`).

Only numbers go in and out: the times of pairs and frames, and a size. Loading and
measuring are done elsewhere, so tests run this module on a clock of their own.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["SIZES", "START_ON_CPU", "Change", "Pace", "PaceState", "Shares", "sizes_for"]

T = TypeVar("T")

SIZES = (
    *(2560, 2048, 1600, 1280, 1024, 896, 768, 640, 576, 512, 448, 400, 352, 320, 288, 256, 224),
    *(192, 160, 128, 96, 64, 48, 32),
)
"""Sizes to choose from besides the images' own, px: about three quarters of the pixels a step."""
START_ON_CPU = 320
"""Where `auto` starts on a processor, px; on a GPU it starts at the images' own size."""

_WINDOW_S = 2.0
"""Time over which frames are measured, s."""
_LONG_WINDOW_S = 4.0
"""Time over which a larger size must seem possible before it is chosen, s."""
_FRAMES = 8
"""Least number of frames for a decision."""
_UNSETTLED_S = 1.0
_SETTLED_S = 5.0
"""Least time between two changes, s, until a size was found that fits, and from then on."""
_SEARCH_S = 10.0
"""How long the first search for a size takes at most, s."""


@dataclass(frozen=True)
class _Limits:
    """Shares of the time between two frames.

    full: above it a size is too large. aim: highest expected share when images become smaller.
    rise: highest expected share when they become larger.
    """

    full: float
    aim: float
    rise: float


_LIMITS = _Limits(full=0.9, aim=0.8, rise=0.75)
_LIMITS_OF_LANES = _Limits(full=0.95, aim=0.88, rise=0.82)
"""Of two frames in progress at a time one that takes long does not delay the other, so that more of
the time can be used before pairs are lost."""
_LOST = 0.05
"""Share of lost pairs above which a size is too large, although its time seems to suffice."""
_BUSY = 0.5
"""Below this share of time, the size is not taken for the cause of lost pairs."""
_LIFTED = 0.75
"""Load has gone if the network's time for a pixel falls to this share."""
_STEADY = 0.2
"""Difference of the network's times, as a share, that counts as none."""
_BAR_S, _LONGEST_BAR_S = 30.0, 600.0
"""How long a size that proved too large is not chosen, s: at first, and at most after doubling."""
_SOON_S = 30.0
_TRUST_S = 60.0
"""Half-life of a measured ratio of the costs of two sizes, s."""


def sizes_for(longest: int, least: int) -> list[int]:
    """Sizes to choose from for images with a longer side of `longest` px, largest first.

    The first is 0, the images' own size. None is below `least` or hardly smaller than the images.
    """
    return [0, *(size for size in SIZES if least <= size <= 0.92 * longest)]


@dataclass(frozen=True)
class Change:
    """Another size, px (0: the images' own), and why, in words for a log."""

    size: int
    reason: str


@dataclass(frozen=True)
class PaceState:
    """What diagnostics show.

    size: px, 0 for the images' own. wanted_fps: the cameras' rate, or `target_rate` if that is
    lower. held_fps: fused images per second. load: share of the time between two frames that a
    frame takes. limit: what keeps images from being fused at full size or at the wanted rate.
    """

    size: int
    wanted_fps: float
    held_fps: float
    load: float
    limit: str


@dataclass(frozen=True)
class _Frame:
    end: float
    busy_s: float
    network_s: float
    search_s: float


class Shares:
    """Divides the time during which frames are in hand among them, equally at each moment.

    The shares of all frames add up to the time in which at least one was in hand, so that share
    times rate says how much of the time is used, however many frames overlap. Thread-safe.

    clock: monotonic time in s.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._in_hand = 0
        self._at = 0.0
        self._each = 0.0

    def begin(self) -> float:
        """Note that a frame begins; return what `end` takes."""
        with self._lock:
            self._advance()
            self._in_hand += 1
            return self._each

    def end(self, begun: float) -> float:
        """Note that a frame ends; return its share, s."""
        with self._lock:
            self._advance()
            self._in_hand -= 1
            return self._each - begun

    def _advance(self) -> None:
        now = self._clock()
        if self._in_hand:
            self._each += (now - self._at) / self._in_hand
        self._at = now


class Pace:
    """Chooses the size from measured times; `pair`, `lost` and `frame` come from any thread.

    A frame's time is a fixed part and the network's. The network's is expected to grow with the
    number of pixels, corrected by what was measured at each change of size. Images become smaller
    when a frame takes more than `full` of the time between two, or pairs are lost; they become
    larger when it would take less than `rise` of it (see `_Limits`). Between the two nothing
    changes. A frame that overlaps with another one counts with its share of the time. A size that
    proves too large soon after it was chosen is left alone for a time that doubles, unless load
    goes away.

    Args:
        size: that runs at first, px; 0 for the images' own.
        least: least size to choose, px.
        target_rate: images per second to aim at if the cameras send more; 0: the cameras' rate.
        clock: monotonic time in s.

    Attributes:
        lanes: how many frames can be in hand.
    """

    def __init__(
        self,
        size: int,
        least: int,
        target_rate: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.least = least
        self.target_rate = target_rate
        self.lanes = 1
        self._clock = clock
        self._lock = threading.Lock()
        self._size = size
        self._longest = 0
        self._learned: dict[int, tuple[float, float]] = {}
        self._refused: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """Discard the measurements and keep the size, as after an activation."""
        with self._lock:
            self._pairs: deque[tuple[float, int]] = deque(maxlen=1024)
            self._lost: deque[float] = deque(maxlen=1024)
            self._pending: int | None = None
            self._settled = False
            self._started: float | None = None
            self._bars: dict[int, tuple[float, float, float]] = {}
            self._rose: tuple[float, int] | None = None
            self._aim: float | None = None
            self._before: tuple[int, float] | None = None
            self._begin(self._clock())

    @property
    def size(self) -> int:
        """Size that runs or is being loaded, px; 0 for the images' own."""
        return self._size if self._pending is None else self._pending

    def images(self, longest: int) -> None:
        """Set the longer side of the cameras' images, px."""
        with self._lock:
            if longest != self._longest:
                self._longest = longest
                self._begin(self._clock())

    def pair(self, stamp_ns: int) -> None:
        """Note a pair of images, with its stamp."""
        with self._lock:
            self._pairs.append((self._clock(), stamp_ns))

    def lost(self, number: int = 1) -> None:
        """Note pairs that were displaced before they were fused."""
        with self._lock:
            self._lost.extend([self._clock()] * number)

    def frame(self, size: int, busy_s: float, network_s: float, search_s: float = 0.0) -> None:
        """Note a fused frame.

        size: at which it was fused, px. busy_s: how long no other frame could be taken, s, of which
        network_s: in the network, search_s: in the detector.
        """
        with self._lock:
            now = self._clock()
            if self._pending is not None and self._same(size, self._pending):
                self._size, self._pending = self._pending, None
                self._begin(now)
                return  # the first frame of a size may prepare buffers
            if self._same(size, self._size):
                self._frames.append(_Frame(now, busy_s, network_s, search_s))

    def use(self, size: int) -> None:
        """Continue from another size, px, which was chosen elsewhere and runs now."""
        with self._lock:
            self._size, self._pending = size, None
            self._begin(self._clock())

    def refuse(self, size: int) -> None:
        """Note that a size cannot be loaded; it is not chosen again."""
        with self._lock:
            self._refused.add(size)
            self._pending = None
            self._begin(self._clock())

    def neighbours(self) -> list[int]:
        """Sizes that the next change may ask for, likeliest first, to be made ready ahead."""
        with self._lock:
            now = self._clock()
            frames = self._recent(now, _WINDOW_S)
            rate = self._wanted(now)
            if self._pending is not None or not (
                self._settled and frames and rate and self._longest
            ):
                return []
            sizes = self._sizes()
            here = self._index(sizes)
            load = _mean(f.busy_s for f in frames) * rate
            found = []
            if load > self._limits.rise and here + 1 < len(sizes):
                found.append(sizes[here + 1])
            if here and self._expected(sizes[here - 1], frames, now) * rate < self._limits.full:
                found.append(sizes[here - 1])
            return found

    def decide(self) -> Change | None:
        """The size to change to now; None to stay. The change counts once a frame has that size."""
        with self._lock:
            return self._decide(self._clock())

    def state(self) -> PaceState:
        """What is held at this moment, and what limits it."""
        with self._lock:
            now = self._clock()
            frames, rate = self._recent(now, _WINDOW_S), self._wanted(now) or 0.0
            if not frames:
                return PaceState(self._size, rate, 0.0, 0.0, "nothing measured yet")
            busy = _mean(f.busy_s for f in frames)
            span = now - max(self._since, now - _WINDOW_S)
            held = min(len(frames) / span, rate or len(frames)) if span > 0 else 0.0
            return PaceState(self._size, rate, held, busy * rate, self._limit(frames, rate))

    @property
    def _limits(self) -> _Limits:
        return _LIMITS if self.lanes == 1 else _LIMITS_OF_LANES

    # --- In the lock ----------------------------------------------------------------------------

    def _decide(self, now: float) -> Change | None:
        frames, rate = self._recent(now, _WINDOW_S), self._wanted(now)
        if self._pending is not None or not self._longest or not rate or len(frames) < _FRAMES:
            return None
        self._learn(frames, now)
        since = now - self._since
        if self._started is None:
            self._started = now
        self._settled = self._settled or now - self._started > _SEARCH_S
        if since < (_SETTLED_S if self._settled else _UNSETTLED_S):
            return None
        sizes = self._sizes()
        here = self._index(sizes)
        busy = _mean(f.busy_s for f in frames)
        load = busy * rate
        lost = self._lost_share(now)
        limits = self._limits
        aim = min(self._aim or limits.aim, limits.aim)
        if (load > limits.full or (lost > _LOST and load > _BUSY)) and here + 1 < len(sizes):
            if load <= limits.full:
                # Its time suffices on average but not always, as on cores that others use too.
                self._aim = aim = max(min(aim, 0.9 * load), _BUSY)
            fitting = [s for s in sizes[here + 1 :] if self._expected(s, frames, now) * rate <= aim]
            size = fitting[0] if fitting else sizes[-1]
            if self._rose is not None and now - self._rose[0] < _SOON_S + _SETTLED_S:
                self._bar(self._rose[1], frames, now)
            self._rose = None
            why = f"a frame takes {1e3 * busy:.0f} of {1e3 / rate:.0f} ms"
            if load <= limits.full:
                why += f" and {lost:.0%} of the pairs are lost"
            return self._change(size, frames, now, why)
        if lost <= _LOST and since > 10 * _SETTLED_S:
            self._aim = aim = min(limits.aim, aim + 0.02)
        window = _LONG_WINDOW_S if self._settled else _WINDOW_S
        frames = self._recent(now, window)
        if not _steady(frames):
            return None  # load comes or goes: what is expected would be wrong
        rise = min(limits.rise, aim - 0.05)
        for size in sizes[:here] if lost <= _LOST else ():
            expected = self._expected(size, frames, now)
            if expected * rate <= rise and not self._barred(size, frames, now):
                if self._settled and since < window:
                    return None
                self._rose = (now, size)
                return self._change(
                    size,
                    frames,
                    now,
                    f"a frame takes {1e3 * busy:.0f} of {1e3 / rate:.0f} ms, and "
                    f"{1e3 * expected:.0f} ms at that size",
                )
        if since >= _WINDOW_S:
            self._settled = True
        return None

    def _change(self, size: int, frames: list[_Frame], now: float, why: str) -> Change | None:
        if self._same(size, self._size):
            return None
        # While load comes or goes, times before and after a change cannot be compared.
        steady = _steady(frames)
        self._before = (self._size, _mean(f.network_s for f in frames)) if steady else None
        self._pending = size
        name = f"{size} px" if size else "full size"
        return Change(size, f"fusing at {name} from now on: {why}")

    def _begin(self, now: float) -> None:
        self._since = now
        self._frames: deque[_Frame] = deque(maxlen=1024)
        self._lost.clear()

    def _sizes(self) -> list[int]:
        sizes = [s for s in sizes_for(self._longest, self.least) if s not in self._refused]
        return sizes or [self._size]

    def _index(self, sizes: list[int]) -> int:
        """Place of the present size, or of the next smaller one, in `sizes`."""
        pixels = self._pixels(self._size)
        return next((i for i, s in enumerate(sizes) if self._pixels(s) <= pixels), len(sizes) - 1)

    def _same(self, one: int, other: int) -> bool:
        return self._pixels(one) == self._pixels(other)

    def _pixels(self, size: int) -> int:
        """Pixels of a square image at this size; those of the images' own if that is smaller."""
        own = self._longest or max(SIZES)
        return min(size or own, own) ** 2

    def _cost(self, size: int, now: float) -> float:
        """Cost of the network at a size, in any unit."""
        factor, at = self._learned.get(size, (1.0, now))
        return self._pixels(size) * factor ** (0.5 ** ((now - at) / _TRUST_S))

    def _learn(self, frames: list[_Frame], now: float) -> None:
        """Compare the network's time before and after a change, once enough was measured."""
        if self._before is None or now - self._since < _UNSETTLED_S:
            return
        size, seconds = self._before
        self._before = None
        if seconds <= 0 or self._same(size, self._size):
            return
        measured = _mean(f.network_s for f in frames) / seconds * self._cost(size, now)
        factor = measured / self._pixels(self._size)
        self._learned[self._size] = (min(max(factor, 0.5), 2.0), now)

    def _expected(self, size: int, frames: list[_Frame], now: float) -> float:
        """Expected time of a frame at another size, s."""
        network = _mean(f.network_s for f in frames)
        rest = _mean(f.busy_s for f in frames) - network
        return rest + network * self._cost(size, now) / self._cost(self._size, now)

    def _unit(self, frames: list[_Frame], now: float) -> float:
        """The network's time for one unit of cost: how slow the machine is at present."""
        return _mean(f.network_s for f in frames) / self._cost(self._size, now)

    def _bar(self, size: int, frames: list[_Frame], now: float) -> None:
        wait = min(2 * self._bars[size][2], _LONGEST_BAR_S) if size in self._bars else _BAR_S
        self._bars[size] = (now + wait, self._unit(frames, now), wait)

    def _barred(self, size: int, frames: list[_Frame], now: float) -> bool:
        unit = self._unit(frames, now)
        return any(
            now < until and unit > _LIFTED * then and self._pixels(size) >= self._pixels(barred)
            for barred, (until, then, _) in self._bars.items()
        )

    def _recent(self, now: float, window: float) -> list[_Frame]:
        """Frames of the latest `window` seconds; at a low rate, some that are older."""
        recent = _latest(self._frames, lambda frame: now - frame.end <= window)
        return recent if len(recent) >= _FRAMES else list(self._frames)[-_FRAMES:]

    def _wanted(self, now: float) -> float | None:
        """Frames per second to hold; None if it is not known yet.

        Counted by stamps, so that pairs are not forgotten that never reached a busy node.
        """
        pairs = _latest(self._pairs, lambda pair: now - pair[0] <= _LONG_WINDOW_S)
        if len(pairs) < _FRAMES:
            pairs = list(self._pairs)[-_FRAMES:]
        if len(pairs) < 4:
            return None
        (first, first_ns), (last, last_ns) = pairs[0], pairs[-1]
        steps = [b - a for (_, a), (_, b) in zip(pairs, pairs[1:]) if b > a]
        if not steps or last <= first:
            return None
        sent = (last_ns - first_ns) / statistics.median_low(steps)
        sent = min(max(sent, len(pairs) - 1), 4 * len(pairs))
        rate = sent / (last - first)
        return min(rate, self.target_rate) if self.target_rate else rate

    def _lost_share(self, now: float) -> float:
        """Share of the pairs of the latest time that were lost; 0 if fewer are wanted anyway."""
        start = max(now - _LONG_WINDOW_S, self._since)
        pairs = len(_latest(self._pairs, lambda pair: pair[0] >= start))
        lost = sum(at >= start for at in self._lost)
        rate = pairs / (now - start) if now > start else 0.0
        if not pairs or (self.target_rate and self.target_rate < 0.95 * rate):
            return 0.0
        return lost / pairs

    def _limit(self, frames: list[_Frame], rate: float) -> str:
        full = self._same(self._size, 0)
        busy = _mean(f.busy_s for f in frames)
        if full and busy * rate <= self._limits.full:
            return "nothing"
        network, search = (_mean(getattr(f, n) for f in frames) for n in ("network_s", "search_s"))
        rest = busy - network - search
        parts = {"network": network, "detector": search, "conversion and publishing": rest}
        return max(parts, key=parts.get)


def _latest(items: deque[T], belongs: Callable[[T], bool]) -> list[T]:
    """The last items, in order, up to the first from behind that does not belong to them."""
    found = list(itertools.takewhile(belongs, reversed(items)))
    found.reverse()
    return found


def _steady(frames: list[_Frame]) -> bool:
    """Whether the network takes the same time in all quarters of what was measured."""
    quarter = len(frames) // 4
    times = [_mean(f.network_s for f in frames[-quarter * (i + 1) :][:quarter]) for i in range(4)]
    return max(times) - min(times) <= _STEADY * max(times)


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
