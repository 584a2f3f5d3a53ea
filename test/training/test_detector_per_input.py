# SPDX-License-Identifier: AGPL-3.0-only
"""One detector for each input, trained by the same settings and measured on its own input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

for module in ("torch", "ultralytics", "onnx", "onnxscript", "pycocotools"):
    pytest.importorskip(module, reason=f"needs {module}: pip install '.[detector]'")

from support import write_fusion_onnx  # noqa: E402

from fusion_ros.cameras.street.export import export as export_scenes  # noqa: E402
from fusion_ros.size import Size  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when it runs as a script
import detector_per_input  # noqa: E402
import evaluate_detection  # noqa: E402
import train_detector  # noqa: E402


@pytest.fixture
def network(tmp_path) -> Path:
    return write_fusion_onnx(tmp_path / "mean.onnx")


@pytest.fixture
def start(tmp_path) -> Path:
    path = tmp_path / "start.pt"
    path.touch()
    return path


@pytest.fixture
def calls(monkeypatch):
    """The scripts that are run, in order; the training of `calls.failing` fails."""

    class Calls(list):
        failing = ""

        @property
        def trained(self) -> list[str]:
            pictures = [a for script, *args in self if script == "train_detector.py" for a in args]
            return [a[len("pictures=") :] for a in pictures if a.startswith("pictures=")]

    seen = Calls()

    def run(script, *arguments):
        seen.append((script, *arguments))
        values = dict(a.split("=", 1) for a in arguments)
        if script == "train_detector.py" and values["pictures"] != seen.failing:
            Path(values["output"]).mkdir(parents=True, exist_ok=True)
            Path(values["output"], "detector.onnx").touch()
        return int(values["pictures"] == seen.failing)

    monkeypatch.setattr(detector_per_input, "run", run)
    return seen


def test_all_inputs_are_trained_by_the_same_settings_then_measured_together(
    calls, start, network, tmp_path
):
    output = tmp_path / "out"
    arguments = [
        f"start={start}", f"methods=mean:{network}", "pictures=infrared,thermal, coloured",
        f"output={output}", "epochs=2", "seed=3",
    ]  # fmt: skip
    assert detector_per_input.main(arguments) == 0
    assert calls.trained == ["infrared", "thermal, coloured", "mean"]
    own = ("pictures=", "methods=", "output=")
    budgets = {tuple(a for a in args if not a.startswith(own)) for script, *args in calls[:-1]}
    assert len(budgets) == 1 and {"epochs=2", "seed=3", "simulated=0"} <= set(*budgets)
    assert calls[-1][0] == "evaluate_detection.py"
    assert f"detector={output}/{{row}}/detector.onnx" in calls[-1]


def test_inputs_that_are_finished_are_trained_again_only_if_what_they_depend_on_changes(
    calls, start, network, tmp_path
):
    arguments = [
        f"start={start}", f"methods=mean:{network}", "pictures=visible", f"output={tmp_path}/out",
    ]  # fmt: skip
    detector_per_input.main(arguments)
    detector_per_input.main(arguments)
    assert calls.trained == ["visible", "mean"]
    write_fusion_onnx(network, "max")
    detector_per_input.main(arguments)
    assert calls.trained[2:] == ["mean"]
    detector_per_input.main([*arguments, "lr=1e-4"])
    assert calls.trained[3:] == ["visible", "mean"]
    detector_per_input.main([*arguments, "lr=1e-4", f"data={tmp_path}"])
    assert calls.trained[5:] == ["visible", "mean"], "other data make another detector"


def test_nothing_is_measured_if_an_input_cannot_be_trained(calls, start, tmp_path, capsys):
    calls.failing = "infrared"
    arguments = [f"start={start}", "methods=none", f"output={tmp_path}/out"]
    assert detector_per_input.main([*arguments, "pictures=visible,infrared,average"]) == 2
    assert calls.trained == ["visible", "infrared"] and calls[-1][0] == "train_detector.py"
    assert "infrared could not be trained" in capsys.readouterr().err


def test_settings_of_no_use_are_named(calls, start, capsys):
    assert detector_per_input.main(["start=none.pt"]) == 2
    assert "start=none.pt: no such file" in capsys.readouterr().err
    assert detector_per_input.main([f"start={start}", "pictures=foggy"]) == 2
    assert "no pictures foggy; use visible" in capsys.readouterr().err
    assert detector_per_input.main([f"start={start}", "repeats=many"]) == 2
    assert "repeats=many: expected a whole number" in capsys.readouterr().err
    nowhere = [f"start={start}", f"data={start.parent}", "tests=nowhere/test"]
    assert detector_per_input.main(nowhere) == 2
    assert "no pairs" in capsys.readouterr().err
    assert calls == []


@pytest.mark.slow
def test_the_record_names_the_detector_and_the_training_of_each_row(network, tmp_path, monkeypatch):
    import torch
    from ultralytics import YOLO

    # In one process, which saves the loading of torch for each training.
    scripts = {f"{one.__name__}.py": one for one in (train_detector, evaluate_detection)}
    monkeypatch.setattr(
        detector_per_input, "run", lambda script, *given: scripts[script].main(list(given))
    )
    torch.manual_seed(0)
    model = YOLO("yolov8n.yaml")
    model.save(str(tmp_path / "yolo.pt"))
    data = tmp_path / "data"
    export_scenes(data / "street" / "train", 4, Size(96, 72), ("day", "night"))
    export_scenes(data / "street" / "test", 2, Size(96, 72), ("day", "night"), 1000)
    arguments = [
        f"start={tmp_path / 'yolo.pt'}", f"data={data}", f"methods=mean:{network}",
        "pictures=visible", "threads=1", "repeats=10", f"output={tmp_path / 'out'}",
        "max_steps=2", "size=96", "batch=2", "precision=fp32", "classes=person,bicycle,car,bus",
    ]  # fmt: skip
    assert detector_per_input.main(arguments) == 0
    record = json.loads((tmp_path / "out" / "detection.json").read_text())
    detectors, rows = record["detector"]["rows"], record["sets"]["street/test"]["rows"]
    assert list(detectors) == list(rows) == ["visible", "mean"]
    assert len({one["sha256"] for one in detectors.values()}) == 2
    trainings = [one["training"] for one in detectors.values()]
    pictures = [one["settings"].pop("pictures") for one in trainings]
    assert pictures == list(rows) and trainings[0]["settings"] == trainings[1]["settings"]
    assert trainings[1]["networks"] == {"mean": record["models"]["mean"]["sha256"]}
    assert set(rows["mean"]["over"]) == {"visible"}
    assert len(rows["mean"]["over"]["visible"]["person"]) == 2
    assert "| mean |" in (tmp_path / "out" / "detection.md").read_text().split("differences")[1]
