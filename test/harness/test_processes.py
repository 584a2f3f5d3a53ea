# SPDX-License-Identifier: AGPL-3.0-only
"""Processes of the harness: their log, failure and end, and the environment that they inherit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_ros.harness.environment import PROFILE_VARIABLE, profile_path
from fusion_ros.harness.processes import Child, ProcessError, node_command

PYTHON = [sys.executable, "-u", "-c"]
ROOT = Path(__file__).resolve().parents[2]


def test_a_process_that_fails_is_reported_with_the_end_of_its_log(tmp_path):
    child = Child("worker", [*PYTHON, "print('out of memory'); raise SystemExit(3)"], tmp_path)
    assert child.wait(60) == 3
    with pytest.raises(ProcessError, match="(?s)worker ended with status 3.*out of memory"):
        child.check()


@pytest.mark.parametrize("may_end", [True, False])
def test_a_node_that_ends_by_itself_has_failed_unless_it_may(may_end, tmp_path):
    child = Child("worker", [*PYTHON, "pass"], tmp_path, may_end)
    assert child.wait(60) == 0
    if may_end:
        child.check()
    else:
        with pytest.raises(ProcessError, match="ended with status 0"):
            child.check()


def test_waiting_for_a_line_ends_with_the_line_or_with_the_process(tmp_path):
    code = "import time; print('ready'); time.sleep(600)"
    child = Child("worker", [*PYTHON, code], tmp_path)
    assert "ready" in child.wait_for("ready", 60)
    child.stop()
    assert child.ended()
    with pytest.raises(ProcessError, match="before it printed 'more'"):
        child.wait_for("more", 60)


def test_parameters_keep_their_types_and_texts_stay_texts():
    command = node_command("camera_node", {"rate": 10, "path": "1.5", "loop": True}, "/front/rgb")
    assert command[1:] == [
        *("-u", "-m", "fusion_ros", "camera_node", "--ros-args"),
        *("-p", "rate:=10", "-p", 'path:="1.5"', "-p", "loop:=true"),
        *("-r", "__ns:=/front/rgb"),
    ]


def test_the_fast_dds_profile_of_the_checkout_is_found():
    assert profile_path() == ROOT / "config" / "fastdds_shm.xml"


@pytest.mark.parametrize(
    ("distribution", "variable"),
    [
        ("humble", "FASTRTPS_DEFAULT_PROFILES_FILE"),
        ("iron", "FASTRTPS_DEFAULT_PROFILES_FILE"),
        ("jazzy", "FASTRTPS_DEFAULT_PROFILES_FILE"),
        ("kilted", "FASTDDS_DEFAULT_PROFILES_FILE"),
        ("", "FASTDDS_DEFAULT_PROFILES_FILE"),
    ],
)
def test_the_profile_variable_is_the_one_that_the_distribution_s_fast_dds_reads(
    distribution, variable
):
    code = "from fusion_ros.harness.environment import PROFILE_VARIABLE; print(PROFILE_VARIABLE)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"ROS_DISTRO": distribution},
        capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
    )  # fmt: skip
    assert run.stdout.strip() == variable
    assert PROFILE_VARIABLE in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
