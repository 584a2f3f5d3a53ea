# SPDX-License-Identifier: AGPL-3.0-only
"""Loss of refinefuse's paper alone: masked intensity and texture (eq. 6 to 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion_models.data import Batch
from fusion_models.losses import gradient_magnitude, local_mean
from fusion_models.refinefuse.objective import INTENSITIES

_SOBEL = 8.0
"""The paper's Sobel operator is not normalised; ours is, by 1/8."""


class RefineFusePaperObjective(nn.Module):
    """``L_int + texture L_tex``.

    ``L_int = |M (F - ir)| + |(1 - M) (F - vi)|``, M = 1 on salient objects (labels, where the data
    has them) and where thermal's squared difference to its local mean is the larger one; a hard
    mask. ``L_tex = | |sobel F| - max(|sobel ir|, |sobel vi|) |``.

    Args:
        intensity: 'masked', or of Table 8 'plain' (A: ``|F - ir| + |F - vi|``) and 'max' (B).
        texture: lambda; 0 leaves the term out (C).
        window: side of the local mean in pixels (OPEN in the paper).
    Raises:
        ValueError: an unknown intensity.
    """

    def __init__(self, intensity: str = "masked", texture: float = 5.0, window: int = 31):
        super().__init__()
        if intensity not in INTENSITIES:
            raise ValueError(f"intensity '{intensity}': choose one of {', '.join(INTENSITIES)}")
        self.kind, self.texture, self.window = intensity, texture, window

    def mask(self, batch: Batch) -> Tensor:
        """M, `[B, 1, H, W]`, 0 or 1."""
        of_ir, of_vi = (
            (image - local_mean(image, self.window)).square() for image in (batch.ir, batch.vi)
        )
        return ((of_ir > of_vi) | (batch.mask > 0)).to(batch.ir)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the loss; their sum is minimised."""
        ir, vi = batch.ir, batch.vi
        fused = model(ir, vi).float()
        to_ir, to_vi = (fused - ir).abs(), (fused - vi).abs()
        if self.kind == "plain":
            terms = {"intensity": to_ir.mean() + to_vi.mean()}
        elif self.kind == "max":
            terms = {"intensity": (fused - torch.maximum(ir, vi)).abs().mean()}
        else:
            mask = self.mask(batch)
            terms = {"intensity": (mask * to_ir).mean() + ((1 - mask) * to_vi).mean()}
        if self.texture:
            wanted = torch.maximum(gradient_magnitude(ir), gradient_magnitude(vi))
            difference = (gradient_magnitude(fused) - wanted).abs().mean()
            terms["texture"] = self.texture * _SOBEL * difference
        return terms
