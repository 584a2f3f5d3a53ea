# SPDX-License-Identifier: AGPL-3.0-only
"""Differences between methods measured on the same images: means, intervals, what they show."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["Difference", "difference", "mean_interval"]

REPEATS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """How a row differs from the reference.

    Attributes:
        mean: over seeds and images.
        low, high: limits of the 95 % interval of the mean over images (bootstrap, paired).
        seeds: mean over the images for each seed.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0 and all seeds agree on the sign."""
        signs = set(np.sign(self.seeds))
        return (self.low > 0 or self.high < 0) and len(signs) == 1

    def as_dict(self) -> dict:
        """The attributes by name, and whether the difference is clear."""
        return {**asdict(self), "seeds": list(self.seeds), "clear": self.clear}


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `[n]` values, by resampling them."""
    values = np.asarray(values, np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(REPEATS, len(values)))
    low, high = np.quantile(values[picks].mean(1), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def difference(row: np.ndarray, reference: np.ndarray) -> Difference:
    """Difference of two tables `[seeds, images]` of one figure on the same images.

    Raises:
        ValueError: tables of different shapes, or empty ones.
    """
    row, reference = np.asarray(row, np.float64), np.asarray(reference, np.float64)
    if row.shape != reference.shape or row.ndim != 2 or not row.size:
        raise ValueError(
            f"tables of {row.shape} and {reference.shape}: expected two of (seeds, images)"
        )
    apart = row - reference
    low, high = mean_interval(apart.mean(0))
    return Difference(float(apart.mean()), low, high, tuple(apart.mean(1).tolist()))
