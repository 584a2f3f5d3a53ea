# SPDX-License-Identifier: AGPL-3.0-only
"""Gradient of a task's loss by the weights of a fusion loss, through one step of its training.

CAF, equations 2 and 3. With `w' = w - eta dL_train/dw` and `L_train = sum_i beta_i T_i(w)`, the
task's loss depends on beta by `w'` alone, so `dL_task(w')/dbeta_i = -eta <dT_i/dw, v>` with `v =
dL_task/dw'`: a Hessian-vector product, since `dT_i/dw` is the mixed derivative of L_train. It is
taken as a finite difference of the terms along v, which needs two forward passes and no second
derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Hypergradient:
    """The gradient by the weights and what it was made of.

    Attributes:
        by_weights: `[n]`. direction_norm: of v. train_loss, task_loss: the latter after the step.
    """

    by_weights: Tensor
    direction_norm: float
    train_loss: float
    task_loss: float


def moved(parameters: Parameters, by: Parameters, factor: float) -> dict[str, Tensor]:
    """`parameters + factor * by`, as new leaves that take a gradient."""
    return {
        name: (value.detach() + factor * by[name]).requires_grad_()
        for name, value in parameters.items()
    }


def hypergradient(
    weights: Tensor,
    parameters: Parameters,
    terms: Callable[[Parameters], Tensor],
    task_loss: Callable[[Parameters], Tensor],
    eta: float,
    radius: float = 0.01,
    differentiated: Callable[[], AbstractContextManager] = nullcontext,
) -> Hypergradient:
    """Gradient of `task_loss(w')` by the weights.

    Args:
        weights: of the terms, `[n]`.
        parameters: w, by name.
        terms: unweighted terms of the fusion loss on a training batch, `[n]`.
        task_loss: scalar loss of the task on a validation batch.
        eta: length of the step of training.
        radius: the finite difference moves w by this in all, along v / |v| to both sides.
        differentiated: context of the two passes that are differentiated, such as autocast to
            bf16: they give a step and a direction, while the finite difference needs all digits.
    """
    leaves = moved(parameters, {name: torch.zeros_like(p) for name, p in parameters.items()}, 0.0)
    with differentiated():
        train_loss = weights.detach() @ terms(leaves)
    step = _gradient(train_loss, leaves)
    after = moved(parameters, step, -eta)
    with differentiated():
        loss = task_loss(after)
    direction = _gradient(loss, after)
    norm = torch.sqrt(sum(d.double().square().sum() for d in direction.values())).item()
    if not norm:
        none = torch.zeros_like(weights)
        return Hypergradient(none, 0.0, train_loss.item(), loss.item())
    delta = radius / norm
    with torch.no_grad():
        plus, minus = (terms(moved(parameters, direction, side * delta)) for side in (1, -1))
    product = (plus.double() - minus.double()) / (2 * delta)
    by_weights = (-eta * product).to(weights.dtype)
    return Hypergradient(by_weights, norm, train_loss.item(), loss.item())


def exact_hypergradient(
    weights: Tensor,
    parameters: Parameters,
    terms: Callable[[Parameters], Tensor],
    task_loss: Callable[[Parameters], Tensor],
    eta: float,
) -> Tensor:
    """The same by differentiating through the step of training; for tests: it needs memory."""
    weights = weights.detach().clone().requires_grad_()
    leaves = moved(parameters, {name: torch.zeros_like(p) for name, p in parameters.items()}, 0.0)
    step = torch.autograd.grad(
        weights @ terms(leaves), list(leaves.values()), create_graph=True, materialize_grads=True
    )
    after = {name: value - eta * g for (name, value), g in zip(leaves.items(), step)}
    return torch.autograd.grad(task_loss(after), weights)[0]


def _gradient(loss: Tensor, leaves: Parameters) -> dict[str, Tensor]:
    values = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, values))


def through_softmax(by_weights: Tensor, weights: Tensor) -> Tensor:
    """Gradient by the logits of weights that are `n` times their softmax, `[n]`."""
    return weights * (by_weights - (weights / len(weights) * by_weights).sum())


class SignalToNoise:
    """Running mean and spread of the hypergradient over batches, for each term.

    Adam makes steps of one size of whatever it gets, so only this tells a trend from noise.
    """

    def __init__(self, terms: int):
        self.count, self.mean, self.squares = 0, torch.zeros(terms), torch.zeros(terms)

    def add(self, gradient: Tensor) -> None:
        """Take in the gradient of one batch (Welford)."""
        gradient = gradient.detach().float().cpu()
        self.count += 1
        before = gradient - self.mean
        self.mean = self.mean + before / self.count
        self.squares = self.squares + before * (gradient - self.mean)

    @property
    def ratio(self) -> Tensor:
        """Mean over its standard error, `[n]`; over 2 the sign is no accident. 0 before two."""
        if self.count < 2:
            return torch.zeros_like(self.mean)
        error = (self.squares / (self.count - 1) / self.count).sqrt()
        return torch.where(error > 0, self.mean / error.clamp_min(1e-30), torch.zeros_like(error))

    def state_dict(self) -> dict:
        """What `load_state_dict` takes."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from an earlier run."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
