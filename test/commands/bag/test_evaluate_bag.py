# SPDX-License-Identifier: AGPL-3.0-only
"""What `evaluate_bag` finds in small bags with known faults, and what it leaves on the disk."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")
pytest.importorskip("jinja2")
pytest.importorskip("tqdm")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("yaml")

import yaml
from support import write_fusion_onnx
from support_bags import OFFSET_S, edited_bag, small_plan

from fusion_ros.commands import main
from fusion_ros.commands.bag.make_bag import make_bag
from fusion_ros.frame import images
from fusion_ros.recording.bag import open_bag
from fusion_ros.recording.writer import BagWriter

NULL = ["--backend", "null", "--samples", "4"]


def evaluate(bag, out, *more):
    return main.main(["evaluate_bag", str(bag), "--out", str(out), *NULL, *map(str, more)])


def report_of(out):
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """A bag of 4 s with an offset, a drift and two thermal and four RGB images dropped."""
    plan = small_plan(
        tmp_path_factory.mktemp("bags") / "drive",
        seconds=4,
        thermal={"drift_ppm": 3000.0, "drop": 0.05},
        rgb={"drop": 0.05},
    )
    made = make_bag(plan)
    assert (made.thermal_dropped, made.rgb_dropped) == (2, 4)
    return plan.output


@pytest.fixture(scope="module")
def out(bag, tmp_path_factory):
    """The results of that bag."""
    folder = tmp_path_factory.mktemp("out") / "drive"
    assert evaluate(bag, folder) == 0
    return folder


def test_offset_drift_and_drops_are_reported_as_they_were_put_in(out):
    report = report_of(out)
    clocks = report["streams"]["clocks"]
    assert clocks["offset_ms"] == pytest.approx(1e3 * OFFSET_S + 3 * 2, abs=2)
    assert clocks["drift_ppm"] == pytest.approx(3000, rel=0.1)
    assert report["streams"]["thermal"]["dropped"] == 2
    assert report["streams"]["rgb"]["dropped"] == 4
    assert "clock drifts by" in report["verdict"]["mend"]


def test_the_recommended_settings_pair_what_can_be_paired(out):
    report = report_of(out)
    assert (
        report["pairs"]["pairs"]["recommended"]
        >= 0.99 * (report["streams"]["recommended"]["pairable"])
    )
    assert report["pairs"]["share"]["recommended"] > report["pairs"]["share"]["default"] - 1e-9
    text = (out / "settings.yaml").read_text()
    values = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert values["thermal_time_offset"] == pytest.approx(-OFFSET_S - 0.006, abs=2e-3)
    assert values["tolerance"] == report["streams"]["recommended"]["tolerance"]


def test_the_sources_their_average_and_maximum_are_among_the_rows(out):
    rows = report_of(out)["quality"]["rows"]
    assert set(rows) == {"thermal", "rgb", "average", "maximum", "baffm"}
    for row in rows.values():
        assert {"VIF", "Qabf", "SSIM", "hidden", "over_exposure", "flicker"} <= set(row)
    # The engine `null` passes the visible image through: both rows are that of the RGB image.
    assert rows["baffm"]["VIF"] == pytest.approx(rows["rgb"]["VIF"], rel=0.02)


def test_the_same_bag_and_settings_give_the_same_numbers_bit_for_bit(bag, out, tmp_path):
    assert evaluate(bag, tmp_path / "again") == 0
    reports = [report_of(folder) for folder in (out, tmp_path / "again")]
    for report in reports:
        # What depends on this machine's load: times, and the sentence that quotes them.
        del report["speed"], report["run"], report["verdict"]["settings"]
    assert reports[0] == reports[1]


def test_a_bag_in_another_form_gives_the_same_numbers(bag, out, tmp_path):
    with open_bag(bag) as source, BagWriter(tmp_path / "drive", "sqlite3", "file") as writer:
        for record in source.records(list(source.topics)):
            kind = source.topics[record.topic].type
            writer.write_raw(record.topic, kind, record.log_ns, record.data)
    assert evaluate(tmp_path / "drive", tmp_path / "out") == 0
    for part in ("quality", "pairs", "streams", "registration"):
        assert report_of(out)[part] == report_of(tmp_path / "out")[part]


def test_a_registration_that_is_off_is_measured(tmp_path):
    rgb = {"size": (320, 240)}
    thermal = {"size": (160, 128)}
    misalign = (6.0, -4.0)
    plan = small_plan(
        tmp_path / "bag", seconds=1, scene="day", rgb=rgb, thermal=thermal, misalign=misalign
    )
    make_bag(plan)
    assert evaluate(plan.output, tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    residual = report["registration"]["residual"]
    assert residual["clear"]
    assert (residual["x"], residual["y"]) == pytest.approx((6, -4), abs=1)
    assert "px to the right" in " ".join(report["verdict"]["problems"])


def test_the_page_stands_alone(out):
    page = (out / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page).replace("http-equiv", "")
    for sentence in report_of(out)["verdict"].values():
        if isinstance(sentence, str) and "'" not in sentence:
            assert sentence in page
    assert not list(out.glob(".*"))


# --- As a test ----------------------------------------------------------------------------------


def test_criteria_of_a_good_bag_are_met_by_it_and_decide_the_status(bag, tmp_path, capsys):
    file = tmp_path / "criteria.yaml"
    assert evaluate(bag, tmp_path / "a", "--init-criteria", file) == 0
    # How fast a busy machine is differs from run to run.
    criteria = [line for line in file.read_text().splitlines() if not line.startswith("fps:")]
    file.write_text("\n".join(criteria))
    assert evaluate(bag, tmp_path / "b", "--criteria", file) == 0
    file.write_text("pairs: 90 %\nrgb_dropped: 1\nlost: 0.1\n")
    capsys.readouterr()
    assert evaluate(bag, tmp_path / "c", "--criteria", file) == 1
    said = capsys.readouterr().out
    assert "passed: pairs" in said
    assert "FAILED: rgb_dropped is 4, wanted at most 1" in said
    assert "FAILED: lost is unknown (it needs --detector" in said
    checks = report_of(tmp_path / "c")["criteria"]
    assert [each["passed"] for each in checks["checks"]] == [True, False, False]


def test_an_earlier_report_is_compared(bag, out, tmp_path, capsys):
    assert evaluate(bag, tmp_path / "now", "--baseline", out / "report.json", "--every", "2") == 0
    changes = {each["name"]: each for each in report_of(tmp_path / "now")["baseline"]["changes"]}
    assert changes["pairs"]["change"] == 0
    assert changes["fused"]["now"] < changes["fused"]["before"]
    assert "before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [("speed: 3", "unknown criteria speed"), ("pairs: much", "expected a number"), ("", "no crit")],
)
def test_criteria_of_no_use_are_refused_before_any_work(tmp_path, capsys, content, said):
    file = tmp_path / "criteria.yaml"
    file.write_text(content)
    assert evaluate(tmp_path / "bag", tmp_path / "out", "--criteria", file) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--start", "--duration"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_times_that_are_none_are_refused(tmp_path, capsys, option, value):
    assert evaluate(tmp_path / "bag", tmp_path / "out", f"{option}={value}") == 2
    assert "--start and --duration must not be negative" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', '{"schema": 1, "pairs": 3}'])
def test_a_baseline_that_is_no_report_is_refused_before_any_work(tmp_path, capsys, content):
    file = tmp_path / "report.json"
    file.write_text(content)
    assert evaluate(tmp_path / "bag", tmp_path / "out", "--baseline", file) == 2
    assert "is no report of evaluate_bag" in capsys.readouterr().err


# --- Bad input ----------------------------------------------------------------------------------


def test_a_part_of_the_bag_is_evaluated_alone(bag, tmp_path):
    assert evaluate(bag, tmp_path / "out", "--start", "1", "--duration", "2", "--every", "2") == 0
    report = report_of(tmp_path / "out")
    assert 8 <= report["pairs"]["fused"] <= 10
    assert report["streams"]["rgb"]["count"] <= 40


def test_a_torn_bag_is_evaluated_as_far_as_it_goes(tmp_path):
    plan = small_plan(tmp_path / "bag", seconds=2, thermal={"size": (320, 256)})
    make_bag(plan)
    file = next(plan.output.glob("*.mcap"))
    whole = file.read_bytes()
    torn = tmp_path / "torn.mcap"
    torn.write_bytes(whole[: len(whole) * 7 // 10])
    assert evaluate(torn, tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    assert 3 <= report["pairs"]["fused"] < 20
    assert not report["complete"]
    assert "cut off" in report["events"][0]


def one_camera(path):
    plan = small_plan(path.with_name("both"), seconds=0.3)
    make_bag(plan)
    with open_bag(plan.output) as bag, BagWriter(path) as writer:
        for record in bag.records(["/rgb/image_raw"]):
            writer.write_raw(
                record.topic, bag.topics[record.topic].type, record.log_ns, record.data
            )


def far_apart(path):
    make_bag(small_plan(path, seconds=0.5, thermal={"offset_s": 30.0}))


@pytest.mark.parametrize(
    ("make", "more", "said"),
    [
        (lambda path: None, [], "there is no"),
        (lambda path: path.write_text("x"), [], "not a bag"),
        (lambda path: path.mkdir(), [], "not a bag"),
        (one_camera, [], "thermal camera cannot be told by name: give --thermal TOPIC; its image"),
        (one_camera, ["--thermal", "/rgb/image_raw"], "--thermal and --rgb"),
        (far_apart, ["--tolerance-file"], "no pair within the tolerance"),
    ],
    ids=["no file", "a text", "empty folder", "one camera", "one topic twice", "zero pairs"],
)
def test_what_cannot_be_evaluated_ends_with_status_3_and_a_sentence(
    tmp_path, capsys, make, more, said
):
    path = tmp_path / "recording"
    make(path)
    if "--tolerance-file" in more:
        params = tmp_path / "params.yaml"
        values = {"tolerance": 0.01, "thermal_time_offset": 0.0}
        params.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
        more = ["--params", params]
    capsys.readouterr()
    assert evaluate(path, tmp_path / "out", *more) == 3
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def since_boot(tmp_path):
    """A bag whose thermal stamps are 100,000 s behind those of the RGB camera."""
    plan = small_plan(tmp_path / "a", seconds=2)
    make_bag(plan)

    def edit(topic, message):
        if topic == "/thermal/image_raw":
            message.header.stamp.sec -= 100_000

    return edited_bag(plan.output, tmp_path / "boot", edit)


def test_stamps_since_boot_are_told_and_paired_by_arrival_if_asked_for(tmp_path, capsys):
    boot = since_boot(tmp_path)
    assert evaluate(boot, tmp_path / "out") == 3
    assert "set the node's stamp_source to arrival, and evaluate with --stamps arrival" in (
        capsys.readouterr().err
    )
    params = tmp_path / "params.yaml"
    params.write_text("/**: {ros__parameters: {stamp_source: arrival}}")
    for more in (["--stamps", "arrival"], ["--params", params]):
        assert evaluate(boot, tmp_path / "out", "--write-bag", tmp_path / "fused", *more) == 0
        assert report_of(tmp_path / "out")["pairs"]["share"]["used"] > 0.9
        settings = yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())
        assert settings["/**"]["ros__parameters"]["stamp_source"] == "arrival"
        with open_bag(tmp_path / "fused") as fused, open_bag(boot) as bag:
            ours = {fused.stamp_ns(r) for r in fused.records(["/fused/image"])}
            assert ours and ours <= {bag.stamp_ns(r) for r in bag.records(["/rgb/image_raw"])}
        shutil.rmtree(tmp_path / "fused")


def test_messages_that_damage_inside_the_bag_has_cost_are_told(tmp_path):
    plan = small_plan(tmp_path / "bag", seconds=2)
    make_bag(plan)
    file = next(plan.output.glob("*.mcap"))
    data = bytearray(file.read_bytes())
    half = len(data) // 2
    data[half : half + 150_000] = bytes(150_000)
    file.write_bytes(data)
    assert evaluate(plan.output, tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    assert not report["complete"]
    assert "damaged" in report["bag"]["problem"]
    assert report["verdict"]["mend"].startswith("Mend first: the recording: ")


def test_a_damaged_camera_info_costs_that_message_only(tmp_path):
    plan = small_plan(tmp_path / "a", seconds=1)
    make_bag(plan)
    info = "/rgb/camera_info"
    with open_bag(plan.output) as bag, BagWriter(tmp_path / "bag") as writer:
        damaged = 0
        for record in bag.records(list(bag.topics)):
            data = record.data
            if record.topic == info and damaged < 2:
                data, damaged = data[:40], damaged + 1
            writer.write_raw(record.topic, bag.topics[record.topic].type, record.log_ns, data)
    assert evaluate(tmp_path / "bag", tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    assert report["registration"]["by"] == "camera_info"
    assert any("2 times: rgb camera_info: a message of 40 bytes" in e for e in report["events"])


@pytest.mark.parametrize("form", ["", "jpeg;", ";"])
def test_compressed_images_are_read_whatever_their_format_says(tmp_path, form):
    plan = small_plan(tmp_path / "a", seconds=0.6, rgb={"compressed": True})
    make_bag(plan)

    def edit(topic, message):
        if hasattr(message, "format"):
            message.format = form

    bag = edited_bag(plan.output, tmp_path / "bag", edit)
    assert evaluate(bag, tmp_path / "out") == 0
    assert report_of(tmp_path / "out")["pairs"]["fused"] >= 4


def test_rgb_images_of_12_bits_are_bright_and_named(tmp_path):
    plan = small_plan(tmp_path / "a", seconds=0.6)
    make_bag(plan)

    def edit(topic, message):
        if topic == "/rgb/image_raw":
            of_12_bits = images.view(message).astype(np.uint16) * 16
            message.encoding, message.step = "bgr16", of_12_bits.strides[0]
            message.data = of_12_bits.view(np.uint8).ravel()

    means = []
    for path in (plan.output, edited_bag(plan.output, tmp_path / "bag", edit)):
        assert evaluate(path, tmp_path / "out") == 0
        report = report_of(tmp_path / "out")
        means.append(report["quality"]["rows"]["rgb"]["over_exposure"])
    assert any("set rgb_bits to 12 if that is right" in event for event in report["events"])
    assert means[1] == pytest.approx(means[0], abs=0.01)


def test_encodings_that_change_and_damaged_images_cost_those_images_only(tmp_path):
    plan = small_plan(tmp_path / "a", seconds=1)
    make_bag(plan)
    with open_bag(plan.output) as bag, BagWriter(tmp_path / "bag") as writer:
        for number, record in enumerate(bag.records(["/rgb/image_raw", "/thermal/image_raw"])):
            kind = bag.topics[record.topic].type
            message = bag.message(record)
            if record.topic.startswith("/rgb") and number > 15:
                message.encoding = "rgb8"
            if number == 9:
                message.data = message.data[:100]
            writer.write(record.topic, kind, record.log_ns, message)
    assert evaluate(tmp_path / "bag", tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    events = " ".join(report["events"])
    assert "the rgb camera's images change: bgr8 128x96, then rgb8 128x96" in events
    assert "truncated" in events
    assert report["pairs"]["fused"] >= 8


def test_results_that_cannot_be_written_end_with_status_4_and_leave_nothing(bag, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert evaluate(bag, tmp_path / "out") == 4
    assert "no folder" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_writes_the_report_of_what_was_done(bag, tmp_path):
    """The second pair sends the signal itself, so no time has to be guessed."""
    code = (
        "import os, signal, sys\n"
        "from fusion_ros.commands import main\n"
        "from fusion_ros.commands.bag import evaluation\n"
        "frame = evaluation._Evaluation._frame\n"
        "def interrupted(self, index, *more):\n"
        "    if index == 10: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return frame(self, index, *more)\n"
        "evaluation._Evaluation._frame = interrupted\n"
        "sys.exit(main.main(sys.argv[1:]))\n"
    )
    arguments = ["evaluate_bag", str(bag), "--out", str(tmp_path / "out"), *NULL]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    assert done.returncode == 128 + signal.SIGINT
    report = report_of(tmp_path / "out")
    assert report["interrupted"]
    assert 1 <= report["pairs"]["fused"] <= 11
    assert (tmp_path / "out" / "index.html").is_file()


def test_compressed_images_are_evaluated_too(tmp_path):
    plan = small_plan(
        tmp_path / "bag", seconds=1, thermal={"compressed": True}, rgb={"compressed": True}
    )
    make_bag(plan)
    assert evaluate(plan.output, tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    assert report["streams"]["thermal"]["encodings"] == ["png 80x64"]
    assert report["pairs"]["share"]["used"] == 1
    assert np.isfinite(report["quality"]["rows"]["rgb"]["VIF"])


def test_a_model_with_the_name_of_a_row_is_told_from_it(bag, tmp_path):
    model = write_fusion_onnx(tmp_path / "average.onnx")
    more = ["--backend", "onnxruntime_cpu", "--model", model, "--every", "8"]
    assert evaluate(bag, tmp_path / "out", *more) == 0
    rows = report_of(tmp_path / "out")["quality"]["rows"]
    assert "average.onnx" in rows
    # The model averages, too, but for colours that are converted there and back.
    assert rows["average.onnx"]["VIF"] == pytest.approx(rows["average"]["VIF"], rel=0.1)
    assert f'method: "{model}"' in (tmp_path / "out" / "settings.yaml").read_text()
