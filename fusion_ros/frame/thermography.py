# SPDX-License-Identifier: AGPL-3.0-only
"""Temperatures of objects: the median of the thermal camera's counts in their boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion_ros.frame.detector import Detection
from fusion_ros.frame.no_data import without_data
from fusion_ros.frame.radiometry import Radiometry, radiometry_of
from fusion_ros.frame.registration import Registration
from fusion_ros.size import Size

__all__ = ["Thermography"]

_SAMPLES = 15
"""Points of a box, across and down, that the median is taken of."""
_PLAUSIBLE = (-100.0, 3000.0)
"""Degrees Celsius. Counts outside are those of a camera that does not measure temperatures."""


@dataclass(frozen=True)
class Thermography:
    """The counts of one frame, and where the RGB camera sees them.

    counts: (H, W) uint16, int16 or float32; of uint8 there are no temperatures.
    registration, size: of the RGB image.
    relation: how counts become temperatures; None for the usual relation of their type.
    """

    counts: np.ndarray
    registration: Registration
    size: Size
    relation: Radiometry | None = None

    def measure(self, detections: Sequence[Detection]) -> list[Detection]:
        """The detections with their `celsius`, where the thermal camera measures them."""
        return [dataclasses.replace(one, celsius=self.celsius(one)) for one in detections]

    def celsius(self, box: Detection) -> float | None:
        """Degrees Celsius in a box; None where the camera sees or measures nothing of it."""
        if self.counts.dtype == np.uint8:
            return None
        values = self.counts[self._pixels(box)]
        values = values[~without_data(values)]
        if not values.size:
            return None
        median = float(np.median(values))
        relation = self.relation or radiometry_of(values.dtype, median)
        celsius = relation.celsius(median)
        return celsius if _PLAUSIBLE[0] <= celsius <= _PLAUSIBLE[1] else None

    def kept(self) -> Thermography:
        """A copy that holds when the next frame is processed."""
        return dataclasses.replace(self, counts=self.counts.copy())

    def _pixels(self, box: Detection) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the thermal pixels that points of the box fall on."""
        share = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
        grid = np.meshgrid(box.x + share * box.width - 0.5, box.y + share * box.height - 0.5)
        points = np.column_stack([axis.ravel() for axis in grid])
        thermal = Size.of(self.counts)
        mapped = self.registration.thermal_pixels(points)
        if mapped is None:
            scale = np.array([thermal.width / self.size.width, thermal.height / self.size.height])
            mapped = (points + 0.5) * scale - 0.5
        mapped = mapped[np.isfinite(mapped).all(axis=1)]
        nearest = np.rint(mapped).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < thermal)).all(axis=1)
        return nearest[inside, 1], nearest[inside, 0]
