# SPDX-License-Identifier: AGPL-3.0-only
"""Compares rules of the target that all methods follow, without a network.

    python training/compare_targets.py output=docs/targets    # for method_tables.py
    python training/compare_targets.py sets=msrs/validation limit=20 output=runs/targets

Each row is `layers.MultiScaleFusion` with one of its rules left out. Settings as `key=value`: sets
(with their split), data ('auto', or folders of sets with commas), limit (pairs of each set, evenly
spaced; 0: all), output (writes <output>.json; '' prints only).

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
from fusion_models.pairs import DataError, PairSet, find_sets
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_models.trainer import fuse_pair

DEFAULTS = {"data": "auto", "sets": "", "limit": 0, "output": ""}
NONE = (1e9,) * 7
RULES: Mapping[str, Mapping[str, object]] = {
    "shipped": {},
    "each band decides alone": {"OWN": 4.0, "SHARED": 0.0},
    "cold contrast not limited": {"LIMIT": NONE},
    "no preference": {"WARM": 0.0, "COLD": 0.0, "BRIGHT": 0.0},
    "thermal preferred everywhere": {"WARM": 0.8, "COLD": 0.8, "BRIGHT": 0.8},
    "nothing amplified": {"GAIN": (1.0,) * 7, "BOOST": (1.0,) * 7, "STRONG": (1.0,) * 7},
}
MULTIPLE = 32
"""Images are padded to a multiple of this: the coarsest bands are at 1/32."""


class Target(nn.Module):
    """The common target in place of a network, with some of its constants replaced.

    Raises:
        ConfigError: there is no such constant.
    """

    def __init__(self, changes: Mapping[str, object]):
        super().__init__()
        self.fusion = MultiScaleFusion()
        for name, value in changes.items():
            if not hasattr(self.fusion, name):
                raise ConfigError(f"MultiScaleFusion has no constant {name}")
            setattr(self.fusion, name, value)

    def forward(self, ir: Tensor, vi: Tensor) -> Tensor:
        return self.fusion(torch.cat((ir, vi), 1))


def measure(changes: Mapping[str, object], pair_set: PairSet, title: str) -> dict[str, float]:
    """Means over a set of the target with some constants replaced."""
    target, labels = Target(changes), labelled_objects(pair_set)
    scores, objects = [], []
    for pair in tqdm(pair_set, title, len(pair_set), leave=False, disable=None):
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
        names = [name for name in str(config.sets).split(",") if name]
        split = "" if names else "validation"
        sets = find_sets(config.data, names, split, limit=config.limit)
        rows = [
            {"set": one.name, "rule": name, **measure(changes, one, f"{one.name} {name}")}
            for one in sets
            for name, changes in RULES.items()
        ]
    except (ConfigError, DataError) as error:
        print(f"compare_targets.py: {error}", file=sys.stderr)
        return 2
    print(rules_table(rows))
    if config.output:
        path = Path(config.output).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
