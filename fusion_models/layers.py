# SPDX-License-Identifier: AGPL-3.0-only
"""Blocks that several methods share: heads, pooled tokens, batch-norm folding."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ResidualTanhHead(nn.Module):
    """The papers' Tanh output, mapped to [0, 1] and centred on a fused image without a network.

    ``fused = (tanh(y + atanh(2 c - 1)) + 1) / 2``: with ``y = 0`` the output is the centre c, so
    that the network learns only what to change. Inputs and output `[B, 1, H, W]` in [0, 1].

    Args:
        regional: c is the pixel-wise average of the inputs below 2 pixels and
            :class:`MultiScaleFusion` above, which keeps objects visible from the first step; False:
            the pixel-wise average.
        limit: of ``2 c - 1``, so that the network can still darken white and lighten black.
    """

    def __init__(self, regional: bool = True, limit: float = 0.99):
        super().__init__()
        self.limit = limit
        self.regions = MultiScaleFusion(first=1) if regional else None

    def forward(self, y: Tensor, ir: Tensor, vi: Tensor) -> Tensor:
        centre = ir + vi - 1.0
        if self.regions is not None:
            coarse = F.avg_pool2d(torch.cat((ir, vi), 1), 2)
            change = 2.0 * self.regions(coarse) - coarse.sum(1, keepdim=True)
            centre = centre + upsample(change, 2)
        centre = centre.clamp(-self.limit, self.limit)
        # atanh by logarithms: every exporter and engine knows Log, not all know Atanh.
        prior = 0.5 * (torch.log1p(centre) - torch.log1p(-centre))
        return torch.tanh(y.float() + prior.float()) * 0.5 + 0.5


class MultiScaleFusion(nn.Module):
    """Fused luminance in which both images' contrasts survive at scales from 2^first pixels up.

    Both images are taken apart into Laplacian bands. In each band:

    - Thermal is brought to a normalised contrast: what is faint is amplified, up to `GAIN` times,
      what is under the noise `FLOOR` or strong is not. What is strong, colder than its surroundings
      and cold altogether (`LEVEL`), such as the sky, is limited (`LIMIT`), so that it does not
      darken what the visible image shows there. All this is a function of the neighbourhood alone:
      a hot object that enters changes nothing elsewhere, and there is no state that could flicker.
    - The image with the stronger contrast wins, softly. Most of the decision is one for all bands
      of a region (`SHARED`), the rest the band's own (`OWN`): bands that are taken from different
      images cancel where the cameras show opposite polarities, a dark coat that is warm inside. The
      coarser the band, the more a fixed share of both replaces the choice (`CHOICE`, `MIX`), so
      that brightness as a whole stays the visible image's; not where polarities oppose (`WHOLE`),
      and there the choice is harder (`OPPOSED`).
    - The region prefers thermal where it is warmer than its surroundings (`WARM`), a little where
      it is colder than these but not cold (`MILD`: a person before a hot road), and the visible
      image where thermal is cold (`COLD`), where the visible is bright already and nowhere near
      saturated (`BRIGHT`) and, less so, where a warm object is a dark silhouette there (`DARK`): a
      warm object cannot be made brighter there, but its silhouette can stay. Visible light that is
      saturated loses its say.
    - Faint results are amplified, strong ones at coarse scales damped (`BOOST`, `STRONG`).

    Where the sum leaves [LOW, HIGH], its surroundings are moved smoothly to make room, which opens
    glare for what thermal shows inside. The constants were set by hand on validation pairs, then
    those of bands 2 and coarser moved by gradient on training pairs of msrs, roadscene and on
    simulated scenes (docs/methods.md).

    Band k holds structures of 2^k to 2^(k+1) pixels; bands 5 and 6 stay at 1/32 of the resolution.
    Decisions are made at a quarter of the resolution.

    Args:
        first: first band, 0 to 2; the inputs are already reduced by 2^first, and are at least
            2^(5 - first) pixels high and wide.
    """

    GAIN = (1.5, 1.6, 1.5, 1.7, 1.9, 2.3, 2.1)
    BOOST = (1.0, 1.0, 1.14, 1.13, 1.35, 1.65, 2.05)
    STRONG = (1.0, 1.0, 0.97, 0.98, 0.95, 0.86, 0.73)
    CHOICE = (1.0, 1.0, 1.0, 1.0, 0.79, 0.51, 0.33)
    MIX = 0.48  # share of thermal where nothing is chosen
    FLOOR = (0.004, 0.004, 0.002, 0.002, 0.002, 0.002, 0.002)
    LIMIT = (0.5, 0.4, 0.32, 0.21, 0.14, 0.11, 0.11)
    UNLIMITED = 1.0  # share of the limit that falls away where thermal is warm or not cold
    FAINT, FIRM = 0.03, 0.15  # contrasts in [0, 1]
    BASE = 0.5  # share of what thermal's base is above the visible's
    OWN, SHARED = 1.1, 10.0  # slopes of the choice over the logarithm of the contrasts' ratio
    OPPOSED, WHOLE = 0.53, 0.67
    WARM, MILD, COLD = 1.2, 0.18, -0.09  # added to that logarithm
    BRIGHT, DARK = -2.3, -1.2  # likewise
    WARMTH = 0.042  # width of the step from colder to warmer than the surroundings
    LEVEL = (0.4, 0.048)  # thermal values: step from cold to not cold, its width
    BRIGHTNESS = (0.65, 0.06)  # visible values: step to bright surroundings, its width
    SILHOUETTE = (0.056, 0.014)  # contrasts: step to a warm and dark object, its width
    BACKGROUND = (0.5, 0.053)  # visible values behind a silhouette: step, its width
    LOW, HIGH = 0.03, 0.96

    def __init__(self, first: int = 0):
        super().__init__()
        self.first = first

    def forward(self, pair: Tensor) -> Tensor:
        """Thermal and visible `[B, 2, h, w]` in [0, 1] to `[B, 1, h, w]` in [0, 1]."""
        bands, base = self._bands(pair)
        unsaturated = 1.0 - ((_box(pair[:, 1:], 3) - 0.88) / 0.1).clamp(0.0, 1.0)
        preference, limited = self._surroundings(pair, unsaturated)
        thermal, strengths = [], []
        for k, band in enumerate(bands, self.first):
            if self.first < k <= 5:
                unsaturated = F.avg_pool2d(unsaturated, 2)
            a, b = _box(band.abs(), 3).chunk(2, 1)
            above = (a - self.FLOOR[k]).clamp_min(0.0)
            gain = (self.GAIN[k] - 1.0) * above / (a + 1e-4)
            gain = 1.0 + gain / (1.0 + (a / self.FAINT).square())
            gain = gain / (1.0 + a / self.LIMIT[k] * _resize(limited, a))
            thermal.append(band[:, :1] * gain)
            visible = b * (0.1 + 0.9 * unsaturated)
            strengths.append((above * gain + 1e-3, visible + 1e-3))
        opposed = self._opposed(thermal, bands, preference)
        shared = self._ratio(strengths, preference) + preference
        shared = self.SHARED * (1.0 + self.OPPOSED * opposed) * shared
        fused = []
        for k, (a, band, (s_a, s_b)) in enumerate(zip(thermal, bands, strengths), self.first):
            own = self.OWN * (s_a.log() - s_b.log())
            weight = torch.sigmoid(own + _resize(shared, own))
            if self.CHOICE[k] < 1.0:
                choice = (1.0 - self.CHOICE[k]) * self.WHOLE * _resize(opposed, own)
                choice = self.CHOICE[k] + choice
                weight = choice * weight + (1.0 - choice) * self.MIX
            y = weight * a + (1.0 - weight) * band[:, 1:]
            rest = (self.BOOST[k] - self.STRONG[k]) / (
                1.0 + (_box(y.abs(), 3) / self.FIRM).square()
            )
            fused.append(y * (self.STRONG[k] + rest))
        x = base[:, 1:] + self.BASE * (base[:, :1] - base[:, 1:]).clamp_min(0.0)
        for k, band in reversed(list(enumerate(fused, self.first))):
            x = _resize(x, band) + band
            if k == 2:
                x = self._make_room(x)
        return x.clamp(0.0, 1.0)

    def _bands(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        bands = []
        for _ in range(self.first, 5):
            coarser = F.avg_pool2d(x, 2)
            bands.append(x - _resize(coarser, x))
            x = coarser
        for size in (3, 5):
            coarser = _box(x, size)
            bands.append(x - coarser)
            x = coarser
        return bands, x

    def _wide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """An image at 1/4 of the resolution, and its means over about 200 pixels around."""
        place = F.avg_pool2d(x, 2 ** (2 - self.first)) if self.first < 2 else x
        return place, _resize(_box(_box(F.avg_pool2d(place, 8), 5), 3), place)

    def _surroundings(self, pair: Tensor, unsaturated: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the logarithm of the ratio, and how far thermal is limited, at 1/4."""
        place, around = self._wide(pair)
        warm = torch.sigmoid((place[:, :1] - around[:, :1]) / self.WARMTH)
        bright = _step(around[:, 1:], self.BRIGHTNESS)
        mild = _step(place[:, :1], self.LEVEL)
        here, wide = self._wide(unsaturated)
        open_ = (_box(here, 5) * wide.square()).square()
        preference = self.COLD + (self.MILD - self.COLD) * mild
        warmer = self.WARM + (self.BRIGHT - self.WARM) * bright * open_
        preference = preference + (warmer - preference) * warm
        near = _resize(_box(F.avg_pool2d(place, 4), 3), place)  # means over 48 pixels around
        ir, vi = (place - near).chunk(2, 1)
        dark = _step(torch.minimum(ir, -vi), self.SILHOUETTE)
        dark = (_box(dark, 5) * 2.5).clamp_max(1.0) * _step(near[:, 1:], self.BACKGROUND)
        limited = 1.0 - self.UNLIMITED * (1.0 - (1.0 - warm) * (1.0 - mild))
        return preference + self.DARK * dark * open_, limited

    def _middle(self, bands: list) -> list:
        """Bands 1 to 4, those that decide for a region."""
        return bands[max(1 - self.first, 0) : 5 - self.first]

    def _ratio(self, strengths: list, place: Tensor) -> Tensor:
        """Logarithm of thermal's strength over the visible's in the middle bands, at 1/4."""
        a, b = (_summed((pair[i] for pair in self._middle(strengths)), place) for i in (0, 1))
        return a.log() - b.log()

    def _opposed(self, thermal: list, bands: list, place: Tensor) -> Tensor:
        """How far the middle bands have opposite signs: 0 (not) to 1 (everywhere), at 1/4."""
        middle = zip(self._middle(thermal), self._middle(bands))
        products = [a * band[:, 1:] for a, band in middle]
        signed = _summed((_box(x, 3) for x in products), place)
        sizes = _summed((_box(x.abs(), 3) for x in products), place)
        return (-signed / (sizes + 1e-4)).clamp_min(0.0)

    def _make_room(self, x: Tensor) -> Tensor:
        def around(excess: Tensor) -> Tensor:
            wide = F.max_pool2d(excess, 7, 1, 3)
            return _resize(_box(_box(F.avg_pool2d(wide, 2), 5), 5), x)

        return x - around((x - self.HIGH).clamp_min(0.0)) + around((self.LOW - x).clamp_min(0.0))


def _step(x: Tensor, middle_and_width: tuple[float, float]) -> Tensor:
    """Smooth step from 0 to 1."""
    middle, width = middle_and_width
    return torch.sigmoid((x - middle) / width)


def _summed(bands: Iterable[Tensor], place: Tensor) -> Tensor:
    """Sum of bands at the size of `place`, averaged over 5 x 5 of its pixels."""
    return _box(sum(_resize(band, place) for band in bands), 5)


def _box(x: Tensor, size: int) -> Tensor:
    """Mean over a square of odd side `size`, over what lies inside the image."""
    return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize to the height and width of another tensor."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


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
