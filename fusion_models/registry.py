# SPDX-License-Identifier: AGPL-3.0-only
"""Registry of fusion methods: a network, its objective and its card, found by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import fusion_models
from fusion_models import WEIGHTS_DIR

RECIPES = ("shipped", "paper")
"""Ways to train a method: with the objective of this project, or as its paper says."""


@dataclass(frozen=True)
class ModelCard:
    """What a method is and where it comes from; figures of a training run are in its JSON card.

    Attributes:
        name: registry key, also the stem of the weights files.
        title: one line for tables and help texts.
        paper: reference of the published method.
        licence: SPDX identifier of this implementation and of the weights trained with it.
    """

    name: str
    title: str
    paper: str
    licence: str = "AGPL-3.0-only"

    @property
    def checkpoint(self) -> Path:
        """Path of the trained parameters (safetensors); it need not exist."""
        return WEIGHTS_DIR / f"{self.name}.safetensors"

    @property
    def onnx(self) -> Path:
        """Path of the exported network; it need not exist."""
        return WEIGHTS_DIR / f"{self.name}.onnx"


@dataclass(frozen=True)
class _Method:
    card: ModelCard
    network: Callable[..., nn.Module]
    objective: Callable[..., nn.Module]
    paper: Callable[..., nn.Module] | None = None


_METHODS: dict[str, _Method] = {}


def register_model(
    card: ModelCard,
    objective: Callable[..., nn.Module],
    paper: Callable[..., nn.Module] | None = None,
):
    """Class decorator that makes a network available as ``create_model(card.name)``.

    The network maps ``ir, vi`` to ``fused``, all `[B, 1, H, W]` float in [0, 1], H and W multiples
    of 8, and may offer ``deploy()`` returning an equal network with its constants folded.
    The objective maps ``(network, Batch)`` to ``dict[str, Tensor]`` of weighted scalar terms, and
    so does `paper`, the published loss alone, for ``recipe=paper``.
    """

    def decorate(network: type[nn.Module]) -> type[nn.Module]:
        if card.name in _METHODS:
            raise ValueError(f"method '{card.name}' is registered twice; choose another name")
        _METHODS[card.name] = _Method(card, network, objective, paper)
        return network

    return decorate


def _discover() -> None:
    for module in pkgutil.iter_modules(fusion_models.__path__):
        if module.ispkg and module.name != "weights":
            importlib.import_module(f"fusion_models.{module.name}")


def _method(name: str) -> _Method:
    _discover()
    if name not in _METHODS:
        raise ValueError(f"unknown method '{name}': choose one of {', '.join(list_models())}")
    return _METHODS[name]


def list_models() -> list[str]:
    """Names of all registered methods, in alphabetical order."""
    _discover()
    return sorted(_METHODS)


def model_card(name: str) -> ModelCard:
    """Card of a method; ValueError with the choices for an unknown name."""
    return _method(name).card


def create_model(name: str, pretrained: bool = False, **settings) -> nn.Module:
    """Network of a method.

    Args:
        name: one of :func:`list_models`.
        pretrained: load the shipped parameters; ``settings`` must then agree with them.
        **settings: keyword arguments of the network's constructor.
    Raises:
        ValueError: unknown name. FileNotFoundError: no shipped parameters.
    """
    method = _method(name)
    model = method.network(**settings)
    if pretrained:
        if not method.card.checkpoint.is_file():
            raise FileNotFoundError(
                f"no trained parameters for '{name}' at {method.card.checkpoint}: train them with "
                f"`python training/train.py method={name}`"
            )
        from safetensors.torch import load_file

        model.load_state_dict(load_file(method.card.checkpoint))
        model.eval()
    return model


def create_objective(name: str, recipe: str = "shipped", **settings) -> nn.Module:
    """Training objective of a method; ``settings`` are its constructor's keyword arguments.

    Args:
        recipe: 'shipped', or 'paper' for the published loss alone.
    Raises:
        ValueError: an unknown name or recipe, or a method without the paper's loss.
    """
    method = _method(name)
    if recipe not in RECIPES:
        raise ValueError(f"recipe '{recipe}': choose one of {', '.join(RECIPES)}")
    if recipe == "shipped":
        return method.objective(**settings)
    if method.paper is None:
        raise ValueError(f"method '{name}' has no recipe 'paper'")
    return method.paper(**settings)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable scalars of a network."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def deploy_form(model: nn.Module) -> nn.Module:
    """The network with everything constant at inference folded, in evaluation mode."""
    model = model.eval()
    with torch.no_grad():
        return model.deploy() if hasattr(model, "deploy") else model
