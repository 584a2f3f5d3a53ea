# SPDX-License-Identifier: AGPL-3.0-only
"""Objective of cfi: fusion, invariance under masks, necessity of both modalities (eq. 9 to 13)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_models.cfi.interventions import KINDS, intervene
from fusion_models.data import Batch
from fusion_models.losses import (
    FusionTarget,
    contrast_loss,
    laplacian,
    scd_loss,
    sobel,
    stronger,
    visual_information_loss,
)


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-6).log() + (1 - p) * (1 - p).clamp_min(1e-6).log())


class CfiObjective(nn.Module):
    """``L_f + invariance L_inv + necessity L_nec`` plus terms that keep the picture natural.

    The paper contradicts itself twice (docs/methods.md); both signs are settings.

    Args:
        source: weight of the paper's ``|F - vi| + |F - ir|``.
        detail: weight of ``|lap F - max(lap vi, lap ir)|`` (larger magnitude, with its sign).
        invariance, necessity: weights of L_inv and L_nec.
        gate_entropy: +1 minimises the gates' entropy (decisions, the text), -1 maximises it (eq.);
            with +1 zero is an absorbing state: at a mean under 0.27 everything pushes gates to 0.
        gate_spread: replaces both by a mean of 0.3 and the entropy of each place against that of
            the mean, at each scale, which has no such state.
        interventions: 4 evaluates all of them in each step (the paper), 2 one mask and one missing
            camera in turns, in half the time.
        necessity_sign: -1 rewards a difference to single-modality outputs (the text), +1 the
            formula; with -1 a tenth of the reward is left beyond `necessity_margin`.
        single_modality: weight of ``|F_no_ir - vi| + |F_no_vi - ir|``: with one camera missing the
            picture of the other is what a robot needs.
        intensity, gradient, scd, information: weights of the natural terms (FusionTarget).
    """

    def __init__(
        self,
        source: float = 0.1,
        detail: float = 1.0,
        invariance: float = 0.1,
        necessity: float = 0.05,
        gate_entropy: int = 1,
        gate_spread: bool = True,
        interventions: int = 4,
        necessity_sign: int = -1,
        necessity_margin: float = 0.15,
        single_modality: float = 0.3,
        intensity: float = 1.0,
        gradient: float = 5.0,
        scd: float = 0.05,
        information: float = 0.1,
        visibility: float = 0.2,
        **target,
    ):
        super().__init__()
        self.source, self.detail = source, detail
        self.invariance, self.necessity = invariance, necessity
        if interventions not in (2, 4):
            raise ValueError(f"interventions is {interventions}: choose 2 or 4")
        self.gate_entropy, self.necessity_sign = gate_entropy, necessity_sign
        self.gate_spread, self.interventions = gate_spread, interventions
        self.necessity_margin, self.single_modality = necessity_margin, single_modality
        self.intensity, self.gradient = intensity, gradient
        self.scd, self.information, self.visibility = scd, information, visibility
        self.target = FusionTarget(**target)

    def _regular(self, gates: list[Tensor], mean_gate: Tensor) -> Tensor:
        """R(G): a mean of 0.3, and decisions."""
        if not self.gate_spread:
            return (mean_gate.mean() - 0.3).abs() + self.gate_entropy * _entropy(mean_gate).mean()
        # At each scale. The entropy of the mean over the batch stands against that of each place:
        # gates gain by being decided and different, and nothing by being all open or all shut.
        return sum(
            (g.mean() - 0.3).abs() + 0.5 * (_entropy(g).mean() - _entropy(g.mean()))
            for g in gates
        ) / len(gates)  # fmt: skip

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the loss; their sum is minimised."""
        ir, vi = batch.ir, batch.vi
        generator = torch.Generator().manual_seed(batch.seed)
        kinds = KINDS
        if self.interventions < len(KINDS):  # one mask and one missing camera, taking turns
            kinds = (KINDS[batch.seed % 2], KINDS[2 + batch.seed // 2 % 2])
        fed = batch.fed
        cases = {kind: intervene(*fed, kind, generator) for kind in kinds}
        # One pass over the clean batch and the interventions: batch norm sees them all.
        fused, gates = model.fuse_with_gates(
            torch.cat([fed[0], *(c.ir for c in cases.values())]),
            torch.cat([fed[1], *(c.vi for c in cases.values())]),
        )
        clean, *changed = fused.float().chunk(1 + len(cases))
        changed = dict(zip(cases, changed))
        gates = [g.float().chunk(1 + len(cases))[0] for g in gates]
        mean_gate = torch.stack(
            [F.interpolate(g, ir.shape[-2:], mode="bilinear", align_corners=False) for g in gates]
        ).mean(0)
        scale = len(KINDS) / len(kinds)  # as if all four had been evaluated
        stability = scale * sum(
            ((changed[kind] - clean) * mean_gate).abs().mean()
            for kind in ("complementary", "random") if kind in changed
        )  # fmt: skip
        missing = {kind: out for kind, out in changed.items() if kind in ("no_ir", "no_vi")}
        difference = scale * sum((clean - out).abs().mean() for out in missing.values())
        if self.necessity_sign < 0:
            # A reward that ends: beyond the margin its slope falls to a tenth, not to nothing.
            over = (difference - self.necessity_margin).clamp_min(0.0)
            difference = difference - 0.9 * over
        alone = scale * sum(
            (out - (vi if kind == "no_ir" else ir)).abs().mean() for kind, out in missing.items()
        )
        regular = self._regular(gates, mean_gate)
        target = self.target(ir, vi)
        lap = stronger(laplacian(vi), laplacian(ir))
        terms = {
            "source": self.source * ((clean - vi).abs().mean() + (clean - ir).abs().mean()),
            "detail": self.detail * (laplacian(clean) - lap).abs().mean(),
            "invariance": self.invariance * (stability + regular),
            "necessity": self.necessity * self.necessity_sign * difference,
            "single_modality": self.single_modality * alone,
            "intensity": self.intensity * (clean - target.intensity).abs().mean(),
            "gradient": self.gradient * (sobel(clean) - target.gradient).abs().mean(),
            "scd": self.scd * scd_loss(clean, ir, vi),
            "information": self.information * visual_information_loss(clean, ir, vi),
            "visibility": self.visibility * contrast_loss(clean, target.intensity),
        }
        return {name: term for name, term in terms.items() if getattr(self, name)}
