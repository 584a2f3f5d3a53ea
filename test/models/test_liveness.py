# SPDX-License-Identifier: AGPL-3.0-only
"""The shipped networks use what they are made of: switching a module off changes the image."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks need torch: pip install .[train]")

from fusion_models import create_model  # noqa: E402
from fusion_ros.cameras.street.kinds import KINDS, ORDINARY, render  # noqa: E402
from fusion_ros.size import Size  # noqa: E402

GREY_LEVEL = 1.0


@pytest.fixture(scope="module")
def pairs():
    """Eight simulated pairs, one of each kind: `[8, 2, 1, 256, 256]` in [0, 1]."""
    planes = []
    for kind in KINDS + ORDINARY:
        scene = render(kind, 100_000, Size(256, 256))
        b, g, r = np.moveaxis(scene.visible.astype(np.float32), -1, 0)
        planes.append(np.stack((scene.thermal, 0.114 * b + 0.587 * g + 0.299 * r)))
    return torch.from_numpy(np.stack(planes) / 255.0).float()[:, :, None]


@pytest.fixture(scope="module")
def networks():
    return {name: create_model(name, pretrained=True) for name in ("baffm", "cfi", "refinefuse")}


def fused(model, pairs):
    with torch.inference_mode():
        return model(pairs[:, 0], pairs[:, 1]) * 255.0


@contextmanager
def replaced(module, change):
    """While it lasts, `change` is applied to what `module` returns."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def effect(model, pairs, module, change) -> float:
    """Mean absolute change of the fused images in grey levels."""
    with replaced(module, change):
        changed = fused(model, pairs)
    return float((changed - fused(model, pairs)).abs().mean())


def mean_of(x):
    return x.mean((0, 2, 3), keepdim=True).expand_as(x)


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_the_gates_of_cfi_are_neither_shut_nor_all_alike(networks, pairs, scale):
    with torch.inference_mode():
        _, gates = networks["cfi"].fuse_with_gates(pairs[:, 0], pairs[:, 1])
    assert 0.05 < gates[scale].mean() < 0.95 and gates[scale].std() > 0.02


def test_shutting_the_gates_of_cfi_changes_the_image(networks, pairs):
    model = networks["cfi"]
    with torch.inference_mode():
        before = fused(model, pairs)
    biases = [integrator.gate[-1].bias for integrator in model.integrators]
    kept = [bias.detach().clone() for bias in biases]
    with torch.no_grad():
        for bias in biases:
            bias.sub_(30.0)
        after = fused(model, pairs)
        for bias, value in zip(biases, kept):
            bias.copy_(value)
    assert (after - before).abs().mean() > GREY_LEVEL


def test_the_fourth_scale_of_refinefuse_changes_the_image(networks, pairs):
    model = networks["refinefuse"]
    assert effect(model, pairs, model.interact[3], torch.zeros_like) > GREY_LEVEL
    assert effect(model, pairs, model.interact[3], mean_of) > GREY_LEVEL


def test_most_channels_of_refinefuse_live_at_the_fourth_scale(networks, pairs):
    model, seen = networks["refinefuse"], []
    with replaced(model.interact[3], lambda x: seen.append(x)):
        fused(model, pairs)
    spread = seen[0].std((0, 2, 3))
    assert float((spread > 0.01 * spread.max()).float().mean()) > 0.8


@pytest.mark.parametrize("modality", ["ir", "vi"])
def test_the_scenes_of_baffm_are_told_apart(networks, pairs, modality):
    model = networks["baffm"]
    x = pairs[:, 0] if modality == "ir" else pairs[:, 1]
    with torch.inference_mode():
        features = getattr(model, f"extract_{modality}")(x)
        weights = getattr(model, f"adjust_{modality}").weights(features)
    entropy = -(weights * weights.clamp_min(1e-9).log()).sum(1).mean()
    assert entropy < 0.9 * np.log(weights.shape[1])


def test_the_dictionary_of_baffm_changes_the_image(networks, pairs):
    model = networks["baffm"]
    before = fused(model, pairs)
    kept = [m.dictionary.clone() for m in (model.adjust_ir, model.adjust_vi)]
    for m in (model.adjust_ir, model.adjust_vi):
        m.dictionary.copy_(m.dictionary.mean(0, keepdim=True))
    after = fused(model, pairs)
    for m, value in zip((model.adjust_ir, model.adjust_vi), kept):
        m.dictionary.copy_(value)
    assert (after - before).abs().mean() > GREY_LEVEL
