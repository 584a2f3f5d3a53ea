# SPDX-License-Identifier: AGPL-3.0-only
"""The comparison of rules of the common target."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the target needs torch: pip install .[train]")

from support_training import write_pairs

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when it runs as a script
from compare_targets import RULES, main


def test_each_rule_of_the_target_is_a_row(tmp_path, capsys):
    write_pairs(tmp_path / "data" / "city" / "test", size=(70, 90))
    output = tmp_path / "targets"
    assert main([f"data={tmp_path / 'data'}", "sets=city/test", f"output={output}"]) == 0
    rows = json.loads(output.with_suffix(".json").read_text())
    assert [row["rule"] for row in rows] == list(RULES)
    assert len({row["vif"] for row in rows}) > 3, "rules must differ in what they give"
    assert "| each band decides alone |" in capsys.readouterr().out


def test_an_unknown_set_is_refused(tmp_path, capsys):
    write_pairs(tmp_path / "data" / "city" / "test", size=(70, 90))
    assert main([f"data={tmp_path / 'data'}", "sets=nowhere/test"]) == 2
    assert "nowhere/test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"WARM": "much"}, "WARM: expected 1 number(s), got much"),
        ({"WARM": None}, "WARM: expected 1 number(s)"),
        ({"WARM": float("nan")}, "WARM: expected 1 number(s)"),
        ({"GAIN": [1, 2, 3, 4, 5, 6, "x"]}, "GAIN: expected 7 number(s)"),
        ({"GAIN": [[1], [2, 3]]}, "GAIN: expected 7 number(s)"),
        ({"GAIN": [1, 2]}, "GAIN: expected 7 value(s)"),
        ({"NONE": 1}, "no constant NONE"),
    ],
)
def test_constants_of_no_use_are_refused_before_anything_is_measured(
    constants, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("compare_targets.measure", lambda *given: pytest.fail("measured"))
    write_pairs(tmp_path / "data" / "city" / "test", size=(70, 90))
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"constants": constants}))
    arguments = [f"data={tmp_path / 'data'}", "sets=city/test", f"constants={file}"]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown and "mine.json" in shown


def test_a_file_of_constants_does_not_take_the_name_of_another_row(tmp_path, capsys):
    write_pairs(tmp_path / "data" / "city" / "test", size=(70, 90))
    file = tmp_path / "shipped.json"
    file.write_text(json.dumps({"constants": {"WARM": 1.0}}))
    arguments = [f"data={tmp_path / 'data'}", "sets=city/test", f"constants={file}"]
    assert main(arguments) == 2
    assert "there is a row 'shipped' already; rename the file" in capsys.readouterr().err


def test_images_too_small_for_the_target_are_refused(tmp_path, capsys):
    write_pairs(tmp_path / "data" / "city" / "test", size=(20, 90))
    assert main([f"data={tmp_path / 'data'}", "sets=city/test"]) == 2
    assert "city/test/00: 90x20 pixels; the target needs 32 or more" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["threads=-1", "threads=x", "limit=-1"])
def test_settings_out_of_range_are_refused(wrong, tmp_path, capsys):
    write_pairs(tmp_path / "data" / "city" / "test", size=(70, 90))
    assert main([f"data={tmp_path / 'data'}", "sets=city/test", wrong]) == 2
    assert f"compare_targets.py: {wrong}: expected" in capsys.readouterr().err
