# SPDX-License-Identifier: AGPL-3.0-only
"""The search for the highest rate at which the node loses few pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["confirm_peak", "find_peak"]


def find_peak(
    loss_at: Callable[[float], float],
    low: float,
    high: float,
    most_loss: float = 0.05,
    precision: float = 0.05,
) -> float | None:
    """The highest rate between `low` and `high`, Hz, at which no more than `most_loss` is lost.

    Binary search, as ros2_benchmark does, but halving the ratio of the bounds instead of their
    distance, until it is at most 1 + `precision`: 2 Hz need finer steps than 100. `loss_at`
    measures the share of frames lost at a rate, from 0 to 1. None if already `low` loses more.
    """
    if loss_at(high) <= most_loss:
        return high
    if loss_at(low) > most_loss:
        return None
    while high > low * (1 + precision):
        middle = math.sqrt(low * high)
        if loss_at(middle) <= most_loss:
            low = middle
        else:
            high = middle
    return low


def confirm_peak(
    loss_at: Callable[[float], float],
    peak: float,
    low: float,
    most_loss: float = 0.05,
    precision: float = 0.05,
) -> float | None:
    """The highest rate from `peak` down, in steps of `precision`, that holds in `loss_at` too.

    A search of short trials ends a little too high, since one may pass by chance; here `loss_at`
    measures for longer. None if not even `low` holds.
    """
    while loss_at(peak) > most_loss:
        if peak == low:
            return None
        peak = max(low, peak / (1 + precision))
    return peak
