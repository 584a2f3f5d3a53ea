# SPDX-License-Identifier: AGPL-3.0-only
"""Ablations that can fail: shared starts, several seeds, intervals, validation pairs only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install .[train]")
for module in ("kornia", "lightning_fabric", "omegaconf", "safetensors", "matplotlib"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

from safetensors.torch import load_file  # noqa: E402
from support_training import write_pairs  # noqa: E402

from fusion_models import create_model  # noqa: E402
from fusion_models.evaluation.differences import difference  # noqa: E402
from fusion_models.evaluation.metrics import correlation  # noqa: E402
from fusion_models.pairs import ImagePair, find_sets  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when it runs as a script
import ablate  # noqa: E402
import analyse_interventions  # noqa: E402
import method_tables  # noqa: E402


def test_a_difference_is_clear_if_its_interval_leaves_out_0_and_all_seeds_agree():
    rng = np.random.default_rng(0)
    reference = rng.normal(0.5, 0.2, (3, 30))
    apart = difference(reference + 0.02 + rng.normal(0, 0.01, (3, 30)), reference)
    assert apart.clear and apart.low < apart.mean < apart.high and apart.low > 0
    noise = difference(reference + rng.normal(0, 0.2, (3, 30)), reference)
    assert not noise.clear
    one_seed = reference + np.array([[0.3], [0.3], [-0.05]])
    assert difference(one_seed, reference).low > 0 and not difference(one_seed, reference).clear
    with pytest.raises(ValueError, match="two of"):
        difference(reference, reference[:, :-1])


def test_rows_start_from_the_reference_s_parameters_and_keep_their_own_dictionary(tmp_path):
    reference = {"channels": 8}
    ablate.shared_start(reference, "baffm", reference, 1, tmp_path / "a" / "start.safetensors")
    other = {"channels": 8, "random_entries": 25, "prior": "uniform"}
    ablate.shared_start(other, "baffm", reference, 1, tmp_path / "b" / "start.safetensors")
    plain = {"channels": 8, "adjustment": "none"}
    ablate.shared_start(plain, "baffm", reference, 1, tmp_path / "c" / "start.safetensors")
    a, b, c = (load_file(tmp_path / name / "start.safetensors") for name in "abc")
    assert torch.equal(a["reconstruct.weight"], b["reconstruct.weight"])
    assert torch.equal(a["reconstruct.weight"], c["reconstruct.weight"])
    assert torch.equal(a["adjust_ir.query.weight"], b["adjust_ir.query.weight"])
    assert not torch.equal(a["adjust_ir.dictionary"], b["adjust_ir.dictionary"])
    create_model("baffm", **plain).load_state_dict(c)


def test_a_row_is_compared_with_the_row_that_begins_its_name():
    names = ["paper", "paper, no CFI", "shipped", "shipped, no CFI", "N 30"]
    against = [ablate.reference_of(name, names) for name in names]
    assert against == ["paper", "paper", "paper", "shipped", "paper"]


def test_a_blank_camera_and_masked_blocks_are_measured_in_grey_levels():
    rng = np.random.default_rng(0)
    ir, vi = rng.integers(1, 255, (2, 300, 280)).astype(np.uint8)
    pair = ImagePair("one", ir, vi, Path("one.png"))
    by_average = ablate.under_interventions(lambda a, b: (a + b) / 2, pair, seed=0)
    middle = ir[86:214, 76:204], vi[86:214, 76:204]
    assert by_average["blank"] == pytest.approx(sum(m.mean() for m in middle) / 4, rel=1e-5)
    assert by_average["masked"] > 30, "blocks go dark in the average"
    steady = ablate.under_interventions(lambda a, b: torch.full_like(a, 0.5), pair, seed=0)
    assert steady["masked"] == 0
    again = ablate.under_interventions(lambda a, b: (a + b) / 2, pair, seed=0)
    assert again == by_average, "all networks see the same masks"


def test_ablations_are_not_measured_on_test_pairs(capsys):
    assert ablate.main(["method=caf", "sets=msrs/test"]) == 2
    assert "msrs/test is no validation set" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [
    {"adjustment": "memory"}, {"adjustment": "bias"}, {"adjustment": "none"}, {"channels": 8},
])  # fmt: skip
def test_the_deploy_form_of_an_ablated_baffm_is_equal(rows):
    from fusion_models.registry import deploy_form

    torch.manual_seed(0)
    model = create_model("baffm", **rows)
    ir, vi = torch.rand(2, 1, 1, 64, 96)
    with torch.no_grad():
        assert (deploy_form(model)(ir, vi) - model(ir, vi)).abs().max() < 1e-4


@pytest.mark.parametrize("settings", [
    {"depth": 1, "sfim": False}, {"depth": 2, "shallow": 1}, {"depth": 5}, {"fim": False},
])  # fmt: skip
def test_refinefuse_has_one_to_five_scales_with_and_without_its_modules(settings):
    model = create_model("refinefuse", regional=False, **settings)
    assert model(*torch.rand(2, 1, 1, 64, 96)).shape == (1, 1, 64, 96)
    with pytest.raises(ValueError, match="1 to 5 scales"):
        create_model("refinefuse", depth=6)


def test_cfi_without_its_integrator_has_open_gates():
    model = create_model("cfi", integrator=False)
    fused, gates = model.fuse_with_gates(*torch.rand(2, 1, 1, 64, 96))
    assert fused.shape == (1, 1, 64, 96) and all(gate.min() == gate.max() == 1 for gate in gates)


@pytest.mark.slow
def test_a_tiny_ablation_is_recorded_with_intervals_and_goes_on(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path / "data" / "city" / "train", count=17, size=(72, 80))
    rows = {"defaults": [], "no gradient": ["objective.weights={gradient_max: 0}"]}
    monkeypatch.setattr(ablate, "rows_of", lambda method, names: rows)
    arguments = [
        "method=caf", f"data={tmp_path / 'data'}", "sets=city/validation", "seeds=2", "max_steps=2",
        "crop=32", "batch_size=1", "threads=1", "accelerator=cpu", "precision=32-true", "mix={}",
        f"work={tmp_path / 'work'}", f"output={tmp_path / 'docs' / 'ablations'}",
    ]  # fmt: skip
    assert ablate.main(arguments) == 0
    path = tmp_path / "docs" / "ablations" / "caf.json"
    found = json.loads(path.read_text())
    figure = found["rows"]["no gradient"]["sets"]["city/validation"]["VIF"]
    assert len(figure["seeds"]) == len(figure["difference"]["seeds"]) == 2
    assert (
        figure["difference"]["low"] <= figure["difference"]["mean"] <= figure["difference"]["high"]
    )
    assert len(figure["values"]) == len(found["pairs"]["city/validation"]) == 2
    before = (tmp_path / "work" / "caf" / "no_gradient" / "1" / "run.json").read_text()
    assert ablate.main(arguments) == 0, "what is trained stays"
    assert (tmp_path / "work" / "caf" / "no_gradient" / "1" / "run.json").read_text() == before
    table = method_tables.ablation_table(tmp_path / "docs", "caf")
    assert "city/validation, 2 pairs" in table and "2 steps, 2 seeds" in table


def test_effects_have_intervals_and_controls_see_the_same_masks(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "city" / "test", count=3, size=(72, 80))
    output = tmp_path / "effects.json"
    arguments = [f"data={pairs.parents[1]}", "sets=city/test", "methods=caf,average", "draws=2"]
    assert analyse_interventions.main([*arguments, f"output={output}"]) == 0
    found = json.loads(output.read_text())
    methods = found["sets"]["city/test"]["methods"]
    for by in methods.values():
        low, high = by["no_ir"]["PSNR"]["interval"]
        assert low <= by["no_ir"]["PSNR"]["mean"] <= high
        assert set(by["order"].values()) <= {"holds", "fails", "open"}
    by_hand = []
    for pair in find_sets(pairs.parents[1], ["city/test"])[0]:
        ir, vi = pair.ir.astype(float), pair.vi.astype(float)
        with_both, without = np.rint((ir + vi) / 2), np.rint(vi / 2)
        by_hand.append(correlation(with_both, ir, vi) - correlation(without, ir, vi))
    found_mean = methods["average"]["no_ir"]["CC"]["mean"]
    assert found_mean == pytest.approx(np.mean(by_hand), abs=2e-3)
    assert "city/test, 3 | average" in method_tables.effects_table(tmp_path)


def test_an_order_is_open_where_an_interval_has_0_in_it():
    rng = np.random.default_rng(0)

    def effects(dropout, complementary, random):
        means = {
            "no_ir": dropout, "no_vi": dropout, "complementary": complementary, "random": random
        }  # fmt: skip
        noise = rng.normal(0, 0.1, (4, 40))
        noise -= noise.mean(1, keepdims=True)
        return {
            kind: dict.fromkeys(("PSNR", "CC"), mean + own)
            for (kind, mean), own in zip(means.items(), noise)
        }

    def order(*means):
        return analyse_interventions.summarise(effects(*means))["order"]["CC"]

    assert order(3, 2, 1) == "holds" and order(3, 1, 2) == "fails" and order(3, 1, 1) == "open"


def test_tables_are_filled_between_their_marks(tmp_path):
    (tmp_path / "papers.yaml").write_text(
        "cfi:\n- {paper_set: TNO, ours: tno/test, figures: {PSNR: {paper: 62.06, plus: 48.13}, "
        "SF: {paper: 5.1, comparable: false, note: other scale}}}\n"
    )
    row = {"mean": {"PSNR": 14.5, "SF": 13.0}}
    evaluation = {"sets": {"tno/test": {"pairs": 25, "rows": {"cfi": row}}}}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    page = "# a\n<!-- table paper cfi -->\nold\n<!-- end -->\nb\n"
    filled = method_tables.fill(page, tmp_path)
    assert (
        "| PSNR | 62.06 | 62.630 |" in filled
        and "| SF | 5.1 | - | not comparable: other scale" in filled
    )
    assert "old" not in filled and filled.endswith("<!-- end -->\nb\n")
    assert method_tables.fill(filled, tmp_path) == filled
    with pytest.raises(ValueError, match="table 'dance'"):
        method_tables.fill("<!-- table dance -->\n<!-- end -->", tmp_path)


def test_the_page_of_the_methods_is_up_to_date():
    assert method_tables.main(["check=true"]) == 0
