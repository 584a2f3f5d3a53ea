# SPDX-License-Identifier: AGPL-3.0-only
"""`make demo` and `make test`: what they install, and that they do it once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYTEST = "-m pytest -n 2 --dist loadfile"
# Stands for any Python: notes what it is called for, and makes an environment of itself.
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
  "-m venv "*) for last; do :; done; mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
  *"pip --disable"*) [ ! -e "$OFFLINE" ] ;;
  "-m ruff check") [ ! -e "$UNTIDY" ] ;;
esac
"""


class Checkout:
    """A copy of what the Makefile reads, with a Python that only notes its calls."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("Makefile", "setup.py", "constraints.txt", "constraints-oldest.txt"):
            shutil.copy(ROOT / name, folder)
        self.python = folder / "fake-python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self.calls, self.offline = folder / "calls", folder / "offline"
        self.untidy = folder / "untidy"

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run make; `.calls` then holds what Python was called for in this run."""
        sourced = {"ROS_DISTRO", "AMENT_PREFIX_PATH", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES"}
        sourced |= {"MAKELEVEL", "VENV", "PYTHON", "PYTEST_ARGS"}
        env = {name: value for name, value in os.environ.items() if name not in sourced}
        env |= {"CALLS": str(self.calls), "OFFLINE": str(self.offline)}
        env |= {"UNTIDY": str(self.untidy), **environment}
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
    assert checkout.installed() == [".[cpu,ros,bags]"]
    assert "-m fusion_ros demo --method baffm --out demo_output" in checkout.calls.read_text()


def test_a_second_run_installs_nothing(checkout):
    checkout.make("demo")
    checkout.offline.touch()
    assert checkout.make("demo").returncode == 0
    assert checkout.installed() == []
    assert checkout.calls.read_text().startswith("-m fusion_ros demo")


def test_what_the_tests_installed_serves_the_demo(checkout):
    checkout.make("test")
    assert checkout.installed() == [
        ".[cpu,ros,train,detector,search,dictionary,tensorrt,lint,test]"
    ]
    checkout.make("demo")
    assert checkout.installed() == []


def test_the_style_is_checked_before_the_tests_run(checkout):
    checkout.make("test")
    calls = checkout.calls.read_text().splitlines()
    assert calls.index("-m ruff check") < calls.index("-m ruff format --check")
    assert calls.index("-m ruff format --check") < calls.index(PYTEST)
    checkout.untidy.touch()
    run = checkout.make("test")
    assert run.returncode != 0 and "ruff check --fix" in run.stderr
    assert PYTEST not in checkout.calls.read_text()


def test_lint_alone_installs_nothing_but_the_linter(checkout):
    assert checkout.make("lint").returncode == 0
    assert checkout.installed() == [".[lint]"]
    assert "-m ruff format --check" in checkout.calls.read_text()
    checkout.make("test")
    checkout.make("lint")
    assert checkout.installed() == []


def test_the_oldest_versions_are_tested_in_an_environment_of_their_own(checkout):
    run = checkout.make("test-oldest", f"PYTHON_OLDEST={checkout.python}")
    assert run.returncode == 0, run.stderr
    assert checkout.installed() == [".[cpu,test]"]
    calls = checkout.calls.read_text()
    assert "-c constraints-oldest.txt" in calls and "-m venv .venv-oldest" in calls
    assert calls.endswith(f"{PYTEST}\n")
    assert not (checkout.folder / ".venv").exists()


def test_changed_requirements_are_installed_and_old_stamps_dropped(checkout):
    checkout.make("test")
    with (checkout.folder / "constraints.txt").open("a") as file:
        file.write("numpy==1.0\n")
    checkout.make("demo")
    assert checkout.installed() == [".[cpu,ros,bags]"]
    checkout.make("test")
    assert checkout.installed() == [
        ".[cpu,ros,train,detector,search,dictionary,tensorrt,lint,test]"
    ]


def test_a_failed_installation_is_reported_and_repeated_by_the_next_run(checkout):
    checkout.offline.touch()
    run = checkout.make("demo")
    assert run.returncode != 0 and "needs the network" in run.stderr
    assert "fusion_ros demo" not in checkout.calls.read_text()
    checkout.offline.unlink()
    assert checkout.make("demo").returncode == 0
    assert checkout.installed() == [".[cpu,ros,bags]"]


def test_an_environment_without_its_python_is_created_again(checkout):
    checkout.make("demo")
    (checkout.folder / ".venv" / "bin" / "python").unlink()
    assert checkout.make("demo").returncode == 0
    assert checkout.installed() == [".[cpu,ros,bags]"]


def test_a_sourced_ros_is_used_and_brings_no_wheels(checkout):
    run = checkout.make("demo", ROS_DISTRO="jazzy", AMENT_PREFIX_PATH="/opt/ros/jazzy")
    assert run.returncode == 0, run.stderr
    assert checkout.installed() == [".[bags]"]
    assert "-r .venv-jazzy/requirements.txt" in checkout.calls.read_text()
    assert "-m venv --system-site-packages .venv-jazzy" in checkout.calls.read_text()


# What the system of a robot has, and the requirements that its environment gets then.
SYSTEMS = {
    "Ubuntu 22.04": (
        {"numpy": "1.21.5", "cv2": "4.5.4"},
        "numpy>=1.21.6,<2",
        ["onnxruntime>=1.18"],
    ),
    "Ubuntu 24.04": (
        {"numpy": "1.26.4", "cv2": "4.6.0"},
        "numpy>=1.21.6,<2",
        ["onnxruntime>=1.18"],
    ),
    "Jetson": (
        {"numpy": "1.26.4", "cv2": "4.8.0", "onnxruntime": "1.19.0"},
        "numpy>=1.21.6,<2",
        [],
    ),
    "ROS alone": (
        {"numpy": "2.4.6", "onnxruntime": "1.12.1"},
        "numpy>=2",
        ["opencv-python-headless>=4.5.4", "onnxruntime>=1.18"],
    ),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_sourced_ros_keeps_its_numpy_and_what_is_new_enough(checkout, system):
    installed, numpy, missing = SYSTEMS[system]
    modules = checkout.folder / "modules"
    modules.mkdir()
    for name in ("numpy", "cv2", "onnxruntime"):
        version = installed.get(name)
        text = f"__version__ = {version!r}\n" if version else "raise ImportError('not installed')\n"
        (modules / f"{name}.py").write_text(text)
    probing = f'  "-c import numpy"*|"-c import importlib"*) exec "{sys.executable}" -S "$@" ;;\n'
    checkout.python.write_text(PYTHON.replace("esac", probing + "esac"))
    run = checkout.make(
        "demo", ROS_DISTRO="x", AMENT_PREFIX_PATH="/opt/ros/x", PYTHONPATH=str(modules)
    )
    assert run.returncode == 0, run.stderr
    environment = checkout.folder / ".venv-x"
    assert (environment / "constraints.txt").read_text().split() == [numpy]
    assert (environment / "requirements.txt").read_text().split() == missing


def test_options_are_passed_to_the_demo(checkout):
    checkout.make("demo", "METHOD=cfi", "DATA=../my pairs", "DETECTOR=yolo.onnx")
    last = checkout.calls.read_text().splitlines()[-1]
    assert "--method cfi" in last and "--detector yolo.onnx" in last
    assert "--data ../my pairs" in last


def test_a_python_that_does_not_fit_is_refused_with_what_to_do(checkout):
    run = checkout.make("demo", "PYTHON=/nonexistent/python3")
    assert run.returncode != 0
    assert "Python 3.10 to 3.14" in run.stderr and "make PYTHON=" in run.stderr


def test_an_environment_of_another_tool_is_not_deleted(checkout):
    theirs = checkout.folder / ".venv" / "precious"
    theirs.parent.mkdir()
    theirs.touch()
    result = checkout.make("demo")
    assert result.returncode != 0 and "not made by this Makefile" in result.stderr
    assert theirs.exists()
