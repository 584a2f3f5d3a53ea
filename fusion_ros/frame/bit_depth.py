# SPDX-License-Identifier: AGPL-3.0-only
"""How many of their 16 bits a camera's visible images use.

Cameras of 10, 12 or 14 bits send mono16, rgb16 or Bayer patterns of 16 bits, and no field of the
message says which: by value alone, what 12 bits hold is nearly black.
"""

from __future__ import annotations

import numpy as np

__all__ = ["ALL_BITS", "BitDepth"]

ALL_BITS = 16
_DEPTHS = (10, 12, 14, ALL_BITS)
_OUTLIERS = 1e-3
"""Share of values that may lie above a depth: hot pixels and lamps are clipped then."""
_STEADY_IMAGES = 5
"""Images in a row that must need more bits: a single damaged one must not darken the rest."""


class BitDepth:
    """Follows the images of one camera; the depth only rises, so that images do not flicker.

    given: the depth that holds in any case, 1 to 16; 0 to find it out by the images' values.
    """

    def __init__(self, given: int = 0) -> None:
        self.given = given
        self._found = 0
        self._larger = 0

    @property
    def assumption(self) -> str:
        """What was found, and how to settle it; empty if the depth is given, unknown or 16."""
        bits = self._found
        if self.given or bits in (0, ALL_BITS):
            return ""
        return (
            f"16-bit RGB images have hardly a value above {2**bits - 1}, so they are taken for "
            f"those of a camera of {bits} bits: set rgb_bits to {bits} if that is right, or to "
            f"{ALL_BITS} if they are only dark"
        )

    def restart(self) -> None:
        """Find the depth out anew."""
        self._found = self._larger = 0

    def update(self, pixels: np.ndarray) -> int:
        """Take an image of any shape, uint16, into account; return the number of bits in use."""
        if self.given:
            return self.given
        if self._found == ALL_BITS:
            return ALL_BITS
        needed = self._needed(pixels)
        self._larger = self._larger + 1 if needed > self._found else 0
        if not self._found or self._larger >= _STEADY_IMAGES:
            self._found, self._larger = needed, 0
        return self._found

    def _needed(self, pixels: np.ndarray) -> int:
        if self._found and pixels.max() >> self._found == 0:
            return self._found
        most = _OUTLIERS * pixels.size
        return next(
            bits for bits in _DEPTHS if bits == ALL_BITS or np.count_nonzero(pixels >> bits) <= most
        )
