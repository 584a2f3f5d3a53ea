# SPDX-License-Identifier: AGPL-3.0-only
"""What stamps say about two camera streams: rates, gaps, clocks, pairs, and the settings to use.

Pure functions of stamps and times of receipt in ns, as int64 arrays in the order of receipt; no
files, no messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fusion_ros.frame.pairing import Pairer, PairingCounts

__all__ = [
    "Clocks",
    "Pairing",
    "Recommendation",
    "Stream",
    "Times",
    "compare_clocks",
    "describe_stream",
    "pair",
    "recommend",
]

_JUMP_NS = 1_000_000_000
"""A stamp that is older than the one before it by more is a jump back, as of a looped bag."""
_BINS = 60
_WANTED = 0.99
"""Share of the pairs that can be made which the recommended tolerance makes."""
_MARGIN = 1.1
_LEAST_TOLERANCE_NS = 5_000_000
"""Room for a busy day, where stamps agree exactly; at most a quarter of the shorter period."""
_LEAST_OFFSET_NS = 1_000_000
_STEADY_PPM = 500.0
"""Rates that agree to this belong to cameras with one trigger, or of one kind."""


@dataclass
class Times:
    """Stamps and times of receipt of one stream, ns."""

    stamps: np.ndarray
    logs: np.ndarray

    @classmethod
    def of(cls, stamps: Sequence[int], logs: Sequence[int]) -> Times:
        return cls(np.asarray(stamps, np.int64), np.asarray(logs, np.int64))

    def __len__(self) -> int:
        return len(self.stamps)


@dataclass(frozen=True)
class Stream:
    """One stream of images, by its stamps.

    rate_hz: one over the median period; jitter_ms: standard deviation of the stamps about an even
    grid from one image to the next, gaps left out; dropped: images that are missing in `gaps`, each
    (seconds since the first stamp, length in ms, images missing); repeated, back: stamps equal to,
    or older than, the one before; jumps: those of the latter by more than a second.
    """

    count: int
    seconds: float
    rate_hz: float
    mean_hz: float
    period_ms: float
    jitter_ms: float
    longest_gap_ms: float
    dropped: int
    repeated: int
    back: int
    jumps: int
    gaps: list[tuple[float, float, int]] = field(default_factory=list)


def describe_stream(times: Times, most_gaps: int = 50) -> Stream:
    """Describe a stream of at least one image; at most `most_gaps`, the longest, are listed."""
    stamps = times.stamps
    if len(stamps) < 2:
        return Stream(len(stamps), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0)
    steps = np.diff(stamps)
    forward = steps[steps > 0]
    repeated, back = int((steps == 0).sum()), int((steps < 0).sum())
    jumps = int((steps < -_JUMP_NS).sum())
    if not len(forward):
        return Stream(len(stamps), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, repeated, back, jumps)
    period = float(np.median(forward))
    # The median of few whole periods with drops among them may be two periods: the mean of those
    # near it is finer, since stamps may be rounded to milliseconds.
    near = forward[np.abs(forward - period) < 0.5 * period]
    period = float(near.mean()) if len(near) else period
    missing = np.maximum(np.rint(steps / period) - 1, 0).astype(int)
    at = (stamps[:-1] - stamps[0]) * 1e-9
    longest = sorted(np.flatnonzero(missing), key=lambda i: (-steps[i], i))[:most_gaps]
    gaps = [(float(at[i]), float(steps[i]) * 1e-6, int(missing[i])) for i in sorted(longest)]
    seconds = float(forward.sum()) * 1e-9
    return Stream(
        len(stamps),
        seconds,
        1e9 / period,
        len(forward) / seconds,
        period * 1e-6,
        # The error of a step is that of two stamps.
        float(near.std() / math.sqrt(2)) * 1e-6 if len(near) > 1 else 0.0,
        float(forward.max()) * 1e-6,
        int(missing.sum()),
        repeated,
        back,
        jumps,
        gaps,
    )


@dataclass(frozen=True)
class Clocks:
    """How far the thermal camera's stamps run ahead of the RGB camera's.

    Measured against the recorder's clock: the delay of each stamp to the receipt of its message, as
    a straight line over time, thermal less RGB. It contains the difference of both transports.

    known: False where the recording holds no times of receipt apart from the stamps.
    offset_ms: in the middle of the recording; drift_ppm: microseconds a second; both with the
    standard error of the line. course: (seconds since the start, ms) to plot.
    """

    known: bool
    offset_ms: float = 0.0
    offset_error_ms: float = 0.0
    drift_ppm: float = 0.0
    drift_error_ppm: float = 0.0
    course: list[tuple[float, float]] = field(default_factory=list)

    @property
    def drifts(self) -> bool:
        """Whether the drift is more than its error, and more than 1 ms over the recording."""
        if not self.course:
            return False
        span_s = self.course[-1][0] - self.course[0][0]
        return abs(self.drift_ppm) > 4 * self.drift_error_ppm and (
            abs(self.drift_ppm) * span_s > 1000
        )


def compare_clocks(thermal: Times, rgb: Times) -> Clocks:
    """Offset and drift of the thermal camera's clock against that of the RGB camera."""
    if min(len(thermal), len(rgb)) < 2 or all(
        np.array_equal(times.stamps, times.logs) for times in (thermal, rgb)
    ):
        return Clocks(False)
    start = int(min(thermal.logs[0], rgb.logs[0]))
    end = int(max(thermal.logs[-1], rgb.logs[-1]))
    edges = np.linspace(start, end + 1, min(_BINS, len(thermal), len(rgb)) + 1)
    at, ahead = [], []
    delays = [_binned(times, edges) for times in (thermal, rgb)]
    for one, other in zip(*delays):
        if one is not None and other is not None:
            # Both delays at one moment: bins hold few images of a slow camera.
            at.append(((one[0] + other[0]) / 2 - start) * 1e-9)
            ahead.append((one[1] - other[1]) * 1e-6)
    if len(at) < 2:
        return Clocks(bool(at), ahead[0] if at else 0.0)
    x, y = np.array(at), np.array(ahead)
    line = _line(x, y)
    # Once more without what is far off: a transport that stalled for a while.
    rest = y - (line[0] + line[1] * x)
    spread = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    good = np.abs(rest) <= max(4 * spread, 1e-6)
    if 2 < good.sum() < len(x):
        x, y = x[good], y[good]
        line = _line(x, y)
    intercept, slope = line
    rest = y - (intercept + slope * x)
    middle = (end - start) * 0.5e-9
    degrees = max(len(x) - 2, 1)
    sigma = math.sqrt(float((rest**2).sum()) / degrees)
    width = math.sqrt(float(((x - x.mean()) ** 2).sum())) or 1.0
    return Clocks(
        True,
        float(intercept + slope * middle),
        sigma / math.sqrt(len(x)),
        float(slope) * 1000,
        1000 * sigma / width,
        [(float(a), float(b)) for a, b in zip(at, ahead)],
    )


def _binned(times: Times, edges: np.ndarray) -> list[tuple[float, float] | None]:
    """Mean time of receipt and median of stamp less receipt in each bin, ns; None where empty."""
    which = np.clip(np.searchsorted(edges, times.logs, "right") - 1, 0, len(edges) - 2)
    delay = times.stamps - times.logs
    found: list[tuple[float, float] | None] = []
    for index in range(len(edges) - 1):
        inside = which == index
        if not inside.any():
            found.append(None)
        else:
            logs = times.logs[inside]
            found.append(
                (float((logs - logs[0]).mean() + logs[0]), float(np.median(delay[inside])))
            )
    return found


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (((x - x.mean()) ** 2).sum() or 1.0))
    return float(y.mean() - slope * x.mean()), slope


@dataclass(frozen=True)
class Pairing:
    """What the node's own pairing makes of both streams with some settings.

    distances_ms: stamp of thermal (with its offset) less that of RGB, of each pair; times_s: of the
    pairs, since the first stamp; unpaired_s: stamps of images of the slower camera without a
    partner.
    """

    counts: PairingCounts
    distances_ms: np.ndarray
    times_s: np.ndarray
    unpaired_s: np.ndarray
    slower: str
    slower_count: int

    @property
    def pairs(self) -> int:
        return len(self.distances_ms)

    @property
    def share(self) -> float:
        """Pairs over the images of the slower camera, 0 to 1."""
        return self.pairs / self.slower_count if self.slower_count else 0.0


def pair(
    thermal: Times,
    rgb: Times,
    tolerance_s: float,
    offset_s: float = 0.0,
    queue_size: int = 10,
    reuse_slower: bool = False,
) -> Pairing:
    """Pair both streams in the order of receipt as the node does."""
    pairer = Pairer(
        round(1e9 * tolerance_s), queue_size, round(1e9 * offset_s), reuse_slower=reuse_slower
    )
    pairs = []
    for _, is_rgb, index in _merged(thermal, rgb):
        add, times = (pairer.add_visible, rgb) if is_rgb else (pairer.add_thermal, thermal)
        stamp = int(times.stamps[index])
        if stamp:
            pairs += add(stamp, index)
    pairs += pairer.flush()
    offset = round(1e9 * offset_s)
    found = [(p.thermal.stamp_ns + offset, p.visible.stamp_ns) for p in pairs]
    array = np.array(found, np.int64).reshape(-1, 2)
    slower_is_rgb = len(rgb) < len(thermal)
    slower = rgb if slower_is_rgb else thermal
    used = {(p.visible if slower_is_rgb else p.thermal).item for p in pairs}
    start = int(rgb.stamps[0]) if len(rgb) else 0
    left = [i for i in range(len(slower)) if i not in used]
    shift = 0 if slower_is_rgb else offset
    return Pairing(
        pairer.counts,
        (array[:, 0] - array[:, 1]) * 1e-6,
        (array[:, 1] - start) * 1e-9,
        (slower.stamps[left] + shift - start) * 1e-9,
        "rgb" if slower_is_rgb else "thermal",
        len(slower),
    )


def _merged(thermal: Times, rgb: Times) -> list[tuple[int, bool, int]]:
    both = [(int(log), False, i) for i, log in enumerate(thermal.logs)]
    both += [(int(log), True, i) for i, log in enumerate(rgb.logs)]
    return sorted(both)


@dataclass(frozen=True)
class Recommendation:
    """Settings for a recording's cameras: `tolerance` and `thermal_time_offset` in s, and why.

    pairable: pairs that any tolerance up to half the slower camera's period makes.
    """

    tolerance: float
    thermal_time_offset: float
    pairable: int
    reason: str


def recommend(thermal: Times, rgb: Times, clocks: Clocks, queue_size: int = 10) -> Recommendation:
    """The smallest tolerance, in steps of a millisecond, that makes 99 % of the possible pairs."""
    streams = [describe_stream(times) for times in (thermal, rgb)]
    longest = max(stream.period_ms for stream in streams)
    if not longest:
        return Recommendation(0.03, 0.0, 0, "one camera alone has too few images to tell")
    widest_s = longest * 1e-3 / 2
    offset_ns, reason = 0.0, "the stamps of both cameras agree"
    if clocks.known:
        least = max(_LEAST_OFFSET_NS, 3e6 * clocks.offset_error_ms)
        if abs(clocks.offset_ms) * 1e6 > least:
            offset_ns = -clocks.offset_ms * 1e6
            reason = (
                f"the thermal camera's stamps run {clocks.offset_ms:+.1f} ms ahead of the RGB "
                "camera's, against the time of receipt"
            )
    elif not clocks.known:
        reason = "the recording has no times of receipt apart from the stamps"
    best = pair(thermal, rgb, widest_s, offset_ns * 1e-9, queue_size)
    rates_ppm = 1e6 * abs(streams[0].period_ms / max(streams[1].period_ms, 1e-9) - 1)
    if best.pairs > 4 and rates_ppm < _STEADY_PPM:
        # Cameras of one rate keep their distance: it is an offset as well, and harmless if not.
        low, middle, high = np.percentile(best.distances_ms, (10, 50, 90))
        if high - low < 0.2 * longest and abs(middle) * 1e6 > _LEAST_OFFSET_NS:
            offset_ns -= middle * 1e6
            reason += f"; images of one moment are {middle:+.1f} ms apart throughout"
            best = pair(thermal, rgb, widest_s, offset_ns * 1e-9, queue_size)
    offset = round(offset_ns * 1e-9, 4)
    best = pair(thermal, rgb, widest_s, offset, queue_size)
    if not best.pairs:
        return Recommendation(0.03, offset, 0, f"{reason}; but no images lie near each other")
    reach = float(np.quantile(np.abs(best.distances_ms), _WANTED)) * 1e6
    shortest_ns = 1e6 * min(stream.period_ms for stream in streams if stream.period_ms)
    least_ns = min(_LEAST_TOLERANCE_NS, shortest_ns / 4)
    tolerance_ms = math.ceil(max(reach * _MARGIN, least_ns) * 1e-6)
    # The pairs depend on the tolerance: those that it makes are counted, not those that it should.
    while (
        tolerance_ms * 1e-3 < widest_s
        and pair(thermal, rgb, tolerance_ms * 1e-3, offset, queue_size).pairs < _WANTED * best.pairs
    ):
        tolerance_ms += max(1, tolerance_ms // 10)
    return Recommendation(tolerance_ms * 1e-3, offset, best.pairs, reason)
