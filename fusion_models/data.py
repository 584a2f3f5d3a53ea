# SPDX-License-Identifier: AGPL-3.0-only
"""Training data: pairs held in memory, and reproducible batches of augmented crops of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fusion_models.pairs import (
    DataError,
    PairSet,
    image_files,
    read_class_ids,
    read_luminance,
    shorten,
)

__all__ = ["Batch", "CropSampler", "DataError", "LoadedPairs"]

LABEL_CLASSES = range(1, 9)
"""Class ids of label images in MFNet and MSRS: 1 car, 2 person, 3 bike, 4 curve, 5 car stop,
6 guardrail, 7 colour cone, 8 bump."""
UNLABELLED, IGNORED = 0, 255


@dataclass(frozen=True)
class Batch:
    """One training batch; all tensors `[B, 1, H, W]` float32.

    Attributes:
        ir: thermal luminance in [0, 1].
        vi: visible luminance in [0, 1].
        mask: 1 on salient objects (persons, vehicles) where labels exist, else 0.
        seed: for what else an objective draws at random for this batch.
        noise: `[B, 2, H, W]`, added to `ir` and `vi` where a network takes them, or None.
    """

    ir: Tensor
    vi: Tensor
    mask: Tensor
    seed: int = 0
    noise: Tensor | None = None

    @property
    def fed(self) -> tuple[Tensor, Tensor]:
        """What the network takes: `ir` and `vi` with the noise, in [0, 1]."""
        if self.noise is None:
            return self.ir, self.vi
        ir, vi = self.noise.chunk(2, 1)
        return (self.ir + ir).clamp(0, 1), (self.vi + vi).clamp(0, 1)

    def to(self, device) -> Batch:
        """Copy of the batch on a device; copies from pinned memory do not wait."""
        planes = [x.to(device, non_blocking=True) for x in (self.ir, self.vi, self.mask)]
        noise = None if self.noise is None else self.noise.to(device, non_blocking=True)
        return Batch(*planes, self.seed, noise)


class LoadedPairs:
    """All pairs of a set, held in memory as uint8.

    Args:
        pairs: the set; its labels, where there are any, are `<root>/labels/<stem>.png`, class ids.
        salient: class ids that count as salient objects; default: car and person of MFNet, MSRS.
    Attributes:
        name, root, stems: of the set.
        images: `(ir, vi, mask)` of each pair, `(H, W)` uint8; mask is 1 on salient objects and None
            without a label.
    Raises:
        DataError: unequal sizes, unreadable files, wrong channel counts, labels without any known
            class; all are named.
    """

    def __init__(self, pairs: PairSet, salient: tuple[int, ...] = (1, 2)):
        self.name, self.root, self.stems = pairs.name, pairs.root, pairs.stems
        labels = image_files(pairs.root / "labels")
        known = {*LABEL_CLASSES, *salient}
        self.images: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
        problems = []
        for ir_path, vi_path in pairs.files:
            try:
                ir, vi = read_luminance(ir_path, thermal=True), read_luminance(vi_path)
                mask = None
                if label := labels.get(ir_path.stem):
                    classes = read_class_ids(label)
                    ids = set(np.unique(classes).tolist()) - {UNLABELLED, IGNORED}
                    if ids and not ids & known:
                        found = shorten([*map(str, sorted(ids))])
                        problems.append(
                            f"{label}: none of its class ids {found} is known; expected some of "
                            f"{min(known)} to {max(known)}, or give salient=<ids>"
                        )
                    mask = np.isin(classes, salient).astype(np.uint8)
            except DataError as error:
                problems.append(str(error))
                continue
            sizes = {i.shape[::-1] for i in (ir, vi, mask) if i is not None}
            if len(sizes) > 1:
                problems.append(f"{ir_path.stem}: sizes differ within the pair: {sorted(sizes)}")
            self.images.append((ir, vi, mask))
        if problems:
            more = f"\n  ... and {len(problems) - 12} more" if len(problems) > 12 else ""
            raise DataError(f"{self.root}:\n  " + "\n  ".join(problems[:12]) + more)

    def __len__(self) -> int:
        return len(self.images)


class CropSampler:
    """Endless batches of augmented random crops from several data sets mixed by weight.

    Args:
        folders: the data sets.
        crop: side of the square crops in pixels; smaller images are enlarged to it.
        batch_size: crops in a batch.
        weights: relative frequency of each data set (None: by its number of pairs).
        seed: the sequence of batches is a function of (seed, rank, step).
        augment: whether to flip and turn crops.
        rank: of the process, so that several draw different batches.
        gains: whether augmentation draws a gain for each modality.
        least_scale: pairs are made smaller, down to this share of their size (1: never), as far as
            they stay as large as a crop.
        noise: greatest standard deviation of the batch's noise, grey levels of 255 (0: none).
    """

    def __init__(
        self,
        folders: list[LoadedPairs],
        crop: int = 128,
        batch_size: int = 8,
        weights: list[float] | None = None,
        seed: int = 0,
        augment: bool = True,
        rank: int = 0,
        gains: bool = True,
        noise: float = 0.0,
        least_scale: float = 1.0,
    ):
        if not folders:
            raise DataError("no training data: give data=<folder with ir/ and vi/>[,<another>...]")
        self.folders, self.crop, self.batch_size = folders, crop, batch_size
        weights = np.asarray(weights or [len(f) for f in folders], float)
        if len(weights) != len(folders):
            raise DataError(f"{len(weights)} weights for {len(folders)} data roots")
        self.weights = weights / weights.sum()
        self.seed, self.augment, self.rank, self.gains = seed, augment, rank, gains
        self.noise, self.least_scale = noise, least_scale

    def batch(self, step: int) -> Batch:
        """The batch of a training step; equal steps give equal batches, so that runs can resume."""
        rng = np.random.default_rng((self.seed, self.rank, step))
        crops = [self._crop(rng) for _ in range(self.batch_size)]
        stack = torch.from_numpy(np.stack(crops))
        seed = int(rng.integers(2**31))
        noise = torch.from_numpy(self._noise(rng)) if self.noise else None
        if torch.cuda.is_available():
            stack = stack.pin_memory()
        return Batch(stack[:, 0:1], stack[:, 1:2], stack[:, 2:3], seed, noise)

    def _noise(self, rng: np.random.Generator) -> np.ndarray:
        """Normal noise, of a strength of its own in each plane; in half of them coarser."""
        noise = np.empty((self.batch_size, 2, self.crop, self.crop), np.float32)
        for plane in noise.reshape(-1, self.crop, self.crop):
            side = self.crop // int(rng.integers(1, 3))
            grain = rng.standard_normal((side, side), np.float32)
            grain *= rng.uniform(0, self.noise / 255)
            plane[:] = cv2.resize(grain, (self.crop, self.crop))
        return noise

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        folder = self.folders[rng.choice(len(self.folders), p=self.weights)]
        ir, vi, mask = folder.images[rng.integers(len(folder))]
        size, (height, width) = self.crop, ir.shape
        scale = size / min(height, width)
        if scale < 1.0:
            least = max(scale, self.least_scale)
            scale = float(np.exp(rng.uniform(np.log(least), 0.0))) if least < 1.0 else 1.0
        if scale != 1.0:
            shape = (max(size, round(width * scale)), max(size, round(height * scale)))
            how = cv2.INTER_LINEAR if scale > 1.0 else cv2.INTER_AREA
            ir, vi = (cv2.resize(i, shape, interpolation=how) for i in (ir, vi))
            if mask is not None:
                mask = cv2.resize(mask, shape, interpolation=cv2.INTER_NEAREST)
            height, width = ir.shape
        y, x = rng.integers(height - size + 1), rng.integers(width - size + 1)
        window = np.s_[y : y + size, x : x + size]
        planes = np.zeros((3, size, size), np.float32)
        planes[0], planes[1] = ir[window], vi[window]
        planes[:2] /= 255.0
        if mask is not None:
            planes[2] = mask[window]
        if self.augment:
            planes = np.rot90(planes, rng.integers(4), (1, 2))
            if rng.random() < 0.5:
                planes = planes[:, :, ::-1]
            planes = np.ascontiguousarray(planes)
            for plane in planes[:2] if self.gains else ():
                # Cameras differ in gain; else the network overfits the brightness of one set.
                if rng.random() < 0.3:
                    plane *= rng.uniform(0.6, 1.0)
        return np.ascontiguousarray(planes)
