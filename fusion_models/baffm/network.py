# SPDX-License-Identifier: AGPL-3.0-only
"""Network of baffm: unrolled low-rank/sparse features, back-door adjustment, reconstruction.

Paper: causality-driven infrared and visible image fusion by a back-door adjustment based feature
fusion module; the extractor is LRRNet's (Li et al., TPAMI 2023).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion_models.baffm.dictionary import SceneDictionary
from fusion_models.baffm.objective import BaffmObjective
from fusion_models.baffm.paper import BaffmPaperObjective
from fusion_models.layers import ResidualTanhHead, RowThenColumnConv, SoftShrink, upsample
from fusion_models.registry import ModelCard, register_model

BLOCKS = 4
ADJUSTMENTS = ("scenes", "memory", "bias", "none")


class LowRankSparse(nn.Module):
    """Unrolled low-rank/sparse decomposition of one modality (LRRNet, eq. 9 to 11).

    ``Z_0 = S_t(conv(x))``, ``Z_k = S_t(g Z_{k-1} + up_k(x - down_k(Z_{k-1})))`` for k = 1..4; the
    first n channels are the low-rank part, the last n the sparse one.

    The threshold is positively homogeneous, ``S_t(x) = t S_1(x / t)``, so the features are kept
    divided by their thresholds: t moves into the small kernels, and one scalar soft shrinkage, an
    operator of its own in PyTorch and ONNX, does all channels in one pass over memory.

    Args:
        channels: n; the features have 2n channels. The paper's n is 128; 8 costs a sixteenth of the
            memory traffic, which is what this extractor spends its time on.
    """

    def __init__(self, channels: int = 8):
        super().__init__()
        width = 2 * channels
        self.first = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            nn.Conv2d(width, 1, 3, padding=1, bias=False) for _ in range(BLOCKS)
        )
        self.up = nn.ModuleList(
            nn.Conv2d(1, width, 3, padding=1, bias=False) for _ in range(BLOCKS)
        )
        self.threshold = nn.Parameter(torch.full((1, width, 1, 1), 0.01))
        self.memory = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Luminance `[B, 1, H, W]` to features `[B, 2n, H, W]`."""
        t = self.threshold.abs() + 1e-4  # [1, 2n, 1, 1], kept from zero by the division
        inverse = 1.0 / t.transpose(0, 1)
        z = F.softshrink(F.conv2d(x, self.first.weight * inverse, padding=1), 1.0)
        for down, up in zip(self.down, self.up):
            rest = x - F.conv2d(z, down.weight * t, padding=1)
            z = F.softshrink(self.memory * z + F.conv2d(rest, up.weight * inverse, padding=1), 1.0)
        return z * t


class FoldedLowRankSparse(nn.Module):
    """Deploy form of :class:`LowRankSparse` with every constant in the kernels.

    Kept divided by ``g^k``, the features need no multiplication by g:
    ``Y_k = S_{t / g^k}(Y_{k-1} + up_k(x - down_k(Y_{k-1})))`` with scaled kernels.
    The output is ``Y_4``; times :attr:`scale` it is the features, which belongs into what follows.
    """

    def __init__(self, trained: LowRankSparse):
        super().__init__()
        t = trained.threshold.detach().abs().flatten() + 1e-4
        g = float(trained.memory.detach())
        self.register_buffer("first", trained.first.weight.detach())
        self.down = nn.ModuleList(
            RowThenColumnConv(-d.weight.detach() * g**k) for k, d in enumerate(trained.down)
        )
        self.up = nn.ParameterList(
            u.weight.detach() / g ** (k + 1) for k, u in enumerate(trained.up)
        )
        self.shrink = nn.ModuleList(SoftShrink(t / g**k) for k in range(BLOCKS + 1))
        self.scale = g**BLOCKS

    @staticmethod
    def can_fold(trained: LowRankSparse) -> bool:
        """Whether g is safely positive, which the division by its powers asks for."""
        return 0.1 < float(trained.memory.detach()) < 10.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.shrink[0](F.conv2d(x, self.first, padding=1))
        for down, up, shrink in zip(self.down, self.up, self.shrink[1:]):
            y = shrink(F.conv2d(down(y) + x, up, padding=1) + y)
        return y


class BackdoorAdjustment(nn.Module):
    """Back-door adjusted features (eq. 4 to 6): ``X' = Wh X + Wg sum_i lambda_i z_i P(z_i)``.

    ``lambda = softmax(s cos(Wq Pool(X), Wk z_i))``. The paper divides by sqrt(d) and leaves the
    attention's sharpness to the norms of queries and keys, which then stay so small that lambda is
    uniform and the adjustment a constant. With both normalised, and with entries of fewer
    dimensions than there are entries, the logits and contexts that the module can take are
    restricted to those of the scenes. A scene is no matter of one pixel: a query is the mean of
    `pool` x `pool` pixels, and its context is brought back bilinearly.

    Args:
        channels: C of the features. dictionary: entries z_i, `[N, D]`.
        prior: P(z_i), `[N]`. dim: d of queries and keys. pool: side of a query in pixels, 1 to 8.
        sharpness: s at the beginning; it is learned.
        learned: whether the entries are learned too, which makes the module a plain memory.
    """

    def __init__(
        self,
        channels: int,
        dictionary: Tensor,
        prior: Tensor,
        dim: int = 12,
        pool: int = 8,
        sharpness: float = 8.0,
        learned: bool = False,
    ):
        super().__init__()
        entries, features = dictionary.shape
        self.query = nn.Conv2d(channels, dim, 1)
        self.key = nn.Linear(features, dim, bias=False)
        self.hidden = nn.Conv2d(channels, channels, 1, bias=False)
        self.context = nn.Linear(features, channels, bias=False)
        nn.init.dirac_(self.hidden.weight)
        if learned:
            self.dictionary = nn.Parameter(dictionary.clone())
        else:
            self.register_buffer("dictionary", dictionary.clone())
        # Scaled by N, so that a uniform prior leaves Wg at the size a convolution usually has.
        self.register_buffer("prior", prior.clone() * entries)
        self.sharpness = nn.Parameter(torch.tensor(float(sharpness)))
        self.pool = pool

    def constants(self) -> tuple[Tensor, Tensor]:
        """What the entries come down to: keys `[N, d]`, times s, and contexts `[C, N]`."""
        keys = F.normalize(self.key(self.dictionary), dim=-1) * self.sharpness
        return keys, self.context(self.dictionary * self.prior[:, None]).T

    def weights(self, x: Tensor) -> Tensor:
        """lambda, `[B, N, H / pool, W / pool]`, sums to 1 over N."""
        keys, _ = self.constants()
        return scene_weights(x, self.query.weight, self.query.bias, keys, self.pool)

    def forward(self, x: Tensor) -> Tensor:
        context = F.conv2d(self.weights(x), self.constants()[1][..., None, None])
        return self.hidden(x) + upsample(context, self.pool)


def scene_weights(x: Tensor, query: Tensor, bias: Tensor, keys: Tensor, pool: int) -> Tensor:
    """Attention of pooled features `[B, C, H, W]` over keys `[N, d]`.

    Returns `[B, N, H / pool, W / pool]`.
    """
    q = F.conv2d(F.avg_pool2d(x, pool), query, bias).float()
    q = q * torch.rsqrt(q.square().sum(1, keepdim=True) + 1e-6)
    return torch.softmax(F.conv2d(q, keys[..., None, None]), dim=1)


class FoldedAdjustment(nn.Module):
    """Deploy form of the extractor and :class:`BackdoorAdjustment` of one modality.

    Dictionary, Wk and Wg are constants by now. The output times :attr:`mix` `[2n, 2n]` is X': Wh is
    taken out of it, ``X' = Wh (X + Wh^-1 C lambda)``, and belongs into the convolution that
    follows.
    """

    def __init__(self, extract: LowRankSparse, adjust: nn.Module):
        super().__init__()
        width = extract.threshold.numel()
        fold = FoldedLowRankSparse.can_fold(extract)
        self.extract = FoldedLowRankSparse(extract) if fold else extract
        scale = self.extract.scale if fold else 1.0
        for name in ("query", "bias", "keys", "context", "hidden", "same"):
            self.register_buffer(name, None)
        self.mix = torch.eye(width) * scale
        self.pool = 1
        if isinstance(adjust, BackdoorAdjustment):
            keys, context = (c.detach() for c in adjust.constants())
            hidden = adjust.hidden.weight.detach().flatten(1) * scale
            if torch.linalg.cond(hidden) < 100:
                self.mix = hidden
                context = torch.linalg.solve(hidden.double(), context.double()).to(context)
            else:  # the inverse would magnify rounding
                self.mix = torch.eye(width)
                self.hidden = hidden[..., None, None]
            self.query = adjust.query.weight.detach() * scale
            self.bias = adjust.query.bias.detach()
            self.keys, self.context, self.pool = keys, context[..., None, None], adjust.pool
            self.same = torch.eye(width)[..., None, None]
        elif isinstance(adjust, nn.Conv2d):  # Wh and a bias alone
            self.mix = torch.eye(width)
            self.hidden, self.bias = adjust.weight.detach() * scale, adjust.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        y = self.extract(x)
        if self.keys is None:
            return y if self.hidden is None else F.conv2d(y, self.hidden, self.bias)
        weights = scene_weights(y, self.query, self.bias, self.keys, self.pool)
        # The second one changes nothing but the layout: onnxruntime's blocked convolutions take no
        # 25 channels, and what follows at full resolution stays blocked only behind a blocked one.
        context = F.conv2d(F.conv2d(weights, self.context), self.same)
        context = upsample(context, self.pool)
        return (y if self.hidden is None else F.conv2d(y, self.hidden)) + context


@register_model(
    ModelCard(
        "baffm",
        "low-rank/sparse features, back-door adjusted over a scene dictionary",
        "Ma et al., Causality-Driven Infrared and Visible Image Fusion, 2025",
    ),
    BaffmObjective,
    BaffmPaperObjective,
)
class Baffm(nn.Module):
    """Fuses `ir`, `vi` `[B, 1, H, W]` in [0, 1] to `fused` of the same shape and range.

    Args:
        channels: n of the extractor.
        adjustment: what is added to the features: 'scenes' of the dictionary (the method),
            'memory', as many entries that are learned, 'bias', one learned constant, or 'none'.
        prior: 'uniform' (the paper's 1/N) or 'frequency' of the clusters.
        dictionary: file of the scene dictionary ('' for the shipped one).
        random_entries: N of a random dictionary of the same size, to try the network without one;
            0: read it.
        pool: side of a query of the adjustment in pixels; 1 is the paper's pixel-wise query.
        regional: centre of the output, see :class:`fusion_models.layers.ResidualTanhHead`.
    """

    def __init__(
        self,
        channels: int = 8,
        adjustment: str = "scenes",
        prior: str = "uniform",
        dictionary: str = "",
        random_entries: int = 0,
        pool: int = 8,
        regional: bool = True,
    ):
        super().__init__()
        if prior not in ("uniform", "frequency"):
            raise ValueError(f"prior '{prior}': choose 'uniform' or 'frequency'")
        if adjustment not in ADJUSTMENTS:
            raise ValueError(f"adjustment '{adjustment}': choose one of {', '.join(ADJUSTMENTS)}")
        width = 2 * channels
        self.extract_ir, self.extract_vi = LowRankSparse(channels), LowRankSparse(channels)
        self.adjust_ir: nn.Module = nn.Identity()
        self.adjust_vi: nn.Module = nn.Identity()
        if adjustment == "bias":
            self.adjust_ir, self.adjust_vi = (nn.Conv2d(width, width, 1) for _ in range(2))
            for adjust in (self.adjust_ir, self.adjust_vi):
                nn.init.dirac_(adjust.weight)
                nn.init.zeros_(adjust.bias)
        elif adjustment != "none":
            if random_entries:
                ir, vi = torch.randn(2, random_entries, 12)
                uniform = torch.full((random_entries,), 1.0 / random_entries)
                scenes = SceneDictionary(ir, vi, uniform, uniform, "random")
            else:
                scenes = SceneDictionary.load(*([dictionary] if dictionary else []))

            def adjusted(z: Tensor, frequency: Tensor) -> BackdoorAdjustment:
                uniform = torch.full_like(frequency, 1.0 / len(frequency))
                p = uniform if prior == "uniform" else frequency
                learned = adjustment == "memory"
                z = torch.randn_like(z) if learned else z
                return BackdoorAdjustment(width, z, p, pool=pool, learned=learned)

            self.adjust_ir = adjusted(scenes.ir, scenes.frequency_ir)
            self.adjust_vi = adjusted(scenes.vi, scenes.frequency_vi)
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.reconstruct = nn.Conv2d(width, 1, 3, padding=1)
        self.head = ResidualTanhHead(regional)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        x_ir, x_vi = self.adjust_ir(self.extract_ir(ir)), self.adjust_vi(self.extract_vi(vi))
        return self.head(self.reconstruct(self.fuse(torch.cat((x_ir, x_vi), 1))), ir, vi)

    def deploy(self) -> nn.Module:
        """Copy with thresholds, memory, dictionary and attention matrices folded into kernels."""
        folded = copy.deepcopy(self)
        kernels = []
        for modality, kernel in zip(("ir", "vi"), self.fuse[0].weight.detach().chunk(2, 1)):
            adjusted = FoldedAdjustment(
                getattr(self, f"extract_{modality}"), getattr(self, f"adjust_{modality}")
            )
            setattr(folded, f"extract_{modality}", adjusted)
            setattr(folded, f"adjust_{modality}", nn.Identity())
            kernels.append(torch.einsum("oihw,ij->ojhw", kernel, adjusted.mix))
        folded.fuse[0].weight = nn.Parameter(torch.cat(kernels, 1))
        folded.reconstruct = RowThenColumnConv(self.reconstruct.weight, self.reconstruct.bias)
        return folded
