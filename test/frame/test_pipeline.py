# SPDX-License-Identifier: AGPL-3.0-only
"""Pipeline: what becomes of one pair, and what may change between two."""

from __future__ import annotations

import dataclasses
import os

import cv2
import numpy as np
import pytest
from support import pair, write_detector_onnx, write_fusion_onnx

from fusion_ros.cameras.street.scene import CameraModel, thermal_to_rgb
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal
from fusion_ros.frame import registration
from fusion_ros.frame.border import SoftBorder
from fusion_ros.frame.calibration import Calibration
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pipeline import Network, Pipeline, load_detector, load_network
from fusion_ros.frame.settings import ParameterError, Settings
from fusion_ros.inference import EngineError
from fusion_ros.size import Size

GREY = np.full((48, 64, 3), 100, np.uint8)


def say_nothing(text: str) -> None:
    pass


@pytest.fixture
def average(tmp_path) -> Settings:
    path = write_fusion_onnx(tmp_path / "average.onnx")
    return Settings(method=str(path), backend="onnxruntime_cpu", threads=1)


def make(parameters: Settings) -> Pipeline:
    return Pipeline(parameters, load_network(parameters, None, say_nothing), Monitor())


def test_a_pair_becomes_an_image_of_the_rgb_size_and_every_stage_is_timed(average):
    pipeline = make(average.replace(processing_size=0))
    thermal, visible = pair(64, 48)
    assert pipeline.fuse(thermal, visible).shape == (48, 64, 3)
    assert pipeline.rgb_size == (64, 48)
    stages = {"gain", "register", "prepare", "infer", "colour"}
    assert set(pipeline.monitor.snapshot().stage_ms) == stages


@pytest.mark.parametrize(
    ("processing_size", "shape"), [(0, (480, 640)), (320, (240, 320)), (300, (232, 304))]
)
def test_an_engine_is_built_for_the_size_that_the_network_sees(
    average, gpu, monkeypatch, tmp_path, processing_size, shape
):
    monkeypatch.setenv("HOME", str(tmp_path))
    parameters = average.replace(processing_size=processing_size, backend="tensorrt")
    network = load_network(parameters, (640, 480), say_nothing)
    assert [size.shape for _, size in gpu.built] == [shape]
    load_network(parameters, None, say_nothing)
    assert len(gpu.built) == 1
    assert network.fits(parameters)
    assert not network.fits(parameters.replace(processing_size=200))
    assert not network.fits(parameters.replace(method="cfi"))


def test_a_frame_fused_small_is_of_the_rgb_size_and_its_upsampling_is_timed(average):
    pipeline = make(average.replace(processing_size=32))
    assert pipeline.fuse(*pair(64, 48)).shape == (48, 64, 3)
    stages = {"gain", "register", "prepare", "infer", "upsample", "colour"}
    assert set(pipeline.monitor.snapshot().stage_ms) == stages


def test_another_network_takes_over_between_two_frames(average, tmp_path):
    pipeline = make(average)
    thermal = np.full((48, 64), 200, np.uint8)
    assert abs(int(pipeline.fuse(thermal, GREY)[0, 0, 0]) - 150) <= 1
    other = average.replace(method=str(write_fusion_onnx(tmp_path / "max.onnx", "max")))
    pipeline.change(settings=other, network=load_network(other, pipeline.rgb_size, say_nothing))
    assert pipeline.network.method == other.method
    assert abs(int(pipeline.fuse(thermal, GREY)[0, 0, 0]) - 200) <= 1


def test_replaced_networks_are_freed_and_the_running_one_is_not(average):
    freed: list[str] = []

    def network(name: str) -> Network:
        loaded = load_network(average, None, say_nothing)
        loaded.fuser.close = lambda: freed.append(name)
        return Network(name, loaded.fuser)

    pipeline = Pipeline(average, network("first"), Monitor())
    thermal, visible = pair(64, 48)
    pipeline.fuse(thermal, visible)
    pipeline.change(network=network("never run"))
    assert not freed
    pipeline.change(network=network("third"))
    assert freed == ["never run"]
    pipeline.fuse(thermal, visible)
    assert freed == ["never run", "first"]
    pipeline.change(network=network("fourth"))
    pipeline.close()
    assert sorted(freed[2:]) == ["fourth", "third"]
    pipeline.change(network=network("too late"))
    assert "too late" in freed


def test_settings_take_effect_with_the_next_frame(average):
    pipeline = make(average.replace(gain_mode="none"))
    thermal = np.full((48, 64), 256 * 50, np.uint16)
    thermal[:, 32:] = 256 * 60
    dark = pipeline.fuse(thermal, GREY).copy()
    pipeline.change(settings=average.replace(gain_mode="linear"))
    bright = pipeline.fuse(thermal, GREY)
    assert abs(int(dark[0, 63, 0]) - 80) <= 1
    assert abs(int(bright[0, 63, 0]) - 178) <= 2


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, 29815),  # 25 degrees in hundredths of a kelvin
        ({"radiometry": "lepton_low_gain"}, 2981.5),
        (
            {"radiometry": "custom", "temperature_scale": 0.5, "temperature_offset": -75.0},
            200,
        ),
    ],
)
def test_a_fixed_range_of_temperatures_follows_the_settings(average, changes, counts):
    pipeline = make(average.replace(gain_mode="fixed", gain_range=(0, 50), **changes))
    fused = pipeline.fuse(np.full((48, 64), round(counts), np.uint16), GREY)
    assert abs(int(fused[20, 20, 0]) - (127.5 + 100) / 2) <= 1.5


def test_a_black_hot_camera_is_turned_over(average):
    pipeline = make(average.replace(thermal_polarity="black_hot"))
    fused = pipeline.fuse(np.full((48, 64), 55, np.uint8), GREY)
    assert abs(int(fused[20, 20, 0]) - 150) <= 1


@pytest.mark.parametrize("gain_range", [(), (1.0,), (50.0, 0.0), (1.0, 2.0, 3.0)])
def test_a_range_that_does_not_rise_is_refused(gain_range):
    with pytest.raises(ParameterError, match="gain_range.*expected two rising temperatures"):
        Settings(gain_range=gain_range)


@pytest.mark.parametrize(
    ("policy", "thermal_alone", "visible_alone"), [("pass", 200, 100), ("blank", 100, 50)]
)
def test_one_image_alone_passes_or_is_fused_with_black(
    average, policy, thermal_alone, visible_alone
):
    pipeline = make(average.replace(dropout_policy=policy))
    thermal = np.full((24, 32), 200, np.uint8)
    assert abs(int(pipeline.fuse(None, GREY)[20, 30, 1]) - visible_alone) <= 1
    fused = pipeline.fuse(thermal, None)
    assert fused.shape == GREY.shape  # still in the RGB camera's pixels
    assert abs(int(fused[20, 30, 1]) - thermal_alone) <= 1


def test_calibration_of_both_cameras_registers_them_without_a_warning(average):
    pipeline = make(average)
    wide = Calibration((50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1), (64, 48))
    narrow = Calibration((100.0, 0, 31.5, 0, 100.0, 23.5, 0, 0, 1), (64, 48))
    pipeline.change(thermal_camera=narrow, rgb_camera=wide)
    fused = pipeline.fuse(np.full((48, 64), 255, np.uint8), np.zeros((48, 64, 3), np.uint8))
    # The thermal camera sees the middle of the RGB image only.
    assert fused[24, 32, 0] > 120
    assert fused[4, 4, 0] == 0
    assert not pipeline.monitor.snapshot().counters


def calibration(focal: float) -> Calibration:
    return Calibration((focal, 0, 31.5, 0, focal, 23.5, 0, 0, 1), Size(64, 48))


NARROW = (1.0, 0, 16, 0, 1, 12, 0, 0, 1)
"""Homography of a 32x24 thermal image onto the middle of a 64x48 RGB image."""


@pytest.mark.parametrize("method", ["baffm", "caf", "refinefuse"])
@pytest.mark.parametrize("condition", ["day", "night"])
def test_outside_the_thermal_view_the_fused_image_is_the_visible_one(method, condition):
    rgb, thermal = CameraModel.from_fov(160, 120, 60.0), CameraModel.from_fov(80, 60, 35.0)
    visible = SimulatedRgb(rgb, condition).render(3.0)
    counts = SimulatedThermal(thermal, condition).render(3.0)
    homography = thermal_to_rgb(thermal, rgb)
    settings = Settings(
        method=method, backend="onnxruntime_cpu", homography=homography.ravel().tolist()
    )
    fused = make(settings).fuse(counts, visible)
    left, top, _ = homography @ (-0.5, -0.5, 1)
    right, bottom, _ = homography @ (79.5, 59.5, 1)
    y, x = np.mgrid[:120, :160]
    outside = (x < left) | (x > right) | (y < top) | (y > bottom)
    assert 0.5 < outside.mean() < 0.8
    np.testing.assert_array_equal(fused[outside], visible[outside])
    inside = (x > left + 8) & (x < right - 8) & (y > top + 8) & (y < bottom - 8)
    assert np.abs(fused[inside].astype(int) - visible[inside]).mean() > 1


def test_thermal_fades_in_from_the_edge_of_its_view_without_a_seam(average):
    large = np.full((480, 640, 3), 100, np.uint8)
    pipeline = make(average.replace(homography=(1.0, 0, 160, 0, 1, 120, 0, 0, 1)))
    fused = pipeline.fuse(np.full((240, 320), 200, np.uint8), large)
    row = fused[240, :, 0].astype(int)
    assert row[0] == 100 and row[320] == 150
    assert (np.diff(row[:320]) >= 0).all()
    assert np.abs(np.diff(row)).max() <= 6
    assert "border" in pipeline.monitor.snapshot().stage_ms


@pytest.mark.parametrize("method", ["baffm", "cfi", "caf", "refinefuse"])
def test_the_edge_of_the_thermal_view_leaves_no_visible_trace_in_the_network_output(method):
    """What the network makes of the repeated outermost pixels against what all of the view gives.

    Its coarse bands reach further than the border, to thermal pixels that nobody knows, so the
    two differ by some levels. The eye sees a trace by its slope: 0.6 levels a pixel here, against
    2.3 with black beyond the edge.
    """
    camera = CameraModel.from_fov(160, 120, 60.0)
    visible = SimulatedRgb(camera, "dusk").render(3.0)
    counts = SimulatedThermal(camera, "dusk").render(3.0)
    thermal = cv2.normalize(counts, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    top, left, height, width = 28, 36, 64, 88
    view = (slice(top, top + height), slice(left, left + width))
    seen = np.zeros(thermal.shape, bool)
    seen[view] = True
    border = SoftBorder(seen)
    settings = Settings(method=method, backend="onnxruntime_cpu")
    pipeline = make(settings)
    complete = border.blend(pipeline.fuse(thermal, visible).copy(), visible)
    black = border.blend(
        pipeline.fuse(np.where(seen, thermal, 0).astype(np.uint8), visible).copy(), visible
    )
    pipeline.change(settings=settings.replace(homography=(1.0, 0, left, 0, 1, top, 0, 0, 1)))
    fused = pipeline.fuse(np.ascontiguousarray(thermal[view]), visible)

    def trace(image: np.ndarray) -> tuple[float, float]:
        """Mean difference in levels and its mean slope in levels a pixel, within the view."""
        difference = (image.astype(float) - complete).mean(axis=2)
        slope = np.hypot(*np.gradient(cv2.GaussianBlur(difference, (0, 0), 1)))
        return np.abs(difference[view]).mean(), slope[view].mean()

    (levels, slope), (levels_of_black, slope_of_black) = trace(fused), trace(black)
    assert levels < levels_of_black / 4
    assert slope < 1 < slope_of_black


@pytest.mark.parametrize(("policy", "inside"), [("pass", 200), ("blank", 100)])
def test_a_thermal_image_alone_is_black_outside_its_view(average, policy, inside):
    settings = average.replace(homography=NARROW, dropout_policy=policy)
    pipeline = make(settings)
    thermal = np.full((24, 32), 200, np.uint8)
    pipeline.fuse(thermal, GREY)
    alone = pipeline.fuse(thermal, None)
    assert not alone[:11].any() and not alone[:, 49:].any()
    assert abs(int(alone[24, 32, 0]) - inside) <= 1


def test_a_thermal_view_that_covers_all_is_not_blended(average):
    pipeline = make(average.replace(homography=(2.0, 0, 0.5, 0, 2, 0.5, 0, 0, 1)))
    fused = pipeline.fuse(np.full((24, 32), 200, np.uint8), GREY)
    assert np.abs(fused.astype(int) - 150).max() <= 1
    assert not any("border" in stage for stage in pipeline.monitor.snapshot().stage_ms)


@pytest.mark.parametrize(("homography", "from_device"), [(NARROW, False), ((), True)])
def test_the_detector_reads_the_finished_image_and_not_one_without_the_border(
    average, tmp_path, homography, from_device
):
    settings = average.replace(homography=homography)
    path = write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (8, 8, 40, 40))])
    pipeline = make(settings)
    detector = load_detector(settings.replace(detector=str(path)), None, say_nothing)
    on_device, read = object(), []
    pipeline.network.fuser.on_device = lambda: on_device
    detector.detect = lambda image, device: read.append((image, device)) or []
    pipeline.change(detector=detector)
    thermal = np.zeros((24, 32) if homography else (48, 64), np.uint8)
    fused = pipeline.fuse(thermal, GREY)
    pipeline.detect(fused)
    assert read[0][0] is fused
    assert read[0][1] is (on_device if from_device else None)


def test_a_focal_length_that_hardly_changes_costs_no_new_maps(average, monkeypatch):
    built = []
    make_maps = registration._maps
    monkeypatch.setattr(registration, "_maps", lambda *args: built.append(args) or make_maps(*args))
    pipeline = make(average)
    thermal = np.zeros((48, 64), np.uint8)
    pipeline.change(thermal_camera=calibration(100))
    for focal, builds in ((50, 1), (50.001, 1), (50.1, 1), (50.15, 1), (53, 2), (53, 2)):
        pipeline.change(rgb_camera=calibration(focal))
        pipeline.fuse(thermal, GREY)
        assert len(built) == builds, focal
    assert not pipeline.monitor.snapshot().counters


def test_a_slow_drift_of_the_focal_length_is_followed(average):
    pipeline = make(average)
    thermal = np.zeros((48, 64), np.uint8)
    thermal[:, 60:] = 255
    pipeline.change(thermal_camera=calibration(100))
    images = []
    for step in range(101):
        pipeline.change(rgb_camera=calibration(50 + 0.1 * step))
        images.append(pipeline.fuse(thermal, np.zeros_like(GREY)).copy())
    at_once = make(average)
    at_once.change(thermal_camera=calibration(100), rgb_camera=calibration(60))
    expected = at_once.fuse(thermal, np.zeros_like(GREY))
    assert np.abs(images[0].astype(int) - expected).max() > 50
    assert np.abs(images[-1].astype(int) - expected).max() < 40


def test_a_calibration_of_another_aspect_ratio_is_refused_and_named(average):
    pipeline = make(average)
    wide = Calibration((50.0, 0, 31.5, 0, 50.0, 17.5, 0, 0, 1), Size(64, 36))
    pipeline.change(thermal_camera=calibration(100), rgb_camera=wide)
    pipeline.fuse(np.zeros((48, 64), np.uint8), GREY)
    (fault,) = pipeline.monitor.snapshot().faults
    assert fault.name == "calibration"
    assert "64x36" in fault.text and "64x48" in fault.text and "aspect ratio" in fault.text


TO_INFINITY = (1.0, 0, 0, 0, 1.0, 0, 0.03, 0, -1.0)
"""A homography whose horizon crosses a thermal image of 64x48."""


def test_a_homography_that_cannot_be_used_costs_no_frame(average):
    pipeline = make(average.replace(homography=TO_INFINITY))
    thermal = np.full((48, 64), 200, np.uint8)
    for _ in range(2):
        assert abs(int(pipeline.fuse(thermal, GREY)[24, 32, 0]) - 150) <= 1
    assert pipeline.registration_state.source == "none, as if aligned"
    (problem,) = pipeline.registration_state.problems
    assert "the parameter homography cannot be used" in problem and "infinity" in problem
    assert pipeline.monitor.snapshot().counters["calibration"] == 1
    # Of a smaller thermal image the same homography can be used.
    pipeline.fuse(thermal[:20, :20], GREY)
    assert pipeline.registration_state.source == "homography"
    pipeline.change(settings=average)
    pipeline.fuse(thermal, GREY)
    assert pipeline.registration_state.problems == ()


def test_a_camera_info_of_confused_rows_and_columns_costs_no_frame(average):
    pipeline = make(average)
    k = calibration(100).k
    confused = dataclasses.replace(
        calibration(100), k=tuple(k[i] for i in (0, 3, 6, 1, 4, 7, 2, 5, 8))
    )
    pipeline.change(thermal_camera=calibration(100), rgb_camera=confused)
    assert abs(int(pipeline.fuse(np.full((48, 64), 200, np.uint8), GREY)[24, 32, 0]) - 150) <= 1
    (problem,) = pipeline.registration_state.problems
    assert "the cameras' calibration cannot be used" in problem


def test_different_sizes_without_calibration_are_one_fault(average):
    pipeline = make(average)
    for _ in range(3):
        pipeline.fuse(np.zeros((24, 32), np.uint8), GREY)
    snapshot = pipeline.monitor.snapshot()
    assert snapshot.counters == {"registration": 1}
    assert "homography" in snapshot.faults[0].text


def test_detections_follow_the_detector_and_its_settings(average, tmp_path):
    path = write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (8, 8, 40, 40))])
    parameters = average.replace(detector=str(path))
    pipeline = make(parameters)
    thermal, visible = pair(64, 64)
    assert not pipeline.detects and pipeline.detect(pipeline.fuse(thermal, visible)) == []
    pipeline.change(detector=load_detector(parameters, None, say_nothing))
    assert pipeline.detects
    found = pipeline.detect(pipeline.fuse(thermal, visible))
    assert [one.class_name for one in found] == ["person"]
    for change in ({"confidence": 0.95}, {"classes": ["car"]}, {"detect": False}):
        pipeline.change(settings=parameters.replace(**change))
        assert pipeline.detect(pipeline.fuse(thermal, visible)) == []


def test_classes_that_another_detector_does_not_know_cost_no_frame(average, tmp_path):
    path = write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (8, 8, 40, 40))])
    detector = load_detector(average.replace(detector=str(path)), None, say_nothing)
    pipeline = make(average.replace(classes=["dragon"]))
    pipeline.change(detector=detector)
    thermal, visible = pair(64, 64)
    assert len(pipeline.detect(pipeline.fuse(thermal, visible))) == 1
    (fault,) = pipeline.monitor.snapshot().faults
    assert fault.name == "classes" and "no class 'dragon'" in fault.text


def test_objects_are_numbered_where_they_are_tracked(average, tmp_path):
    path = write_detector_onnx(tmp_path / "yolo.onnx", [(0, 0.9, (8, 8, 40, 40))])
    parameters = average.replace(detector=str(path), track=True)
    pipeline = make(parameters)
    pipeline.change(detector=load_detector(parameters, None, say_nothing))
    thermal, visible = pair(64, 64)
    for number, expected in enumerate((0, 1, 1)):
        found = pipeline.detect(pipeline.fuse(thermal, visible), seconds=number / 30)
        assert [one.track_id for one in found] == [expected]
    assert "track" in pipeline.monitor.snapshot().stage_ms
    pipeline.change(settings=average.replace(detector=str(path)))
    found = pipeline.detect(pipeline.fuse(thermal, visible), seconds=0.2)
    assert [one.track_id for one in found] == [0]


def test_a_missing_detector_says_how_to_get_one(average, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("fusion_ros.frame.detector.SHIPPED", tmp_path / "none.onnx")
    with pytest.raises(EngineError, match="make detector"):
        load_detector(average, None, say_nothing)


def two_lanes(average, monkeypatch) -> Settings:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    return average.replace(processing_size="auto", threads=0)


def test_auto_on_several_cores_loads_a_network_for_two_images_at_a_time(average, monkeypatch):
    parameters = two_lanes(average, monkeypatch)
    assert load_network(parameters, None, say_nothing).lanes == 2
    assert load_network(parameters, Size(320, 240), say_nothing, 0).lanes == 2
    assert load_network(parameters, Size(640, 480), say_nothing, 0).lanes == 1
    for other in (parameters.replace(processing_size=320), parameters.replace(threads=1)):
        assert load_network(other, None, say_nothing).lanes == 1


def test_two_images_in_progress_come_out_as_one_after_the_other(average, monkeypatch):
    parameters = two_lanes(average, monkeypatch).replace(gain_mode="percentile")
    counts = [np.full((48, 64), 1000 + n, np.uint16) for n in range(4)]
    for n, image in enumerate(counts):
        image[n : 20 + n, 10:30] += np.uint16(900)
    visible = [np.roll(pair(64, 48)[1], n, axis=1) for n in range(4)]
    one, two = make(parameters), make(parameters)
    expected = [one.fuse(*images).copy() for images in zip(counts, visible)]
    found = []
    for n in (0, 2):
        first = two.prepare(counts[n], visible[n], lane=0)
        second = two.prepare(counts[n + 1], visible[n + 1], lane=1)
        late = second.fuse()  # ends before the one that was prepared before it
        found += [first.fuse().copy(), late.copy()]
    for want, have in zip(expected, found):
        np.testing.assert_array_equal(want, have)


def test_an_image_in_progress_is_fused_although_its_network_was_replaced(average, monkeypatch):
    parameters = two_lanes(average, monkeypatch)
    pipeline = make(parameters)
    thermal, visible = pair(64, 48)
    expected = pipeline.fuse(thermal, visible).copy()
    waiting = pipeline.prepare(thermal, visible, lane=1)
    pipeline.change(network=load_network(parameters, None, say_nothing, 32))
    pipeline.fuse(thermal, visible)
    np.testing.assert_array_equal(waiting.fuse(), expected)
