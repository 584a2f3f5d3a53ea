# SPDX-License-Identifier: AGPL-3.0-only
"""Loss of caf's paper alone: its fifteen terms, whose weights are searched."""

from __future__ import annotations

from collections.abc import Mapping

from fusion_models.search.terms import FIXED, FIXED_WEIGHT, PAPER, SearchedObjective


class CafPaperObjective(SearchedObjective):
    """Weighted sum of the terms lambda_a to lambda_o of Figure 1 and the two fixed masked ones.

    Args:
        weights: of the fifteen by name, as a search finds them; by default equal, 1/15 each, where
            the released search starts. The fixed terms weigh 0.5.
        **settings: of :class:`fusion_models.search.terms.LossTerms`.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, **settings):
        equal = {name: 1.0 / len(PAPER) for name in PAPER}
        if settings.get("perceptual") == "none":
            equal = {k: v for k, v in equal.items() if not k.startswith("perceptual")}
        fixed = dict.fromkeys(FIXED, FIXED_WEIGHT)
        super().__init__({**fixed, **(weights or equal)}, **settings)
