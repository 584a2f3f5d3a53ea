# SPDX-License-Identifier: AGPL-3.0-only
"""The launch files: their arguments, what they refuse and what they start and end."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import write_fusion_onnx

from fusion_ros.inference.models import list_methods

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = {
    "method", "params_file", "thermal_image", "rgb_image", "thermal_info", "rgb_info", "detect",
    "backend", "precision", "processing_size", "image_size", "build_only", "qos", "rviz",
    "respawn", "namespace", "use_sim_time", "fastdds_profile",
}  # fmt: skip
QUICK = ("backend:=null", "detect:=false")
PATIENCE_S = 120.0


class Launch:
    """A running `ros2 launch` and its output."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        with log.open("w") as out:
            # A process group of its own, so that what it leaves behind can be found.
            self.process = subprocess.Popen(
                ["ros2", "launch", *arguments],
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until the output has `text` this many times."""
        end = time.monotonic() + PATIENCE_S
        while self.said.count(text) < count:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.05)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def interrupt(self) -> int:
        """End it as Ctrl-C does; return its status. It hands the signal on to its processes."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def left(self) -> list[int]:
        """Processes of its group that still run."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # ended meanwhile
                continue
            if int(fields[2]) == self.process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def close(self) -> None:
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def ros2_launch(tmp_path) -> Iterator:
    """Starts `ros2 launch <file> ...`, for a file's name of the package or a path."""
    pytest.importorskip("launch_ros", reason="launch comes with an installed ROS only")
    index = pytest.importorskip("ament_index_python.packages")
    try:
        index.get_package_share_directory("fusion_ros")
    except LookupError as error:
        pytest.skip(f"needs a colcon-built fusion_ros, sourced: {error}")
    started: list[Launch] = []

    def start(file: str | Path, *arguments: str) -> Launch:
        where = [str(file)] if isinstance(file, Path) else ["fusion_ros", file]
        log = tmp_path / f"launch_{len(started)}.log"
        started.append(Launch(log, *where, *arguments))
        return started[-1]

    yield start
    for launch in started:
        launch.close()


@pytest.mark.parametrize("name", ["fuse", "demo"])
def test_launch_files_are_python_with_a_description(name):
    tree = ast.parse((ROOT / "launch" / f"{name}.launch.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "generate_launch_description" in functions and ast.get_docstring(tree)


def test_the_launch_file_lists_its_arguments_and_the_methods(ros2_launch):
    launch = ros2_launch("fuse.launch.py", "--show-args")
    assert launch.wait() == 0
    assert all(f"'{name}':" in launch.said for name in ARGUMENTS)
    assert ", ".join(list_methods()) in launch.said


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("method:=nonsense", ["nonsense", *list_methods()]),
        ("method:=/nowhere/x.onnx", ["/nowhere/x.onnx"]),
        ("params_file:=/nonexistent.yaml", ["there is no file '/nonexistent.yaml'"]),
        ("processing_size:=small", ["expected pixels", "small"]),
    ],
)
def test_a_wrong_argument_is_refused_with_the_choices_before_anything_starts(
    argument, says, ros2_launch
):
    launch = ros2_launch("fuse.launch.py", argument)
    assert launch.wait() != 0
    assert all(word in launch.said for word in says), launch.said
    assert "process started" not in launch.said and not launch.left()


@pytest.mark.slow
def test_a_model_is_launched_by_its_path(ros2_launch, tmp_path):
    model = write_fusion_onnx(tmp_path / "average.onnx")
    launch = ros2_launch("fuse.launch.py", f"method:={model}", "detect:=false")
    launch.wait_for(f"fusing by {model}")
    assert launch.interrupt() == 0 and "Traceback" not in launch.said
    assert not launch.left()


@pytest.mark.slow
def test_without_rviz_the_node_runs_on(ros2_launch):
    packages = pytest.importorskip("ament_index_python.packages")
    if "rviz2" in packages.get_packages_with_prefixes():
        pytest.skip("rviz2 is installed here")
    launch = ros2_launch("fuse.launch.py", *QUICK, "rviz:=true")
    launch.wait_for("fusing by")
    assert "rviz2 is not installed, going on without it" in launch.said
    assert launch.interrupt() == 0
    assert not launch.left()


@pytest.mark.slow
def test_a_node_that_fails_at_the_start_ends_the_cameras_too(ros2_launch):
    launch = ros2_launch("demo.launch.py", *QUICK, "image_size:=large")
    assert launch.wait() == 1
    assert "fuse_node" in launch.said and "ended with exit code 1" in launch.said
    assert not launch.left()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "status"), [("64x48", 0), ("large", 1)])
def test_a_launch_that_only_builds_returns_whether_that_succeeded(size, status, ros2_launch):
    launch = ros2_launch("fuse.launch.py", *QUICK, "build_only:=true", f"image_size:={size}")
    assert launch.wait() == status, launch.said
    assert not launch.left()


@pytest.mark.slow
def test_a_node_that_ends_is_started_again_with_respawn(ros2_launch):
    launch = ros2_launch("fuse.launch.py", *QUICK, "respawn:=true")
    launch.wait_for("fusing by")
    node = int(re.search(r"\[fuse_node-1\]: process started with pid \[(\d+)\]", launch.said)[1])
    os.kill(node, signal.SIGKILL)
    launch.wait_for("fusing by", count=2)
    assert launch.interrupt() == 0
    assert not launch.left()


OUTER = """
from launch import LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace

def generate_launch_description():
    demo = IncludeLaunchDescription(
        PythonLaunchDescriptionSource("{demo}"),
        launch_arguments={{"backend": "null", "detect": "false", "namespace": "{own}"}}.items(),
    )
    return LaunchDescription([GroupAction([PushRosNamespace("robot"), demo])])
"""


@pytest.mark.slow
@pytest.mark.parametrize("own", ["", "front"])
def test_cameras_and_node_fuse_in_a_namespace_that_was_pushed(own, ros2_launch, tmp_path):
    outer = tmp_path / "outer.launch.py"
    outer.write_text(OUTER.format(demo=ROOT / "launch" / "demo.launch.py", own=own))
    launch = ros2_launch(outer)
    name = ".".join(filter(None, ("robot", own, "fuse_node")))
    launch.wait_for(f"[{name}]: fusing by")
    # The node logs its rate once it has fused images.
    launch.wait_for("fps, latency")
    assert launch.interrupt() == 0 and "Traceback" not in launch.said, launch.said
    assert not launch.left()
