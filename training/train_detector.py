# SPDX-License-Identifier: AGPL-3.0-only
"""Trains the detector for fused images that ships with the package, and exports it.

    python training/train_detector.py start=yolov8n.pt            # all methods' fused images
    python training/train_detector.py start=yolov8n.pt pictures=visible output=runs/on_visible
    python training/train_detector.py resume=true                 # go on where it stopped

It is trained on many kinds of picture (each camera alone, rules without a network, all methods), so
that it fits any of them. Settings are `key=value`:

    start     .pt of ultralytics to begin with; scores of classes that it has keep their weights
    data      folder of sets with boxes/ in YOLO form or boxes.json in COCO form; as in evaluate.py
    sets      names without their split, such as msrs,msrs128; default: all that have boxes
    classes   to find, comma separated
    methods   whose fused images to learn from, as in evaluate.py; 'none' for none
    pictures  kinds of pictures, comma separated; 'all'
    simulated pairs of each kind of simulated scene, with exact boxes (0: none)
    draws     kinds of pictures of each pair for training, chosen at random (0: all)
    size      longer side of the picture for the detector in pixels
    fuse_size longer side at which pairs are fused, at least `size`; smaller pairs at their own. The
              fused picture is then resized to `size`, as in the node
    epochs, batch, lr, freeze, patience   of the training; `freeze` layers from the first on stay;
              epochs=0 only writes the data set
    limit     pairs of each set, evenly spaced (0: all)
    max_steps steps in all, in place of epochs (0: epochs decide)
    precision 'auto' takes bf16 where the processor computes in it, else float32
    threads   of torch (0: all cores)
    seed      of the choice of pictures and of the training
    resume    go on from `output`
    ship      also write detector.onnx and detector.json into the package
    output    folder of the data set, the run and detector.onnx
"""

from __future__ import annotations

from fusion_models.interrupt import end_quietly

if __name__ == "__main__":
    end_quietly()

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import torch
from evaluate import Network, host, load_networks, versions
from tqdm import tqdm

from fusion_models.boxes import BoxReport
from fusion_models.detection import SHIPPED
from fusion_models.detection.dataset import (
    CLASSES,
    Part,
    read_labels,
    resized_pairs,
    write_dataset,
)
from fusion_models.detection.pictures import Picture, choose
from fusion_models.detection.pictures import pictures as all_pictures
from fusion_models.files import write_text
from fusion_models.hardware import choose_precision, keep_freed_memory
from fusion_models.pairs import DataError, PairSet, find_pair_folders, find_sets, list_pairs
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_ros.cameras.street import export as street
from fusion_ros.cameras.street.kinds import KINDS, ORDINARY
from fusion_ros.inference import EngineError
from fusion_ros.size import Size

DEFAULTS = {
    "start": "yolov8n.pt", "data": "auto", "sets": "", "classes": ",".join(CLASSES),
    "methods": "shipped", "pictures": "all", "simulated": 10, "draws": 4, "size": 320,
    "fuse_size": 640,
    "epochs": 8, "batch": 16, "lr": 5e-4, "freeze": 0, "patience": 50, "max_steps": 0,
    "limit": 0, "precision": "auto", "threads": 0, "seed": 0, "resume": False, "ship": False,
    "output": "runs/detector",
}  # fmt: skip
PLACES = ("start", "data", "methods", "output", "resume", "ship")
"""Settings that the card leaves out: folders of this machine, and what it says by other entries."""
SMALL = 200
"""Height up to which the pictures of a set have a low weight in validation: they are blurred."""
VALIDATED = ("visible", "infrared", "mean .8")
"""Kinds of pictures on which checkpoints are chosen, beside the networks'."""


def labelled_sets(data: str, names: str, split: str, limit: int = 0) -> list[PairSet]:
    """Sets of a split that have boxes: those named, or all."""
    wanted = [name for name in names.split(",") if name]
    try:
        sets = find_sets(data, split=split, limit=limit)
    except DataError:
        if not wanted:
            raise
        sets = []
    found = {}
    for pairs in sets:
        base = pairs.name.rpartition("/")[0] or pairs.name
        if (pairs.root / "boxes").is_dir() or (pairs.root / "boxes.json").is_file():
            found[base] = pairs
    if unknown := sorted(set(wanted) - set(found)):
        raise DataError(
            f"no boxes for {', '.join(unknown)} in the split {split}; there are boxes for "
            f"{', '.join(found) or 'nothing'} (boxes/ or boxes.json beside ir/ and vi/)"
        )
    if not found:
        raise DataError(
            f"no set with boxes in {', '.join(find_pair_folders(data))}: put boxes/ (YOLO) or "
            "boxes.json (COCO) beside ir/ and vi/"
        )
    return [found[name] for name in (wanted or found)]


def simulated_sets(folder: Path, count: int, size: Size) -> dict[str, PairSet]:
    """Simulated pairs of all kinds for training and validation, of different streets."""
    sets = {}
    for split, pairs, seed in (("train", count, 0), ("val", max(1, count // 4), 100_000)):
        root = folder / f"simulated_{size}" / split
        wanted = pairs * len(KINDS + ORDINARY)
        if not (root / "ir").is_dir() or len(list((root / "ir").iterdir())) < wanted:
            street.export(root, pairs, size, KINDS + ORDINARY, seed)
        sets[split] = PairSet(f"simulated/{split}", root, tuple(list_pairs(root)))
    return sets


def prepare(config, kinds: dict[str, Picture], networks: dict[str, Network], folder: Path) -> Path:
    """Write the data set; prints what the labels hold and what is wrong with them."""
    # Pictures of another size or of an older network are not those of this run.
    marks = dict.fromkeys(kinds, str(config.fuse_size))
    for name, network in networks.items():
        marks[name] = f"{network.as_dict()['sha256'][:8]}-{config.fuse_size}"
    classes = config.classes.split(",")
    parts: dict[str, list[Part]] = {"train": [], "val": []}
    held = [name for name in (*VALIDATED, *networks) if name in kinds] or list(kinds)
    for split, name in (("train", "train"), ("val", "validation")):
        report = BoxReport()
        for pairs in labelled_sets(config.data, config.sets, name, config.limit):
            labels, _ = read_labels(pairs, classes, report)
            first = cv2.imread(str(pairs.files[0][0]), cv2.IMREAD_UNCHANGED)
            small = first.shape[0] <= SMALL
            shown = kinds if split == "train" else {k: kinds[k] for k in held}
            draws = config.draws if split == "train" else int(small)
            fused = fusing_size(*first.shape[1::-1], config.fuse_size)
            place = folder / f"pairs_{config.fuse_size}" / pairs.name
            pairs = resized_pairs(pairs, place, fused)
            parts[split].append(Part(pairs, labels, shown, draws, marks, config.size))
        if config.simulated:
            size = Size(config.fuse_size, config.fuse_size * 3 // 4)
            pairs = simulated_sets(folder, config.simulated, size)[split]
            labels, _ = read_labels(pairs, classes, report)
            shown = kinds if split == "train" else {k: kinds[k] for k in held}
            draws = config.draws if split == "train" else 1
            parts[split].append(Part(pairs, labels, shown, draws, marks, config.size))
        print(f"{split}: {report}", flush=True)
    with tqdm(desc="pictures", unit="", mininterval=2.0) as bar:
        return write_dataset(folder, parts, classes, config.seed, lambda name: bar.update())


def fusing_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height, multiples of 8, in which a pair is fused for the detector."""
    if height <= SMALL and width == height:  # squeezed from 4:3, as msrs128 is
        width = height * 4 // 3
    scale = min(1.0, longest / max(width, height))
    return round(width * scale / 8) * 8, round(height * scale / 8) * 8


def precision(setting: str) -> str:
    """'bf16' or 'fp32', chosen by the hardware for 'auto'."""
    if setting not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"precision={setting}: expected auto, bf16 or fp32")
    if setting != "auto":
        return setting
    return "bf16" if choose_precision("auto", "auto")[0] == "bf16-mixed" else "fp32"


def train(config, data: Path, output: Path) -> dict:
    """Train and choose the checkpoint by validation; returns the record of the run."""
    from fusion_models.detection.network import FusedTrainer

    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    computes = precision(config.precision)
    run, started = output / "run", time.monotonic()
    pictures = len((data.parent / "train.txt").read_text().splitlines())
    epochs = config.epochs
    if config.max_steps:
        epochs = max(1, math.ceil(config.max_steps * config.batch / pictures))
    settings = {
        "model": config.start, "data": str(data), "imgsz": config.size, "epochs": epochs,
        "batch": config.batch, "nbs": config.batch, "lr0": config.lr, "lrf": 0.05,
        "optimizer": "AdamW", "warmup_epochs": min(1.0, epochs / 4), "cos_lr": True,
        "freeze": config.freeze, "patience": config.patience, "close_mosaic": max(1, epochs // 4),
        "mosaic": 0.5, "scale": 0.4, "degrees": 0.0, "hsv_h": 0.01, "hsv_s": 0.5, "hsv_v": 0.3,
        "device": "cpu" if not torch.cuda.is_available() else 0, "workers": 0, "plots": False,
        "amp": False, "project": str(output), "name": "run",
        "exist_ok": True, "seed": config.seed, "deterministic": False, "cache": False,
        "val": True, "conf": 0.01, "verbose": False,
    }  # fmt: skip
    last = run / "weights" / "last.pt"
    if config.resume:
        if not last.is_file():
            raise ConfigError(f"resume=true, but {last} does not exist; check output=")
        settings = {"resume": str(last), "device": settings["device"]}
    trainer = FusedTrainer(bf16=computes == "bf16", overrides=settings)
    with tqdm(total=config.max_steps or None, desc="steps", unit="", mininterval=2.0) as bar:
        watch(trainer, config.max_steps, bar)
        trainer.train()
    metrics = {k: round(float(v), 4) for k, v in trainer.metrics.items() if "metrics/" in k}
    return {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "epochs": trainer.epoch + 1,
        "pictures": pictures,
        "precision": computes,
        "validation": {
            k.removeprefix("metrics/").removesuffix("(B)"): v for k, v in metrics.items()
        },
    }


def watch(trainer, steps: int, bar: tqdm) -> None:
    """Show each step, and each epoch's validation; end after `steps` (0: when epochs are over)."""
    trained = set()

    def step(trainer) -> None:
        trained.add(trainer.epoch)
        bar.total = steps or trainer.epochs * len(trainer.train_loader)
        bar.update()
        if steps and bar.n >= steps:
            trainer.stop = True

    def start(trainer) -> None:
        bar.n = trainer.start_epoch * len(trainer.train_loader)

    def epoch(trainer) -> None:
        shown = {k: v for k, v in trainer.metrics.items() if "mAP" in k}
        text = ", ".join(f"{k.partition('/')[2]} {v:.3f}" for k, v in shown.items())
        # ultralytics calls this once more after the end, for the checkpoint that it has chosen.
        number = f"epoch {trainer.epoch + 1} of {trainer.epochs}"
        tqdm.write(f"{number if trainer.epoch in trained else 'chosen checkpoint'}: {text}")

    trainer.add_callback("on_train_start", start)
    trainer.add_callback("on_train_batch_end", step)
    trainer.add_callback("on_fit_epoch_end", epoch)


def export(config, networks: Mapping[str, Network], output: Path, record: dict) -> Path:
    """Write the chosen checkpoint as ONNX with its card."""
    from fusion_models.detection.network import export_detector, load_yolo

    best = output / "run" / "weights" / "best.pt"
    model = load_yolo(best if best.is_file() else best.with_name("last.pt"))
    width = config.size
    height = math.ceil(width * 3 / 4 / 32) * 32
    path = export_detector(model, output / "detector.onnx", width, height)
    card = {
        "name": "detector",
        "title": "Persons, bicycles, cars and buses in fused thermal and visible images",
        "network": "YOLOv8n of ultralytics, fine-tuned; computes in float32, stored in float16",
        "licence": "AGPL-3.0-only, as the weights that it began with and as ultralytics",
        "classes": list(model.names.values()),
        "input": f"{width}x{height} RGB in [0, 1], letterboxed with grey 114",
        "bytes": path.stat().st_size,
        "training": {
            **record,
            "start": Path(config.start).name,
            "settings": {k: v for k, v in config.items() if k not in PLACES},
            "networks": {name: network.as_dict()["sha256"] for name, network in networks.items()},
            "data": json.loads((output / "data" / "dataset.json").read_text()),
            "host": host(),
            "versions": versions(),
        },
    }  # fmt: skip
    write_text(output / "detector.json", json.dumps(card, indent=2) + "\n")
    return path


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        if config.size % 32 or config.size < 64:
            raise ConfigError(f"size={config.size}: expected a multiple of 32 from 64 on")
        if config.fuse_size % 32 or config.fuse_size < 64:
            raise ConfigError(f"fuse_size={config.fuse_size}: expected a multiple of 32 from 64 on")
        config.fuse_size = max(config.fuse_size, config.size)
        if not config.resume and not Path(config.start).expanduser().is_file():
            raise ConfigError(f"start={config.start}: no such file; give a .pt of ultralytics")
        networks = {}
        if config.methods != "none":
            networks = load_networks(config.methods, "onnxruntime", "fp32", config.threads)
        kinds = choose(all_pictures(networks), config.pictures)
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        data = prepare(config, kinds, networks, output / "data")
        if not config.epochs:
            say(str(data))
            return 0
        record = train(config, data, output)
        path = export(config, networks, output, record)
        if config.ship:
            SHIPPED.parent.mkdir(parents=True, exist_ok=True)
            for file in (path, path.with_suffix(".json")):
                shutil.copyfile(file, SHIPPED.with_suffix(file.suffix))
    except (ValueError, OSError, EngineError) as error:
        print(f"train_detector.py: {error}", file=sys.stderr)
        return 2
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {record['validation']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
