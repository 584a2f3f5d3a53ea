# SPDX-License-Identifier: AGPL-3.0-only
"""The action `tables` of the benchmark: results become tables of a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusion_ros.commands.main import main

DOCS = Path(__file__).parents[2] / "docs"


def phase(name: str, fps: float, **values: object) -> dict[str, object]:
    return {"name": name, "fps": fps, "lost": 0.02, "p50_ms": 40.4, "p95_ms": 71.6, "size": 160} | (
        values
    )


@pytest.fixture
def page(tmp_path) -> Path:
    content = {
        "method": "baffm",
        "plan": {"rate": 30.0},
        "runs": [
            {"label": "auto", "phases": [phase("before", 29.4), phase("after", 28.0, size=0)]},
            {"label": "0", "phases": [phase("during", 0.0, p50_ms=None)]},
        ],
    }
    (tmp_path / "pace_baffm_30hz.json").write_text(json.dumps(content))
    path = tmp_path / "page.md"
    path.write_text("Before.\n<!-- table: pace pace_*.json -->\nold\n<!-- end -->\nAfter.\n")
    return path


def test_a_table_replaces_the_one_before_and_nothing_else(page):
    for _ in range(2):
        assert main(["benchmark", "tables", str(page)]) == 0
        text = page.read_text()
        assert text.startswith("Before.\n<!-- table: pace pace_*.json -->\n\n| method |")
        assert text.endswith("|\n\n<!-- end -->\nAfter.\n")
        assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| baffm")]
    assert rows == [
        "| baffm | 30 | auto | 29.4, 2% lost, 40 / 72 ms, 160 px | - | "
        "28.0, 2% lost, 40 / 72 ms, full |",
        "| baffm | 30 | full | - | 0.0, 2% lost | - |",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing here", "has no table"),
        ("<!-- table: pie pace_*.json -->\n<!-- end -->", "of kind 'pie': expected pace"),
        ("<!-- table: pace none_*.json -->\n<!-- end -->", "there is no such file"),
        ("<!-- table: rates pace_*.json -->\n<!-- end -->", "which cannot be read"),
    ],
)
def test_a_page_whose_tables_cannot_be_written_stays_and_the_reason_is_said(
    page, text, said, capsys
):
    page.write_text(text)
    assert main(["benchmark", "tables", str(page)]) == 2
    assert said in capsys.readouterr().err
    assert page.read_text() == text


@pytest.mark.parametrize("name", ["performance.md", "bags.md"])
def test_the_tables_of_the_documentation_are_those_of_its_results(name, tmp_path):
    for path in (DOCS / name, *DOCS.glob("*.json")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["benchmark", "tables", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_text() == (DOCS / name).read_text()
