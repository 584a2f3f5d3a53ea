# SPDX-License-Identifier: AGPL-3.0-only
"""The search (CAF, Algorithm 1): a step each of task network, fusion network and weights."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from fusion_models.files import write_text
from fusion_models.search.data import TaskBatch, TaskSampler
from fusion_models.search.hypergradient import SignalToNoise, hypergradient, through_softmax
from fusion_models.search.terms import FIXED, FIXED_WEIGHT, LossTerms


@dataclass(frozen=True)
class SearchSettings:
    """How the search steps.

    Attributes:
        steps: iterations of Algorithm 1.
        lr, task_lr: of Adam for the fusion and the task network.
        beta_lr, beta_decay: of Adam for the logits of the weights, and its factor at each step.
        eta: length of the unrolled step; 0 takes `lr`.
        radius: of the finite difference, see `hypergradient`.
        task_every: a step of the task network in so many iterations (0: never).
        warmup: iterations of both networks before the weights begin to move.
        bf16: whether the steps of the networks, and the direction of the hypergradient, compute
            in bf16. Its finite difference never does: a difference of nearly equal losses has no
            digits left in it.
    """

    steps: int = 600
    lr: float = 1e-3
    task_lr: float = 1e-4
    beta_lr: float = 5e-2
    beta_decay: float = 0.998
    eta: float = 0.0
    radius: float = 0.01
    task_every: int = 1
    warmup: int = 0
    bf16: bool = False


@dataclass
class Trajectory:
    """What happened at each iteration.

    Attributes:
        weights: of the searched terms, mean 1. task: loss of the task on the validation half.
        fusion: weighted loss on the training half. norm: of the hypergradient by the weights.
    """

    weights: list[list[float]] = field(default_factory=list)
    task: list[float] = field(default_factory=list)
    fusion: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)


class Search:
    """Searches the weights of a fusion loss by a task.

    The weights are `n` times the softmax of their logits, so their mean is 1; all begin at 1.

    Args:
        fusion: network `ir, vi -> fused`; its batch norms move in its own steps only.
        task: module `(images, batch) -> loss`, see `tasks`.
        terms: of the loss; those of `FIXED` keep the weight `FIXED_WEIGHT` and are not searched.
        training, validation: batches of separate halves of the data.
    """

    def __init__(
        self,
        fusion: nn.Module,
        task: nn.Module,
        terms: LossTerms,
        training: TaskSampler,
        validation: TaskSampler,
        settings: SearchSettings,
        device: torch.device | str = "cpu",
    ):
        fusion = fusion.to(device, memory_format=torch.channels_last)
        self.fusion, self.task, self.terms = fusion, task.to(device), terms.to(device)
        self.training, self.validation = training, validation
        self.settings, self.device = settings, torch.device(device)
        self.names = [name for name in terms.names if name not in FIXED]
        if list(terms.names[: len(self.names)]) != self.names:
            raise ValueError("terms that are not searched must come last")
        self.logits = torch.zeros(len(self.names), device=device)
        self.optimizer = torch.optim.Adam(fusion.parameters(), settings.lr)
        trained = [p for p in task.parameters() if p.requires_grad]
        self.task_optimizer = torch.optim.Adam(trained, settings.task_lr) if trained else None
        self.beta_optimizer = torch.optim.Adam([self.logits], settings.beta_lr)
        self.noise = SignalToNoise(len(self.names))
        self.trajectory = Trajectory()
        self.step, self.seconds = 0, 0.0

    @property
    def weights(self) -> Tensor:
        """Weights of the searched terms, `[n]`, mean 1."""
        return len(self.names) * self.logits.softmax(0)

    def _all_weights(self) -> Tensor:
        fixed = len(self.terms.names) - len(self.names)
        return torch.cat((self.weights, self.logits.new_full((fixed,), FIXED_WEIGHT)))

    def run(self, checkpoint: Path | None = None, every: int = 50, show: bool = True) -> None:
        """Iterate up to `settings.steps`; a checkpoint is written every so many iterations."""
        settings = self.settings
        started = time.monotonic() - self.seconds
        bar = tqdm(total=settings.steps, initial=self.step, disable=not show, desc="search",
                   mininterval=1.0, dynamic_ncols=True)  # fmt: skip
        with bar:
            while self.step < settings.steps:
                self.iterate()
                self.seconds = time.monotonic() - started
                last = self.trajectory
                bar.set_postfix(task=f"{last.task[-1]:.3f}", fusion=f"{last.fusion[-1]:.3f}")
                bar.update()
                if checkpoint and (self.step % every == 0 or self.step == settings.steps):
                    self.save(checkpoint)

    def iterate(self) -> None:
        """One iteration of Algorithm 1."""
        settings = self.settings
        batch = self.training.batch(self.step).to(self.device)
        held = self.validation.batch(self.step).to(self.device)
        if settings.task_every and self.step % settings.task_every == 0:
            self._step_task(batch)
        self._step_fusion(batch)
        task_loss = self._step_weights(batch, held)
        if not math.isfinite(task_loss):
            raise RuntimeError(
                f"the task's loss is not finite at iteration {self.step}: lower lr= or task_lr="
            )
        self.step += 1

    def _step_task(self, batch: TaskBatch) -> None:
        if self.task_optimizer is None:
            return
        self.fusion.eval()
        with torch.no_grad():
            images = batch.rgb(self.fusion(batch.ir, batch.vi))
        with self._autocast():
            loss = self.task(images, batch)
        self.task_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.task.parameters(), 10.0)
        self.task_optimizer.step()
        self.task_optimizer.zero_grad(set_to_none=True)

    def _step_fusion(self, batch: TaskBatch) -> None:
        self.fusion.train()
        with self._autocast():
            fused = self.fusion(batch.ir, batch.vi)
        loss = self._all_weights() @ self.terms(fused, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.fusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.trajectory.fusion.append(loss.item())

    def _step_weights(self, batch: TaskBatch, held: TaskBatch) -> float:
        """One step of the weights; returns the task's loss on the validation half."""
        settings = self.settings
        result = hypergradient(
            self._all_weights(),
            dict(self.fusion.named_parameters()),
            lambda parameters: self.terms(self._fused(parameters, batch), batch),
            lambda parameters: self.task(held.rgb(self._fused(parameters, held)), held),
            settings.eta or settings.lr,
            settings.radius,
            self._autocast,
        )
        by_weights = result.by_weights[: len(self.names)]
        self.noise.add(by_weights)
        if self.step >= settings.warmup:
            for group in self.beta_optimizer.param_groups:
                decay = settings.beta_decay ** (self.step - settings.warmup)
                group["lr"] = settings.beta_lr * decay
            self.logits.grad = through_softmax(by_weights, self.weights)
            self.beta_optimizer.step()
        self.trajectory.weights.append([round(w, 5) for w in self.weights.tolist()])
        self.trajectory.task.append(result.task_loss)
        self.trajectory.norm.append(by_weights.norm().item())
        return result.task_loss

    def _fused(self, parameters, batch: TaskBatch) -> Tensor:
        """Output of the fusion network with these parameters.

        In training mode, so that it is differentiated as it is trained, but with copies of the
        batch norms' running statistics, which therefore stay.
        """
        self.fusion.train()
        buffers = {name: b.clone() for name, b in self.fusion.named_buffers()}
        return functional_call(self.fusion, ({**parameters}, buffers), (batch.ir, batch.vi))

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)

    def save(self, path: Path) -> None:
        """Write all that `load` needs to go on."""
        state = {
            "fusion": self.fusion.state_dict(), "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(), "logits": self.logits,
            "task_optimizer": self.task_optimizer.state_dict() if self.task_optimizer else None,
            "beta_optimizer": self.beta_optimizer.state_dict(), "noise": self.noise.state_dict(),
            "trajectory": vars(self.trajectory), "step": self.step, "seconds": self.seconds,
            "names": self.names,
        }  # fmt: skip
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; ValueError if it is of another search."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["names"] != self.names:
            raise ValueError(f"{path} searches {', '.join(state['names'])}; give the same terms=")
        self.fusion.load_state_dict(state["fusion"])
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.task_optimizer:
            self.task_optimizer.load_state_dict(state["task_optimizer"])
        self.beta_optimizer.load_state_dict(state["beta_optimizer"])
        self.noise.load_state_dict(state["noise"])
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.trajectory = Trajectory(**state["trajectory"])
        self.step, self.seconds = state["step"], state["seconds"]


def write_loss(path: Path, names: Sequence[str], weights: Sequence[float], head: dict) -> None:
    """Write weights as the YAML that `train.py loss=<file>` takes.

    Args:
        head: what else to say of them, such as how they were found.
    """
    values = {name: round(float(weight), 4) for name, weight in zip(names, weights)}
    values |= dict.fromkeys(FIXED, FIXED_WEIGHT)
    write_text(path, yaml.safe_dump({**head, "weights": values}, sort_keys=False))


def write_trajectory(path: Path, search: Search) -> None:
    """Write the trajectory as JSON, and as a picture beside it."""
    trajectory = search.trajectory
    ratio = dict(zip(search.names, [round(v, 2) for v in search.noise.ratio.tolist()]))
    record = {"names": search.names, "signal_to_noise": ratio, **vars(trajectory)}
    write_text(path, json.dumps(record) + "\n")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(9, 8), sharex=True)
    for number, name in enumerate(search.names):
        line = [weights[number] for weights in trajectory.weights]
        style = ("-", "--", ":")[number // 7 % 3]
        upper.plot(line, style, label=f"{name} ({ratio[name]:+.1f})")
    upper.set_ylabel("weight (1: as at the start)")
    upper.legend(fontsize=7, ncols=2, title="term (signal to noise)", title_fontsize=7)
    window = max(1, len(trajectory.task) // 20)
    for values, name in ((trajectory.task, "task, validation half"),):
        lower.plot(values, color="0.8")
        smooth = [
            sum(values[max(0, i - window) : i + 1]) / len(values[max(0, i - window) : i + 1])
            for i in range(len(values))
        ]
        lower.plot(smooth, label=f"loss of the {name}, mean of {window}")
    lower.set_xlabel("iteration")
    lower.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)
    pyplot.close(figure)
