# SPDX-License-Identifier: AGPL-3.0-only
"""Objective of baffm. The paper leaves it open; see docs/methods.md for the choice made here."""

from __future__ import annotations

from torch import Tensor, nn

from fusion_models.data import Batch
from fusion_models.losses import (
    FusionTarget,
    contrast_loss,
    scd_loss,
    sobel,
    ssim_loss,
    visual_information_loss,
)


class BaffmObjective(nn.Module):
    """``|F - T| + a |sobel F - G| + b (2 - SSIM) + c (2 - SCD) + d VI`` with T, G of FusionTarget.

    Args:
        gradient, ssim, scd, information: weights a, b, c, d.
        **target: settings of :class:`fusion_models.losses.FusionTarget`.
    """

    def __init__(
        self,
        intensity: float = 1.0,
        gradient: float = 5.0,
        ssim: float = 0.1,
        scd: float = 0.05,
        information: float = 0.1,
        visibility: float = 0.2,
        **target,
    ):
        super().__init__()
        self.intensity, self.gradient, self.ssim = intensity, gradient, ssim
        self.scd, self.information, self.visibility = scd, information, visibility
        self.target = FusionTarget(**target)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the loss; their sum is minimised."""
        ir, vi = batch.ir, batch.vi
        fused = model(*batch.fed).float()
        target = self.target(ir, vi)
        terms = {
            "intensity": self.intensity * (fused - target.intensity).abs().mean(),
            "gradient": self.gradient * (sobel(fused) - target.gradient).abs().mean(),
            "ssim": self.ssim * (ssim_loss(fused, ir) + ssim_loss(fused, vi)),
            "scd": self.scd * scd_loss(fused, ir, vi),
            "information": self.information * visual_information_loss(fused, ir, vi),
            "visibility": self.visibility * contrast_loss(fused, target.intensity),
        }
        return {name: term for name, term in terms.items() if getattr(self, name)}
