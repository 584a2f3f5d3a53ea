# SPDX-License-Identifier: AGPL-3.0-only
"""Batches for a perception task: crops with colour, boxes and class maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from fusion_models.boxes import Boxes
from fusion_models.pairs import DataError, PairSet, image_files, read_class_ids

LEAST_INSIDE = 0.4
"""A box counts in a crop that holds at least this share of it."""
LEAST_PIXELS = 4.0
ABOUT_OBJECTS = 0.8
"""Share of the crops that are placed about an object, where there is one."""


@dataclass(frozen=True)
class TaskBatch:
    """One batch of crops.

    Attributes:
        ir, vi: luminances, `[B, 1, H, W]` float32 in [0, 1].
        colour: Cb and Cr of the visible image about 0, `[B, 2, H, W]` in [-0.5, 0.5].
        boxes: centre and size as shares of the crop, `[N, 4]`, of all objects of the batch.
        classes: `[N]` float32. image: number of the crop of each object, `[N]` float32.
        class_map: class ids, `[B, H, W]` int64; 255 where unknown.
        seed: for what else draws at random for this batch.
    """

    ir: Tensor
    vi: Tensor
    colour: Tensor
    boxes: Tensor
    classes: Tensor
    image: Tensor
    class_map: Tensor
    seed: int = 0

    def to(self, device) -> TaskBatch:
        """Copy on a device."""
        fields = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return TaskBatch(**fields)

    def rgb(self, luminance: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [0, 1]: a luminance in the visible image's colours (BT.601).

        Differentiable by the luminance, as the runtime colours its fused images.
        """
        cb, cr = self.colour.chunk(2, 1)
        rgb = luminance + torch.cat((1.403 * cr, -0.714 * cr - 0.344 * cb, 1.773 * cb), 1)
        return rgb.clamp(0, 1)


@dataclass(frozen=True)
class TaskSet:
    """Labelled pairs of one set in memory.

    Attributes:
        name: of the set. stems: of the pairs.
        images: `(H, W, 4)` uint8 of each pair: infrared, and Y, Cr, Cb of the visible image.
        boxes: of each pair. class_maps: `(H, W)` uint8 of each pair, or None.
    """

    name: str
    stems: list[str]
    images: list[np.ndarray]
    boxes: list[Boxes]
    class_maps: list[np.ndarray | None]

    def __len__(self) -> int:
        return len(self.images)

    def halves(self) -> tuple[TaskSet, TaskSet]:
        """Two parts by the order of stems, so that neighbours, which are alike, stay together."""
        middle = (len(self) + 1) // 2
        return self._part(slice(middle)), self._part(slice(middle, None))

    def _part(self, part: slice) -> TaskSet:
        each = (self.stems, self.images, self.boxes, self.class_maps)
        return TaskSet(self.name, *(values[part] for values in each))

    def with_other_boxes(self, seed: int) -> TaskSet:
        """The same images with the boxes of others, as a control: nothing can be learned."""
        order = np.random.default_rng(seed).permutation(len(self))
        order = np.where(order == np.arange(len(self)), np.roll(order, 1), order)
        maps = [self.class_maps[i] for i in order]
        return TaskSet(self.name, self.stems, self.images, [self.boxes[i] for i in order], maps)


def load_set(pairs: PairSet, boxes: Mapping[str, Boxes] | None = None) -> TaskSet:
    """Read the labelled pairs of a set: those with boxes, or those with a class map.

    Args:
        boxes: by stem; None takes the class maps `labels/<stem>.png` instead.
    Raises:
        DataError: no pair is labelled, or a label has another size than its pair.
    """
    labels = {} if boxes is not None else image_files(pairs.root / "labels")
    result = TaskSet(pairs.name, [], [], [], [])
    for pair in pairs:
        if pair.stem not in (labels if boxes is None else boxes):
            continue
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        ycrcb = cv2.cvtColor(cv2.imread(str(pair.visible_file), flags), cv2.COLOR_BGR2YCrCb)
        class_map = None
        if boxes is None:
            class_map = read_class_ids(labels[pair.stem])
            if class_map.shape != pair.ir.shape:
                raise DataError(f"{labels[pair.stem]}: {class_map.shape}, its pair {pair.ir.shape}")
        result.stems.append(pair.stem)
        result.images.append(np.dstack((pair.ir, ycrcb)))
        result.boxes.append(boxes[pair.stem] if boxes is not None else Boxes.empty())
        result.class_maps.append(class_map)
    if not len(result):
        what = "boxes" if boxes is not None else f"labels in {pairs.root / 'labels'}"
        raise DataError(f"{pairs.name}: no {what}")
    return result


class TaskSampler:
    """Endless batches of crops about objects, mirrored and dimmed at random.

    Args:
        sets: to draw from, by their number of pairs.
        crop: side of the crops in pixels, a multiple of 32. batch_size: crops in a batch.
        seed: a batch is a function of it and its number, so that runs can resume.
    """

    def __init__(
        self, sets: Sequence[TaskSet], crop: int = 160, batch_size: int = 4, seed: int = 0
    ):
        self.sets, self.crop, self.batch_size, self.seed = list(sets), crop, batch_size, seed
        sizes = np.array([len(s) for s in sets], float)
        self.shares = sizes / sizes.sum()

    def batch(self, number: int) -> TaskBatch:
        """The batch of this number; equal numbers give equal batches."""
        rng = np.random.default_rng((self.seed, number))
        planes, maps, boxes, classes, image = [], [], [], [], []
        for index in range(self.batch_size):
            plane, class_map, found = self._crop(rng)
            planes.append(plane)
            maps.append(class_map)
            centre = (found.corners[:, :2] + found.corners[:, 2:]) / 2
            boxes.append(np.hstack((centre, found.corners[:, 2:] - found.corners[:, :2])))
            classes.append(found.classes.astype(np.float32))
            image.append(np.full(len(found), index, np.float32))
        stack = torch.from_numpy(np.stack(planes))
        return TaskBatch(
            stack[:, 0:1], stack[:, 1:2], stack[:, [3, 2]] - 128 / 255,
            torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
            torch.from_numpy(np.concatenate(classes)), torch.from_numpy(np.concatenate(image)),
            torch.from_numpy(np.stack(maps)).long(), int(rng.integers(2**31)),
        )  # fmt: skip

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Boxes]:
        chosen = self.sets[rng.choice(len(self.sets), p=self.shares)]
        number = rng.integers(len(chosen))
        image, boxes, class_map = (
            values[number] for values in (chosen.images, chosen.boxes, chosen.class_maps)
        )
        height, width = image.shape[:2]
        # A square picture of 128 pixels was squeezed from 4:3.
        wide = width if width != height or height > 200 else height * 4 / 3
        scale = max(1.0, self.crop / min(height, wide))
        shape = (round(wide * scale), round(height * scale))
        if shape != (width, height):
            image = cv2.resize(image, shape, interpolation=cv2.INTER_LINEAR)
            if class_map is not None:
                class_map = cv2.resize(class_map, shape, interpolation=cv2.INTER_NEAREST)
        width, height = shape
        corners = boxes.in_pixels(width, height)
        limits = np.array([width - self.crop, height - self.crop])
        if len(boxes) and rng.random() < ABOUT_OBJECTS:
            left, top, right, bottom = corners[rng.integers(len(boxes))]
            middle = np.array([(left + right) / 2, (top + bottom) / 2])
            corner = middle - self.crop * rng.uniform(0.25, 0.75, 2)
            x, y = np.clip(corner, 0, limits).astype(int)
        else:
            x, y = rng.integers(limits + 1)
        window = np.s_[y : y + self.crop, x : x + self.crop]
        plane = image[window].transpose(2, 0, 1).astype(np.float32) / 255
        ids = np.full((self.crop, self.crop), 255, np.uint8)
        if class_map is not None:
            ids = class_map[window]
        inside = boxes_in_window(boxes, corners, x, y, self.crop)
        if rng.random() < 0.5:  # objects stand upright, so crops are mirrored but not turned
            plane, ids = plane[:, :, ::-1], ids[:, ::-1]
            flipped = inside.corners.copy()
            flipped[:, [0, 2]] = 1 - inside.corners[:, [2, 0]]
            inside = Boxes(inside.classes, flipped)
        plane = np.ascontiguousarray(plane)
        for source in range(2):
            if rng.random() < 0.3:
                plane[source] *= rng.uniform(0.6, 1.0)
        return plane, np.ascontiguousarray(ids), inside


def boxes_in_window(boxes: Boxes, corners: np.ndarray, x: int, y: int, side: int) -> Boxes:
    """Boxes that a square window shows, clipped to it, as shares of it.

    Args:
        corners: of the boxes in pixels. x, y, side: of the window in pixels.
    """
    moved = corners - np.float32([x, y, x, y])
    clipped = moved.clip(0, side)
    sizes = clipped[:, 2:] - clipped[:, :2]
    whole = np.maximum((moved[:, 2:] - moved[:, :2]).prod(1), 1e-6)
    kept = (sizes.prod(1) / whole >= LEAST_INSIDE) & (sizes >= LEAST_PIXELS).all(1)
    return Boxes(boxes.classes[kept], (clipped[kept] / side).astype(np.float32))
