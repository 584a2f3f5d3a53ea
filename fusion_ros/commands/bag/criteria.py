# SPDX-License-Identifier: AGPL-3.0-only
"""Pass and fail: criteria of a file against a report, and a report against an earlier one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_ros.commands import CommandError

__all__ = ["check", "compare", "load_criteria", "read_report", "write_criteria"]


def _best(report: dict[str, Any]) -> dict[str, Any]:
    return report["quality"]["rows"].get(report["verdict"]["best"], {})


def _residual(report: dict[str, Any]) -> float | None:
    found = report["registration"]["residual"]
    return found["length"] if found and found["clear"] else None


@dataclass(frozen=True)
class _Figure:
    """A figure that a criterion may limit.

    least: whether the criterion is a lower limit; slack: the room that `write_criteria` leaves, as
    a share and at least. needs: what makes the figure known.
    """

    read: Callable[[dict[str, Any]], float | None]
    least: bool
    meaning: str
    slack: tuple[float, float] = (0.1, 0.01)
    needs: str = ""


FIGURES: dict[str, _Figure] = {
    "pairs": _Figure(
        lambda r: r["pairs"]["share"]["used"], True, "share of the slower camera's images paired"
    ),
    "fused": _Figure(lambda r: float(r["pairs"]["fused"]), True, "fused pairs", (0.1, 1.0)),
    "thermal_rate": _Figure(lambda r: r["streams"]["thermal"]["rate_hz"], True, "Hz", (0.05, 0.1)),
    "rgb_rate": _Figure(lambda r: r["streams"]["rgb"]["rate_hz"], True, "Hz", (0.05, 0.1)),
    "thermal_dropped": _Figure(
        lambda r: float(r["streams"]["thermal"]["dropped"]), False, "images", (0.5, 2.0)
    ),
    "rgb_dropped": _Figure(
        lambda r: float(r["streams"]["rgb"]["dropped"]), False, "images", (0.5, 2.0)
    ),
    "longest_gap": _Figure(
        lambda r: max(r["streams"][n]["longest_gap_ms"] for n in ("thermal", "rgb")),
        False,
        "ms without an image",
        (0.5, 20.0),
    ),
    "clock_offset": _Figure(
        lambda r: (
            abs(r["streams"]["clocks"]["offset_ms"]) if r["streams"]["clocks"]["known"] else None
        ),
        False,
        "ms between the cameras' clocks, of either sign",
        (0.5, 5.0),
    ),
    "clock_drift": _Figure(
        lambda r: (
            abs(r["streams"]["clocks"]["drift_ppm"]) if r["streams"]["clocks"]["known"] else None
        ),
        False,
        "microseconds a second, of either sign",
        (0.5, 20.0),
    ),
    "registration": _Figure(_residual, False, "px of residual shift", (0.5, 1.0)),
    "coverage": _Figure(
        lambda r: r["registration"]["coverage"], True, "share of the RGB image with thermal view"
    ),
    "lost": _Figure(
        lambda r: _best(r).get("lost"),
        False,
        "share of objects lost by the best method",
        (0.2, 0.05),
        "--detector, and objects in the samples",
    ),
    "hidden": _Figure(
        lambda r: _best(r).get("hidden"), False, "share of the picture hidden", (0.2, 0.02)
    ),
    "over_exposure": _Figure(
        lambda r: _best(r).get("over_exposure"), False, "share of white pixels", (0.5, 0.01)
    ),
    "flicker": _Figure(
        lambda r: _best(r).get("flicker"), False, "grey levels beyond the sources", (0.2, 0.3)
    ),
    "fps": _Figure(
        lambda r: r["speed"]["methods"][r["verdict"]["best"]]["fps"],
        True,
        "frames a second on this machine",
        (0.5, 0.1),
    ),
}
"""Every figure by the name that a criteria file uses."""


def load_criteria(path: Path) -> dict[str, float]:
    """Limits by name from a YAML file; raises CommandError for names or values of no use."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"cannot read the criteria '{path}': {error}") from None
    if not isinstance(content, dict) or not content:
        raise CommandError(f"'{path}' has no criteria: expected lines such as 'pairs: 0.95'")
    unknown = [str(name) for name in content if name not in FIGURES]
    if unknown:
        raise CommandError(
            f"'{path}' has unknown criteria {', '.join(unknown)}: expected some of "
            f"{', '.join(FIGURES)}"
        )
    limits = {}
    for name, value in content.items():
        text = str(value).strip()
        scale = 0.01 if text.endswith("%") else 1.0
        try:
            limits[name] = scale * float(text.removesuffix("%"))
        except ValueError:
            raise CommandError(f"'{path}': {name} is '{value}', expected a number") from None
    return limits


def check(report: dict[str, Any], limits: dict[str, float]) -> dict[str, Any]:
    """`passed`, and `checks`: each criterion with its value. A figure that is not known fails."""
    checks = []
    for name, limit in limits.items():
        figure = FIGURES[name]
        value = figure.read(report)
        # Values are rounded to seven digits, limits may be.
        room = 1e-6 * max(abs(limit), 1e-6)
        if value is None:
            passed = False
        else:
            passed = value >= limit - room if figure.least else value <= limit + room
        checks.append(
            {
                "name": name,
                "value": value,
                "shown": _shown(value, figure),
                "wanted": f"{'at least' if figure.least else 'at most'} {limit:.5g}",
                "passed": passed,
            }
        )
    return {"passed": all(each["passed"] for each in checks), "checks": checks}


def _shown(value: float | None, figure: _Figure) -> str:
    if value is not None:
        return f"{value:.5g}"
    return "unknown" + (f" (it needs {figure.needs})" if figure.needs else "")


def write_criteria(report: dict[str, Any], path: Path) -> None:
    """Write criteria that this report meets, with room for chance; see `FIGURES` for how much."""
    lines = [
        f"# Criteria for `fusion_ros evaluate_bag --criteria`, from {report['bag']['name']}.",
        "# Written with some room: tighten what matters, remove what does not.",
    ]
    for name, figure in FIGURES.items():
        value = figure.read(report)
        if value is None:
            continue
        share, least = figure.slack
        room = max(abs(value) * share, least)
        limit = value - room if figure.least else value + room
        if figure.least:
            limit = max(limit, 0.0)
        word = "at least" if figure.least else "at most"
        lines.append(
            f"{name}: {float(f'{limit:.4g}')}  # {word}; {figure.meaning}; now {value:.4g}"
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_report(path: Path, schema: int) -> dict[str, Any]:
    """An earlier report.json; raises CommandError for another file or schema."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found = report["schema"]
        for figure in FIGURES.values() if found == schema else ():
            figure.read(report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"'{path}' is no report of evaluate_bag: {error}") from None
    if found != schema:
        raise CommandError(
            f"'{path}' has schema {found}, this version writes {schema}: evaluate that bag again"
        )
    return report


def compare(report: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """All figures that both reports have, before and now."""
    changes = []
    for name, figure in FIGURES.items():
        old, new = figure.read(before), figure.read(report)
        if old is not None and new is not None:
            worse = new < old if figure.least else new > old
            changes.append(
                {"name": name, "before": old, "now": new, "change": new - old, "worse": worse}
            )
    return {"name": before["bag"]["name"], "changes": changes}
