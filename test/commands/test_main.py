# SPDX-License-Identifier: AGPL-3.0-only
"""The command `fusion_ros`: its list, help without ROS, and errors that name the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_ros.commands.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


def run_without(modules: list[str], *arguments: str) -> subprocess.CompletedProcess:
    """Run `fusion_ros` in a Python that has none of these modules."""
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {modules!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from fusion_ros.commands.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip


ROS = ["rclpy", "sensor_msgs", "diagnostic_msgs", "std_msgs", "builtin_interfaces"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_neither_ros_nor_onnxruntime(name):
    run = run_without([*ROS, "onnxruntime", "torch", "matplotlib"], name, "--help")
    assert run.returncode == 0, run.stderr
    assert f"usage: fusion_ros {name}" in run.stdout


@pytest.mark.parametrize("name", ["demo", "fuse_node", "camera_node"])
def test_without_ros_a_command_names_the_remedy_in_one_line(name, tmp_path):
    options = ["--output", str(tmp_path / "out")] if name == "demo" else []
    run = run_without(ROS, name, *options)
    assert run.returncode == 1
    assert "setup.bash" in run.stderr and "pip install" in run.stderr
    assert "Traceback" not in run.stderr and len(run.stderr.splitlines()) == 1


def test_the_list_names_every_command(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_an_unknown_command_is_refused_with_the_choices(arguments, capsys):
    assert main(arguments) == 2
    refusal = capsys.readouterr().err
    assert all(name in refusal for name in COMMANDS)


def test_a_pipe_that_closes_early_is_not_an_error():
    run = subprocess.run(
        f"{sys.executable} -m fusion_ros --help | head -n 1",
        shell=True, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env=os.environ,
    )  # fmt: skip
    assert run.stdout.startswith("usage: fusion_ros") and "Traceback" not in run.stderr
