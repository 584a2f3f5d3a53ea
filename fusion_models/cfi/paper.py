# SPDX-License-Identifier: AGPL-3.0-only
"""Loss of cfi's paper alone: fusion, invariance under masks, necessity (eq. 9 to 13)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_models.cfi.interventions import KINDS, intervene
from fusion_models.data import Batch
from fusion_models.losses import laplacian, stronger


class CfiPaperObjective(nn.Module):
    """``L_f + invariance L_inv + necessity L_nec`` with all four interventions in each step.

    ``L_f = |F - vi| + |F - ir| + detail |lap F - max(lap vi, lap ir)|``;
    ``L_inv = |(F_c - F) G| + |(F_r - F) G| + |mean(G) - 0.3| + gate_entropy H(G)`` with F_c, F_r
    under complementary and random masks, G the mean of the three gates and H its mean entropy;
    ``L_nec = necessity_sign (|F - F_no_vi| + |F - F_no_ir|)``. Norms are means over pixels.

    Args:
        detail, invariance, necessity: lambda_1, alpha and beta of the paper; 0 leaves a term out.
        gate_entropy, necessity_sign: -1 and 1 are the formulas' signs, 1 and -1 the text's, which
            contradicts them (docs/methods.md).
    """

    def __init__(
        self,
        detail: float = 1.0,
        invariance: float = 0.1,
        necessity: float = 0.05,
        gate_entropy: int = -1,
        necessity_sign: int = 1,
    ):
        super().__init__()
        self.detail, self.invariance, self.necessity = detail, invariance, necessity
        self.gate_entropy, self.necessity_sign = gate_entropy, necessity_sign

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the loss; their sum is minimised."""
        ir, vi = batch.ir, batch.vi
        generator = torch.Generator().manual_seed(batch.seed)
        kinds = [k for k in KINDS if self.necessity or not k.startswith("no_")]
        kinds = [k for k in kinds if self.invariance or k.startswith("no_")]
        cases = [intervene(ir, vi, kind, generator) for kind in kinds]
        fused, gates = model.fuse_with_gates(
            torch.cat([ir, *(c.ir for c in cases)]), torch.cat([vi, *(c.vi for c in cases)])
        )
        clean, *changed = fused.float().chunk(1 + len(cases))
        changed = dict(zip(kinds, changed))
        terms = {
            "source": (clean - vi).abs().mean() + (clean - ir).abs().mean(),
            "detail": self.detail
            * (laplacian(clean) - stronger(laplacian(vi), laplacian(ir))).abs().mean(),
        }
        if self.invariance:
            gate = torch.stack(
                [
                    F.interpolate(
                        g.float().chunk(1 + len(cases))[0], ir.shape[-2:], mode="bilinear"
                    )
                    for g in gates
                ]
            ).mean(0)
            p = gate.clamp(1e-6, 1 - 1e-6)
            entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
            stability = sum(
                ((changed[kind] - clean) * gate).abs().mean()
                for kind in ("complementary", "random")
            )
            regular = (gate.mean() - 0.3).abs() + self.gate_entropy * entropy
            terms["invariance"] = self.invariance * (stability + regular)
        if self.necessity:
            difference = sum((clean - changed[k]).abs().mean() for k in ("no_ir", "no_vi"))
            terms["necessity"] = self.necessity * self.necessity_sign * difference
        return {name: term for name, term in terms.items() if getattr(self, name, True)}
