# SPDX-License-Identifier: AGPL-3.0-only
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
        # atanh by logarithms: every exporter and engine supports Log, not all support Atanh.
        prior = 0.5 * (torch.log1p(mean) - torch.log1p(-mean))
        return torch.tanh(y.float() + prior.float()) * 0.5 + 0.5


def pool_tokens(x: Tensor, grid: int, stride: int) -> Tensor:
    """Average-pools `[B, C, H, W]` to a fixed `[B, C, grid, grid]` of tokens.

    A strided average pooling followed by a bilinear resize: unlike adaptive pooling it exports to
    ONNX with free height and width. ``x`` must be at least ``stride`` pixels high and wide.
    """
    pooled = F.avg_pool2d(x, stride, stride)
    return F.interpolate(pooled, size=(grid, grid), mode="bilinear", align_corners=False)


class SoftShrink(nn.Module):
    """``sign(x) max(|x| - t, 0)`` with a threshold t > 0 a channel, for deploy forms.

    Computed as ``x - t clip(x / t, -1, 1)`` with t in two depthwise 1x1 convolutions. ONNX has the
    threshold as one operator, Shrink, but onnxruntime runs it on one thread without vector
    instructions, and element-wise operators take its tensors out of the blocked layout of its
    convolutions. These convolutions stay in that layout, take the clip and the addition with
    them, and cost a third of Shrink on two threads.

    Args:
        thresholds: t, `[C]`.
    """

    def __init__(self, thresholds: Tensor):
        super().__init__()
        kernel = thresholds.detach()[:, None, None, None]
        self.register_buffer("down", 1.0 / kernel)
        self.register_buffer("up", -kernel)

    def forward(self, x: Tensor) -> Tensor:
        groups = self.up.shape[0]
        clipped = F.conv2d(x, self.down, groups=groups).clamp(-1.0, 1.0)
        return F.conv2d(clipped, self.up, groups=groups) + x


class RowThenColumnConv(nn.Module):
    """A 3x3 convolution to one channel as a 1x3 convolution to three and a 3x1 sum of them.

    For deploy forms, equal to ``weight`` `[1, C, 3, 3]` and ``bias`` `[1]` with zero padding 1.
    Convolution kernels compute output channels in blocks (16 with AVX-512): a single one wastes
    the rest, three waste less and need a third of the taps, which makes up for the second step.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        # rows[j] is the kernel's row j along the width; the sum shifts its result by j - 1 lines.
        self.register_buffer("rows", weight.detach()[0].transpose(0, 1)[:, :, None].contiguous())
        self.register_buffer("shift", torch.eye(3)[None, :, :, None].contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows = F.conv2d(x, self.rows, padding=(0, 1))
        return F.conv2d(rows, self.shift, self.bias, padding=(1, 0))


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
