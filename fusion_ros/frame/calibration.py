# SPDX-License-Identifier: AGPL-3.0-only
"""Calibration of a camera as sensor_msgs/CameraInfo describes it, and rays of its pixels.

Pixel coordinates are OpenCV's: whole numbers at pixel centres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from fusion_ros.size import Size

__all__ = ["Calibration", "Lens", "from_camera_info", "is_rectified_topic", "rotation_between"]

_PINHOLE_MODELS = ("", "plumb_bob", "rational_polynomial", "thin_prism")
_FISHEYE_MODELS = ("equidistant", "fisheye")
_COEFFICIENTS = (0, 4, 5, 8, 12, 14)
"""Numbers of coefficients that OpenCV takes for pinhole models."""
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_UNKNOWN = Size(0, 0)
_MOST_EXTRA_ROWS = 4
"""Rows of telemetry below the image, at most."""
_MARGIN = 1.05
"""Directions outside the image that still have pixels, for interpolation at its edge."""
_REFINEMENTS = 30
_CONVERGED = 1e-3
"""Greatest distance, in pixels, of a projected ray from its pixel."""


@dataclass(frozen=True)
class Lens:
    """How a camera of one image size sees: a camera matrix and lens distortion.

    matrix: (3, 3), in pixels of the image.
    distortion: coefficients as OpenCV orders them; none for rectified images.
    fisheye: whether they are those of OpenCV's fisheye model (`equidistant`).
    size: of the image.
    """

    matrix: np.ndarray
    size: Size
    distortion: tuple[float, ...] = ()
    fisheye: bool = False

    @property
    def is_distorted(self) -> bool:
        """Whether straight lines in the world are curved in the image."""
        return self.fisheye or any(self.distortion)

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Directions x / z and y / z of pixels: (N, 2) to (N, 2) float64.

        They are NaN where no ray falls on a pixel.
        """
        flat = (pixels - self.matrix[:2, 2]) / (self.matrix[0, 0], self.matrix[1, 1])
        flat[:, 0] -= self.matrix[0, 1] / self.matrix[0, 0] * flat[:, 1]
        if not self.is_distorted:
            return flat
        eye, coefficients = np.eye(3), np.array(self.distortion)
        if self.fisheye:
            rays = cv2.fisheye.undistortPoints(flat[:, np.newaxis], eye, coefficients)[:, 0]
        else:
            rays = cv2.undistortPoints(flat[:, np.newaxis], eye, coefficients)[:, 0]
        tolerance = _CONVERGED / self.matrix[0, 0]
        wrong = np.arange(len(rays))
        # OpenCV stops after a few iterations, and gives values where none is right.
        with np.errstate(all="ignore"):
            for _ in range(_REFINEMENTS):
                missed = flat[wrong] - self._distort(rays[wrong])
                far = ~(np.abs(missed).max(axis=1) < tolerance)
                wrong, missed = wrong[far], missed[far]
                if self.fisheye or not wrong.size:
                    break
                rays[wrong] += missed
        rays[wrong] = np.nan
        return rays

    def pixels(self, rays: np.ndarray) -> np.ndarray:
        """Pixels of directions x / z and y / z: (N, 2) to (N, 2) float64.

        They are NaN for directions outside the image: polynomials fold some of them back into it.
        """
        with np.errstate(invalid="ignore"):
            flat = self._distort(rays)
            if self.is_distorted:
                outside = np.hypot(rays[:, 0], rays[:, 1]) > self._widest() * _MARGIN
                flat[outside | ~np.isfinite(rays).all(axis=1)] = np.nan
            x = flat @ self.matrix[0, :2] + self.matrix[0, 2]
            return np.column_stack((x, flat[:, 1] * self.matrix[1, 1] + self.matrix[1, 2]))

    def _distort(self, rays: np.ndarray) -> np.ndarray:
        """Directions as the lens bends them."""
        if not self.is_distorted:
            return rays.copy()
        eye, coefficients = np.eye(3), np.array(self.distortion)
        finite = np.nan_to_num(rays, nan=0.0, posinf=0.0, neginf=0.0)
        if self.fisheye:
            return cv2.fisheye.distortPoints(finite[:, np.newaxis], eye, coefficients)[:, 0]
        points = np.column_stack((finite, np.ones(len(finite))))
        return cv2.projectPoints(points, np.zeros(3), np.zeros(3), eye, coefficients)[0][:, 0]

    def _widest(self) -> float:
        """The greatest tangent of the angle between the axis and a ray on the image's edge."""
        right, bottom = self.size.width - 0.5, self.size.height - 0.5
        x, y = np.linspace(-0.5, right, 33), np.linspace(-0.5, bottom, 33)
        edge = [np.column_stack((x, np.full(33, v))) for v in (-0.5, bottom)]
        edge += [np.column_stack((np.full(33, u), y)) for u in (-0.5, right)]
        tangents = np.hypot(*self.rays(np.vstack(edge)).T)
        return float(np.nanmax(tangents)) if np.isfinite(tangents).any() else 0.0


@dataclass(frozen=True)
class Calibration:
    """A camera's calibration, for the full resolution of its sensor.

    k: camera matrix, nine values row by row, in pixels.
    size: full resolution; 0x0 if it is that of the images.
    distortion, model: coefficients and their `distortion_model` in CameraInfo, in small letters.
    rotation: nine values row by row, from the camera's frame to the one that it shares with its
        rectified images and, after a stereo calibration, with the other camera.
    rectified: whether the images are rectified.
    roi: x and y of the corner, width and height of the part of the sensor in the image, in pixels
        of full resolution; 0 for the whole sensor.
    binning: pixels of full resolution, across and down, that make one pixel of the image.
    """

    k: tuple[float, ...]
    size: Size = _UNKNOWN
    distortion: tuple[float, ...] = ()
    model: str = ""
    rotation: tuple[float, ...] = _IDENTITY
    rectified: bool = False
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)
    binning: tuple[int, int] = (1, 1)

    def at(self, size: Size) -> Lens:
        """The lens for images of `size`: with the region of interest, binning and scale applied.

        Raises ValueError for a calibration that is not usable, and for images whose aspect ratio
        neither the region of interest nor binning explains.
        """
        matrix = np.array(self.k, np.float64)
        if matrix.size != 9 or not np.isfinite(matrix).all():
            raise ValueError(f"camera matrix is {list(self.k)}: expected 9 finite values")
        matrix = matrix.reshape(3, 3)
        size = Size(*size)
        full = Size(*self.size) if min(self.size) > 0 else size
        x, y, width, height = self.roi
        part = Size(width or full.width, height or full.height)
        binned = Size(*(max(n // max(b, 1), 1) for n, b in zip(part, self.binning)))
        if _explains(binned, size) and not (size == full != binned):
            corner, source = (x, y), part
        elif _explains(full, size):
            corner, source = (0, 0), full  # the whole sensor, as if without region of interest
        else:
            explained = f" ({binned} by its region of interest and binning)" * (binned != full)
            raise ValueError(
                f"camera_info is for {full} images{explained}, but the images are {size}, of "
                "another aspect ratio: expected a calibration of these images, or roi and "
                "binning in camera_info that lead from one to the other"
            )
        cropped = binned if source is part else full
        scale = Size(
            size.width / source.width,
            # Telemetry is added below the image, which keeps its scale.
            (cropped.height if _has_telemetry(cropped, size) else size.height) / source.height,
        )
        for row, offset, ratio in zip((0, 1), corner, scale):
            matrix[row, 2] += 0.5 - offset  # pixel centres are whole numbers
            matrix[row] *= ratio
            matrix[row, 2] -= 0.5
        return Lens(matrix, size, *self._lens())

    def _lens(self) -> tuple[tuple[float, ...], bool]:
        """Distortion coefficients, and whether they are of the fisheye model."""
        if self.rectified or not any(self.distortion):
            # Without coefficients equidistant still is a fisheye: its angles are proportional.
            fisheye = self.model in _FISHEYE_MODELS and not self.rectified
            return ((0.0,) * 4, True) if fisheye else ((), False)
        fisheye = self.model in _FISHEYE_MODELS
        expected = (4,) if fisheye else _COEFFICIENTS
        if not fisheye and self.model not in _PINHOLE_MODELS:
            known = ", ".join((*_PINHOLE_MODELS[1:], *_FISHEYE_MODELS))
            raise ValueError(
                f"distortion model is '{self.model[:40]}': expected one of {known}; rectify the "
                "images, or give the homography"
            )
        if len(self.distortion) not in expected or not np.isfinite(self.distortion).all():
            raise ValueError(
                f"distortion has {len(self.distortion)} coefficients for the model "
                f"'{self.model}': expected {' or '.join(map(str, expected))} finite ones"
            )
        return self.distortion, fisheye


def from_camera_info(msg: Any, rectified: bool = False) -> Calibration | None:
    """The calibration in a CameraInfo message; None for a camera that is not calibrated.

    Of rectified images it is `p`, without distortion. Of raw images it is `k` and `d`; where `k`
    is zero, `p` is used, as drivers of rectified images fill it alone.
    """
    p = tuple(float(value) for value in msg.p)
    projection = (*p[0:3], *p[4:7], *p[8:11])
    k = tuple(float(value) for value in msg.k)
    if not k[0] or (rectified and projection[0]):
        k, rectified = projection, True
    if not k[0]:
        return None
    rotation = tuple(float(value) for value in msg.r)
    return Calibration(
        k,
        Size(msg.width, msg.height),
        () if rectified else tuple(float(value) for value in msg.d),
        msg.distortion_model.strip().lower().replace(" ", "_"),
        rotation if any(rotation) else _IDENTITY,
        rectified,
        (msg.roi.x_offset, msg.roi.y_offset, msg.roi.width, msg.roi.height),
        (max(msg.binning_x, 1), max(msg.binning_y, 1)),
    )


def rotation_between(
    thermal: Calibration, rgb: Calibration, rotation: np.ndarray | None = None
) -> np.ndarray:
    """The (3, 3) rotation from a direction of thermal images to that of RGB images.

    rotation: from the thermal to the RGB camera's optical frame. None: the frames of both
        cameras' rectified images agree, as after a stereo calibration; cameras calibrated alone
        then look the same way.
    """
    to_thermal = np.array(thermal.rotation).reshape(3, 3)
    to_rgb = np.array(rgb.rotation).reshape(3, 3)
    if rotation is None:
        from_thermal = np.eye(3) if thermal.rectified else to_thermal
        return (np.eye(3) if rgb.rectified else to_rgb.T) @ from_thermal
    from_thermal = to_thermal.T if thermal.rectified else np.eye(3)
    return (to_rgb if rgb.rectified else np.eye(3)) @ rotation @ from_thermal


def is_rectified_topic(topic: str) -> bool:
    """Whether a topic of images carries rectified ones by ROS custom: `image_rect*`."""
    return "image_rect" in topic


def _explains(calibrated: Size, size: Size) -> bool:
    """Whether images of `size` are those of the calibrated size, scaled, or with telemetry."""
    a, b = calibrated.width * size.height, calibrated.height * size.width
    # Sizes are rounded: a pixel more or less is no other aspect ratio.
    return abs(a - b) <= max(calibrated) or _has_telemetry(calibrated, size)


def _has_telemetry(calibrated: Size, size: Size) -> bool:
    rows = size.height - calibrated.height
    return size.width == calibrated.width and 0 < rows <= _MOST_EXTRA_ROWS
