# SPDX-License-Identifier: AGPL-3.0-only
"""The engine cache: built once, written as a whole, rebuilt if it does not load."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import write_fusion_onnx

from fusion_ros.inference import EngineError
from fusion_ros.inference.cache import (
    CachedEngine,
    EngineCache,
    EngineKey,
    StaleEngine,
    model_sha256,
)

KEY = EngineKey("baffm", "ab" * 32, "TensorRT 10.3.0", "Orin", "8.7", "fp16", 480, 640)


class Builder:
    """Counts its builds, and makes another engine each time."""

    def __init__(self):
        self.builds = 0

    def __call__(self) -> CachedEngine:
        self.builds += 1
        return CachedEngine(b"engine %d\n" % self.builds, fp16_error=0.001)


def load(engine: CachedEngine) -> CachedEngine:
    return engine


@pytest.fixture
def lines():
    return []


@pytest.fixture
def cache(tmp_path, lines):
    return EngineCache(tmp_path / "cache", lines.append)


def only_engine(cache: EngineCache) -> Path:
    (path,) = cache.folder.glob("*.engine")
    return path


def test_an_engine_is_built_once_and_then_read(cache):
    builder = Builder()
    first = cache.get(KEY, builder, load)
    assert cache.get(KEY, builder, load) == first
    assert builder.builds == 1


@pytest.mark.parametrize(
    "change",
    [
        {"onnx_sha256": "cd" * 32},
        {"library": "TensorRT 10.4.0"},
        {"device": "RTX 4090"},
        {"compute_capability": "8.9"},
        {"precision": "fp32"},
        {"height": 512},
        {"width": 512},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_part_of_the_key_makes_another_engine(cache, change):
    builder = Builder()
    cache.get(KEY, builder, load)
    cache.get(replace(KEY, **change), builder, load)
    assert builder.builds == 2


@pytest.mark.parametrize("location", ["model.onnx.data", "parts/weights.bin"])
def test_the_hash_of_a_model_counts_its_external_data(tmp_path, location):
    onnx = pytest.importorskip("onnx")
    path = write_fusion_onnx(tmp_path / "model.onnx", "slow", layers=2)
    (tmp_path / location).parent.mkdir(exist_ok=True)
    inside = model_sha256(path)
    onnx.save(
        onnx.load(path),
        path,
        save_as_external_data=True,
        location=location,
        size_threshold=0,
    )
    data = tmp_path / location
    before = model_sha256(path)
    assert before != inside and model_sha256(path) == before
    weights = np.frombuffer(data.read_bytes(), np.uint8).copy()
    weights[0] ^= 1
    data.write_bytes(weights.tobytes())
    assert model_sha256(path) != before


def test_the_hash_of_a_model_needs_no_external_data(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\n\x08location\x12\x04nope and \n\x08location\x12\x7f")
    assert len(model_sha256(path)) == 64


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-3],
        lambda data: data.replace(b"engine", b"engime"),
        lambda data: data.replace(b"8.7", b"8.9"),
        lambda data: b"[]\nengine",
        lambda data: b"\xff\xfe junk",
    ],
    ids=["empty", "cut", "flipped", "other_key", "no_header", "junk"],
)
def test_a_damaged_file_is_built_again_and_logged(cache, lines, damage):
    builder = Builder()
    cache.get(KEY, builder, load)
    path = only_engine(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(KEY, builder, load).data == b"engine 2\n"
    assert cache.get(KEY, builder, load).data == b"engine 2\n"
    assert builder.builds == 2
    assert len(lines) == 1 and "building it again" in lines[0]


def test_an_engine_that_the_library_refuses_is_built_again(cache):
    builder = Builder()
    cache.get(KEY, builder, load)

    def picky(engine):
        if engine.data == b"engine 1\n":
            raise StaleEngine("made by another driver")
        return engine

    assert cache.get(KEY, builder, picky).data == b"engine 2\n"
    assert cache.get(KEY, builder, load).data == b"engine 2\n"


def test_a_new_engine_that_does_not_load_is_an_error(cache):
    def refuse(engine):
        raise StaleEngine("of another driver")

    builder = Builder()
    with pytest.raises(EngineError, match="of another driver"):
        cache.get(KEY, builder, refuse)
    assert builder.builds == 1


def test_an_engine_that_cannot_start_for_now_is_not_built_again(cache):
    def refuse(engine):
        raise EngineError("out of memory")

    builder = Builder()
    cache.get(KEY, builder, load)
    with pytest.raises(EngineError, match="out of memory"):
        cache.get(KEY, builder, refuse)
    assert cache.get(KEY, builder, load).data == b"engine 1\n" and builder.builds == 1


def test_a_build_that_fails_leaves_nothing_behind(cache):
    def fail():
        raise EngineError("unsupported operator")

    with pytest.raises(EngineError, match="unsupported"):
        cache.get(KEY, fail, load)
    assert not list(cache.folder.glob("*.engine")) and not list(cache.folder.glob("*.tmp"))
    assert cache.get(KEY, Builder(), load).data == b"engine 1\n"


def test_no_temporary_file_is_left(cache):
    cache.get(KEY, Builder(), load)
    assert not list(cache.folder.glob("*.tmp"))


def test_a_folder_that_cannot_be_written_costs_a_build_each_time(tmp_path, lines):
    (tmp_path / "file").write_text("in the way")
    cache, builder = EngineCache(tmp_path / "file", lines.append), Builder()
    assert cache.get(KEY, builder, load).data == b"engine 1\n"
    assert cache.get(KEY, builder, load).data == b"engine 2\n"
    assert any("cannot keep" in line for line in lines)


def _build_or_wait(folder: Path, waiting, results) -> None:
    """Have an engine; the build ends only when the other process waits for it."""
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if "waiting for it" in line:
            waiting.set()

    def build() -> CachedEngine:
        assert waiting.wait(60)
        return CachedEngine(os.urandom(8))

    results.put((EngineCache(folder, log).get(KEY, build, load).data, lines))


def test_processes_that_start_together_share_one_build(tmp_path):
    context = multiprocessing.get_context("fork")
    waiting, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=_build_or_wait, args=(tmp_path, waiting, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    (first, _), (second, _) = (results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert first == second
