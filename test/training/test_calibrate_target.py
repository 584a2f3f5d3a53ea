# SPDX-License-Identifier: AGPL-3.0-only
"""The constants of the common target, moved by gradient."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

for module in ("torch", "kornia", "omegaconf"):
    pytest.importorskip(module, reason=f"the target needs {module}: pip install .[train]")

from support_training import write_pairs  # noqa: E402

from fusion_models.layers import MultiScaleFusion  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when it runs as a script
import calibrate_target  # noqa: E402
import compare_targets  # noqa: E402
from calibrate_target import BY_BAND, FREE, main  # noqa: E402


@pytest.fixture
def data(tmp_path):
    """Two sets: `city`, with a box each pair, wide enough to be halved; `field`, with masks."""
    write_pairs(tmp_path / "data" / "city" / "train", count=2, size=(96, 416))
    write_pairs(tmp_path / "data" / "field" / "train", count=2, size=(70, 90))
    labels = tmp_path / "data" / "city" / "train" / "boxes" / "fusion"
    masks = tmp_path / "data" / "field" / "train" / "masks"
    labels.mkdir(parents=True)
    masks.mkdir()
    for stem in ("00", "01"):
        (labels / f"{stem}.txt").write_text("0 0.5 0.5 0.1 0.5\n")
        mask = np.zeros((70, 90), np.uint8)
        mask[20:50, 30:45] = 1
        cv2.imwrite(str(masks / f"{stem}.png"), mask)
        for place, name, top in (("city", "vi", 24), ("field", "ir", 20)):
            path = tmp_path / "data" / place / "train" / name / f"{stem}.png"
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 4
            height = len(image)
            left, right = (187, 229) if place == "city" else (30, 45)
            image[top : height - top, left:right] += 150
            cv2.imwrite(str(path), image)
    return tmp_path / "data"


def settings(data, *more):
    names = "sets=city/train,field/train"
    return [f"data={data}", names, "max_steps=2", "threads=1", *more]


def shares(constants):
    return [
        *constants["CHOICE"], *(constants[n] for n in ("MIX", "BASE", "UNLIMITED", "WHOLE")),
    ]  # fmt: skip


def test_two_steps_move_the_constants_and_keep_them_within_their_ranges(data, tmp_path, capsys):
    output = tmp_path / "runs" / "target"
    assert main(settings(data, "lr=0.5", "lost=20", f"output={output}")) == 0
    record = json.loads(output.with_suffix(".json").read_text())
    start, found = record["start"], record["constants"]
    assert set(found) == set(FREE) and record["pairs"] == {"city/train": 2, "field/train": 2}
    for name in FREE:
        assert np.allclose(start[name], getattr(MultiScaleFusion, name)), name
        assert np.isfinite(found[name]).all(), name
    for name in BY_BAND:
        assert found[name][:2] == start[name][:2], "texture and noise bands stay"
    moved = [name for name in FREE if found[name] != start[name]]
    assert len(moved) > 15
    assert all(0 <= value <= 1 for value in shares(found))
    positive = ("LIMIT", "FIRM", "WARMTH", "GAIN", "LEVEL", "BRIGHTNESS", "SILHOUETTE")
    assert min(np.min(found[name]) for name in positive) > 0
    assert {"city/train lost", "field/train lost", "city/train hidden"} <= set(record["terms"])
    assert "SHARED: " in capsys.readouterr().out


def test_the_order_of_pairs_depends_on_the_seed_alone(data, tmp_path):
    for name in ("a", "b"):
        assert main(settings(data, "seed=3", f"output={tmp_path / name}")) == 0
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "b"))
    assert a["constants"] == b["constants"]


def test_shares_that_would_leave_their_range_stop_at_its_end():
    constants = calibrate_target.Constants({"UNLIMITED": 0.9, "MIX": 0.1})
    for name, value in constants.moved.items():
        value.data.fill_(-100.0 if name == "MIX" else 100.0)
    found = calibrate_target.as_numbers(constants.values())
    assert found["UNLIMITED"] == 1 and found["MIX"] == 0 and max(found["CHOICE"]) == 1
    for value in constants.moved.values():
        value.data.fill_(-100.0)
    assert min(calibrate_target.as_numbers(constants.values())["LIMIT"]) > 0


def test_an_object_that_is_not_shown_costs_and_one_that_is_does_not(data):
    import torch

    (pairs,) = compare_targets.find_sets(data, ["field/train"])
    sample = calibrate_target.read_samples(pairs)[0]
    seen = torch.from_numpy(sample.ir / np.float32(255))
    flat = torch.full_like(seen, 0.5)
    assert calibrate_target.softly_lost(seen, sample.objects) < 0.1
    assert calibrate_target.softly_lost(flat, sample.objects) > 0.9
    images = [image[None, None] for image in (seen, seen, flat)]
    assert calibrate_target.softly_hidden(*images) < 0.1
    assert calibrate_target.softly_hidden(images[2], *images[:2]) > 0.2


def test_constants_that_were_found_can_be_measured_and_moved_further(data, tmp_path, capsys):
    first = tmp_path / "first.json"
    assert main(settings(data, f"output={first}")) == 0
    again = tmp_path / "again"
    assert main(settings(data, f"start={first}", f"output={again}")) == 0
    start = json.loads(again.with_suffix(".json").read_text())["start"]
    assert start == json.loads(first.read_text())["constants"]
    capsys.readouterr()
    arguments = [f"data={data}", "sets=field/train", "limit=1", f"constants={first}"]
    assert compare_targets.main(arguments) == 0
    assert "| first |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sets=nowhere/train", "nowhere/train"),
        ("max_steps=0", "max_steps=0: expected 1 or more"),
        ("max_steps=1.5", "max_steps=1.5: expected a whole number"),
        ("lr=nan", "lr=nan: expected a number"),
        ("lost=-1", "lost=-1"),
        ("start=none.json", "none.json: no constants"),
    ],
)
def test_what_cannot_be_used_is_refused(data, setting, message, capsys):
    assert main(settings(data, setting)) == 2
    assert message in capsys.readouterr().err


def test_a_labelled_set_without_a_visible_object_is_refused(tmp_path, capsys):
    root = write_pairs(tmp_path / "data" / "city" / "train", size=(70, 90))
    (root / "boxes" / "fusion").mkdir(parents=True)
    for stem in ("00", "01", "02"):
        (root / "boxes" / "fusion" / f"{stem}.txt").write_text("0 0.5 0.5 0.02 0.02\n")
    assert main([f"data={tmp_path / 'data'}", "sets=city/train", "max_steps=1"]) == 2
    assert "no source shows any labelled object" in capsys.readouterr().err


def test_help_names_the_settings(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in calibrate_target.DEFAULTS)
