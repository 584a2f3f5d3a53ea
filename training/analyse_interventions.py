# SPDX-License-Identifier: AGPL-3.0-only
"""Average treatment effects of cfi's interventions (section 4.2.3 of its paper).

    python training/analyse_interventions.py data=../shared/data/msrs/test output=effects

`ATE(t) = mean over images of Q(f(I)) - Q(f(M_t(I)))` with Q in {PSNR, CC} of the fused image
against both untouched sources. The paper's order: modality dropout largest, complementary masks
moderate, random masks smallest. Settings as `key=value`: data (pair folder), run (folder of a
training run; '' for the committed parameters), limit (pairs, 0: all), seed, output (folder of
effects.json and .png).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from fusion_models import create_model
from fusion_models.cfi.interventions import KINDS, intervene
from fusion_models.data import LoadedPairs
from fusion_models.evaluation.metrics import correlation, psnr
from fusion_models.pairs import find_sets
from fusion_models.settings import merge_settings

DEFAULTS = {"data": "auto", "run": "", "limit": 0, "seed": 0, "output": "runs/effects"}
QUALITIES = {"PSNR": psnr, "CC": correlation}


@torch.inference_mode()
def treatment_effects(model: torch.nn.Module, pairs: LoadedPairs, seed: int = 0):
    """ATE of each intervention for each quality: `{kind: {"PSNR": dB, "CC": -}}`."""
    effects = {kind: {name: [] for name in QUALITIES} for kind in KINDS}
    generator = torch.Generator().manual_seed(seed)
    for ir, vi, _ in pairs.images:
        height, width = (size // 8 * 8 for size in ir.shape)
        ir, vi = ir[:height, :width], vi[:height, :width]
        x_ir, x_vi = (torch.from_numpy(x).float().div(255)[None, None] for x in (ir, vi))

        def quality(a: torch.Tensor, b: torch.Tensor, ir=ir, vi=vi) -> dict[str, float]:
            fused = model(a, b)[0, 0].clamp(0, 1).mul(255).round().numpy()
            return {name: measure(fused, ir, vi) for name, measure in QUALITIES.items()}

        clean = quality(x_ir, x_vi)
        for kind in KINDS:
            case = intervene(x_ir, x_vi, kind, generator)
            for name, value in quality(case.ir, case.vi).items():
                effects[kind][name].append(clean[name] - value)
    return {k: {n: float(np.mean(v)) for n, v in by.items()} for k, by in effects.items()}


def order_holds(effects: dict[str, dict[str, float]]) -> dict[str, bool]:
    """Whether the paper's order holds: mean of both dropouts > complementary > random."""
    return {
        name: (effects["no_ir"][name] + effects["no_vi"][name]) / 2
        > effects["complementary"][name]
        > effects["random"][name]
        for name in QUALITIES
    }


def draw_chart(effects: dict[str, dict[str, float]], path: Path) -> None:
    """Bar chart of the effects, one panel a quality."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(QUALITIES), figsize=(8, 3), layout="constrained")
    for axis, name in zip(axes, QUALITIES):
        axis.bar(list(effects), [by[name] for by in effects.values()], color="#4477aa")
        axis.set_title(f"ATE on {name}" + (" (dB)" if name == "PSNR" else ""))
        axis.axhline(0, color="black", linewidth=0.8)
        axis.tick_params(axis="x", labelrotation=20)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    try:
        config = merge_settings(DEFAULTS, arguments)
        pairs = LoadedPairs(find_sets(config.data, limit=config.limit)[0])
    except ValueError as error:
        print(f"analyse_interventions.py: {error}", file=sys.stderr)
        return 2
    if config.run:
        record = json.loads((Path(config.run) / "run.json").read_text())
        model = create_model("cfi", **record["config"]["model"]).eval()
        model.load_state_dict(load_file(Path(config.run) / "model.safetensors"))
    else:
        model = create_model("cfi", pretrained=True)
    effects = treatment_effects(model, pairs, config.seed)
    holds = order_holds(effects)
    print(f"average treatment effects over {len(pairs)} pairs of {pairs.root}")
    print(f"{'intervention':15s}" + "".join(f"{name:>10s}" for name in QUALITIES))
    for kind, by in effects.items():
        print(f"{kind:15s}" + "".join(f"{by[name]:10.4f}" for name in QUALITIES))
    for name, good in holds.items():
        print(f"{name}: dropout > complementary > random {'holds' if good else 'does NOT hold'}")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    result = {"pairs": len(pairs), "effects": effects, "order_holds": holds}
    (output / "effects.json").write_text(json.dumps(result, indent=2) + "\n")
    draw_chart(effects, output / "effects.png")
    print(f"chart: {output / 'effects.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
