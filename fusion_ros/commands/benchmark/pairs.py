# SPDX-License-Identifier: AGPL-3.0-only
"""The benchmark's input: a few distinct pairs of images, in memory before anything is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from fusion_ros.cameras.files import FilesError, PairFolder
from fusion_ros.cameras.street.scene import CONDITIONS, THERMAL_CAMERA, TOUR_STOP_S, CameraModel
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal
from fusion_ros.size import Size

__all__ = ["BenchmarkInput", "pairs_from_folder", "simulated_pairs"]

_RGB_FOV, _THERMAL_FOV = 60.0, 66.0  # degrees, as of the camera node
_LEAST = 32


@dataclass(frozen=True)
class BenchmarkInput:
    """Pairs of images in memory, all of the same sizes and depths.

    thermal: (H, W) uint8 or uint16 each; visible: (H, W, 3) uint8 BGR each.
    matrices: (3, 3) camera matrices of thermal and visible, None where they are not known.
    """

    source: str
    thermal: list[np.ndarray]
    visible: list[np.ndarray]
    matrices: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.visible)

    @property
    def thermal_size(self) -> Size:
        return Size.of(self.thermal[0])

    @property
    def visible_size(self) -> Size:
        return Size.of(self.visible[0])

    @property
    def thermal_encoding(self) -> str:
        return "mono16" if self.thermal[0].dtype == np.uint16 else "mono8"

    @property
    def sha256(self) -> str:
        """Hash of all pixels in order, with shapes and depths; equal for equal input everywhere."""
        digest = hashlib.sha256()
        for pair in zip(self.thermal, self.visible):
            for image in pair:
                digest.update(f"{image.shape} {image.dtype.name}".encode())
                little = image.astype(image.dtype.newbyteorder("<"), copy=False)
                digest.update(np.ascontiguousarray(little).data)
        return digest.hexdigest()


def simulated_pairs(size: Size, count: int, seed: int = 0) -> BenchmarkInput:
    """BenchmarkInput of the simulated street, each condition of light and weather in turn.

    The thermal camera is the simulated one's (320x256, mono16), so that gain control and
    registration do their ordinary work; `size` is that of the RGB images.
    Raises ValueError for a size that no image of the street can have.
    """
    if min(size) < _LEAST:
        raise ValueError(f"size {size}: at least {_LEAST}x{_LEAST} is needed")
    visible_camera = CameraModel.from_fov(*size, _RGB_FOV)
    thermal_camera = CameraModel.from_fov(THERMAL_CAMERA.width, THERMAL_CAMERA.height, _THERMAL_FOV)
    rgb = SimulatedRgb(visible_camera, "tour", seed)
    thermal = SimulatedThermal(thermal_camera, "tour", seed)
    tour_s = TOUR_STOP_S * len(CONDITIONS)
    moments = [(number + 0.5) * tour_s / count for number in range(count)]
    return BenchmarkInput(
        f"simulated street, tour, seed {seed}",
        [thermal.render(moment) for moment in moments],
        [rgb.render(moment) for moment in moments],
        (thermal_camera.matrix, visible_camera.matrix),
    )


def pairs_from_folder(path: str | Path, size: Size | None, count: int) -> BenchmarkInput:
    """Read `count` pairs spread evenly over the folder, or all if there are fewer.

    size: that both images are resized to; None keeps it.

    Raises FilesError for a folder that cannot be used, and for images of several sizes or depths
    when no `size` is given.
    """
    folder = PairFolder(path)
    count = min(count, len(folder))
    chosen = [number * len(folder) // count for number in range(count)]

    def read(image: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        return [_resized(image(number), size) for number in chosen]

    pairs = BenchmarkInput(
        f"folder {Path(path).resolve().name}", read(folder.thermal), read(folder.visible)
    )
    for name, kind in (("ir", pairs.thermal), ("vi", pairs.visible)):
        found = sorted({f"{Size.of(i)} {i.dtype.name}" for i in kind})
        if len(found) > 1:
            raise FilesError(
                f"the images in '{Path(path) / name}' differ: {', '.join(found)}; give one size "
                "for all (--size 640x480) and keep to one depth"
            )
    return pairs


def _resized(image: np.ndarray, size: Size | None) -> np.ndarray:
    if size is None or Size.of(image) == size:
        return np.ascontiguousarray(image)
    shrinks = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
