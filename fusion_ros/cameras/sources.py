# SPDX-License-Identifier: AGPL-3.0-only
"""Where a camera's frames come from: the simulated street, drawn now or ahead, or files."""

from __future__ import annotations

import math

import cv2
import numpy as np
from rclpy.logging import get_logger

from fusion_ros.cameras.files import PairFolder
from fusion_ros.cameras.parameters import ParameterError, Settings
from fusion_ros.cameras.street import scene
from fusion_ros.cameras.street.ahead import LOOP_RATE, Loop, LoopPlan
from fusion_ros.cameras.street.simulated import (
    COUNTS_PER_KELVIN,
    ZERO_CELSIUS,
    SimulatedRgb,
    SimulatedThermal,
)

__all__ = ["FilesSource", "SimulatedSource", "encode"]

_FROM_BGR = {
    "rgb8": cv2.COLOR_BGR2RGB,
    "bgra8": cv2.COLOR_BGR2BGRA,
    "rgba8": cv2.COLOR_BGR2RGBA,
    "mono8": cv2.COLOR_BGR2GRAY,
}


def _loop(settings: Settings, model: scene.CameraModel) -> Loop:
    """Frames rendered ahead; logs the progress, since the first run takes a while."""
    logger = get_logger("camera_node")

    def progress(done: int, count: int) -> None:
        if done == 1 or done * 4 // count > (done - 1) * 4 // count:
            logger.info(f"frames of the {settings.camera} camera drawn ahead: {done} of {count}")

    try:
        # One loop serves every lower rate: it plays the frame nearest in time.
        rate = max(settings.rate, LOOP_RATE)
        plan = LoopPlan(settings.camera, settings.scene, settings.seed, rate=rate, model=model)
    except ValueError as error:
        raise ParameterError(f"parameter ahead: {error}") from error
    return Loop(plan, progress=progress)


class SimulatedSource:
    """Frames of a simulated camera."""

    count = math.inf

    def __init__(self, settings: Settings) -> None:
        thermal = settings.camera == "thermal"
        usual = scene.THERMAL_CAMERA if thermal else scene.RGB_CAMERA
        fov = settings.fov or (66.0 if thermal else 60.0)
        try:
            self.model = scene.CameraModel.from_fov(
                settings.width or usual.width, settings.height or usual.height, fov
            )
        except ValueError as error:
            raise ParameterError(f"parameters width, height, fov: {error}") from error
        if settings.ahead:
            self._camera = _loop(settings, self.model)
        else:
            make = SimulatedThermal if thermal else SimulatedRgb
            self._camera = make(self.model, settings.scene, settings.seed)
        self.span = tuple((c + ZERO_CELSIUS) * COUNTS_PER_KELVIN for c in (-10.0, 45.0))

    def frame(self, index: int, scene_s: float) -> np.ndarray:
        return self._camera.render(scene_s)


class FilesSource:
    """Frames of one side of a folder of pairs."""

    model = None
    span = (0.0, 65535.0)

    def __init__(self, settings: Settings) -> None:
        self._pairs = PairFolder(settings.path)
        self._read = self._pairs.thermal if settings.camera == "thermal" else self._pairs.visible
        self._size = (settings.width, settings.height) if settings.width else None
        self.count = math.inf if settings.loop else len(self._pairs)
        self._read(0)  # an unreadable folder is an error before anything is sent

    def frame(self, index: int, scene_s: float) -> np.ndarray:
        image = self._read(index)
        if self._size and image.shape[1::-1] != self._size:
            shrinks = self._size[0] < image.shape[1]
            image = cv2.resize(
                image, self._size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
        return image


def encode(frame: np.ndarray, encoding: str, span: tuple) -> tuple[np.ndarray, str]:
    """Convert a thermal (H, W) uint8/uint16 or BGR (H, W, 3) uint8 frame; encoding '' keeps it.

    Between 16 and 8 bits the counts in `span` (low, high) are scaled to 0..255.
    """
    if frame.ndim == 3:
        code = _FROM_BGR.get(encoding)
        return (frame if code is None else cv2.cvtColor(frame, code)), encoding or "bgr8"
    deep = frame.dtype == np.uint16
    if not encoding:
        return frame, "mono16" if deep else "mono8"
    low, high = span
    if deep and encoding in ("mono8", "8UC1"):
        scaled = (frame.astype(np.float32) - low) * (255.0 / (high - low))
        frame = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    elif not deep and encoding in ("mono16", "16UC1"):
        frame = frame.astype(np.uint16) * 257
    return frame, encoding
