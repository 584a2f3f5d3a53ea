# SPDX-License-Identifier: AGPL-3.0-only
"""The figures of one rate, from the stamps of what was sent and the times of what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusion_ros.commands.benchmark.machine import Memory
from fusion_ros.frame.monitor import Percentiles, percentiles
from fusion_ros.harness.observer import Arrival
from fusion_ros.harness.sender import Sending
from fusion_ros.node.diagnostics import Report

__all__ = [
    "LEAST_PAIRS",
    "Losses",
    "Measurement",
    "jitter_ms",
    "stage_means",
]

LEAST_PAIRS = 10
"""Least number of pairs for percentiles."""
_NODE_SAMPLES = 1000
"""The node's means are of its latest frames, at most this many."""


@dataclass(frozen=True)
class Losses:
    """Causes of the pairs that did not come back, by the node's own counters.

    transport: did not reach the node; unpaired: found no partner, or still wait for one;
    displaced: by a newer pair while the network was busy; rejected: failed; output: fused, but not
    received by the observer.
    """

    transport: int
    unpaired: int
    displaced: int
    rejected: int
    output: int

    @classmethod
    def between(cls, before: Report, after: Report, sent: int, received: int) -> Losses:
        """Count them between two reports of a node with nothing in progress."""

        def new(name: str) -> int:
            return after.count(name) - before.count(name)

        return cls(
            transport=sent - new("rgb_received"),
            unpaired=new("rgb_received") - new("rgb_paired"),
            displaced=new("displaced"),
            rejected=new("rejected"),
            output=new("fused") - received,
        )


@dataclass(frozen=True)
class Measurement:
    """The figures of one rate.

    rate_hz: asked of the sender, offered_hz: kept by it, sent: pairs, skipped: pairs it was too
    late for. loss: share of what was sent that did not come back, from 0 to 1. fps: fused images
    per second, from the first to the last published. latency_ms: from header stamp to publish,
    receipt_ms: to receipt by the observer, both of the images that came back. jitter_ms: mean
    difference of successive intervals between publications. late_ms: the sender's. cpu_percent:
    of one core, by the node, load_percent by sender and observer, other_percent by everything else
    on the machine, which should be next to nothing. memory: of the node. stage_ms: the node's
    means. memory_growth_mb: growth of the node's memory after the first minute, MiB; None for less
    than a minute.
    """

    rate_hz: float
    offered_hz: float
    sent: int
    skipped: int
    received: int
    loss: float
    losses: Losses
    fps: float
    latency_ms: Percentiles | None
    receipt_ms: Percentiles | None
    jitter_ms: float | None
    late_ms: Percentiles
    cpu_percent: float
    load_percent: float
    other_percent: float
    memory: Memory
    stage_ms: dict[str, float]
    memory_growth_mb: float | None = None

    @classmethod
    def of(
        cls,
        sending: Sending,
        arrivals: Mapping[int, Arrival],
        before: Report,
        after: Report,
        cpu_s: float,
        busy_s: float,
        memory: Memory,
        memory_growth_mb: float | None = None,
    ) -> Measurement:
        """Compute the figures.

        before, after: reports of the node with nothing in progress; cpu_s, busy_s: processor time
        of the node and of the whole machine while pairs were sent; memory: of the node.
        """
        back = [(stamp, arrivals[stamp]) for stamp in sending.stamps_ns if stamp in arrivals]
        sent, received = len(sending.stamps_ns), len(back)
        published = sorted(arrival.published_ns for _, arrival in back)
        span_ns = published[-1] - published[0] if back else 0
        jitter = jitter_ms(published)
        percent = 100 / sending.seconds
        return cls(
            rate_hz=round(sending.rate, 3),
            offered_hz=round(sending.offered_hz, 3),
            sent=sent,
            skipped=sending.skipped,
            received=received,
            loss=round(1 - received / sent, 5),
            losses=Losses.between(before, after, sent, received),
            fps=round(1e9 * (received - 1) / span_ns, 3) if span_ns else 0.0,
            latency_ms=_percentiles([1e-6 * (a.published_ns - stamp) for stamp, a in back]),
            receipt_ms=_percentiles([1e-6 * (a.received_ns - stamp) for stamp, a in back]),
            jitter_ms=None if jitter is None else round(jitter, 3),
            late_ms=_percentiles(sending.late_ms),
            cpu_percent=round(percent * cpu_s, 1),
            load_percent=round(percent * sending.cpu_s, 1),
            other_percent=round(max(0.0, percent * (busy_s - cpu_s - sending.cpu_s)), 1),
            memory=memory,
            stage_ms={name: round(ms, 3) for name, ms in stage_means(before, after).items()},
            memory_growth_mb=memory_growth_mb,
        )

    @property
    def missed(self) -> float:
        """Share of the pairs due, sent or skipped, that did not come back."""
        return 1 - self.received / (self.sent + self.skipped)

    @property
    def kept(self) -> bool:
        """Whether the sender kept the rate, to 5 %."""
        return self.offered_hz >= 0.95 * self.rate_hz


def jitter_ms(published_ns: Sequence[int]) -> float | None:
    """Mean absolute difference of successive intervals, as ros2_benchmark defines it.

    None for fewer than three times.
    """
    intervals = [b - a for a, b in zip(published_ns, published_ns[1:])]
    changes = [abs(b - a) for a, b in zip(intervals, intervals[1:])]
    return 1e-6 * sum(changes) / len(changes) if changes else None


def stage_means(before: Report, after: Report) -> dict[str, float]:
    """Mean ms of each stage between two reports.

    The node's means are of its latest thousand frames, so the share of the frames up to `before`
    is subtracted; with more than a thousand frames since, the means hold none of them.
    """
    earlier, now = before.count("fused"), after.count("fused")
    if now > _NODE_SAMPLES or now <= earlier:
        return after.stage_ms
    return {
        name: (ms * now - before.stage_ms.get(name, 0.0) * earlier) / (now - earlier)
        for name, ms in after.stage_ms.items()
    }


def _percentiles(samples: Sequence[float]) -> Percentiles | None:
    if not samples:
        return None
    found = percentiles(samples)
    return Percentiles(round(found.p50, 3), round(found.p95, 3), round(found.p99, 3))
