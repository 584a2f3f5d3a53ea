# SPDX-License-Identifier: AGPL-3.0-only
"""Pictures of a pair for a detector: one camera alone, a rule without a network, a fused image.

All pictures are `(H, W, 3)` uint8 BGR of the pair's size. A fused luminance is coloured by the
visible image, as in the node; the infrared image alone is grey. Needs numpy and OpenCV only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

from fusion_models.evaluation.rules import Fuse, WeightedMean, average, maximum
from fusion_models.pairs import ImagePair
from fusion_models.settings import ConfigError

Kind = TypeVar("Kind")
Picture = Callable[[ImagePair], np.ndarray]
"""What a detector is given of a pair: `(H, W, 3)` uint8 BGR."""


def visible(pair: ImagePair) -> np.ndarray:
    """The visible image alone, in colour."""
    return pair.colour(pair.vi)


def infrared(pair: ImagePair) -> np.ndarray:
    """The infrared image alone, grey."""
    return cv2.cvtColor(pair.ir, cv2.COLOR_GRAY2BGR)


@dataclass(frozen=True)
class Coloured:
    """A fused luminance in the visible image's colours."""

    fuse: Fuse

    def __call__(self, pair: ImagePair) -> np.ndarray:
        return pair.colour(self.fuse(pair))


SOURCES: dict[str, Picture] = {"visible": visible, "infrared": infrared}
"""Each camera alone: they belong into every table."""

RULES: dict[str, Fuse] = {
    "average": average,
    "maximum": maximum,
    "mean .6": WeightedMean(0.6),
    "mean .7": WeightedMean(0.7),
    "mean .8": WeightedMean(0.8),
    "mean .7 x 1.4": WeightedMean(0.7, 1.4),
    "thermal, coloured": WeightedMean(1.0),
}
"""Fusion without a network. `mean .7` is .7 infrared and .3 visible; `x 1.4` its local contrast."""

CONTROLS = tuple(name for name in RULES if name.startswith("mean"))
"""Weighted means, which a network must surpass to justify its time."""


def pictures(networks: Mapping[str, Fuse]) -> dict[str, Picture]:
    """All pictures by name: the sources, the rules, then the networks given."""
    fused = {**RULES, **networks}
    return {**SOURCES, **{name: Coloured(fuse) for name, fuse in fused.items()}}


def choose(kinds: Mapping[str, Kind], names: str) -> dict[str, Kind]:
    """Those of `kinds` that a setting names: comma separated, 'all' or 'none'.

    A name may hold a comma itself, as `thermal, coloured` does.

    Raises:
        ConfigError: a name that is not there; the message lists those that are.
    """
    if names == "all":
        return dict(kinds)
    parts = [part.strip() for part in names.split(",")]
    chosen = []
    while parts:
        longest = next((n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in kinds), 1)
        chosen.append(", ".join(parts[:longest]))
        parts = parts[longest:]
    chosen = [name for name in chosen if name and name != "none"]
    if unknown := sorted(set(chosen) - set(kinds)):
        raise ConfigError(f"no pictures {', '.join(unknown)}; use {', '.join(kinds)}")
    return {name: kinds[name] for name in chosen}
