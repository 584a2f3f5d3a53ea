# SPDX-License-Identifier: AGPL-3.0-only
"""Registration: the thermal image warped into the RGB camera's pixels.

By a homography, or by both cameras' lenses: one map then removes the distortion of the thermal
image and applies that of the RGB image. Pixel coordinates are OpenCV's: (x, y), whole numbers at
pixel centres.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fusion_ros.frame.border import SoftBorder
from fusion_ros.frame.calibration import Lens
from fusion_ros.frame.images import output_buffer
from fusion_ros.size import Size

__all__ = ["Registration", "homography_from_intrinsics", "parse_homography"]

_GRID = Size(161, 121)
"""Nodes, across and down, where distorted images are registered exactly."""
_CACHED_SIZES = 4
_FEW_PIXELS = 0.01


def parse_homography(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The (3, 3) float64 homography of nine values in row order (or of a (3, 3) array).

    Raises `ValueError` unless there are nine finite values that make an invertible matrix.
    """
    expected = "expected 9 numbers, row by row, that map a thermal pixel to an RGB pixel"
    try:
        numbers = np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError):
        raise ValueError(f"homography {values!r} is not numeric: {expected}") from None
    if numbers.size != 9:
        raise ValueError(f"homography has {numbers.size} values: {expected}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"homography {numbers.tolist()} is not finite: {expected}")
    matrix = numbers.reshape(3, 3)
    # Judged in units of a thousand pixels, where all entries of an ordinary one are about 1.
    unit = np.diag([1e-3, 1e-3, 1.0])
    scaled = unit @ matrix @ np.linalg.inv(unit)
    norm = np.abs(scaled).max()
    if norm == 0 or abs(np.linalg.det(scaled / norm)) < 1e-9:
        raise ValueError(f"homography {numbers.tolist()} is singular: {expected}, one to one")
    return matrix


def homography_from_intrinsics(
    k_thermal: Sequence[float] | np.ndarray,
    k_rgb: Sequence[float] | np.ndarray,
    rotation: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """The (3, 3) homography of the plane at infinity, thermal pixel to RGB pixel.

    H = K_rgb R K_thermal^-1, exact for cameras with one centre, and for objects far away
    compared with the distance between the cameras.

    Args:
        k_thermal, k_rgb: camera matrices as in CameraInfo.k, nine values or (3, 3), in pixels.
        rotation: nine values or (3, 3), turns a direction in the thermal optical frame into the
            RGB optical frame; None for cameras that look the same way.

    Raises `ValueError` for a camera that is not calibrated, and for a matrix that is not a
    rotation or that turns the thermal camera away from the RGB camera's view.
    """
    k_thermal = _camera_matrix(k_thermal, "thermal")
    k_rgb = _camera_matrix(k_rgb, "RGB")
    turn = _rotation(rotation)
    return parse_homography(k_rgb @ turn @ np.linalg.inv(k_thermal))


def _rotation(rotation: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """The (3, 3) matrix of a rotation between both cameras."""
    turn = np.eye(3) if rotation is None else _nine(rotation, "rotation")
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or np.linalg.det(turn) < 0:
        raise ValueError(
            f"{turn.tolist()} is not a rotation: expected a 3x3 matrix with orthonormal rows "
            "and determinant 1"
        )
    if turn[2, 2] <= 0:
        raise ValueError(
            "rotation turns the thermal camera's axis behind the RGB camera: expected both to "
            "look into the same half space; is it between the optical frames (z forward)?"
        )
    return turn


@dataclass(frozen=True)
class _Warp:
    """Maps from one thermal size to one RGB size."""

    maps: tuple[np.ndarray, np.ndarray] | None = None
    border: SoftBorder | None = None
    coverage: float = 1.0
    problem: str | None = None


class Registration:
    """Warps thermal images into the RGB camera's pixels.

    Without a homography both images are assumed to show the same view: thermal images of the
    RGB size are returned unchanged, others are resized, and `warning` says so. `warning` is None
    while there is no problem. It is set once for each cause; the caller logs it and resets it
    to None.
    """

    def __init__(self, homography: Sequence[float] | np.ndarray | None = None):
        """`homography`: thermal pixel to RGB pixel, see `parse_homography` for its errors."""
        self.homography = None if homography is None else parse_homography(homography)
        self.warning: str | None = None
        self._warps: OrderedDict[tuple[Size, Size], _Warp] = OrderedDict()
        self._lenses: tuple[Lens, Lens, np.ndarray] | None = None
        self._latest = _Warp()
        self._warned_of: set[str] = set()

    @classmethod
    def of_lenses(
        cls, thermal: Lens, rgb: Lens, rotation: Sequence[float] | np.ndarray | None = None
    ) -> Registration:
        """Registration of images of two calibrated cameras, with lens distortion if they have any.

        rotation: see `homography_from_intrinsics`, also for the errors.
        """
        homography = homography_from_intrinsics(thermal.matrix, rgb.matrix, rotation)
        if not (thermal.is_distorted or rgb.is_distorted):
            return cls(homography)
        registration = cls()
        registration._lenses = (thermal, rgb, _rotation(rotation))
        return registration

    def thermal_pixels(self, pixels: np.ndarray) -> np.ndarray | None:
        """Thermal pixels of RGB pixels, both (N, 2) float64; None without a registration.

        They are NaN for directions that the thermal camera cannot see.
        """
        if self._lenses is not None:
            thermal, rgb, rotation = self._lenses
            rays = rgb.rays(np.asarray(pixels, np.float64))
            # Row vectors times R: the inverse rotation, from the RGB to the thermal camera.
            x, y, z = (np.column_stack((rays, np.ones(len(rays)))) @ rotation).T
            z[~(z > 0)] = np.nan
            return thermal.pixels(np.column_stack((x / z, y / z)))
        if self.homography is None:
            return None
        x, y, w = np.linalg.inv(self.homography) @ np.vstack((pixels.T, np.ones(len(pixels))))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.column_stack((x / w, y / w))

    def warp(self, thermal: np.ndarray, size: Size, out: np.ndarray | None = None) -> np.ndarray:
        """The thermal image (H, W) uint8 as the RGB camera of `size` (width, height) sees it.

        Pixels that the thermal camera does not see, see `border`, repeat the outermost ones
        that it sees, so that the network gets no artificial edge there. The result is written
        into `out` if given. Where nothing has to be done `thermal` itself is returned, so use
        the returned array.

        Raises `ValueError` for another kind of image and for a homography whose horizon
        crosses the thermal image.
        """
        if thermal.ndim != 2 or thermal.dtype != np.uint8:
            raise ValueError(
                f"thermal image is {thermal.dtype} {thermal.shape}, expected (H, W) uint8"
            )
        size = Size(int(size[0]), int(size[1]))
        thermal_size = Size.of(thermal)
        self._latest = self._warp_for(thermal_size, size)
        if self._latest.maps is not None:
            out = output_buffer(out, size.shape)
            return cv2.remap(thermal, *self._latest.maps, cv2.INTER_LINEAR, dst=out)
        if thermal_size == size:
            return thermal
        out = output_buffer(out, size.shape)
        shrinks = size.width < thermal_size.width and size.height < thermal_size.height
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(thermal, size, dst=out, interpolation=interpolation)

    def prepare(self, thermal_size: Size, size: Size) -> None:
        """Make ready for images of these sizes; raises `ValueError` as `warp` does."""
        self._warp_for(Size(*thermal_size), Size(*size))

    @property
    def border(self) -> SoftBorder | None:
        """Edge of the thermal camera's view in the latest warp; None where it sees every pixel."""
        return self._latest.border

    def border_within(self, seen: np.ndarray, size: Size) -> SoftBorder:
        """`border` where the thermal image (H, W) has data only in `seen` (H, W) bool.

        To be called after `warp`, whose `size` is the same. It takes as long as building a warp.
        """
        mask = seen.astype(np.uint8)
        if self._latest.maps is not None:
            mask = cv2.remap(mask, *self._latest.maps, cv2.INTER_NEAREST)
        elif Size.of(mask) != size:
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        both = mask > 0
        if self.border is not None:
            both &= self.border.seen
        return SoftBorder(both)

    @property
    def problem(self) -> str | None:
        """What is wrong with the latest warp; unlike `warning` for as long as it is used."""
        return self._latest.problem

    @property
    def coverage(self) -> float:
        """Share of the RGB pixels that the thermal camera saw in the latest warp, 0 to 1."""
        return self._latest.coverage

    def _warp_for(self, thermal_size: Size, size: Size) -> _Warp:
        key = (thermal_size, size)
        warp = self._warps.get(key)
        if warp is None:
            warp = self._warps[key] = self._build(thermal_size, size)
            if len(self._warps) > _CACHED_SIZES:
                self._warps.popitem(last=False)
        else:
            self._warps.move_to_end(key)
        return warp

    def _build(self, thermal_size: Size, size: Size) -> _Warp:
        if self._lenses is not None:
            x, y = self._lens_coordinates(thermal_size, size)
            return self._warp_to(x, y, thermal_size, size)
        if self.homography is None:
            if thermal_size != size:
                problem = self._warn(
                    "sizes",
                    f"thermal images are {thermal_size} and RGB images {size}, but "
                    "no homography is given: the thermal image is only resized, which is right "
                    "for aligned cameras alone; set a homography or calibrate both cameras",
                )
                return _Warp(problem=problem)
            return _Warp()
        if thermal_size == size and np.allclose(
            self.homography, self.homography[2, 2] * np.eye(3), rtol=0, atol=1e-9
        ):
            return _Warp()
        x, y = self._thermal_coordinates(thermal_size, size)
        return self._warp_to(x, y, thermal_size, size)

    def _warp_to(self, x: np.ndarray, y: np.ndarray, thermal_size: Size, size: Size) -> _Warp:
        """The warp by the thermal coordinates of each RGB pixel."""
        width, height = thermal_size
        with np.errstate(invalid="ignore"):
            seen = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        coverage, problem = float(seen.mean()), None
        if coverage < _FEW_PIXELS:
            problem = self._warn(
                "coverage",
                f"the registration puts the {thermal_size} thermal image onto "
                f"{coverage:.1%} of the {size} RGB image: expected it to map thermal "
                "pixels to RGB pixels; is it the inverse, or for other image sizes?",
            )
        border = None if seen.all() else SoftBorder(seen)
        return _Warp(_maps(x, y, thermal_size), border, coverage, problem)

    def _lens_coordinates(self, thermal_size: Size, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates x and y in the thermal image of each RGB pixel, each (H, W) float64."""
        thermal, rgb, _ = self._lenses
        if (thermal_size, size) != (thermal.size, rgb.size):
            raise ValueError(
                f"images are {thermal_size} and {size}, expected those of the lenses, "
                f"{thermal.size} and {rgb.size}"
            )
        # On a grid, since rays take long to find; in between distortion is linear to 1/50 pixel.
        x, y = (np.linspace(0, n - 1, min(n, nodes)) for n, nodes in zip(size, _GRID))
        nodes = np.stack(np.meshgrid(x, y), axis=-1)
        grid = self.thermal_pixels(nodes.reshape(-1, 2)).reshape(nodes.shape)
        down, across = _interpolation(size.height, len(y)), _interpolation(size.width, len(x))
        nowhere = np.isnan(grid[..., 0])
        unseen = down @ nowhere @ across.T > 0
        grid[nowhere] = 0
        coordinates = [down @ grid[..., axis] @ across.T for axis in (0, 1)]
        for each in coordinates:
            each[unseen] = np.nan
        return coordinates[0], coordinates[1]

    def _thermal_coordinates(self, thermal_size: Size, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates x and y in the thermal image of each RGB pixel, each (H, W) float64.

        They are NaN for pixels whose rays lie behind the thermal camera.
        """
        forward = self.homography
        right, bottom = thermal_size.width - 1, thermal_size.height - 1
        corners = np.array([[0, 0, 1], [right, 0, 1], [0, bottom, 1], [right, bottom, 1]])
        depth = corners @ forward[2]
        if depth.min() <= 0 <= depth.max():
            raise ValueError(
                f"homography {forward.ravel().tolist()} maps part of the {thermal_size} "
                "thermal image to infinity or behind the RGB camera: expected the third row to "
                "give every thermal pixel the same sign; check its last row and the rotation"
            )
        backward = np.linalg.inv(forward * np.sign(depth[0]))
        x, y = np.meshgrid(np.arange(size.width, dtype=np.float64), np.arange(size.height))
        u, v, w = (row[0] * x + row[1] * y + row[2] for row in backward)
        w[w <= 0] = np.nan
        return u / w, v / w

    def _warn(self, cause: str, text: str) -> str:
        """Set `warning` the first time, and return the text."""
        if cause not in self._warned_of:
            self._warned_of.add(cause)
            self.warning = text
        return text


def _interpolation(length: int, nodes: int) -> np.ndarray:
    """The (length, nodes) matrix that interpolates values at equally spaced nodes linearly."""
    at = np.linspace(0, nodes - 1, length)
    return np.maximum(1 - np.abs(at[:, np.newaxis] - np.arange(nodes)), 0)


def _maps(x: np.ndarray, y: np.ndarray, thermal_size: Size) -> tuple[np.ndarray, np.ndarray]:
    """cv2.remap's maps; what lies outside the thermal image is moved to its outermost pixels.

    In float32: OpenCV 5 warps by these in half the time of fixed-point ones, and without rounding
    to 1/32 pixel; OpenCV 4 takes a tenth to a quarter longer.
    """
    x = np.clip(np.nan_to_num(x), 0, thermal_size.width - 1)
    y = np.clip(np.nan_to_num(y), 0, thermal_size.height - 1)
    return x.astype(np.float32), y.astype(np.float32)


def _camera_matrix(k: Sequence[float] | np.ndarray, camera: str) -> np.ndarray:
    k = _nine(k, f"camera matrix of the {camera} camera")
    if k[0, 0] <= 0 or k[1, 1] <= 0 or k[2, 2] != 1:
        raise ValueError(
            f"camera matrix of the {camera} camera is {k.ravel().tolist()}: expected focal "
            "lengths above 0 and a last value of 1; calibrate the camera so that its camera_info "
            "carries k, or give the homography"
        )
    return k


def _nine(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    numbers = np.asarray(values, np.float64).ravel()
    if numbers.size != 9 or not np.isfinite(numbers).all():
        raise ValueError(f"{name} is {numbers.tolist()}: expected 9 finite values, row by row")
    return numbers.reshape(3, 3)
