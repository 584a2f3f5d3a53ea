# SPDX-License-Identifier: AGPL-3.0-only
"""Small bags for tests, made once a session."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusion_ros.commands.bag.plan import CameraPlan, Plan

__all__ = ["OFFSET_S", "edited_bag", "small_plan"]

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


def edited_bag(source: Path, target: Path, edit: Callable[[str, Any], object]) -> Path:
    """A copy of a bag in which `edit` has changed the messages, given each with its topic."""
    from fusion_ros.recording.bag import open_bag
    from fusion_ros.recording.writer import BagWriter

    with open_bag(source) as bag, BagWriter(target) as writer:
        for record in bag.records(list(bag.topics)):
            message = bag.message(record)
            edit(record.topic, message)
            writer.write(record.topic, bag.topics[record.topic].type, record.log_ns, message)
    return target
