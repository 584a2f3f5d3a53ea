# SPDX-License-Identifier: AGPL-3.0-only
"""What fuzzing starts from, and what it has found, loads or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.fuzz_models import load

CORPUS = sorted(Path(__file__).with_name("corpus").joinpath("models").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_each_model_of_the_corpus_is_what_its_name_says(tmp_path, path):
    kinds = {"fusion": ["fusion"], "refused": []}
    assert load(path.read_bytes(), tmp_path) == kinds.get(path.stem.split("_")[0], ["detection"])


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS) < 100_000
