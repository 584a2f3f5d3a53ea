# SPDX-License-Identifier: AGPL-3.0-only
"""Starting nodes as processes: their environment, their parameters, their logs and their end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fusion_ros.node.fastdds import PROFILE_VARIABLE

__all__ = ["Child", "ProcessError", "profile_path", "ros_arguments", "set_environment"]

_LAST_LINES = 15
_ENDING_S = 5.0


class ProcessError(RuntimeError):
    """A process failed; the text says which, how, and how its log ends."""


class Child:
    """A node in a process of its own, whose output goes to `<folder>/<name>.log`.

    module: what `python -m` runs; ros_args: what follows `--ros-args`.
    """

    def __init__(self, name: str, module: str, folder: Path, *ros_args: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        command = [sys.executable, "-u", "-m", module, "--ros-args", *ros_args]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        return self._process.poll() is not None

    def check(self, may_end: bool = False) -> None:
        """Raise `ProcessError`, with the end of the log, if the process failed."""
        code = self._process.poll()
        if code is None or (code == 0 and may_end):
            return
        raise self.error(f"ended with status {code}")

    def error(self, text: str) -> ProcessError:
        """The error to raise for what `text` says of the process, with the end of its log."""
        last = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        lines = "\n".join(f"  {line}" for line in last)
        return ProcessError(
            f"the process {self.name} {text}; its log, {self.log}, ends with\n{lines}"
        )

    def stop(self) -> None:
        """End the process by an interrupt, and by force if that is not enough."""
        if not self.ended():
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def ros_arguments(parameters: Mapping[str, object]) -> list[str]:
    """Parameters as arguments of a node; their JSON is YAML in which text stays text."""
    arguments = []
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
    return arguments


def set_environment() -> None:
    """Keep to this machine and out of other ROS traffic, with room for images, unless told.

    To be called before `rclpy.init`; the processes that are started inherit it.
    """
    environ = os.environ
    environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    profile, memory = profile_path(), Path("/dev/shm")
    # The processes share 64 MB each; a container may have less for all of them.
    if profile and memory.is_dir() and shutil.disk_usage(memory).free > 512e6:
        environ.setdefault(PROFILE_VARIABLE, str(profile))


def profile_path() -> Path | None:
    """The Fast DDS profile: in the checkout, or in share/ of what this is installed under."""
    _, *above = Path(__file__).resolve().parents
    folders = [above[0], *(folder / "share" / "fusion_ros" for folder in above)]
    paths = (folder / "config" / "fastdds_shm.xml" for folder in folders)
    return next((path for path in paths if path.is_file()), None)
