# SPDX-License-Identifier: AGPL-3.0-only
"""Sources of `make_bag`: the simulated street, folders of pairs, two videos."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np

from fusion_ros.cameras.files import FilesError, PairFolder
from fusion_ros.cameras.street import scene
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal
from fusion_ros.commands.bag.plan import Plan, Source

__all__ = ["encoded", "open_source", "resized"]

_FIELDS_OF_VIEW = {"thermal": 66.0, "rgb": 60.0}
_FROM_BGR = {
    "rgb8": cv2.COLOR_BGR2RGB,
    "bgra8": cv2.COLOR_BGR2BGRA,
    "rgba8": cv2.COLOR_BGR2RGBA,
    "mono8": cv2.COLOR_BGR2GRAY,
}
_SPAN = (26315.0, 31815.0)
"""Counts of -10 and 45 degrees Celsius, which become black and white in 8 bits."""


def open_source(plan: Plan) -> Source:
    """Open the source of a plan; raises FilesError or ValueError if it cannot be used."""
    if plan.videos:
        return Videos(plan.videos)
    if plan.data:
        return Folders(plan.data, plan.source_rate)
    return Street(plan)


class Street:
    """The simulated cameras, drawn as they are needed."""

    seconds = math.inf

    def __init__(self, plan: Plan) -> None:
        self._models = {}
        usual = {"thermal": scene.THERMAL_CAMERA, "rgb": scene.RGB_CAMERA}
        for name, camera in (("thermal", plan.thermal), ("rgb", plan.rgb)):
            self._models[name] = (
                scene.CameraModel.from_fov(*camera.size, _FIELDS_OF_VIEW[name])
                if camera.size[0]
                else usual[name]
            )
        thermal, rgb = self._models["thermal"], self._models["rgb"]
        self._cameras = {
            "thermal": SimulatedThermal(thermal, plan.scene, plan.seed),
            "rgb": SimulatedRgb(rgb, plan.scene, plan.seed),
        }

    def image(self, camera: str, at_s: float) -> np.ndarray:
        return self._cameras[camera].render(at_s)

    def matrix(self, camera: str) -> np.ndarray | None:
        return self._models[camera].matrix


class Folders:
    """Pairs of one or more folders, one after the other, at `rate` pairs a second."""

    def __init__(self, folders: tuple[Path, ...], rate: float) -> None:
        self._folders = [PairFolder(folder) for folder in folders]
        self._places = [(f, i) for f in self._folders for i in range(len(f))]
        self._rate = rate
        self.seconds = len(self._places) / rate

    def image(self, camera: str, at_s: float) -> np.ndarray:
        index = min(int(at_s * self._rate + 0.5), len(self._places) - 1)
        folder, place = self._places[index]
        return folder.thermal(place) if camera == "thermal" else folder.visible(place)

    def matrix(self, camera: str) -> np.ndarray | None:
        return None


class Videos:
    """Two videos that begin at the same moment."""

    def __init__(self, files: tuple[Path, Path]) -> None:
        self._readers = dict(zip(("thermal", "rgb"), map(_Video, files)))
        self.seconds = min(reader.seconds for reader in self._readers.values())

    def image(self, camera: str, at_s: float) -> np.ndarray:
        frame = self._readers[camera].at(at_s)
        return cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if camera == "thermal" else frame

    def matrix(self, camera: str) -> np.ndarray | None:
        return None


class _Video:
    """One video, read forwards; `at` never goes back."""

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        if not path.is_file() or not self._capture.isOpened():
            raise FilesError(f"'{path}' is not a video that OpenCV can read")
        self._rate = self._capture.get(cv2.CAP_PROP_FPS) or 30.0
        frames = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.seconds = frames / self._rate
        self._index, self._frame = -1, None
        if frames < 1:
            raise FilesError(f"'{path}' has no frames that OpenCV can count")

    def at(self, at_s: float) -> np.ndarray:
        while self._index < int(at_s * self._rate + 0.5) or self._frame is None:
            done, frame = self._capture.read()
            if not done:
                break
            self._frame, self._index = frame, self._index + 1
        if self._frame is None:
            raise FilesError("a video holds no frame that OpenCV can decode")
        return self._frame


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at `size`, (width, height); (0, 0) keeps its own."""
    if not size[0] or image.shape[1::-1] == size:
        return image
    shrinks = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def encoded(image: np.ndarray, encoding: str, camera: str) -> tuple[np.ndarray, str]:
    """The image in an encoding; empty keeps 8 or 16 bits of a thermal one and BGR."""
    if camera == "rgb":
        code = _FROM_BGR.get(encoding)
        return (image if code is None else cv2.cvtColor(image, code)), encoding or "bgr8"
    deep = image.dtype == np.uint16
    if encoding == "mono8" and deep:
        low, high = _SPAN
        scaled = (image.astype(np.float32) - low) * (255 / (high - low))
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8), "mono8"
    if encoding == "mono16" and not deep:
        return image.astype(np.uint16) * 257, "mono16"
    return image, "mono16" if deep else "mono8"
