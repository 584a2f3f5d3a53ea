# SPDX-License-Identifier: AGPL-3.0-only
"""The command that searches a loss, in short form: made-up labels, a tiny network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for module in ("torch", "kornia", "omegaconf", "yaml", "matplotlib"):
    pytest.importorskip(module, reason=f"needs {module}: pip install '.[train,search]'")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402

from fusion_models.search.terms import FIXED, PAPER, SearchedObjective  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when it runs as a script
import search_loss  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pairs with boxes and class maps of a warm square."""
    root = tmp_path_factory.mktemp("data") / "made_up" / "train"
    rng = np.random.default_rng(0)
    for folder in ("ir", "vi", "labels", "boxes/fusion"):
        (root / folder).mkdir(parents=True)
    for number in range(9):
        stem = f"{number:05d}N"
        ir = rng.integers(40, 80, (72, 96), np.uint8)
        x, y = rng.integers(4, 40, 2)
        ir[y : y + 28, x : x + 20] = 200
        class_map = np.zeros((72, 96), np.uint8)
        class_map[y : y + 28, x : x + 20] = 2
        cv2.imwrite(str(root / "ir" / f"{stem}.png"), ir)
        cv2.imwrite(str(root / "vi" / f"{stem}.png"), rng.integers(0, 90, (72, 96, 3), np.uint8))
        cv2.imwrite(str(root / "labels" / f"{stem}.png"), class_map)
        box = f"0 {(x + 10) / 96:.6f} {(y + 14) / 72:.6f} {20 / 96:.6f} {28 / 72:.6f}\n"
        (root / "boxes" / "fusion" / f"{stem}.txt").write_text(box)
    return root.parent


def run(data, tmp_path, *arguments) -> int:
    return search_loss.main([
        f"data={data}", "model={channels: 2, growth: 2}", "crop=64", "batch=1", "threads=1",
        "perceptual=none", "precision=32-true", f"output={tmp_path / 'run'}", *arguments,
    ])  # fmt: skip


def test_a_detector_searches_and_the_search_is_resumed(data, tmp_path, capsys):
    pytest.importorskip("ultralytics")
    from ultralytics import YOLO

    weights = tmp_path / "start.pt"
    model = YOLO("yolov8n.yaml")
    model.model.fuse()
    model.save(str(weights))
    common = ("task=detection", f"task_weights={weights}")
    assert run(data, tmp_path, *common, "steps=1") == 0
    assert run(data, tmp_path, *common, "steps=2", "resume=true") == 0
    assert "boxes: 8 person" in capsys.readouterr().out  # every eighth pair is for validation
    loss = yaml.safe_load((tmp_path / "run" / "loss.yaml").read_text())
    searched = [name for name in PAPER if not name.startswith("perceptual")]
    assert list(loss["weights"]) == [*searched, *FIXED]
    assert sum(loss["weights"][n] for n in searched) == pytest.approx(len(searched), abs=0.01)
    assert "2 iterations" in loss["found"] and set(loss["signal_to_noise"]) == set(searched)
    SearchedObjective.from_file(tmp_path / "run" / "loss.yaml")
    assert (tmp_path / "run" / "trajectory.png").is_file()


def test_a_segmentation_network_searches(data, tmp_path):
    pytest.importorskip("transformers", reason="pip install '.[search]'")
    assert run(data, tmp_path, "task=segmentation", "steps=1", "labels=shuffled") == 0
    loss = yaml.safe_load((tmp_path / "run" / "loss.yaml").read_text())
    assert "labels shuffled" in loss["found"]


@pytest.mark.parametrize("kind", ["equal", "random"])
def test_control_weights_have_the_form_of_a_search_s_result(data, tmp_path, kind):
    assert run(data, tmp_path, f"weights={kind}", "seed=3") == 0
    weights = yaml.safe_load((tmp_path / "run" / "loss.yaml").read_text())["weights"]
    searched = [w for name, w in weights.items() if name not in FIXED]
    assert np.mean(searched) == pytest.approx(1, abs=0.01)
    assert (np.std(searched) > 0.2) == (kind == "random")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("task=walking",), "task=walking: expected detection or segmentation"),
        (("crop=70",), "crop=70: expected a multiple of 32"),
        (("task_weights=nowhere.pt",), "task_weights=nowhere.pt: no such file"),
        (("task=segmentation", "sets=moon"), "no training pairs labelled for segmentation in moon"),
        (("task=segmentation", "resume=true"), "resume=true, but"),
    ],
)
def test_what_cannot_be_searched_is_said(data, tmp_path, capsys, arguments, says):
    pytest.importorskip("transformers")
    assert run(data, tmp_path, *arguments) == 2
    assert says in capsys.readouterr().err
