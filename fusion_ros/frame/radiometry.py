# SPDX-License-Identifier: AGPL-3.0-only
"""Temperatures of radiometric thermal images: counts to degrees Celsius and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["PRESETS", "Radiometry", "radiometry_of"]

ZERO_CELSIUS = 273.15
_COLDEST_KELVIN = 200.0
"""A float image whose median is above this is in kelvin, or of a furnace: name the preset then."""


@dataclass(frozen=True)
class Radiometry:
    """Linear relation of counts and temperature: degrees Celsius = scale * counts + offset."""

    scale: float
    offset: float

    def celsius(self, counts: float) -> float:
        """Degrees Celsius of counts."""
        return self.scale * counts + self.offset

    def counts(self, celsius: float) -> float:
        """Counts of degrees Celsius, not rounded."""
        return (celsius - self.offset) / self.scale


PRESETS: dict[str, Radiometry] = {
    "lepton": Radiometry(0.01, -ZERO_CELSIUS),  # TLinear, high gain
    "lepton_low_gain": Radiometry(0.1, -ZERO_CELSIUS),
    "boson": Radiometry(0.01, -ZERO_CELSIUS),
    "flir_a_10mk": Radiometry(0.01, -ZERO_CELSIUS),  # IRFormat TemperatureLinear10mK
    "flir_a_100mk": Radiometry(0.1, -ZERO_CELSIUS),
    "seek": Radiometry(1 / 64, -40.0),  # fixed point 10.6
    "celsius": Radiometry(1.0, 0.0),
    "kelvin": Radiometry(1.0, -ZERO_CELSIUS),
}
"""Relations of cameras and formats by name."""


def radiometry_of(dtype: np.dtype, median: float) -> Radiometry:
    """The usual relation of images of a dtype, where none is named.

    Unsigned counts are hundredths of a kelvin, signed ones hundredths of a degree Celsius, and
    float is kelvin or degrees Celsius, told apart by the image's median.
    """
    if dtype == np.float32:
        return PRESETS["kelvin" if median > _COLDEST_KELVIN else "celsius"]
    return Radiometry(0.01, 0.0 if dtype == np.int16 else -ZERO_CELSIUS)
