# SPDX-License-Identifier: AGPL-3.0-only
"""Image-pair data sets by folder convention `<root>/{ir,vi}`, checked, mixed and augmented."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


class DataError(ValueError):
    """A data folder is not what training needs; the message names every problem found."""


@dataclass(frozen=True)
class Batch:
    """One training batch; all tensors `[B, 1, H, W]` float32.

    Attributes:
        ir: thermal luminance in [0, 1].
        vi: visible luminance in [0, 1].
        mask: 1 on salient objects (persons, vehicles) where labels exist, else 0.
        seed: of whatever else an objective draws at random for this batch.
    """

    ir: Tensor
    vi: Tensor
    mask: Tensor
    seed: int = 0

    def to(self, device) -> Batch:
        """The same on a device; copies from pinned memory do not wait."""
        planes = (x.to(device, non_blocking=True) for x in (self.ir, self.vi, self.mask))
        return Batch(*planes, self.seed)


def _files(folder: Path) -> dict[str, Path]:
    return (
        {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in EXTENSIONS}
        if folder.is_dir()
        else {}
    )


def read_luminance(path: Path, thermal: bool = False) -> np.ndarray:
    """Luminance of an image file as `(H, W)` uint8 (BT.601 for colour); DataError if unreadable.

    16 bit become 8 by their upper half; thermal ones, whose sensors fill a small part of the range,
    linearly between their percentiles 1 and 99, as the runtime's gain control does it.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f"{path}: cannot be read as an image; replace or remove the file")
    if image.dtype == np.uint16 and thermal and image.ndim == 2:
        low, high = np.percentile(image, (1, 99))
        scaled = (image - low) * (255.0 / max(high - low, 1.0))
        image = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    elif image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"{path}: pixels are {image.dtype}; expected 8 or 16 bit")
    if image.ndim == 2:
        return image
    if image.shape[2] not in (3, 4):
        raise DataError(f"{path}: {image.shape[2]} channels; expected 1 (grey), 3 or 4 (colour)")
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2YCrCb)[..., 0]


def list_pairs(root: Path) -> list[tuple[Path, Path]]:
    """`(ir, vi)` files of a folder in order of their stems; DataError naming what does not fit."""
    root = Path(root)
    ir, vi = _files(root / "ir"), _files(root / "vi")
    for name, found in (("ir", ir), ("vi", vi)):
        if not found:
            raise DataError(
                f"{root / name}: no images; expected {root}/ir and {root}/vi with equal stems "
                f"({', '.join(EXTENSIONS)})"
            )
    lonely = sorted(set(ir) ^ set(vi))
    if lonely:
        raise DataError(
            f"{root}: {len(lonely)} stems without a partner in the other folder: "
            f"{', '.join(lonely[:8])}{' ...' if len(lonely) > 8 else ''}"
        )
    return [(ir[s], vi[s]) for s in sorted(ir)]


class PairFolder:
    """All pairs of one root, held in memory as uint8.

    Args:
        root: folder with `ir/`, `vi/` and optionally `labels/` (class ids per pixel).
        limit: use at most this many pairs, evenly spaced (0: all).
        salient: label ids that count as salient objects; the default is car and person in MFNet, MSRS.
    Raises:
        DataError: unequal stems or sizes, unreadable files, wrong channel counts; all are named.
    """

    def __init__(self, root: str | Path, limit: int = 0, salient: tuple[int, ...] = (1, 2)):
        self.root = Path(root)
        pairs = list_pairs(self.root)
        if limit and limit < len(pairs):
            pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, limit).astype(int)]
        labels = _files(self.root / "labels")
        self.stems = [ir.stem for ir, _ in pairs]
        self.images: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
        problems = []
        for ir_path, vi_path in pairs:
            try:
                ir, vi = read_luminance(ir_path, thermal=True), read_luminance(vi_path)
                mask = None
                if ir_path.stem in labels:
                    mask = np.isin(read_luminance(labels[ir_path.stem]), salient).astype(np.uint8)
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
    """Endless batches of augmented random crops from several roots mixed by weight.

    Args:
        folders: data sets; weights: relative frequency of each (None: by number of pairs).
        crop: side of the square crops in pixels; smaller pictures are enlarged to it.
        batch_size: crops a batch; seed: the sequence is a function of (seed, step).
        augment: flips, quarter turns, and a random gain of each modality.
    """

    def __init__(
        self,
        folders: list[PairFolder],
        crop: int = 128,
        batch_size: int = 8,
        weights: list[float] | None = None,
        seed: int = 0,
        augment: bool = True,
        rank: int = 0,
    ):
        if not folders:
            raise DataError("no training data: give data=<root>[,<root>...] with ir/ and vi/ each")
        self.folders, self.crop, self.batch_size = folders, crop, batch_size
        weights = np.asarray(weights or [len(f) for f in folders], float)
        if len(weights) != len(folders):
            raise DataError(f"{len(weights)} weights for {len(folders)} data roots")
        self.weights = weights / weights.sum()
        self.seed, self.augment, self.rank = seed, augment, rank

    def batch(self, step: int) -> Batch:
        """The batch of a training step: the same for the same step, so that resuming continues."""
        rng = np.random.default_rng((self.seed, self.rank, step))
        crops = [self._crop(rng) for _ in range(self.batch_size)]
        stack = torch.from_numpy(np.stack(crops))
        if torch.cuda.is_available():
            stack = stack.pin_memory()
        return Batch(stack[:, 0:1], stack[:, 1:2], stack[:, 2:3], int(rng.integers(2**31)))

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        folder = self.folders[rng.choice(len(self.folders), p=self.weights)]
        ir, vi, mask = folder.images[rng.integers(len(folder))]
        size, (height, width) = self.crop, ir.shape
        if min(height, width) < size:
            scale = size / min(height, width)
            shape = (max(size, round(width * scale)), max(size, round(height * scale)))
            ir, vi = (cv2.resize(i, shape, interpolation=cv2.INTER_LINEAR) for i in (ir, vi))
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
            for plane in planes[:2]:
                # Cameras differ in gain: without this, brightness of one data set is learnt by heart.
                if rng.random() < 0.3:
                    plane *= rng.uniform(0.6, 1.0)
        return np.ascontiguousarray(planes)


def find_roots(data: str | list[str]) -> list[Path]:
    """Training roots, each with `ir/` and `vi/`, below what the user named.

    Args:
        data: pair folders or folders of sets (`<data>/<set>/train/{ir,vi}`), comma separated or a
            list; 'auto' tries $FUSION_DATA, `data`, `../shared/data` and the current folder.
    Raises:
        DataError: nothing found; says where it looked and what it expected.
    """
    if data == "auto":
        tried = [p for p in (os.environ.get("FUSION_DATA"), "data", "../shared/data", ".") if p]
        for place in tried:
            if roots := _roots_below(Path(place)):
                return roots
        raise DataError(
            f"no training data in {', '.join(tried)}; give data=<folder with ir/ and vi/> or "
            "data=<folder of sets>/ with <set>/train/{ir,vi}"
        )
    places = [p for p in data.split(",") if p] if isinstance(data, str) else list(data)
    roots = []
    for place in places:
        found = _roots_below(Path(place))
        if not found:
            raise DataError(
                f"{place}: neither {place}/ir and {place}/vi nor {place}/<set>/train/{{ir,vi}} exist"
            )
        roots += found
    return roots


def _roots_below(place: Path) -> list[Path]:
    candidates = [place, place / "train", *sorted(place.glob("*/train"))]
    return [c for c in candidates if (c / "ir").is_dir() and (c / "vi").is_dir()]
