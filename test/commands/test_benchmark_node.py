# SPDX-License-Identifier: AGPL-3.0-only
"""The node benchmark: its search, its figures, its files, and short runs over DDS."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from fusion_ros.cameras.files import FilesError
from fusion_ros.commands.benchmark.compare import compare, differences, table
from fusion_ros.commands.benchmark.limits import Limits
from fusion_ros.commands.benchmark.machine import (
    Host,
    Memory,
    Versions,
    busy_seconds,
    cpu_seconds,
    memory_of,
)
from fusion_ros.commands.benchmark.measurement import (
    Losses,
    Measurement,
    jitter_ms,
    stage_means,
)
from fusion_ros.commands.benchmark.pairs import BenchmarkInput, pairs_from_folder, simulated_pairs
from fusion_ros.commands.benchmark.plot import MatplotlibMissing, plot
from fusion_ros.commands.benchmark.results import Config, Input, Result, ResultError
from fusion_ros.commands.benchmark.search import confirm_peak, find_peak
from fusion_ros.commands.main import main as fusion_ros
from fusion_ros.harness.observer import Arrival
from fusion_ros.harness.sender import Sending, send_at_rate
from fusion_ros.inference.models import list_methods
from fusion_ros.node.diagnostics import Report

MS = 1_000_000


def main(arguments: list[str]) -> int:
    return fusion_ros(["benchmark", *arguments])


# --- Search -----------------------------------------------------------------------------------


def losses_of_a_node_that_fuses(per_second: float, tried: list[float]):
    def loss_at(rate: float) -> float:
        tried.append(rate)
        return max(0.0, 1 - per_second / rate)

    return loss_at


@pytest.mark.parametrize("capacity", [1.5, 4.7, 23.0, 97.0])
def test_the_search_finds_the_highest_rate_with_few_losses(capacity):
    tried: list[float] = []
    peak = find_peak(losses_of_a_node_that_fuses(capacity, tried), 1.0, 120.0)
    highest = capacity / 0.95
    assert highest / 1.05 <= peak <= highest
    assert len(tried) <= 10


def test_the_search_ends_at_a_bound_that_is_followed():
    tried: list[float] = []
    assert find_peak(losses_of_a_node_that_fuses(500, tried), 1.0, 120.0) == 120.0
    assert tried == [120.0]


def test_the_search_finds_nothing_where_the_lowest_rate_is_too_high():
    tried: list[float] = []
    assert find_peak(losses_of_a_node_that_fuses(0.5, tried), 1.0, 120.0) is None
    assert tried == [120.0, 1.0]


def test_a_highest_rate_that_does_not_hold_for_longer_is_lowered_until_one_does():
    tried: list[float] = []
    peak = confirm_peak(losses_of_a_node_that_fuses(19.0, tried), 22.0, 1.0)
    assert tried == pytest.approx([22.0, 22.0 / 1.05, 22.0 / 1.05**2])
    assert peak == tried[-1] <= 19.0 / 0.95
    tried.clear()
    assert confirm_peak(losses_of_a_node_that_fuses(0.5, tried), 1.02, 1.0) is None
    assert tried == [1.02, 1.0]


# --- Figures ----------------------------------------------------------------------------------


def report(**values: object) -> Report:
    return Report(0, {name: str(value) for name, value in values.items()})


def made_up(sent: int = 10, lost: tuple[int, ...] = (3, 7), skipped: int = 0) -> Measurement:
    """Pairs every 100 ms, published 20 ms, 30 ms, 20 ms, ... after their stamps."""
    stamps = [1_000_000_000 + number * 100 * MS for number in range(sent)]
    arrivals = {
        stamp: Arrival(stamp + (20 + 10 * (i % 2)) * MS, stamp + (25 + 10 * (i % 2)) * MS)
        for i, stamp in enumerate(stamps)
        if i not in lost
    }
    seconds = 0.1 * (sent + skipped)
    sending = Sending(10.0, stamps, [0.1] * sent, skipped, seconds, cpu_s=0.05 * seconds)
    before = report(fused=0, rgb_received=0, rgb_paired=0)
    after = report(
        fused=len(arrivals),
        displaced=len(lost),
        rgb_received=sent,
        rgb_paired=sent,
        stage_infer_ms=15.0,
    )
    node_s, all_s = 0.4 * seconds, 0.5 * seconds
    return Measurement.of(sending, arrivals, before, after, node_s, all_s, Memory(100, 120))


def test_a_measurement_says_what_came_back_and_when():
    one = made_up()
    assert (one.sent, one.received, one.loss) == (10, 8, 0.2)
    assert one.offered_hz == 10.0
    # The first was published at 20 ms, the last, an odd one, at 930 ms.
    assert one.fps == pytest.approx(7 / 0.91, abs=1e-3)
    assert (one.latency_ms.p50, one.latency_ms.p95, one.latency_ms.p99) == (20.0, 30.0, 30.0)
    assert one.receipt_ms.p50 == 25.0
    assert (one.cpu_percent, one.load_percent, one.other_percent) == (40.0, 5.0, 5.0)
    assert one.losses == Losses(transport=0, unpaired=0, displaced=2, rejected=0, output=0)
    assert one.stage_ms == {"infer": 15.0}


def test_images_of_another_run_do_not_count():
    sending = Sending(10.0, [MS, 2 * MS], [0.0, 0.0], 0, 0.2)
    arrivals = {MS: Arrival(3 * MS, 4 * MS), 999: Arrival(3 * MS, 4 * MS)}
    one = Measurement.of(sending, arrivals, report(), report(fused=2), 0, 0, Memory(0, 0))
    assert (one.received, one.loss) == (1, 0.5)


def test_a_rate_without_any_image_back_has_no_latency():
    one = made_up(sent=2, lost=(0, 1))
    assert (one.loss, one.fps, one.latency_ms, one.jitter_ms) == (1.0, 0.0, None, None)


def test_pairs_that_the_sender_was_too_late_for_are_no_losses_but_do_not_pass():
    one = made_up(sent=9, lost=(), skipped=1)
    assert one.loss == 0.0
    assert one.missed == pytest.approx(0.1)
    assert one.offered_hz == 9.0 and not one.kept


def test_losses_are_counted_by_kind_and_add_up():
    before = report(rgb_received=5, rgb_paired=5, fused=4, displaced=1)
    after = report(rgb_received=103, rgb_paired=100, fused=80, displaced=18, rejected=2)
    losses = Losses.between(before, after, sent=100, received=75)
    assert losses == Losses(transport=2, unpaired=3, displaced=17, rejected=2, output=1)
    assert sum(dataclasses.astuple(losses)) == 100 - 75


def test_jitter_is_how_much_successive_intervals_differ():
    assert jitter_ms([0, 10 * MS, 20 * MS, 30 * MS]) == 0.0
    assert jitter_ms([0, 10 * MS, 24 * MS, 34 * MS]) == 4.0
    assert jitter_ms([0, 10 * MS]) is None


def test_the_warm_up_is_taken_out_of_the_stages():
    before = report(fused=5, stage_infer_ms=40.0)
    assert stage_means(before, report(fused=15, stage_infer_ms=20.0)) == {"infer": 10.0}
    # By then the node's means are of its latest thousand frames only.
    assert stage_means(before, report(fused=1500, stage_infer_ms=20.0)) == {"infer": 20.0}


def test_a_late_sender_leaves_pairs_out_instead_of_sending_them_in_a_burst(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fusion_ros.harness.sender.time.monotonic", lambda: now[0])
    sent_at: list[float] = []

    def send() -> int:
        sent_at.append(now[0])
        if len(sent_at) == 3:
            now[0] += 0.11
        return len(sent_at)

    def wait_until(due: float) -> None:
        now[0] = max(now[0], due)

    sending = send_at_rate(50.0, 10, send, wait_until)
    # The third took the time of five more, of which the last was still due.
    assert sending.skipped == 4
    assert len(sending.stamps_ns) == len(sending.late_ms) == 6
    assert sending.late_ms == pytest.approx([0, 0, 0, 10, 0, 0], abs=1e-6)
    assert sending.offered_hz == pytest.approx(30)


def test_processor_time_and_memory_of_a_process_are_read():
    before, busy = cpu_seconds(os.getpid()), busy_seconds()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    spent = cpu_seconds(os.getpid()) - before
    # Counted in ticks of a hundredth of a second.
    assert spent >= 0.08
    assert busy_seconds() - busy >= 0.08
    memory = memory_of(os.getpid())
    assert 10 < memory.resident_mb <= memory.peak_mb
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert cpu_seconds(gone.pid) == 0.0 and memory_of(gone.pid) == Memory(0.0, 0.0)


# --- Input ------------------------------------------------------------------------------------


def noise(seed: int = 0, depth: str = "uint16") -> BenchmarkInput:
    rng = np.random.default_rng(seed)
    thermal = rng.integers(0, 255, (8, 10)).astype(depth)
    return BenchmarkInput("noise", [thermal], [rng.integers(0, 255, (8, 10, 3)).astype(np.uint8)])


def test_the_hash_is_of_the_pixels_and_of_nothing_else():
    assert noise().sha256 == dataclasses.replace(noise(), source="elsewhere").sha256
    swapped = dataclasses.replace(noise(), thermal=[noise().thermal[0].astype(">u2")])
    assert swapped.sha256 == noise().sha256
    assert noise(depth="uint8").sha256 != noise().sha256
    other = noise()
    other.visible[0][7, 9, 2] ^= 1
    assert other.sha256 != noise().sha256


def test_the_simulated_input_is_the_same_every_time():
    one, other = (simulated_pairs((64, 48), 3) for _ in range(2))
    assert one.sha256 == other.sha256
    assert len({image.tobytes() for image in one.visible}) == 3
    assert one.visible_size == (64, 48) and one.thermal_encoding == "mono16"


def write_folder(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    for kind in ("ir", "vi"):
        (folder / kind).mkdir(parents=True)
        for number, (width, height) in enumerate(sizes):
            cv2.imwrite(
                str(folder / kind / f"{number}.png"), np.full((height, width), number, np.uint8)
            )
    return folder


def test_pairs_of_a_folder_are_spread_over_it_and_fitted_to_one_size(tmp_path):
    folder = write_folder(tmp_path, [(40, 32)] * 9)
    pairs = pairs_from_folder(folder, (20, 16), 3)
    assert [int(image[0, 0]) for image in pairs.thermal] == [0, 3, 6]
    assert pairs.visible_size == pairs.thermal_size == (20, 16)
    assert len(pairs_from_folder(folder, None, 100)) == 9


def test_a_folder_of_several_sizes_needs_one_to_be_named(tmp_path):
    folder = write_folder(tmp_path, [(40, 32), (48, 32)])
    with pytest.raises(FilesError, match="40x32.*48x32.*--size"):
        pairs_from_folder(folder, None, 10)
    assert pairs_from_folder(folder, (40, 32), 10).visible_size == (40, 32)


# --- Results ----------------------------------------------------------------------------------


def result(**changes: object) -> Result:
    config = Config(
        method="cfi",
        backend="auto",
        precision="fp32",
        threads=0,
        detect=False,
        parameters={},
        model_sha256="1",
        rates=(10.0,),
        duration_s=1.0,
        search=(1.0, 120.0),
        trial_s=1.0,
        most_loss=0.05,
        profile="fastdds_shm.xml",
    )
    values = {
        "label": "cfi",
        "created": "2026-01-01T00:00:00+00:00",
        "host": Host("cpu", 2, 8.0, "", "Linux", "6", 0.1),
        "versions": Versions("3", "0", "abc", "2", "5", "1", "9", "", "rmw"),
        "config": config,
        "input": Input("noise", 1, "10x8", "mono16", "10x8", "bgr8", noise().sha256),
        "engine": "null",
        "starts_s": [2.0],
        "search": [made_up()],
        "peak": made_up(lost=()),
        "peak_limit": "node",
        "rates": [made_up()],
    }
    return Result(**values | changes)


def test_a_result_comes_back_from_its_file_as_it_was(tmp_path):
    result().write(tmp_path / "a.json")
    assert Result.read(tmp_path / "a.json") == result()
    nothing = result(search=[], peak=None, rates=[made_up(2, (0, 1))], error="died")
    nothing.write(tmp_path / "a.json")
    assert Result.read(tmp_path / "a.json") == nothing
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_files_that_are_not_results_are_refused_with_a_reason(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ResultError, match="cannot read .*a.json: No such file"):
        Result.read(path)
    for text, says in (
        ("{", "not JSON"),
        ("[1]", "schema is None"),
        ('{"schema": 99}', "schema is 99, expected 1"),
        ('{"schema": 1}', "damaged: 'config'"),
    ):
        path.write_text(text)
        with pytest.raises(ResultError, match=f"a.json .*{says}"):
            Result.read(path)


def test_two_results_stand_side_by_side_with_their_ratio(tmp_path, capsys):
    slower = dataclasses.replace(made_up(), cpu_percent=80.0)
    result().write(tmp_path / "a.json")
    result(rates=[slower]).write(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["CPU,", "%", "40.00", "80.00", "2.00"] in lines
    assert ["highest", "rate"] in lines and ["10", "Hz"] in lines
    assert not any("warning:" in line for line in lines)


def test_comparing_what_cannot_be_compared_warns_of_each_difference():
    other = result(
        host=dataclasses.replace(result().host, cpu="another", load=9.0),
        input=dataclasses.replace(result().input, sha256="f"),
        config=dataclasses.replace(result().config, threads=1),
        versions=dataclasses.replace(result().versions, numpy="3", commit="def"),
        rates=[dataclasses.replace(made_up(), rate_hz=30.0)],
        error="the process died\nof something",
    )
    found = differences(result(), other)
    assert [text.partition(":")[0] for text in found] == [
        "host.cpu",
        "versions.numpy",
        "config.threads",
        "input.sha256",
    ]
    text = compare(result(), other)
    assert "warning: host.cpu: cpu / another" in text
    assert "warning: B ended early: the process died\n" in text
    assert "10 Hz: only in A" in text and "30 Hz: only in B" in text


def test_the_table_names_the_highest_rate_and_the_stages():
    text = table(result())
    assert "20.0 / 30.0 / 30.0" in text and "infer 15.0" in text
    assert text.count("highest, limited by the node") == 1
    assert "no rate from 1 Hz" in table(result(peak=None))


def test_the_table_says_when_the_machine_was_busy_with_other_work():
    assert "the machine was busy" not in table(result())
    busy = dataclasses.replace(made_up(), other_percent=60.0)
    assert "the machine was busy: other work took up to 60 %" in table(result(rates=[busy]))


def test_limits_are_checked_at_each_rate_and_what_was_not_measured_fails():
    limits = Limits.parse("loss=0.1,p95=30,cpu=40,start=2,growth=20")
    verdicts = {verdict.name: verdict for verdict in limits.verdicts(result())}
    met = {name: verdict.met for name, verdict in verdicts.items()}
    assert met == {
        "start, s": True,
        "10 Hz: loss": False,
        "10 Hz: p95": True,
        "10 Hz: cpu": True,
        "10 Hz: growth": False,
    }
    assert str(verdicts["10 Hz: loss"]) == "10 Hz: loss 0.2, limit 0.1: EXCEEDED"
    # 40 % of a core at ten pairs a second.
    assert verdicts["10 Hz: cpu"].found == pytest.approx(40)
    assert not list(Limits().verdicts(result()))


def test_a_plot_shows_every_result(tmp_path):
    pytest.importorskip("matplotlib")
    plot([result(), result(peak=None, search=[], rates=[made_up(2, (0, 1))])], tmp_path / "a.png")
    height, width = cv2.imread(str(tmp_path / "a.png")).shape[:2]
    assert width > height > 400


def test_without_matplotlib_a_line_names_the_remedy_and_no_traceback_is_shown(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MatplotlibMissing, match="pip install matplotlib"):
        plot([result()], tmp_path / "a.png")
    result().write(tmp_path / "a.json")
    assert main(["plot", str(tmp_path / "a.json"), "--output", str(tmp_path / "a.png")]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err


# --- Command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "nonsense"], ["nonsense", *list_methods()]),
        (["--method", "cfi,nonsense"], ["nonsense"]),
        (["--backend", "abacus"], ["abacus", "onnxruntime", "null"]),
        (["--data", "nowhere"], ["no folder 'nowhere'", "ir/ and vi/"]),
        (["--duration", "0.5"], ["0.5", "10 Hz", "give 1 s"]),
        (["--duration", "nan"], ["nan"]),
        (["--rates", "10,fast"], ["10,fast", "10,30,60"]),
        (["--rates", "0"], ["0.1 to 1000"]),
        (["--search", "60,30"], ["60,30", "1,120"]),
        (["--size", "640"], ["640x480"]),
        (["--size", "8x8"], ["at least 32x32"]),
        (["--pairs", "0"], ["--pairs 0"]),
        (["--start-timeout", "0"], ["--start-timeout"]),
        (["--check", "p96=1"], ["p96=1", "p95"]),
        (["--check", "p95=fast"], ["p95=fast", "NUMBER"]),
        (["-p", "threads=1"], ["threads=1", "NAME:=VALUE"]),
        (["-p", "thread:=1"], ["thread:=1", "threads"]),
        (["-p", "threads:=many"], ["threads", "whole number"]),
        (["-p", "method:=cfi"], ["--method"]),
        (["--detect", "-p", "detector:=nowhere.onnx"], ["nowhere.onnx", "make detector"]),
        (["compare", "nowhere.json", "nowhere.json"], ["nowhere.json"]),
        (["compare", "nowhere.json"], ["B.json"]),
        (["plot", "nowhere.json"], ["nowhere.json"]),
    ],
)
def test_a_wrong_option_is_named_with_the_possible_values(
    arguments, says, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    assert status == 2
    assert all(word in printed.err for word in says), printed.err
    assert list(tmp_path.iterdir()) == []


# --- Over DDS ---------------------------------------------------------------------------------


def command(output: Path, *arguments: str) -> list[str]:
    module = [sys.executable, "-u", "-m", "fusion_ros", "benchmark"]
    small = ["--backend", "null", "--size", "64x48", "--pairs", "3", "--output", str(output)]
    return [*module, *small, *arguments]


@pytest.mark.slow
def test_a_short_run_leaves_figures_that_add_up(tmp_path):
    arguments = ["--rates", "20", "--duration", "1", "--search", "19,20", "-p", "gain_mode:=linear"]
    run = subprocess.run(
        command(tmp_path, *arguments), capture_output=True, text=True, timeout=90, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = Result.read(tmp_path / "benchmark_null.json")
    assert found.error == "" and found.engine.startswith("null")
    assert found.config.parameters["gain_mode"] == "linear"
    assert found.input.sha256 == simulated_pairs((64, 48), 3).sha256
    assert found.search and found.search[0].rate_hz == 20.0
    assert [one.rate_hz for one in found.rates] == [20.0]
    assert len(found.starts_s) >= 2 and min(found.starts_s) > 0.1
    for one in [*found.search, *found.rates]:
        # A trial of a second would be fewer than the twenty pairs that it takes at least.
        assert one.sent + one.skipped == max(20, round(one.rate_hz))
        assert sum(dataclasses.astuple(one.losses)) == one.sent - one.received
        assert one.received > 0
        assert 0 < one.latency_ms.p50 <= one.latency_ms.p95 <= one.receipt_ms.p99
        assert one.memory.resident_mb > 20 and one.cpu_percent > 0
        assert {"gain", "infer", "publish"} <= set(one.stage_ms)
    assert "null on null" in run.stdout and "stages, ms" in run.stdout


@pytest.mark.slow
def test_a_node_that_ends_early_is_reported_and_its_measurements_are_kept(tmp_path):
    def children(pid: int) -> set[int]:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    arguments = ["--rates", "20", "--duration", "30", "--search", "19,20"]
    with subprocess.Popen(
        command(tmp_path, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        seen: set[int] = set()
        for line in process.stdout:
            if "lost" in line:
                seen = children(process.pid)
                break
        end = time.monotonic() + 20
        while not (new := children(process.pid) - seen) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(new.pop(), signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "ended with status -9" in errors and "its log" in errors
    assert "Traceback" not in errors
    values = json.loads((tmp_path / "benchmark_null.json").read_text())
    assert len(values["search"]) >= 1 and values["rates"] == []
    assert "ended with status -9" in values["error"]
