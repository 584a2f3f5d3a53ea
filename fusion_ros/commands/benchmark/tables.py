# SPDX-License-Identifier: AGPL-3.0-only
"""Tables of a Markdown page that are written from results of the benchmark and of bags.

In the page, a comment names the kind of table and the files, relative to the page; what stands
between it and the next `<!-- end -->` is replaced:

    <!-- table: pace pace_*_30hz.json -->
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "TableError", "fill_tables"]

_PLACE = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


class TableError(ValueError):
    """A page whose tables cannot be written."""


def fill_tables(page: str, folder: Path) -> str:
    """Return the page with its tables anew; files are sought in `folder`.

    Raises TableError for a page without a table, a kind that does not exist, no file, or a file of
    another kind.
    """
    if not _PLACE.search(page):
        raise TableError("has no table: expected <!-- table: KIND FILES --> and <!-- end -->")

    def fill(place: re.Match[str]) -> str:
        start, kind, pattern, end = place.groups()
        if kind not in KINDS:
            raise TableError(f"has a table of kind '{kind}': expected {', '.join(KINDS)}")
        paths = sorted(folder.glob(pattern))
        if not paths:
            raise TableError(f"has a table of {pattern}, and there is no such file")
        head, rows = KINDS[kind]
        try:
            lines = [row for path in paths for row in rows(json.loads(path.read_text()))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TableError(
                f"has a table of {pattern}, which cannot be read: {error!r}"
            ) from error
        cells = [head, ["---"] * len(head), *lines]
        table = "".join(f"| {' | '.join(map(str, line))} |\n" for line in cells)
        return f"{start}\n{table}\n{end}"

    return _PLACE.sub(fill, page)


def _pace_rows(content: dict[str, Any]) -> Iterator[list[object]]:
    for run in content["runs"]:
        label = "full" if run["label"] == "0" else run["label"]
        phases = {one["name"]: one for one in run["phases"]}
        yield [
            content["method"],
            f"{content['plan']['rate']:g}",
            label,
            *(_phase(phases.get(name)) for name in ("before", "during", "after")),
        ]


def _phase(one: dict[str, Any] | None) -> str:
    if one is None:
        return "-"
    if one["p50_ms"] is None:
        return f"{one['fps']:.1f}, {one['lost']:.0%} lost"
    size = f"{one['size']} px" if one["size"] else "full"
    latency = f"{one['p50_ms']:.0f} / {one['p95_ms']:.0f} ms"
    return f"{one['fps']:.1f}, {one['lost']:.0%} lost, {latency}, {size}"


def _rate_rows(content: dict[str, Any]) -> Iterator[list[object]]:
    peak = [content["peak"]] if content.get("peak") else []
    for one in peak + content["rates"]:
        latency = one["latency_ms"]
        rate = f"{one['rate_hz']:.3g}"
        yield [
            content["label"],
            f"**{rate}**" if one in peak else rate,
            f"{one['fps']:.1f}",
            f"{one['loss']:.1%}",
            " / ".join(f"{latency[p]:.0f}" for p in ("p50", "p95", "p99")) if latency else "-",
            f"{one['cpu_percent']:.0f}",
            f"{one['memory']['resident_mb']:.0f}",
        ]


def _bag_rows(content: dict[str, Any]) -> Iterator[list[object]]:
    speed, run = content["speed"], content["run"]
    for name, one in speed["methods"].items():
        size = one["processing_size"] or "full"
        engine = one["engine"].partition(":")[0].partition(",")[0]
        yield [
            name,
            engine,
            size,
            content["pairs"]["fused"],
            f"{one['total_ms']:.1f}",
            f"{run['pairs_per_second']:.1f}",
            f"{speed['memory_mb']:.0f}",
        ]


Rows = Callable[[dict[str, Any]], Iterator[list[object]]]
_LOAD = "fused a second, lost, latency p50 / p95, size"
KINDS: dict[str, tuple[list[str], Rows]] = {
    "pace": (
        ["method", "Hz", "`processing_size`", _LOAD, "with the load", "after it"],
        _pace_rows,
    ),
    "rates": (
        ["method", "Hz", "fused a second", "lost", "p50 / p95 / p99, ms", "CPU, %", "MiB"],
        _rate_rows,
    ),
    "bag": (
        ["method", "engine", "px", "pairs", "ms a pair", "pairs a second in all", "MB"],
        _bag_rows,
    ),
}
"""Heads and rows of the tables: `benchmark pace`, `benchmark`, `evaluate_bag`."""
