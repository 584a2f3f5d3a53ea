# SPDX-License-Identifier: AGPL-3.0-only
"""The action `pace` of the benchmark: the node beside a load that starts and ends."""

from __future__ import annotations

import json
import multiprocessing

import cv2
import pytest
from support import write_fusion_onnx

pytest.importorskip("rclpy")

from fusion_ros.commands.benchmark.pace import PacePlan, PaceRun, Sample, plot_pace
from fusion_ros.commands.main import main


@pytest.mark.parametrize(
    "options",
    [
        ["--phases", "1,2"],
        ["--phases", "1,2,fast"],
        ["--phases", "0,0,0"],
        ["--phases", "2,2,nan"],
        ["--rate", "0"],
        ["--rate", "inf"],
        ["--load", "-1"],
        ["--sizes", "auto,20"],
        ["--method", "nonsense"],
        ["-p", "nonsense:=1"],
        ["-p", "processing_size:=320"],
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(options, tmp_path, capsys):
    assert main(["benchmark", "pace", *options, "--output", str(tmp_path / "out")]) == 2
    assert options[1].rpartition(",")[2] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_samples_tell_when_the_load_ran_and_it_ends_with_the_run(tmp_path):
    method = str(write_fusion_onnx(tmp_path / "average.onnx"))
    command = ["benchmark", "pace", "--method", method, "--sizes", "auto,64", "--rate", "10"]
    command += ["--size", "96x72", "--phases", "2,2,2", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert not multiprocessing.active_children()
    content = json.loads((tmp_path / "out" / "pace_average_10hz.json").read_text())
    assert [run["label"] for run in content["runs"]] == ["auto", "64"]
    for run in content["runs"]:
        samples = run["samples"]
        assert {one["busy"] for one in samples} == {True, False}
        assert all(one["busy"] == (2 <= one["at_s"] < 4) for one in samples)
        assert all(0 <= one["lost"] <= 1 for one in samples)
        assert any(one["fps"] > 0 for one in samples)
        names = [one["name"] for one in run["phases"]]
        # A busy machine may have no frame in a phase.
        assert names == [name for name in ("before", "during", "after") if name in names]
        assert all(0 < one["p50_ms"] <= one["p95_ms"] for one in run["phases"] if one["p50_ms"])
    assert {one["size"] for one in content["runs"][1]["samples"]} == {64}


def test_the_plot_shows_all_runs(tmp_path):
    pytest.importorskip("matplotlib")
    samples = [Sample(float(t), 160 * (t % 2), 10.0, 0.0, None, False, 0.5) for t in range(5)]
    runs = [PaceRun("auto", samples=samples), PaceRun("0", samples=samples[:2])]
    plot_pace(runs, PacePlan(10, 2, 1, 2, 1), "baffm", tmp_path / "pace.png")
    assert cv2.imread(str(tmp_path / "pace.png")).std() > 5
