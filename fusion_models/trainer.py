# SPDX-License-Identifier: AGPL-3.0-only
"""Training of any registered method on a CPU, a GPU or several of them (Lightning Fabric)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from fusion_models import create_model, create_objective, model_card
from fusion_models.contract import MULTIPLE
from fusion_models.data import CropSampler, LoadedPairs
from fusion_models.evaluation.metrics import evaluate
from fusion_models.files import write_text
from fusion_models.hardware import PRECISIONS, choose_precision, keep_freed_memory
from fusion_models.pairs import DataError, PairSet, find_sets
from fusion_models.registry import RECIPES
from fusion_models.search.terms import SearchedObjective
from fusion_models.settings import ConfigError, parse_arguments

OPTIMIZERS = {"adamw": (torch.optim.AdamW, {}), "sgd": (torch.optim.SGD, {"momentum": 0.9})}
FIRST = 20
"""How many losses of the first and of the last steps a run's record averages."""


@dataclass
class TrainConfig:
    """Settings of a training run; each may be given as `key=value` on the command line.

    Attributes:
        method: one of `fusion_models.list_models()`.
        recipe: 'shipped' (this project's objective) or 'paper' (the paper's alone); each has its
            defaults, in `config/training` and `config/paper`.
        data: pair folders or folders of sets, comma separated; 'auto' looks in the usual places. Of
            each set the `train` split is used, less every eighth pair, which is for validation.
        mix: relative weight of each set by its name (absent: 1; 0: left out).
        salient: class ids that count as salient objects in label images, where there are any.
        limit: most pairs to read of one set (0: all).
        validation: 'auto' for the validation pairs of the training sets, a pair folder, or ''.
        output: folder of checkpoints, logs and pictures; '' for `runs/<method>`, or, of the paper's
            recipe, `runs/paper/<method>`.
        resume: continue from the last checkpoint in the output folder.
        init: safetensors file to start from, or 'shipped' for the committed weights.
        max_steps: number of optimiser steps.
        batch_size: crops a step and process.
        crop: side of the crops in pixels, a multiple of 8.
        optimizer: adamw, or sgd with a momentum of 0.9.
        lr, warmup, lr_final: the learning rate rises linearly for `warmup` steps, then falls on a
            cosine to `lr * lr_final`.
        weight_decay, clip: of the optimiser; largest norm of the gradient (0: any).
        gains: whether crops also get a random gain a camera, besides turns and flips.
        least_scale: crops come from pairs that were made smaller, down to this share of their size,
            as by the node's `processing_size`.
        noise: the networks see crops with noise of up to this standard deviation, grey levels, and
            are to give what the clean ones ask for.
        freeze_norm: share of the schedule after which batch norms use their running statistics.
        average: decay of the moving average of the weights, which is evaluated and exported.
        precision: auto, 32-true, bf16-mixed or 16-mixed; auto takes the fastest for the hardware.
        accelerator, devices: of Lightning Fabric.
        threads: of the CPU, 1 for a run in the background (0: all).
        seed: of the initial weights and of the sequence of batches.
        log_every, validate_every, save_every: in steps.
        validate_pairs: number of pairs to validate on, evenly spaced over the sets (0: all).
        model, objective: keyword arguments of the method's network and objective.
        loss: YAML of `search_loss.py`; its weighted terms replace the method's objective.
    """

    method: str = "baffm"
    recipe: str = "shipped"
    data: str = "auto"
    mix: dict[str, float] = field(default_factory=dict)
    salient: list[int] = field(default_factory=lambda: [1, 2])
    limit: int = 0
    validation: str = "auto"
    output: str = ""
    resume: bool = False
    init: str = ""
    max_steps: int = 3000
    batch_size: int = 6
    crop: int = 128
    optimizer: str = "adamw"
    lr: float = 2e-3
    warmup: int = 100
    lr_final: float = 0.01
    weight_decay: float = 0.0
    clip: float = 1.0
    gains: bool = True
    least_scale: float = 1.0
    noise: float = 0.0
    freeze_norm: float = 0.6
    average: float = 0.995
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int = 1
    threads: int = 0
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    validate_pairs: int = 8
    save_every: int = 250
    model: dict = field(default_factory=dict)
    objective: dict = field(default_factory=dict)
    loss: str = ""


def load_config(arguments: list[str], folder: Path) -> TrainConfig:
    """Defaults, then the recipe's file, then `config=<yaml>`, then `key=value` arguments.

    The recipe's file is `<folder>/<method>.yaml`, or `<folder>/../paper/<method>.yaml` with
    `recipe=paper`. With `resume=true` the settings saved with the run take the place of all but the
    arguments.
    """
    overrides = parse_arguments(arguments)
    extra = overrides.pop("config", None)
    method = overrides.get("method", TrainConfig.method)
    recipe = overrides.get("recipe", TrainConfig.recipe)
    if recipe not in RECIPES:
        raise ConfigError(f"recipe '{recipe}': choose one of {', '.join(RECIPES)}")
    file = (folder if recipe == "shipped" else folder.parent / recipe) / f"{method}.yaml"
    if recipe != "shipped" and not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise ConfigError(f"method '{method}' has no recipe '{recipe}'; there are those of {known}")
    layers = [OmegaConf.structured(TrainConfig)]
    if file.is_file():
        layers.append(OmegaConf.load(file))
    if extra:
        layers.append(OmegaConf.load(extra))
    try:
        config = OmegaConf.merge(*layers, overrides)
        saved = output_of(config) / "config.yaml"
        if config.resume and saved.is_file():
            # What was saved is complete: a recipe's terms must not come in beside it.
            config = OmegaConf.merge(layers[0], OmegaConf.load(saved), overrides)
        return OmegaConf.to_object(config)
    except Exception as error:
        keys = ", ".join(TrainConfig.__dataclass_fields__)
        raise ConfigError(f"{str(error).splitlines()[0]}; settings are: {keys}") from error


def output_of(config: TrainConfig) -> Path:
    """Output folder of a run."""
    if config.output:
        return Path(config.output)
    return Path("runs") / ("" if config.recipe == "shipped" else config.recipe) / config.method


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `lr * lr_final` at `max_steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.max_steps - config.warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return config.lr * (config.lr_final + (1.0 - config.lr_final) * cosine)


def source_commit() -> str:
    """Commit of the source tree, with `+` when it has changes; '' outside a git checkout."""
    here = Path(__file__).parent
    try:

        def git(*a: str) -> str:
            return subprocess.run(
                ["git", *a], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()

        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--", str(here)) else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


@torch.inference_mode()
def fuse_pair(
    model: nn.Module, ir: np.ndarray, vi: np.ndarray, multiple: int = MULTIPLE
) -> np.ndarray:
    """Fuse `(H, W)` uint8 luminances of any size; returns `(H, W)` uint8.

    They are padded by reflection to sides that are a multiple of `multiple` pixels.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    height, width = ir.shape
    planes = torch.from_numpy(np.stack((ir, vi)).astype(np.float32) / 255.0).to(device)
    pad = (0, -width % multiple, 0, -height % multiple)
    planes = F.pad(planes[:, None], pad, mode="reflect")
    fused = model(planes[:1], planes[1:])[0, 0, :height, :width]
    return (fused.clamp(0, 1) * 255.0).round().to(torch.uint8).cpu().numpy()


class Trainer:
    """One training run.

    Files in its output folder: `config.yaml` (settings), `last.ckpt` (all that resuming needs),
    `model.safetensors` (the averaged weights), `run.json` (the record, written at the end),
    `validation.png` and TensorBoard's logs. Each is replaced as a whole, so that a run can be
    resumed whenever it was killed.

    Args:
        load: reads the pairs of a set; one that remembers them saves time over several runs.
    Raises:
        ConfigError: a setting is out of range, or nothing to resume.
        DataError: the data are not as expected; checked before anything is trained.
    """

    def __init__(self, config: TrainConfig, load: Callable[..., LoadedPairs] = LoadedPairs):
        self.config, self.load = config, load
        card = model_card(config.method)  # an unknown method is refused before anything else
        if config.max_steps < 1 or config.batch_size < 1 or config.crop < 32 or config.crop % 8:
            raise ConfigError("max_steps and batch_size must be >= 1, crop a multiple of 8, >= 32")
        if config.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer '{config.optimizer}': choose {', '.join(OPTIMIZERS)}")
        if config.precision not in PRECISIONS:
            raise ConfigError(f"precision '{config.precision}': choose {', '.join(PRECISIONS)}")
        if config.threads:
            torch.set_num_threads(config.threads)
            cv2.setNumThreads(config.threads)
        keep_freed_memory()
        self.precision, reason = choose_precision(config.precision, config.accelerator)
        self.fabric = Fabric(
            accelerator=config.accelerator,
            # torchrun sets the number of processes; a plain call uses `devices`.
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", config.devices)),
            **self._precision_setting(),
            strategy="ddp" if int(os.environ.get("WORLD_SIZE", config.devices)) > 1 else "auto",
        )
        self.fabric.launch()
        self.fabric.print(f"{config.method}: precision {self.precision} ({reason})")
        self.fabric.seed_everything(config.seed, verbose=False)
        torch.backends.cudnn.benchmark = True  # all crops have one size
        self.output = output_of(config)
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {self.output} ({error}); give output=<folder>"
            ) from error
        self.sampler, self.validation = self._data()
        model = create_model(config.method, **config.model)
        if config.init:
            path = card.checkpoint if config.init == "shipped" else Path(config.init)
            model.load_state_dict(load_file(path))
        model = model.to(memory_format=torch.channels_last)
        kind, settings = OPTIMIZERS[config.optimizer]
        optimizer = kind(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, **settings
        )
        self.raw_model = model
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        if hasattr(model, "fuse_with_gates"):
            self.model.mark_forward_method("fuse_with_gates")
        self.objective = self._objective().to(self.fabric.device)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.first_losses: list[float] = []
        self.last_losses: list[float] = []
        self.curve: list[tuple[int, float]] = []
        self.metrics: dict[str, float] = {}
        self.validations: list[tuple[int, dict[str, float]]] = []
        if config.resume:
            self._resume()

    def _objective(self) -> nn.Module:
        config = self.config
        if not config.loss:
            return create_objective(config.method, config.recipe, **config.objective)
        return SearchedObjective.from_file(Path(config.loss))

    def _precision_setting(self) -> dict:
        on_gpu = self.config.accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
        if self.precision == "16-mixed" and not on_gpu:
            # By its name alone Fabric would take bf16 in place of float16 on a CPU.
            return {"plugins": [MixedPrecision("16-mixed", "cpu")]}
        return {"precision": self.precision}

    def _data(self) -> tuple[CropSampler, LoadedPairs | None]:
        config = self.config
        sets, weights, names = [], [], []
        for pairs in find_sets(config.data, split="train"):
            name = pairs.name.removesuffix("/train").rpartition("/")[2]
            names.append(name)
            if (weight := config.mix.get(name, 1.0)) > 0:
                sets.append(pairs)
                weights.append(weight)
        if absent := sorted(set(config.mix) - set(names)):
            self.fabric.print(
                f"mix: no set {', '.join(absent)} in the data, which has {', '.join(names)}"
            )
        salient = tuple(config.salient)
        sampler = CropSampler(
            [self.load(pairs.limited(config.limit), salient) for pairs in sets],
            config.crop,
            config.batch_size,
            weights if config.mix else None,
            config.seed,
            rank=self.fabric.global_rank,
            gains=config.gains,
            noise=config.noise,
            least_scale=config.least_scale,
        )
        held = self._validation_pairs([pairs.name for pairs in sets])
        return sampler, self.load(held.limited(config.validate_pairs), salient) if held else None

    def _validation_pairs(self, trained: list[str]) -> PairSet | None:
        """Pairs to validate on: those held out of the sets named, as one set."""
        config = self.config
        if not config.validation:
            return None
        if config.validation != "auto":
            return find_sets(config.validation)[0]
        try:
            held = find_sets(config.data, split="validation")
        except DataError as error:
            self.fabric.print(f"no validation: {error}")
            return None
        wanted = {name.removesuffix("/train") for name in trained}
        held = [pairs for pairs in held if pairs.name.rpartition("/")[0] in wanted]
        files = tuple(file for pairs in held for file in pairs.files)
        return PairSet("validation", held[0].root, files) if files else None

    @property
    def _last(self) -> Path:
        return self.output / "last.ckpt"

    def _resume(self) -> None:
        if not self._last.is_file():
            raise ConfigError(f"resume=true, but {self._last} does not exist; check output=")
        state = {"model": self.model, "optimizer": self.optimizer}
        rest = self.fabric.load(self._last, state, strict=False)
        self.step, self.seconds = rest["step"], rest["seconds"]
        self.first_losses, self.metrics = rest["first_losses"], rest["metrics"]
        self.last_losses = rest.get("last_losses", [])
        self.curve, self.validations = rest["curve"], rest.get("validations", [])
        self.average = {k: v.to(self.fabric.device) for k, v in rest["average"].items()}
        if rest.get("precision"):  # empty unless both runs are in 16-mixed
            self.fabric.strategy.precision.load_state_dict(rest["precision"])

    def save(self) -> None:
        """Write `last.ckpt` (to resume from) and `model.safetensors` (the averaged weights)."""
        state = {
            "model": self.model,
            "optimizer": self.optimizer,
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "average": self.average,
            "first_losses": self.first_losses,
            "last_losses": self.last_losses,
            "metrics": self.metrics,
            "validations": self.validations,
            "curve": self.curve,
        }
        partial = self._last.with_suffix(".partial")
        self.fabric.save(partial, state)
        if self.fabric.is_global_zero:
            os.replace(partial, self._last)
            self._save_average()

    def _save_average(self) -> None:
        weights = {k: v.detach().cpu().contiguous() for k, v in self.average.items()}
        partial = self.output / "model.partial"
        save_file(weights, partial)
        os.replace(partial, self.output / "model.safetensors")

    def _log(self, tag: str, value: float) -> None:
        if self.fabric.is_global_zero:
            self.writer.add_scalar(tag, value, self.step)

    def fit(self) -> dict[str, float]:
        """Train up to `max_steps`; return the last validation metrics ({} without validation)."""
        config, fabric = self.config, self.fabric
        if self.step >= config.max_steps:
            if self._recorded():
                fabric.print(
                    f"{self.output} is at step {self.step} already; raise max_steps to go on"
                )
                return self.metrics
            fabric.print(f"{self.output} was stopped at its last step: writing what is missing")
        if fabric.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter

            write_text(self.output / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
            self.writer = SummaryWriter(self.output, purge_step=self.step or None)
        if self.step < config.max_steps:
            self._train()
        if self.validation is not None and (
            not self.validations or self.validations[-1][0] != self.step
        ):
            self._validate_now()
        if fabric.is_global_zero:
            self._save_average()
            self._write_run()
            self.writer.close()
        return self.metrics

    def _recorded(self) -> bool:
        """Whether run.json, the last file of a run, exists and holds this number of steps."""
        record = self.output / "run.json"
        return record.is_file() and json.loads(record.read_text())["steps"] == self.step

    def _train(self) -> None:
        config, fabric = self.config, self.fabric
        bar = tqdm(
            total=config.max_steps,
            initial=self.step,
            disable=not fabric.is_global_zero,
            desc=config.method,
            mininterval=1.0,
            dynamic_ncols=True,
        )
        started = time.monotonic() - self.seconds
        recent: list[torch.Tensor] = []
        # A batch is a function of its step, so it is made while the device is busy.
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(self.sampler.batch, self.step)
            while self.step < config.max_steps:
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(config, self.step)
                self._set_train_mode()
                batch = upcoming.result().to(fabric.device)
                upcoming = ahead.submit(self.sampler.batch, self.step + 1)
                terms = self.objective(self.model, batch)
                loss = sum(terms.values())
                fabric.backward(loss)
                if config.clip:
                    fabric.clip_gradients(self.model, self.optimizer, max_norm=config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.step += 1
                self._update_average()
                bar.update()
                recent.append(loss.detach())
                last = self.step == config.max_steps
                validate = config.validate_every and not self.step % config.validate_every
                save = last or self.step % config.save_every == 0
                if last or save or self.step % config.log_every == 0:
                    # Losses are read only here, since reading one waits for the device.
                    self.seconds = time.monotonic() - started
                    values = [float(value) for value in recent]
                    recent.clear()
                    self._check_finite(values, terms)
                    self.last_losses = (self.last_losses + values)[-FIRST:]
                    self.first_losses += values[: max(0, FIRST - len(self.first_losses))]
                    mean = sum(values) / len(values)
                    self.curve.append((self.step, round(mean, 5)))
                    bar.set_postfix(loss=f"{mean:.4f}")
                    self._log("loss/total", mean)
                    for name, term in terms.items():
                        self._log(f"loss/{name}", float(term.detach()))
                    self._log("lr", self.optimizer.param_groups[0]["lr"])
                if save:
                    self.save()
                if validate and not last:
                    self._validate_now()
        bar.close()

    def _validate_now(self) -> None:
        metrics = self.validate()
        if not metrics:
            return
        self.metrics = metrics
        self.validations.append((self.step, {k: round(v, 5) for k, v in metrics.items()}))
        shown = " ".join(f"{key} {metrics[key]:.3f}" for key in ("VIF", "Qabf", "SCD", "AG"))
        tqdm.write(f"step {self.step}: validation {shown}")

    def _check_finite(self, losses: list[float], terms: dict[str, torch.Tensor]) -> None:
        if all(map(math.isfinite, losses)):
            return
        raise RuntimeError(
            f"the loss is not finite near step {self.step} "
            f"({ {k: float(v.detach()) for k, v in terms.items()} }): lower lr= or use "
            "precision=32-true, then resume=true goes on from the last checkpoint"
        )

    def _set_train_mode(self) -> None:
        self.model.train()
        if self.step >= self.config.freeze_norm * self.config.max_steps:
            for module in self.raw_model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    @torch.no_grad()
    def _update_average(self) -> None:
        # The short warm-up keeps the random initial weights out of the average.
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        state = self.raw_model.state_dict()
        moving = [key for key, value in state.items() if value.is_floating_point()]
        # One launch for all tensors: on a GPU one launch each costs as much as the network.
        torch._foreach_lerp_(
            [self.average[key] for key in moving], [state[key] for key in moving], 1.0 - decay
        )
        for key in state.keys() - set(moving):
            self.average[key].copy_(state[key])

    def validate(self) -> dict[str, float]:
        """Measure the averaged weights on the validation pairs: the mean of each metric."""
        if self.validation is None or not self.fabric.is_global_zero:
            return {}
        model = create_model(self.config.method, **self.config.model).to(self.fabric.device).eval()
        model.load_state_dict(self.average)
        rows, strips = [], []
        for ir, vi, _ in self.validation.images:
            fused = fuse_pair(model, ir, vi)
            rows.append(evaluate(fused, ir, vi).as_dict())
            strips.append(cv2.resize(np.concatenate((ir, vi, fused), 1), (1152, 288)))
        metrics = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        for key, value in metrics.items():
            self._log(f"validation/{key}", value)
        strip = np.concatenate(strips[:4])
        self.writer.add_image("thermal, visible, fused", strip[None], self.step)
        cv2.imwrite(str(self.output / "validation.png"), strip)
        return metrics

    def _write_run(self) -> None:
        window = max(1, min(FIRST, self.step // 4))
        run = {
            "config": asdict(self.config),
            "data": {str(f.root): len(f) for f in self.sampler.folders},
            "steps": self.step,
            "hours": round(self.seconds / 3600, 4),
            "device": self._device_name(),
            "precision": self.precision,
            "torch": torch.__version__,
            "commit": source_commit(),
            "loss_first": float(np.mean(self.first_losses[:window])),
            "loss_last": float(np.mean(self.last_losses[-window:])),
            "curve": self.curve,
            "validation": self.metrics,
            "validations": self.validations,
            "previous": self._previous_run(),
        }
        write_text(self.output / "run.json", json.dumps(run, indent=2) + "\n")

    def _previous_run(self) -> dict | None:
        """Record of the run that this one started from, if its parameters' folder has one."""
        if not self.config.init:
            return None
        shipped = self.config.init == "shipped"
        card = model_card(self.config.method).checkpoint
        record = (
            card.with_suffix(".json") if shipped else Path(self.config.init).parent / "run.json"
        )
        if not record.is_file():
            return {"init": Path(self.config.init).name}
        run = json.loads(record.read_text())
        return run["training"] if shipped else run

    def _device_name(self) -> str:
        if self.fabric.device.type == "cuda":
            return torch.cuda.get_device_name(self.fabric.device)
        return f"CPU, {torch.get_num_threads()} threads x {self.fabric.world_size}"
