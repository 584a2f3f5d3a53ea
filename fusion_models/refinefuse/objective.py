# SPDX-License-Identifier: AGPL-3.0-only
"""Objective of refinefuse: masked intensity and texture (eq. 6 to 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion_models.data import Batch
from fusion_models.losses import (
    FusionTarget,
    contrast_loss,
    contrast_mask,
    gradient_magnitude,
    scd_loss,
    sobel,
    visual_information_loss,
)

INTENSITIES = ("masked", "plain", "max")


class RefineFuseObjective(nn.Module):
    """``|M_ir (F - ir)| + |M_vi (F - vi)| + texture L_tex``, plus terms for a natural picture.

    M_ir is where a label or the local contrast favours thermal, M_vi = 1 - M_ir.

    Args:
        intensity: 'masked' (the paper), 'plain' (``|F - ir| + |F - vi|``) or 'max' (its Table 8).
        intensity_weight: weight of the intensity term (1 in the paper).
        texture: weight of L_tex (5 in the paper; 0 ablates it).
        signed: compare signed gradients with the stronger source's (sharper, no halos) instead of
            magnitudes with their maximum (the paper).
        target: weight of ``|F - T|`` with T of FusionTarget (not in the paper).
        scd, information: weights of the natural terms shared by all methods (not in the paper).
    """

    def __init__(
        self,
        intensity: str = "masked",
        intensity_weight: float = 0.2,
        texture: float = 5.0,
        signed: bool = True,
        target: float = 0.8,
        scd: float = 0.05,
        information: float = 0.1,
        visibility: float = 0.2,
        **settings,
    ):
        super().__init__()
        if intensity not in INTENSITIES:
            raise ValueError(f"intensity '{intensity}': choose one of {', '.join(INTENSITIES)}")
        self.kind, self.intensity, self.texture = intensity, intensity_weight, texture
        self.signed, self.natural, self.scd = signed, target, scd
        self.information, self.visibility = information, visibility
        self.target = FusionTarget(**settings)

    def _intensity(self, fused: Tensor, batch: Batch) -> Tensor:
        ir, vi = batch.ir, batch.vi
        if self.kind == "plain":
            return (fused - ir).abs().mean() + (fused - vi).abs().mean()
        if self.kind == "max":
            return (fused - torch.maximum(ir, vi)).abs().mean()
        with torch.no_grad():
            m = torch.maximum(contrast_mask(ir, vi), batch.mask)
        return (m * (fused - ir).abs() + (1 - m) * (fused - vi).abs()).mean()

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the loss; their sum is minimised."""
        ir, vi = batch.ir, batch.vi
        fused = model(*batch.fed).float()
        target = self.target(ir, vi)
        if self.signed:
            texture = (sobel(fused) - target.gradient).abs().mean()
        else:
            wanted = torch.maximum(gradient_magnitude(ir), gradient_magnitude(vi))
            texture = (gradient_magnitude(fused) - wanted).abs().mean()
        terms = {
            "intensity": self.intensity * self._intensity(fused, batch),
            "texture": self.texture * texture,
            "natural": self.natural * (fused - target.intensity).abs().mean(),
            "scd": self.scd * scd_loss(fused, ir, vi),
            "information": self.information * visual_information_loss(fused, ir, vi),
            "visibility": self.visibility * contrast_loss(fused, target.intensity),
        }
        return {name: term for name, term in terms.items() if getattr(self, name)}
