# SPDX-License-Identifier: AGPL-3.0-only
"""Statistics of the fusion: counters, rate, latency, stage times and faults."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Fault", "Monitor", "Percentiles", "Snapshot", "percentiles"]

_SAMPLES = 1000
"""Number of latest frames that percentiles and means are taken from."""


@dataclass(frozen=True)
class Percentiles:
    """The values that 50, 95 and 99 % of the samples do not exceed."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Fault:
    """A fault: the name of its counter, its latest text, and the age of that in seconds."""

    name: str
    text: str
    age_s: float


@dataclass(frozen=True)
class Snapshot:
    """The state at one moment.

    Attributes:
        fps: fused frames per second in the latest `window_s`; 0 when none were fused.
        mean_fps: fused frames per second from the first to the latest fused frame.
        latency_ms: from header stamp to publishing, None before the first frame.
        stage_ms: mean duration of each stage.
        counters: number of occurrences of each event, faults included.
        faults: one for each counter of faults, the latest first.
        samples: percentiles of what `sample` got, by name, in its unit.
        last_fused_s: time since the latest fused frame, s; None before the first.
    """

    fps: float
    mean_fps: float
    latency_ms: Percentiles | None
    stage_ms: dict[str, float]
    counters: dict[str, int]
    faults: tuple[Fault, ...]
    samples: dict[str, Percentiles] = field(default_factory=dict)
    last_fused_s: float | None = None


class Monitor:
    """Collects events and durations from any thread, and summarises them in a `Snapshot`.

    Args:
        log: called with the text of a fault, at most once a minute for each.
        window_s: seconds that `Snapshot.fps` looks back.
        clock: monotonic time in s.
    """

    def __init__(
        self,
        log: Callable[[str], None] = lambda text: None,
        window_s: float = 5.0,
        log_every_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._window_s = window_s
        self._log_every_s = log_every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._counters: Counter[str] = Counter()
        self._latency_ms: deque[float] = deque(maxlen=_SAMPLES)
        self._stage_ms: dict[str, deque[float]] = {}
        self._samples: dict[str, deque[float]] = {}
        self._fused_at: deque[float] = deque()
        self._first_fused: float | None = None
        self._faults: dict[str, tuple[str, float]] = {}
        self._logged: dict[str, tuple[float, int]] = {}

    def count(self, name: str, n: int = 1) -> None:
        """Add `n` to the counter `name`."""
        with self._lock:
            self._counters[name] += n

    def fused(self, latency_ms: float | None) -> None:
        """Record a published frame and its latency, from header stamp to publishing, in ms.

        None: the latency is unknown, as of images whose stamps are of another clock.
        """
        with self._lock:
            now = self._clock()
            if self._first_fused is None:
                self._first_fused = now
            self._fused_at.append(now)
            self._forget(now)
            if latency_ms is not None:
                self._latency_ms.append(latency_ms)
            self._counters["fused"] += 1

    def stage(self, name: str, ms: float) -> None:
        """Record the duration of one stage of one frame, in ms."""
        with self._lock:
            self._stage_ms.setdefault(name, deque(maxlen=_SAMPLES)).append(ms)

    def sample(self, name: str, value: float) -> None:
        """Record a value whose percentiles are of interest."""
        with self._lock:
            self._samples.setdefault(name, deque(maxlen=_SAMPLES)).append(value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record the duration of a `with` block as stage `name`, unless it raises."""
        start = time.perf_counter()
        yield
        self.stage(name, 1e3 * (time.perf_counter() - start))

    def fault(self, name: str, text: str) -> None:
        """Count a fault under `name` and log `text`, which says what happened and what to do."""
        with self._lock:
            now = self._clock()
            self._counters[name] += 1
            self._faults[name] = (text, now)
            total = self._counters[name]
            at, seen = self._logged.get(name, (-float("inf"), 0))
            if now - at < self._log_every_s:
                return
            self._logged[name] = (now, total)
        unseen = total - seen - 1
        self._log(f"{text} ({unseen} more since the last such message)" if unseen else text)

    def snapshot(self) -> Snapshot:
        """The state at this moment."""
        with self._lock:
            now = self._clock()
            fps = mean_fps = 0.0
            latest = self._fused_at[-1] if self._fused_at else None
            self._forget(now)
            if self._first_fused is not None:
                recent = [t for t in self._fused_at if now - t <= self._window_s]
                watched = now - self._first_fused
                fps = len(recent) / self._window_s
                if 0 < watched < self._window_s:
                    fps = (len(recent) - 1) / watched
                if latest > self._first_fused:
                    mean_fps = (self._counters["fused"] - 1) / (latest - self._first_fused)
            faults = [Fault(name, text, now - at) for name, (text, at) in self._faults.items()]
            return Snapshot(
                fps,
                mean_fps,
                percentiles(self._latency_ms) if self._latency_ms else None,
                {name: sum(ms) / len(ms) for name, ms in self._stage_ms.items()},
                dict(self._counters),
                tuple(sorted(faults, key=lambda fault: fault.age_s)),
                {name: percentiles(values) for name, values in self._samples.items()},
                None if latest is None else now - latest,
            )

    def _forget(self, now: float) -> None:
        # Keep the latest one: `mean_fps` ends there.
        while len(self._fused_at) > 1 and now - self._fused_at[0] > self._window_s:
            self._fused_at.popleft()


def percentiles(samples: Sequence[float]) -> Percentiles:
    """Percentiles of at least one sample by nearest rank: each is one of the samples."""
    ordered = sorted(samples)
    return Percentiles(*(ordered[-(-len(ordered) * p // 100) - 1] for p in (50, 95, 99)))
