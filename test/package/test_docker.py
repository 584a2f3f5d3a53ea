# SPDX-License-Identifier: AGPL-3.0-only
"""The containers: files that are clean, and a compose file that names what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusion_ros.commands.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted(ROOT.glob("docker/*/Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_nothing(path):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed here; `make lint` installs it")
    command = [hadolint, "--config", str(ROOT / ".hadolint.yaml"), str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout + run.stderr == ""


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_each_says_on_what_it_ran_and_copies_what_exists(path):
    text = path.read_text()
    assert "# Ran on: " in text
    for source in re.findall(r"^COPY (\S+)", text, re.M):
        assert (ROOT / source).exists()


@pytest.mark.parametrize("machine", ["desktop", "jetson"])
def test_compose_builds_files_that_exist_and_runs_commands_that_exist(machine):
    yaml = pytest.importorskip("yaml")
    path = ROOT / "docker" / "compose.yaml"
    text = path.read_text().replace("${MACHINE:-desktop}", machine)
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"thermal", "rgb", "fusion", "bridge"}
    for service in services.values():
        build = service["build"]
        assert (path.parent / build["context"] / build["dockerfile"]).is_file()
        for name in re.findall(r"run fusion_ros (\w+)", service["command"]):
            assert name in COMMANDS
        for name in re.findall(r"launch fusion_ros (\S+)", service["command"]):
            assert (ROOT / "launch" / name).is_file()
