# SPDX-License-Identifier: AGPL-3.0-only
"""All methods one after another: trained, exported, evaluated, and continued where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

for module in ("torch", "kornia", "lightning_fabric", "omegaconf", "onnx", "onnxscript"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

from support_training import write_pairs  # noqa: E402

from fusion_models import WEIGHTS_DIR  # noqa: E402
from fusion_models.evaluation.rules import RULES  # noqa: E402
from training import train_all  # noqa: E402


@pytest.fixture
def calls(monkeypatch):
    """The scripts that are run, in order; the one in `calls.failing` fails."""

    class Calls(list):
        failing = ""

    seen = Calls()

    def run(script, *arguments):
        seen.append((script, *arguments))
        return int(script == seen.failing)

    monkeypatch.setattr(train_all, "run", run)
    return seen


def test_each_method_is_trained_and_exported_then_all_are_evaluated(calls, tmp_path):
    assert train_all.main(["methods=caf,cfi", f"output={tmp_path}", "crop=64"]) == 0
    assert [script for script, *_ in calls] == [
        "train.py", "export.py", "train.py", "export.py", "evaluate.py",
    ]  # fmt: skip
    assert calls[0][1:] == ("method=caf", f"output={tmp_path / 'caf'}", "crop=64")
    weights = tmp_path / "weights"
    assert f"methods={weights / 'caf.onnx'},{weights / 'cfi.onnx'}" in calls[-1]


def test_finished_runs_are_not_repeated_and_interrupted_ones_resumed(calls, tmp_path):
    for method in ("caf", "cfi"):
        (tmp_path / method).mkdir()
    record = {"steps": 10, "config": {"max_steps": 10}}
    (tmp_path / "caf" / "run.json").write_text(json.dumps(record))
    (tmp_path / "cfi" / "last.ckpt").touch()
    train_all.main(["methods=caf,cfi", f"output={tmp_path}"])
    trained = [arguments for script, *arguments in calls if script == "train.py"]
    assert [a[:1] for a in trained] == [["method=cfi"]] and "resume=true" in trained[0]


def test_a_method_that_fails_does_not_stop_the_others_and_is_named(calls, tmp_path, capsys):
    calls.failing = "export.py"
    assert train_all.main(["methods=caf,cfi", f"output={tmp_path}"]) == 1
    assert "failed: caf, cfi; repeat the command" in capsys.readouterr().err
    assert [script for script, *_ in calls].count("train.py") == 2


def test_an_unknown_method_is_refused(capsys):
    assert train_all.main(["methods=calf"]) == 2
    assert "calf" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_run_ends_with_weights_and_an_evaluation(tmp_path, monkeypatch):
    run_script = train_all.run

    def run(script, *arguments):
        """Run a script; an export takes a minute, and shipped weights serve as well here."""
        if script != "export.py":
            return run_script(script, *arguments)
        given = dict(argument.split("=", 1) for argument in arguments)
        assert (Path(given["run"]) / "run.json").is_file()
        Path(given["output"]).mkdir()
        for file in WEIGHTS_DIR.glob(f"{given['method']}.*"):
            shutil.copy(file, given["output"])
        return 0

    monkeypatch.setattr(train_all, "run", run)
    write_pairs(tmp_path / "data" / "city" / "train", count=8, size=(72, 80))
    write_pairs(tmp_path / "data" / "city" / "test", count=1, size=(72, 80))
    output = tmp_path / "out"
    arguments = [
        "methods=caf", f"data={tmp_path / 'data'}", f"output={output}", "sets=city/test",
        "max_steps=2", "crop=32",
        "batch_size=1", "threads=1", "accelerator=cpu", "precision=32-true",
    ]  # fmt: skip
    assert train_all.main(arguments) == 0
    assert sorted(p.name for p in (output / "weights").iterdir()) == [
        "caf.fp16.onnx", "caf.json", "caf.onnx", "caf.safetensors",
    ]  # fmt: skip
    figures = json.loads((output / "evaluation" / "evaluation.json").read_text())
    assert list(figures["sets"]) == ["city/test"]
    assert list(figures["sets"]["city/test"]["rows"]) == [*RULES, "caf"]
