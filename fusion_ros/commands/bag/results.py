# SPDX-License-Identifier: AGPL-3.0-only
"""The folder of an evaluated bag: page, report and settings, each whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_ros.recording.storage import BagError

__all__ = [
    "PAGE",
    "REPORT",
    "SETTINGS",
    "OutputError",
    "check_writable",
    "fingerprint",
    "finished",
    "write_files",
]

PAGE, REPORT, SETTINGS = "index.html", "report.json", "settings.yaml"


class OutputError(BagError):
    """Results that cannot be written."""


def check_writable(folder: Path) -> None:
    """Raise OutputError unless files can be written to the folder, before hours of work for them.

    Folders that have to be made for that are removed again.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    part = folder / f".part-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise _cannot_write(folder, error) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files under temporary names, and rename them once all are complete.

    Raises OutputError, as for a full disk; what was there before stays then.
    """
    parts: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            part = folder / f".{name}.part-{os.getpid()}"
            parts.append((part, folder / name))
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for part, path in parts:
            os.replace(part, path)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    finally:
        for part, _ in parts:
            with contextlib.suppress(OSError):
                part.unlink()


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write the results to '{folder}': {error.strerror or error}")


def fingerprint(bag: Path, request: Mapping[str, Any], version: str) -> str:
    """Changes with the bag's files, the request and the version: whether a result still holds."""
    files = sorted(bag.iterdir()) if bag.is_dir() else [bag]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([stats, request, version], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The report that an earlier run with this fingerprint left in the folder, or None."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if report["fingerprint"] == key and not report["interrupted"]:
            return report if (folder / PAGE).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
