# SPDX-License-Identifier: AGPL-3.0-only
"""Terms of fusion objectives that several methods share.

All images are `[B, 1, H, W]` in [0, 1]; all terms are means over the batch, so that weights mean
the same for every crop size. `F` is the fused image.
"""

from __future__ import annotations

from dataclasses import dataclass

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_models.layers import MultiScaleFusion


def sobel(x: Tensor) -> Tensor:
    """Signed Sobel gradient `[B, 2, H, W]` (x, y), normalised by 1/8 as in kornia."""
    return kornia.filters.spatial_gradient(x, "sobel", order=1, normalized=True)[:, 0]


def gradient_magnitude(x: Tensor) -> Tensor:
    """``|dx| + |dy|`` of the Sobel gradient, `[B, 1, H, W]`: the texture term of SeAFusion."""
    return sobel(x).abs().sum(1, keepdim=True)


def laplacian(x: Tensor) -> Tensor:
    """4-neighbour Laplacian with reflected borders, signed, `[B, 1, H, W]`."""
    kernel = x.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel)


def stronger(a: Tensor, b: Tensor, strength_a: Tensor | None = None, strength_b=None) -> Tensor:
    """Element-wise the one of larger magnitude, with its sign (or of larger given strength)."""
    strength_a = a.abs() if strength_a is None else strength_a
    strength_b = b.abs() if strength_b is None else strength_b
    return torch.where(strength_a > strength_b, a, b)


def ssim_loss(x: Tensor, y: Tensor, window: int = 11) -> Tensor:
    """``1 - SSIM(x, y)`` (Wang et al. 2004, Gaussian window, data range 1)."""
    return 1.0 - kornia.metrics.ssim(x, y, window, 1.0).mean()


def local_mean(x: Tensor, size: int) -> Tensor:
    """Mean over a `size` x `size` box, reflected at the border; `size` is odd."""
    size = min(size, 2 * (min(x.shape[-2:]) - 1) + 1)
    half = size // 2
    rows = F.avg_pool2d(F.pad(x, (half, half, half, half), mode="reflect"), (1, size), 1)
    return F.avg_pool2d(rows, (size, 1), 1)  # a box is separable: 2 k instead of k^2 reads


def local_deviation(x: Tensor, size: int) -> Tensor:
    """Standard deviation over a `size` x `size` box."""
    mean = local_mean(x, size)
    return (local_mean(x * x, size) - mean * mean).clamp_min(0.0).sqrt()


def contrast_mask(ir: Tensor, vi: Tensor, size: int = 31) -> Tensor:
    """1 where the thermal pixel stands out more from its surroundings than the visible one.

    The squared difference to the local mean decides (RefineFuse, section on the loss); the result
    is a soft mask, since a hard one would print its edge into the fused image.
    """
    ir_contrast = (ir - local_mean(ir, size)).square()
    vi_contrast = (vi - local_mean(vi, size)).square()
    return local_mean(ir_contrast, 5) / (local_mean(ir_contrast + vi_contrast, 5) + 1e-4)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of each image of the batch with its partner, `[B]`."""
    x, y = x.flatten(1), y.flatten(1)
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    # The floor stands for sensor noise: flat crops carry no correlation worth learning.
    floor = 1e-4 * x.shape[1]
    return (x * y).sum(1) / ((x.square().sum(1) + floor) * (y.square().sum(1) + floor)).sqrt()


def scd_loss(fused: Tensor, ir: Tensor, vi: Tensor) -> Tensor:
    """``2 - SCD``, the sum of the correlations of differences (Aslantas and Bendes 2015).

    What the fused image has beyond one source should look like the other source:
    ``SCD = corr(F - ir, vi) + corr(F - vi, ir)``.
    """
    return (2.0 - correlation(fused - ir, vi) - correlation(fused - vi, ir)).mean()


def visual_information_loss(
    fused: Tensor, ir: Tensor, vi: Tensor, noise: float = 2.0 / 255
) -> Tensor:
    """Negative share of each source's visual information that survives in the fused image.

    The pixel-domain VIF of Sheikh and Bovik (2006) at its two finest scales: each local window is
    modelled as ``F = g * source + v`` and the information ratio
    ``log(1 + g^2 var / (var_v + n)) / log(1 + var / n)`` is summed over the image. The gain is
    limited to 1: amplifying contrast beyond the source's is no information, and no harm.
    """
    total = fused.new_zeros(())
    for scale in range(2):
        for source in (ir, vi):
            f, s = (F.avg_pool2d(i, 2**scale) if scale else i for i in (fused, source))
            mf, ms = local_mean(f, 7), local_mean(s, 7)
            vs = (local_mean(s * s, 7) - ms * ms).clamp_min(0.0)
            vf = (local_mean(f * f, 7) - mf * mf).clamp_min(0.0)
            cov = local_mean(f * s, 7) - mf * ms
            gain = (cov / (vs + 1e-6)).clamp_min(0.0)
            rest = (vf - gain * cov).clamp_min(0.0)  # what is no multiple of the source
            gain = gain.clamp_max(1.0)
            n = noise**2
            kept = torch.log1p(gain.square() * vs / (rest + n)).sum((1, 2, 3))
            there = torch.log1p(vs / n).sum((1, 2, 3))
            total = total - (kept / (there + 1.0)).mean()
    return total / 2


def contrast_loss(fused: Tensor, wanted: Tensor, faint: float = 0.03) -> Tensor:
    """Share of the wanted local contrast that is missing, at structures of 4 to 32 pixels.

    ``mean max(|d_T| - sign(d_T) d_F, 0) / (|d_T| + faint)`` with d the difference of a place's
    mean and that of its surroundings: the same relative loss for a faint object as for a strong
    one, and none for more contrast than wanted. This is `hidden` of evaluation.visibility, made
    smooth.

    Args:
        faint: contrast in [0, 1] under which structure counts less.
    """
    total = fused.new_zeros(())
    scales = 0
    pair = torch.cat((fused, wanted), 1)
    for _ in range(4):
        if min(pair.shape[-2:]) < 16:
            break
        pair = F.avg_pool2d(pair, 2)
        around = F.avg_pool2d(pair, 5, 1, 2, count_include_pad=False)
        d_fused, d_wanted = (pair - around).chunk(2, 1)
        missing = (d_wanted.abs() - d_wanted.sign() * d_fused).clamp_min(0.0)
        total = total + (missing / (d_wanted.abs() + faint)).mean()
        scales += 1
    return total / max(scales, 1)


@dataclass(frozen=True)
class Target:
    """What a fused image should follow, `[B, 1, H, W]` and the gradient `[B, 2, H, W]`."""

    intensity: Tensor
    gradient: Tensor


class FusionTarget(nn.Module):
    """Per-pixel intensity and gradient that a fused image should show.

    A target that only raises the visible image towards thermal hides what is white on white (a man
    in glare) and what the two cameras show in opposite polarity (a dark coat on snow, warm inside).
    Here the intensity is :class:`fusion_models.layers.MultiScaleFusion` from the finest band on, in
    which the stronger contrast survives at every scale, and the gradient the stronger source's.

    Args:
        noise: thermal gradients below this (per pixel, [0, 1] scale) count as sensor noise.
        gain: factor on the target gradient; a little over 1 counters the blur of small networks.
    """

    def __init__(self, noise: float = 0.006, gain: float = 1.0):
        super().__init__()
        self.noise, self.gain = noise, gain
        self.fusion = MultiScaleFusion()

    @torch.no_grad()
    def forward(self, ir: Tensor, vi: Tensor) -> Target:
        g_ir, g_vi = sobel(ir), sobel(vi)
        # Noise floor: thermal sensors print lines and grain into flat regions such as the sky.
        m_ir = (g_ir.square().sum(1, keepdim=True).sqrt() - self.noise).clamp_min(0.0)
        m_vi = g_vi.square().sum(1, keepdim=True).sqrt()
        gradient = self.gain * stronger(g_ir, g_vi, m_ir, m_vi)
        return Target(self.fusion(torch.cat((ir, vi), 1)), gradient)
