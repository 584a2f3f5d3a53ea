# SPDX-License-Identifier: AGPL-3.0-only
"""Compares searched losses with others at equal budget: the paper's Table 3, and whether it counts.

    python training/compare_losses.py task_weights=yolov8n.pt detector=yolov8n.onnx
    python training/compare_losses.py method=refinefuse loss_of=caf output=runs/losses_refinefuse

For each seed it searches the weights, and once with shuffled labels; it then trains the method with
the searched weights, with its hand-set objective, with equal and with random weights, exports each
network, and measures fusion (VIF, Qabf) and detection (AP) on test pairs, which no search has seen.
What is done already stays, so that the command can be repeated to go on. Settings are `key=value`:

    method      the network that is trained. loss_of: the method whose search is used ('': the same)
    task_weights, steps   of search_loss.py. train_steps: of each training
    seeds, randoms   number of searches, of hand-set and of equal runs; of random weights
    detector    ONNX file that measures; default: the one that ships. Give one that no fusion saw
    data, sets  as in evaluate_detection.py; sets are those measured on
    repeats     bootstrap samples
    search, train   more settings for the two scripts, such as 'search=crop=128 batch=2'
    threads, output
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from evaluate import load_networks
from evaluate_detection import DEFAULTS as DETECTION
from evaluate_detection import detect_set, detectors_of, labelled_tests

from fusion_models.boxes import class_names
from fusion_models.detection.dataset import read_labels
from fusion_models.detection.pictures import Coloured
from fusion_models.evaluation.detection import Matches, interval
from fusion_models.evaluation.evaluate import evaluate_set
from fusion_models.files import write_text
from fusion_models.search.terms import FIXED
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_ros.inference import EngineError

HERE = Path(__file__).resolve().parent
KINDS = ("searched", "hand-set", "equal", "random", "shuffled")
DEFAULTS = {
    "method": "caf", "loss_of": "", "task_weights": "", "steps": 600, "train_steps": 3000,
    "seeds": 3, "randoms": 5, "detector": "", "data": "auto", "sets": "", "repeats": 1000,
    "search": "", "train": "", "threads": 0, "output": "",
}  # fmt: skip


def run(script: str, *arguments: str) -> None:
    """Run a script of this folder with the same Python; ConfigError if it fails."""
    print(f"== {script} {' '.join(arguments)}", flush=True)
    if subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode:
        raise ConfigError(f"{script} failed; mend what it says and repeat the command to go on")


def find_losses(config, folder: Path) -> dict[str, Path | None]:
    """A loss file for each run, by name; None for the hand-set objective."""
    method = config.loss_of or config.method
    common = [f"method={method}", f"threads={config.threads}"]
    search = [
        *common, f"task_weights={config.task_weights}", f"data={config.data}",
        f"steps={config.steps}", *config.search.split(),
    ]  # fmt: skip
    losses: dict[str, Path | None] = {}
    plans = {f"searched_{s}": [*search, f"seed={s}"] for s in range(config.seeds)}
    plans["shuffled_0"] = [*search, "seed=0", "labels=shuffled"]
    plans["equal_0"] = [*common, "weights=equal"]
    plans |= {
        f"random_{s}": [*common, "weights=random", f"seed={s}"] for s in range(config.randoms)
    }
    for name, arguments in plans.items():
        output = folder / name
        losses[name] = output / "loss.yaml"
        if not losses[name].is_file():
            begun = (output / "search.ckpt").is_file()
            run("search_loss.py", *arguments, f"output={output}", *["resume=true"] * begun)
    for seed in range(1, config.seeds):
        losses[f"equal_{seed}"] = losses["equal_0"]
    losses |= {f"hand-set_{seed}": None for seed in range(config.seeds)}
    return losses


def train(config, folder: Path, losses: Mapping[str, Path | None]) -> dict[str, Path]:
    """Train and export a network with each loss; the ONNX files by name."""
    exported = {}
    for name, loss in losses.items():
        output = folder / name / "run"
        exported[name] = folder / name / f"{config.method}.onnx"
        if exported[name].is_file():
            continue
        seed = name.rpartition("_")[2]
        given = [
            f"method={config.method}", f"output={output}", f"max_steps={config.train_steps}",
            f"seed={seed}", f"threads={config.threads}", f"data={config.data}",
            *config.train.split(), *([f"loss={loss}"] if loss else []),
        ]  # fmt: skip
        begun = (output / "last.ckpt").is_file()
        run("train.py", *given, *["resume=true"] * begun)
        run("export.py", f"method={config.method}", f"run={output}", f"output={folder / name}")
    return exported


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def agreement(losses: Mapping[str, Path | None]) -> list[float]:
    """Rank correlation of the searched weights between each two seeds."""
    found = []
    for name, path in losses.items():
        if name.startswith("searched"):
            weights = yaml.safe_load(path.read_text())["weights"]
            found.append([w for term, w in weights.items() if term not in FIXED])
    return [rank_correlation(a, b) for i, a in enumerate(found) for b in found[:i]]


def compare(
    matches: Mapping[str, Matches], repeats: int
) -> dict[str, dict[str, float | list[float]]]:
    """AP of each kind of loss, and the interval of what the searched ones gain over it.

    A kind's figure is the mean over its runs; the images are drawn once for all of them.
    """
    kinds = {k: [n for n in matches if n.rpartition("_")[0] == k] for k in KINDS}
    samples = {
        kind: np.mean([[p.mean50 for p in matches[n].resampled(repeats)] for n in names], 0)
        for kind, names in kinds.items()
        if names
    }
    result = {}
    for kind, values in samples.items():
        each = [matches[name].precision() for name in kinds[kind]]
        result[kind] = {
            "mAP50": float(np.mean([p.mean50 for p in each])),
            "mAP": float(np.mean([p.mean for p in each])),
            **{c: float(np.mean([p.ap50[c] for p in each])) for c in each[0].ap50},
            "over runs": float(np.std([p.mean50 for p in each])),
        }
        if kind != "searched" and "searched" in samples:
            result[kind]["searched gains"] = list(interval(samples["searched"] - values))
    return result


def as_markdown(table: Mapping[str, Mapping], ranks: Sequence[float]) -> str:
    """The comparison as a table, and what it says of the search."""
    columns = [key for key in next(iter(table.values())) if key != "searched gains"]
    lines = ["| loss | " + " | ".join(columns) + " | searched gains, 95 % |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for kind, row in table.items():
        gains = row.get("searched gains")
        text = f"{gains[0]:+.3f} to {gains[1]:+.3f}" if gains else ""
        figures = " | ".join(f"{row[key]:.3f}" for key in columns)
        lines.append(f"| {kind} | {figures} | {text} |")
    others = [kind for kind in ("hand-set", "equal", "random") if kind in table]
    better = [kind for kind in others if table[kind]["searched gains"][0] > 0]
    told = f"The searched weights beat {', '.join(better) or 'none'} of {', '.join(others)}"
    if ranks:
        told += f"; their ranks agree between seeds by {np.mean(ranks):.2f} (over .5 wanted)"
    return "\n".join(lines) + f"\n\n{told}.\n"


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        if config.seeds < 1 or config.randoms < 1:
            raise ConfigError("seeds and randoms: expected 1 or more")
        folder = Path(config.output or f"runs/losses_{config.method}")
        folder.mkdir(parents=True, exist_ok=True)
        measuring = merge_settings(DETECTION, [
            f"data={config.data}", f"sets={config.sets}", f"detector={config.detector}",
            f"threads={config.threads}",
        ])  # fmt: skip
        sets = labelled_tests(measuring)
        losses = find_losses(config, folder)
        exported = train(config, folder, losses)
        methods = ",".join(f"{name}:{path}" for name, path in exported.items())
        networks = load_networks(methods, "onnxruntime", "fp32", config.threads)
        results, text, ranks = {}, [], agreement(losses)
        for pairs in sets:
            classes = class_names(pairs.root)
            labels, _ = read_labels(pairs, classes)
            rows = {name: Coloured(network) for name, network in networks.items()}
            found = detect_set(pairs, rows, detectors_of(list(rows), measuring, classes), labels)
            table = compare({n: Matches(labels, found[n], classes) for n in rows}, config.repeats)
            fused = evaluate_set(pairs, networks).rows
            for kind, row in table.items():
                of_kind = [r.mean for r in fused if r.method.rpartition("_")[0] == kind]
                row |= {m: float(np.mean([mean[m] for mean in of_kind])) for m in ("VIF", "Qabf")}
            results[pairs.name] = table
            text.append(f"**{pairs.name}**\n\n{as_markdown(table, ranks)}")
            print(text[-1], flush=True)
    except (ValueError, OSError, EngineError) as error:
        print(f"compare_losses.py: {error}", file=sys.stderr)
        return 2
    record = {"arguments": arguments, "rank_correlation": ranks, "sets": results}
    write_text(folder / "comparison.json", json.dumps(record, indent=1) + "\n")
    write_text(folder / "comparison.md", "\n".join(text))
    print(folder / "comparison.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
