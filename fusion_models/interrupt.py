# SPDX-License-Identifier: AGPL-3.0-only
"""Ctrl-C ends a training command without a traceback, while it imports too."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["end_quietly"]


def end_quietly() -> None:
    """Print one line in place of the traceback of an interrupt; to be called before long imports.

    What runs at the end of blocks and of the process still does, and the exit status stays that
    of an interrupted process, 130 for a shell.
    """
    sys.excepthook = _hook


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
