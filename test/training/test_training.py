# SPDX-License-Identifier: AGPL-3.0-only
"""Training: data checks, reproducible batches, schedules, resuming, several processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install .[train]")
for module in ("kornia", "lightning_fabric", "omegaconf", "safetensors"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support_training import load, tiny, write_pairs  # noqa: E402

from fusion_models import create_objective, hardware, list_models  # noqa: E402
from fusion_models.data import CropSampler  # noqa: E402
from fusion_models.files import write_text  # noqa: E402
from fusion_models.hardware import choose_precision  # noqa: E402
from fusion_models.pairs import DataError  # noqa: E402
from fusion_models.search.terms import FIXED, PAPER  # noqa: E402
from fusion_models.trainer import (  # noqa: E402
    ConfigError,
    TrainConfig,
    Trainer,
    learning_rate,
    load_config,
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "training"


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "set" / "train")


def test_a_stem_without_partner_is_named(pairs):
    (pairs / "vi" / "01.png").unlink()
    with pytest.raises(DataError, match="without a partner.*01"):
        load(pairs)


def test_unequal_sizes_and_unreadable_files_are_all_named(pairs):
    cv2.imwrite(str(pairs / "ir" / "00.png"), np.zeros((20, 20), np.uint8))
    (pairs / "vi" / "02.png").write_bytes(b"not a picture")
    with pytest.raises(DataError) as error:
        load(pairs)
    assert "00: sizes differ" in str(error.value) and "02.png: cannot be read" in str(error.value)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    (tmp_path / "ir").mkdir()
    (tmp_path / "vi").mkdir()
    with pytest.raises(DataError, match="no images; expected .*ir and .*vi with equal stems"):
        load(tmp_path)


def test_a_colour_image_with_alpha_is_fine_but_pixels_of_another_type_are_named(pairs):
    cv2.imwrite(str(pairs / "ir" / "00.png"), np.zeros((48, 64, 4), np.uint8))
    assert len(load(pairs)) == 3
    cv2.imwrite(str(pairs / "ir" / "02.tif"), np.zeros((48, 64), np.float32))
    (pairs / "ir" / "02.png").unlink()
    with pytest.raises(DataError, match="02.tif: pixels are float32; expected 8 or 16 bit"):
        load(pairs)


def test_sixteen_bit_thermal_images_use_the_range_that_the_sensor_fills(pairs):
    ramp = np.linspace(7000, 9000, 48 * 64).reshape(48, 64).astype(np.uint16)
    cv2.imwrite(str(pairs / "ir" / "00.png"), ramp)
    ir, _vi, _ = load(pairs).images[0]
    assert ir.min() == 0 and ir.max() == 255 and 120 < ir.mean() < 135
    cv2.imwrite(str(pairs / "vi" / "00.png"), ramp)
    assert load(pairs).images[0][1].max() == 9000 >> 8


def test_labels_become_masks_of_the_salient_classes(pairs):
    labels = np.zeros((48, 64), np.uint8)
    labels[:, :20], labels[:, 20:30] = 2, 7
    (pairs / "labels").mkdir()
    cv2.imwrite(str(pairs / "labels" / "01.png"), labels)
    masks = [mask for _, _, mask in load(pairs).images]
    assert masks[0] is None and masks[2] is None
    np.testing.assert_array_equal(masks[1], labels == 2)
    np.testing.assert_array_equal(load(pairs, salient=(7,)).images[1][2], labels == 7)


def test_masks_decide_where_refinefuse_follows_thermal(pairs, tmp_path):
    for path in (pairs / "ir").iterdir():
        cv2.imwrite(str(path), np.full((48, 64), 40, np.uint8))
        cv2.imwrite(str(pairs / "vi" / path.name), np.full((48, 64), 200, np.uint8))
    (pairs / "labels").mkdir()
    cv2.imwrite(str(pairs / "labels" / "00.png"), np.full((48, 64), 1, np.uint8))
    labelled = load(pairs, limit=1)
    objective = create_objective("refinefuse", target=0, texture=0, scd=0, information=0)
    batch = CropSampler([labelled], 32, 1, augment=False).batch(0)
    assert batch.mask.min() == 1

    def loss(fused):
        return float(objective(lambda ir, vi: fused, batch)["intensity"])

    assert loss(batch.ir) < 1e-6 < loss(batch.vi)


def test_batches_are_a_function_of_seed_and_step(pairs):
    folder = load(pairs)
    first, second = CropSampler([folder], 32, 2, seed=1), CropSampler([folder], 32, 2, seed=1)
    assert torch.equal(first.batch(5).ir, second.batch(5).ir)
    assert not torch.equal(first.batch(5).ir, first.batch(6).ir)
    assert not torch.equal(first.batch(5).ir, CropSampler([folder], 32, 2, seed=2).batch(5).ir)


def test_noise_is_what_the_network_takes_and_not_what_it_is_compared_with(pairs):
    folder = load(pairs)
    clean = CropSampler([folder], 32, 4, seed=1).batch(0)
    noisy = CropSampler([folder], 32, 4, seed=1, noise=10.0).batch(0)
    assert torch.equal(noisy.ir, clean.ir) and torch.equal(noisy.vi, clean.vi)
    assert all(torch.equal(a, b) for a, b in zip(clean.fed, (clean.ir, clean.vi)))
    strengths = 255 * noisy.noise.std((2, 3))
    assert 0 < strengths.min() < strengths.max() < 11
    for fed, image in zip(noisy.fed, (clean.ir, clean.vi)):
        assert 0 <= fed.min() and fed.max() <= 1 and not torch.equal(fed, image)


def test_both_modalities_are_cropped_alike(pairs):
    for path in (pairs / "ir").iterdir():
        image = cv2.imread(str(path), 0)
        cv2.imwrite(str(pairs / "vi" / path.name), image)
    batch = CropSampler([load(pairs)], 32, 8, seed=0).batch(0)
    ir, vi = batch.ir - batch.ir.mean((2, 3), True), batch.vi - batch.vi.mean((2, 3), True)
    cosine = (ir * vi).sum((1, 2, 3)) / (
        ir.square().sum((1, 2, 3)) * vi.square().sum((1, 2, 3))
    ).sqrt()
    assert (cosine > 0.999).all()


def test_small_pictures_are_enlarged_to_the_crop(tmp_path):
    folder = load(write_pairs(tmp_path, size=(20, 30)))
    assert CropSampler([folder], 32, 2).batch(0).ir.shape == (2, 1, 32, 32)


def test_pairs_are_made_smaller_as_far_as_a_crop_fits(tmp_path):
    """A picture of a wave: its crops have longer and shorter waves, both images the same."""
    for name in ("ir", "vi"):
        (tmp_path / name).mkdir()
        wave = 128 + 100 * np.sin(np.arange(160) * 2 * np.pi / 32)
        cv2.imwrite(str(tmp_path / name / "0.png"), np.tile(wave, (96, 1)).astype(np.uint8))
    folder = load(tmp_path)

    def waves(least_scale: float) -> list[int]:
        """How often each crop crosses its mean, upwards."""
        batch = CropSampler([folder], 32, 16, augment=False, least_scale=least_scale).batch(0)
        assert torch.equal(batch.ir, batch.vi)
        above = batch.ir[:, 0, 0] > 0.5
        return (above[:, 1:] & ~above[:, :-1]).sum(1).tolist()

    assert max(waves(1.0)) == 1
    assert max(waves(0.1)) == 3  # at a third of the height, as large as a crop


def test_the_learning_rate_warms_up_and_falls_to_its_end():
    config = TrainConfig(lr=1.0, lr_final=0.1, warmup=10, max_steps=100)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1) and rates[10:] == sorted(rates[10:], reverse=True)


def test_settings_come_from_yaml_then_from_the_command_line():
    config = load_config(["method=caf", "max_steps=7", "objective.scd=0.5"], CONFIG)
    assert (config.method, config.max_steps, config.objective["scd"]) == ("caf", 7, 0.5)
    assert config.mix["msrs"] > 0, "config/training/caf.yaml was not read"


def test_an_unknown_setting_lists_the_known_ones():
    with pytest.raises(ConfigError, match="max_step.*settings are: method, recipe, data"):
        load_config(["max_step=7"], CONFIG)


@pytest.mark.parametrize("method", ["caf", "cfi"])
def test_resuming_continues_the_step_count_and_ends_where_an_unbroken_run_ends(
    method, pairs, tmp_path
):
    whole = Trainer(tiny(pairs, tmp_path, method=method, output=str(tmp_path / "whole")))
    whole.fit()
    part = tiny(pairs, tmp_path, method=method)
    broken = Trainer(part)
    original = broken.save

    class Stop(Exception):
        pass

    def save_and_stop():
        original()
        raise Stop

    broken.save = save_and_stop
    with pytest.raises(Stop):
        broken.fit()
    part.resume = True
    resumed = Trainer(part)
    assert resumed.step == 2
    resumed.fit()
    assert resumed.step == 4
    for key, value in whole.average.items():
        assert torch.allclose(value.float(), resumed.average[key].float(), atol=1e-5), key


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("where", ["_validate_now", "_save_average", "_write_run"])
def test_a_run_that_is_killed_after_its_last_step_is_completed(where, pairs, tmp_path, monkeypatch):
    def kill(*arguments):
        raise Killed

    settings = tiny(pairs, tmp_path, method="caf", validation=str(pairs), save_every=100)
    broken = Trainer(settings)
    last_save = broken.save
    broken.save = lambda: [last_save(), monkeypatch.setattr(broken, where, kill)]
    monkeypatch.setattr(broken, "validate", dict)
    if where == "_save_average":
        broken.save = lambda: [monkeypatch.setattr(broken, where, kill), last_save()]
    with pytest.raises(Killed):
        broken.fit()
    assert not (tmp_path / "run" / "run.json").exists()

    settings.resume = True
    completed = Trainer(settings)
    monkeypatch.setattr(completed, "validate", dict)
    completed.fit()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 4 and record["loss_last"] > 0
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in completed.average.items())


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "run.json", "old")

    def kill(*arguments):
        raise Killed

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        write_text(tmp_path / "run.json", "new")
    assert (tmp_path / "run.json").read_text() == "old"


def test_sixteen_bit_training_resumes_with_the_scale_of_its_gradients(pairs, tmp_path):
    # float16 is slow on processors.
    small = {"batch_size": 1, "max_steps": 1, "save_every": 1}
    settings = tiny(pairs, tmp_path, method="caf", precision="16-mixed", **small)
    whole = Trainer(settings)
    whole.fabric.strategy.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    whole.fit()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["precision"] == "16-mixed"
    settings.resume, settings.max_steps = True, 2
    resumed = Trainer(settings)
    assert resumed.fabric.strategy.precision.scaler.get_scale() == 4.0
    resumed.fit()
    assert resumed.step == 2 and np.isfinite(resumed.last_losses).all()


def test_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(hardware, "_processor_has_bf16", lambda: False)
    assert choose_precision("auto", "cpu") == ("32-true", "the processor has no bf16")
    assert choose_precision("16-mixed", "cpu")[0] == "16-mixed"
    monkeypatch.setattr(hardware, "_processor_has_bf16", lambda: True)
    for seconds, expected in ((0.5, "bf16-mixed"), (1.5, "32-true")):
        times = {torch.float32: 1.0, torch.bfloat16: seconds}
        monkeypatch.setattr(hardware, "_trial", times.get)
        assert choose_precision("auto", "cpu")[0] == expected


@pytest.mark.parametrize(("has_bf16", "expected", "reason"), [
    (True, "bf16-mixed", "the GPU computes in bf16"), (False, "16-mixed", "the GPU has no bf16"),
])  # fmt: skip
def test_on_a_gpu_precision_follows_its_arithmetic(monkeypatch, has_bf16, expected, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert (
        choose_precision("auto", "auto") == choose_precision("auto", "cuda") == (expected, reason)
    )
    monkeypatch.setattr(hardware, "_processor_has_bf16", lambda: False)
    assert choose_precision("auto", "cpu")[0] == "32-true", "the GPU is not asked for"
    assert choose_precision("auto", "mps")[0] == "32-true"


def test_the_precision_and_the_reason_are_printed(pairs, tmp_path, capsys):
    Trainer(tiny(pairs, tmp_path, method="caf", precision="auto"))
    assert re.search(r"caf: precision (32-true|bf16-mixed) \(.*bf16", capsys.readouterr().out)
    with pytest.raises(ConfigError, match="precision 'half': choose auto, 32-true"):
        Trainer(tiny(pairs, tmp_path, method="caf", precision="half"))


def test_a_run_in_the_background_takes_one_thread(pairs, tmp_path):
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        Trainer(tiny(pairs, tmp_path, method="caf", threads=1)).fit()
        assert torch.get_num_threads() == cv2.getNumThreads() == 1
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_validation_pairs_are_not_trained_on(tmp_path):
    root = write_pairs(tmp_path / "city" / "train", count=9, size=(72, 72))
    trainer = Trainer(tiny(tmp_path, tmp_path, method="caf", validation="auto", max_steps=1))
    assert root.is_dir() and trainer.validation.stems == ["07"]
    assert "07" not in trainer.sampler.folders[0].stems and len(trainer.sampler.folders[0]) == 8
    metrics = trainer.fit()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["validation"] == metrics and metrics["VIF"] > 0
    assert [step for step, _ in record["validations"]] == [1]


def test_a_label_without_any_known_class_is_named(pairs):
    (pairs / "labels").mkdir()
    cv2.imwrite(str(pairs / "labels" / "01.png"), np.full((48, 64), 75, np.uint8))
    with pytest.raises(DataError, match="01.png: none of its class ids 75 is known"):
        load(pairs)
    assert load(pairs, salient=(75,)).images[1][2].all()


def test_a_palette_label_gives_the_mask_of_its_indices(pairs):
    labels = np.zeros((48, 64), np.uint8)
    labels[:, :20] = 2
    (pairs / "labels").mkdir()
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0, 64, 0, 128, 64, 64, 0])
    picture.save(pairs / "labels" / "01.png")
    np.testing.assert_array_equal(load(pairs).images[1][2], labels == 2)


def test_a_resumed_run_keeps_its_settings_and_a_finished_one_its_record(pairs, tmp_path):
    Trainer(tiny(pairs, tmp_path, method="caf", lr=1e-3)).fit()
    record = (tmp_path / "run" / "run.json").read_text()
    config = load_config(["method=caf", "resume=true", f"output={tmp_path / 'run'}"], CONFIG)
    assert (config.crop, config.max_steps, config.lr) == (32, 4, 1e-3)
    Trainer(config).fit()
    assert (tmp_path / "run" / "run.json").read_text() == record


def test_resuming_without_a_checkpoint_says_where_it_looked(pairs, tmp_path):
    with pytest.raises(ConfigError, match="last.ckpt does not exist"):
        Trainer(tiny(pairs, tmp_path, resume=True))


@pytest.mark.parametrize("method", list_models())
def test_twenty_steps_of_each_method_lower_the_loss(method, pairs, tmp_path):
    config = load_config([f"method={method}"], CONFIG)
    run = tiny(
        pairs,
        tmp_path,
        method=method,
        max_steps=20,
        crop=64,
        lr=2e-3,
        save_every=100,
        model=config.model,
        objective=config.objective,
    )
    Trainer(run).fit()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 20
    assert record["loss_last"] < record["loss_first"]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_the_optimizer_is_a_setting(pairs, tmp_path):
    trainer = Trainer(tiny(pairs, tmp_path, method="caf", optimizer="sgd"))
    assert trainer.optimizer.defaults["momentum"] == 0.9
    trainer.fit()
    with pytest.raises(ConfigError, match="optimizer 'adam': choose adamw, sgd"):
        Trainer(tiny(pairs, tmp_path, method="caf", optimizer="adam"))


def test_a_searched_loss_takes_the_place_of_the_method_s_own(pairs, tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "loss.yaml").write_text(
        "weights: {l1_ir: 1.5, gradient_max: 0.5}\nperceptual: none"
    )
    settings = {"method": "refinefuse", "loss": str(tmp_path / "loss.yaml")}
    trainer = Trainer(tiny(pairs, tmp_path, **settings))
    trainer.fit()
    assert trainer.objective.weights == {"l1_ir": 1.5, "gradient_max": 0.5}
    settings["loss"] = str(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="none.yaml"):
        Trainer(tiny(pairs, tmp_path, **settings))


def test_the_searched_loss_that_comes_along_trains_any_method(pairs, tmp_path):
    pytest.importorskip("yaml")
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install .[dictionary]")
    file = CONFIG / "loss_detection.yaml"
    trainer = Trainer(tiny(pairs, tmp_path, method="caf", loss=str(file)))
    weights = trainer.objective.weights
    assert set(weights) == {*PAPER, *FIXED}
    assert sum(weights[name] for name in PAPER) == pytest.approx(len(PAPER), abs=0.01)
    before = {k: v.clone() for k, v in trainer.raw_model.state_dict().items()}
    trainer.fit()
    assert any(not torch.equal(v, before[k]) for k, v in trainer.raw_model.state_dict().items())


def test_a_missing_set_of_the_mix_is_named(pairs, tmp_path, capsys):
    Trainer(tiny(pairs, tmp_path, method="caf", mix={"mrsr": 2.0}))
    assert "no set mrsr in the data, which has set" in capsys.readouterr().out


def test_the_learning_curve_is_in_the_record_and_survives_resuming(pairs, tmp_path):
    Trainer(tiny(pairs, tmp_path, method="caf", log_every=2)).fit()
    Trainer(tiny(pairs, tmp_path, method="caf", log_every=2, max_steps=8, resume=True)).fit()
    curve = json.loads((tmp_path / "run" / "run.json").read_text())["curve"]
    assert [step for step, _ in curve] == [2, 4, 6, 8]
    assert all(loss > 0 for _, loss in curve)


EACH_RANK = """
import sys
from pathlib import Path
from fusion_models.trainer import Trainer, load_config
trainer = Trainer(load_config(sys.argv[2:], Path("config/training")))
trainer.fit()
total = sum(float(p.detach().double().abs().sum()) for p in trainer.raw_model.parameters())
Path(sys.argv[1], f"rank{trainer.fabric.global_rank}").write_text(repr(total))
"""


def run_in_two_processes(port, pairs, tmp_path, method, *script):
    """Three steps by torchrun on the CPU; the script and its own arguments come first."""
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
         f"--master_port={port}", *map(str, script), f"method={method}", f"data={pairs}",
         "validation=", f"output={tmp_path / 'two'}", "max_steps=3", "crop=32", "batch_size=1",
         "threads=1", "accelerator=cpu", "precision=32-true"],
        capture_output=True, text=True, timeout=240, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_end_with_equal_parameters(pairs, tmp_path):
    (tmp_path / "each.py").write_text(EACH_RANK)
    run_in_two_processes(29518, pairs, tmp_path, "cfi", tmp_path / "each.py", tmp_path)
    first, second = ((tmp_path / f"rank{rank}").read_text() for rank in (0, 1))
    assert float(first) == pytest.approx(float(second), rel=1e-9)


@pytest.mark.slow
def test_two_processes_train_one_network(pairs, tmp_path):
    run_in_two_processes(29517, pairs, tmp_path, "caf", ROOT / "training" / "train.py")
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["steps"] == 3 and "x 2" in record["device"]


def test_the_command_line_refuses_bad_data_before_training(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "training" / "train.py"), f"data={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 2
    assert "no pairs; expected" in result.stderr and "Traceback" not in result.stderr
