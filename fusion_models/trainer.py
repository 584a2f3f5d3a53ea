# SPDX-License-Identifier: AGPL-3.0-only
"""Training of any registered method: one code for a CPU, a GPU and several (Lightning Fabric)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from fusion_models import create_model, create_objective, model_card
from fusion_models.data import CropSampler, PairFolder, find_roots
from fusion_models.evaluation.metrics import evaluate
from fusion_models.settings import ConfigError, parse_arguments

OPTIMIZERS = {"adamw": (torch.optim.AdamW, {}), "sgd": (torch.optim.SGD, {"momentum": 0.9})}
FIRST = 20
"""How many losses at the beginning of a run are kept to compare its end with."""


@dataclass
class TrainConfig:
    """Settings of a training run; each may be given as `key=value` on the command line.

    Attributes:
        method: one of `fusion_models.list_models()`.
        data: pair folders or folders of sets, comma separated; 'auto' looks in the usual places.
        mix: relative weight of each set by the folder's name (absent: 1; 0: left out).
        salient: ids of labels, where there are any, that count as salient objects.
        limit: most pairs read from one root (0: all).
        validation: pair folder to measure on; 'auto' takes the `test` split of msrs or of the first root.
        output: folder of checkpoints, logs and pictures; '' for `runs/<method>`.
        resume: go on from the output folder's last checkpoint.
        init: safetensors file to start from, or 'shipped' for the committed weights.
        max_steps, batch_size, crop: schedule and batch; batch_size is per process.
        optimizer: adamw, or sgd with a momentum of 0.9.
        lr, warmup, lr_final, weight_decay, clip: warm-up, then a cosine decay.
        freeze_norm: share of the schedule after which batch norms use their running statistics.
        average: decay of the moving average of the weights, which is what is evaluated and shipped.
        precision: 32-true, bf16-mixed or 16-mixed. devices, accelerator, threads: where to run.
        seed: of initialisation and of the sequence of batches.
        log_every, validate_every, save_every: in steps; validate_pairs: how many to measure.
        model, objective: keyword arguments of the method's network and objective.
    """

    method: str = "baffm"
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
    freeze_norm: float = 0.6
    average: float = 0.995
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    threads: int = 0
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    validate_pairs: int = 6
    save_every: int = 250
    model: dict = field(default_factory=dict)
    objective: dict = field(default_factory=dict)


def load_config(arguments: list[str], folder: Path) -> TrainConfig:
    """Defaults, then `<folder>/<method>.yaml`, then `config=<yaml>`, then `key=value` arguments.

    With `resume=true` the settings saved with the run come before the arguments.
    """
    overrides = parse_arguments(arguments)
    extra = overrides.pop("config", None)
    method = overrides.get("method", TrainConfig.method)
    layers = [OmegaConf.structured(TrainConfig)]
    if (folder / f"{method}.yaml").is_file():
        layers.append(OmegaConf.load(folder / f"{method}.yaml"))
    if extra:
        layers.append(OmegaConf.load(extra))
    try:
        config = OmegaConf.merge(*layers, overrides)
        saved = Path(config.output or f"runs/{config.method}") / "config.yaml"
        if config.resume and saved.is_file():
            # A run goes on as it was begun; only what is said now differs.
            config = OmegaConf.merge(*layers, OmegaConf.load(saved), overrides)
        return OmegaConf.to_object(config)
    except Exception as error:
        keys = ", ".join(TrainConfig.__dataclass_fields__)
        raise ConfigError(f"{str(error).splitlines()[0]}; settings are: {keys}") from error


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
def fuse_pair(model: nn.Module, ir: np.ndarray, vi: np.ndarray) -> np.ndarray:
    """Fuses `(H, W)` uint8 luminances of any size; pads by reflection, returns `(H, W)` uint8."""
    device = next(model.parameters()).device
    height, width = ir.shape
    planes = torch.from_numpy(np.stack((ir, vi)).astype(np.float32) / 255.0).to(device)
    pad = (0, -width % 8, 0, -height % 8)
    planes = F.pad(planes[:, None], pad, mode="reflect")
    fused = model(planes[:1], planes[1:])[0, 0, :height, :width]
    return (fused.clamp(0, 1) * 255.0).round().to(torch.uint8).cpu().numpy()


class Trainer:
    """One run: data are checked first, then trained, validated, saved, and resumed on request."""

    def __init__(self, config: TrainConfig):
        self.config = config
        card = model_card(config.method)  # an unknown method is refused before anything else
        if config.max_steps < 1 or config.batch_size < 1 or config.crop < 32 or config.crop % 8:
            raise ConfigError("max_steps and batch_size must be >= 1, crop a multiple of 8, >= 32")
        if config.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer '{config.optimizer}': choose {', '.join(OPTIMIZERS)}")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.fabric = Fabric(
            accelerator=config.accelerator,
            # torchrun sets the number of processes; a plain call uses `devices`.
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", config.devices)),
            precision=config.precision,
            strategy="ddp" if int(os.environ.get("WORLD_SIZE", config.devices)) > 1 else "auto",
        )
        self.fabric.launch()
        self.fabric.seed_everything(config.seed, verbose=False)
        torch.backends.cudnn.benchmark = True  # all crops are of one size
        self.output = Path(config.output or f"runs/{config.method}")
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
        self.objective = create_objective(config.method, **config.objective).to(self.fabric.device)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.first_losses: list[float] = []
        self.curve: list[tuple[int, float]] = []
        self.metrics: dict[str, float] = {}
        if config.resume:
            self._resume()

    def _data(self) -> tuple[CropSampler, PairFolder | None]:
        config = self.config
        roots, weights, names = [], [], []
        for root in find_roots(config.data):
            name = root.parent.name if root.name == "train" else root.name
            weight = config.mix.get(name, 1.0)
            if weight > 0:
                roots.append(root)
                weights.append(weight)
            names.append(name)
        if absent := sorted(set(config.mix) - set(names)):
            self.fabric.print(f"mix: no set {', '.join(absent)} in the data: {', '.join(names)}")
        folders = [PairFolder(root, config.limit, tuple(config.salient)) for root in roots]
        sampler = CropSampler(
            folders,
            config.crop,
            config.batch_size,
            weights if config.mix else None,
            config.seed,
            rank=self.fabric.global_rank,
        )
        if config.validation == "auto":
            tests = [r.parent / "test" for r in roots if (r.parent / "test" / "ir").is_dir()]
            tests.sort(key=lambda path: path.parent.name != "msrs")  # varied scenes, full size
            validation = PairFolder(tests[0] if tests else roots[0], config.validate_pairs)
        else:
            validation = (
                PairFolder(config.validation, config.validate_pairs) if config.validation else None
            )
        return sampler, validation

    @property
    def _last(self) -> Path:
        return self.output / "last.ckpt"

    def _resume(self) -> None:
        if not self._last.is_file():
            raise ConfigError(f"resume=true, but {self._last} does not exist; check output=")
        state = {"model": self.model, "optimizer": self.optimizer}
        rest = self.fabric.load(self._last, state, strict=True)
        self.step, self.seconds = rest["step"], rest["seconds"]
        self.first_losses, self.metrics = rest["first_losses"], rest["metrics"]
        self.curve = rest["curve"]
        self.average = {k: v.to(self.fabric.device) for k, v in rest["average"].items()}

    def save(self) -> None:
        """Writes `last.ckpt` (to resume) and `model.safetensors` (the averaged weights)."""
        state = {
            "model": self.model,
            "optimizer": self.optimizer,
            "step": self.step,
            "seconds": self.seconds,
            "average": self.average,
            "first_losses": self.first_losses,
            "metrics": self.metrics,
            "curve": self.curve,
        }
        partial = self._last.with_suffix(".partial")
        self.fabric.save(partial, state)
        if self.fabric.is_global_zero:
            os.replace(partial, self._last)
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in self.average.items()},
                self.output / "model.safetensors",
            )

    def _log(self, tag: str, value: float) -> None:
        if self.fabric.is_global_zero:
            self.writer.add_scalar(tag, value, self.step)

    def fit(self) -> dict[str, float]:
        """Trains to `max_steps`; returns the last validation metrics (empty without validation)."""
        config, fabric = self.config, self.fabric
        if self.step >= config.max_steps:
            fabric.print(f"{self.output} is at step {self.step} already; raise max_steps to go on")
            return self.metrics
        if fabric.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter

            OmegaConf.save(OmegaConf.structured(config), self.output / "config.yaml")
            self.writer = SummaryWriter(self.output, purge_step=self.step or None)
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
        losses: list[float] = []
        # A batch is a function of its step, so it can be made while the device is busy.
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
                fabric.clip_gradients(self.model, self.optimizer, max_norm=config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.step += 1
                self._update_average()
                bar.update()
                recent.append(loss.detach())
                last = self.step == config.max_steps
                validate = last or (config.validate_every and not self.step % config.validate_every)
                save = last or self.step % config.save_every == 0
                if last or save or self.step % config.log_every == 0:
                    # Only here: reading a loss waits for the device.
                    self.seconds = time.monotonic() - started
                    values = [float(value) for value in recent]
                    recent.clear()
                    self._check_finite(values, terms)
                    losses += values
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
                if validate:
                    self.metrics = self.validate() or self.metrics
                    if self.metrics:
                        keys = ("VIF", "Qabf", "SCD", "AG")
                        shown = " ".join(f"{k} {self.metrics[k]:.3f}" for k in keys)
                        bar.write(f"step {self.step}: {shown}")
        bar.close()
        if fabric.is_global_zero:
            self._write_run(losses)
            self.writer.close()
        return self.metrics

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
        # A short warm-up keeps the random initial weights out of the average.
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        state = self.raw_model.state_dict()
        moving = [key for key, value in state.items() if value.is_floating_point()]
        # One launch for all tensors: on a GPU one each costs as much as the network.
        torch._foreach_lerp_(
            [self.average[key] for key in moving], [state[key] for key in moving], 1.0 - decay
        )
        for key in state.keys() - set(moving):
            self.average[key].copy_(state[key])

    def validate(self) -> dict[str, float]:
        """Mean metrics of the averaged weights over the validation pairs, and a picture strip."""
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

    def _write_run(self, losses: list[float]) -> None:
        window = max(1, min(FIRST, len(losses) // 4))
        run = {
            "config": asdict(self.config),
            "data": {str(f.root): len(f) for f in self.sampler.folders},
            "steps": self.step,
            "hours": round(self.seconds / 3600, 4),
            "device": self._device_name(),
            "torch": torch.__version__,
            "commit": source_commit(),
            "loss_first": float(np.mean(self.first_losses[:window])),
            "loss_last": float(np.mean(losses[-window:])),
            "curve": self.curve,
            "validation": self.metrics,
            "previous": self._previous_run(),
        }
        (self.output / "run.json").write_text(json.dumps(run, indent=2) + "\n")

    def _previous_run(self) -> dict | None:
        """Record of the run whose parameters this one started from, if it lies beside them."""
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
