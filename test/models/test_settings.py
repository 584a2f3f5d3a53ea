# SPDX-License-Identifier: AGPL-3.0-only
"""Settings of the scripts: values have the type of their default, or the message says which."""

from __future__ import annotations

import pytest

pytest.importorskip("omegaconf", reason="settings need omegaconf: pip install .[train]")

from fusion_models.settings import ConfigError, check_counts, merge_settings, result_files

DEFAULTS = {"limit": 8, "lr": 0.05, "resume": False, "sets": ""}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("limit=many", "limit=many: expected a whole number, as in limit=8"),
        ("limit=1.5", "limit=1.5: expected a whole number"),
        ("limit=true", "limit=True: expected a whole number"),
        ("limit=", "limit=: expected a whole number"),
        ("lr=nan", "lr=nan: expected a number, as in lr=0.05"),
        ("lr=.inf", "lr=inf: expected a number"),
        ("resume=maybe", "resume=maybe: expected true or false, as in resume=false"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_one_expected(argument, message):
    with pytest.raises(ConfigError, match=message):
        merge_settings(DEFAULTS, [argument])


def test_whole_numbers_are_numbers_and_text_may_look_like_one():
    config = merge_settings(DEFAULTS, ["lr=1", "sets=3", "resume=true", "limit=0"])
    assert (config.lr, config.sets, config.resume, config.limit) == (1, 3, True, 0)


def test_a_count_below_0_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="limit=-1: expected 0 or more"):
        check_counts(merge_settings(DEFAULTS, ["limit=-1"]), "limit")


def test_results_keep_a_dotted_name_and_their_folder_is_made(tmp_path):
    names = [file.name for file in result_files(tmp_path / "a/lr0.05", ".md", ".json")]
    assert names == ["lr0.05.md", "lr0.05.json"] and (tmp_path / "a").is_dir()
    assert result_files(f"{tmp_path}/x.json", ".md", ".json")[0] == tmp_path / "x.md"
    assert result_files("", ".json") == []


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output=.*file/x: no folder can be made there"):
        result_files(tmp_path / "file/x", ".json")
    (tmp_path / "y.json").mkdir()
    with pytest.raises(ConfigError, match="y.json is a folder; name a file"):
        result_files(tmp_path / "y", ".json")
