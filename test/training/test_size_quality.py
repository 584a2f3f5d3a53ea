# SPDX-License-Identifier: AGPL-3.0-only
"""The comparison of smaller sizes with full size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import write_fusion_onnx
from support_training import write_pairs

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from training.size_quality import Row, main, table


@pytest.fixture
def data(tmp_path) -> Path:
    root = write_pairs(tmp_path / "data" / "city" / "test", size=(96, 128))
    for camera in ("infrared", "visible"):
        (root / "boxes" / camera).mkdir(parents=True)
        for number in range(3):
            label = "0 0.5 0.5 0.3 0.4\n" * (number != 1)
            (root / "boxes" / camera / f"{number:02d}.txt").write_text(label)
    return root.parents[1]


def test_each_size_is_a_row_beside_full_size(data, tmp_path, capsys):
    model = write_fusion_onnx(tmp_path / "average.onnx")
    output = tmp_path / "quality"
    arguments = [f"data={data}", "sets=city/test", f"methods={model}", "sizes=64,400"]
    assert main([*arguments, f"output={output}"]) == 0
    full, small, larger = json.loads(output.with_suffix(".json").read_text())
    assert [full["size"], small["size"], larger["size"]] == [0, 64, 400]
    assert small["vif"] != full["vif"]
    # Larger than the images: nothing changes.
    names = ("vif", "qabf", "hidden", "lost")
    assert [larger[name] for name in names] == [full[name] for name in names]
    page = output.with_suffix(".md").read_text()
    assert page in capsys.readouterr().out
    assert "| average | city/test | 3 | full |" in page


def test_the_table_shows_the_change_against_full_size():
    rows = [
        Row("a", "s", 0, 9, 1.0, 0.5, 0.2, 0.1, 7),
        Row("a", "s", 160, 9, 0.9, 0.55, 0.23, 0.15, 7),
    ]
    assert table(rows).splitlines()[-1] == (
        "| a | s | 9 | 160 | 0.900 (-10.0%) | 0.550 (+10.0%) | 15.0% (+5.0 points) | "
        "23.0% (+3.0 points) |"
    )


def test_images_without_any_structure_have_no_change_against_full_size():
    rows = [Row("a", "s", size, 9, 0.0, 0.0, 0.2, None, 0) for size in (0, 160)]
    assert table(rows).splitlines()[-1].startswith("| a | s | 9 | 160 | 0.000 | 0.000 | no boxes")


@pytest.mark.parametrize(
    "wrong",
    [
        "sizes=20",
        "sizes=small",
        "sizes=64,64",
        "methods=nonsense",
        "methods=caf,caf",
        "size=320",
        "limit=-1",
        "threads=-1",
    ],
)
def test_what_cannot_be_used_is_refused(wrong, data, capsys):
    assert main([f"data={data}", "sets=city/test", wrong]) == 2
    assert "size_quality.py: " in capsys.readouterr().err
