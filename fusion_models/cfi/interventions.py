# SPDX-License-Identifier: AGPL-3.0-only
"""Interventions on the inputs that cfi is trained under: masked blocks and missing modalities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 16  # side of a masked block in pixels
BLOCKS = (1, 6)  # fewest and most blocks of a mask
KINDS = ("complementary", "random", "no_ir", "no_vi")


@dataclass(frozen=True)
class Intervention:
    """Inputs after an intervention: `ir`, `vi` `[B, 1, H, W]`."""

    kind: str
    ir: Tensor
    vi: Tensor


def block_mask(shape: torch.Size, generator: torch.Generator | None = None, free=None) -> Tensor:
    """Mask `[B, 1, H, W]` of ones with 1 to 6 blocks of 16 x 16 set to zero in each image.

    Args:
        free: mask whose zeros are already taken; the new zeros avoid them.
    """
    batch, _, height, width = shape
    rows, columns = max(height // BLOCK, 1), max(width // BLOCK, 1)
    rank = torch.rand(batch, rows * columns, generator=generator)
    if free is not None:
        rank = rank + 2.0 * (
            1.0 - free[:, 0, ::BLOCK, ::BLOCK][:, :rows, :columns].flatten(1).cpu()
        )
    count = torch.randint(BLOCKS[0], BLOCKS[1] + 1, (batch, 1), generator=generator)
    zeros = rank.argsort(1).argsort(1) < count
    grid = (~zeros).float().view(batch, 1, rows, columns)
    mask = grid.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    full = torch.ones(batch, 1, height, width)
    full[:, :, : mask.shape[2], : mask.shape[3]] = mask[:, :, :height, :width]
    return full


def intervene(ir: Tensor, vi: Tensor, kind: str, generator=None) -> Intervention:
    """Applies one of :data:`KINDS` (section 3.2): disjoint masks, one common mask, or a blank."""
    if kind == "complementary":
        first = block_mask(ir.shape, generator)
        second = block_mask(ir.shape, generator, free=first)
        return Intervention(kind, ir * first.to(ir), vi * second.to(vi))
    if kind == "random":
        mask = block_mask(ir.shape, generator).to(ir)
        return Intervention(kind, ir * mask, vi * mask)
    if kind == "no_ir":
        return Intervention(kind, torch.zeros_like(ir), vi)
    if kind == "no_vi":
        return Intervention(kind, ir, torch.zeros_like(vi))
    raise ValueError(f"intervention '{kind}': choose one of {', '.join(KINDS)}")
