# SPDX-License-Identifier: AGPL-3.0-only
"""`make demo` and `make test`: what they install, and that they do it once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Stands for any Python: notes what it is called for, and makes an environment of itself.
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv "*) for last; do :; done; mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
  *"pip --disable"*) [ ! -e "$OFFLINE" ] ;;
esac
"""


class Checkout:
    """A copy of what the Makefile reads, with a Python that only notes its calls."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("Makefile", "setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.python = folder / "fake-python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self.calls, self.offline = folder / "calls", folder / "offline"

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run make; `.calls` then holds what Python was called for in this run."""
        sourced = {"ROS_DISTRO", "AMENT_PREFIX_PATH", "MAKEFLAGS", "MAKELEVEL", "VENV", "PYTHON"}
        env = {name: value for name, value in os.environ.items() if name not in sourced}
        env |= {"CALLS": str(self.calls), "OFFLINE": str(self.offline), **environment}
        self.calls.write_text("")
        return subprocess.run(
            ["make", f"PYTHON={self.python}", *arguments],
            cwd=self.folder, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def installed(self) -> list[str]:
        """What pip was asked to install in the last run, as its last argument."""
        lines = self.calls.read_text().splitlines()
        return [line.split()[-1] for line in lines if line.startswith("-m pip --disable")]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    if os.uname().machine != "x86_64":
        pytest.skip("ROS wheels are for x86_64")
    return Checkout(tmp_path)


def test_the_demo_installs_ros_wheels_and_no_torch(checkout):
    assert checkout.make("demo").returncode == 0
    assert checkout.installed() == [".[ros]"]
    assert (
        "-m fusion_ros.commands.demo --method baffm --out demo_output" in checkout.calls.read_text()
    )


def test_a_second_run_installs_nothing(checkout):
    checkout.make("demo")
    checkout.offline.touch()
    assert checkout.make("demo").returncode == 0
    assert checkout.installed() == []
    assert checkout.calls.read_text().startswith("-m fusion_ros.commands.demo")


def test_what_the_tests_installed_serves_the_demo(checkout):
    checkout.make("test")
    assert checkout.installed() == [".[ros,train,tensorrt,test]"]
    checkout.make("demo")
    assert checkout.installed() == []


def test_changed_requirements_are_installed_and_old_stamps_dropped(checkout):
    checkout.make("test")
    with (checkout.folder / "constraints.txt").open("a") as file:
        file.write("numpy==1.0\n")
    checkout.make("demo")
    assert checkout.installed() == [".[ros]"]
    checkout.make("test")
    assert checkout.installed() == [".[ros,train,tensorrt,test]"]


def test_a_failed_installation_says_so_and_is_taken_up_again(checkout):
    checkout.offline.touch()
    run = checkout.make("demo")
    assert run.returncode != 0 and "needs the network" in run.stderr
    assert "fusion_ros.commands.demo" not in checkout.calls.read_text()
    checkout.offline.unlink()
    assert checkout.make("demo").returncode == 0
    assert checkout.installed() == [".[ros]"]


def test_an_environment_whose_python_is_gone_is_made_again(checkout):
    checkout.make("demo")
    (checkout.folder / ".venv" / "bin" / "python").unlink()
    assert checkout.make("demo").returncode == 0
    assert checkout.installed() == [".[ros]"]


def test_a_sourced_ros_is_used_and_brings_no_wheels(checkout):
    run = checkout.make("demo", ROS_DISTRO="jazzy", AMENT_PREFIX_PATH="/opt/ros/jazzy")
    assert run.returncode == 0, run.stderr
    assert checkout.installed() == ["."]
    assert "-m venv --system-site-packages .venv-jazzy" in checkout.calls.read_text()


def test_options_reach_the_demo(checkout):
    checkout.make("demo", "METHOD=cfi", "DATA=../my pairs", "DETECTOR=yolo.onnx")
    last = checkout.calls.read_text().splitlines()[-1]
    assert "--method cfi" in last and "--detector yolo.onnx" in last
    assert "--data ../my pairs" in last


def test_a_python_that_does_not_fit_is_refused_with_what_to_do(checkout):
    run = checkout.make("demo", "PYTHON=/nonexistent/python3")
    assert run.returncode != 0
    assert "Python 3.10 to 3.14" in run.stderr and "make PYTHON=" in run.stderr


def test_an_environment_of_somebody_else_is_not_deleted(checkout):
    theirs = checkout.folder / ".venv" / "precious"
    theirs.parent.mkdir()
    theirs.touch()
    result = checkout.make("demo")
    assert result.returncode != 0 and "not made by this Makefile" in result.stderr
    assert theirs.exists()
