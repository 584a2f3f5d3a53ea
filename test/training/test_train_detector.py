# SPDX-License-Identifier: AGPL-3.0-only
"""Training and measuring a detector in short form: simulated scenes, random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

for module in ("torch", "ultralytics", "onnx", "onnxscript", "pycocotools"):
    pytest.importorskip(module, reason=f"needs {module}: pip install '.[detector]'")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from support import write_fusion_onnx  # noqa: E402

from fusion_models.detection.network import (  # noqa: E402
    DetectorLoss,
    export_detector,
    keep_classes,
    load_yolo,
)
from fusion_ros.cameras.street.export import export as export_scenes  # noqa: E402
from fusion_ros.frame.detector import Detector  # noqa: E402
from fusion_ros.inference import load_engine  # noqa: E402
from fusion_ros.size import Size  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))  # as when they run as scripts
import evaluate_detection  # noqa: E402
import train_detector  # noqa: E402
from train_detector import fusing_size  # noqa: E402

CLASSES = ("person", "bicycle", "car", "bus")


@pytest.fixture(scope="module")
def yolo(tmp_path_factory) -> Path:
    """A detector of COCO's classes, as small as they come, with random weights."""
    from ultralytics import YOLO

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("yolo") / "start.pt"
    model = YOLO("yolov8n.yaml")
    model.model.fuse()  # as published weights that were folded for a runtime
    model.model.names = dict(enumerate(["cat", "car", "person", *map(str, range(77))]))
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Simulated pairs in the form of a data set with boxes."""
    root = tmp_path_factory.mktemp("data")
    export_scenes(root / "street" / "train", 4, Size(96, 72), ("day", "night"))
    export_scenes(root / "street" / "test", 2, Size(96, 72), ("day", "night"), 1000)
    return root


@pytest.fixture(scope="module")
def fusion(tmp_path_factory) -> Path:
    return write_fusion_onnx(tmp_path_factory.mktemp("fusion") / "mean.onnx")


def test_classes_that_a_detector_knows_keep_their_scores(yolo):
    model = load_yolo(yolo).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)[0][0]
        after = keep_classes(model, CLASSES)(image)[0][0]
    assert torch.allclose(after[:4], before[:4], atol=1e-4)
    assert torch.allclose(after[4], before[4 + 2], atol=1e-5)  # person
    assert torch.allclose(after[6], before[4 + 1], atol=1e-5)  # car
    assert after.shape[0] == 8 and model.names == dict(enumerate(CLASSES))


def test_the_loss_is_that_of_ultralytics_and_differentiable_by_the_image(yolo):
    loss = DetectorLoss(keep_classes(load_yolo(yolo), CLASSES))
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    targets = {
        "batch_idx": torch.tensor([0.0, 1.0]), "cls": torch.tensor([0.0, 2.0]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.3, 0.6, 0.3, 0.2]]),
    }  # fmt: skip
    (gradient,) = torch.autograd.grad(loss(image, targets), image)
    assert gradient.abs().sum() > 0
    theirs, _ = loss.model.loss({"img": image, **targets})
    assert loss(image, targets).item() == pytest.approx(theirs.sum().item() / 2, rel=1e-5)
    none = {"batch_idx": torch.zeros(0), "cls": torch.zeros(0), "bboxes": torch.zeros(0, 4)}
    assert torch.isfinite(loss(image, none))


def test_an_exported_detector_is_small_and_agrees_with_the_network(yolo, tmp_path):
    model = keep_classes(load_yolo(yolo), CLASSES)
    path = export_detector(model, tmp_path / "detector.onnx", 96, 64)
    assert path.stat().st_size < 7e6 and [p.name for p in tmp_path.iterdir()] == [path.name]
    detector = Detector(load_engine(path, "onnxruntime", threads=1), confidence=0.0)
    assert list(detector.class_names.values()) == list(CLASSES)
    engine = detector.engine
    assert tuple(engine.inputs[0].shape) == (1, 3, 64, 96)
    image = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    (given,) = engine.run({engine.inputs[0].name: image}).values()
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(image))[0].numpy()
    assert np.abs(given[:, :4] - wanted[:, :4]).max() < 0.5  # pixels
    assert np.abs(given[:, 4:] - wanted[:, 4:]).max() < 2e-3
    with pytest.raises(ValueError, match="multiples of 32"):
        export_detector(model, tmp_path / "other.onnx", 100, 64)


@pytest.mark.slow
def test_a_detector_is_trained_exported_resumed_and_measured(
    yolo, data, fusion, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train_detector, "SHIPPED", tmp_path / "package" / "detector.onnx")
    run = tmp_path / "run"
    settings = [
        f"start={yolo}", f"data={data}", f"methods=mean:{fusion}", "pictures=visible,infrared,mean",
        "simulated=0", "size=96", "batch=2", "epochs=1", "threads=1", "precision=fp32", "draws=2",
        f"output={run}",
    ]  # fmt: skip
    assert train_detector.main([*settings, "epochs=0"]) == 0
    assert train_detector.main([*settings, "max_steps=3", "ship=true"]) == 0
    out = capsys.readouterr().out
    assert "train: boxes:" in out and "val: boxes:" in out
    shipped = tmp_path / "package" / "detector.onnx"
    assert shipped.read_bytes() == (run / "detector.onnx").read_bytes()
    card = json.loads(shipped.with_suffix(".json").read_text())
    assert card["classes"] == list(CLASSES) and card["bytes"] == shipped.stat().st_size
    assert card["training"]["data"]["pictures"]["train"] == 2 * 7  # 8 pairs, one for validation
    assert "AGPL" in card["licence"]

    assert train_detector.main([f"output={tmp_path / 'none'}", *settings[:-1], "resume=true"]) == 2
    assert "resume=true, but" in capsys.readouterr().err

    arguments = [
        f"detector={shipped}", f"data={data}", f"methods=mean:{fusion}", "threads=1", "repeats=20",
        "pictures=visible,infrared,mean .8", f"output={tmp_path / 'evaluation'}", "confidence=0.0",
    ]  # fmt: skip
    assert evaluate_detection.main(arguments) == 0
    table = (tmp_path / "evaluation" / "detection.md").read_text()
    assert "street/test" in table and "person night / day" in table
    record = json.loads((tmp_path / "evaluation" / "detection.json").read_text())
    rows = record["sets"]["street/test"]["rows"]
    assert list(rows) == ["visible", "infrared", "mean .8", "mean"]
    assert rows["mean"]["over_best_mean"]["mean"] == "mean .8"
    assert record["detector"]["file"] == "detector.onnx"
    assert (tmp_path / "evaluation" / "misses_street_test.html").is_file()


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_from_its_last_epoch(
    yolo, data, tmp_path, monkeypatch, capsys
):
    settings = [
        f"start={yolo}", f"data={data}", "methods=none", "pictures=visible", "simulated=0",
        "size=64", "batch=4", "epochs=2", "threads=1", "precision=bf16", f"output={tmp_path}",
    ]  # fmt: skip
    watch = train_detector.watch

    def kill(trainer, *rest):
        watch(trainer, *rest)

        def end(trainer):
            raise KeyboardInterrupt

        trainer.add_callback("on_model_save", end)

    monkeypatch.setattr(train_detector, "watch", kill)
    with pytest.raises(KeyboardInterrupt):
        train_detector.main(settings)
    assert not (tmp_path / "detector.onnx").exists()
    monkeypatch.setattr(train_detector, "watch", watch)
    assert train_detector.main([*settings, "resume=true"]) == 0
    assert "epoch 2 of 2: mAP50" in capsys.readouterr().out
    card = json.loads((tmp_path / "detector.json").read_text())
    assert card["training"]["epochs"] == 2 and card["training"]["precision"] == "bf16"
    assert type(load_yolo(tmp_path / "run" / "weights" / "last.pt")).__name__ == "DetectionModel"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["start=nowhere.pt"], "start=nowhere.pt: no such file"),
        (["size=100"], "size=100: expected a multiple of 32"),
        (["pictures=visible,foggy"], "no pictures foggy; use visible"),
        (["sets=moon"], "no boxes for moon in the split train; there are boxes for street"),
        (["classes=lamp"], "no box of lamp"),
    ],
)
def test_what_cannot_be_trained_is_said_before_training(
    yolo, data, tmp_path, capsys, arguments, says
):
    given = [f"start={yolo}", f"data={data}", "methods=none", "simulated=0", "epochs=0",
             f"output={tmp_path}"]  # fmt: skip
    assert train_detector.main([*given, *arguments]) == 2
    assert says in capsys.readouterr().err


def test_what_cannot_be_measured_is_said(yolo, data, tmp_path, capsys):
    given = [f"data={data}", "methods=none", f"output={tmp_path}"]
    assert evaluate_detection.main([*given, "detector=nowhere.onnx"]) == 2
    assert "no detector at nowhere.onnx" in capsys.readouterr().err
    assert evaluate_detection.main([*given, "pictures=foggy"]) == 2
    assert "no pictures foggy; use visible" in capsys.readouterr().err
    model = keep_classes(load_yolo(yolo), ("ship",))
    path = export_detector(model, tmp_path / "ship.onnx", 64, 64)
    assert evaluate_detection.main([*given, f"detector={path}"]) == 2
    assert "finds none of the labelled person" in capsys.readouterr().err


def test_squeezed_pairs_get_their_proportions_and_large_ones_the_size_of_fusing():
    assert fusing_size(128, 128, 416) == (168, 128)
    assert fusing_size(640, 480, 416) == (416, 312)
    assert fusing_size(96, 72, 320) == (96, 72)


def test_a_size_of_fusing_that_no_network_takes_is_refused(tmp_path, capsys):
    assert train_detector.main(["fuse_size=100", f"output={tmp_path / 'run'}"]) == 2
    assert "fuse_size=100: expected a multiple of 32 from 64 on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
