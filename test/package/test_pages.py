# SPDX-License-Identifier: AGPL-3.0-only
"""The pages on situations and faults name tests and faults that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["docs/field.md", "docs/reliability.md"])
def test_each_test_that_a_page_names_exists(page):
    sources = "".join(path.read_text() for path in (ROOT / "test").rglob("*.py"))
    defined = set(re.findall(r"def (test_\w+)\(", sources))
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`(test_\w+)(?:\[[^`]*\])?`", text))
    assert named - defined == set()
    assert len(named) > 10
    values = re.findall(r"`(?:test_\w+)?\[([^`\]]+)\]`", text)
    known = [
        value
        for value in values
        if all(f'"{part}"' in sources for part in value.split("-")) or f'"{value}"' in sources
    ]
    assert known == values
    files = set(re.findall(r"`(test/[\w/]+\.py)`", text))
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_each_fault_of_chaos_is_on_the_page():
    pytest.importorskip("rclpy")
    from fusion_ros.commands.chaos.faults import FAULTS

    text = (ROOT / "docs" / "reliability.md").read_text()
    assert [name for name in FAULTS if f"`{name}`" not in text] == []
