# SPDX-License-Identifier: AGPL-3.0-only
"""The fusion node's report in /diagnostics, read back by those who watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What the node said of itself at `stamp_ns`, its clock's time in ns; `values` are as sent."""

    stamp_ns: int
    values: dict[str, str]

    @classmethod
    def read(cls, msg: Any) -> Report | None:
        """The report in a diagnostic_msgs/DiagnosticArray; None if it holds none of this node."""
        for status in msg.status:
            if status.name == "fuse_node: fusion":
                stamp = msg.header.stamp
                values = {value.key: value.value for value in status.values}
                return cls(stamp.sec * 1_000_000_000 + stamp.nanosec, values)
        return None

    def count(self, name: str) -> int:
        """A counter; 0 for what has never happened."""
        return int(self.values.get(name, 0))

    @property
    def stage_ms(self) -> dict[str, float]:
        """Mean duration of each stage of a frame."""
        return {
            key.removeprefix("stage_").removesuffix("_ms"): float(value)
            for key, value in self.values.items()
            if key.startswith("stage_")
        }
