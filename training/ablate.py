# SPDX-License-Identifier: AGPL-3.0-only
"""Ablations: the same short schedule with one setting changed a row, and the metrics of each row.

    python training/ablate.py method=baffm data=../shared/data output=runs/ablations
    python training/ablate.py method=cfi max_steps=5000 batch_size=16

Rows are in `config/ablations/<method>.yaml`, a name and its `key=value` settings each; other
settings on the command line hold for all rows. Every row is trained from the same seed, exported
and measured on the same pairs. A row that is finished is not trained again, so the command can be
repeated.

Settings: method, data, rows (names, comma separated; '' for all), sets, limit (pairs a set), output
(folder of <method>.json, <method>.md and <method>.png with the learning curves), and those of
`train.py`. For cfi there are the average treatment effects of its interventions too; the figures of
each image are in `<output>/<method>/evaluation.json`, for `analyse_scenes.py` to sort by scene.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from analyse_interventions import treatment_effects
from evaluate import Network
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from fusion_models import create_model
from fusion_models.cfi.interventions import KINDS
from fusion_models.data import LoadedPairs
from fusion_models.deploy.export import ExportInfo, export_onnx
from fusion_models.evaluation.evaluate import evaluate_set, write_json
from fusion_models.pairs import PairSet, find_sets
from fusion_models.settings import ConfigError, merge_settings, parse_arguments
from fusion_models.trainer import Trainer, load_config, source_commit
from fusion_ros.frame.fuser import Fuser
from fusion_ros.inference import load_engine

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "config"
DEFAULTS = {
    "method": "baffm", "data": "auto", "rows": "", "sets": "msrs/test,tno/test,roadscene/test",
    "limit": 16, "output": "runs/ablations",
}  # fmt: skip
SCHEDULE = ("max_steps=200", "crop=96", "batch_size=4", "warmup=20", "validation=", "average=0.98")
"""What a row is trained with unless said otherwise: minutes on one CPU core."""
SHOWN = ("VIF", "Qabf", "SCD", "AG", "EN")


def rows_of(method: str, names: str) -> dict[str, list[str]]:
    """Rows by name, each with its `key=value` settings.

    Raises:
        ConfigError: no ablations for the method, or no row of a given name.
    """
    path = CONFIG / "ablations" / f"{method}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"no {path}; there are ablations of {known}")
    rows = OmegaConf.to_object(OmegaConf.load(path))
    wanted = [name for name in names.split(",") if name] or list(rows)
    if unknown := sorted(set(wanted) - set(rows)):
        raise ConfigError(f"{path} has no row {', '.join(unknown)}; there are {', '.join(rows)}")
    return {name: list(rows[name] or []) for name in wanted}


def train(method: str, settings: list[str], folder: Path) -> dict:
    """Trains a row, or finds it trained; the record of its run."""
    arguments = [f"method={method}", f"output={folder}", *SCHEDULE, *settings]
    config = load_config(arguments, CONFIG / "training")
    record = folder / "run.json"
    if record.is_file():
        if json.loads(record.read_text())["config"] != asdict(config):
            raise ConfigError(
                f"{folder} was trained with other settings: "
                "give output=<another folder>, or delete it"
            )
    else:
        Trainer(config).fit()
    return json.loads(record.read_text())


def load_row(method: str, record: dict, folder: Path) -> tuple[nn.Module, Network]:
    """A trained row as PyTorch and, exported, as it would run on the robot."""
    model = create_model(method, **record["config"]["model"]).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    onnx = folder / f"{method}.onnx"
    if not onnx.is_file():
        export_onnx(model, onnx, ExportInfo(method))
    return model, Network(onnx, Fuser(load_engine(onnx, "onnxruntime")))


def effects_of(model: nn.Module, sets: list[PairSet]) -> dict:
    """Average treatment effects of cfi's interventions on the first pairs of each set."""
    effects = {}
    for pair_set in sets:
        pairs = LoadedPairs(pair_set.limited(6))
        effects[pair_set.name] = treatment_effects(model, pairs)
    return effects


def markdown(table: dict[str, dict], sets: list[str]) -> str:
    """The table: VIF, Qabf, SCD, AG and EN of each row and set, effects if there are any."""
    names = [s.partition("/")[0] for s in sets]
    lines = ["| row | " + " | ".join(f"{n}: {', '.join(SHOWN)}" for n in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for name, row in table.items():
        cells = [" ".join(f"{row['sets'][s][m]:.3f}" for m in SHOWN) for s in sets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    effects = {name: row["effects"] for name, row in table.items() if row["effects"]}
    if effects:
        lines += ["", "Average treatment effects, PSNR in dB / CC:", ""]
        lines.append("| row | set | " + " | ".join(KINDS) + " |")
        lines.append("|---" * (len(KINDS) + 2) + "|")
        for name, by_set in effects.items():
            for pair_set, by in by_set.items():
                cells = [f"{by[k]['PSNR']:.4f} / {by[k]['CC']:.4f}" for k in KINDS]
                lines.append(f"| {name} | {pair_set} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw_curves(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Draw the loss of each row by step; some terms are rewards, so it may be negative."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, points in curves.items():
        axis.plot(*zip(*points), label=name, linewidth=1.2)
    positive = all(loss > 0 for points in curves.values() for _, loss in points)
    axis.set(xlabel="step", ylabel="loss", yscale="log" if positive else "linear")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    own = tuple(f"{key}=" for key in DEFAULTS)
    try:
        config = merge_settings(DEFAULTS, [a for a in arguments if a.startswith(own)])
        passed = [a for a in arguments if not a.startswith(own)]
        parse_arguments(passed)
        rows = rows_of(config.method, config.rows)
        names = [name for name in config.sets.split(",") if name]
        sets = find_sets(config.data, names, limit=config.limit)
        output = Path(config.output)
        records, networks, effects = {}, {}, {}
        for name, settings in rows.items():
            folder = output / config.method / name.replace(" ", "_").replace("/", "_")
            print(f"== {config.method}: {name} ({' '.join(settings) or 'defaults'})", flush=True)
            record = train(config.method, [f"data={config.data}", *passed, *settings], folder)
            model, networks[name] = load_row(config.method, record, folder)
            records[name] = record
            effects[name] = effects_of(model, sets) if config.method == "cfi" else {}
        results = [evaluate_set(pair_set, networks) for pair_set in sets]
    except ValueError as error:
        print(f"ablate.py: {error}", file=sys.stderr)
        return 2
    means = {result.name: {row.method: row.mean for row in result.rows} for result in results}
    table = {
        name: {
            "settings": rows[name], "steps": record["steps"], "hours": record["hours"],
            "loss_last": record["loss_last"], "sets": {s: by[name] for s, by in means.items()},
            "effects": effects[name],
        }
        for name, record in records.items()
    }  # fmt: skip
    text = markdown(table, names)
    head = {
        "command": shlex.join(["python", "training/ablate.py", *arguments]),
        "schedule": [*SCHEDULE, *passed], "pairs": {s.name: len(s.files) for s in sets},
        "commit": source_commit(), "device": record["device"],
    }  # fmt: skip
    (output / f"{config.method}.json").write_text(
        json.dumps({**head, "rows": table}, indent=1) + "\n"
    )
    (output / f"{config.method}.md").write_text(text)
    write_json(output / config.method / "evaluation.json", head, results)
    draw_curves({name: r["curve"] for name, r in records.items()}, output / f"{config.method}.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
