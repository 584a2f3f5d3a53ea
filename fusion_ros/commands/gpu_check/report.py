# SPDX-License-Identifier: AGPL-3.0-only
"""The report of `gpu_check`: what ran on which GPU, as JSON and as Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Report", "Step", "markdown", "write"]


@dataclass
class Step:
    """One part of the check.

    status: 'ran', 'failed' (`reason` says why) or 'not run' (likewise). rows: its figures, with the
    same keys in each, which name their units.
    """

    name: str
    status: str = "not run"
    reason: str = ""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Report:
    """What was checked. gpu: name, compute capability, driver and libraries; doctor: its lines."""

    created: str
    gpu: dict[str, str]
    size: str
    steps: list[Step]
    doctor: list[dict[str, str]]


def write(report: Report, folder: Path) -> None:
    """Write gpu_check.json and gpu_check.md."""
    (folder / "gpu_check.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    (folder / "gpu_check.md").write_text(markdown(report))


def markdown(report: Report) -> str:
    """Return the report as a page: first what ran and where, then the figures."""
    gpu = report.gpu
    lines = [
        f"# GPU check: {gpu['name']}",
        "",
        f"{report.created}, images of {report.size}. "
        + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in gpu.items() if value),
        "",
        "| part | result | s |",
        "|---|---|---|",
    ]
    for step in report.steps:
        said = f"this ran, on {gpu['name']}" if step.status == "ran" else step.status
        said += f": {step.reason}" if step.reason else ""
        lines.append(f"| {step.name} | {_cell(said)} | {step.seconds:.0f} |")
    for step in report.steps:
        if step.rows:
            lines += ["", f"## {step.name}", "", *_table(step.rows)]
    lines += ["", "## doctor", ""]
    lines += [
        f"    {check['level']:7}  {check['name']}: {check['found']}" for check in report.doctor
    ]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        "| " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "|---" * len(keys) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(key, "")) for key in keys) + " |")
    return lines


def _cell(value: Any) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
