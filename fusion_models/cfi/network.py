# SPDX-License-Identifier: AGPL-3.0-only
"""Network of cfi: shared encoders at three scales, causal feature integrators, adding decoder.

Paper: Wang et al., Multi-Modal Image Fusion via Intervention-Stable Feature Learning (cfi).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fusion_models.cfi.objective import CfiObjective
from fusion_models.cfi.paper import CfiPaperObjective
from fusion_models.layers import (
    ResidualTanhHead,
    RowThenColumnConv,
    fold_batch_norms,
    pool_tokens,
    upsample,
)
from fusion_models.registry import ModelCard, register_model

GRID = 8  # r: keys and values are pooled to r x r tokens


MODALITIES = ("ir", "vi")


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.01),
    )


class SiameseEncoder(nn.Module):
    """Two 3x3 convolutions whose weights both modalities share, with batch norms of their own.

    With everything shared the whole network would be symmetric in `ir` and `vi` and could not treat
    a hot target other than a bright one; besides, the two have other statistics. In the deploy form
    the norms are folded, which leaves one pair of convolutions a modality.
    """

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(c, channels, 3, padding=1, bias=False) for c in (inputs, channels)
        )
        self.norms = nn.ModuleDict(
            {m: nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2)) for m in MODALITIES}
        )

    def forward(self, x: Tensor, modality: str) -> Tensor:
        for conv, norm in zip(self.convs, self.norms[modality]):
            x = F.leaky_relu(norm(conv(x)), 0.01)
        return x


class FoldedEncoder(nn.Module):
    """Deploy form of :class:`SiameseEncoder`."""

    def __init__(self, trained: SiameseEncoder):
        super().__init__()
        self.convs = nn.ModuleDict(
            {
                m: nn.ModuleList(
                    fuse_conv_bn_eval(conv, norm)
                    for conv, norm in zip(trained.convs, trained.norms[m])
                )
                for m in MODALITIES
            }
        )

    def forward(self, x: Tensor, modality: str) -> Tensor:
        for conv in self.convs[modality]:
            x = F.leaky_relu(conv(x), 0.01)
        return x


class CausalFeatureIntegrator(nn.Module):
    """Blends features that both modalities explain with those that either has (section 3.3).

    ``theta_v>i = Attention(Q_v, Pool(K_i), Pool(V_i))`` and the other way round;
    ``theta_c = theta_v>i + theta_i>v``, ``theta_l = theta_i + theta_v``,
    ``G = sigmoid(conv(theta_c))``, ``theta = G theta_c + (1 - G) theta_l``.

    Projection and pooling are both linear and commute, so keys and values are projected after the
    pooling, and the query's projection is carried over to the keys: no full-resolution 1x1
    convolution is left. The attention is linear in the values, so these are projected after it: as
    the output of a convolution the answer is in the layout that runtimes upsample fastest.

    Args:
        channels: C. stride: pooling before the resize to the token grid.
        query_stride: queries are taken on features pooled by this factor, their answers enlarged
            bilinearly; what 64 tokens can say has no finer detail.
    """

    def __init__(self, channels: int, stride: int, query_stride: int = 1):
        super().__init__()
        self.stride, self.query_stride = stride, query_stride
        self.query, self.key, self.value = (
            nn.ModuleDict({m: nn.Linear(channels, channels, bias=False) for m in MODALITIES})
            for _ in range(3)
        )
        self.gate = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.LeakyReLU(0.01), nn.Conv2d(16, 1, 1)
        )
        # Gates start at the mean that the objective asks for, not at 0.5 and never near 0, where
        # the entropy of the paper's objective would keep them.
        nn.init.constant_(self.gate[-1].bias, math.log(0.3 / 0.7))
        self.refine = _block(channels, channels)
        self.scale = 1.0 / math.sqrt(channels)

    def _attend(self, asks: str, source: Tensor, answers: str, tokens: Tensor) -> Tensor:
        """Ask the other modality's `tokens` `[B, T, C]` by one's `source` `[B, C, h, w]`."""
        keys = self.key[answers](tokens) @ self.query[asks].weight * self.scale
        logits = source.flatten(2).transpose(1, 2) @ keys.transpose(1, 2)
        answer = torch.softmax(logits.float(), -1).to(tokens.dtype) @ tokens
        answer = answer.transpose(1, 2).unflatten(2, source.shape[-2:])
        return F.conv2d(answer, self.value[answers].weight[..., None, None])

    def forward(self, ir: Tensor, vi: Tensor) -> tuple[Tensor, Tensor]:
        """Both features `[B, C, H, W]` to `theta_CFI [B, C, H, W]` and `G [B, 1, H, W]`."""
        tokens_ir, tokens_vi = (
            pool_tokens(x, GRID, self.stride).flatten(2).transpose(1, 2) for x in (ir, vi)
        )
        q_ir, q_vi = ir, vi
        if self.query_stride > 1:
            q_ir, q_vi = (F.avg_pool2d(x, self.query_stride) for x in (ir, vi))
        common = self._attend("vi", q_vi, "ir", tokens_ir)
        common = common + self._attend("ir", q_ir, "vi", tokens_vi)
        gate = torch.sigmoid(self.gate(common))
        if self.query_stride > 1:
            common, gate = upsample(common, self.query_stride), upsample(gate, self.query_stride)
        local = ir + vi
        return self.refine(local + gate * (common - local)), gate


class PlainIntegrator(nn.Module):
    """The sum of both modalities' features: what is left where the CFI is ablated (Table 2).

    Its gate is one everywhere, so that L_inv weighs all places alike.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.refine = _block(channels, channels)

    def forward(self, ir: Tensor, vi: Tensor) -> tuple[Tensor, Tensor]:
        """Both features `[B, C, H, W]` to `theta [B, C, H, W]` and a gate `[B, 1, H, W]` of 1."""
        return self.refine(ir + vi), torch.ones_like(ir[:, :1])


@register_model(
    ModelCard(
        "cfi",
        "Siamese U-Net with a causal feature integrator, trained under interventions",
        "Wang et al., Multi-Modal Image Fusion via Intervention-Stable Feature Learning",
    ),
    CfiObjective,
    CfiPaperObjective,
)
class Cfi(nn.Module):
    """Fuses `ir`, `vi` `[B, 1, H, W]` in [0, 1] to `fused` of the same shape and range.

    Args:
        channels: width at all three scales.
        integrator: False puts the sum of both features in the CFI's place.
        coarse: the coarsest scale also adds to the output directly; with the decoder alone its
            integrator learns nothing in short schedules. False is the paper's network.
        regional: centre of the output, see :class:`fusion_models.layers.ResidualTanhHead`.
    """

    def __init__(
        self,
        channels: int = 32,
        integrator: bool = True,
        coarse: bool = True,
        regional: bool = True,
    ):
        super().__init__()
        self.encoders = nn.ModuleList(SiameseEncoder(c, channels) for c in (1, channels, channels))
        # Pooling strides for 640x480: about two samples a token along each side.
        self.integrators = nn.ModuleList(
            CausalFeatureIntegrator(channels, stride, query_stride)
            if integrator
            else PlainIntegrator(channels)
            for stride, query_stride in ((32, 2), (16, 1), (8, 1))
        )
        self.decoders = nn.ModuleList(_block(channels, channels) for _ in range(2))
        self.reconstruct = nn.Conv2d(channels, 1, 3, padding=1)
        self.coarse = nn.Conv2d(channels, 1, 1) if coarse else None
        self.head = ResidualTanhHead(regional)

    def fuse_with_gates(self, ir: Tensor, vi: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Fused image and the gates G of the three scales, `[B, 1, H / 2^k, W / 2^k]`."""
        skips, gates = [], []
        x_ir, x_vi = ir, vi
        for level, (encode, integrate) in enumerate(zip(self.encoders, self.integrators)):
            if level:
                x_ir, x_vi = F.max_pool2d(x_ir, 2), F.max_pool2d(x_vi, 2)
            x_ir, x_vi = encode(x_ir, "ir"), encode(x_vi, "vi")
            theta, gate = integrate(x_ir, x_vi)
            skips.append(theta)
            gates.append(gate)
        y = skips[2]
        for decode, skip in zip(self.decoders, (skips[1], skips[0])):
            y = decode(upsample(y) + skip)
        y = self.reconstruct(y)
        if self.coarse is not None:
            y = y + upsample(self.coarse(skips[2]), 4)
        return self.head(y, ir, vi), gates

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        return self.fuse_with_gates(ir, vi)[0]

    def deploy(self) -> nn.Module:
        """Copy with the batch norms folded into the convolutions."""
        folded = fold_batch_norms(self)
        folded.encoders = nn.ModuleList(FoldedEncoder(e) for e in folded.encoders)
        folded.reconstruct = RowThenColumnConv(self.reconstruct.weight, self.reconstruct.bias)
        return folded
