# SPDX-License-Identifier: AGPL-3.0-only
"""Compares searched losses with others at equal budget: the paper's Table 3, and whether it counts.

    python training/compare_losses.py task_weights=yolov8n.pt detector=yolov8n.onnx
    python training/compare_losses.py method=refinefuse losses=runs/losses_caf

For each seed it searches the weights, and once with shuffled labels; it then trains the method with
the searched weights, with its hand-set objective, with equal and with random weights, exports each
network, and measures detection (AP), fusion (VIF, Qabf, SCD) and the share of objects that are lost
on test pairs, which no search has seen. What is done already stays, so that the command can be
repeated to go on. Settings are `key=value`:

    method      the network that is trained. loss_of: the method whose search is used ('': the same)
    losses      folder of another comparison whose loss files are taken ('': they are searched)
    task_weights, steps   of search_loss.py. train_steps: of each training
    seeds, randoms   number of searches, of hand-set and of equal runs; of random weights
    detector    ONNX file that measures; default: the one that ships. Give one that no fusion saw
    data, sets  as in evaluate_detection.py; sets are those measured on
    limit, metric_pairs   pairs of each set that are measured, and of those the ones whose fusion
                metrics are computed, evenly spaced (0: all)
    repeats     bootstrap samples
    search, train   more settings for the two scripts, such as 'search=crop=128 batch=2'
    threads, output
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from evaluate import host, load_networks, versions
from evaluate_detection import DEFAULTS as DETECTION
from evaluate_detection import Finder, detectors_of, labelled_tests, without_nan
from tqdm import tqdm

from fusion_models.boxes import Boxes, class_names
from fusion_models.detection.dataset import read_labels
from fusion_models.evaluation.detection import Found, Matches, interval
from fusion_models.evaluation.metrics import qabf, scd, vif
from fusion_models.evaluation.objects import Objects, labelled_objects
from fusion_models.evaluation.rules import Fuse
from fusion_models.evaluation.visibility import Kept, summary
from fusion_models.files import write_text
from fusion_models.pairs import PairSet
from fusion_models.search.terms import FIXED
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_ros.inference import EngineError

HERE = Path(__file__).resolve().parent
KINDS = ("searched", "hand-set", "equal", "random", "shuffled")
FUSION = {"VIF": vif, "Qabf": qabf, "SCD": scd}
DEFAULTS = {
    "method": "caf", "loss_of": "", "losses": "", "task_weights": "", "steps": 600,
    "train_steps": 3000, "seeds": 3, "randoms": 5, "detector": "", "data": "auto", "sets": "",
    "limit": 0, "metric_pairs": 0, "repeats": 1000, "search": "", "train": "", "threads": 0,
    "output": "",
}  # fmt: skip


def run(script: str, *arguments: str) -> None:
    """Run a script of this folder with the same Python; ConfigError if it fails."""
    print(f"== {script} {' '.join(arguments)}", flush=True)
    if subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode:
        raise ConfigError(f"{script} failed; mend what it says and repeat the command to go on")


def find_losses(config, folder: Path) -> dict[str, Path | None]:
    """A loss file for each run, by name; None for the hand-set objective.

    Raises:
        ConfigError: a search failed, or the folder `losses` lacks one.
    """
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
        output = (Path(config.losses) if config.losses else folder) / name
        losses[name] = output / "loss.yaml"
        if not losses[name].is_file():
            if config.losses:
                raise ConfigError(
                    f"losses={config.losses}: no {name}/loss.yaml in it; give the output folder of "
                    "another comparison, and not more seeds= and randoms= than it had"
                )
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


@dataclass(frozen=True)
class Measured:
    """What one network gives on one set.

    Attributes:
        found: detections by stem. figures: means of `FUSION`, and `lost`, the share of the labelled
            objects that hardly stand out any more.
    """

    found: dict[str, Found]
    figures: dict[str, float]


def measure(
    pairs: PairSet, fuse: Fuse, finder: Finder, labels: Mapping[str, Boxes], metric_pairs: int = 0
) -> Measured:
    """Fuse the labelled pairs of a set; detect objects in all, compute metrics on some of them."""
    objects, measured = labelled_objects(pairs), set(pairs.limited(metric_pairs).stems)
    found: dict[str, Found] = {}
    kept: list[Kept] = []
    figures: dict[str, list[float]] = {name: [] for name in FUSION}
    for pair in pairs:
        if pair.stem not in labels:
            continue
        fused = fuse(pair)
        found[pair.stem] = finder(pair.colour(fused))
        kept += objects.get(pair.stem, Objects()).kept(fused, pair.ir, pair.vi)
        if pair.stem in measured:
            for name, metric in FUSION.items():
                figures[name].append(metric(fused, pair.ir, pair.vi))
    lost = {"lost": summary(kept)["lost"]} if kept else {}
    return Measured(found, {n: float(np.mean(v)) for n, v in figures.items() if v} | lost)


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


def of_kind(names: Sequence[str], kind: str) -> list[str]:
    """Names of the runs of a kind of loss, such as `random_3` of `random`."""
    return [name for name in names if name.rpartition("_")[0] == kind]


def compare(
    matches: Mapping[str, Matches], repeats: int
) -> dict[str, dict[str, float | list[float]]]:
    """AP of each kind of loss, and the interval of what the searched ones gain over it.

    A kind's figure is the mean over its runs; the images are drawn once for all of them. "control
    gains" of the shuffled labels is the interval of what they gain over equal and random weights.
    """
    kinds = {kind: names for kind in KINDS if (names := of_kind(list(matches), kind))}
    samples = {
        kind: np.mean([[p.mean50 for p in matches[n].resampled(repeats)] for n in names], 0)
        for kind, names in kinds.items()
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
    others = [samples[kind] for kind in ("equal", "random") if kind in samples]
    if "shuffled" in samples and others:
        gains = interval(samples["shuffled"] - np.mean(others, 0))
        result["shuffled"]["control gains"] = list(gains)
    return result


def weights_table(losses: Mapping[str, Mapping]) -> str:
    """Weights of each search and of the control, with the signal to noise of their gradients.

    Args:
        losses: contents of the loss files by the names of the runs.
    """
    searches = {n: loss for n, loss in losses.items() if "signal_to_noise" in loss}
    lines = ["| term | " + " | ".join(searches) + " |", "|---" * (len(searches) + 1) + "|"]
    for term in next(iter(searches.values()))["signal_to_noise"] if searches else ():
        cells = [f"{s['weights'][term]:.2f} ({s['signal_to_noise'][term]:+.1f})"
                 for s in searches.values()]  # fmt: skip
        lines.append(f"| {term} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if searches else ""


def as_markdown(table: Mapping[str, Mapping], ranks: Sequence[float]) -> str:
    """The comparison as a table, and what it says of the search."""
    columns = [key for key, value in next(iter(table.values())).items() if np.isscalar(value)]
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
    if control := table.get("shuffled", {}).get("control gains"):
        told += (
            f"; shuffled labels gain {control[0]:+.3f} to {control[1]:+.3f} over equal and random "
            "weights (nothing above 0 wanted)"
        )
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
            f"threads={config.threads}", f"limit={config.limit}",
        ])  # fmt: skip
        sets = labelled_tests(measuring)
        losses = find_losses(config, folder)
        exported = train(config, folder, losses)
        results, text, ranks = {}, [], agreement(losses)
        for pairs in sets:
            classes = class_names(pairs.root)
            labels, _ = read_labels(pairs, classes)
            finder = detectors_of(["all"], measuring, classes)["all"]
            rows: dict[str, Measured] = {}
            for name, path in tqdm(exported.items(), desc=pairs.name, disable=None):
                one = f"{name}:{path}"  # one network in memory at a time
                network = load_networks(one, "onnxruntime", "fp32", config.threads)[name]
                rows[name] = measure(pairs, network, finder, labels, config.metric_pairs)
            matches = {name: Matches(labels, row.found, classes) for name, row in rows.items()}
            table = compare(matches, config.repeats)
            for kind, row in table.items():
                of_runs = [rows[name].figures for name in of_kind(list(rows), kind)]
                row |= {key: float(np.mean([f[key] for f in of_runs])) for key in of_runs[0]}
            runs = {
                name: {"mAP50": matches[name].precision().mean50, **row.figures}
                for name, row in rows.items()
            }
            results[pairs.name] = {"pairs": len(labels), "kinds": table, "runs": runs}
            text.append(f"**{pairs.name}**, {len(labels)} pairs\n\n{as_markdown(table, ranks)}")
            print(text[-1], flush=True)
    except (ValueError, OSError, EngineError) as error:
        print(f"compare_losses.py: {error}", file=sys.stderr)
        return 2
    record = {
        "command": shlex.join(["python", "training/compare_losses.py", *arguments]),
        "host": host(), "versions": versions() | {"torch": version("torch")},
        "rank_correlation": ranks,
        "losses": {n: yaml.safe_load(p.read_text()) for n, p in losses.items() if p},
        "sets": results,
    }  # fmt: skip
    text.append(weights_table(record["losses"]))
    write_text(folder / "comparison.json", json.dumps(without_nan(record), indent=1) + "\n")
    write_text(folder / "comparison.md", "\n".join(text))
    print(folder / "comparison.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
