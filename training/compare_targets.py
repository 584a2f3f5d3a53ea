# SPDX-License-Identifier: AGPL-3.0-only
"""Compares rules of the target that all methods follow, without a network.

    python training/compare_targets.py output=docs/targets    # for method_tables.py
    python training/compare_targets.py sets=msrs/validation limit=20 output=runs/targets

Each row is `layers.MultiScaleFusion` with one of its rules left out; the last one has the constants
that were set by hand before `calibrate_target.py` moved them. Settings as `key=value`:

    data        'auto', or folders of sets with commas
    sets        with their split, with commas ('': the split validation of all sets)
    limit       pairs of each set, evenly spaced (0: all)
    constants   JSON file of `calibrate_target.py`, for one more row ('': none)
    threads     of PyTorch (0: its default)
    output      writes <output>.json; '' prints only

VIF, Qabf, SCD, hidden: means over the pairs; lost: share of the labelled boxes, or of the masks of
simulated sets, whose contrast is kept under half.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from method_tables import rules_table
from torch import Tensor, nn
from tqdm import tqdm

from fusion_models.evaluation.metrics import qabf, scd, vif
from fusion_models.evaluation.objects import Objects, labelled_objects
from fusion_models.evaluation.visibility import hidden
from fusion_models.files import write_text
from fusion_models.layers import MultiScaleFusion
from fusion_models.pairs import DataError, ImagePair, PairSet, find_sets
from fusion_models.settings import (
    ConfigError,
    check_counts,
    merge_settings,
    result_files,
    show_help,
)
from fusion_models.trainer import fuse_pair

DEFAULTS = {"data": "auto", "sets": "", "limit": 0, "constants": "", "threads": 0, "output": ""}
NONE = (1e9,) * 7
RULES: Mapping[str, Mapping[str, object]] = {
    "shipped": {},
    "each band decides alone": {"OWN": 4.0, "SHARED": 0.0},
    "cold contrast not limited": {"LIMIT": NONE},
    "mild cold treated as cold": {"LEVEL": (9.0, 0.05)},
    "no silhouettes": {"DARK": 0.0},
    "opposed polarities like others": {"OPPOSED": 0.0, "WHOLE": 0.0},
    "no preference": {"WARM": 0.0, "MILD": 0.0, "COLD": 0.0, "BRIGHT": 0.0, "DARK": 0.0},
    "thermal preferred everywhere": {
        "WARM": 1.2, "MILD": 1.2, "COLD": 1.2, "BRIGHT": 1.2, "DARK": 0.0
    },
    "nothing amplified": {"GAIN": (1.0,) * 7, "BOOST": (1.0,) * 7, "STRONG": (1.0,) * 7},
    "first constants, set by hand": {
        "GAIN": (1.5, 1.6, 2.2, 2.5, 2.5, 2.5, 2.0),
        "BOOST": (1.0, 1.0, 1.1, 1.3, 1.5, 1.5, 1.3),
        "STRONG": (1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7),
        "CHOICE": (1.0, 1.0, 1.0, 1.0, 0.9, 0.7, 0.3),
        "LIMIT": (0.5, 0.4, 0.3, 0.2, 0.12, 0.1, 0.1),
        "MIX": 0.4, "UNLIMITED": 0.85, "FIRM": 0.12, "BASE": 0.6, "OWN": 0.8, "SHARED": 9.6,
        "OPPOSED": 0.0, "WHOLE": 0.0, "WARM": 0.8, "MILD": -0.3, "COLD": -0.3, "BRIGHT": -2.4,
        "DARK": 0.0, "WARMTH": 0.03, "LEVEL": (9.0, 0.05), "BRIGHTNESS": (0.65, 0.05),
    },
}  # fmt: skip
"""Constants of the target that each row replaces. The last row is the target before the rules for
mild cold, silhouettes and opposed polarities, but for its decisions, which were made at 1/8."""
MULTIPLE = 32
"""Images are padded to a multiple of this: the coarsest bands are at 1/32."""


def replace_constants(fusion: MultiScaleFusion, changes: Mapping[str, object]) -> None:
    """Give a fusion constants of its own.

    Raises:
        ConfigError: no such constant, another number of values, or a value that is no number.
    """
    for name, value in changes.items():
        own = getattr(MultiScaleFusion, name, None) if name.isupper() else None
        if own is None:
            raise ConfigError(f"MultiScaleFusion has no constant {name}")
        values = value if isinstance(value, (list, tuple)) else [value]
        if any(type(one) not in (int, float) or not np.isfinite(one) for one in values):
            raise ConfigError(f"{name}: expected {np.size(own)} number(s), got {value}")
        if np.shape(own) != np.shape(value):
            raise ConfigError(f"{name}: expected {np.size(own)} value(s), got {value}")
        setattr(fusion, name, value)


def read_constants(path: str | Path) -> dict[str, object]:
    """Constants from a JSON file of `calibrate_target.py`.

    Raises:
        ConfigError: the file cannot be read or is another one, or a constant cannot be used.
    """
    try:
        found = dict(json.loads(Path(path).read_text(encoding="utf-8"))["constants"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: no constants of calibrate_target.py ({error})") from error
    try:
        replace_constants(MultiScaleFusion(), found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; give a file of calibrate_target.py") from error
    return found


class Target(nn.Module):
    """The common target in place of a network, with some of its constants replaced.

    Raises:
        ConfigError: there is no such constant.
    """

    def __init__(self, changes: Mapping[str, object]):
        super().__init__()
        self.fusion = MultiScaleFusion()
        replace_constants(self.fusion, changes)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        return self.fusion(torch.cat((ir, vi), 1))


def check_size(name: str, pair: ImagePair) -> None:
    """Refuse images that are smaller than the target's coarsest bands with DataError."""
    if min(pair.ir.shape) < MULTIPLE:
        height, width = pair.ir.shape
        raise DataError(
            f"{name}/{pair.stem}: {width}x{height} pixels; the target needs {MULTIPLE} or more on "
            "each side; leave such pairs out"
        )


def measure(changes: Mapping[str, object], pair_set: PairSet, title: str) -> dict[str, float]:
    """Means over a set of the target with some constants replaced."""
    target, labels = Target(changes), labelled_objects(pair_set)
    scores, objects = [], []
    for pair in tqdm(pair_set, title, len(pair_set), leave=False, disable=None):
        check_size(pair_set.name, pair)
        fused = fuse_pair(target, pair.ir, pair.vi, MULTIPLE)
        scores.append([f(fused, pair.ir, pair.vi) for f in (vif, qabf, scd, hidden)])
        objects += labels.get(pair.stem, Objects()).kept(fused, pair.ir, pair.vi)
    means = np.mean(scores, axis=0)
    row = {"pairs": len(scores), "objects": len(objects)}
    row |= dict(zip(("vif", "qabf", "scd", "hidden"), map(float, means)))
    row["lost"] = float(np.mean([one.lost for one in objects])) if objects else None
    return row


def main(arguments: list[str]) -> int:
    """Measure and print the table; return 0, or 2 for settings that cannot be used."""
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        check_counts(config, "threads")
        if config.threads:
            torch.set_num_threads(config.threads)
        names = [name for name in str(config.sets).split(",") if name]
        split = "" if names else "validation"
        sets = find_sets(config.data, names, split, limit=config.limit)
        files = result_files(config.output, ".json")
        rules = dict(RULES)
        if config.constants:
            row = Path(config.constants).stem
            if row in rules:
                raise ConfigError(
                    f"constants={config.constants}: there is a row '{row}' already; rename the file"
                )
            rules[row] = read_constants(config.constants)
        rows = [
            {"set": one.name, "rule": name, **measure(changes, one, f"{one.name} {name}")}
            for one in sets
            for name, changes in rules.items()
        ]
    except (ConfigError, DataError) as error:
        print(f"compare_targets.py: {error}", file=sys.stderr)
        return 2
    print(rules_table(rows))
    for path in files:
        write_text(path, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
