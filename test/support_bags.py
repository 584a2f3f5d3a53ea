# SPDX-License-Identifier: AGPL-3.0-only
"""Small bags for tests, made once a session."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fusion_ros.commands.bag.plan import CameraPlan, Plan

__all__ = ["OFFSET_S", "small_plan"]

OFFSET_S = 0.05


def small_plan(path: Path, seconds: float = 2.0, **changes: object) -> Plan:
    """A plan of the simulated cameras at 128x96 and 80x64, 10 and 20 Hz, with an offset."""
    thermal = CameraPlan("/thermal/image_raw", 10.0, OFFSET_S, size=(80, 64))
    rgb = CameraPlan("/rgb/image_raw", 20.0, size=(128, 96))
    parts = {"thermal": thermal, "rgb": rgb}
    for name in ("thermal", "rgb"):
        given = changes.pop(name, {})
        parts[name] = dataclasses.replace(parts[name], **given)
    return Plan(path, **parts, seconds=seconds, **changes)
