# SPDX-License-Identifier: AGPL-3.0-only
"""Loss of LRRNet, which baffm's paper leaves open and whose network it builds on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion_models.data import Batch
from fusion_models.search.terms import Perceptual

_DEVIATION = 255 * 0.225
"""Grey levels of one unit of a normalised input: the loss counts in grey levels."""


class BaffmPaperObjective(nn.Module):
    """Loss of LRRNet (Li et al., TPAMI 2023, eq. 13 to 17), alone.

    ``10 |F - vi|^2 + shallow |p1(F) - p1(vi)|^2 + sum_k middle_k |pk(F) - ir pk(ir) - vi pk(vi)|^2
    + deep |G(p4(F)) - G(p4(ir))|^2``, means of squares in grey levels, with VGG-16's features
    p1 to p4 after relu1_2, 2_2, 3_3 and 4_3 and their Gram matrices G. Divided by 255^2, which Adam
    does not see.

    Args:
        pixel, shallow, middle, deep: weights; their values are the released code's.
        ir, vi: weights of the sources' features in the middle.
        perceptual: backbone, see :class:`fusion_models.search.terms.Perceptual`; 'auto' is VGG-16
            where it can be had.
    Raises:
        ValueError: the backbone cannot be had.
    """

    def __init__(
        self,
        pixel: float = 10.0,
        shallow: float = 1.5,
        middle: tuple[float, float] = (0.01, 0.5),
        deep: float = 2000.0,
        ir: float = 3.0,
        vi: float = 0.5,
        perceptual: str = "auto",
    ):
        super().__init__()
        self.pixel, self.shallow, self.middle, self.deep = pixel, shallow, tuple(middle), deep
        self.ir, self.vi = ir, vi
        self.perceptual = Perceptual(perceptual, (2, 4, 7, 10), (1, 3, 5, 11))

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the loss; their sum is minimised."""
        fused = model(batch.ir, batch.vi).float()
        found = self._features(fused)
        with torch.no_grad():
            ir, vi = self._features(batch.ir), self._features(batch.vi)
        middle = sum(
            weight * (found[k] - self.ir * ir[k] - self.vi * vi[k]).square().mean()
            for k, weight in enumerate(self.middle, 1)
        )
        gram = (_gram(found[3]) - _gram(ir[3])).square().mean()
        scale = 255.0**2
        return {
            "pixel": self.pixel * (fused - batch.vi).square().mean(),
            "shallow": self.shallow * (found[0] - vi[0]).square().mean() / scale,
            "middle": middle / scale,
            "deep": self.deep * gram / scale,
        }

    def _features(self, image: Tensor) -> list[Tensor]:
        return [_DEVIATION * x for x in self.perceptual.features(image)]


def _gram(x: Tensor) -> Tensor:
    """Gram matrix of `[B, C, H, W]` over its number of values, `[B, C, C]`."""
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])
