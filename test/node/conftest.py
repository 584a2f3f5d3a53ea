# SPDX-License-Identifier: AGPL-3.0-only
"""What tests of the node share: a small network that needs no time."""

from __future__ import annotations

import sys

import pytest
from support import write_fusion_onnx


@pytest.fixture(autouse=True)
def frequent_reports(monkeypatch):
    """Nodes in this process report five times as often, so that tests wait less for a report."""
    reporter = sys.modules.get("fusion_ros.node.reporter")
    if reporter:  # a test of what needs no ROS has not imported it
        monkeypatch.setattr(reporter, "PERIOD_S", 0.2)


@pytest.fixture(scope="session")
def average(tmp_path_factory) -> str:
    """Path of a fusion model that gives the mean of both images."""
    return str(write_fusion_onnx(tmp_path_factory.mktemp("models") / "average.onnx"))
