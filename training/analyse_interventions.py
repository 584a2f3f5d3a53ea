# SPDX-License-Identifier: AGPL-3.0-only
"""Average treatment effects of cfi's interventions (section 4.2.3 of its paper), with controls.

    python training/analyse_interventions.py sets=msrs/test output=docs/effects.json

`ATE(t) = mean over images of Q(f(I)) - Q(f(M_t(I)))` with Q in {PSNR, CC} of the fused image
against both untouched sources. The paper's order: modality dropout largest, complementary masks
moderate, random masks smallest. One draw of masks decides nothing, and dropout above masks holds
for an average of both images too: so masks are drawn several times, each effect has a 95 % interval
over the images, an order counts only if the differences of its neighbours leave out 0, and methods
that never saw an intervention are measured with the same masks.

Settings as `key=value`:
    methods  shipped methods and `average`, comma separated, or NAME:RUN of a training run
    data, sets   see `evaluate.py`. limit: pairs of each set, evenly spaced (0: all)
    draws    of the masks, 10 or more for a claim. seed: of the masks
    threads  of the processor (0: all)
    output   JSON file, '' for none; its tables come into docs/methods.md by `method_tables.py`
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from fusion_models import create_model
from fusion_models.cfi.interventions import KINDS, intervene
from fusion_models.evaluation.differences import mean_interval
from fusion_models.evaluation.metrics import correlation, psnr
from fusion_models.files import write_text
from fusion_models.hardware import keep_freed_memory
from fusion_models.pairs import PairSet, find_sets
from fusion_models.settings import ConfigError, merge_settings, show_help, split_arguments
from fusion_ros.frame.fuser import Fuser
from fusion_ros.inference import EngineError, load_engine
from fusion_ros.inference.models import model_path

DEFAULTS = {
    "methods": "cfi,caf,average", "data": "auto", "sets": "msrs/test", "limit": 0, "draws": 10,
    "seed": 0, "threads": 0, "output": "",
}  # fmt: skip
QUALITIES = {"PSNR": psnr, "CC": correlation}
MASKED = ("complementary", "random")

Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def average(ir: torch.Tensor, vi: torch.Tensor) -> torch.Tensor:
    """The pixel-wise average, which has learned nothing."""
    return (ir + vi) / 2


def exported(name: str) -> Model:
    """A shipped method as it runs on a robot, which takes half of PyTorch's time."""
    fuser = Fuser(load_engine(model_path(name), "onnxruntime", threads=torch.get_num_threads()))

    def run(ir: torch.Tensor, vi: torch.Tensor) -> torch.Tensor:
        fused = fuser.fuse_luminance(ir[0, 0].numpy(), vi[0, 0].numpy())
        return torch.from_numpy(fused.copy())[None, None]

    return run


def load_models(methods: str) -> dict[str, Model]:
    """Networks by name; `average` is the rule.

    Raises:
        ConfigError: a run that is not there.
        EngineError, ValueError: an unknown method, or one that cannot run.
    """
    models: dict[str, Model] = {}
    for text in filter(None, methods.split(",")):
        name, _, run = text.partition(":")
        if name == "average":
            models[name] = average
        elif run:
            record = Path(run) / "run.json"
            if not record.is_file():
                raise ConfigError(f"{record} is not there: give NAME:<folder of a training run>")
            config = json.loads(record.read_text())["config"]
            models[name] = create_model(config["method"], **config["model"]).eval()
            models[name].load_state_dict(load_file(Path(run) / "model.safetensors"))
        else:
            models[name] = exported(name)
    return models


@torch.inference_mode()
def treatment_effects(
    models: dict[str, Model], pairs: PairSet, draws: int = 10, seed: int = 0
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Effects of each image, the mean over the draws: by method, intervention, quality, `[n]`."""
    found = {m: {k: {q: [] for q in QUALITIES} for k in KINDS} for m in models}
    for number, pair in enumerate(tqdm(pairs, pairs.name, leave=False, disable=None)):
        height, width = (size // 8 * 8 for size in pair.ir.shape)
        ir, vi = pair.ir[:height, :width], pair.vi[:height, :width]
        x_ir, x_vi = (torch.from_numpy(x).float().div(255)[None, None] for x in (ir, vi))
        generator = torch.Generator().manual_seed(seed + 1000 * number)
        cases = {
            kind: [
                intervene(x_ir, x_vi, kind, generator)
                for _ in range(draws if kind in MASKED else 1)
            ]
            for kind in KINDS
        }
        for method, model in models.items():

            def quality(a, b, model=model, ir=ir, vi=vi) -> dict[str, float]:
                fused = model(a, b)[0, 0].clamp(0, 1).mul(255).round().numpy()
                return {name: measure(fused, ir, vi) for name, measure in QUALITIES.items()}

            clean = quality(x_ir, x_vi)
            for kind, several in cases.items():
                values = [quality(case.ir, case.vi) for case in several]
                for name, by_image in found[method][kind].items():
                    by_image.append(clean[name] - np.mean([v[name] for v in values]))
    return {
        m: {k: {q: np.array(v) for q, v in by.items()} for k, by in kinds.items()}
        for m, kinds in found.items()
    }


def summarise(effects: dict[str, dict[str, np.ndarray]]) -> dict:
    """Of one method: mean and interval of each effect, and whether the paper's order is clear.

    `order` is by quality 'holds', 'fails' or 'open': whether the mean of both dropouts is above
    complementary masks, and these above random ones; open if an interval of a difference has 0 in
    it and no other contradicts.
    """
    found: dict = {
        kind: {
            name: {"mean": float(values.mean()), "interval": list(mean_interval(values))}
            for name, values in by.items()
        }
        for kind, by in effects.items()
    }
    found["order"] = {}
    for name in QUALITIES:
        dropout = (effects["no_ir"][name] + effects["no_vi"][name]) / 2
        masks = [effects[kind][name] for kind in MASKED]
        steps = [mean_interval(dropout - masks[0]), mean_interval(masks[0] - masks[1])]
        holds = all(low > 0 for low, _ in steps)
        fails = any(high < 0 for _, high in steps)
        found["order"][name] = "holds" if holds else "fails" if fails else "open"
    return found


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        if config.draws < 1:
            raise ConfigError(f"draws={config.draws}: expected 1 or more")
        keep_freed_memory()
        if config.threads:
            torch.set_num_threads(config.threads)
        models = load_models(config.methods)
        sets = find_sets(config.data, config.sets.split(","), limit=config.limit)
    except (ValueError, EngineError) as error:
        print(f"analyse_interventions.py: {error}", file=sys.stderr)
        return 2
    found = {}
    for pair_set in sets:
        effects = treatment_effects(models, pair_set, config.draws, config.seed)
        found[pair_set.name] = {
            "pairs": len(pair_set),
            "methods": {name: summarise(by) for name, by in effects.items()},
        }
        print(f"average treatment effects, {pair_set.name}, {len(pair_set)} pairs")
        for name, by in found[pair_set.name]["methods"].items():
            for kind in KINDS:
                cells = "  ".join(
                    "{} {:8.4f} [{:8.4f}, {:8.4f}]".format(quality, of["mean"], *of["interval"])
                    for quality, of in by[kind].items()
                )
                print(f"  {name:10s} {kind:14s} {cells}")
            orders = ", ".join(f"{quality} {order}" for quality, order in by["order"].items())
            print(f"  {name:10s} dropout > complementary > random: {orders}")
    if config.output:
        _, shown = split_arguments(arguments, ("data", "output"))
        head = {
            "command": shlex.join(["python", "training/analyse_interventions.py", *shown]),
            "draws": config.draws,
        }
        write_text(Path(config.output), json.dumps({**head, "sets": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
