# SPDX-License-Identifier: AGPL-3.0-only
"""Nodes as processes: their command, parameters, log and end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Child", "ProcessError", "node_command", "ros_arguments"]

_LAST_LINES = 15
_ENDING_S = 10.0
_POLL_S = 0.02


class ProcessError(RuntimeError):
    """A process failed; the text names it, says how it failed and quotes the end of its log."""


class Child:
    """A process whose output goes to `<folder>/<name>.log`.

    may_end: whether exit status 0 is expected before `stop`; a node that is to run until it is
    stopped has failed when it ends by itself, with any status.
    """

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, may_end: bool = False
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._may_end = may_end
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                list(command), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit status; None while the process runs, -N after signal N."""
        return self._process.poll()

    def text(self) -> str:
        """Everything that the process has printed so far."""
        return self.log.read_text(errors="replace")

    def ended(self) -> bool:
        return self.code is not None

    def check(self) -> None:
        """Raise `ProcessError`, with the end of the log, if the process failed."""
        code = self.code
        if code is not None and not (code == 0 and self._may_end):
            raise self.error(f"ended with status {code}")

    def error(self, text: str) -> ProcessError:
        """Make the error that says `text` about this process and quotes the end of its log."""
        lines = "\n".join(f"  {line}" for line in self.text().splitlines()[-_LAST_LINES:])
        return ProcessError(
            f"the process {self.name} {text}; its log, {self.log}, ends with\n{lines}"
        )

    def wait_for(self, text: str, seconds: float) -> str:
        """Wait until the process has printed `text`; return its output.

        Raises `ProcessError` if the process ends or `seconds` pass before.
        """
        end = time.monotonic() + seconds
        while True:
            ended = self.ended()  # before the log is read, so that its last line is seen
            if text in (log := self.text()):
                return log
            if ended:
                raise self.error(f"ended with status {self.code} before it printed '{text}'")
            if time.monotonic() > end:
                raise self.error(f"has not printed '{text}' within {seconds:g} s")
            time.sleep(_POLL_S)

    def wait(self, seconds: float) -> int:
        """Wait for the end of the process; return its status. Raises `ProcessError` when late."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.error(f"has not ended within {seconds:g} s") from None

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send a signal, by default the one of Ctrl-C."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """End the process by an interrupt, and by force if that is not enough."""
        if not self.ended():
            self.interrupt()
            try:
                self._process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def node_command(
    executable: str,
    parameters: Mapping[str, object] | None = None,
    namespace: str = "",
    *ros_args: str,
) -> list[str]:
    """Command that runs one of the package's nodes in this Python.

    executable: `fuse_node` or `camera_node`; ros_args: further arguments after `--ros-args`.
    """
    arguments = [*ros_arguments(parameters or {}), *ros_args]
    if namespace:
        arguments += ["-r", f"__ns:=/{namespace.strip('/')}"]
    return [sys.executable, "-u", "-m", "fusion_ros", executable, "--ros-args", *arguments]


def ros_arguments(parameters: Mapping[str, object]) -> list[str]:
    """Write parameters as arguments of a node; values are JSON, which YAML reads with its types."""
    arguments = []
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
    return arguments
