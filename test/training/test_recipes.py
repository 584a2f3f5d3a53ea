# SPDX-License-Identifier: AGPL-3.0-only
"""The papers' recipes: their losses alone, a few steps of each, and resuming them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install .[train]")
for module in ("kornia", "lightning_fabric", "omegaconf", "safetensors"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

import numpy as np  # noqa: E402
from support_training import write_pairs  # noqa: E402

from fusion_models import create_model, create_objective, layers, list_models  # noqa: E402
from fusion_models.data import Batch  # noqa: E402
from fusion_models.losses import FusionTarget, gradient_magnitude  # noqa: E402
from fusion_models.trainer import ConfigError, Trainer, load_config  # noqa: E402
from training.train import main  # noqa: E402

CONFIG = Path(__file__).resolve().parents[2] / "config" / "training"
OPEN = {"baffm": ["objective.perceptual=efficientnet_lite0"], "caf": ["objective.perceptual=none"]}
"""What needs a download is left out."""
SMALL = {"baffm": ["model.channels=8"]}
TERMS = {
    "baffm": {"pixel", "shallow", "middle", "deep"},
    "cfi": {"source", "detail", "invariance", "necessity"},
    "refinefuse": {"intensity", "texture"},
    "caf": {
        "l1_ir", "l1_vi", "l1_max", "l1_masked_ir", "l1_masked_vi", "mse_ir", "mse_vi", "mse_max",
        "ssim_ir", "ssim_vi", "gradient_ir", "gradient_vi", "gradient_max", "mse_masked_ir",
        "mse_masked_vi",
    },
}  # fmt: skip


def needed(method):
    if method == "baffm":
        pytest.importorskip("efficientnet_lite_pytorch", reason="pip install .[dictionary]")


def batch(size=64, seed=0):
    ir, vi = torch.rand(2, 2, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return Batch(ir, vi, torch.zeros_like(ir), seed)


@pytest.mark.parametrize("method", list_models())
def test_a_few_steps_of_the_paper_s_recipe_run_and_resume(method, tmp_path):
    needed(method)
    pairs = write_pairs(tmp_path / "city" / "train", size=(72, 80))
    arguments = [
        f"method={method}", "recipe=paper", f"data={pairs}", f"output={tmp_path / 'run'}",
        "validation=", "crop=64", "batch_size=2", "max_steps=2", "save_every=1", "threads=1",
        "accelerator=cpu", "precision=32-true", *OPEN.get(method, []), *SMALL.get(method, []),
    ]  # fmt: skip
    assert main(arguments) == 0
    assert (
        main([f"method={method}", f"output={tmp_path / 'run'}", "resume=true", "max_steps=3"]) == 0
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 3 and record["config"]["recipe"] == "paper"
    assert record["config"]["model"]["regional"] is False
    assert np.isfinite(record["loss_last"])


@pytest.mark.parametrize("method", list_models())
def test_the_paper_s_loss_has_its_terms_and_nothing_of_this_project(method):
    needed(method)
    config = load_config([f"method={method}", "recipe=paper", *OPEN.get(method, [])], CONFIG)
    objective = create_objective(method, "paper", **config.objective)
    assert not any(
        isinstance(module, (FusionTarget, layers.MultiScaleFusion))
        for module in objective.modules()
    )
    model = create_model(
        method, **{**config.model, **({"channels": 8} if method == "baffm" else {})}
    )
    assert not any(isinstance(module, layers.MultiScaleFusion) for module in model.modules())
    assert set(objective(model.eval(), batch())) == TERMS[method]


@pytest.mark.parametrize(
    ("method", "stated"),
    [
        ("baffm", {"crop": 256, "batch_size": 6, "lr": 1e-4, "mix": "llvip"}),
        ("cfi", {"crop": 256, "batch_size": 16, "lr": 1e-4, "mix": "msrs"}),
        ("caf", {"crop": 320, "batch_size": 8, "lr": 1e-4, "mix": "roadscene"}),
        ("refinefuse", {"crop": 256, "batch_size": 8, "lr": 1e-3, "mix": "msrs"}),
    ],
)
def test_the_paper_s_schedule_is_as_stated(method, stated):
    config = load_config([f"method={method}", "recipe=paper"], CONFIG)
    assert {name: getattr(config, name) for name in ("crop", "batch_size", "lr")} == {
        name: stated[name] for name in ("crop", "batch_size", "lr")
    }
    assert [name for name, weight in config.mix.items() if weight] == [stated["mix"]]
    assert config.optimizer == ("sgd" if method == "refinefuse" else "adamw")
    assert (config.weight_decay, config.clip, config.average, config.gains) == (0, 0, 0, False)
    assert (config.warmup, config.lr_final) == (0, 1)


def test_the_intensity_of_refinefuse_follows_a_hard_mask_and_its_texture_the_plain_sobel():
    objective = create_objective("refinefuse", "paper")
    images = batch()
    mask = objective.mask(images)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    composed = mask * images.ir + (1 - mask) * images.vi
    terms = objective(lambda ir, vi: composed, images)
    assert float(terms["intensity"]) == pytest.approx(0, abs=1e-6)
    wanted = torch.maximum(gradient_magnitude(images.ir), gradient_magnitude(images.vi))
    off = (gradient_magnitude(composed) - wanted).abs().mean()
    assert float(terms["texture"]) == pytest.approx(40 * float(off), rel=1e-5)
    labelled = Batch(images.ir, images.vi, torch.ones_like(images.ir))
    assert objective.mask(labelled).min() == 1


def test_the_gates_and_necessity_of_cfi_take_either_sign():
    class Model:
        """Returns half of the visible; all gates are 0.9."""

        def fuse_with_gates(self, ir, vi):
            return vi / 2, [torch.full_like(ir, 0.9)] * 3

    terms = {
        sign: create_objective("cfi", "paper", gate_entropy=sign, necessity_sign=sign)(
            Model(), batch()
        )
        for sign in (1, -1)
    }
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    apart = float(terms[1]["invariance"] - terms[-1]["invariance"])
    assert apart == pytest.approx(0.1 * 2 * entropy, rel=1e-4)
    assert terms[1]["necessity"] == -terms[-1]["necessity"] > 0


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="recipe 'papers': choose one of shipped, paper"):
        load_config(["recipe=papers"], CONFIG)
    with pytest.raises(ConfigError, match="method 'mine' has no recipe 'paper'"):
        load_config(["method=mine", "recipe=paper"], CONFIG)


def test_runs_of_the_two_recipes_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = write_pairs(tmp_path / "city" / "train")
    common = ["method=refinefuse", f"data={pairs}", "validation=", "accelerator=cpu", "crop=32"]
    paper = load_config([*common, "recipe=paper"], CONFIG)
    assert str(Trainer(paper).output) == "runs/paper/refinefuse"
    assert str(Trainer(load_config(common, CONFIG)).output) == "runs/refinefuse"
