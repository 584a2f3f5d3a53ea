# SPDX-License-Identifier: AGPL-3.0-only
"""Kinds of pictures that settings name."""

from __future__ import annotations

import pytest

from fusion_models.detection.pictures import RULES, SOURCES, choose
from fusion_models.settings import ConfigError

KINDS = {**SOURCES, **RULES}


def test_pictures_are_chosen_in_the_order_of_the_setting_whatever_their_names_hold():
    assert list(choose(KINDS, "mean .7,thermal, coloured, visible")) == [
        "mean .7",
        "thermal, coloured",
        "visible",
    ]
    assert list(choose(KINDS, "thermal, coloured")) == ["thermal, coloured"]
    assert choose(KINDS, "all") == KINDS


@pytest.mark.parametrize("names", ["none", ""])
def test_no_pictures_can_be_chosen(names):
    assert choose(KINDS, names) == {}


def test_unknown_pictures_are_named_with_those_that_exist():
    with pytest.raises(ConfigError, match="no pictures foggy, thermal; use visible, infrared"):
        choose(KINDS, "thermal,visible,foggy")
