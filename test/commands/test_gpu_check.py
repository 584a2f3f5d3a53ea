# SPDX-License-Identifier: AGPL-3.0-only
"""The command `gpu_check` at a tiny size on the made-up GPU, and what its report says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import write_fusion_onnx

from fusion_ros.commands import doctor
from fusion_ros.commands.gpu_check.report import Report, Step, markdown
from fusion_ros.commands.main import main
from fusion_ros.inference import cuda

REAL = doctor.examine


@pytest.fixture
def average(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "examine", lambda system: [])
    write_fusion_onnx(tmp_path / "average.fp16.onnx")
    return write_fusion_onnx(tmp_path / "average.onnx")


def check(average: Path, *options: str) -> tuple[int, dict, str]:
    """Run the command; return its status and both reports."""
    output = average.parent / "out"
    command = ["gpu_check", "--methods", str(average), "--width", "64", "--height", "48"]
    command += ["--repeats", "3", "--rates", "none", "--tests", "none", "--output", str(output)]
    status = main([*command, *options])
    report = json.loads((output / "gpu_check.json").read_text())
    return status, report, (output / "gpu_check.md").read_text()


def test_engines_their_differences_and_times_are_reported(average, gpu):
    gpu.offset = 1 / 255
    _, report, _ = check(average)
    engines, parts, conversions = (step["rows"] for step in report["steps"])
    ran = [row for row in engines if row["backend"] == "tensorrt"]
    assert [row["precision"] for row in ran] == ["fp32", "fp16"]
    assert all(row["built"] and row["converts_images"] and not row["failed"] for row in ran)
    assert ran[0]["mean_difference_of_255"] <= 1
    assert ran[1]["mean_difference_of_255"] > ran[0]["mean_difference_of_255"]
    assert all(row["frame_ms"] > 0 for row in ran)
    times = {"upload_ms", "network_ms", "download_ms", "no_graph_ms", "graph_ms"}
    assert all(times <= set(row) for row in parts)
    assert [row["converts"] for row in conversions] == ["GPU", "CPU"]


def test_what_fails_is_said_with_its_reason_and_the_rest_is_measured(average, gpu):
    status, report, page = check(average)
    engines = report["steps"][0]
    failed = [row for row in engines["rows"] if row["failed"]]
    assert {row["backend"] for row in failed} == {"onnxruntime_cuda"}
    assert "CUDAExecutionProvider" in failed[0]["failed"]
    assert (status, engines["status"], engines["reason"]) == (1, "failed", "2 of 4")
    assert report["steps"][1]["status"] == "ran"
    assert "| parts of a frame | this ran, on Made-up GPU |" in page


def test_a_network_that_cannot_be_captured_is_timed_without_a_graph(average, gpu):
    gpu.library.module.capturable = False
    gpu.library.module.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1})
    _, report, _ = check(average)
    assert all("graph_ms" not in row for row in report["steps"][1]["rows"])
    assert all(row["no_graph_ms"] > 0 for row in report["steps"][1]["rows"])


def test_nothing_is_begun_once_the_time_is_over(average, gpu):
    _, report, page = check(average, "--minutes", "0")
    assert [step["status"] for step in report["steps"]] == ["not run"] * 3
    assert "| engines | not run: 0 minutes were over |" in page
    assert "this ran" not in page
    assert gpu.built == []


def test_the_report_names_the_gpu_its_libraries_and_what_the_doctor_finds(
    average, gpu, monkeypatch
):
    monkeypatch.setattr(doctor, "examine", REAL)
    _, report, page = check(average)
    assert report["gpu"]["name"] == "Made-up GPU"
    assert report["gpu"]["library"] == "TensorRT 10.3.0"
    assert page.startswith("# GPU check: Made-up GPU\n")
    assert {"Python", "onnxruntime", "network"} <= {one["name"] for one in report["doctor"]}


def test_without_a_gpu_nothing_is_written(average, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cuda, "driver", lambda: None)
    assert main(["gpu_check", "--output", str(tmp_path / "out")]) == 1
    assert "no NVIDIA GPU that CUDA can use" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--methods", "nonsense"], ["--rates", "fast"]])
def test_what_cannot_be_used_is_refused(options, average, gpu, capsys):
    assert main(["gpu_check", *options, "--output", str(average.parent / "out")]) == 2
    assert options[1] in capsys.readouterr().err


def test_the_page_keeps_a_table_whole_whatever_a_cell_holds():
    step = Step("engines", "failed", "a | b\nc", 1.0, [{"failed": "x | y", "ms": 1.234}, {"z": 1}])
    report = Report("today", {"name": "GPU"}, "64x48", [step], [])
    page = markdown(report)
    assert "| engines | failed: a \\| b c | 1 |" in page
    assert "| failed | ms | z |\n|---|---|---|\n| x \\| y | 1.23 |  |" in page
