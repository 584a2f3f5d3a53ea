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

import cv2
import numpy as np
import torch
from tqdm import tqdm

from fusion_models.boxes import read_boxes
from fusion_models.evaluation.metrics import qabf, scd, vif
from fusion_models.evaluation.visibility import hidden, kept_boxes, kept_masks
from fusion_models.layers import MultiScaleFusion
from fusion_models.pairs import DataError, ImagePair, PairSet, find_sets
from fusion_models.settings import ConfigError, merge_settings

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


def fuse(rule: MultiScaleFusion, pair: ImagePair) -> np.ndarray:
    """The target of a pair as `(H, W)` uint8."""
    height, width = pair.ir.shape
    pad = ((0, -height % MULTIPLE), (0, -width % MULTIPLE))
    planes = np.stack([np.pad(x, pad, mode="reflect") for x in (pair.ir, pair.vi)])
    with torch.inference_mode():
        fused = rule(torch.from_numpy(planes.astype(np.float32) / 255.0)[None])[0, 0]
    return np.rint(fused.numpy()[:height, :width] * 255).astype(np.uint8)


def measure(changes: Mapping[str, object], pair_set: PairSet, title: str) -> dict[str, float]:
    """Means over a set of the target with some constants replaced."""
    rule = MultiScaleFusion()
    for name, value in changes.items():
        if not hasattr(rule, name):
            raise ConfigError(f"MultiScaleFusion has no constant {name}")
        setattr(rule, name, value)
    scores, objects = [], []
    boxes = read_boxes(pair_set)[0] if (pair_set.root / "boxes").is_dir() else {}
    for pair in tqdm(pair_set, title, len(pair_set), leave=False, disable=None):
        fused = fuse(rule, pair)
        scores.append([f(fused, pair.ir, pair.vi) for f in (vif, qabf, scd, hidden)])
        mask = pair_set.root / "masks" / f"{pair.stem}.png"
        if mask.is_file():
            ids = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
            each = [ids == k for k in range(1, int(ids.max()) + 1)]
            objects += kept_masks(fused, pair.ir, pair.vi, each)
        elif pair.stem in boxes:
            corners = boxes[pair.stem].in_pixels(*pair.ir.shape[::-1])
            objects += kept_boxes(fused, pair.ir, pair.vi, corners)
    means = np.mean(scores, axis=0)
    row = {"pairs": len(scores), "objects": len(objects)}
    row |= dict(zip(("vif", "qabf", "scd", "hidden"), map(float, means)))
    row["lost"] = float(np.mean([one.lost for one in objects])) if objects else None
    return row


def table(rows: list[dict]) -> str:
    """Markdown: a row for each set and rule."""
    lines = ["| set | rule | lost | hidden | VIF | Qabf | SCD |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        lost = "no labels" if row["lost"] is None else f"{row['lost']:.3f}"
        figures = [lost, *(f"{row[name]:.3f}" for name in ("hidden", "vif", "qabf", "scd"))]
        lines.append("| " + " | ".join([row["set"], row["rule"], *figures]) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Measure and print the table; return 0, or 2 for settings that cannot be used."""
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
    print(table(rows))
    if config.output:
        base = Path(config.output)
        base.parent.mkdir(parents=True, exist_ok=True)
        base.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
