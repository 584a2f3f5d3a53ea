# SPDX-License-Identifier: AGPL-3.0-only
"""Small charts as SVG text, coloured by the page's CSS: lines over time and histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["histogram", "lines"]

_WIDTH, _HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 10, 44
_TICKS = 5


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    x_label: str,
    y_label: str,
    zero: bool = False,
    dots: bool = False,
) -> str:
    """A chart of several series over common places; None leaves a gap. '' without any point."""
    values = [v for row in series.values() for v in row if v is not None]
    if not values or not len(x):
        return ""
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    frame = _Frame((min(x), max(x)), (low, high), x_label, y_label)
    parts = []
    for number, (name, row) in enumerate(series.items()):
        colour = f"c{number % 8}"
        run: list[str] = []
        for at, value in [*zip(x, row), (0.0, None)]:
            if value is not None:
                run.append(f"{frame.x(at):.1f},{frame.y(value):.1f}")
                continue
            if len(run) > 1:
                parts.append(f'<polyline class="line {colour}" points="{" ".join(run)}"/>')
            if run and (dots or len(run) == 1):
                parts += [
                    '<circle class="dot {}" cx="{}" cy="{}" r="3"/>'.format(colour, *p.split(","))
                    for p in run
                ]
            run = []
        parts.append(f"<title>{escape(name)}</title>" if len(series) == 1 else "")
    return frame.svg("".join(parts)) + _legend(list(series))


def histogram(edges: Sequence[float], counts: Sequence[int], x_label: str, y_label: str) -> str:
    """Bars over the intervals between `edges`."""
    if not any(counts) or edges[0] == edges[-1]:
        return ""
    frame = _Frame((edges[0], edges[-1]), (0.0, max(*counts, 1)), x_label, y_label)
    bars = []
    for left, right, count in zip(edges, edges[1:], counts):
        x0, x1, top = frame.x(left), frame.x(right), frame.y(count)
        bars.append(
            f'<rect class="bar" x="{x0:.1f}" y="{top:.1f}" width="{max(x1 - x0 - 1, 1):.1f}" '
            f'height="{max(frame.y(0) - top, 0):.1f}"><title>{left:.3g} to {right:.3g}: {count}'
            "</title></rect>"
        )
    return frame.svg("".join(bars))


class _Frame:
    """Axes with round ticks."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str
    ) -> None:
        self._x, self._y = _widened(*x), _widened(*y)
        self._labels = x_label, y_label

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def svg(self, content: str) -> str:
        x_label, y_label = (escape(text) for text in self._labels)
        parts = []
        for value in _ticks(*self._x):
            at = self.x(value)
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 17}" '
                f'text-anchor="middle">{value:.4g}</text>'
            )
        for value in _ticks(*self._y):
            at = self.y(value)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" '
                f'y2="{at:.1f}"/><text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" '
                f'text-anchor="end">{value:.4g}</text>'
            )
        parts.append(content)
        parts.append(
            f'<text class="label" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" '
            f'text-anchor="middle">{x_label}</text><text class="label" '
            f'transform="translate(16 {(_HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
            f'text-anchor="middle">{y_label}</text>'
        )
        return (
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{y_label} over {x_label}">{"".join(parts)}</svg>'
        )


def _widened(low: float, high: float) -> tuple[float, float]:
    if high - low < 1e-9:
        return low - 0.5, high + 0.5
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / _TICKS
    power = 10 ** math.floor(math.log10(raw))
    step = next((s * power for s in (1, 2, 5, 10) if s * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) + 0.0 for number in range(first, last + 1)]


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = "".join(
        f'<span><i class="key c{number % 8}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return f'<div class="legend">{items}</div>'
