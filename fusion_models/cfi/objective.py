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
    laplacian,
    scd_loss,
    sobel,
    stronger,
    visual_information_loss,
)


class CfiObjective(nn.Module):
    """``L_f + invariance L_inv + necessity L_nec`` plus terms that keep the picture natural.

    The paper contradicts itself twice (docs/methods.md); both signs are settings.

    Args:
        source: weight of the paper's ``|F - vi| + |F - ir|``.
        detail: weight of ``|lap F - max(lap vi, lap ir)|`` (larger magnitude, with its sign).
        invariance, necessity: weights of L_inv and L_nec.
        gate_entropy: +1 minimises the gates' entropy (decisions, the text), -1 maximises it (eq.).
        necessity_sign: -1 rewards a difference to single-modality outputs (the text), +1 the
            formula; with -1 the reward ends at `necessity_margin`.
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
        necessity_sign: int = -1,
        necessity_margin: float = 0.15,
        single_modality: float = 0.3,
        intensity: float = 1.0,
        gradient: float = 5.0,
        scd: float = 0.05,
        information: float = 0.1,
        **target,
    ):
        super().__init__()
        self.source, self.detail = source, detail
        self.invariance, self.necessity = invariance, necessity
        self.gate_entropy, self.necessity_sign = gate_entropy, necessity_sign
        self.necessity_margin, self.single_modality = necessity_margin, single_modality
        self.intensity, self.gradient = intensity, gradient
        self.scd, self.information = scd, information
        self.target = FusionTarget(**target)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the loss; their sum is minimised."""
        ir, vi = batch.ir, batch.vi
        generator = torch.Generator().manual_seed(batch.seed)
        cases = [intervene(ir, vi, kind, generator) for kind in KINDS]
        # One pass over the clean batch and the four interventions: batch norm sees them all.
        fused, gates = model.fuse_with_gates(
            torch.cat([ir, *(c.ir for c in cases)]), torch.cat([vi, *(c.vi for c in cases)])
        )
        clean, complementary, random, no_ir, no_vi = fused.float().chunk(5)
        gates = [g.float().chunk(5)[0] for g in gates]
        mean_gate = torch.stack(
            [F.interpolate(g, ir.shape[-2:], mode="bilinear", align_corners=False) for g in gates]
        ).mean(0)
        entropy = -(
            mean_gate * mean_gate.clamp_min(1e-6).log()
            + (1 - mean_gate) * (1 - mean_gate).clamp_min(1e-6).log()
        ).mean()
        regular = (mean_gate.mean() - 0.3).abs() + self.gate_entropy * entropy
        stability = sum(
            ((case - clean) * mean_gate).abs().mean() for case in (complementary, random)
        )
        difference = (clean - no_ir).abs().mean() + (clean - no_vi).abs().mean()
        if self.necessity_sign < 0:
            difference = difference.clamp_max(self.necessity_margin)
        target = self.target(ir, vi)
        lap = stronger(laplacian(vi), laplacian(ir))
        terms = {
            "source": self.source * ((clean - vi).abs().mean() + (clean - ir).abs().mean()),
            "detail": self.detail * (laplacian(clean) - lap).abs().mean(),
            "invariance": self.invariance * (stability + regular),
            "necessity": self.necessity * self.necessity_sign * difference,
            "single_modality": self.single_modality
            * ((no_ir - vi).abs().mean() + (no_vi - ir).abs().mean()),
            "intensity": self.intensity * (clean - target.intensity).abs().mean(),
            "gradient": self.gradient * (sobel(clean) - target.gradient).abs().mean(),
            "scd": self.scd * scd_loss(clean, ir, vi),
            "information": self.information * visual_information_loss(clean, ir, vi),
        }
        return {name: term for name, term in terms.items() if getattr(self, name)}
