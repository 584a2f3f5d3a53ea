# SPDX-License-Identifier: AGPL-3.0-only
"""The thermal image lands on the RGB camera's pixels, and a wrong geometry says so."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from fusion_ros.frame.registration import Registration, homography_from_intrinsics, parse_homography

THERMAL_SIZE, RGB_SIZE = (160, 128), (320, 240)
HOMOGRAPHY = np.array([[1.7, 0.05, 12.0], [-0.04, 1.65, 9.0], [2e-5, -3e-5, 1.0]])
K_THERMAL = np.array([[200.0, 0, 79.5], [0, 200.0, 63.5], [0, 0, 1]])
K_RGB = np.array([[300.0, 0, 159.5], [0, 300.0, 119.5], [0, 0, 1]])


def project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 2) points moved by the homography."""
    moved = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return moved[:, :2] / moved[:, 2:]


def turned(degrees: float, axis: int = 1) -> np.ndarray:
    return cv2.Rodrigues(np.radians(degrees) * np.eye(3)[axis])[0]


def smooth_image(size: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 5), None, 1, 255, cv2.NORM_MINMAX)


def blob_centre(image: np.ndarray) -> np.ndarray:
    moments = cv2.moments(image)
    return np.array([moments["m10"], moments["m01"]]) / moments["m00"]


def test_points_land_where_the_homography_puts_them():
    registration = Registration(HOMOGRAPHY)
    points = np.array([[20, 20], [140, 18], [80, 64], [30, 110], [133, 101]])
    for point, expected in zip(points, project(HOMOGRAPHY, points)):
        thermal = np.zeros(THERMAL_SIZE[::-1], np.uint8)
        cv2.circle(thermal, point.tolist(), 3, 255, -1)
        centre = blob_centre(registration.warp(thermal, RGB_SIZE))
        np.testing.assert_allclose(centre, expected, atol=0.15)


def test_the_image_is_that_of_warp_perspective():
    thermal = smooth_image(THERMAL_SIZE)
    registration = Registration(HOMOGRAPHY)
    ours = registration.warp(thermal, RGB_SIZE)
    theirs = cv2.warpPerspective(thermal, HOMOGRAPHY, RGB_SIZE)
    inside = cv2.erode(registration.border.seen.astype(np.uint8), np.ones((5, 5))) > 0
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ours[inside].astype(int), theirs[inside], atol=2)


def test_a_warp_and_its_inverse_return_the_image():
    thermal = smooth_image(THERMAL_SIZE)
    there = Registration(HOMOGRAPHY).warp(thermal, RGB_SIZE)
    back = Registration(np.linalg.inv(HOMOGRAPHY)).warp(there, THERMAL_SIZE)
    assert np.abs(back.astype(int) - thermal)[4:-4, 4:-4].mean() < 1.5


@pytest.mark.parametrize("factor", [-1.0, 0.001, 40.0])
def test_the_scale_and_sign_of_a_homography_do_not_matter(factor):
    thermal = smooth_image(THERMAL_SIZE)
    np.testing.assert_array_equal(
        Registration(factor * HOMOGRAPHY).warp(thermal, RGB_SIZE),
        Registration(HOMOGRAPHY).warp(thermal, RGB_SIZE),
    )


def test_the_border_lists_the_pixels_that_the_thermal_camera_sees():
    registration = Registration(HOMOGRAPHY)
    registration.warp(smooth_image(THERMAL_SIZE), RGB_SIZE)
    seen = registration.border.seen
    corners = np.array([[0, 0], [160, 0], [160, 128], [0, 128]]) - 0.5
    area = cv2.contourArea(project(HOMOGRAPHY, corners).astype(np.float32))
    assert registration.coverage == pytest.approx(area / (320 * 240), abs=0.01)
    assert registration.coverage == pytest.approx(seen.mean())


def test_a_thermal_camera_that_sees_all_has_no_border():
    registration = Registration(np.diag([3.0, 3.0, 1.0]) @ np.array(
        [[1, 0, -20], [0, 1, -15], [0, 0, 1]]
    ))  # fmt: skip
    registration.warp(smooth_image(THERMAL_SIZE), RGB_SIZE)
    assert registration.border is None
    assert registration.coverage == 1.0
    assert registration.warning is None


@pytest.mark.parametrize("homography", [None, np.eye(3), -2 * np.eye(3)])
def test_identity_on_equal_sizes_is_the_same_array(homography):
    thermal = smooth_image(RGB_SIZE)
    registration = Registration(homography)
    assert registration.warp(thermal, RGB_SIZE) is thermal
    assert registration.border is None
    assert registration.coverage == 1.0 and registration.warning is None


def test_without_a_homography_other_sizes_are_resized_with_one_warning():
    registration = Registration(None)
    thermal = smooth_image(THERMAL_SIZE)
    assert registration.warp(thermal, RGB_SIZE).shape == RGB_SIZE[::-1]
    assert "160x128" in registration.warning and "320x240" in registration.warning
    assert "homography" in registration.warning
    registration.warning = None
    registration.warp(thermal, RGB_SIZE)
    registration.warp(thermal, (200, 100))
    assert registration.warning is None


def test_a_given_identity_does_not_resize_and_continues_the_outermost_pixels():
    thermal = smooth_image(THERMAL_SIZE)
    registration = Registration(np.eye(3))
    warped = registration.warp(thermal, RGB_SIZE)
    np.testing.assert_array_equal(warped[:128, :160], thermal)
    np.testing.assert_array_equal(warped[200, :160], thermal[127])
    np.testing.assert_array_equal(warped[:128, 300], thermal[:, 159])
    assert not registration.border.seen[128:].any()
    assert registration.warning is None


def test_a_homography_that_misses_the_image_warns():
    registration = Registration([1, 0, 5000, 0, 1, 0, 0, 0, 1])
    registration.warp(smooth_image(THERMAL_SIZE), RGB_SIZE)
    assert not registration.border.seen.any()
    assert registration.coverage == 0 and "is it the inverse" in registration.warning


def test_sizes_may_alternate_and_maps_are_kept():
    registration = Registration(HOMOGRAPHY)
    large, small = smooth_image(THERMAL_SIZE), smooth_image((80, 64))
    first = [registration.warp(image, RGB_SIZE) for image in (large, small)]
    built = list(registration._warps.values())
    again = [registration.warp(image, RGB_SIZE) for image in (large, small)]
    np.testing.assert_array_equal(first, again)
    assert list(map(id, registration._warps.values())) == list(map(id, built))
    for width in range(100, 140):
        registration.warp(smooth_image((width, 64)), RGB_SIZE)
    assert len(registration._warps) < 10


def test_intrinsics_of_one_centre_agree_with_projected_rays():
    rotation = turned(4, axis=1) @ turned(-2, axis=0) @ turned(3, axis=2)
    homography = homography_from_intrinsics(K_THERMAL, K_RGB, rotation)
    rays = np.random.default_rng(0).normal([0, 0, 5], [0.8, 0.8, 0.1], (50, 3))
    thermal = project(K_THERMAL, rays[:, :2] / rays[:, 2:])
    seen = rays @ rotation.T
    rgb = project(K_RGB, seen[:, :2] / seen[:, 2:])
    np.testing.assert_allclose(project(homography, thermal), rgb, atol=1e-6)


def test_intrinsics_may_be_the_nine_numbers_of_camera_info():
    np.testing.assert_allclose(
        homography_from_intrinsics(K_THERMAL.ravel().tolist(), K_RGB.ravel()),
        K_RGB @ np.linalg.inv(K_THERMAL),
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "has 0 values: expected 9 numbers, row by row"),
        ([1.0] * 8, "has 8 values: expected 9"),
        ([1.0] * 9, "singular"),
        ([0.0] * 9, "singular"),
        ([1, 0, 0, 0, 1, 0, 0, 0, 0], "singular"),
        ([float("nan")] + [1.0] * 8, "not finite"),
        (["a"] * 9, "not numeric"),
        ([[1, 2], [3]], "not numeric"),
    ],
)
def test_a_bad_homography_says_what_was_expected(values, says):
    with pytest.raises(ValueError, match=says):
        parse_homography(values)
    with pytest.raises(ValueError, match=says):
        Registration(values)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_ordinary_homographies_are_not_called_singular(scale):
    values = [scale, 0, 4000, 0, scale, -3000, 0, 0, 1]
    np.testing.assert_array_equal(parse_homography(values), np.reshape(values, (3, 3)))


def test_a_horizon_across_the_thermal_image_is_an_error():
    registration = Registration([1, 0, 0, 0, 1, 0, -0.01, 0, 1])
    with pytest.raises(ValueError, match="behind the RGB camera: expected the third row"):
        registration.warp(smooth_image(THERMAL_SIZE), RGB_SIZE)


@pytest.mark.parametrize(
    ("k_thermal", "k_rgb", "rotation", "says"),
    [
        (np.zeros(9), K_RGB, None, "thermal camera is .*calibrate"),
        (K_THERMAL, np.zeros(9), None, "RGB camera is .*calibrate"),
        (K_THERMAL[:2], K_RGB, None, "expected 9 finite values"),
        (K_THERMAL, K_RGB, np.ones((3, 3)), "orthonormal"),
        (K_THERMAL, K_RGB, np.diag([1, 1, -1]), "determinant 1"),
        (K_THERMAL, K_RGB, turned(180), "behind the RGB camera"),
        (K_THERMAL, K_RGB, [1, 0, 0], "rotation is .*expected 9 finite values"),
    ],
)
def test_bad_intrinsics_say_what_was_expected(k_thermal, k_rgb, rotation, says):
    with pytest.raises(ValueError, match=says):
        homography_from_intrinsics(k_thermal, k_rgb, rotation)


@pytest.mark.parametrize("thermal", [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8)])
def test_only_grey_eight_bit_images_are_warped(thermal):
    with pytest.raises(ValueError, match=r"expected \(H, W\) uint8"):
        Registration(HOMOGRAPHY).warp(thermal, RGB_SIZE)


@pytest.mark.parametrize("homography", [HOMOGRAPHY, None])
def test_a_warm_warp_allocates_no_image(homography):
    thermal, out = smooth_image(THERMAL_SIZE), np.empty(RGB_SIZE[::-1], np.uint8)
    registration = Registration(homography)
    assert registration.warp(thermal, RGB_SIZE, out) is out
    tracemalloc.start()
    try:
        registration.warp(thermal, RGB_SIZE, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < out.size / 10
