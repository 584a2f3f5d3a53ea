# SPDX-License-Identifier: AGPL-3.0-only
"""Writing rosbag2 bags without ROS.

A bag appears under its name when it is complete; until then it is written to a folder beside,
`.<name>.part-<process>/<name>`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from fusion_ros.frame import images
from fusion_ros.recording.messages import CAMERA_INFO, COMPRESSED, IMAGE, ros2_types
from fusion_ros.recording.storage import WriteError

__all__ = ["COMPRESSIONS", "STORAGES", "BagWriter"]

STORAGES = ("mcap", "sqlite3")
COMPRESSIONS = ("none", "message", "file")
_PLUGINS = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


class BagWriter:
    """A new bag; use it in a `with` block. An exception in the block leaves no bag behind.

    compression: zstd of each message or of the whole file. Raises WriteError if the bag cannot be
    written, because its name is taken or the disk is full.
    """

    def __init__(self, path: str | Path, storage: str = "mcap", compression: str = "none") -> None:
        self.path = Path(path)
        if self.path.exists():
            raise WriteError(f"'{self.path}' exists already: give another name, or remove it")
        # In a folder of the final name, since the files in it are called after it.
        self._part = self.path.parent / f".{self.path.name}.part-{os.getpid()}"
        shutil.rmtree(self._part, ignore_errors=True)
        try:
            self._part.mkdir(parents=True)
            self._writer = Writer(
                self._part / self.path.name, version=9, storage_plugin=_PLUGINS[storage]
            )
            if compression != "none":
                mode = CompressionMode[compression.upper()]
                self._writer.set_compression(mode, CompressionFormat.ZSTD)
            self._writer.open()
        except OSError as error:
            shutil.rmtree(self._part, ignore_errors=True)
            raise _disk(self.path, error) from None
        self._types = ros2_types()
        self._connections: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self._writer.close()
            os.replace(self._part / self.path.name, self.path)
            self._part.rmdir()
        except Exception as failed:
            self.discard()
            raise _disk(self.path, failed) from None

    def discard(self) -> None:
        """Remove what was written so far."""
        with contextlib.suppress(Exception):
            self._writer.abort()
        shutil.rmtree(self._part, ignore_errors=True)

    def write(self, topic: str, kind: str, log_ns: int, message: Any) -> None:
        """Add a message, an object of the type store's class of `kind`."""
        self.write_raw(topic, kind, log_ns, self._types.serialize_cdr(message, kind))

    def write_raw(self, topic: str, kind: str, log_ns: int, data: bytes | memoryview) -> None:
        """Add a serialized message of the type `kind`."""
        try:
            if topic not in self._connections:
                self._connections[topic] = self._writer.add_connection(
                    topic, kind, typestore=self._types
                )
            self._writer.write(self._connections[topic], log_ns, data)
        except Exception as error:  # OSError of mcap, errors of sqlite3
            raise _disk(self.path, error) from None
        self.counts[topic] = self.counts.get(topic, 0) + 1

    # --- Messages ---------------------------------------------------------------------------

    def type(self, kind: str) -> Any:
        """The class of a message type, such as `sensor_msgs/msg/Image`."""
        return self._types.types[kind]

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        """A std_msgs/Header."""
        stamp = self.type("builtin_interfaces/msg/Time")(
            sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000
        )
        return self.type("std_msgs/msg/Header")(stamp=stamp, frame_id=frame_id)

    def image(
        self, topic: str, log_ns: int, header: Any, pixels: np.ndarray, encoding: str
    ) -> None:
        """Add a sensor_msgs/Image of `pixels`, (H, W) or (H, W, C) as `images.ENCODINGS` has it."""
        layout = images.ENCODINGS[encoding]
        message = self.type(IMAGE)(
            header=header,
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels.shape[1] * layout.pixel_bytes,
            data=np.ascontiguousarray(pixels).view(np.uint8).ravel(),
        )
        self.write(topic, IMAGE, log_ns, message)

    def compressed(
        self, topic: str, log_ns: int, header: Any, pixels: np.ndarray, encoding: str, quality: int
    ) -> None:
        """Add a sensor_msgs/CompressedImage: JPEG of `quality` for 8 bits, PNG for 16."""
        kind = "png" if pixels.dtype == np.uint16 else "jpeg"
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpeg" else []
        done, data = cv2.imencode(f".{kind[:3].replace('jpe', 'jpg')}", pixels, settings)
        if not done:
            raise WriteError(f"OpenCV cannot compress {pixels.dtype} {pixels.shape} to {kind}")
        shown = f"{encoding}; {kind} compressed {encoding}"
        message = self.type(COMPRESSED)(header=header, format=shown, data=data.ravel())
        self.write(topic, COMPRESSED, log_ns, message)

    def camera_info(
        self, topic: str, log_ns: int, header: Any, width: int, height: int, matrix: np.ndarray
    ) -> None:
        """Add a sensor_msgs/CameraInfo without distortion; zeros in `matrix`: uncalibrated."""
        calibrated = bool(matrix.any())
        message = self.type(CAMERA_INFO)(
            header=header,
            height=height,
            width=width,
            distortion_model="plumb_bob" if calibrated else "",
            d=np.zeros(5 if calibrated else 0),
            k=matrix.astype(np.float64).ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([matrix, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=self.type("sensor_msgs/msg/RegionOfInterest")(
                x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )
        self.write(topic, CAMERA_INFO, log_ns, message)


def _disk(path: Path, error: Exception) -> WriteError:
    return WriteError(
        f"the bag '{path}' cannot be written: {getattr(error, 'strerror', None) or error}"
    )
