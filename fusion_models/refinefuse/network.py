# SPDX-License-Identifier: AGPL-3.0-only
"""Network of refinefuse: SFIM on shallow, PSIM on deep features, FIM in the decoder.

Paper: RefineFuse, a multi-scale interaction network for multi-modal image fusion.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_models.layers import ResidualTanhHead, RowThenColumnConv, pool_tokens, upsample
from fusion_models.refinefuse.objective import RefineFuseObjective
from fusion_models.registry import ModelCard, register_model

WIDTHS = (16, 32, 64, 128)
GRID = 16  # PSIM attends over a fixed grid of tokens: its cost does not grow with the picture


SLOPE = 0.1  # of the leaky ReLUs: with plain ones most channels of the fourth scale died


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(SLOPE))


class PairwiseConv(nn.Module):
    """3x3 convolution of each interleaved channel pair (ir_k, vi_k): groups = C over 2C channels.

    Kept as one depthwise convolution a modality, which is the same sum and runs on the fast
    depthwise kernels that two-channel groups miss.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.ir = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.vi = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        return self.ir(ir) + self.vi(vi)


class Sfim(nn.Module):
    """Shallow feature interaction: spatial attention, then channel-interleaved fusion.

    Args:
        channels: C of either modality. attention: False ablates the spatial attention.
    """

    def __init__(self, channels: int, attention: bool = True):
        super().__init__()
        self.attention = nn.Conv2d(2, 2, 3, padding=1) if attention else None
        self.fuse = PairwiseConv(channels)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        if self.attention is not None:
            strongest = torch.maximum(ir.amax(1, keepdim=True), vi.amax(1, keepdim=True))
            # The mean over channels as a 1x1 convolution: a few times faster than a reduction.
            share = ir.new_full((1, ir.shape[1], 1, 1), 0.5 / ir.shape[1])
            mean = F.conv2d(ir, share) + F.conv2d(vi, share)
            a = torch.sigmoid(self.attention(torch.cat((strongest, mean), 1)))
            a = 1.0 + a  # theta + theta * A with one pass over theta
            ir, vi = ir * a[:, :1], vi * a[:, 1:]
        return self.fuse(ir, vi)


class Psim(nn.Module):
    """Deep feature interaction: a joint query attends to either modality on pooled tokens.

    Keys and values of each modality and a query from the concatenation come from 3x3 convolutions
    on the token grid; what was attended is brought back bilinearly and added to the input.

    Args:
        channels: C. stride: pooling before the resize to the grid. attention: False ablates it.
    """

    def __init__(self, channels: int, stride: int, attention: bool = True):
        super().__init__()
        self.stride = stride
        self.attends = attention
        if attention:
            self.query = nn.Conv2d(2 * channels, channels, 3, padding=1)
            self.key_value = nn.ModuleDict(
                {m: nn.Conv2d(channels, 2 * channels, 3, padding=1) for m in ("ir", "vi")}
            )
        self.fuse = _conv(2 * channels, channels)
        if attention:
            # Queries and keys are normalised: left to their norms the attention stays uniform.
            self.sharpness = nn.Parameter(torch.tensor(8.0))

    def _attended(self, x: Tensor, tokens: Tensor, query: Tensor, modality: str) -> Tensor:
        key, value = self.key_value[modality](tokens).flatten(2).chunk(2, 1)
        logits = query.transpose(1, 2) @ _normalised(key) * self.sharpness
        weights = torch.softmax(logits.float(), -1)
        answer = value @ weights.to(value.dtype).transpose(1, 2)
        answer = answer.unflatten(2, (GRID, GRID))
        return x + F.interpolate(answer, x.shape[-2:], mode="bilinear", align_corners=False)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        if self.attends:
            t_ir, t_vi = (pool_tokens(x, GRID, self.stride) for x in (ir, vi))
            query = _normalised(self.query(torch.cat((t_ir, t_vi), 1)).flatten(2))
            ir = self._attended(ir, t_ir, query, "ir")
            vi = self._attended(vi, t_vi, query, "vi")
        return self.fuse(torch.cat((ir, vi), 1))


def _normalised(x: Tensor) -> Tensor:
    """Tokens `[B, C, T]` of unit length."""
    return x * torch.rsqrt(x.float().square().sum(1, keepdim=True) + 1e-6)


class Fim(nn.Module):
    """Feature interaction in the decoder: channel and spatial attention on the shallow features.

    Channel attention from the deep and from the shallow features, spatial attention from the
    strongest and the mean deep channel, at the deep features' resolution.

    Args:
        deep, shallow: channels of either. attention: False ablates it.
    Output: `[B, deep + shallow, H, W]` at the shallow features' resolution.
    """

    def __init__(self, deep: int, shallow: int, attention: bool = True):
        super().__init__()
        self.from_deep = nn.Conv2d(deep, shallow, 1) if attention else None
        self.from_shallow = nn.Conv2d(shallow, shallow, 1) if attention else None
        self.where = nn.Conv2d(2, 1, 3, padding=1) if attention else None

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        if self.from_deep is not None:
            a = torch.sigmoid(self.from_deep(deep.mean((2, 3), keepdim=True)))
            a = a + torch.sigmoid(self.from_shallow(shallow.mean((2, 3), keepdim=True)))
            pooled = torch.cat((deep.amax(1, keepdim=True), deep.mean(1, keepdim=True)), 1)
            shallow = shallow * a * upsample(2.0 * torch.sigmoid(self.where(pooled)))
        return torch.cat((upsample(deep), shallow), 1)


@register_model(
    ModelCard(
        "refinefuse",
        "four-scale encoders with spatial, pooled-attention and channel refinement",
        "RefineFuse: multi-scale refinement for multi-modal image fusion",
    ),
    RefineFuseObjective,
)
class RefineFuse(nn.Module):
    """Fuses `ir`, `vi` `[B, 1, H, W]` in [0, 1] to `fused` of the same shape and range.

    Args:
        widths: channels of the four scales. decoder: width of the last, full-resolution decoder.
        sfim, psim, fim: False ablates the module (the paper's Table 9).
        coarse: the fourth scale also adds to the output directly; through the decoders alone it
            learns nothing in short schedules. False is the paper's network.
        regional: centre of the output, see :class:`fusion_models.layers.ResidualTanhHead`.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = WIDTHS,
        decoder: int = 48,
        sfim: bool = True,
        psim: bool = True,
        fim: bool = True,
        coarse: bool = True,
        regional: bool = True,
    ):
        super().__init__()
        w1, w2, w3, w4 = widths
        for modality in ("ir", "vi"):
            setattr(
                self,
                f"encode_{modality}",
                nn.ModuleList((_conv(1, w1), _conv(w1, w2, 2), _conv(w2, w3, 2), _conv(w3, w4, 2))),
            )
        # A token of the 16 x 16 is one cell at 256 x 256, the crop of training, and 1.3 to 2.5 at
        # 640x480: attention sees as many distinct tokens in training as in use.
        self.interact = nn.ModuleList(
            (Sfim(w1, sfim), Sfim(w2, sfim), Psim(w3, 4, psim), Psim(w4, 2, psim))
        )

        def decode(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 1), *_conv(outputs, outputs))

        self.decode = nn.ModuleList((decode(w4, w3), decode(2 * w3, w2), decode(2 * w2, w2)))
        self.integrate = nn.ModuleList((Fim(w3, w3, fim), Fim(w2, w2, fim), Fim(w2, w1, fim)))
        self.reconstruct = nn.Sequential(
            *_conv(w2 + w1, decoder),
            *_conv(decoder, w2),
            *_conv(w2, w1),
            nn.Conv2d(w1, 1, 3, padding=1),
        )
        self.coarse = nn.Conv2d(w4, 1, 1) if coarse else None
        self.head = ResidualTanhHead(regional)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        features = []
        x_ir, x_vi = ir, vi
        for encode_ir, encode_vi, interact in zip(self.encode_ir, self.encode_vi, self.interact):
            x_ir, x_vi = encode_ir(x_ir), encode_vi(x_vi)
            features.append(interact(x_ir, x_vi))
        y = features[3]
        for decode, integrate, shallow in zip(self.decode, self.integrate, features[2::-1]):
            y = integrate(decode(y), shallow)
        y = self.reconstruct(y)
        if self.coarse is not None:
            y = y + upsample(self.coarse(features[3]), 8)
        return self.head(y, ir, vi)

    def deploy(self) -> nn.Module:
        """Copy whose last convolution, to one channel, is in the form that runtimes run fast."""
        folded = copy.deepcopy(self)
        last = self.reconstruct[-1]
        folded.reconstruct[-1] = RowThenColumnConv(last.weight, last.bias)
        return folded
