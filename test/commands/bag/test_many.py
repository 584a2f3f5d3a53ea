# SPDX-License-Identifier: AGPL-3.0-only
"""Four bags on dask, one of them broken: on a local cluster, and on a scheduler of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")
pytest.importorskip("jinja2")
pytest.importorskip("tqdm")
pytest.importorskip("distributed")
pytest.importorskip("onnxruntime")

from support_bags import small_plan

from fusion_ros.commands import main
from fusion_ros.commands.bag.make_bag import make_bag

EVALUATE = ["--backend", "null", "--samples", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three sound bags, and a file with a bag's name that is not one."""
    path = tmp_path_factory.mktemp("many")
    first = small_plan(path / "drive_1", seconds=0.5)
    make_bag(first)
    for number in range(2, 4):
        shutil.copytree(first.output, path / f"drive_{number}")
    (path / "drive_4.mcap").write_bytes(b"not a recording" * 50)
    return path


def evaluate(folder, out, *more):
    return main.main(["evaluate_bag", str(folder), "--out", str(out), *EVALUATE, *more])


def check(out):
    page = (out / "index.html").read_text()
    for number in range(1, 4):
        report = json.loads((out / f"drive_{number}" / "report.json").read_text())
        assert report["pairs"]["fused"] == 5
        assert f'href="drive_{number}/index.html"' in page
    assert "not evaluated" in page
    assert not (out / "drive_4").exists()


@pytest.mark.slow
def test_a_local_cluster_evaluates_all_but_the_broken_bag_and_resumes(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(folder, out, "--workers", "1") == 3
    said = capsys.readouterr().out
    assert "[4/4]" in said
    assert "drive_4: not evaluated: " in said
    check(out)
    shutil.rmtree(out / "drive_3")
    assert evaluate(folder, out, "--workers", "1") == 3
    said = capsys.readouterr().out
    assert said.count("done before") == 2
    check(out)


@pytest.mark.slow
def test_a_scheduler_that_was_started_by_hand_takes_the_work(folder, tmp_path):
    file = tmp_path / "scheduler.json"
    common = [sys.executable, "-m", "distributed.cli"]
    start = [f"{common[2]}.dask_scheduler", f"{common[2]}.dask_worker"]
    options = ["--scheduler-file", str(file)]
    scheduler = subprocess.Popen(
        [*common[:2], start[0], *options, "--port", "0", "--host", "127.0.0.1", "--no-dashboard"]
    )
    worker = None
    try:
        worker = subprocess.Popen(
            [*common[:2], start[1], *options, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        )
        from distributed import Client

        with Client(scheduler_file=str(file), timeout=120) as client:
            client.wait_for_workers(1, timeout=120)
            address = client.scheduler.address
        assert evaluate(folder, tmp_path / "out", "--scheduler", address) == 3
    finally:
        for process in filter(None, (worker, scheduler)):
            process.terminate()
            process.wait(30)
    check(tmp_path / "out")


def test_a_scheduler_that_does_not_answer_is_said(folder, tmp_path, capsys, monkeypatch):
    from fusion_ros.commands.bag import many

    def refuse(*arguments, **options):
        raise OSError("connection refused")

    monkeypatch.setattr("distributed.Client", refuse)
    assert many is not None
    assert evaluate(folder, tmp_path / "out", "--scheduler", "tcp://127.0.0.1:1") == 2
    assert "no dask scheduler answers at tcp://127.0.0.1:1" in capsys.readouterr().err
