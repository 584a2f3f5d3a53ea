# SPDX-License-Identifier: AGPL-3.0-only
"""Checksums of shipped weights, which the model card `<method>.json` beside them records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["check_weights", "checksums"]

KEY = "sha256"
"""Key of the model card under which the checksums are, by the names of the files."""


def checksums(files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by its name, in hexadecimal."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def check_weights(card: Path, suffix: str = "") -> None:
    """Compare the files beside a model card with the checksums that it records.

    card: path of the JSON file; without it, or without checksums in it, nothing is checked.
    suffix: of the names of the files to check, '' for all; files that are missing are left out.
    Raises ValueError naming the files that are not those that were shipped.
    """
    try:
        recorded = json.loads(card.read_text(encoding="utf-8")).get(KEY, {})
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"the model card {card} cannot be read: {error}") from None
    files = [card.with_name(name) for name in recorded if name.endswith(suffix)]
    found = checksums(file for file in files if file.is_file())
    changed = [name for name, digest in found.items() if digest != recorded[name]]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} in {card.parent} are not the files that were shipped, by their "
            "SHA-256: install the package again, or give a model of your own by its path"
        )
