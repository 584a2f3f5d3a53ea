# SPDX-License-Identifier: AGPL-3.0-only
"""The corpus of the fuzzing of messages: no input raises what it must not."""

from __future__ import annotations

from pathlib import Path

from fuzz.fuzz_images import decode

CORPUS = Path(__file__).with_name("corpus") / "images"


def test_the_corpus_is_decoded_or_refused_and_covers_each_outcome():
    outcomes = {decode(path.read_bytes()) for path in sorted(CORPUS.iterdir())}
    assert outcomes >= {"image", "refused", "lens"}
