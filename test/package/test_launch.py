# SPDX-License-Identifier: AGPL-3.0-only
"""The launch files: their arguments, what they refuse and what they start."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
from pathlib import Path

import pytest

from fusion_ros.inference.models import list_methods

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = {
    "method", "params_file", "thermal_image", "rgb_image", "thermal_info", "rgb_info", "detect",
    "backend", "precision", "processing_size", "image_size", "build_only", "qos", "rviz",
    "namespace",
    "use_sim_time", "fastdds_profile",
}  # fmt: skip


@pytest.fixture
def ros2_launch():
    """Runs `ros2 launch fusion_ros ...` for some seconds at most: exit status, what it says."""
    pytest.importorskip("launch_ros", reason="launch comes with an installed ROS only")
    index = pytest.importorskip("ament_index_python.packages")
    try:
        index.get_package_share_directory("fusion_ros")
        index.get_package_share_directory("ros2launch")
    except LookupError as error:
        pytest.skip(f"needs ros2 launch and a colcon-built fusion_ros, sourced: {error}")

    def run(*arguments: str, seconds: float = 20.0) -> tuple[int, str]:
        process = subprocess.Popen(
            ["ros2", "launch", "fusion_ros", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # Not to the whole group: launch hands the signal on.
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=20.0)
        return process.returncode, said

    return run


@pytest.mark.parametrize("name", ["fuse", "demo"])
def test_launch_files_are_python_with_a_description(name):
    tree = ast.parse((ROOT / "launch" / f"{name}.launch.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "generate_launch_description" in functions and ast.get_docstring(tree)


def test_the_launch_file_lists_its_arguments_and_the_methods(ros2_launch):
    code, said = ros2_launch("fuse.launch.py", "--show-args")
    assert code == 0
    assert all(f"'{name}':" in said for name in ARGUMENTS)
    assert str(["", *list_methods()]) in said


def test_an_unknown_method_is_refused_with_the_choices(ros2_launch):
    code, said = ros2_launch("fuse.launch.py", "method:=nonsense")
    assert code != 0
    assert "nonsense" in said and all(method in said for method in list_methods())


def test_a_missing_parameter_file_is_named(ros2_launch):
    code, said = ros2_launch("fuse.launch.py", "params_file:=/nonexistent.yaml")
    assert code != 0 and "there is no file '/nonexistent.yaml'" in said


@pytest.mark.slow
def test_cameras_and_node_started_together_fuse(ros2_launch):
    arguments = ("backend:=null", "detect:=false", "namespace:=front")
    code, said = ros2_launch("demo.launch.py", *arguments, seconds=15.0)
    assert code == 0 and "Traceback" not in said, said
    rates = re.findall(r"\[front\.fuse_node\]: .* ([\d.]+) fps", said)
    assert rates and max(map(float, rates)) > 5.0, said
