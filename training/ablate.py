# SPDX-License-Identifier: AGPL-3.0-only
"""Ablations: short trainings with one setting changed a row, several seeds, and what they show.

    python training/ablate.py method=baffm data=../shared/data output=docs/ablations
    python training/ablate.py method=cfi rows='shipped; shipped, no single_modality' max_steps=5000

Rows are in `config/ablations/<method>.yaml`, a name and its `key=value` settings each. A row is
compared with the row whose name, followed by a comma, begins its own, else with the first: `paper,
no CFI` with `paper`. Other settings on the command line hold for all rows. For each seed all rows
start from the same parameters, as far as they have the same, see the same batches, and are measured
on the same validation pairs, which no row trains on; test pairs are not looked at. A difference to
the reference is called clear if its 95 % interval over the images leaves out 0 and all seeds agree
in sign. What is finished is not trained again, so the command can be repeated to go on.

Rows of `cfi` are also measured under its interventions: `blank` and `masked` (see
`under_interventions`), in grey levels, less is better.

Settings, and all of `train.py`:
    method, data
    rows      names, separated by `;` ('' for all). seeds: number of them, 3 or more for a claim
    sets      validation sets. limit: pairs of each, evenly spaced (0: all)
    work      folder of the runs
    output    folder of <method>.json and <method>.png (the learning curves)
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from fusion_models import create_model
from fusion_models.cfi.interventions import intervene
from fusion_models.data import LoadedPairs
from fusion_models.evaluation.differences import difference
from fusion_models.evaluation.evaluate import SetResult, evaluate_set
from fusion_models.files import write_text
from fusion_models.pairs import ImagePair, PairSet, find_sets
from fusion_models.settings import (
    ConfigError,
    merge_settings,
    parse_arguments,
    show_help,
    split_arguments,
)
from fusion_models.trainer import Trainer, fuse_pair, load_config, source_commit

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "config"
DEFAULTS = {
    "method": "baffm", "data": "auto", "rows": "", "seeds": 3,
    "sets": "msrs/validation,roadscene/validation", "limit": 8, "work": "runs/ablations",
    "output": "docs/ablations",
}  # fmt: skip
SCHEDULE = (
    "max_steps=200", "crop=96", "batch_size=4", "optimizer=adamw", "lr=0.002", "lr_final=0.01",
    "warmup=20", "clip=1.0", "freeze_norm=0.6", "average=0.98", "gains=true", "validation=",
    "precision=32-true",
)  # fmt: skip
"""What all rows are trained with unless said otherwise: minutes on one CPU core.

The precision is fixed, since a trial for each run could choose another one for each row.
"""
SHOWN = ("VIF", "Qabf", "SCD", "AG", "SSIM/2", "hidden")
"""Figures of the tables, with `lost` where objects are labelled, and those of interventions."""
INTERVENED = ("cfi",)
"""Methods whose rows are also measured under interventions on the inputs."""
MIDDLE, DRAWS = 128, 1
"""Side of the middle of the images that is intervened on, and draws of masks of each kind."""
COARSEST = 16
"""Images are padded to a multiple of this, which networks of five scales need."""

remembered = lru_cache(LoadedPairs)
"""Reads the pairs of a set once for all runs of this process."""
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """A trained row as a method under evaluation, in PyTorch, padded by reflection."""

    model: nn.Module

    def __call__(self, pair: ImagePair) -> np.ndarray:
        return fuse_pair(self.model, pair.ir, pair.vi, COARSEST)


def reference_of(name: str, names: list[str]) -> str:
    """The row that a row is compared with; of the first row itself."""
    begins = [other for other in names if name.startswith(f"{other},")]
    return max(begins, key=len, default=names[0])


def rows_of(method: str, names: str) -> dict[str, list[str]]:
    """Rows by name, each with its `key=value` settings; the reference comes first.

    Raises:
        ConfigError: no ablations for the method, or no row of a given name.
    """
    path = CONFIG / "ablations" / f"{method}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"no {path}; there are ablations of {known}")
    rows = OmegaConf.to_object(OmegaConf.load(path))
    wanted = [name.strip() for name in names.split(";") if name.strip()] or list(rows)
    if unknown := sorted(set(wanted) - set(rows)):
        raise ConfigError(f"{path} has no row {'; '.join(unknown)}; there are {'; '.join(rows)}")
    reference = next(iter(rows))
    return {name: list(rows[name] or []) for name in dict.fromkeys((reference, *wanted))}


def shared_start(settings: dict, method: str, reference: dict, seed: int, path: Path) -> None:
    """Write a row's first parameters: those of the reference with this seed where they agree.

    Buffers, such as a dictionary, are the row's own.
    """
    torch.manual_seed(seed)
    common = dict(create_model(method, **reference).named_parameters())
    torch.manual_seed(seed)
    model = create_model(method, **settings)
    with torch.no_grad():
        for name, own in model.named_parameters():
            if name in common and common[name].shape == own.shape:
                own.copy_(common[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


def train(method: str, settings: list[str], reference: dict, seed: int, folder: Path) -> dict:
    """Train a row with a seed, or find it trained; return the record of its run.

    Raises:
        ConfigError: it was trained with other settings.
    """
    start = folder / "start.safetensors"
    arguments = [
        f"method={method}", *SCHEDULE, *settings, f"output={folder}", f"seed={seed}",
        f"init={start}",
    ]  # fmt: skip
    config = load_config(arguments, CONFIG / "training")
    record = folder / "run.json"
    if record.is_file():
        if json.loads(record.read_text())["config"] != asdict(config):
            raise ConfigError(
                f"{folder} was trained with other settings: give work=<another folder>, or delete "
                "it"
            )
        return json.loads(record.read_text())
    shared_start(config.model, method, reference, seed, start)
    config.resume = (folder / "last.ckpt").is_file()
    trainer = Trainer(config, remembered)
    config.resume = False  # the record is compared with the settings above
    trainer.fit()
    return json.loads(record.read_text())


def load_row(method: str, record: dict, folder: Path) -> Trained:
    """The averaged network of a run."""
    model = create_model(method, **record["config"]["model"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return Trained(model)


@torch.inference_mode()
def under_interventions(model: Model, pair: ImagePair, seed: int) -> dict[str, float]:
    """What a network makes of a missing camera and of masked blocks, in grey levels.

    `blank` is the mean distance of its output with one camera blank to the other one's image;
    `masked` the mean change of its output inside blocks masked in one or both inputs. Measured on
    the middle of the pair with masks by `seed`, the same for all networks.
    """
    height, width = (min(MIDDLE, size // COARSEST * COARSEST) for size in pair.ir.shape)
    top, left = (pair.ir.shape[0] - height) // 2, (pair.ir.shape[1] - width) // 2
    ir, vi = (
        torch.from_numpy(image[top : top + height, left : left + width]).float()[None, None] / 255
        for image in (pair.ir, pair.vi)
    )
    generator = torch.Generator().manual_seed(seed)
    cases = [intervene(ir, vi, kind, generator) for kind in ("no_ir", "no_vi")]
    for kind in ("complementary", "random"):
        cases += [intervene(ir, vi, kind, generator) for _ in range(DRAWS)]
    clean, no_ir, no_vi, *masked = model(
        torch.cat([ir, *(case.ir for case in cases)]), torch.cat([vi, *(case.vi for case in cases)])
    ).split(1)
    changes = [
        (fused - clean).abs()[(case.ir != ir) | (case.vi != vi)].mean()
        for fused, case in zip(masked, cases[2:])
    ]
    blank = ((no_ir - vi).abs().mean() + (no_vi - ir).abs().mean()) / 2
    return {"blank": 255 * float(blank), "masked": 255 * float(sum(changes) / len(changes))}


def intervened(pair_set: PairSet, networks: dict[str, Trained]) -> dict[str, dict[str, list]]:
    """By network and figure of `under_interventions`: its values over the images of a set."""
    found: dict[str, dict[str, list]] = {name: {} for name in networks}
    for number, pair in enumerate(pair_set):
        for name, network in networks.items():
            for figure, value in under_interventions(network.model, pair, number).items():
                found[name].setdefault(figure, []).append(value)
    return found


def table_of(
    result: SetResult, name: str, seeds: int, more: dict[str, dict[str, list]]
) -> dict[str, np.ndarray]:
    """Figures of a row on a set, each `[seeds, images]`; of `lost` `[seeds, objects]`.

    Args:
        more: of `intervened`, or empty.
    """
    scores = [
        next(row for row in result.rows if row.method == f"{name}#{seed}").scores
        for seed in range(seeds)
    ]
    stems = list(scores[0])
    found = {}
    for figure in SHOWN:
        key = {"SSIM/2": "ssim_range_2"}.get(figure, figure)
        found[figure] = np.array([[by[s].as_dict()[key] for s in stems] for by in scores])
    if any(scores[0][stem].kept for stem in stems):
        found["lost"] = np.array(
            [[float(one.lost) for stem in stems for one in by[stem].kept] for by in scores]
        )
    for figure in more.get(f"{name}#0", {}):
        found[figure] = np.array([more[f"{name}#{seed}"][figure] for seed in range(seeds)])
    return found


def compare(
    results: dict[str, SetResult],
    names: list[str],
    seeds: int,
    more: dict[str, dict[str, dict[str, list]]] | None = None,
) -> dict[str, dict[str, dict]]:
    """Of each row, set and figure: its mean, its values, and the difference to its reference.

    Args:
        more: by set, what `intervened` found.
    """
    compared: dict[str, dict[str, dict]] = {name: {} for name in names}
    for set_name, result in results.items():
        tables = {
            name: table_of(result, name, seeds, (more or {}).get(set_name, {})) for name in names
        }
        for name in names:
            figures = {}
            reference = tables[reference_of(name, names)]
            for figure, values in tables[name].items():
                figures[figure] = {
                    "mean": round(float(values.mean()), 5),
                    "seeds": [round(float(v), 5) for v in values.mean(1)],
                    "values": [round(float(v), 4) for v in values.mean(0)],
                }
                if name != names[0]:
                    apart = difference(values, reference[figure]).as_dict()
                    figures[figure]["difference"] = {
                        key: np.round(value, 5).tolist() if key != "clear" else value
                        for key, value in apart.items()
                    }
            compared[name][set_name] = figures
    return compared


def draw_curves(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Draw the loss of each row by step; some terms are rewards, so it may be negative."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    colours = plt.get_cmap("tab10").colors
    for number, (name, points) in enumerate(curves.items()):
        style = "--" if number >= len(colours) else "-"
        colour = colours[number % len(colours)]
        axis.plot(*zip(*points), style, color=colour, label=name, linewidth=1.2)
    positive = all(loss > 0 for points in curves.values() for _, loss in points)
    axis.set(xlabel="step", ylabel="loss", yscale="log" if positive else "linear")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def validation_sets(data: str, names: list[str], limit: int) -> list[PairSet]:
    """The sets to measure on.

    Raises:
        ConfigError: one that is for testing.
    """
    if tests := [name for name in names if not name.endswith(("/validation", "/val"))]:
        raise ConfigError(
            f"sets={','.join(names)}: {tests[0]} is no validation set; rows are compared, and "
            "settings chosen, on validation sets only"
        )
    return find_sets(data, names, limit=limit)


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    own, passed = split_arguments(arguments, DEFAULTS)
    try:
        config = merge_settings(DEFAULTS, own)
        parse_arguments(passed)
        if config.seeds < 1:
            raise ConfigError(f"seeds={config.seeds}: expected 1 or more")
        rows = rows_of(config.method, config.rows)
        names = [name for name in config.sets.split(",") if name]
        sets = validation_sets(config.data, names, config.limit)
        first = [f"method={config.method}", *SCHEDULE, *passed, *next(iter(rows.values()))]
        reference = load_config(first, CONFIG / "training").model
        records, networks = {}, {}
        for name, settings in rows.items():
            for seed in range(config.seeds):
                place = f"{name.replace(' ', '_').replace('/', '_')}/{seed}"
                folder = Path(config.work) / config.method / place
                print(f"== {config.method}: {name}, seed {seed}", flush=True)
                given = [f"data={config.data}", *passed, *settings]
                record = train(config.method, given, reference, seed, folder)
                records.setdefault(name, record)
                networks[f"{name}#{seed}"] = load_row(config.method, record, folder)
        results, more = {}, {}
        for pair_set in sets:
            print(f"== measuring on {pair_set.name}", flush=True)
            results[pair_set.name] = evaluate_set(pair_set, networks)
            if config.method in INTERVENED:
                more[pair_set.name] = intervened(pair_set, networks)
        compared = compare(results, list(rows), config.seeds, more)
    except ValueError as error:
        print(f"ablate.py: {error}", file=sys.stderr)
        return 2
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    _, shown = split_arguments(arguments, ("data", "work", "output"))
    found = {
        "command": shlex.join(["python", "training/ablate.py", *shown]),
        "schedule": [*SCHEDULE, *passed], "seeds": config.seeds,
        "pairs": {pair_set.name: pair_set.stems for pair_set in sets},
        "commit": source_commit(), "device": next(iter(records.values()))["device"],
        "rows": {
            name: {
                "settings": rows[name], "steps": records[name]["steps"],
                "against": reference_of(name, list(rows)), "sets": by_set,
            }
            for name, by_set in compared.items()
        },
    }  # fmt: skip
    write_text(output / f"{config.method}.json", json.dumps(found, indent=1) + "\n")
    draw_curves({name: r["curve"] for name, r in records.items()}, output / f"{config.method}.png")
    for name, by_set in compared.items():
        for set_name, figures in by_set.items():
            text = "  ".join(f"{figure} {values['mean']:.3f}" for figure, values in figures.items())
            print(f"{name:32s} {set_name:22s} {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
