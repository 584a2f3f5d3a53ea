# SPDX-License-Identifier: AGPL-3.0-only
"""Ctrl-C ends a training command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the commands need torch: pip install .[train]")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_an_interrupt_during_imports_ends_a_command_in_one_line(script):
    command = [sys.executable, "-X", "importtime", str(ROOT / "training" / script)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        # The first of the modules that take seconds.
        imported = next((line for line in process.stderr if "numpy" in line), None)
        assert imported, "ended without importing numpy"
        process.send_signal(signal.SIGINT)
        printed = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in printed
    assert printed.splitlines()[-1] == "interrupted"
