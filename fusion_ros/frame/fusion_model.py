# SPDX-License-Identifier: AGPL-3.0-only
"""Whether a model is a fusion network: its tensors, and what it makes of one pair of images."""

from __future__ import annotations

import math

import numpy as np

from fusion_models.contract import FUSED, IR, MULTIPLE, SMALLEST, VI, reference_pair
from fusion_ros.inference import Engine, EngineError, TensorSpec

__all__ = ["check_fusion_model", "check_mean"]

_MULTIPLES = (MULTIPLE, 16, 32, 64)
"""Multiples that heights and widths may need: each halving in a network doubles it."""
_LARGEST_SIDE = 16384
_RANGE = (-0.05, 1.05)
"""Where the fused luminance may lie; it is clipped to [0, 1] afterwards."""
_OUTSIDE = 0.05
"""Greatest share of pixels outside that range."""
_FLAT = 1 / 255
"""An image whose values differ by less is constant."""


def check_fusion_model(engine: Engine) -> int:
    """Return what the network's free height and width must be multiples of.

    The tensors are checked first, then one pair of images is fused. Raises EngineError saying
    what was found and what is expected.
    """
    problem = _problem_of_tensors(engine)
    if problem:
        tensors = ", ".join(
            f"{s.name} {s.dtype} {list(s.shape)}" for s in (*engine.inputs, *engine.outputs)
        )
        raise EngineError(
            f"not a fusion model, {problem}: expected inputs '{IR}' and '{VI}' and output "
            f"'{FUSED}', all float32 [1, 1, H, W], got {tensors.replace('None', '?')}"
        )
    *height_and_width, multiple = 0, 0, 0
    reasons = []
    free = None in engine.inputs[0].shape[-2:]
    for multiple in _MULTIPLES if free else _MULTIPLES[:1]:
        # Odd multiples, so that a network that needs even ones fails.
        sides = (multiple * n for n in (math.ceil(SMALLEST / multiple) | 1, 7))
        height_and_width = [n or side for n, side in zip(engine.inputs[0].shape[-2:], sides)]
        ir, vi = reference_pair(*height_and_width)
        try:
            fused = engine.trial({IR: ir, VI: vi})[FUSED]
        except EngineError as error:
            reasons.append(str(error))
            continue
        if fused.shape == ir.shape:
            _check_values(fused)
            return multiple
        reasons.append(f"the fused image has shape {list(fused.shape)}")
    height, width = height_and_width
    raise EngineError(
        f"not a fusion model: it does not fuse images of {width}x{height} to an image of that "
        f"size: {reasons[-1]}"
    )


def check_mean(mean: float) -> None:
    """Raise EngineError for the mean of a fused luminance that is NaN, infinite or out of range."""
    if not _RANGE[0] <= mean <= _RANGE[1]:
        raise EngineError(
            f"the mean of the network's output is {mean:.4g}, expected 0 to 1: the frame is "
            "left out"
        )


def _problem_of_tensors(engine: Engine) -> str:
    specs = {spec.name: spec for spec in (*engine.inputs, *engine.outputs)}
    extra = [s.name for s in engine.inputs if s.name not in (IR, VI)]
    missing = [name for name in (IR, VI, FUSED) if name not in specs]
    if missing or extra or FUSED not in [s.name for s in engine.outputs]:
        parts = [f"it lacks {', '.join(missing)}"] if missing else []
        parts += [f"it needs {', '.join(extra)} too"] if extra and not missing else []
        return " and ".join(parts) or f"'{FUSED}' is not an output"
    for name in (IR, VI, FUSED):
        if problem := _problem_of(specs[name]):
            return f"'{name}' {problem}"
    sizes = {specs[name].shape[-2:] for name in (IR, VI)}
    if len(sizes) > 1:
        return f"'{IR}' and '{VI}' have different sizes"
    for want, have in zip(specs[IR].shape[-2:], specs[FUSED].shape[-2:]):
        if None not in (want, have) and want != have:
            return f"'{FUSED}' has another size than '{IR}'"
    return ""


def _problem_of(spec: TensorSpec) -> str:
    if spec.dtype != np.float32:
        return f"is {spec.dtype}"
    if len(spec.shape) != 4:
        return f"has {len(spec.shape)} dimensions"
    batch, channels, *sides = spec.shape
    if channels not in (1, None):
        return f"has {channels} channels: a network fuses luminance, which is one"
    if batch not in (1, None):
        return f"has a batch of {batch}"
    if not all(side is None or 1 <= side <= _LARGEST_SIDE for side in sides):
        return f"has the size {sides}"
    return ""


def _check_values(fused: np.ndarray) -> None:
    """Raise EngineError for a fused test pair, of full contrast, that is no image in [0, 1]."""
    if not np.isfinite(fused).all():
        found = "values that are not finite"
    elif ((fused < _RANGE[0]) | (fused > _RANGE[1])).mean() > _OUTSIDE:
        found = f"values from {fused.min():.4g} to {fused.max():.4g}"
    elif np.ptp(fused) < _FLAT:
        found = f"the same value, {fused.mean():.4g}, at each pixel"
    else:
        return
    raise EngineError(
        f"not a fusion model: of a pair of images with values from 0 to 1 it makes {found}, "
        "expected an image with values from 0 to 1"
    )
