# SPDX-License-Identifier: AGPL-3.0-only
"""What tests of the node share: a small network that needs no time."""

from __future__ import annotations

import pytest
from support import write_fusion_onnx


@pytest.fixture(scope="session")
def average(tmp_path_factory) -> str:
    """Path of a fusion model that gives the mean of both images."""
    return str(write_fusion_onnx(tmp_path_factory.mktemp("models") / "average.onnx"))
