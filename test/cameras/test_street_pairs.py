# SPDX-License-Identifier: AGPL-3.0-only
"""Simulated still pairs: what each kind shows, masks and boxes, and the files of the exporter."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fusion_models.pairs import list_pairs, read_luminance
from fusion_ros.cameras.street import scene
from fusion_ros.cameras.street.export import contact_sheet, export, export_video, main
from fusion_ros.cameras.street.kinds import BLOCK, CLASSES, KINDS, ORDINARY, render, variant
from fusion_ros.cameras.street.scene import CLIMATES, CameraModel, Weather
from fusion_ros.cameras.street.simulated import SimulatedRgb
from fusion_ros.size import Size

SMALL = Size(200, 150)


@pytest.fixture(scope="module")
def scenes():
    """One pair of each variant of each kind."""
    return [render(kind, seed, SMALL) for kind in KINDS for seed in (2, BLOCK + 1)]


def _persons(found):
    return [target for target in found.targets if target.kind == "person"]


def _of(scenes, kind, which=""):
    return [s for s in scenes if s.kind == kind and (not which or s.variant == which)]


# --- what the kinds show ---------------------------------------------------------------------


@pytest.mark.parametrize("which", ["sun", "headlamps"])
def test_in_glare_thermal_shows_persons_where_the_visible_is_white(scenes, which):
    for found in _of(scenes, "glare", which):
        grey = cv2.cvtColor(found.visible, cv2.COLOR_BGR2GRAY)
        hidden = [
            found.mask(index)
            for index, target in enumerate(found.targets)
            if target.kind == "person" and target.thermal_contrast > 30 and not target.in_visible
        ]
        assert any(grey[mask].mean() > 200 for mask in hidden)


def test_on_snow_persons_are_bright_in_thermal_and_dark_in_the_visible(scenes):
    for found in _of(scenes, "snow"):
        persons = _persons(found)
        opposed = [p for p in persons if p.thermal_contrast > 15 and p.visible_contrast < -15]
        assert len(opposed) >= 2
        assert found.visible[-20:].mean() > 150  # the snow


def test_faint_thermal_lies_within_few_grey_levels_and_gain_would_show_persons(scenes):
    for found in _of(scenes, "faint"):
        low, high = np.percentile(found.thermal, (0.5, 99.5))
        assert 8 <= high - low <= 32
        assert any(p.thermal_contrast > 40 and not p.in_visible for p in _persons(found))


def test_at_noon_persons_are_no_warmer_than_the_road_and_plain_in_the_visible(scenes):
    for found in _of(scenes, "noon", "road"):
        assert any(p.in_visible and p.thermal_contrast < 15 for p in _persons(found))


def test_before_a_bright_wall_thermal_shows_persons_that_the_visible_does_not(scenes):
    for found in _of(scenes, "noon", "wall"):
        assert any(p.thermal_contrast > 15 and not p.in_visible for p in _persons(found))


def test_variants_alternate_from_block_to_block():
    assert [variant("noon", seed) for seed in (0, BLOCK - 1, BLOCK, 2 * BLOCK)] == [
        "road",
        "road",
        "wall",
        "road",
    ]
    assert variant("snow", 0) == ""


# --- pictures, masks and boxes ---------------------------------------------------------------


def test_the_same_kind_seed_and_size_give_the_same_pair_and_another_seed_another():
    first = render("night", 3, Size(96, 72))
    other = render("night", 4, Size(96, 72))
    for seed in (BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK):  # what is kept of streets is thrown out
        render("night", seed, Size(32, 32))
    again = render("night", 3, Size(96, 72))
    for name in ("thermal", "visible", "masks"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert first.targets == again.targets
    assert not np.array_equal(first.visible, other.visible)


def test_boxes_are_tight_around_the_masks_and_each_object_has_one(scenes):
    for found in scenes:
        assert found.thermal.shape == found.masks.shape == found.visible.shape[:2] == SMALL.shape
        assert found.thermal.dtype == found.visible.dtype == found.masks.dtype == np.uint8
        assert set(np.unique(found.masks)) == set(range(len(found.targets) + 1))
        for index, (left, top, right, bottom) in enumerate(found.boxes.astype(int)):
            rows, columns = np.nonzero(found.mask(index))
            assert (columns.min(), rows.min()) == (left, top)
            assert (columns.max() + 1, rows.max() + 1) == (right, bottom)
        assert all(target.in_thermal or target.in_visible for target in found.targets)


def test_masks_cover_the_pixels_that_the_object_changes():
    camera = CameraModel.from_fov(320, 240, 60.0)
    rgb = SimulatedRgb(camera, "day", climates={"day": replace(CLIMATES["day"], noise=0.0)})
    rider, bicycle = scene.cyclist("c", -1.0, 9.0, 1.2, 0.0, [0.5] * 7)
    person = scene.person("p", 1.5, 7.0, 0.3, 0.7, True, [0.3] * 7)
    weather = Weather("day", "day", 0.0, rgb_climate := CLIMATES["day"])
    assert rgb_climate.winter == 0
    without = rgb.draw(scene.arrange([], [], weather), 0.0).astype(int)
    for persons, vehicles, kinds in (([person], [], {"person"}), ([rider], [bicycle], {"bicycle"})):
        now = scene.arrange(persons, vehicles, weather)
        labels, truths = rgb.labels(now)
        moving = [k for k, t in enumerate(truths, 1) if not t.name.startswith("parked")]
        assert kinds <= {truths[k - 1].kind for k in moving}
        mask = np.isin(labels, moving)
        changed = np.abs(rgb.draw(now, 0.0) - without).max(axis=2) > 0
        # The contact shadow changes the ground below, and edges are shared between pixels.
        assert changed[mask].mean() > 0.93
        above = changed & (np.arange(240)[:, None] < np.nonzero(mask)[0].max() - 8)
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert grown[above].all()


def test_a_cyclist_is_a_person_over_a_bicycle(scenes):
    riders = 0
    for found in scenes:
        named = {target.name: target for target in found.targets}
        for name, target in named.items():
            if target.kind == "bicycle" and name.replace("bicycle", "rider") in named:
                rider = named[name.replace("bicycle", "rider")]
                assert rider.kind == "person" and rider.box[1] < target.box[1]
                riders += 1
    assert riders


def test_an_unknown_kind_names_the_choices():
    with pytest.raises(ValueError, match="glare, snow, faint, noon, day, dusk, night, smoke"):
        render("fog", 0)
    with pytest.raises(ValueError, match="0 or more"):
        render("day", -1)


# --- files -----------------------------------------------------------------------------------


def test_exported_pairs_can_be_read_with_boxes_and_masks(tmp_path):
    stems = export(tmp_path, 2, Size(120, 90), ("snow", "night"))
    assert stems == ["snow_00000D", "snow_00001D", "night_00000N", "night_00001N"]
    pairs = {thermal.stem: (thermal, visible) for thermal, visible in list_pairs(tmp_path)}
    assert sorted(pairs) == sorted(stems)
    lines = [json.loads(line) for line in (tmp_path / "objects.jsonl").read_text().splitlines()]
    assert [line["stem"] for line in lines] == stems
    assert (tmp_path / "classes.txt").read_text().split() == list(CLASSES)
    for stem, line in zip(stems, lines):
        expected = render(line["kind"], line["seed"], Size(120, 90))
        masks = cv2.imread(str(tmp_path / f"masks/{stem}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(masks, expected.masks)
        thermal, visible = pairs[stem]
        assert read_luminance(thermal, thermal=True).shape == expected.thermal.shape
        assert np.array_equal(cv2.imread(str(thermal), cv2.IMREAD_UNCHANGED), expected.thermal)
        assert np.array_equal(cv2.imread(str(visible), cv2.IMREAD_UNCHANGED), expected.visible)
        boxes = {
            name: (tmp_path / f"boxes/{name}/{stem}.txt").read_text().splitlines()
            for name in ("fusion", "infrared", "visible")
        }
        assert len(boxes["fusion"]) == len(expected.targets) == len(line["objects"])
        assert set(boxes["infrared"]) | set(boxes["visible"]) == set(boxes["fusion"])
        for text, target in zip(boxes["fusion"], expected.targets):
            kind, x, y, width, height = map(float, text.split())
            assert CLASSES[int(kind)] == target.kind
            corners = 120 * (x - width / 2), 90 * (y - height / 2), 120 * (x + width / 2)
            assert corners == pytest.approx(target.box[:3], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--pairs", "0"], "1 or more"), (["--seed", "-1"], "0 or more")],
)
def test_the_exporter_says_which_argument_cannot_be_used(tmp_path, capsys, arguments, message):
    assert main([str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_contact_sheet_shows_two_pairs_of_each_kind_and_variant(tmp_path):
    arguments = ["--sheet", "--size", "64x48", "--kinds", "noon", "day"]
    assert main([str(tmp_path / "new"), *arguments]) == 0
    sheet = cv2.imread(str(tmp_path / "new/sheet.jpg"))
    assert sheet.shape == (3 * 48, 4 * 64, 3)  # noon has two variants
    expected = contact_sheet(Size(64, 48), ("noon", "day"))
    assert np.abs(sheet.astype(int) - expected).mean() < 12  # JPEG


def test_the_exporter_writes_the_kinds_it_is_asked_for(tmp_path, capsys):
    assert main([str(tmp_path), "--pairs", "1", "--size", "64x48", "--kinds", *ORDINARY]) == 0
    assert f"4 pairs of 64x48 in {tmp_path}/" in capsys.readouterr().out
    assert len(list((tmp_path / "vi").iterdir())) == 4


def test_a_video_has_one_thermal_range_for_all_of_its_frames(tmp_path, capsys):
    arguments = [str(tmp_path), "--video", "night", "--pairs", "3", "--size", "96x64"]
    assert main(arguments) == 0
    assert "3 pairs of 96x64" in capsys.readouterr().out
    frames = [cv2.imread(str(tmp_path / "ir" / f"0000{k}.png"), 0) for k in range(3)]
    assert frames[0].shape == (64, 96)
    assert len({cv2.imread(str(tmp_path / "vi" / f"0000{k}.png")).tobytes() for k in range(3)}) == 3
    # The background keeps its level although persons move.
    medians = [float(np.median(frame)) for frame in frames]
    assert max(medians) - min(medians) <= 3
    with pytest.raises(ValueError, match="'mars'"):
        export_video(tmp_path, "mars", 1)
