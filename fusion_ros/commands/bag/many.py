# SPDX-License-Identifier: AGPL-3.0-only
"""Many bags in parallel on dask.distributed; one that fails does not stop the rest."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusion_ros.commands import CommandError
from fusion_ros.commands.bag.request import Request
from fusion_ros.recording.bag import is_bag

__all__ = ["Job", "bags_of", "evaluate_many"]

OVERVIEW = "index.html"


@dataclass(frozen=True)
class Job:
    """What is done with each bag. again: also with those whose results are there already."""

    request: Request
    limits: dict[str, float]
    out: Path
    again: bool = False


def bags_of(paths: Sequence[Path]) -> list[Path]:
    """The bags that the paths name: bags, and folders with bags in them.

    What does not exist is kept, so that it is reported as it is. Raises CommandError for a folder
    without bags, unless it is the only path.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not is_bag(path):
            inside = [each for each in sorted(path.iterdir()) if _maybe_bag(each)]
            found += inside or [path]
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _maybe_bag(path: Path) -> bool:
    return not path.name.startswith(".") and is_bag(path)


def evaluate_many(bags: Sequence[Path], job: Job, scheduler: str = "", workers: int = 0) -> int:
    """Evaluate all bags; write a folder for each and a page that compares them.

    Returns the exit status: that of the worst bag, 0, 1 for failed criteria, 3 for one that could
    not be evaluated. Raises CommandError if the scheduler cannot be reached.
    """
    from distributed import as_completed

    names = _names(bags)
    results: dict[Path, dict[str, Any]] = {}
    request = replace(job.request, progress=False)
    with _client(scheduler, workers or _processes(len(bags))) as client:
        futures = {}
        for bag in bags:
            future = client.submit(
                _evaluate_one,
                str(bag.resolve()),
                str((job.out / names[bag]).resolve()),
                request,
                job.limits,
                job.again,
                pure=False,
                retries=1,
            )
            futures[future] = bag
        try:
            for done, future in enumerate(as_completed(futures, loop=client.loop), 1):
                bag = futures[future]
                results[bag] = _outcome(future)
                error = results[bag].get("error")
                text = f"not evaluated: {error}" if error else results[bag]["said"]
                print(f"[{done}/{len(bags)}] {names[bag]}: {text}", flush=True)
        except KeyboardInterrupt:
            client.cancel(list(futures))
            print("interrupted: the same command goes on where this one ended", file=sys.stderr)
            _write_overview(bags, names, results, job.out)
            return 130
    _write_overview(bags, names, results, job.out)
    print(f"\nthe page that compares them is {job.out / OVERVIEW}")
    if any("error" in each for each in results.values()):
        return 3
    failed = [
        r for r in results.values() if not r["report"].get("criteria", {}).get("passed", True)
    ]
    return 1 if failed else 0


def _processes(bags: int) -> int:
    return max(1, min(bags, os.cpu_count() or 1))


@contextlib.contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Any]:
    """A client of the named scheduler, or of a local cluster that ends with it."""
    from distributed import Client, LocalCluster

    if scheduler:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, TimeoutError, ValueError) as error:
            raise CommandError(
                f"no dask scheduler answers at {scheduler} ({error}): start one with `dask "
                "scheduler`, and workers with `dask worker`"
            ) from None
        with client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _evaluate_one(
    bag: str, out: str, request: Request, limits: dict[str, float], again: bool
) -> dict[str, Any]:
    """Run in a worker: the report without its long parts, or the error as a sentence."""
    import fusion_ros
    from fusion_ros.commands.bag.one import evaluate_to
    from fusion_ros.commands.bag.results import fingerprint, finished
    from fusion_ros.inference import EngineError
    from fusion_ros.recording.storage import BagError

    path, folder = Path(bag), Path(out)
    try:
        key = fingerprint(path, request.to_repeat(), fusion_ros.__version__)
        report = None if again else finished(folder, key)
        said = "done before"
        if report is None or report.get("limits", {}) != limits:
            report = evaluate_to(path, folder, request, limits)
            said = report["verdict"]["mend"]
    except (BagError, EngineError, ValueError, OSError) as error:
        return {"error": str(error)}
    short = ("bag", "streams", "pairs", "registration", "quality", "verdict", "criteria")
    return {"said": said, "report": {key: report[key] for key in short if key in report}}


def _outcome(future: Any) -> dict[str, Any]:
    try:
        return future.result()
    except Exception as error:  # a worker that was killed, a fault of ours in it
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _names(bags: Sequence[Path]) -> dict[Path, str]:
    """A folder name for each bag; those of one name get a number."""
    names: dict[Path, str] = {}
    for bag in bags:
        stem = bag.name if bag.is_dir() else bag.stem
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}_{number}", number + 1
        names[bag] = name
    return names


def _write_overview(
    bags: Sequence[Path], names: dict[Path, str], results: dict[Path, dict[str, Any]], out: Path
) -> None:
    from fusion_ros.commands.bag.page import overview
    from fusion_ros.commands.bag.results import PAGE, OutputError, write_files

    rows = []
    for bag in bags:
        result = results.get(bag, {"error": "not evaluated yet"})
        rows.append({"name": names[bag], "page": f"{names[bag]}/{PAGE}", "error": "", **result})
    try:
        write_files(out, {OVERVIEW: overview(rows)})
    except OutputError as error:
        raise CommandError(str(error), 4) from None
