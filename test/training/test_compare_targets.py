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
