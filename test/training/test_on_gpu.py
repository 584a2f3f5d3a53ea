# SPDX-License-Identifier: AGPL-3.0-only
"""One command for whoever has a GPU: pack, test, train; tried at tiny size on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

for module in ("torch", "kornia", "lightning_fabric", "omegaconf", "onnx", "onnxscript"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

from support_training import write_pairs  # noqa: E402

from fusion_models.pairs import find_sets, read_luminance  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when it runs as a script
import on_gpu  # noqa: E402


@pytest.fixture
def data(tmp_path):
    for name in ("msrs", "msrs128"):
        write_pairs(tmp_path / "data" / name / "train", count=9, size=(72, 80))
    write_pairs(tmp_path / "data" / "msrs" / "test", count=1, size=(72, 80))
    return tmp_path / "data"


def test_the_pack_has_what_training_draws_and_the_same_validation_pairs(data, tmp_path):
    packed = tmp_path / "packed"
    arguments = ["do=pack", f"data={data}", f"pack={packed}", f"output={tmp_path / 'out'}"]
    assert on_gpu.main(arguments) == 0
    assert json.loads((tmp_path / "out" / "on_gpu.json").read_text())["pack"] == {"msrs": 9}
    for split in ("train", "validation"):
        (ours,) = find_sets(packed, [f"msrs/{split}"])
        (theirs,) = find_sets(data, [f"msrs/{split}"])
        assert ours.stems == theirs.stems
        for mine, original in zip(ours, theirs):
            assert np.array_equal(mine.ir, original.ir) and np.array_equal(mine.vi, original.vi)
    file = packed / "msrs" / "train" / "vi" / "00.png"
    assert cv2.imread(str(file), cv2.IMREAD_UNCHANGED).ndim == 2
    assert np.array_equal(read_luminance(file), next(iter(find_sets(data, ["msrs/train"])[0])).vi)


def test_each_method_gets_its_share_of_the_time_and_a_begun_one_goes_on(tmp_path, monkeypatch):
    called, shares = [], {}
    monkeypatch.setattr(on_gpu.train_all, "main", lambda arguments: called.append(arguments) or 0)

    def steps(method, seconds, settings, output):
        shares[method] = seconds
        return 1000

    monkeypatch.setattr(on_gpu, "steps_within", steps)
    (tmp_path / "cfi").mkdir()
    (tmp_path / "cfi" / "config.yaml").touch()
    found = on_gpu.train(["caf", "cfi"], on_gpu.time.monotonic() + 100, ["crop=64"], tmp_path)
    assert set(found) == {"caf", "cfi"} and shares == {"caf": pytest.approx(50, abs=5)}
    caf, cfi = called
    assert {"methods=caf", "max_steps=1000", "evaluate=false", "crop=64"} <= set(caf)
    assert not any(argument.startswith("max_steps") for argument in cfi)


def test_failing_tests_are_told_and_training_goes_on(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "test_broken.py").write_text("def test_broken():\n    assert False\n")
    monkeypatch.setattr(on_gpu, "train", lambda *a: {"caf": {"status": 0}})
    arguments = [f"data={data}", f"pack={tmp_path / 'packed'}", f"output={tmp_path / 'out'}"]
    tests = f"tests=-p no:cacheprovider {tmp_path / 'test_broken.py'}"
    assert on_gpu.main([*arguments, tests, "methods=caf"]) == 1
    assert "failed: tests (see " in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "on_gpu.json").read_text())
    assert found["test"]["status"] == 1 and found["train"]["caf"]["status"] == 0
    assert "test_broken" in (tmp_path / "out" / "tests.txt").read_text()


@pytest.mark.parametrize(("bad", "told"), [
    ("do=dance", "dance is none of pack, test, train"),
    ("pack=nowhere", "do=pack first"),
])  # fmt: skip
def test_what_cannot_be_done_is_told(bad, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert on_gpu.main(["do=train", bad]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_run_on_the_cpu_ends_with_weights_and_checkpoints(data, tmp_path):
    output = tmp_path / "out"
    arguments = [
        f"data={data}", f"pack={tmp_path / 'packed'}", f"output={output}", "methods=caf", "tests=",
        "minutes=0.02", "crop=32", "batch_size=1", "threads=1", "accelerator=cpu",
        "precision=32-true", "validation=",
    ]  # fmt: skip
    assert on_gpu.main(arguments) == 0
    assert {"caf.onnx", "caf.fp16.onnx", "caf.safetensors", "caf.json"} == {
        path.name for path in (output / "weights").iterdir()
    }
    assert (output / "caf" / "last.ckpt").is_file()
    found = json.loads((output / "on_gpu.json").read_text())["train"]["caf"]
    assert found["status"] == 0 and found["steps"] >= 1 and found["precision"] == "32-true"
