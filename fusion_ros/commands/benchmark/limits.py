# SPDX-License-Identifier: AGPL-3.0-only
"""Limits of a benchmark's figures, as in `--check loss=0.01,p95=15`, and the verdicts on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_ros.commands.benchmark.measurement import Measurement
    from fusion_ros.commands.benchmark.results import Result

__all__ = ["Limits", "Verdict"]


def _limit(text: str) -> float | None:
    return field(default=None, metadata={"text": text})


@dataclass(frozen=True)
class Limits:
    """Highest values allowed at each fixed rate; None allows any."""

    loss: float | None = _limit("share of pairs that did not come back, 0 to 1")
    p50: float | None = _limit("median latency, ms")
    p95: float | None = _limit("95th percentile of latency, ms")
    p99: float | None = _limit("99th percentile of latency, ms")
    cpu: float | None = _limit("processor time of the node a pair, ms")
    start: float | None = _limit("median time from the node's start to its first fused image, s")
    growth: float | None = _limit("growth of the node's memory after the first minute, MiB")

    @classmethod
    def describe(cls) -> str:
        """List all limits as `name (meaning)`."""
        return ", ".join(f"{one.name} ({one.metadata['text']})" for one in dataclasses.fields(cls))

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Read `name=value,name=value`; raises ValueError, which names the choices."""
        names = [one.name for one in dataclasses.fields(cls)]
        values: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                values[name] = float(value)
            except ValueError:
                name = ""
            if name not in names:
                raise ValueError(
                    f"'{part}' is not a limit: expected NAME=NUMBER with one of {', '.join(names)}"
                )
        return cls(**values)

    def verdicts(self, result: Result) -> Iterator[Verdict]:
        """Compare the figures of a result with all limits that were given."""
        starts = sorted(result.starts_s)
        if self.start is not None:
            median = starts[len(starts) // 2] if starts else None
            yield Verdict("start, s", median, self.start)
        for one in result.rates:
            for name, found in _figures(one).items():
                if (limit := getattr(self, name)) is not None:
                    yield Verdict(f"{one.rate_hz:g} Hz: {name}", found, limit)


@dataclass(frozen=True)
class Verdict:
    """One figure and its limit; a figure of None, which was not measured, does not meet it."""

    name: str
    found: float | None
    limit: float

    @property
    def met(self) -> bool:
        return self.found is not None and self.found <= self.limit

    def __str__(self) -> str:
        found = "not measured" if self.found is None else f"{self.found:.3g}"
        return f"{self.name} {found}, limit {self.limit:g}: {'met' if self.met else 'EXCEEDED'}"


def _figures(one: Measurement) -> dict[str, float | None]:
    latency = one.latency_ms
    return {
        "loss": one.missed,
        **{name: latency and getattr(latency, name) for name in ("p50", "p95", "p99")},
        "cpu": 10 * one.cpu_percent / one.offered_hz if one.offered_hz else None,
        "growth": one.memory_growth_mb,
    }
