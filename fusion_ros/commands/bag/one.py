# SPDX-License-Identifier: AGPL-3.0-only
"""One bag to one folder of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fusion_ros
from fusion_ros.commands.bag import criteria
from fusion_ros.commands.bag.evaluation import evaluate
from fusion_ros.commands.bag.page import render, settings_file
from fusion_ros.commands.bag.request import Request
from fusion_ros.commands.bag.results import (
    PAGE,
    REPORT,
    SETTINGS,
    OutputError,
    check_writable,
    fingerprint,
    write_files,
)
from fusion_ros.recording.storage import BagError

__all__ = ["evaluate_to"]


def evaluate_to(
    bag: Path,
    out: Path,
    request: Request,
    limits: Mapping[str, float] | None = None,
    before: dict[str, Any] | None = None,
    init_criteria: Path | None = None,
    online: Callable[[Path, dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate `bag` and write page, report and settings to `out`; return the report.

    online: called with the bag and its report for the numbers of a running node. Raises BagError,
    OutputError, EngineError or ValueError.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"'{out}' is no folder: give another --out")
    check_writable(out)
    if init_criteria is not None:
        check_writable(init_criteria.parent)
    sinks = []
    if request.write_bag:
        from fusion_ros.commands.bag.outputs import BagOutputs

        sinks.append(BagOutputs)
    if request.rerun:
        from fusion_ros.commands.bag.rerun_file import RerunFile

        sinks.append(RerunFile)
    key = fingerprint(bag, request.to_repeat(), fusion_ros.__version__) if bag.exists() else ""
    result = evaluate(bag, request, _all(sinks) if sinks else None)
    report = {**result.report, "fingerprint": key}
    if online is not None and not report["interrupted"]:
        report["online"] = online(bag, report)
    if limits:
        report["limits"] = dict(limits)
        report["criteria"] = criteria.check(report, dict(limits))
    if before is not None:
        report["baseline"] = criteria.compare(report, before)
    write_files(
        out,
        {
            PAGE: render(report, result.samples),
            SETTINGS: settings_file(report),
            REPORT: json.dumps(report, indent=1) + "\n",
        },
    )
    if init_criteria is not None:
        try:
            criteria.write_criteria(report, init_criteria)
        except OSError as error:
            raise OutputError(f"cannot write '{init_criteria}': {error.strerror}") from None
    return report


class _Sinks:
    """Several outputs as one."""

    def __init__(self, sinks: list[Any]) -> None:
        self._sinks = sinks

    def __enter__(self) -> _Sinks:
        opened: list[Any] = []
        try:
            for each in self._sinks:
                opened.append(each.__enter__())
        except BaseException as error:
            for each in opened:
                each.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        problems = []
        for each in self._sinks:
            try:
                each.__exit__(*error)
            except BagError as problem:
                problems.append(problem)
        if problems and error[0] is None:
            raise problems[0]

    def frame(self, *values: Any) -> None:
        for each in self._sinks:
            each.frame(*values)

    def finish(self, report: dict[str, Any]) -> None:
        for each in self._sinks:
            each.finish(report)


def _all(kinds: list[Any]) -> Callable[..., _Sinks]:
    return lambda *values: _Sinks([kind(*values) for kind in kinds])
