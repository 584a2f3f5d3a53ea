# SPDX-License-Identifier: AGPL-3.0-only
"""The plot of results: latency percentiles and loss against the rate of the cameras."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusion_ros.commands.benchmark.results import Result

__all__ = ["MatplotlibMissing", "plot"]

_PERCENTILES = {"p50": "#1f4e79", "p95": "#2e86c1", "p99": "#85c1e9"}
_LOSS = "#b03a2e"
_MEASURED = {"marker": "o", "markersize": 5}
_TRIAL = {"marker": ".", "alpha": 0.35, "linestyle": ""}
_TICKS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 240, 480)


class MatplotlibMissing(RuntimeError):
    """matplotlib is missing; the text says how to install it."""


def plot(results: Sequence[Result], path: Path) -> None:
    """Write one column a result: latencies above, losses below; `path` ends in .png or .svg.

    Large points are the fixed rates, small ones the trials of the search, the dashed line is the
    highest rate. Raises MatplotlibMissing.
    """
    try:
        import matplotlib
    except ImportError:
        raise MatplotlibMissing(
            "no plot without matplotlib: pip install matplotlib, or apt install python3-matplotlib"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2,
        len(results),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
        figsize=(1.6 + 2.8 * len(results), 5.6),
        height_ratios=(3, 2),
    )
    for column, result in enumerate(results):
        _column(axes[0, column], axes[1, column], result)
    axes[0, 0].set_ylabel("stamp to publish, ms")
    axes[1, 0].set_ylabel("pairs lost, %")
    axes[0, 0].legend(frameon=False)
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS], minor=False)
    rates = [one.rate_hz for result in results for one in [*result.search, *result.rates]]
    if rates:
        axes[0, 0].set_xlim(0.8 * min(rates), 1.25 * max(rates))
    for axis in axes.flat:
        axis.minorticks_off()
    hosts = {f"{result.host.cpu}, {result.host.cores} cores" for result in results}
    sizes = {result.input.visible for result in results}
    figure.suptitle(f"fusion_ros node, {' / '.join(sorted(sizes))}: {'; '.join(sorted(hosts))}")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _column(above, below, result: Result) -> None:
    from matplotlib.ticker import LogLocator

    measured = sorted(
        [*([result.peak] if result.peak else []), *result.rates], key=lambda one: one.rate_hz
    )
    trials = sorted(result.search, key=lambda one: one.rate_hz)
    for name, colour in _PERCENTILES.items():
        for some, style in ((trials, _TRIAL), (measured, {**_MEASURED, "label": name})):
            known = [one for one in some if one.latency_ms]
            latency = [getattr(one.latency_ms, name) for one in known]
            above.plot([one.rate_hz for one in known], latency, color=colour, **style)
    for some, style in ((trials, _TRIAL), (measured, _MEASURED)):
        loss = [100 * one.loss for one in some]
        below.plot([one.rate_hz for one in some], loss, color=_LOSS, **style)
    title = result.label
    if result.peak:
        words = "at least" if result.peak_limit == "bound" else "up to"
        title += f": {words} {result.peak.rate_hz:.3g} Hz"
        for axis in (above, below):
            axis.axvline(result.peak.rate_hz, color="grey", linestyle="--", linewidth=0.8)
    above.set_title(title, fontsize="medium")
    above.set_yscale("log")
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_major_formatter("{x:g}")
    below.set_ylim(-4, 104)
    below.set_xlabel("pairs per second, Hz")
    for axis in (above, below):
        axis.grid(alpha=0.25)
