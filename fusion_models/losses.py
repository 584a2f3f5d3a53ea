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


@dataclass(frozen=True)
class Target:
    """What a natural fused image should follow; see :class:`FusionTarget`."""

    intensity: Tensor
    gradient: Tensor
    weight_ir: Tensor


class FusionTarget(nn.Module):
    """Per-pixel intensity and gradient that a fused image should show.

    The pixel-wise maximum washes daylight pictures out: hot road and hot cars swallow lane marks
    and plates. Here thermal raises a pixel only where it carries information of its own: where it
    stands out from its surroundings (targets), or where the visible image shows nothing (night,
    smoke).

    Args:
        size: box in pixels of the local contrast; surround: box of the target's surroundings.
        noise: thermal gradients below this (per pixel, [0, 1] scale) count as sensor noise.
        gain: factor on the target gradient; a little over 1 counters the blur of small networks.
        contrast: how much of the intensity's difference to its surroundings is added once more.
        knee: above it, what thermal and `contrast` add rolls off towards the middle between it and
            1, so that saturated thermal keeps some drawing (1: no roll-off).
        ceiling: above it a tenth of the slope, for the visible image too: room below white costs
            the eye nothing, and what is saturated in one camera only is not over-exposed then.
        sharpness: how decidedly the stronger modality wins; higher approaches a hard choice.
        dark_bias: adds to the visible image's contrast, so that flat noise does not decide.
    """

    def __init__(
        self,
        size: int = 15,
        surround: int = 63,
        noise: float = 0.006,
        gain: float = 1.0,
        sharpness: float = 2.0,
        dark_bias: float = 0.01,
        contrast: float = 0.0,
        knee: float = 1.0,
        ceiling: float = 1.0,
    ):
        super().__init__()
        self.size, self.surround, self.noise = size, surround, noise
        self.gain, self.sharpness, self.dark_bias = gain, sharpness, dark_bias
        self.contrast, self.knee, self.ceiling = contrast, knee, ceiling

    @torch.no_grad()
    def forward(self, ir: Tensor, vi: Tensor) -> Target:
        c_ir, c_vi = local_deviation(ir, self.size), local_deviation(vi, self.size)
        # Positive contrast against the surroundings: persons, engines; not a warm road as a whole.
        hot = (ir - local_mean(ir, self.surround)).clamp_min(0.0)
        lead = torch.log((c_ir + hot + self.dark_bias) / (c_vi + self.dark_bias))
        weight = local_mean(torch.sigmoid(self.sharpness * lead), 9)  # no edge of its own
        intensity = vi + weight * (ir - vi).clamp_min(0.0)
        if self.contrast:
            away = intensity - local_mean(intensity, self.surround)
            intensity = (intensity + self.contrast * away).clamp(0.0, 1.0)
        if self.knee < 1.0:
            room = (1.0 - self.knee) / 2
            rolled = self.knee + room * torch.tanh((intensity - self.knee) / room)
            rolled = torch.maximum(rolled, torch.minimum(intensity, vi))  # lamps and sky stay
            intensity = torch.where(intensity > self.knee, rolled, intensity)
        intensity = intensity - 0.9 * (intensity - self.ceiling).clamp_min(0.0)
        g_ir, g_vi = sobel(ir), sobel(vi)
        # Noise floor: thermal sensors print lines and grain into flat regions such as the sky.
        m_ir = (g_ir.square().sum(1, keepdim=True).sqrt() - self.noise).clamp_min(0.0)
        m_vi = g_vi.square().sum(1, keepdim=True).sqrt()
        return Target(intensity, self.gain * stronger(g_ir, g_vi, m_ir, m_vi), weight)
