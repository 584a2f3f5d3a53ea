"""Blocks that several methods share: heads, pooled tokens, batch-norm folding."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ResidualTanhHead(nn.Module):
    """The papers' Tanh output, mapped to [0, 1] and centred on the mean of the two inputs.

    ``fused = (tanh(y + atanh(ir + vi - 1)) + 1) / 2``: with ``y = 0`` the output is the pixel-wise
    average, so that the network learns only what to change. Inputs and output `[B, 1, H, W]`.
    """

    def __init__(self, limit: float = 0.99):
        super().__init__()
        self.limit = limit

    def forward(self, y: Tensor, ir: Tensor, vi: Tensor) -> Tensor:
        mean = (ir + vi - 1.0).clamp(-self.limit, self.limit)
        # atanh by logarithms: every exporter and engine knows Log, not all know Atanh.
        prior = 0.5 * (torch.log1p(mean) - torch.log1p(-mean))
        return torch.tanh(y.float() + prior.float()) * 0.5 + 0.5


def pool_tokens(x: Tensor, grid: int, stride: int) -> Tensor:
    """Average-pools `[B, C, H, W]` to a fixed `[B, C, grid, grid]` of tokens.

    A strided average pooling followed by a bilinear resize: unlike adaptive pooling it exports to
    ONNX with free height and width. ``x`` must be at least ``stride`` pixels high and wide.
    """
    pooled = F.avg_pool2d(x, stride, stride)
    return F.interpolate(pooled, size=(grid, grid), mode="bilinear", align_corners=False)


def soft_shrink(x: Tensor, threshold: float) -> Tensor:
    """``sign(x) max(|x| - threshold, 0)``; in ONNX its own operator, Shrink.

    The exporter would decompose it into nine element-wise operators, each a pass over memory.
    """
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "Shrink", (x,), {"lambd": threshold, "bias": threshold}, dtype=x.dtype, shape=x.shape
        )
    return F.softshrink(x, threshold)


def upsample(x: Tensor, scale: int = 2) -> Tensor:
    """Bilinear upsampling by an integer factor, exported as one Resize with constant scales."""
    return F.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Copy of a network in which each ``nn.Sequential`` convolution absorbs its batch norm."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (name, conv), (bn_name, norm) in zip(children, children[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, bn_name, nn.Identity())
    return model
