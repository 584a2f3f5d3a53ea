# SPDX-License-Identifier: AGPL-3.0-only
"""Moves the constants of the target that all methods follow by gradient, on training pairs.

    python training/calibrate_target.py output=runs/target
    python training/compare_targets.py constants=runs/target.json    # measures them

The target is `layers.MultiScaleFusion`, no network. Each step takes one pair of each set. What is
made small: the share of labelled objects (exact masks where a set has them, else boxes) that is
softly lost, the visual information of both sources that is missing, the distance to the gradient of
the stronger source, the share of the image where structure is softly hidden, 2 - SCD, and the
distance from the start. The constants of bands 0 and 1, FAINT, LOW and HIGH stay.

Images wider than 400 pixels are halved, and taken as an image of that size or as the halved one of
the full size, as in the output's centre: objects are to stay at both.

It prints the constants before and after. Nothing of the package changes: measure them on validation
pairs, look at pictures, then write them into `layers.py`. Settings as `key=value`:

    data      'auto', or folders of sets with commas, as made by
              `python -m fusion_ros.cameras.street.export <folder>/simulated/train`
    sets      with their split, with commas ('': the split train of all sets)
    limit     pairs of each set, evenly spaced (0: all). Of a labelled set, pairs without an object
              that a source shows are then left out
    start     JSON file of an earlier output to start from ('': the constants of the class)
    max_steps, lr   number of steps; size of one in units of each constant's scale
    lost, information, gradient, hidden, scd, pull   weights of the terms
    seed, threads   of the order of pairs; of PyTorch (0: its default)
    output    writes <output>.json; '' prints only
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from compare_targets import MULTIPLE, check_size, read_constants, replace_constants
from torch import Tensor
from tqdm import trange

from fusion_models.evaluation.objects import Objects, labelled_objects
from fusion_models.evaluation.visibility import LEAST_CONTRAST, Region
from fusion_models.files import write_text
from fusion_models.hardware import keep_freed_memory
from fusion_models.layers import MultiScaleFusion
from fusion_models.losses import scd_loss, sobel, stronger, visual_information_loss
from fusion_models.pairs import DataError, PairSet, find_sets
from fusion_models.settings import (
    ConfigError,
    check_counts,
    merge_settings,
    result_files,
    show_help,
)

TERMS = {
    "lost": 1.5, "information": 0.7, "gradient": 6.0, "hidden": 0.5, "scd": 0.1, "pull": 0.02,
}  # fmt: skip
DEFAULTS = {
    "data": "auto", "sets": "", "limit": 0, "start": "", "max_steps": 200, "lr": 0.05, **TERMS,
    "seed": 0, "threads": 0, "output": "",
}  # fmt: skip
BY_BAND = ("GAIN", "BOOST", "STRONG", "CHOICE", "FLOOR", "LIMIT")
"""Constants with one value for each band; the first two stay, their bands are texture and noise."""
ADDED = ("WARM", "MILD", "COLD", "BRIGHT", "DARK")
"""Constants that are added to a logarithm; 0 is a value like others."""
SHARES = ("CHOICE", "MIX", "BASE", "UNLIMITED", "WHOLE")
"""Constants in [0, 1]: with UNLIMITED over 1, thermal would be amplified without bound."""
STEPS = {"LEVEL": 0.1, "BRIGHTNESS": 0.1, "SILHOUETTE": 0.03, "BACKGROUND": 0.1}
"""Middle and width of steps, by the scale of the middle."""
FREE = (
    *BY_BAND, *ADDED, *STEPS, "MIX", "BASE", "UNLIMITED", "WHOLE", "OPPOSED", "FIRM", "OWN",
    "SHARED", "WARMTH",
)  # fmt: skip
LARGE = 400
"""Images wider than this are halved."""


class Constants:
    """Constants of the target as tensors that can be moved, each in units of its own scale."""

    def __init__(self, start: Mapping[str, object]):
        fusion = MultiScaleFusion()
        replace_constants(fusion, start)
        self.start = {name: torch.tensor(getattr(fusion, name)).float() for name in FREE}
        self.moved = {
            name: torch.zeros_like(value, requires_grad=True) for name, value in self.start.items()
        }
        self._scale = {name: self._scale_of(name) for name in FREE}

    def _scale_of(self, name: str) -> Tensor:
        value = self.start[name]
        if name in ADDED or name == "WHOLE":
            return torch.full_like(value, 0.5)
        if name == "OPPOSED":
            return torch.ones_like(value)
        scale = value.abs().clamp_min(0.002)
        if name in STEPS:
            scale[0] = STEPS[name]
        return scale

    def values(self) -> dict[str, Tensor]:
        """The constants where they are now, each within its range."""
        found = {}
        for name, start in self.start.items():
            value = start + self._scale[name] * self.moved[name]
            if name in SHARES:
                value = value.clamp(0.0, 1.0)
            elif name not in ADDED:
                # Widths, limits and factors: a divisor must stay away from 0.
                value = torch.maximum(value, 0.1 * start.abs())
            found[name] = value
        return found

    def hold_fine_bands(self) -> None:
        """Take the gradient from the constants of bands 0 and 1."""
        for name in BY_BAND:
            self.moved[name].grad[:2] = 0.0

    def pull(self) -> Tensor:
        """Squared distance from the start."""
        return sum(value.square().sum() for value in self.moved.values())


@dataclass(frozen=True)
class Sample:
    """A pair and its objects: images `(H, W)` uint8, contrast of the better source in [0, 1]."""

    ir: np.ndarray
    vi: np.ndarray
    objects: Sequence[tuple[Region, float]]


def read_samples(pair_set: PairSet) -> list[Sample]:
    """Pairs of a set with the objects that a source shows; of a labelled set, those with any.

    Raises:
        DataError: a pair or label cannot be read, or no pair of a labelled set shows an object.
    """
    labels = labelled_objects(pair_set)
    found = []
    for pair in pair_set:
        check_size(pair_set.name, pair)
        objects = []
        for region in labels.get(pair.stem, Objects()).regions(pair.ir.shape):
            contrast = max(
                region.contrast(image.astype(np.float32)) for image in (pair.ir, pair.vi)
            )
            if contrast >= LEAST_CONTRAST:
                objects.append((region, contrast / 255.0))
        if objects or not labels:
            found.append(Sample(pair.ir, pair.vi, objects))
    if not found:
        raise DataError(
            f"{pair_set.name}: no source shows any labelled object of its {len(pair_set)} pairs; "
            "raise limit, or leave the set out"
        )
    return found


def softly_lost(fused: Tensor, objects: Sequence[tuple[Region, float]]) -> Tensor:
    """Share of objects of whose contrast too little is kept, with a smooth step.

    The step is at .62 instead of the .5 that counts as lost, so that objects are moved well beyond.

    Args:
        fused: `(H, W)` in [0, 1], of the size that the regions are of.
    """
    total = fused.new_zeros(())
    for region, contrast in objects:
        inside = fused[region.window]
        core, ring = (
            inside[torch.from_numpy(where)].mean() for where in (region.core, region.ring)
        )
        total = total + torch.sigmoid((0.62 - (core - ring).abs() / contrast) / 0.12)
    return total / max(len(objects), 1)


def softly_hidden(fused: Tensor, ir: Tensor, vi: Tensor) -> Tensor:
    """`hidden` of evaluation.visibility, with a smooth step, at 5 octaves; `[B, 1, H, W]`."""

    def around(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)

    images, scales = torch.cat((fused, ir, vi), 1), []
    for _ in range(5):
        if min(images.shape[-2:]) < 2:
            break
        images = F.avg_pool2d(images, 2)
        d_fused, d_ir, d_vi = (images - around(images)).chunk(3, 1)
        e_ir, e_vi = around(d_ir.square()), around(d_vi.square())
        better = torch.maximum(e_ir, e_vi)
        shared = torch.where(e_ir >= e_vi, around(d_fused * d_ir), around(d_fused * d_vi))
        structure = (better > 0.02**2).float()
        share = shared.abs() / (better + 1e-5)
        scales.append((torch.sigmoid((0.55 - share) / 0.1) * structure).mean())
    return torch.stack(scales).mean()


def terms_of(values: Mapping[str, Tensor], sample: Sample, first: int) -> dict[str, Tensor]:
    """Terms of the loss of one pair but the pull.

    Args:
        first: first band of the target where the image is halved; else it is 0.
    """
    fusion = MultiScaleFusion()
    for name, value in values.items():
        setattr(fusion, name, value)
    planes = torch.from_numpy(np.stack((sample.ir, sample.vi))[None].astype(np.float32) / 255.0)
    height, width = sample.ir.shape
    halved = width > LARGE
    if halved:
        planes, fusion.first = F.avg_pool2d(planes, 2), first
    h, w = planes.shape[-2:]
    padded = F.pad(planes, (0, -w % MULTIPLE, 0, -h % MULTIPLE), mode="replicate")
    fused = fusion(padded)[..., :h, :w]
    ir, vi = planes.chunk(2, 1)
    # Repeated pixels have the same means over objects as if these were halved.
    full = F.interpolate(fused, (height, width), mode="nearest") if halved else fused
    wanted = stronger(sobel(ir), sobel(vi))
    return {
        "lost": softly_lost(full[0, 0], sample.objects),
        "information": visual_information_loss(fused, ir, vi),
        "gradient": (sobel(fused) - wanted).abs().mean(),
        "hidden": softly_hidden(fused, ir, vi),
        "scd": scd_loss(fused, ir, vi),
    }


def calibrate(config, sets: Mapping[str, list[Sample]], constants: Constants) -> list[dict]:
    """Move the constants; return the terms of each step, by `set term`."""
    optimiser = torch.optim.Adam(list(constants.moved.values()), lr=config.lr, betas=(0.9, 0.98))
    choose = random.Random(config.seed)
    for samples in sets.values():
        choose.shuffle(samples)
    history = []
    for step in trange(config.max_steps, desc="calibrate", disable=None):
        progress = step / config.max_steps
        for group in optimiser.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 20) * max(0.02, 1.0 - progress)
        optimiser.zero_grad()
        history.append({})
        for name, samples in sets.items():
            # Each pair's graph is freed before the next one is made.
            first = choose.choice((0, 1, 1))
            terms = terms_of(constants.values(), samples[step % len(samples)], first)
            sum(config[term] * value for term, value in terms.items()).backward()
            history[-1] |= {f"{name} {term}": value.item() for term, value in terms.items()}
        (config.pull * constants.pull()).backward()
        constants.hold_fine_bands()
        torch.nn.utils.clip_grad_norm_(constants.moved.values(), 2.0)
        optimiser.step()
    return history


def as_numbers(values: Mapping[str, Tensor]) -> dict[str, object]:
    """Constants as numbers and lists, to 4 decimals."""
    return {name: np.round(value.tolist(), 4).tolist() for name, value in values.items()}


def summed_up(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Means of each term over the first and the last quarter of the steps."""
    quarter = max(len(history) // 4, 1)
    means: dict[str, dict[str, float]] = defaultdict(dict)
    for part, steps in (("first quarter", history[:quarter]), ("last quarter", history[-quarter:])):
        for key in history[0]:
            means[key][part] = round(float(np.mean([one[key] for one in steps])), 4)
    return dict(means)


def check(config) -> None:
    """Refuse settings out of range with ConfigError."""
    check_counts(config, "limit", "threads", *TERMS)
    if config.max_steps < 1:
        raise ConfigError(f"max_steps={config.max_steps}: expected 1 or more")
    if not config.lr > 0:
        raise ConfigError(f"lr={config.lr}: expected more than 0")


def main(arguments: list[str]) -> int:
    """Move the constants and print them; return 0, or 2 for settings that cannot be used."""
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        check(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        torch.set_flush_denormal(True)
        constants = Constants(read_constants(config.start) if config.start else {})
        names = [name for name in str(config.sets).split(",") if name]
        found = find_sets(config.data, names, "" if names else "train", limit=config.limit)
        sets = {one.name: read_samples(one) for one in found}
        files = result_files(config.output, ".json")
        history = calibrate(config, sets, constants)
    except (ConfigError, DataError) as error:
        print(f"calibrate_target.py: {error}", file=sys.stderr)
        return 2
    before, after = as_numbers(constants.start), as_numbers(constants.values())
    terms = summed_up(history)
    for name, value in after.items():
        print(f"{name}: {before[name]} -> {value}")
    for name, means in terms.items():
        print(f"{name}: {means['first quarter']} -> {means['last quarter']}")
    if files:
        record = {
            "command": " ".join(["python training/calibrate_target.py", *arguments]),
            "pairs": {name: len(samples) for name, samples in sets.items()},
            "start": before,
            "constants": after,
            "terms": terms,
        }
        write_text(files[0], json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
