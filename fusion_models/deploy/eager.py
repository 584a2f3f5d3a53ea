# SPDX-License-Identifier: AGPL-3.0-only
"""Plain eager PyTorch forms of the networks, straight from the papers' equations.

They are the yardstick of the benchmark: same trained parameters, same output, no rewriting. What
the networks and their deploy forms do differently (folded thresholds and batch norms, projections
carried over to the tokens, depthwise pairs, free sizes by strided pooling) is left out here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_models.baffm.network import BackdoorAdjustment, Baffm, LowRankSparse
from fusion_models.caf.network import Caf
from fusion_models.cfi import network as cfi
from fusion_models.refinefuse import network as refinefuse


def eager_form(model: nn.Module) -> nn.Module:
    """Plain form of a network of the registry that shares its parameters.

    cfi and refinefuse pool their tokens adaptively here, as their papers say; that is the network's
    own pooling where the side of the token grid divides height and width: 256 and 512 for cfi, 512
    for refinefuse. At other sizes the outputs differ a little, the work does not.

    Raises:
        ValueError: a network that has no plain form here.
    """
    forms = {
        Baffm: EagerBaffm,
        Caf: EagerCaf,
        cfi.Cfi: EagerCfi,
        refinefuse.RefineFuse: EagerRefineFuse,
    }
    if type(model) not in forms:
        known = ", ".join(sorted(kind.__name__ for kind in forms))
        raise ValueError(f"no plain form of {type(model).__name__}: there are those of {known}")
    return forms[type(model)](model.eval())


class _Eager(nn.Module):
    def __init__(self, trained: nn.Module):
        super().__init__()
        self.trained = trained


class EagerCaf(_Eager):
    """caf as it is trained: batch norms of their own, concatenations; nothing to undo."""

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        return self.trained(ir, vi)


class EagerBaffm(_Eager):
    """``Z_k = S_t(g Z_{k-1} + up_k(x - down_k(Z_{k-1})))``, then eq. 4 to 6 for every pixel."""

    @staticmethod
    def _shrink(x: Tensor, t: Tensor) -> Tensor:
        return torch.sign(x) * torch.clamp(torch.abs(x) - t, min=0.0)

    def _extract(self, m: LowRankSparse, x: Tensor) -> Tensor:
        t = m.threshold.abs() + 1e-4
        z = self._shrink(m.first(x), t)
        for down, up in zip(m.down, m.up):
            z = self._shrink(m.memory * z + up(x - down(z)), t)
        return z

    @staticmethod
    def _adjust(m: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(m, BackdoorAdjustment):
            return x
        queries = F.normalize(m.query(F.avg_pool2d(x, m.pool)), dim=1)
        shape = queries.shape[-2:]
        keys = F.normalize(m.key(m.dictionary), dim=-1)  # [N, d]
        logits = queries.flatten(2).transpose(1, 2) @ keys.T * m.sharpness  # [B, hw, N]
        # sum_i lambda_i z_i P(z_i), [B, hw, D]
        scene = torch.softmax(logits, -1) @ (m.dictionary * m.prior[:, None])
        context = m.context(scene).transpose(1, 2).unflatten(2, shape)
        context = F.interpolate(
            context, scale_factor=float(m.pool), mode="bilinear", align_corners=False
        )
        return m.hidden(x) + context

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        m = self.trained
        x_ir = self._adjust(m.adjust_ir, self._extract(m.extract_ir, ir))
        x_vi = self._adjust(m.adjust_vi, self._extract(m.extract_vi, vi))
        return m.head(m.reconstruct(m.fuse(torch.cat((x_ir, x_vi), 1))), ir, vi)


class EagerCfi(_Eager):
    """Q, K and V by 1x1 convolutions at full resolution, then pooled; batch norms of their own."""

    @staticmethod
    def _attend(
        m: cfi.CausalFeatureIntegrator, asks: str, source: Tensor, answers: str, other: Tensor
    ) -> Tensor:
        def project(linear: nn.Linear, x: Tensor) -> Tensor:
            return F.conv2d(x, linear.weight[..., None, None])

        def tokens(x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x, cfi.GRID).flatten(2).transpose(1, 2)

        queries = F.avg_pool2d(project(m.query[asks], source), m.query_stride)
        key = tokens(project(m.key[answers], other))
        value = tokens(project(m.value[answers], other))
        logits = queries.flatten(2).transpose(1, 2) @ key.transpose(1, 2) * m.scale
        answer = torch.softmax(logits, -1) @ value
        return answer.transpose(1, 2).unflatten(2, queries.shape[-2:])

    def _integrate(self, m: cfi.CausalFeatureIntegrator, ir: Tensor, vi: Tensor) -> Tensor:
        common = self._attend(m, "vi", vi, "ir", ir) + self._attend(m, "ir", ir, "vi", vi)
        gate = torch.sigmoid(m.gate(common))
        if m.query_stride > 1:
            common, gate = (
                F.interpolate(x, ir.shape[-2:], mode="bilinear", align_corners=False)
                for x in (common, gate)
            )
        return m.refine(gate * common + (1.0 - gate) * (ir + vi))

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        m, skips = self.trained, []
        x_ir, x_vi = ir, vi
        for level, (encode, integrator) in enumerate(zip(m.encoders, m.integrators)):
            if level:
                x_ir, x_vi = F.max_pool2d(x_ir, 2), F.max_pool2d(x_vi, 2)
            x_ir, x_vi = encode(x_ir, "ir"), encode(x_vi, "vi")
            skips.append(self._integrate(integrator, x_ir, x_vi))
        y = skips[2]
        for decode, skip in zip(m.decoders, (skips[1], skips[0])):
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
            y = decode(y + skip)
        y = m.reconstruct(y)
        if m.coarse is not None:
            y = y + F.interpolate(
                m.coarse(skips[2]), scale_factor=4, mode="bilinear", align_corners=False
            )
        return m.head(y, ir, vi)


class EagerRefineFuse(_Eager):
    """SFIM with one grouped convolution of interleaved channels; PSIM pooled adaptively."""

    @staticmethod
    def _sfim(m: refinefuse.Sfim, ir: Tensor, vi: Tensor) -> Tensor:
        if m.attention is not None:
            both = torch.cat((ir, vi), 1)
            pooled = torch.cat((both.amax(1, keepdim=True), both.mean(1, keepdim=True)), 1)
            a = torch.sigmoid(m.attention(pooled))
            ir, vi = ir + ir * a[:, :1], vi + vi * a[:, 1:]
        interleaved = torch.stack((ir, vi), 2).flatten(1, 2)  # ir_1, vi_1, ir_2, vi_2, ...
        weight = torch.cat((m.fuse.ir.weight, m.fuse.vi.weight), 1)
        return F.conv2d(interleaved, weight, m.fuse.ir.bias, padding=1, groups=ir.shape[1])

    @staticmethod
    def _psim(m: refinefuse.Psim, ir: Tensor, vi: Tensor) -> Tensor:
        if not isinstance(m, refinefuse.Psim):  # ablated
            return m(ir, vi)
        grid = m.grid
        t_ir, t_vi = (F.adaptive_avg_pool2d(x, grid) for x in (ir, vi))
        query = F.normalize(m.query(torch.cat((t_ir, t_vi), 1)).flatten(2).transpose(1, 2), dim=-1)
        attended = []
        for x, tokens, project in ((ir, t_ir, m.key_value["ir"]), (vi, t_vi, m.key_value["vi"])):
            key, value = project(tokens).flatten(2).chunk(2, 1)
            logits = query @ F.normalize(key, dim=1) * m.sharpness  # [B, T, T]
            answer = torch.softmax(logits, -1) @ value.transpose(1, 2)
            answer = answer.transpose(1, 2).unflatten(2, (grid, grid))
            answer = F.interpolate(answer, x.shape[-2:], mode="bilinear", align_corners=False)
            attended.append(x + answer)
        return m.fuse(torch.cat(attended, 1))

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        m, features = self.trained, []
        x_ir, x_vi = ir, vi
        for level, interact in enumerate(m.interact):
            x_ir, x_vi = m.encode_ir[level](x_ir), m.encode_vi[level](x_vi)
            fuse = self._sfim if level < 2 else self._psim
            features.append(fuse(interact, x_ir, x_vi))
        y = features[3]
        for decode, integrate, shallow in zip(m.decode, m.integrate, features[2::-1]):
            y = integrate(decode(y), shallow)
        y = m.reconstruct(y)
        if m.coarse is not None:
            y = y + F.interpolate(
                m.coarse(features[3]), scale_factor=8, mode="bilinear", align_corners=False
            )
        return m.head(y, ir, vi)
