# SPDX-License-Identifier: AGPL-3.0-only
"""What a user runs: one module a command, listed in `main.COMMANDS`."""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """A command cannot do its work; the text says why and what to do.

    status: the command's exit status, 2 for arguments that cannot be used and 1 for other faults.
    """

    def __init__(self, text: str, status: int = 2) -> None:
        super().__init__(text)
        self.status = status
