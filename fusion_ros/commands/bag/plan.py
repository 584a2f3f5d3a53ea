# SPDX-License-Identifier: AGPL-3.0-only
"""What a bag of `make_bag` is to hold: both cameras, their faults, and where images come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CameraPlan", "Plan", "Source"]


@dataclass(frozen=True)
class CameraPlan:
    """What one camera records.

    offset_s, drift_ppm: of its clock; drop: share of its images that are lost; size: (width,
    height), (0, 0) for that of the source; encoding: empty for that of the source.
    """

    topic: str
    rate: float
    offset_s: float = 0.0
    drift_ppm: float = 0.0
    jitter_s: float = 0.0
    drop: float = 0.0
    size: tuple[int, int] = (0, 0)
    encoding: str = ""
    compressed: bool = False


@dataclass(frozen=True)
class Plan:
    """A bag to make; see the command's options. seconds: 0 for the whole source."""

    output: Path
    thermal: CameraPlan = field(default_factory=lambda: CameraPlan("/thermal/image_raw", 9.0))
    rgb: CameraPlan = field(default_factory=lambda: CameraPlan("/rgb/image_raw", 30.0))
    seconds: float = 0.0
    scene: str = "night"
    seed: int = 0
    data: tuple[Path, ...] = ()
    videos: tuple[Path, Path] | None = None
    source_rate: float = 30.0
    delay_s: float = 0.004
    storage: str = "mcap"
    compression: str = "none"
    quality: int = 90
    info: bool = True
    misalign: tuple[float, float] = (0.0, 0.0)


class Source(Protocol):
    """Where images come from. seconds: the length, infinite for the simulated cameras."""

    seconds: float

    def image(self, camera: str, at_s: float) -> np.ndarray:
        """The image of a camera at a time since the start: (H, W) thermal, (H, W, 3) BGR."""

    def matrix(self, camera: str) -> np.ndarray | None:
        """The (3, 3) camera matrix; None for a camera that is not calibrated."""
