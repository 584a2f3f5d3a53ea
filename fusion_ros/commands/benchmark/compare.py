# SPDX-License-Identifier: AGPL-3.0-only
"""Results as text: the table of one, and two of them side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fusion_ros.commands.benchmark.measurement import Measurement
from fusion_ros.commands.benchmark.results import Result

__all__ = ["compare", "differences", "table"]

_UNIMPORTANT = {"host.load", "versions.commit"}
_BUSY_PERCENT = 15.0
"""Share of a core that other work may take: above that of an idle system."""


def table(result: Result) -> str:
    """One line a rate, and where the node's time went."""
    lines = [
        f"{result.label} on {result.engine}",
        f"{'Hz':>8}{'offered':>9}{'fps':>8}{'lost %':>8}{'latency p50 / p95 / p99, ms':>31}"
        f"{'jitter ms':>11}{'CPU %':>8}{'others %':>10}{'MiB':>7}",
    ]
    measured = [result.peak] if result.peak else []
    for one in measured + result.rates:
        p = one.latency_ms
        latency = f"{p.p50:.1f} / {p.p95:.1f} / {p.p99:.1f}" if p else "-"
        jitter = "-" if one.jitter_ms is None else f"{one.jitter_ms:.1f}"
        lines.append(
            f"{one.rate_hz:8.1f}{one.offered_hz:9.1f}{one.fps:8.1f}{100 * one.loss:8.1f}"
            f"{latency:>31}{jitter:>11}{one.cpu_percent:8.0f}{one.other_percent:10.0f}"
            f"{one.memory.resident_mb:7.0f}"
            + (f"  highest, limited by the {result.peak_limit}" if one is result.peak else "")
        )
        stages = ", ".join(f"{name} {ms:.1f}" for name, ms in one.stage_ms.items())
        lines.append(f"{'':8}stages, ms: {stages}")
    if result.config.search and not result.peak and not result.error:
        lines.append(f"no rate from {result.config.search[0]:g} Hz with few enough losses")
    busiest = max((one.other_percent for one in measured + result.rates), default=0.0)
    if busiest > _BUSY_PERCENT:
        lines.append(
            f"the machine was busy: other work took up to {busiest:.0f} % of a core; measure again "
            "when it is idle"
        )
    return "\n".join(lines)


def differences(a: Result, b: Result) -> list[str]:
    """What makes the two hard to compare: host, versions, configuration, input, engine."""
    found = []
    for part in ("host", "versions", "config", "input"):
        one, other = (dataclasses.asdict(getattr(result, part)) for result in (a, b))
        for name in one:
            if one[name] != other[name] and f"{part}.{name}" not in _UNIMPORTANT:
                found.append(f"{part}.{name}: {one[name]} / {other[name]}")
    if a.engine != b.engine:
        found.append(f"engine: {a.engine} / {b.engine}")
    return found


def compare(a: Result, b: Result) -> str:
    """Both side by side with the ratios of the second to the first, warnings first."""
    lines = [f"warning: {text}" for text in differences(a, b)]
    for name, result in (("A", a), ("B", b)):
        lines += [f"warning: {name} ended early: {line}" for line in result.error.splitlines()[:1]]
    lines.append(f"{'':26}{'A':>12}{'B':>12}{'B / A':>9}")
    lines.append(f"{'':26}{a.label:>12}{b.label:>12}")
    commits = [result.versions.commit[:10] or "-" for result in (a, b)]
    lines.append(f"{'commit':26}{commits[0]:>12}{commits[1]:>12}")
    lines.append(_row("start, s", _median(a.starts_s), _median(b.starts_s)))
    if a.peak or b.peak:
        lines += _rows("highest rate", a.peak, b.peak)
    others = {one.rate_hz: one for one in b.rates}
    for one in a.rates:
        if one.rate_hz in others:
            lines += _rows(f"{one.rate_hz:g} Hz", one, others.pop(one.rate_hz))
        else:
            lines.append(f"{one.rate_hz:g} Hz: only in A")
    lines += [f"{rate:g} Hz: only in B" for rate in others]
    return "\n".join(lines)


def _rows(title: str, a: Measurement | None, b: Measurement | None) -> list[str]:
    left, right = (dict(_figures(one)) if one else {} for one in (a, b))
    names = [*left, *(name for name in right if name not in left)]
    return [title, *(_row(f"  {name}", left.get(name), right.get(name)) for name in names)]


def _figures(one: Measurement) -> Iterator[tuple[str, float | None]]:
    yield "rate, Hz", one.rate_hz
    yield "offered, Hz", one.offered_hz
    yield "fps", one.fps
    yield "lost, %", 100 * one.loss
    for name in ("p50", "p95", "p99"):
        yield f"latency {name}, ms", one.latency_ms and getattr(one.latency_ms, name)
    yield "jitter, ms", one.jitter_ms
    yield "CPU, %", one.cpu_percent
    yield "CPU of all else, %", one.other_percent
    yield "memory, MiB", one.memory.resident_mb
    for name, ms in one.stage_ms.items():
        yield f"{name}, ms", ms


def _row(name: str, a: float | None, b: float | None) -> str:
    left, right = ("-" if value is None else f"{value:.2f}" for value in (a, b))
    ratio = f"{b / a:.2f}" if a and b is not None else "-"
    return f"{name:26}{left:>12}{right:>12}{ratio:>9}"


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
