# SPDX-License-Identifier: AGPL-3.0-only
"""Checksums of shipped weights: they are right, and a changed file is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from fusion_models import WEIGHTS_DIR
from fusion_models.checksums import KEY, check_weights
from fusion_ros.frame.pipeline import load_network
from fusion_ros.frame.settings import Settings
from fusion_ros.inference import models
from fusion_ros.inference.models import list_methods


@pytest.mark.parametrize("method", list_methods())
def test_the_shipped_weights_are_those_that_the_model_card_records(method):
    card = WEIGHTS_DIR / f"{method}.json"
    recorded = json.loads(card.read_text())[KEY]
    files = {path.name for path in WEIGHTS_DIR.glob(f"{method}.*")} - {card.name}
    assert set(recorded) == files, "export the weights again by training/export.py"
    check_weights(card)


def test_a_changed_file_is_named_and_not_loaded(tmp_path, monkeypatch):
    for path in WEIGHTS_DIR.glob("caf.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(models, "WEIGHTS_DIR", tmp_path)
    models.check_shipped("caf")
    changed = tmp_path / "caf.onnx"
    changed.write_bytes(changed.read_bytes() + b"\x00")
    for check in (
        lambda: models.check_shipped("caf"),
        lambda: load_network(Settings(method="caf"), None, print),
    ):
        with pytest.raises(
            ValueError, match=r"caf\.onnx in .* are not the files that were shipped"
        ):
            check()
    models.check_shipped(str(changed))  # by its path it is a model of one's own


def test_without_a_card_or_checksums_nothing_is_checked_and_a_damaged_card_is_named(tmp_path):
    card = tmp_path / "own.json"
    check_weights(card)
    card.write_text("{}")
    check_weights(card)
    card.write_text("{")
    with pytest.raises(ValueError, match="model card .* cannot be read"):
        check_weights(card)
