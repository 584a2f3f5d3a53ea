# SPDX-License-Identifier: AGPL-3.0-only
"""Searches the weights of a fusion loss by a perception task (CAF, Algorithm 1).

    python training/search_loss.py method=caf task=detection task_weights=yolov8n.pt
    python training/search_loss.py method=refinefuse task=segmentation steps=2000
    python training/search_loss.py resume=true output=runs/search_caf_detection
    python training/search_loss.py weights=random seed=3 output=runs/random_3      # a control
    python training/train.py method=caf loss=runs/search_caf_detection/loss.yaml

Settings are `key=value`:

    method, model   any registered method, and keyword arguments of its network
    task        detection (boxes/ beside the pairs) or segmentation (labels/<stem>.png of class ids)
    task_weights  .pt of a YOLO, or a folder of a SegFormer ('': random weights, segmentation only)
    data, sets, limit   as in train_detector.py; only training pairs are used, in two halves
    terms       paper: the fifteen of Figure 1; all: this project's own besides
    perceptual  vgg16, efficientnet_lite0, none; auto takes VGG-16 if its weights can be had
    init        safetensors of the fusion network to begin with, or 'shipped', or '' for random ones
    steps, lr, task_lr, beta_lr, beta_decay, eta, radius, task_every, warmup   see SearchSettings
    task_trained  first layer of the YOLO that is trained (22 is its head)
    crop, batch of the crops
    precision   auto takes bf16 for the steps of the networks where the hardware is faster in it
    labels      real, or shuffled: each image gets another's, so that a gain would be an accident
    weights     searched; equal or random write a loss file without a search, as controls
    seed, threads, resume, save_every
    output      folder of loss.yaml, trajectory.json and .png, search.ckpt
"""

from __future__ import annotations

from fusion_models.interrupt import end_quietly

if __name__ == "__main__":
    end_quietly()

import json
import sys
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from fusion_models import create_model, model_card
from fusion_models.boxes import BoxReport
from fusion_models.detection.dataset import read_labels
from fusion_models.hardware import choose_precision, keep_freed_memory
from fusion_models.pairs import DataError, find_sets
from fusion_models.search.data import TaskSampler, TaskSet, load_set
from fusion_models.search.search import Search, SearchSettings, write_loss, write_trajectory
from fusion_models.search.tasks import TASKS, DetectionTask, SegmentationTask
from fusion_models.search.terms import FIXED, SPACES, LossTerms
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_models.trainer import source_commit

LABELLED = ("person", "bicycle", "car")
DEFAULTS = {
    "method": "caf", "model": {}, "task": "detection", "task_weights": "", "data": "auto",
    "sets": "", "limit": 0, "terms": "paper", "perceptual": "auto", "init": "", "steps": 600,
    "lr": 1e-3, "task_lr": 1e-4, "beta_lr": 5e-2, "beta_decay": 0.998, "eta": 0.0, "radius": 0.01,
    "task_every": 1, "warmup": 0, "task_trained": 22, "crop": 160, "batch": 4, "precision": "auto",
    "labels": "real", "weights": "searched", "seed": 0, "threads": 0, "resume": False,
    "save_every": 25, "output": "",
}  # fmt: skip


def check(config) -> None:
    """Name what cannot work before anything is read; ConfigError."""
    choices = {
        "task": TASKS, "terms": tuple(SPACES), "labels": ("real", "shuffled"),
        "weights": ("searched", "equal", "random"),
    }  # fmt: skip
    for key, allowed in choices.items():
        if config[key] not in allowed:
            raise ConfigError(f"{key}={config[key]}: expected {' or '.join(allowed)}")
    if config.crop % 32 or config.crop < 64:
        raise ConfigError(f"crop={config.crop}: expected a multiple of 32 from 64 on")
    if config.steps < 1 or config.batch < 1:
        raise ConfigError(f"steps={config.steps}, batch={config.batch}: expected 1 or more")
    needs_weights = config.weights == "searched" and config.task == "detection"
    if needs_weights and not Path(config.task_weights).expanduser().is_file():
        raise ConfigError(
            f"task_weights={config.task_weights}: no such file; give a .pt of ultralytics"
        )


def load_data(config) -> list[TaskSet]:
    """The labelled training pairs of all sets; prints what is wrong with the labels."""
    wanted = [name for name in config.sets.split(",") if name]
    report, loaded, left_out = BoxReport(), {}, []
    for pairs in find_sets(config.data, split="train", limit=config.limit):
        name = pairs.name.rpartition("/")[0] or pairs.name
        if wanted and name not in wanted:
            continue
        folder = "boxes" if config.task == "detection" else "labels"
        there = (pairs.root / folder).is_dir() or (
            folder == "boxes" and (pairs.root / "boxes.json").is_file()
        )
        if not there:
            left_out.append(name)
            continue
        boxes = None
        if config.task == "detection":
            boxes, _ = read_labels(pairs, LABELLED, report)
        loaded[name] = load_set(pairs, boxes)
    if left_out:
        print(f"left out, since not labelled for {config.task}: {', '.join(left_out)}")
    if missing := sorted(set(wanted) - set(loaded)):
        raise DataError(f"no training pairs labelled for {config.task} in {', '.join(missing)}")
    if not loaded:
        where = "boxes/ or boxes.json" if config.task == "detection" else "labels/<stem>.png"
        raise DataError(
            f"no training pairs labelled for {config.task}: put {where} beside ir/, vi/"
        )
    if config.task == "detection":
        print(report)
    if config.labels == "shuffled":
        return [task_set.with_other_boxes(config.seed) for task_set in loaded.values()]
    return list(loaded.values())


def fusion_network(config) -> torch.nn.Module:
    """The network to begin with."""
    network = create_model(config.method, **OmegaConf.to_container(config.model))
    if config.init:
        shipped = config.init == "shipped"
        network.load_state_dict(
            load_file(model_card(config.method).checkpoint if shipped else config.init)
        )
    return network


def build(config) -> Search:
    """The search as configured."""
    halves = [task_set.halves() for task_set in load_data(config)]
    samplers = [
        TaskSampler([h[part] for h in halves if len(h[part])], config.crop, config.batch,
                    2 * config.seed + part)
        for part in range(2)
    ]  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.task == "detection":
        task = DetectionTask(Path(config.task_weights), LABELLED, config.task_trained)
    else:
        task = SegmentationTask(config.task_weights)
    terms = LossTerms((*SPACES[config.terms], *FIXED), config.perceptual)
    if terms.perceptual is not None:
        print(f"perceptual terms by {terms.perceptual.name}")
    settings = SearchSettings(
        **{k: config[k] for k in ("steps", "lr", "task_lr", "beta_lr", "beta_decay", "eta",
                                  "radius", "task_every", "warmup")},
        bf16=choose_precision(config.precision, "auto")[0] == "bf16-mixed",
    )  # fmt: skip
    return Search(fusion_network(config), task, terms, *samplers, settings, device)


def control(config, output: Path) -> None:
    """Write equal or random weights in the form of a search's result."""
    names = SPACES[config.terms]
    if config.perceptual == "none":
        names = [name for name in names if not name.startswith("perceptual")]
    weights = np.ones(len(names))
    if config.weights == "random":  # as uniform over all mixtures as equal weights are one of them
        weights = np.random.default_rng(config.seed).dirichlet(weights) * len(names)
    head = {"found": f"{config.weights}, seed {config.seed}; a control, not searched"}
    write_loss(output / "loss.yaml", names, weights, head)


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        check(config)
        output = Path(config.output or f"runs/search_{config.method}_{config.task}")
        output.mkdir(parents=True, exist_ok=True)
        if config.weights != "searched":
            control(config, output)
            print(output / "loss.yaml")
            return 0
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        search = build(config)
        checkpoint = output / "search.ckpt"
        if config.resume:
            if not checkpoint.is_file():
                raise ConfigError(f"resume=true, but {checkpoint} does not exist; check output=")
            search.load(checkpoint)
        search.run(checkpoint, config.save_every)
    except (ValueError, OSError) as error:
        print(f"search_loss.py: {error}", file=sys.stderr)
        return 2
    perceptual = search.terms.perceptual
    head = {
        "found": f"search by {config.task} with {config.method}, {search.step} iterations, seed "
        f"{config.seed}, labels {config.labels}, commit {source_commit()}",
        "perceptual": perceptual.name if perceptual is not None else "none",
        "signal_to_noise": {
            name: round(value, 2) for name, value in zip(search.names, search.noise.ratio.tolist())
        },
    }
    write_loss(output / "loss.yaml", search.names, search.weights.tolist(), head)
    write_trajectory(output / "trajectory.json", search)
    ranked = sorted(zip(search.weights.tolist(), search.names), reverse=True)
    print(", ".join(f"{name} {weight:.2f}" for weight, name in ranked))
    print(json.dumps({"seconds": round(search.seconds), "output": str(output / "loss.yaml")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
