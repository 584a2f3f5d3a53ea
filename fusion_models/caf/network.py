# SPDX-License-Identifier: AGPL-3.0-only
"""Network of caf: two shallow encoders, three densely connected layers, three reducing ones.

Paper: Liu et al., Where Elegance Meets Precision: Towards a Compact, Automatic, and Flexible
Framework for Multi-modality Image Fusion and Applications, IJCAI 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion_models.caf.objective import CafObjective
from fusion_models.caf.paper import CafPaperObjective
from fusion_models.layers import ResidualTanhHead, RowThenColumnConv, fold_batch_norms
from fusion_models.registry import ModelCard, register_model


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@register_model(
    ModelCard(
        "caf",
        "compact dense network whose loss can be searched",
        "Liu et al., Where Elegance Meets Precision (CAF), IJCAI 2024",
    ),
    CafObjective,
    CafPaperObjective,
)
class Caf(nn.Module):
    """Fuses `ir`, `vi` `[B, 1, H, W]` in [0, 1] to `fused` of the same shape and range.

    Args:
        channels: width of each encoder (16 in the paper). growth: of the dense layers (32).
        regional: centre of the output, see :class:`fusion_models.layers.ResidualTanhHead`.
    """

    def __init__(self, channels: int = 16, growth: int = 32, regional: bool = True):
        super().__init__()
        self.encode_ir, self.encode_vi = _block(1, channels), _block(1, channels)
        width = 2 * channels
        self.dense = nn.ModuleList(_block(width + k * growth, growth) for k in range(3))
        width += 3 * growth
        self.reduce = nn.Sequential(_block(width, 64), _block(64, 32))
        self.reconstruct = nn.Conv2d(32, 1, 3, padding=1)
        self.head = ResidualTanhHead(regional)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        x = torch.cat((self.encode_ir(ir), self.encode_vi(vi)), 1)
        for layer in self.dense:
            x = torch.cat((x, layer(x)), 1)
        return self.head(self.reconstruct(self.reduce(x)), ir, vi)

    def deploy(self) -> nn.Module:
        """Copy with the batch norms folded into the convolutions."""
        folded = fold_batch_norms(self)
        folded.reconstruct = RowThenColumnConv(self.reconstruct.weight, self.reconstruct.bias)
        return folded
