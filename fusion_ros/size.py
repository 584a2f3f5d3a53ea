# SPDX-License-Identifier: AGPL-3.0-only
"""The size of an image: width and height in pixels, in this order everywhere outside tensors."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

__all__ = ["Size"]

_TEXT = re.compile(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})")


class Size(NamedTuple):
    """Width and height in pixels; equal to the plain tuple `(width, height)`."""

    width: int
    height: int

    @classmethod
    def of(cls, image: np.ndarray) -> Size:
        """The size of an `(H, W)` or `(H, W, C)` array."""
        return cls(image.shape[1], image.shape[0])

    @classmethod
    def parse(cls, text: str) -> Size:
        """The size that a text such as `640x480` names; raises ValueError for any other text."""
        match = _TEXT.fullmatch(text)
        if not match:
            raise ValueError(f"'{text}' is not a size: expected width x height, as in 640x480")
        return cls(int(match[1]), int(match[2]))

    @property
    def shape(self) -> tuple[int, int]:
        """`(height, width)`, the order of array axes."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"
