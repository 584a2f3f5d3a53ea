# SPDX-License-Identifier: AGPL-3.0-only
"""Figures by kind of scene: the mean over all images hides scenes that are rare in training.

    python training/analyse_scenes.py evaluation=docs/evaluation.json data=../shared/data

Every image goes to the nearest entry of baffm's scene dictionary by its visible image. For each
method the table has the mean over all images, over those of rare scenes (entries that together make
up the rarest quarter of the training images) and of the worst scene with `least` images or more.
Settings as `key=value`: evaluation (of evaluate.py), data, sets (default: the three
test sets of thermal pairs), dictionary ('' for the shipped one), metric (VIF, Qabf, SCD, ...),
least, output (.json, '' for none).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from build_dictionary import DEFAULTS as DICTIONARY
from build_dictionary import load_backbone, scene_features

from fusion_models.baffm.dictionary import SHIPPED, SceneDictionary
from fusion_models.pairs import find_sets
from fusion_models.settings import ConfigError, merge_settings, show_help

DEFAULTS = {
    "evaluation": "docs/evaluation.json", "data": "auto",
    "sets": "msrs/test,tno/test,roadscene/test", "dictionary": "", "metric": "VIF,Qabf,SCD",
    "least": 3, "output": "",
}  # fmt: skip
RARE = 0.25
"""Share of the training images that the rare scenes make up together."""


@dataclass(frozen=True)
class SceneFigures:
    """One metric of one method by scene.

    Attributes:
        mean, rare: over all images, over those of rare scenes. worst: the lowest mean of a scene.
        worst_scene: its entry. scenes: mean by entry.
    """

    mean: float
    rare: float
    worst: float
    worst_scene: int
    scenes: dict[int, float]


def rare_scenes(frequency: np.ndarray) -> set[int]:
    """The rarest entries, as many as make up a quarter of the training images together."""
    order = np.argsort(frequency, kind="stable")
    return set(order[np.cumsum(frequency[order]) <= RARE + 1e-6].tolist())


def by_scene(values: np.ndarray, scenes: np.ndarray, rare: set[int], least: int) -> SceneFigures:
    """Sums up one figure of each image, `[M]`, by its scene, `[M]`.

    Raises:
        ValueError: no scene has `least` images, or none is rare.
    """
    entries = [int(e) for e in np.unique(scenes) if (scenes == e).sum() >= least]
    if not entries:
        raise ValueError(f"no scene has {least} images; give least=<fewer>")
    is_rare = np.isin(scenes, sorted(rare))
    if not is_rare.any():
        raise ValueError("no image is of a rare scene; give more sets")
    means = {e: float(values[scenes == e].mean()) for e in entries}
    worst = min(means, key=means.get)
    return SceneFigures(
        float(values.mean()), float(values[is_rare].mean()), means[worst], worst, means
    )


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        file = Path(config.evaluation)
        if not file.is_file():
            raise ConfigError(f"{file} is missing; `python training/evaluate.py` writes one")
        measured = json.loads(file.read_text())["sets"]
        names = [name for name in config.sets.split(",") if name]
        if absent := [name for name in names if name not in measured]:
            raise ConfigError(f"{file} has no {', '.join(absent)}; it has {', '.join(measured)}")
        visible, images = [], []
        for pair_set in find_sets(config.data, names):
            rows = measured[pair_set.name]["rows"]
            stems = next(iter(rows.values()))["images"]
            kept = [vi for _, vi in pair_set.files if vi.stem in stems]
            visible += kept
            images += [(pair_set.name, vi.stem) for vi in kept]
        dictionary = SceneDictionary.load(Path(config.dictionary) if config.dictionary else SHIPPED)
        features = scene_features(load_backbone(dictionary.backbone), visible, DICTIONARY["size"])
        scenes = dictionary.scenes(features, "vi")
        rare = rare_scenes(dictionary.frequency_vi.numpy())
        methods = list(measured[names[0]]["rows"])
        table: dict[str, dict[str, SceneFigures]] = {}
        for method in methods:
            scores = [measured[s]["rows"][method]["images"][stem] for s, stem in images]
            table[method] = {
                metric: by_scene(
                    np.array([score[metric] for score in scores]), scenes, rare, config.least
                )
                for metric in config.metric.split(",")
            }
    except (KeyError, ValueError, FileNotFoundError) as error:
        print(f"analyse_scenes.py: {error}", file=sys.stderr)
        return 2
    count = int(np.isin(scenes, sorted(rare)).sum())
    print(
        f"{len(images)} images of {len(np.unique(scenes))} scenes, {count} of them rare "
        f"(entries {', '.join(map(str, sorted(rare)))})\n"
    )
    print(
        "| method | "
        + " | ".join(f"{m}: mean, rare, worst" for m in config.metric.split(","))
        + " |"
    )
    print("|---" * (1 + len(config.metric.split(","))) + "|")
    for method, figures in table.items():
        cells = [
            f"{f.mean:.3f} {f.rare:.3f} {f.worst:.3f} ({f.worst_scene})" for f in figures.values()
        ]
        print(f"| {method} | " + " | ".join(cells) + " |")
    if config.output:
        result = {m: {k: asdict(f) for k, f in figures.items()} for m, figures in table.items()}
        Path(config.output).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
