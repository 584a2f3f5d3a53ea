# SPDX-License-Identifier: AGPL-3.0-only
"""The fusion node's way from messages to pairs, fed by a bag in place of ROS.

Every step is the node's own: the checks of images, pairing, conversion. Messages come in the order
of receipt, so the same bag and settings give the same pairs every time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fusion_ros.commands.bag.survey import calibration_of
from fusion_ros.frame import compressed, images
from fusion_ros.frame.bit_depth import BitDepth
from fusion_ros.frame.calibration import Calibration
from fusion_ros.frame.pairing import Pair, Pairer, PairingCounts
from fusion_ros.frame.settings import Settings
from fusion_ros.recording.bag import Bag, Cameras

__all__ = ["OfflineNode", "PairOfMessages"]

_MOST_TEXTS = 20
_LONGEST_KIND = 40


@dataclass(frozen=True)
class PairOfMessages:
    """Both messages of a pair, the times in ns by which they are one, and that of receipt."""

    thermal: Any
    rgb: Any
    thermal_ns: int
    rgb_ns: int
    log_ns: int

    @property
    def stamp_ns(self) -> int:
        """Stamp of the RGB image, which is that of the fused one, ns."""
        return images.stamp_ns(self.rgb.header)


@dataclass
class OfflineNode:
    """Pairs the images of a bag as the node does with these settings.

    calibrated: called with a camera's name and its calibration whenever that changes. by_arrival:
    images are paired by their time of receipt.

    faults: number of messages by what is wrong with them, texts: the first text of each; encodings:
    encoding and size of each camera's images in the order of their first appearance.
    """

    bag: Bag
    cameras: Cameras
    settings: Settings
    calibrated: Callable[[str, Calibration | None], None] = lambda name, calibration: None
    by_arrival: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)
    encodings: dict[str, list[str]] = field(default_factory=lambda: {"thermal": [], "rgb": []})

    def __post_init__(self) -> None:
        s = self.settings
        self._pairer = Pairer(
            round(1e9 * s.tolerance),
            s.queue_size,
            round(1e9 * s.thermal_time_offset),
            s.reuse_slower,
        )
        self._to_thermal = images.Converter(images.thermal_array)
        self.depth = BitDepth(s.rgb_bits)
        self._to_visible = images.Converter(partial(images.visible_bgr, depth=self.depth))
        self._unpack_visible = partial(compressed.visible_bgr, depth=self.depth)
        self.infos: dict[str, Any] = {}

    @property
    def counts(self) -> PairingCounts:
        """What became of the images so far."""
        return self._pairer.counts

    def pairs(self, start_ns: int | None, stop_ns: int | None) -> Iterator[PairOfMessages]:
        """All pairs of the images received from `start_ns` until before `stop_ns`."""
        names = {topics.image: (name, False) for name, topics in self.cameras.named()}
        names |= {topics.info: (name, True) for name, topics in self.cameras.named() if topics.info}
        known: dict[str, Calibration | None] = {}
        log_ns = 0
        for record in self.bag.records(list(names), start_ns, stop_ns):
            name, is_info = names[record.topic]
            log_ns = record.log_ns
            if is_info:
                try:
                    info = self.bag.message(record)
                except images.ImageError as error:
                    self._fault(f"{name}_info_unreadable", f"{name} camera_info: {error}")
                    continue
                calibration = calibration_of(info, self.cameras, name)
                if name not in known or known[name] != calibration:
                    known[name] = calibration
                    self.infos[name] = info
                    self.calibrated(name, calibration)
                continue
            message = self._image(name, record)
            if message is None:
                continue
            stamp_ns = log_ns if self.by_arrival else images.stamp_ns(message.header)
            if stamp_ns <= 0:
                self._fault(f"{name}_unstamped", f"{name} images have no stamp")
                continue
            thermal = name == "thermal"
            add = self._pairer.add_thermal if thermal else self._pairer.add_visible
            for pair in add(stamp_ns, message):
                yield self._of(pair, log_ns)
        for pair in self._pairer.flush():
            yield self._of(pair, log_ns)

    def convert(self, pair: PairOfMessages) -> tuple[np.ndarray, np.ndarray]:
        """Thermal (H, W) and visible (H, W, 3) BGR, valid until the next call.

        Raises ImageError for an encoding that the camera of that kind cannot have.
        """
        thermal = self._read("thermal", pair.thermal, self._to_thermal, compressed.thermal_array)
        return thermal, self._read("rgb", pair.rgb, self._to_visible, self._unpack_visible)

    def _read(
        self,
        name: str,
        message: Any,
        plain: Callable[[Any], np.ndarray],
        packed: Callable[[Any], np.ndarray],
    ) -> np.ndarray:
        if not hasattr(message, "format"):
            self._note(name, f"{message.encoding} {message.width}x{message.height}")
            return plain(message)
        pixels = packed(message)
        words = str(message.format).rpartition(";")[2].split()
        kind = words[0][:_LONGEST_KIND] if words else "compressed"
        self._note(name, f"{kind} {pixels.shape[1]}x{pixels.shape[0]}")
        return pixels

    def _note(self, name: str, kind: str) -> None:
        if kind not in self.encodings[name]:
            self.encodings[name].append(kind)

    def _image(self, name: str, record: Any) -> Any:
        try:
            message = self.bag.message(record)
            compressed.check(message) if hasattr(message, "format") else images.view(message)
        except images.ImageError as error:
            self._fault(f"{name}_unreadable", f"{name} camera: {error}")
            return None
        return message

    def _fault(self, name: str, text: str) -> None:
        self.faults[name] += 1
        if len(self.texts) < _MOST_TEXTS:
            self.texts.setdefault(name, text)

    @staticmethod
    def _of(pair: Pair, log_ns: int) -> PairOfMessages:
        return PairOfMessages(
            pair.thermal.item,
            pair.visible.item,
            pair.thermal.stamp_ns,
            pair.visible.stamp_ns,
            log_ns,
        )
