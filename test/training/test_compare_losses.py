# SPDX-License-Identifier: AGPL-3.0-only
"""Searched losses against others at equal budget: what is run, and what the table says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for module in ("torch", "kornia", "omegaconf", "yaml", "pycocotools", "onnx"):
    pytest.importorskip(module, reason=f"needs {module}: pip install '.[train,detector]'")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402
from support import write_fusion_onnx  # noqa: E402

from fusion_models.boxes import Boxes  # noqa: E402
from fusion_models.detection.dataset import read_labels  # noqa: E402
from fusion_models.evaluation.detection import Found, Matches  # noqa: E402
from fusion_models.pairs import PairSet, list_pairs  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when it runs as a script
import compare_losses  # noqa: E402
from compare_losses import agreement, as_markdown, compare, rank_correlation  # noqa: E402


@pytest.fixture
def calls(monkeypatch):
    """The scripts that are run; each writes what the real one would."""
    seen = []

    def run(script, *arguments):
        seen.append((script, *arguments))
        given = dict(a.split("=", 1) for a in arguments)
        output = Path(given["output"])
        output.mkdir(parents=True, exist_ok=True)
        if script == "search_loss.py":
            (output / "loss.yaml").write_text("weights: {l1_ir: 1.5, l1_vi: 0.5}")
        if script == "export.py":
            write_fusion_onnx(output / f"{given['method']}.onnx")

    monkeypatch.setattr(compare_losses, "run", run)
    return seen


def settings(**changes):
    arguments = [f"{key}={value}" for key, value in changes.items()]
    return compare_losses.merge_settings(compare_losses.DEFAULTS, arguments)


def test_each_loss_is_found_trained_and_exported_once(calls, tmp_path):
    config = settings(seeds=2, randoms=3, train_steps=7, train="crop=64")
    losses = compare_losses.find_losses(config, tmp_path)
    exported = compare_losses.train(config, tmp_path, losses)
    names = {
        "searched_0", "searched_1", "shuffled_0", "equal_0", "equal_1", "hand-set_0", "hand-set_1",
        "random_0", "random_1", "random_2",
    }  # fmt: skip
    assert set(exported) == set(losses) == names
    scripts = [script for script, *_ in calls]
    assert scripts.count("search_loss.py") == 7 and scripts.count("train.py") == len(names)
    trained = {a[1].split("/")[-2]: a for s, *a in calls if s == "train.py"}
    assert all("max_steps=7" in a and "crop=64" in a for a in trained.values())
    assert not any(argument.startswith("loss=") for argument in trained["hand-set_1"])
    assert f"loss={losses['equal_0']}" in trained["equal_1"] and "seed=1" in trained["equal_1"]
    calls.clear()
    compare_losses.train(config, tmp_path, compare_losses.find_losses(config, tmp_path))
    assert calls == []


def test_another_method_is_trained_with_the_loss_that_was_found_for_one(calls, tmp_path):
    config = settings(method="refinefuse", loss_of="caf", seeds=1, randoms=1)
    losses = compare_losses.find_losses(config, tmp_path)
    compare_losses.train(config, tmp_path, losses)
    methods = {(script, arguments[0]) for script, *arguments in calls}
    assert ("search_loss.py", "method=caf") in methods
    assert ("train.py", "method=refinefuse") in methods


def test_losses_of_another_comparison_are_taken_as_they_are(calls, tmp_path):
    compare_losses.find_losses(settings(seeds=1, randoms=1), tmp_path / "caf")
    calls.clear()
    taken = settings(method="refinefuse", losses=tmp_path / "caf", seeds=1, randoms=1)
    losses = compare_losses.find_losses(taken, tmp_path / "refinefuse")
    assert calls == [] and losses["searched_0"] == tmp_path / "caf" / "searched_0" / "loss.yaml"
    more = settings(losses=tmp_path / "caf", seeds=2)
    with pytest.raises(compare_losses.ConfigError, match="no searched_1/loss.yaml in it"):
        compare_losses.find_losses(more, tmp_path / "refinefuse")


def test_a_network_is_measured_by_its_objects_and_on_some_pairs_by_metrics(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("ir", "vi", "boxes/infrared", "boxes/visible"):
        (tmp_path / folder).mkdir(parents=True)
    for stem in ("1N", "2N", "3N"):
        image = rng.integers(60, 90, (72, 80), np.uint8)
        image[20:50, 30:50] = 200
        cv2.imwrite(str(tmp_path / "ir" / f"{stem}.png"), image)
        cv2.imwrite(str(tmp_path / "vi" / f"{stem}.png"), np.full((72, 80, 3), 70, np.uint8))
        for camera in ("infrared", "visible"):
            (tmp_path / "boxes" / camera / f"{stem}.txt").write_text("0 .5 .55 .25 .47\n")
    pairs = PairSet("street/test", tmp_path, tuple(list_pairs(tmp_path)))
    labels, _ = read_labels(pairs, ("person",))
    nothing = Found(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    seen = []

    def finder(picture):
        seen.append(picture.shape)
        return nothing

    kept = compare_losses.measure(pairs, lambda pair: pair.ir, finder, labels, 2)
    assert seen == [(72, 80, 3)] * 3 and set(kept.found) == set(labels)
    assert kept.figures["lost"] == 0 and kept.figures["VIF"] > 0.9
    lost = compare_losses.measure(pairs, lambda pair: pair.vi, finder, labels, 2)
    assert lost.figures["lost"] == 1 and set(lost.figures) == {"VIF", "Qabf", "SCD", "lost"}


def test_ranks_agree_wholly_not_or_in_reverse(tmp_path):
    assert rank_correlation((1, 2, 3), (10, 20, 99)) == pytest.approx(1)
    assert rank_correlation((1, 2, 3), (3, 2, 1)) == pytest.approx(-1)
    losses = {}
    for seed, weights in enumerate(((0.5, 1.0, 1.5), (0.1, 0.2, 2.7))):
        losses[f"searched_{seed}"] = tmp_path / f"{seed}.yaml"
        named = dict(zip(("l1_ir", "l1_vi", "ssim_ir"), weights)) | {"mse_masked_ir": 0.5}
        losses[f"searched_{seed}"].write_text(yaml.safe_dump({"weights": named}))
    assert agreement({**losses, "hand-set_0": None}) == pytest.approx([1])


def test_the_weights_of_searches_stand_beside_their_signal_to_noise():
    one = {"weights": {"l1_ir": 1.5, "l1_vi": 0.5}, "signal_to_noise": {"l1_ir": -2.6, "l1_vi": 2}}
    control = {"weights": {"l1_ir": 0.9, "l1_vi": 1.1}}
    lines = compare_losses.weights_table({"searched_0": one, "equal_0": control}).splitlines()
    assert lines[0] == "| term | searched_0 |" and lines[2] == "| l1_ir | 1.50 (-2.6) |"
    assert compare_losses.weights_table({"equal_0": control}) == ""


def test_the_table_gives_the_gain_of_the_searched_loss_with_its_interval():
    rng = np.random.default_rng(0)
    truth, good, poor = {}, {}, {}
    for number in range(30):
        corners = np.float32([[0.1, 0.1, 0.3, 0.5], [0.5, 0.1, 0.7, 0.5]])
        truth[f"{number}N"] = Boxes(np.zeros(2, np.int64), corners)
        for found, share in ((good, 0.9), (poor, 0.4)):
            kept = rng.random(2) < share
            scores = np.full(kept.sum(), 0.9, np.float32)
            found[f"{number}N"] = Found(np.zeros(kept.sum(), np.int64), corners[kept], scores)
    matches = {
        name: Matches(truth, found, ("person",))
        for name, found in (
            ("searched_0", good),
            ("hand-set_0", poor),
            ("equal_0", good),
            ("shuffled_0", poor),
        )
    }
    table = compare(matches, 100)
    assert table["searched"]["mAP50"] == table["equal"]["mAP50"] > table["hand-set"]["mAP50"]
    low, high = table["hand-set"]["searched gains"]
    assert 0 < low < high < 1 and table["equal"]["searched gains"] == [0, 0]
    text = as_markdown(table, [0.8, 0.6])
    assert "beat hand-set of hand-set, equal" in text and "by 0.70" in text
    assert table["shuffled"]["control gains"][1] < 0 and "shuffled labels gain -" in text
    assert "| shuffled |" in text and "control gains |" not in text
