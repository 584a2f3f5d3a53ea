# SPDX-License-Identifier: AGPL-3.0-only
"""CameraInfo becomes the lens of the images that come with it, or says why it cannot."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from fusion_ros.frame.calibration import (
    Calibration,
    Lens,
    from_camera_info,
    is_rectified_topic,
    rotation_between,
)
from fusion_ros.frame.registration import Registration
from fusion_ros.size import Size

FULL = Size(1280, 960)
K = (1000.0, 0, 639.5, 0, 1000.0, 479.5, 0, 0, 1)
LENSES = {
    "plumb_bob": (-0.32, 0.11, 0.0008, -0.0005, -0.02),
    "rational_polynomial": (0.4, -0.1, 0.0004, -0.0003, 0.01, 0.75, -0.05, 0.02),
    "equidistant": (-0.01, 0.004, -0.002, 0.0003),
}


def info(
    k=K,
    size=FULL,
    d=(),
    model="plumb_bob",
    p=(0.0,) * 12,
    r=(0.0,) * 9,
    roi=(0, 0, 0, 0),
    binning=(0, 0),
):
    """A message with the fields of sensor_msgs/CameraInfo."""
    names = ("x_offset", "y_offset", "width", "height")
    return SimpleNamespace(
        k=k,
        d=d,
        r=r,
        p=p,
        width=size[0],
        height=size[1],
        distortion_model=model,
        binning_x=binning[0],
        binning_y=binning[1],
        roi=SimpleNamespace(**dict(zip(names, roi)), do_rectify=False),
    )


def matrix_of(message, size: tuple[int, int]) -> list[float]:
    """Focal lengths and principal point for images of `size`."""
    matrix = from_camera_info(message).at(Size(*size)).matrix
    return [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]


def project(rays: np.ndarray, k: tuple[float, ...], d: tuple[float, ...], model: str) -> np.ndarray:
    """Pixels of directions (N, 3) by OpenCV."""
    matrix, still = np.reshape(k, (3, 3)), np.zeros(3)
    points = rays[:, np.newaxis]
    if model == "equidistant":
        return cv2.fisheye.projectPoints(points, still, still, matrix, np.array(d))[0][:, 0]
    return cv2.projectPoints(points, still, still, matrix, np.array(d))[0][:, 0]


@pytest.mark.parametrize(
    ("changes", "size", "expected"),
    [
        ({}, FULL, (1000, 1000, 639.5, 479.5)),
        # Drivers that scale, and say nothing of it.
        ({}, (640, 480), (500, 500, 319.5, 239.5)),
        ({}, (427, 320), (333.6, 333.33, 213, 159.5)),
        ({"size": (0, 0)}, (640, 480), (1000, 1000, 639.5, 479.5)),
        ({"binning": (1, 1)}, FULL, (1000, 1000, 639.5, 479.5)),
        ({"binning": (2, 2)}, (640, 480), (500, 500, 319.5, 239.5)),
        ({"binning": (2, 1)}, (640, 960), (500, 1000, 319.5, 479.5)),
        ({"binning": (2, 2)}, FULL, (1000, 1000, 639.5, 479.5)),
        ({"roi": (320, 240, 640, 480)}, (640, 480), (1000, 1000, 319.5, 239.5)),
        ({"roi": (100, 40, 800, 200)}, (800, 200), (1000, 1000, 539.5, 439.5)),
        ({"roi": (100, 40, 800, 200)}, FULL, (1000, 1000, 639.5, 479.5)),
        ({"roi": (320, 240, 640, 480)}, FULL, (1000, 1000, 639.5, 479.5)),
        ({"roi": (100, 40, 800, 200), "binning": (2, 2)}, (400, 100), (500, 500, 269.5, 219.5)),
        # Two rows of telemetry below the image.
        ({}, (1280, 962), (1000, 1000, 639.5, 479.5)),
    ],
)
def test_the_matrix_follows_region_of_interest_binning_and_scale(changes, size, expected):
    assert matrix_of(info(**changes), size) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "size", "says"),
    [
        ({}, (1280, 720), "for 1280x960 images, but the images are 1280x720.*aspect ratio"),
        ({"roi": (0, 0, 800, 200)}, (640, 640), r"\(800x200 by its region of interest"),
        ({"k": (float("nan"), *K[1:])}, FULL, "expected 9 finite values"),
        ({"d": (0.1,) * 5, "model": "mystery"}, FULL, "'mystery': expected one of plumb_bob"),
        ({"d": (0.1,) * 3}, FULL, "3 coefficients.*'plumb_bob': expected 0 or 4 or 5"),
        ({"d": (0.1,) * 5, "model": "equidistant"}, FULL, "5 coefficients.*expected 4"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused_with_the_reason(changes, size, says):
    with pytest.raises(ValueError, match=says):
        from_camera_info(info(**changes)).at(Size(*size))


@pytest.mark.parametrize("model", ["Plumb_Bob", "plumb bob", "RATIONAL_POLYNOMIAL", "Equidistant "])
def test_a_distortion_model_is_known_however_a_driver_spells_it(model):
    lens = from_camera_info(info(d=(0.1, 0, 0, 0), model=model)).at(FULL)
    assert lens.is_distorted and lens.fisheye == model.startswith("Equi")


P = (300.0, 0, 319.5, 0, 0, 310.0, 239.5, 0, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("k", "p", "rectified", "focal", "distorted"),
    [
        (K, P, False, 1000, True),
        (K, P, True, 300, False),
        (K, (0.0,) * 12, True, 1000, False),
        ((0.0,) * 9, P, False, 300, False),
        ((0.0,) * 9, P, True, 300, False),
    ],
)
def test_raw_images_follow_k_and_rectified_ones_p(k, p, rectified, focal, distorted):
    message = info(k=k, p=p, d=LENSES["plumb_bob"])
    lens = from_camera_info(message, rectified).at(FULL)
    assert lens.matrix[0, 0] == focal
    assert lens.is_distorted == distorted


def test_a_camera_without_k_and_p_is_not_calibrated():
    assert from_camera_info(info(k=(0.0,) * 9)) is None


def test_rectified_topics_are_known_by_their_name():
    assert is_rectified_topic("/camera/image_rect_color")
    assert not is_rectified_topic("/camera/image_raw")


def test_a_real_message_is_read():
    message = pytest.importorskip("sensor_msgs.msg").CameraInfo(width=640, height=480)
    assert from_camera_info(message) is None
    message.k[0] = message.k[4] = 500.0
    message.k[8] = 1.0
    message.d = [0.0] * 5
    lens = from_camera_info(message).at(Size(640, 480))
    assert lens.matrix[0, 0] == 500 and not lens.is_distorted


@pytest.mark.parametrize("model", LENSES)
def test_rays_and_pixels_are_those_of_opencv(model):
    lens = from_camera_info(info(d=LENSES[model], model=model)).at(FULL)
    pixels = np.random.default_rng(0).uniform((0, 0), FULL, (500, 2))
    rays = lens.rays(pixels)
    assert np.isfinite(rays).all()
    directions = np.column_stack((rays, np.ones(500)))
    np.testing.assert_allclose(project(directions, K, LENSES[model], model), pixels, atol=0.01)
    np.testing.assert_allclose(lens.pixels(rays), pixels, atol=0.01)


@pytest.mark.parametrize("model", LENSES)
def test_distortion_holds_for_scaled_and_cut_images(model):
    message = info(d=LENSES[model], model=model, roi=(320, 240, 640, 480), binning=(2, 2))
    lens = from_camera_info(message).at(Size(320, 240))
    full = from_camera_info(info(d=LENSES[model], model=model)).at(FULL)
    pixels = np.array([[0.0, 0], [319, 0], [160, 120], [12, 200]])
    in_full = (pixels + 0.5) * 2 - 0.5 + (320, 240)
    np.testing.assert_allclose(lens.rays(pixels), full.rays(in_full), atol=1e-5)


def test_directions_outside_the_image_are_not_folded_back_into_it():
    lens = from_camera_info(info(d=(-0.5, 0.05, 0, 0, 0))).at(FULL)
    # Without a limit the polynomial moves this ray to a place inside the image.
    ray = np.array([[1.45, 0.0]])
    folded = project(np.array([[1.45, 0.0, 1.0]]), K, (-0.5, 0.05, 0, 0, 0), "plumb_bob")
    assert 0 < folded[0, 0] < FULL.width
    assert np.isnan(lens.pixels(ray)).all()


@pytest.mark.parametrize("rgb_model", LENSES)
@pytest.mark.parametrize("thermal_model", LENSES)
def test_distorted_images_are_registered_where_the_rays_meet(thermal_model, rgb_model):
    rotation = cv2.Rodrigues(np.array([0.02, -0.03, 0.05]))[0]
    thermal_k, rgb_k = (
        (200.0, 0, 79.5, 0, 200.0, 59.5, 0, 0, 1),
        (250.0, 0, 159.5, 0, 250.0, 119.5, 0, 0, 1),
    )
    d, e = LENSES[thermal_model], LENSES[rgb_model]
    thermal = from_camera_info(info(thermal_k, (160, 120), d, thermal_model)).at(Size(160, 120))
    rgb = from_camera_info(info(rgb_k, (320, 240), e, rgb_model)).at(Size(320, 240))
    registration = Registration.of_lenses(thermal, rgb, rotation)
    for point in ([30, 30], [130, 28], [80, 60], [40, 95], [125, 90]):
        image = np.zeros((120, 160), np.uint8)
        cv2.circle(image, point, 3, 255, -1)
        ray = np.append(thermal.rays(np.array([point], float))[0], 1.0)
        expected = project((rotation @ ray)[np.newaxis], rgb_k, e, rgb_model)[0]
        moments = cv2.moments(registration.warp(image, Size(320, 240)))
        centre = (moments["m10"] / moments["m00"], moments["m01"] / moments["m00"])
        np.testing.assert_allclose(centre, expected, atol=0.25)
        back = registration.thermal_pixels(expected[np.newaxis])[0]
        np.testing.assert_allclose(back, point, atol=0.02)


def test_maps_are_exact_between_the_nodes_of_their_grid():
    size = Size(640, 480)
    k = (512.0, 0, 319.5, 0, 512.0, 239.5, 0, 0, 1)
    d, model = LENSES["plumb_bob"], "plumb_bob"
    rgb = from_camera_info(info(k, size, d, model)).at(size)
    thermal = Lens(np.array([[300.0, 0, 319.5], [0, 300, 239.5], [0, 0, 1]]), size)
    registration = Registration.of_lenses(thermal, rgb)
    columns, rows = np.meshgrid(np.arange(640, dtype=np.float32), np.arange(480, dtype=np.float32))
    ramp = np.clip(columns - 192, 0, 255).astype(np.uint8)
    warped = registration.warp(ramp, size)
    pixels = np.column_stack((columns.ravel(), rows.ravel()))
    expected = np.clip(registration.thermal_pixels(pixels)[:, 0].reshape(480, 640) - 192, 0, 255)
    np.testing.assert_allclose(warped, expected, atol=0.6)


def test_without_distortion_lenses_are_a_homography():
    lenses = [
        Lens(np.array([[f, 0, 79.5], [0, f, 59.5], [0, 0, 1]]), Size(160, 120)) for f in (200, 100)
    ]
    registration = Registration.of_lenses(*lenses)
    np.testing.assert_allclose(
        registration.homography, lenses[1].matrix @ np.linalg.inv(lenses[0].matrix)
    )


def test_images_of_other_sizes_than_the_lenses_are_refused():
    lens = from_camera_info(info(d=LENSES["plumb_bob"])).at(FULL)
    with pytest.raises(ValueError, match="expected those of the lenses, 1280x960"):
        Registration.of_lenses(lens, lens).warp(np.zeros((240, 320), np.uint8), FULL)


@pytest.mark.parametrize("thermal_rectified", [False, True])
@pytest.mark.parametrize("rgb_rectified", [False, True])
def test_a_stereo_calibration_gives_the_rotation(thermal_rectified, rgb_rectified):
    turns = [cv2.Rodrigues(np.array(v))[0] for v in ([0.0, 0.02, 0.01], [0.01, -0.03, 0.0])]
    thermal, rgb = (
        Calibration(K, FULL, rotation=tuple(turn.ravel()), rectified=rectified)
        for turn, rectified in zip(turns, (thermal_rectified, rgb_rectified))
    )
    shared = np.array([0.1, -0.2, 1.0])  # a direction in the frame of both rectified images
    seen = [
        shared if r else turn.T @ shared
        for turn, r in zip(turns, (thermal_rectified, rgb_rectified))
    ]
    np.testing.assert_allclose(rotation_between(thermal, rgb) @ seen[0], seen[1], atol=1e-12)
    between_cameras = turns[1].T @ turns[0]
    given = rotation_between(thermal, rgb, between_cameras)
    np.testing.assert_allclose(given @ seen[0], seen[1], atol=1e-12)
