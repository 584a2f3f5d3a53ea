# SPDX-License-Identifier: AGPL-3.0-only
"""Evaluation: the published figures again, rows of one's own, table, JSON, report and cards."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest

for module in ("torch", "omegaconf", "onnx", "tqdm"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

from support import write_fusion_onnx  # noqa: E402

from fusion_models import WEIGHTS_DIR, list_models  # noqa: E402
from fusion_models.evaluation.evaluate import (  # noqa: E402
    METRICS,
    MORE,
    FusedFolder,
    Score,
    evaluate_set,
)  # fmt: skip
from fusion_models.evaluation.metrics import evaluate, qabf, vif  # noqa: E402
from fusion_models.evaluation.objects import Objects, labelled_objects  # noqa: E402
from fusion_models.evaluation.rules import RULES, average, maximum  # noqa: E402
from fusion_models.pairs import DataError, find_sets  # noqa: E402
from fusion_ros.size import Size  # noqa: E402
from training.evaluate import CARDED, load_networks, main, open_sets  # noqa: E402

COMMITTED = Path(__file__).resolve().parents[3] / "docs" / "evaluation.json"


def picture(seed, size=(70, 94)):
    noise = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


@pytest.fixture
def data(tmp_path):
    """Three sets of two pairs, one of them for training; visible images have colour."""
    for number, name in enumerate(("city/test", "city/train", "medical/ct")):
        for kind in ("ir", "vi"):
            (tmp_path / "data" / name / kind).mkdir(parents=True)
        for stem in range(2):
            seed = 10 * number + 3 * stem
            folder = tmp_path / "data" / name
            cv2.imwrite(str(folder / "ir" / f"{stem}.png"), picture(seed))
            colour = np.dstack([picture(seed + 1), picture(seed + 1), picture(seed + 2)])
            cv2.imwrite(str(folder / "vi" / f"{stem}.png"), colour)
    return tmp_path / "data"


def run(data, tmp_path, *arguments):
    output = tmp_path / "out"
    settings = [f"data={data}", f"output={output}", "threads=1", "pictures=1", "simulated=0"]
    assert main([*settings, "workers=0", *arguments]) == 0
    return json.loads((output / "evaluation.json").read_text())


@pytest.mark.slow
def test_average_and_maximum_have_the_published_figures_on_tno(shared_data):
    published = json.loads((shared_data / "peers" / "results.json").read_text())["tno_test"]
    pairs = list(find_sets(shared_data / "data", ["tno/test"])[0])
    for method, fuse in (("average", average), ("max", maximum)):
        rows = [evaluate(fuse(pair), pair.ir, pair.vi).as_dict() for pair in pairs]
        for name, value in published[method].items():
            mean = np.mean([row[name] for row in rows])
            assert mean == pytest.approx(value, abs=1e-3), f"{method} {name}"


def test_a_pool_of_processes_finds_the_same_figures(data, tmp_path):
    alone = run(data, tmp_path, "methods=", "sets=city/test")
    assert run(data, tmp_path, "methods=", "sets=city/test", "workers=2")["sets"] == alone["sets"]


def test_a_pair_of_two_sizes_is_named(data):
    cv2.imwrite(str(data / "medical/ct/ir/1.png"), picture(0, (80, 80)))
    with pytest.raises(DataError, match="medical/ct/1: ir is"):
        evaluate_set(find_sets(data, ["medical/ct"])[0], {})


def test_a_network_runs_as_on_the_robot_beside_the_rules(data, tmp_path):
    """A network that is the pixel-wise maximum has the figures of the maximum, at an odd size."""
    model = write_fusion_onnx(tmp_path / "mine.onnx", "max")
    found = run(data, tmp_path, f"methods=mine:{model}")
    assert list(found["sets"]) == ["city/test", "medical/ct"]
    rows = found["sets"]["city/test"]["rows"]
    assert list(rows) == [*RULES, "mine"]
    assert rows["mine"] == rows["max"] != rows["average"]


def test_the_json_says_what_was_measured_and_on_what(data, tmp_path):
    model = write_fusion_onnx(tmp_path / "mine.onnx", "max")
    found = run(data, tmp_path, f"methods={model}", "sets=city/test")
    assert found["command"].startswith("python training/evaluate.py data=")
    assert found["host"]["cores"] >= 1 and "onnxruntime" in found["versions"]
    assert len(found["models"]["mine"]["sha256"]) == 64
    assert "onnxruntime" in found["models"]["mine"]["engine"]
    row = found["sets"]["city/test"]["rows"]["mine"]
    assert set(row["images"]) == {"0", "1"}
    for name in (*METRICS, *(name for name, _ in MORE.values())):
        each = [image[name] for image in row["images"].values()]
        assert row["mean"][name] == pytest.approx(np.mean(each), abs=2e-5)
    sources = found["sets"]["city/test"]["sources"]["over_exposure"]
    excess = row["mean"]["over_exposure"] - row["mean"]["over_exposure_excess"]
    assert sources == pytest.approx(excess, abs=2e-5)
    assert datetime.fromisoformat(found["date"]).tzinfo


def test_fused_images_of_others_are_a_row_where_they_have_all_stems(data, tmp_path, capsys):
    peer = tmp_path / "peer" / "city" / "test"
    peer.mkdir(parents=True)
    for pair in find_sets(data, ["city/test"])[0]:
        cv2.imwrite(str(peer / f"{pair.stem}.png"), maximum(pair))
    found = run(data, tmp_path, "methods=", f"peer=Theirs:{tmp_path / 'peer'}")
    rows = found["sets"]["city/test"]["rows"]
    assert rows["Theirs"] == rows["max"]
    assert list(found["sets"]["medical/ct"]["rows"]) == list(RULES)


def test_a_peer_without_all_images_is_left_out_and_one_without_any_refused(data, tmp_path, capsys):
    (tmp_path / "peer").mkdir()
    cv2.imwrite(str(tmp_path / "peer" / "0.png"), picture(0))
    assert FusedFolder(tmp_path / "peer", find_sets(data)[0]).missing == ["1"]
    assert (
        main(["methods=", f"data={data}", "simulated=0", f"peer=Theirs:{tmp_path / 'peer'}"]) == 2
    )
    message = capsys.readouterr()
    assert "city/test without Theirs: 1 of 2 missing, say 1" in message.out
    assert "images of no set" in message.err and "<stem>.png" in message.err


@pytest.mark.parametrize(("bad", "told"), [
    ("methods=nonsense", "unknown method 'nonsense'"),
    ("method=baffm", "unknown settings method; use methods"),
    ("sets=mars/test", "no set mars/test"),
    ("methods=average:x.onnx", "two rows named 'average'"),
])  # fmt: skip
def test_a_wrong_setting_is_named_in_one_line(data, tmp_path, capsys, bad, told):
    assert main([f"data={data}", f"output={tmp_path / 'out'}", bad]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_table_is_markdown_with_a_line_a_method(data, capsys):
    text = evaluate_set(find_sets(data)[0], {"copy": lambda pair: pair.vi}).as_markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3 + len(RULES) and len({len(line) for line in table}) == 1
    assert [cell.strip() for cell in table[0].split("|")[2:13]] == list(METRICS)
    copy = [cell.strip() for cell in table[-1].split("|")]
    assert copy[1] == "copy"
    assert copy[13 + list(MORE).index("to vi")] == "0.000" != copy[13 + list(MORE).index("to ir")]


def test_ranks_are_means_over_the_metrics(data):
    result = evaluate_set(find_sets(data)[0], {"same": maximum})
    ranks = result.ranks()
    assert ranks["same"] == ranks["max"]
    assert 1 <= min(ranks.values()) <= max(ranks.values()) <= 1 + len(RULES)


def test_the_report_needs_no_other_file_and_escapes_names(data, tmp_path):
    model = write_fusion_onnx(tmp_path / "mine.onnx")
    run(data, tmp_path, f"methods=<b>:{model}", "sets=city/test")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 6  # both sources and four rows
    assert "http" not in page and "&lt;b&gt;" in page and "<b></b>" not in page
    assert 'id="city-test"' in page and 'href="#city-test"' in page


def test_pictures_have_the_colours_of_the_visible_image(data):
    pair = next(iter(find_sets(data)[0]))
    shown = cv2.imread(str(pair.visible_file))
    assert np.abs(pair.colour(pair.vi).astype(int) - shown).max() <= 2
    darker = cv2.cvtColor(pair.colour(average(pair)), cv2.COLOR_BGR2YCrCb)
    assert np.median(np.abs(darker[..., 0].astype(int) - average(pair))) <= 1


def test_means_go_into_the_card_on_request_and_nothing_else_changes(data, tmp_path):
    model = write_fusion_onnx(tmp_path / "mine.onnx", metadata={"method": "mine", "metrics": "{}"})
    before = model.read_bytes()
    (tmp_path / "mine.json").write_text('{"method": "mine", "metrics": {"tno/test": {"EN": 7.0}}}')
    found = run(data, tmp_path, f"methods={model}", "cards=true")
    card = json.loads((tmp_path / "mine.json").read_text())
    mean = found["sets"]["city/test"]["rows"]["mine"]["mean"]
    assert card["method"] == "mine" and model.read_bytes() == before
    assert set(card["metrics"]) == {"tno/test", "city/test", "medical/ct"}
    assert card["metrics"]["city/test"] == {
        name: mean[name] for name in (*METRICS, "ssim_range_2", "hidden")
    }


def test_cards_take_means_of_whole_sets_only(data, tmp_path, capsys):
    model = write_fusion_onnx(tmp_path / "mine.onnx")
    arguments = [f"data={data}", f"methods={model}", "cards=true"]
    assert main([*arguments, "limit=1"]) == 2 and "whole sets" in capsys.readouterr().err
    assert main(arguments) == 2 and "mine.json" in capsys.readouterr().err


def test_processing_sizes_are_rows_of_their_own(data, tmp_path):
    model = write_fusion_onnx(tmp_path / "mine.onnx", "max")
    found = run(data, tmp_path, f"methods={model}", "sets=city/test", "processing_size=0,47,400")
    rows = found["sets"]["city/test"]["rows"]
    assert list(rows) == [*RULES, "mine", "mine@47", "mine@400"]
    assert rows["mine"]["mean"] == rows["mine@400"]["mean"] != rows["mine@47"]["mean"]
    assert rows["mine@47"]["mean"]["VIF"] == pytest.approx(rows["mine"]["mean"]["VIF"], rel=0.1)


@pytest.mark.parametrize("value", ["half", "0,20", "320,", "0.5", "320,320"])
def test_an_impossible_processing_size_is_refused(data, tmp_path, capsys, value):
    model = write_fusion_onnx(tmp_path / "mine.onnx", "max")
    assert main([f"data={data}", f"methods={model}", f"processing_size={value}"]) == 2
    said = capsys.readouterr().err
    assert "processing_size" in said or "two rows named 'mine@320'" in said


def test_cards_hold_the_figures_of_full_size_only(data, tmp_path, capsys):
    model = write_fusion_onnx(tmp_path / "mine.onnx", "max")
    arguments = [f"data={data}", f"methods={model}", "cards=true", "processing_size=320"]
    assert main(arguments) == 2 and "full size" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["baffm", "caf", "cfi", "refinefuse"])
def test_fusing_at_half_size_loses_at_most_a_twentieth_of_vif_and_qabf(shared_data, method):
    networks = load_networks(method, "onnxruntime", "fp32", 0, "0,320")
    assert list(networks) == [method, f"{method}@320"]
    pairs = list(find_sets(shared_data / "data", ["msrs/test"], limit=6)[0])
    fused = [[fuse(pair) for pair in pairs] for fuse in networks.values()]
    for metric in (vif, qabf):
        full, half = (
            np.mean([metric(image, pair.ir, pair.vi) for image, pair in zip(images, pairs)])
            for images in fused
        )
        assert half > 0.95 * full, metric.__name__


@pytest.fixture
def labelled(data):
    """The set city/test with one labelled object in its first pair that thermal alone shows."""
    folder = data / "city/test"
    ir = np.full((70, 94), 50, np.uint8)
    ir[20:50, 30:50] = 170
    cv2.imwrite(str(folder / "ir" / "0.png"), ir)
    cv2.imwrite(str(folder / "vi" / "0.png"), np.full((70, 94, 3), 60, np.uint8))
    boxes = folder / "boxes" / "infrared"
    boxes.mkdir(parents=True)
    (folder / "boxes" / "visible").mkdir()
    line = f"0 {40 / 94:.6f} {35 / 70:.6f} {20 / 94:.6f} {30 / 70:.6f}\n"
    (boxes / "0.txt").write_text(line)
    (boxes / "1.txt").write_text("")
    return data


OBJECTS = ("objects", "lost", "gone")


def test_objects_that_a_method_loses_are_counted_and_shown(labelled, tmp_path):
    dark = write_fusion_onnx(tmp_path / "visible_only.onnx", "vi")
    found = run(labelled, tmp_path, f"methods={dark}", "sets=city/test")
    rows = found["sets"]["city/test"]["rows"]
    assert {name: [row["mean"][key] for key in OBJECTS] for name, row in rows.items()} == {
        "visible": [1, 1, 1], "infrared": [1, 0, 0], "average": [1, 0, 0], "max": [1, 0, 0],
        ".8 ir + .2 vi": [1, 0, 0], "visible_only": [1, 1, 1],
    }  # fmt: skip
    assert rows[".8 ir + .2 vi"]["mean"]["kept"] == pytest.approx(0.8, abs=0.01)
    assert rows["visible_only"]["images"]["0"]["kept"] == [0]
    assert (
        rows["visible_only"]["images"]["0"]["hidden"] > 0.05 > rows["max"]["images"]["0"]["hidden"]
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("contrast 120 in thermal, 0 in the visible, 0 fused") == 1
    assert "visible_only loses 1 of 1 objects" in page
    assert page.index(">lost</th>") < page.index(">EN</th>"), "what matters most comes first"


def test_masks_come_before_boxes_and_a_broken_one_is_named(labelled):
    folder = labelled / "city/test"
    mask = np.zeros((70, 94), np.uint8)
    mask[20:50, 30:50] = 7
    (folder / "masks").mkdir()
    for stem in "01":
        cv2.imwrite(str(folder / "masks" / f"{stem}.png"), mask)
    (pair_set,) = find_sets(labelled, ["city/test"])
    objects = labelled_objects(pair_set)
    assert objects["0"].masks is not None and objects["0"].corners is None
    pair = next(iter(pair_set))
    (kept,) = objects["0"].kept(pair.ir, pair.ir, pair.vi)
    assert kept.box == (30, 20, 50, 50) and kept.ir == 120 and kept.ratio == 1
    (folder / "masks" / "1.png").unlink()
    with pytest.raises(DataError, match="1.png: expected an 8-bit grey image"):
        labelled_objects(pair_set)


def test_kept_and_lost_are_those_of_the_reference_controls(shared_data):
    """The reference's own functions on the same boxes of msrs/test, for four of its controls."""
    specification = importlib.util.spec_from_file_location(
        "controls", shared_data / "peers" / "controls.py"
    )
    controls = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(controls)
    (pair_set,) = find_sets(shared_data / "data", ["msrs/test"])
    objects = labelled_objects(pair_set)
    theirs = {name: [] for name in ("visible", "infrared", "max", ".8 ir + .2 vi")}
    ours = {name: [] for name in theirs}
    for pair in pair_set:
        ir, vi = pair.ir.astype(np.float32), pair.vi.astype(np.float32)
        union = controls.union_boxes(pair_set.root, pair.stem, ir.shape[::-1])
        for name in theirs:
            fused = RULES[name](pair)
            boxes = [box for _, box in union]
            theirs[name] += controls.kept(fused.astype(np.float32), ir, vi, boxes)
            there = objects.get(pair.stem, Objects())
            ours[name] += [one.ratio for one in there.kept(fused, pair.ir, pair.vi)]
    for name, ratios in theirs.items():
        assert len(ours[name]) == len(ratios) > 200, name
        np.testing.assert_allclose(ours[name], ratios, atol=1e-3, err_msg=name)


def test_simulated_sets_are_drawn_with_masks_and_frames_and_named_sets_alone_are_read(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("training.evaluate.SIMULATED_SIZE", Size(200, 150))
    sets = open_sets("none", "simulated,simulated_video/night", "", 0, 1, tmp_path)
    assert [s.name for s in sets] == ["simulated", "simulated_video/night"]
    stills, film = sets
    assert sorted(stem.partition("_")[0] for stem in stills.stems) == [
        "faint", "glare", "noon", "snow",
    ]  # fmt: skip
    assert film.stems == ["00000", "00001"]
    row = evaluate_set(stills.limited(2), {}).rows[0]
    assert row.mean["objects"] == sum(one["objects"] for one in row.by_kind().values()) > 0
    with pytest.raises(ValueError, match="no set simulated_video/mars; simulated are"):
        open_sets("none", "simulated_video/mars", "", 0, 1, tmp_path)


def test_a_video_is_read_when_asked_for_and_measured_over_time(data, tmp_path):
    folder = data / "m3svd" / "0101"
    for kind in ("ir", "vi"):
        (folder / kind).mkdir(parents=True)
    street = cv2.resize(picture(5, (140, 188)), (188, 140))
    for frame in range(6):
        still = street[20:90, 20 + frame : 114 + frame]
        for kind in ("ir", "vi"):
            cv2.imwrite(str(folder / kind / f"{frame:03d}.png"), still)
    assert "m3svd/0101" not in run(data, tmp_path, "methods=")["sets"]
    flickering = FlickerEachFrame()
    (pair_set,) = open_sets(data, "m3svd", "", 0, 0, tmp_path)
    assert pair_set.name == "m3svd/0101"
    rows = {r.method: r for r in evaluate_set(pair_set, {"mine": flickering}, video=True).rows}
    assert rows["average"].over_time.flicker == pytest.approx(0, abs=0.05)
    assert rows["mine"].mean["flicker"] == pytest.approx(20, abs=2)
    assert rows["mine"].mean["brightness"] == pytest.approx(20, abs=2)
    assert list(rows["mine"].scores) == ["000", "005"]


class FlickerEachFrame:
    """A method whose output gets brighter and darker by 20 grey levels in turns."""

    def __init__(self):
        self.frames = 0

    def __call__(self, pair):
        self.frames += 1
        return (pair.vi * 0.8 + 20 * (self.frames % 2)).astype(np.uint8)


def test_figures_of_videos_are_of_the_committed_weights_and_in_their_cards():
    committed = json.loads(COMMITTED.with_name("evaluation_m3svd.json").read_text())
    assert sorted(committed["models"]) == sorted(list_models())
    for name, model in committed["models"].items():
        onnx = WEIGHTS_DIR / model["file"]
        assert hashlib.sha256(onnx.read_bytes()).hexdigest() == model["sha256"], (
            f"evaluate again: sets=m3svd cards=true, {name} has other weights"
        )
        card = json.loads((WEIGHTS_DIR / f"{name}.json").read_text())["metrics"]
        for set_name, result in committed["sets"].items():
            for key in ("flicker", "brightness"):
                wanted = result["rows"][name]["mean"][key]
                assert card[set_name][key] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.slow
def test_committed_figures_come_from_the_committed_weights(shared_data, tmp_path):
    """Three pairs of each set, fused again by the ONNX files and compared with the JSON."""
    if not COMMITTED.is_file():
        pytest.skip(f"no {COMMITTED.name} committed yet")
    committed = json.loads(COMMITTED.read_text())
    networks = load_networks("shipped", "onnxruntime", "fp32", 0)
    assert set(committed["models"]) == set(networks)
    for name, network in networks.items():
        assert committed["models"][name]["sha256"] == network.as_dict()["sha256"], name
        card = json.loads((WEIGHTS_DIR / f"{name}.json").read_text())["metrics"]
        for set_name, result in committed["sets"].items():
            mean = result["rows"][name]["mean"]
            wanted = {key: mean[key] for key in CARDED if key in mean}
            assert {"hidden", *METRICS} <= set(wanted)
            assert card[set_name] == pytest.approx(wanted, abs=1e-3)
    # Videos are of the same scenes as `simulated`, and drawing them takes long.
    sets = [name for name in committed["sets"] if not name.startswith("simulated_video")]
    names = ",".join(sets)
    drawn = int("simulated" in sets)
    for pair_set in open_sets(shared_data / "data", names, "", 0, drawn, tmp_path):
        rows = committed["sets"][pair_set.name]["rows"]
        measured = [pair for pair in pair_set if pair.stem in rows["max"]["images"]]
        step = max(1, len(measured) // 3)
        objects = labelled_objects(pair_set)
        assert measured
        for pair in measured[::step][:3]:
            for name, network in networks.items():
                score = Score.of(network(pair), pair, objects.get(pair.stem, Objects()))
                written = dict(rows[name]["images"][pair.stem])
                kept = written.pop("kept", [])
                where = f"{name} {pair_set.name}/{pair.stem}"
                assert score.as_dict() == pytest.approx(written, abs=1e-3), where
                assert [one.ratio for one in score.kept] == pytest.approx(kept, abs=0.02), where
