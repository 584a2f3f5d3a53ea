# SPDX-License-Identifier: AGPL-3.0-only
"""State of one input camera: its latest images, its rate, its stamps, its calibration."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fusion_ros.frame.bit_depth import BitDepth
from fusion_ros.frame.calibration import Calibration

__all__ = ["Camera"]

_LATEST = 50
"""Number of latest images that shares are taken from."""
_LEARNED_S = 2.0
"""Shortest time that the usual rate is learned from, s."""
_LEARNED_IMAGES = 10
"""Fewest images that the usual rate is learned from."""


@dataclass
class Camera:
    """One camera, `name` being `thermal` or `rgb`.

    The executor's thread writes, the thread of the diagnostics reads.

    Attributes:
        clock: monotonic time in s.
        heard: time of the latest image, or of the activation, s.
        received: number of images since the activation.
        silent: no image came for longer than the timeout.
        stamp_ns: stamp of the latest usable image.
        frame_id, encoding: of the latest image; a compressed one has no encoding.
        usual_rate: the greatest rate that it kept for some seconds, in Hz; 0 if it is not known.
        topic, kind, reliable: full name of the topic that is subscribed to, type of its messages,
            and whether reliable delivery is asked for.
        refusal: why the latest image that could not be used was refused.
        doubtful: number of images to decode before they are paired, since one could not be decoded
            after it had its partner.
        depth: of its 16-bit images, where it is the RGB camera.
        info: latest sensor_msgs/CameraInfo.
        calibration: the one in `info`; None if the camera is not calibrated.
        has_info: set once a CameraInfo has come.
    """

    name: str
    clock: Callable[[], float] = time.monotonic
    heard: float = 0.0
    received: int = 0
    silent: bool = False
    stamp_ns: int | None = None
    frame_id: str = ""
    encoding: str = ""
    usual_rate: float = 0.0
    topic: str = ""
    kind: str = ""
    reliable: bool = True
    refusal: str = ""
    doubtful: int = 0
    depth: BitDepth = field(default_factory=BitDepth)
    info: Any = None
    calibration: Calibration | None = None
    has_info: threading.Event = field(default_factory=threading.Event)
    _overdue: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _heard_at: deque = field(default_factory=lambda: deque(maxlen=1000), repr=False)
    _repeated: deque = field(default_factory=lambda: deque(maxlen=_LATEST), repr=False)
    _refused: deque = field(default_factory=lambda: deque(maxlen=_LATEST), repr=False)
    _block: tuple[float, int] | None = None

    def __post_init__(self) -> None:
        self.heard = self.clock()

    @property
    def image_topic(self) -> str:
        return f"{self.name}/image_raw"

    @property
    def info_topic(self) -> str:
        return f"{self.name}/camera_info"

    def restart(self) -> None:
        """Start to listen anew, at activation."""
        with self._lock:
            self.stamp_ns = self._block = None
            self.received = 0
            self.usual_rate = 0.0
            self.heard = self.clock()
            self.silent = self._overdue = False
            self.doubtful = 0
            self.depth.restart()
            for latest in (self._heard_at, self._repeated, self._refused):
                latest.clear()

    def hear(self, frame_id: str = "", encoding: str = "") -> None:
        """Note that an image has come."""
        with self._lock:
            now = self.heard = self.clock()
            self.silent = self._overdue = False
            self.received += 1
            self.frame_id, self.encoding = frame_id, encoding
            self._heard_at.append(now)
            self._refused.append(True)  # until `use` is called
            self._learn(now)

    def use(self, stamp_ns: int) -> None:
        """Note the stamp of the image that `hear` noted: it can be used."""
        with self._lock:
            self._repeated.append(stamp_ns == self.stamp_ns)
            self._refused[-1] = False
            self.stamp_ns = stamp_ns

    def refuse(self, reason: str) -> None:
        """Note why the image that `hear` noted cannot be used."""
        self.refusal = reason

    def rate(self, window_s: float = 3.0) -> float:
        """Images a second in the latest `window_s`, or over 5 images where that takes longer."""
        with self._lock:
            now, times = self.clock(), self._heard_at
            if len(times) < 2:
                return 0.0
            begin = min(now - window_s, times[-min(len(times), 6)])
            recent = [t for t in times if t >= begin]
            # The time since the latest image counts once it is longer than the usual gap.
            gap = (recent[-1] - recent[0]) / max(len(recent) - 1, 1)
            end = now if now - recent[-1] > 2 * gap else recent[-1]
            return (len(recent) - 1) / (end - recent[0]) if end > recent[0] else 0.0

    @property
    def share_repeated(self) -> float:
        """Share of the latest images, 0 to 1, whose stamp was that of the image before."""
        with self._lock:
            return sum(self._repeated) / len(self._repeated) if self._repeated else 0.0

    @property
    def share_refused(self) -> float:
        """Share of the latest images, 0 to 1, that could not be used."""
        with self._lock:
            return sum(self._refused) / len(self._refused) if self._refused else 0.0

    def watch(self, timeout: float) -> None:
        """Find out whether the camera is silent; to be called several times per `timeout` (s)."""
        with self._lock:
            overdue = self.clock() - self.heard > timeout
            # Overdue at two checks in a row: after a pause of the whole process, images wait in
            # the queue and are taken between the two.
            self.silent = overdue and self._overdue
            self._overdue = overdue

    def _learn(self, now: float) -> None:
        if self._block is None:
            self._block = (now, self.received)
            return
        begun, received = self._block
        count = self.received - received
        if count >= _LEARNED_IMAGES and now - begun >= _LEARNED_S:
            self.usual_rate = max(self.usual_rate, count / (now - begun))
            self._block = (now, self.received)
