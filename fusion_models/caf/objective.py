# SPDX-License-Identifier: AGPL-3.0-only
"""Objective of caf: a loss of fifteen terms, whose weights a perception task searches (3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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

TERMS = (
    "l1_ir", "l1_vi", "l1_max", "l1_masked",
    "mse_ir", "mse_vi", "mse_max", "mse_masked",
    "ssim_ir", "ssim_vi",
    "gradient_ir", "gradient_vi", "gradient_max",
    "perceptual_ir", "perceptual_vi",
)  # fmt: skip
"""The search space, in the order of the weight vector beta."""

DEFAULT_WEIGHTS = {
    "l1_masked": 1.0, "mse_masked": 0.5, "ssim_ir": 0.05, "ssim_vi": 0.05, "gradient_max": 5.0,
}  # fmt: skip


class Vgg16Perceptual(nn.Module):
    """Mean L1 distance of VGG-16 features after its convolutions 1, 3, 5, 9 and 13 with ReLU.

    The gradient flows through the first argument into the fusion network. Inputs `[B, 1, H, W]`.

    Args:
        pretrained: take torchvision's ImageNet weights, which it downloads once.
    """

    CONVOLUTIONS = (1, 3, 5, 9, 13)

    def __init__(self, pretrained: bool = True):
        super().__init__()
        from torchvision.models import VGG16_Weights, vgg16

        layers = vgg16(weights=VGG16_Weights.IMAGENET1K_V1 if pretrained else None).features
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # it would overwrite the features that are compared
        self.features = layers.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def _layers(self, x: Tensor) -> list[Tensor]:
        x = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        kept, convolutions = [], 0
        for layer in self.features:
            x = layer(x)
            convolutions += isinstance(layer, nn.Conv2d)
            if isinstance(layer, nn.ReLU) and convolutions in self.CONVOLUTIONS:
                kept.append(x)
        return kept

    def forward(self, fused: Tensor, source: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._layers(source)
        distances = [(f - s).abs().mean() for f, s in zip(self._layers(fused), wanted)]
        return sum(distances) / len(distances)


class CafObjective(nn.Module):
    """Weighted sum of the fifteen terms of :data:`TERMS`.

    The masked terms compare with the intensity of :class:`fusion_models.losses.FusionTarget`,
    ``gradient_max`` with its gradient.

    Args:
        weights: weight of each term by name, over :data:`DEFAULT_WEIGHTS`; 0 leaves a term out.
        perceptual_scale: factor on the perceptual terms (0.1 in the released code).
        ssim_window: 5 in the released code.
        scd, information, visibility: weights of the terms shared by all methods (not in the paper).
    Raises:
        ValueError: a weight of an unknown term, or perceptual terms without VGG-16 at hand.
    """

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        perceptual_scale: float = 0.1,
        ssim_window: int = 5,
        scd: float = 0.05,
        information: float = 0.1,
        visibility: float = 0.2,
        **target,
    ):
        super().__init__()
        self.weights = {**DEFAULT_WEIGHTS, **(weights or {})}
        unknown = sorted(set(self.weights) - set(TERMS))
        if unknown:
            raise ValueError(f"unknown loss terms {unknown}: choose from {', '.join(TERMS)}")
        self.perceptual_scale, self.ssim_window = perceptual_scale, ssim_window
        self.scd, self.information, self.visibility = scd, information, visibility
        self.target = FusionTarget(**target)
        self.perceptual = None
        if any(self.weights.get(f"perceptual_{m}", 0.0) for m in ("ir", "vi")):
            try:
                self.perceptual = Vgg16Perceptual()
            except Exception as error:  # no torchvision, or its weights cannot be downloaded
                raise ValueError(
                    f"the perceptual terms need VGG-16, which is not to be had ({error}): connect "
                    "once to let torchvision download it, or leave their weights at 0"
                ) from error

    def term(self, name: str, fused: Tensor, batch: Batch, target) -> Tensor:
        """Value of one unweighted term, a scalar."""
        ir, vi = batch.ir, batch.vi
        kind, _, what = name.partition("_")
        if kind in ("l1", "mse"):
            wanted = {"ir": ir, "vi": vi, "max": torch.maximum(ir, vi), "masked": target.intensity}
            distance = F.l1_loss if kind == "l1" else F.mse_loss
            return distance(fused, wanted[what])
        if kind == "ssim":
            return ssim_loss(fused, ir if what == "ir" else vi, self.ssim_window)
        if kind == "gradient":
            if what == "max":
                return (sobel(fused) - target.gradient).abs().mean()
            return (sobel(fused) - sobel(ir if what == "ir" else vi)).abs().mean()
        return self.perceptual_scale * self.perceptual(fused, ir if what == "ir" else vi)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the loss; their sum is minimised."""
        fused = model(*batch.fed).float()
        target = self.target(batch.ir, batch.vi)
        terms = {
            name: weight * self.term(name, fused, batch, target)
            for name, weight in self.weights.items()
            if weight
        }
        if self.scd:
            terms["scd"] = self.scd * scd_loss(fused, batch.ir, batch.vi)
        if self.information:
            terms["information"] = self.information * visual_information_loss(
                fused, batch.ir, batch.vi
            )
        if self.visibility:
            missing = contrast_loss(fused, target.intensity)
            terms["visibility"] = self.visibility * missing
        return terms
