# SPDX-License-Identifier: AGPL-3.0-only
"""Simulated cameras rendered ahead: a loop of frames, drawn once, then played from the disk.

A frame of 640x480 takes 10 to 20 ms to draw and 0.3 ms to play. The loops are in
`~/.cache/fusion_ros/street`, at most `MOST_BYTES` together; the ones not used for longest go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from fusion_ros.cameras.street.scene import (
    CONDITIONS,
    CYCLE_S,
    EIGHT_BIT,
    RGB_CAMERA,
    THERMAL_CAMERA,
    TOUR_STOP_S,
    CameraModel,
    weather,
)
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal

__all__ = [
    "LARGEST_LOOP",
    "LOOP_RATE",
    "MOST_BYTES",
    "Loop",
    "LoopPlan",
    "default_folder",
    "loop_seconds",
]

MOST_BYTES = 3 << 29
"""Disk space for all loops, bytes."""
LARGEST_LOOP = 1 << 30
"""Disk space for one loop, bytes."""
LOOP_RATE = 30.0
"""Usual frames per second of scene time."""


def default_folder() -> Path:
    """Where loops are kept."""
    return Path.home() / ".cache" / "fusion_ros" / "street"


def loop_seconds(scene_name: str) -> float:
    """The usual length of a scene's loop in seconds: a whole tour, or a round of the traffic."""
    return TOUR_STOP_S * len(CONDITIONS) if scene_name == "tour" else CYCLE_S


@dataclass(frozen=True)
class LoopPlan:
    """Which frames a loop holds; the arguments of the simulated camera, rate and length.

    Raises ValueError for an unknown camera or scene, a rate that is not positive, and a loop
    that would take more than `LARGEST_LOOP` bytes.
    """

    camera: str  # 'rgb' or 'thermal'
    scene_name: str = "tour"
    seed: int = 0
    rate: float = LOOP_RATE  # frames per second of scene time
    seconds: float = 0.0  # length; 0: `loop_seconds` of the scene
    model: CameraModel | None = None  # None: the usual one of the camera

    def __post_init__(self) -> None:
        """Fill in what was left out, and check the rest."""
        if self.camera not in ("rgb", "thermal"):
            raise ValueError(f"camera '{self.camera}': expected rgb or thermal")
        weather(self.scene_name, 0.0)
        if self.rate <= 0 or self.seconds < 0:
            raise ValueError(
                f"loop of {self.seconds:g} s at {self.rate:g} frames per second: expected a "
                "positive rate and a length of 0 (the scene's own) or more"
            )
        usual = RGB_CAMERA if self.camera == "rgb" else THERMAL_CAMERA
        object.__setattr__(self, "model", self.model or usual)
        object.__setattr__(self, "seconds", self.seconds or loop_seconds(self.scene_name))
        if self.bytes > LARGEST_LOOP:
            raise ValueError(
                f"loop of {self.count} frames of {self.model.width}x{self.model.height} takes "
                f"{self.bytes >> 20} MiB: expected at most {LARGEST_LOOP >> 20} MiB; give a lower "
                "rate, a smaller size or a shorter loop"
            )

    @property
    def count(self) -> int:
        """Number of frames in the loop."""
        return max(1, round(self.seconds * self.rate))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored frames. RGB of even size is kept as I420, half as large."""
        width, height = self.model.width, self.model.height
        if self.camera == "thermal":
            return self.count, height, width
        if self._halved:
            return self.count, height * 3 // 2, width
        return self.count, height, width, 3

    @property
    def dtype(self) -> type:
        """Type of the stored frames."""
        deep = self.camera == "thermal" and self.scene_name not in EIGHT_BIT
        return np.uint16 if deep else np.uint8

    @property
    def bytes(self) -> int:
        """Disk space of the loop, bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def path(self) -> Path:
        """Name of the loop's file in its folder; it depends on the code that draws."""
        text = repr((self, np.__version__, cv2.__version__, _code_digest()))
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Path(f"{self.camera}-{self.scene_name}-{self.seed}-{digest}.npy")

    @property
    def _halved(self) -> bool:
        return self.model.width % 2 == 0 and self.model.height % 4 == 0


class Loop:
    """The frames of a plan, rendered where no earlier run has left them.

    `render` has the meaning of the camera's own, but that scene time runs in a circle, in steps
    of a frame, and that the colours of RGB frames of even size are kept at half resolution.
    """

    def __init__(
        self,
        plan: LoopPlan,
        folder: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Open the loop, or draw it; `progress` is called with (frames drawn, frames in all).

        Without a folder that can be written, the frames stay in memory.
        """
        self.plan = plan
        self._frame: np.ndarray | None = None
        folder = default_folder() if folder is None else Path(folder)
        path = folder / plan.path
        self._frames = _opened(path, plan)
        if self._frames is None:
            self._frames = self._drawn(path, progress or (lambda done, count: None))
            _discard(folder, keep=path)

    def render(self, time_s: float) -> np.ndarray:
        """Frame of a scene time in seconds, as the camera gives it; valid until the next call."""
        stored = self._frames[round(time_s * self.plan.rate) % self.plan.count]
        if self.plan.camera == "rgb" and self.plan._halved:
            self._frame = cv2.cvtColor(stored, cv2.COLOR_YUV2BGR_I420, dst=self._frame)
            return self._frame
        return stored

    def _drawn(self, path: Path, progress: Callable[[int, int], None]) -> np.ndarray:
        plan = self.plan
        make = SimulatedRgb if plan.camera == "rgb" else SimulatedThermal
        camera = make(plan.model, plan.scene_name, plan.seed)
        # Another process may draw the same loop: each writes a file of its own, and renames it.
        temporary = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            os.close(handle)
            frames = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=plan.dtype, shape=plan.shape
            )
            # Reserved now: a disk that is full is an error here, not a bus error while drawing.
            with open(temporary, "r+b") as file:
                _reserve(file.fileno(), os.path.getsize(temporary))
        except OSError:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            temporary, frames = "", np.empty(plan.shape, plan.dtype)
        try:
            for index in range(plan.count):
                frame = camera.render(index / plan.rate)
                if plan.camera == "rgb" and plan._halved:
                    frame = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)
                frames[index] = frame
                progress(index + 1, plan.count)
            if temporary:
                frames.flush()
                os.replace(temporary, path)
                frames = np.load(path, mmap_mode="r")
        except BaseException:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            raise
        return frames


def _opened(path: Path, plan: LoopPlan) -> np.ndarray | None:
    """The frames of an earlier run, or None."""
    try:
        frames = np.load(path, mmap_mode="r")
        os.utime(path)  # the loops used longest ago are deleted first
    except (OSError, ValueError):
        return None
    return frames if frames.shape == plan.shape and frames.dtype == plan.dtype else None


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


def _discard(folder: Path, keep: Path) -> None:
    """Delete the loops used longest ago until the rest fits in `MOST_BYTES`."""
    found = []
    for path in folder.glob("*.npy"):
        with contextlib.suppress(OSError):  # another process may have deleted it
            status = path.stat()
            found.append((path == keep, status.st_mtime, status.st_size, path))
    total = sum(size for _, _, size, _ in found)
    for kept, _, size, path in sorted(found):
        if total <= MOST_BYTES or kept:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """Changes with the code that draws."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()
