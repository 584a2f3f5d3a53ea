# SPDX-License-Identifier: AGPL-3.0-only
"""Files that are replaced as a whole: a program that is killed while writing leaves the old one."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file; it is complete or, if the program ends meanwhile, as it was before."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
