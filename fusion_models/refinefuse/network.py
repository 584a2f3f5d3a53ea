# SPDX-License-Identifier: AGPL-3.0-only
"""Network of refinefuse: SFIM on shallow, PSIM on deep features, FIM in the decoder.

Paper: RefineFuse, a multi-scale interaction network for multi-modal image fusion.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_models.layers import ResidualTanhHead, RowThenColumnConv, pool_tokens, upsample
from fusion_models.refinefuse.objective import RefineFuseObjective
from fusion_models.refinefuse.paper import RefineFusePaperObjective
from fusion_models.registry import ModelCard, register_model


@dataclass(frozen=True)
class Layout:
    """Sizes of a network.

    Attributes:
        widths: channels of the scales, five for a depth of up to five.
        decoders: channels that the decoders of the scales from the second on put out.
        reconstruct: widths of the last decoder's first three convolutions, at full resolution.
        grid: side of PSIM's fixed grid of tokens: its cost does not grow with the picture.
        strides: pooling before the resize to the grid, of the scales from the second on.
        slope: of the leaky ReLUs; 0: ReLU. With ReLU most channels of the fourth scale died.
        normalised: whether queries and keys are; left to their norms the attention stays uniform.
    """

    widths: tuple[int, ...]
    decoders: tuple[int, ...]
    reconstruct: tuple[int, int, int]
    grid: int = 16
    strides: tuple[int, ...] = (8, 4, 2, 1)
    slope: float = 0.1
    normalised: bool = True


PRESETS = {
    # A token of the 16 x 16 is one cell at 256 x 256, the crop of training, and 1.3 to 2.5 at
    # 640x480: attention sees as many distinct tokens in training as in use.
    "shipped": Layout((16, 32, 64, 128, 128), (32, 32, 64, 128), (48, 32, 16)),
    "paper": Layout(
        (16, 32, 64, 128, 256), (64, 128, 128, 256), (96, 64, 24), 24, (4, 2, 1, 1), 0.0, False
    ),
}
"""Sizes by name.

The paper states 2.21 M parameters, 12.73 GMAC at 256x256 and 48.11 at 512x512, but no widths: the
decoders and the grid of 'paper' are those of some round numbers that come nearest to all three.
"""


def _conv(inputs: int, outputs: int, slope: float, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(slope))


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
        channels: C of either modality.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.attention = nn.Conv2d(2, 2, 3, padding=1)
        self.fuse = PairwiseConv(channels)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        strongest = torch.maximum(ir.amax(1, keepdim=True), vi.amax(1, keepdim=True))
        # The mean over channels as a 1x1 convolution: a few times faster than a reduction.
        share = ir.new_full((1, ir.shape[1], 1, 1), 0.5 / ir.shape[1])
        mean = F.conv2d(ir, share) + F.conv2d(vi, share)
        a = torch.sigmoid(self.attention(torch.cat((strongest, mean), 1)))
        a = 1.0 + a  # theta + theta * A with one pass over theta
        ir, vi = ir * a[:, :1], vi * a[:, 1:]
        return self.fuse(ir, vi)


class PlainFusion(nn.Module):
    """Concatenation and a 3x3 convolution: what is left of SFIM or PSIM where it is ablated."""

    def __init__(self, channels: int, slope: float):
        super().__init__()
        self.fuse = _conv(2 * channels, channels, slope)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        return self.fuse(torch.cat((ir, vi), 1))


class Psim(nn.Module):
    """Deep feature interaction: a joint query attends to either modality on pooled tokens.

    Keys and values of each modality and a query from the concatenation come from 3x3 convolutions
    on the token grid; what was attended is brought back bilinearly and added to the input.

    Args:
        channels: C. stride: pooling before the resize to the grid. layout: grid and normalisation.
    """

    def __init__(self, channels: int, stride: int, layout: Layout):
        super().__init__()
        self.stride, self.grid = stride, layout.grid
        self.query = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.key_value = nn.ModuleDict(
            {m: nn.Conv2d(channels, 2 * channels, 3, padding=1) for m in ("ir", "vi")}
        )
        self.fuse = _conv(2 * channels, channels, layout.slope)
        self.sharpness = nn.Parameter(torch.tensor(8.0)) if layout.normalised else None

    def _attended(self, x: Tensor, tokens: Tensor, query: Tensor, modality: str) -> Tensor:
        key, value = self.key_value[modality](tokens).flatten(2).chunk(2, 1)
        if self.sharpness is None:
            logits = query.transpose(1, 2) @ key * key.shape[1] ** -0.5
        else:
            logits = query.transpose(1, 2) @ _normalised(key) * self.sharpness
        weights = torch.softmax(logits.float(), -1)
        answer = value @ weights.to(value.dtype).transpose(1, 2)
        answer = answer.unflatten(2, (self.grid, self.grid))
        return x + F.interpolate(answer, x.shape[-2:], mode="bilinear", align_corners=False)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        t_ir, t_vi = (pool_tokens(x, self.grid, self.stride) for x in (ir, vi))
        query = self.query(torch.cat((t_ir, t_vi), 1)).flatten(2)
        if self.sharpness is not None:
            query = _normalised(query)
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
    RefineFusePaperObjective,
)
class RefineFuse(nn.Module):
    """Fuses `ir`, `vi` `[B, 1, H, W]` in [0, 1] to `fused` of the same shape and range.

    Args:
        preset: sizes, one of :data:`PRESETS`: 'shipped', or 'paper', larger.
        depth: number of scales, 1 to 5 (the paper's Tables 9 and 10); 4 is the method.
        shallow: scales, from the first, that have SFIM; the others have PSIM.
        sfim, psim, fim: False puts concatenation and a convolution in the module's place (Table 9).
        coarse: the fourth scale also adds to the output directly; through the decoders alone it
            learns nothing in short schedules. None: in the shipped preset; the paper has it not.
        regional: centre of the output, see :class:`fusion_models.layers.ResidualTanhHead`.
    Raises:
        ValueError: an unknown preset or an impossible depth.
    """

    def __init__(
        self,
        preset: str = "shipped",
        depth: int = 4,
        shallow: int = 2,
        sfim: bool = True,
        psim: bool = True,
        fim: bool = True,
        coarse: bool | None = None,
        regional: bool = True,
    ):
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"preset '{preset}': choose one of {', '.join(PRESETS)}")
        if not 1 <= depth <= 5 or shallow < 1:
            raise ValueError(
                f"depth is {depth}, shallow {shallow}: expected 1 to 5 scales, 1 or more of them "
                "with SFIM"
            )
        layout = PRESETS[preset]
        slope, widths = layout.slope, layout.widths[:depth]
        if coarse is None:
            coarse = preset == "shipped" and depth > 1
        encoded = list(zip((1, *widths), widths, (1, 2, 2, 2, 2)))
        for modality in ("ir", "vi"):
            encoders = (_conv(i, o, slope, stride) for i, o, stride in encoded)
            setattr(self, f"encode_{modality}", nn.ModuleList(encoders))

        def interact(level: int, width: int) -> nn.Module:
            if level < shallow:
                return Sfim(width) if sfim else PlainFusion(width, slope)
            if psim:
                return Psim(width, layout.strides[level - 1], layout)
            return PlainFusion(width, slope)

        self.interact = nn.ModuleList(interact(k, width) for k, width in enumerate(widths))
        self.decode, self.integrate = nn.ModuleList(), nn.ModuleList()
        inputs = widths[-1]
        for level in range(depth - 1, 0, -1):  # from the coarsest scale to the finest but one
            outputs, skip = layout.decoders[level - 1], widths[level - 1]
            self.decode.append(
                nn.Sequential(nn.Conv2d(inputs, outputs, 1), *_conv(outputs, outputs, slope))
            )
            self.integrate.append(Fim(outputs, skip, fim))
            inputs = outputs + skip
        first, second, third = layout.reconstruct
        self.reconstruct = nn.Sequential(
            *_conv(inputs, first, slope),
            *_conv(first, second, slope),
            *_conv(second, third, slope),
            nn.Conv2d(third, 1, 3, padding=1),
        )
        self.coarse = nn.Conv2d(widths[-1], 1, 1) if coarse else None
        self.head = ResidualTanhHead(regional)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        features = []
        x_ir, x_vi = ir, vi
        for encode_ir, encode_vi, interact in zip(self.encode_ir, self.encode_vi, self.interact):
            x_ir, x_vi = encode_ir(x_ir), encode_vi(x_vi)
            features.append(interact(x_ir, x_vi))
        *shallows, y = features
        for decode, integrate, shallow in zip(self.decode, self.integrate, reversed(shallows)):
            y = integrate(decode(y), shallow)
        y = self.reconstruct(y)
        if self.coarse is not None:
            y = y + upsample(self.coarse(features[-1]), 2 ** len(shallows))
        return self.head(y, ir, vi)

    def deploy(self) -> nn.Module:
        """Copy whose last convolution, to one channel, is in the form that runtimes run fast."""
        folded = copy.deepcopy(self)
        last = self.reconstruct[-1]
        folded.reconstruct[-1] = RowThenColumnConv(last.weight, last.bias)
        return folded
