# SPDX-License-Identifier: AGPL-3.0-only
"""Simulated and file-backed cameras: the world they show, its ground truth, and their node."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fusion_ros.cameras.files import FilesError, PairFolder
from fusion_ros.cameras.street import scene
from fusion_ros.cameras.street.scene import PERSON_IN_THE_DARK, CameraModel
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal, to_celsius

SMALL_RGB = CameraModel.from_fov(160, 120, 60.0)
SMALL_THERMAL = CameraModel.from_fov(96, 80, 66.0)


@pytest.fixture(scope="module")
def night():
    return SimulatedRgb(scene_name="night"), SimulatedThermal(scene_name="night")


def _inside(picture: np.ndarray, box, margin: int = 0) -> np.ndarray:
    x0, y0 = max(0, round(box.x) - margin), max(0, round(box.y) - margin)
    return picture[y0 : round(box.y + box.height) + margin, x0 : round(box.x + box.width) + margin]


def _person_in_the_dark(camera, time_s: float):
    return next(t for t in camera.truth(time_s) if t.name == PERSON_IN_THE_DARK)


# --- the simulated world ---------------------------------------------------------------------


def test_two_processes_with_the_same_seed_and_time_show_the_same_world():
    for make, camera in ((SimulatedRgb, SMALL_RGB), (SimulatedThermal, SMALL_THERMAL)):
        one, other = make(camera, "day", 3), make(camera, "day", 3)
        other.render(11.0)  # what was drawn before must not matter
        assert np.array_equal(one.render(5.25), other.render(5.25))
    assert scene.moment(3, "tour", 5.25) == scene.moment(3, "tour", 5.25)


def test_another_seed_and_another_time_show_another_frame():
    camera = SimulatedRgb(SMALL_RGB, "day", 0)
    frame = camera.render(5.0).astype(int)
    assert np.abs(frame - SimulatedRgb(SMALL_RGB, "day", 1).render(5.0)).mean() > 5
    assert not np.array_equal(frame, camera.render(5.0 + 1 / 30))


@pytest.mark.parametrize("name", scene.SCENES)
def test_every_condition_renders_for_both_cameras(name):
    rgb, thermal = SimulatedRgb(SMALL_RGB, name), SimulatedThermal(SMALL_THERMAL, name)
    for time_s in (0.0, 3.7, 13.4):
        frame, counts = rgb.render(time_s), thermal.render(time_s)
        assert frame.shape == (120, 160, 3) and frame.dtype == np.uint8
        assert counts.shape == (80, 96)
        assert counts.dtype == {"mono8": np.uint8, "mono16": np.uint16}[thermal.encoding]
        assert frame.std() > 3
        celsius = thermal.celsius(time_s)
        assert -40 < celsius.min() and celsius.max() < 70


def test_the_faint_scene_has_8_bit_thermal_within_few_grey_levels():
    thermal = SimulatedThermal(SMALL_THERMAL, "faint")
    assert thermal.encoding == "mono8"
    low, high = np.percentile(thermal.render(2.0), (0.5, 99.5))
    assert 5 < high - low < 30


def test_the_tour_passes_through_all_conditions_without_a_jump():
    times = np.arange(0, len(scene.CONDITIONS) * scene.TOUR_STOP_S, 0.1)
    weather = [scene.weather("tour", t) for t in times]
    assert {w.first for w in weather} == set(scene.CONDITIONS)
    exposure = np.array([w.climate.exposure * sum(w.climate.ambient) for w in weather])
    assert np.abs(np.diff(exposure)).max() < 0.5


def test_an_unknown_scene_names_the_choices():
    with pytest.raises(ValueError, match="day, dusk, night, .*noon, tour"):
        SimulatedRgb(SMALL_RGB, "fog")


def test_a_person_in_the_dark_is_invisible_in_rgb_and_bright_in_thermal(night):
    rgb, thermal = night
    frames = np.stack([rgb.render(1.0 + i / 30).astype(float).mean(axis=2) for i in range(8)])
    box = _person_in_the_dark(rgb, 1.0)
    noise = np.stack([_inside(f, box) for f in frames]).std(axis=0).mean()
    patch = _inside(frames[0], box, 12)
    person = _inside(frames[0], box)
    ring = (patch.sum() - person.sum()) / (patch.size - person.size)
    assert abs(person.mean() - ring) < noise

    celsius = to_celsius(thermal.render(1.0))
    box = _person_in_the_dark(thermal, 1.0)
    patch, person = _inside(celsius, box, 6), _inside(celsius, box)
    ring = (patch.sum() - person.sum()) / (patch.size - person.size)
    assert np.percentile(person, 75) > ring + 6


def test_by_day_the_same_person_is_visible_in_rgb():
    rgb = SimulatedRgb(scene_name="day")
    patch = _inside(rgb.render(1.0), _person_in_the_dark(rgb, 1.0)).astype(float)
    assert patch.std() > 25


@pytest.mark.parametrize("text", ["CAFE", "STOP"])
def test_a_sign_is_readable_in_rgb_and_invisible_in_thermal(night, text):
    rgb, thermal = night
    sign = next(s for s in scene.SIGNS if s.text == text)
    u, v = rgb.camera.project(np.array([sign.x, sign.y, sign.z]))
    half = 0.36 * rgb.camera.focal / sign.z * np.array([sign.width, sign.height])
    rows, columns = (slice(round(c - h), round(c + h)) for c, h in ((v, half[1]), (u, half[0])))
    grey = cv2.cvtColor(rgb.render(13.0), cv2.COLOR_BGR2GRAY)[rows, columns]
    _level, ink = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    assert grey[ink == 1].mean() - grey[ink == 0].mean() > 50

    registered = cv2.warpPerspective(
        to_celsius(thermal.render(13.0)).astype(np.float32), scene.thermal_to_rgb(), (640, 480)
    )[rows, columns]
    # The ink cannot be told from the board; what is left is the texture of what is behind.
    assert abs(registered[ink == 1].mean() - registered[ink == 0].mean()) < 0.8


# --- ground truth ----------------------------------------------------------------------------


def test_the_homography_puts_a_hot_person_into_its_rgb_box(night):
    rgb, thermal = night
    homography = scene.thermal_to_rgb(thermal.camera, rgb.camera)
    checked = 0
    for time_s in np.arange(0.0, 24.0, 1.0):
        hot = (to_celsius(thermal.render(time_s)) > 17).astype(np.uint8)
        hot = cv2.warpPerspective(hot, homography, (640, 480))
        boxes = rgb.truth(time_s)
        for box in boxes:
            alone = all(
                b is box or b.x > box.x + box.width + 16 or b.x + b.width < box.x - 16
                for b in boxes
            )
            if box.kind != "person" or box.visible < 0.97 or box.distance > 12 or not alone:
                continue
            rows, columns = np.nonzero(_inside(hot, box, 12))
            assert abs(rows.min() - 12) < 6, box  # the head
            assert abs(columns.min() - 12) < 9, box
            assert abs(columns.max() - 12 - box.width) < 9, box
            checked += 1
    assert checked >= 8


def test_boxes_lie_within_the_picture_and_visibility_is_a_share():
    camera = SimulatedRgb(SMALL_RGB, "day")
    kinds = set()
    for time_s in np.arange(0, 24, 1.5):
        for box in camera.truth(time_s):
            kinds.add(box.kind)
            assert 0 <= box.x and box.x + box.width <= camera.camera.width - 1
            assert 0 <= box.y and box.y + box.height <= camera.camera.height - 1
            assert 0 <= box.visible <= 1
    assert {"person", "car", "bus"} <= kinds


def test_a_person_behind_another_one_is_less_visible():
    camera = SimulatedRgb(SMALL_RGB, "day")
    lowest = 1.0
    for time_s in np.arange(0, 24, 0.25):
        boxes = camera.truth(time_s)
        for box in boxes:
            inside = box.x > 1 and box.x + box.width < 158
            if box.name == PERSON_IN_THE_DARK and inside:
                nearer = [
                    b
                    for b in boxes
                    if b.distance < box.distance
                    and b.x < box.x + box.width
                    and b.x + b.width > box.x
                ]
                assert nearer or box.visible > 0.9  # edges are whole pixels
                lowest = min(lowest, box.visible)
    assert lowest < 0.75


def test_intrinsics_reproduce_the_projection():
    camera = CameraModel.from_fov(333, 251, 70.0)
    point = np.array([0.8, 0.4, 7.0])
    ray = camera.matrix @ (point[0], scene.CAMERA_HEIGHT - point[1], point[2])
    assert camera.project(point) == pytest.approx(ray[:2] / ray[2])


# --- files -----------------------------------------------------------------------------------


def _write_pairs(root: Path, pairs: dict) -> Path:
    for stem, (thermal, visible) in pairs.items():
        for folder, suffix, image in (("ir", ".png", thermal), ("vi", ".bmp", visible)):
            (root / folder).mkdir(exist_ok=True)
            if image is not None:
                assert cv2.imwrite(str(root / folder / (stem + suffix)), image)
    return root


def test_pairs_of_changing_size_and_depth_come_in_the_order_of_their_stems(tmp_path):
    deep = np.full((20, 30), 30000, np.uint16)
    colour = np.full((40, 60, 3), (10, 20, 30), np.uint8)
    folder = PairFolder(
        _write_pairs(
            tmp_path,
            {
                "b": (deep, colour),
                "a": (np.full((7, 9, 3), 50, np.uint8), np.zeros((7, 9), np.uint8)),
            },
        )
    )
    assert folder.stems == ["a", "b"] and len(folder) == 2
    assert folder.thermal(0).shape == (7, 9) and folder.thermal(0).dtype == np.uint8
    assert folder.visible(0).shape == (7, 9, 3)
    assert np.array_equal(folder.thermal(1), deep)
    assert np.array_equal(folder.visible(3), colour)  # it goes round


def test_a_missing_folder_says_what_was_expected(tmp_path):
    with pytest.raises(FilesError, match="ir/ and vi/"):
        PairFolder(tmp_path / "nowhere")
    (tmp_path / "ir").mkdir()
    with pytest.raises(FilesError, match="no images"):
        PairFolder(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_hidden_files_and_those_of_other_systems_are_no_images(tmp_path, suffix):
    image = np.zeros((4, 4), np.uint8)
    _write_pairs(tmp_path, {"a": (image, image), "b": (image, image)})
    for name in ("ir/._a", "vi/._b", "ir/._b", "vi/.hidden"):
        (tmp_path / name).with_suffix(suffix).write_bytes(b"\0\5\x16\7")
    for name in ("ir/.DS_Store", "vi/Thumbs.db", "vi/desktop.ini", "ir/classes.txt"):
        (tmp_path / name).write_bytes(b"x")
    folder = PairFolder(tmp_path)
    assert folder.stems == ["a", "b"]
    assert folder.thermal(0).shape == (4, 4)


@pytest.mark.parametrize("names", [("Ir", "Vis"), ("IR", "VI"), ("infrared", "visible")])
def test_folders_are_known_as_published_sets_spell_them(tmp_path, names):
    _write_pairs(tmp_path, {"a": (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))})
    for name, new in zip(("ir", "vi"), names):
        (tmp_path / name).rename(tmp_path / new)
    assert PairFolder(tmp_path).stems == ["a"]
    inner = tmp_path.parent / f"{tmp_path.name}_outer"
    inner.mkdir()
    for name, kind in zip(names, ("ir", "vi")):
        (inner / "train").mkdir(exist_ok=True)
        (tmp_path / name).rename(inner / "train" / kind)
    with pytest.raises(FilesError, match="one of the folders in it, train"):
        PairFolder(inner)


def test_stems_without_a_partner_are_named(tmp_path):
    image = np.zeros((4, 4), np.uint8)
    _write_pairs(tmp_path, {"both": (image, image), "lonely": (image, None)})
    with pytest.raises(FilesError, match=r"only in ir/ \(lonely\)"):
        PairFolder(tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path):
    image = np.zeros((4, 4), np.uint8)
    folder = PairFolder(_write_pairs(tmp_path, {"a": (image, image)}))
    (tmp_path / "ir" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(FilesError, match="a.png"):
        folder.thermal(0)
