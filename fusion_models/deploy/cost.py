# SPDX-License-Identifier: AGPL-3.0-only
"""What a network costs: parameters and multiply-accumulates, counted without running it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fusion_models.registry import count_parameters, create_model

__all__ = ["Cost", "cost_of", "count_macs"]


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-accumulates of a network as it is trained.

    Attributes:
        parameters: trainable scalars.
        macs: multiply-accumulates of one pair, by side of the square images in pixels.
    """

    parameters: int
    macs: dict[int, float]


def count_macs(model: nn.Module, height: int, width: int) -> float:
    """Multiply-accumulates of convolutions and matrix products for one pair of images.

    The papers call them FLOPs; a multiplication and an addition are one here. Element-wise
    operations, pooling and resizing do not count.

    Args:
        model: on the device ``meta``, so that nothing is computed, or on another.
    """
    device = next(model.parameters()).device
    pair = torch.empty(2, 1, 1, height, width, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*pair)
    return counter.get_total_flops() / 2


def cost_of(method: str, sizes: tuple[int, ...] = (256, 512), **settings) -> Cost:
    """Cost of a registered method with these settings of its network, at square sizes."""
    model = create_model(method, **settings).to("meta")
    return Cost(count_parameters(model), {size: count_macs(model, size, size) for size in sizes})
