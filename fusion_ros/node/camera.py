# SPDX-License-Identifier: AGPL-3.0-only
"""State of one input camera: when it last sent an image, its latest stamp, its calibration."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from fusion_ros.frame.calibration import Calibration

__all__ = ["Camera"]


@dataclass
class Camera:
    """One camera, `name` being `thermal` or `rgb`.

    Attributes:
        heard: monotonic time of receipt of the latest image, or of the activation, s.
        silent: no image was received for longer than the timeout.
        stamp_ns: stamp of the latest usable image.
        info: latest sensor_msgs/CameraInfo.
        calibration: the one in `info`; None if the camera is not calibrated.
        has_info: set once a CameraInfo has come.
    """

    name: str
    heard: float = field(default_factory=time.monotonic)
    silent: bool = False
    stamp_ns: int | None = None
    info: Any = None
    calibration: Calibration | None = None
    has_info: threading.Event = field(default_factory=threading.Event)
    _overdue: bool = False

    @property
    def image_topic(self) -> str:
        return f"{self.name}/image_raw"

    @property
    def info_topic(self) -> str:
        return f"{self.name}/camera_info"

    def restart(self) -> None:
        """Reset the stamp and the time of receipt, at activation."""
        self.stamp_ns = None
        self.hear()

    def hear(self) -> None:
        """Note that an image was received."""
        self.heard = time.monotonic()
        self.silent = self._overdue = False

    def watch(self, timeout: float) -> None:
        """Update `silent`; to be called several times per `timeout` (s)."""
        overdue = time.monotonic() - self.heard > timeout
        # Overdue at two checks in a row: after a pause of the whole process, images wait in the
        # queue and are taken between the two.
        self.silent = overdue and self._overdue
        self._overdue = overdue
