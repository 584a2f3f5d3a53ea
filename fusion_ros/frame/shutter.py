# SPDX-License-Identifier: AGPL-3.0-only
"""Freezes of a thermal camera while its shutter closes for a flat-field correction.

Every few minutes uncooled cameras calibrate against a closed shutter, for half a second or so.
Meanwhile drivers send the last image again and again, or nothing.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np

__all__ = ["Shutter", "fingerprint"]

_SAMPLES = 997
"""Pixels' bytes that are compared; a prime, so that they do not fall into one column."""
_LEAST_S = 0.15
"""A shorter time is jitter of the transport."""
_LONGEST_S = 5.0
"""After a longer one a camera has been switched off and on."""
_USUAL = 3.0
"""Factor above the usual time between two different images."""
_KNOWN = 5
"""Different images after which the usual time is known."""


class Shutter:
    """Recognises freezes from the times and fingerprints of a stream's images.

    A stream of images that never change, or that repeats each image a few times at a steady pace,
    has no freezes.

    Attributes:
        freezes: number of freezes: runs of equal images, and pauses.
        frozen_images: number of images that only repeat the one from before a freeze.
        frozen: whether the latest image is one of them.
    """

    def __init__(self) -> None:
        self.freezes = 0
        self.frozen_images = 0
        self.frozen = False
        self._fingerprint: bytes | None = None
        self._changed_at = 0.0
        self._heard_at = 0.0
        self._repeats = 0
        self._between: deque[float] = deque(maxlen=15)

    def add(self, image: bytes, now_s: float) -> bool:
        """Take an image's fingerprint and time of arrival; return whether a freeze has begun."""
        if self._fingerprint is None:
            self._fingerprint, self._changed_at, self._heard_at = image, now_s, now_s
            return False
        longest = self._longest_s
        since_s, paused_s = now_s - self._changed_at, now_s - self._heard_at
        self._heard_at = now_s
        began = False
        if image == self._fingerprint:
            self._repeats += 1
            if longest is not None and self._repeats > 1 and since_s > longest:
                self.frozen_images += self._repeats if not self.frozen else 1
                began = not self.frozen
                self.frozen = True
        else:
            if longest is not None and longest < paused_s < _LONGEST_S and not self.frozen:
                began = True
            if not self.frozen and not began:
                self._between.append(since_s)
            self._fingerprint, self._changed_at = image, now_s
            self._repeats, self.frozen = 0, False
        self.freezes += began
        return began

    @property
    def usual_s(self) -> float | None:
        """Usual time between two different images, s; None if it is not known yet."""
        return median(self._between) if len(self._between) >= _KNOWN else None

    def paused_s(self, now_s: float) -> float:
        """How long no image has come, s; 0 while that is no longer than usual."""
        longest, since_s = self._longest_s, now_s - self._heard_at
        return 0.0 if longest is None or since_s <= longest else since_s

    @property
    def _longest_s(self) -> float | None:
        """Longest time between two images that is no freeze, s."""
        usual = self.usual_s
        return None if usual is None else max(_LEAST_S, _USUAL * usual)


def fingerprint(data: object) -> bytes:
    """A few bytes of an image's data, spread over it; sensor noise makes them differ."""
    flat = np.frombuffer(data, np.uint8)
    return flat[:: max(1, flat.size // _SAMPLES)].tobytes()
