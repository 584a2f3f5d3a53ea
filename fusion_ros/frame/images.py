# SPDX-License-Identifier: AGPL-3.0-only
"""sensor_msgs/Image to numpy and back, without copies wherever the encoding allows it.

Messages are duck-typed (`height`, `width`, `encoding`, `is_bigendian`, `step`, `data`), so
nothing here needs ROS. An image that cannot be read raises `ImageError`, whose text says what
was wrong, what was expected and what to do.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

__all__ = [
    "THERMAL_ENCODINGS",
    "VISIBLE_ENCODINGS",
    "Converter",
    "ImageError",
    "fill",
    "output_buffer",
    "thermal_array",
    "view",
    "visible_bgr",
]


class ImageError(ValueError):
    """An image message that cannot be used; `encoding` is the one it claims, where known."""

    def __init__(self, message: str, encoding: str | None = None):
        super().__init__(message)
        self.encoding = encoding


@dataclass(frozen=True)
class _Layout:
    """How an encoding lies in memory, and the OpenCV conversions that leave it."""

    dtype: type
    channels: int
    to_grey: int | None = None
    to_bgr: int | None = None

    @property
    def pixel_bytes(self) -> int:
        return self.channels * np.dtype(self.dtype).itemsize


_GREY8 = _Layout(np.uint8, 1, to_bgr=cv2.COLOR_GRAY2BGR)
_GREY16 = _Layout(np.uint16, 1)
_BGR8 = _Layout(np.uint8, 3, to_grey=cv2.COLOR_BGR2GRAY)
_LAYOUTS = {
    "mono8": _GREY8,
    "mono16": _GREY16,
    "rgb8": _Layout(np.uint8, 3, cv2.COLOR_RGB2GRAY, cv2.COLOR_RGB2BGR),
    "bgr8": _BGR8,
    "rgba8": _Layout(np.uint8, 4, cv2.COLOR_RGBA2GRAY, cv2.COLOR_RGBA2BGR),
    "bgra8": _Layout(np.uint8, 4, cv2.COLOR_BGRA2GRAY, cv2.COLOR_BGRA2BGR),
    "8UC1": _GREY8,
    "16UC1": _GREY16,
    # Three unnamed channels are BGR by OpenCV's custom, as in cv_bridge.
    "8UC3": _BGR8,
}

THERMAL_ENCODINGS: tuple[str, ...] = tuple(_LAYOUTS)
"""Encodings `thermal_array` reads; colour ones (a false-colour camera) give their luminance."""

VISIBLE_ENCODINGS: tuple[str, ...] = tuple(_LAYOUTS)
"""Encodings `visible_bgr` reads."""


def view(msg: Any) -> np.ndarray:
    """The message's pixels as a read-only array that shares its memory.

    Returns (H, W) or (H, W, C), uint8 or uint16; `step` becomes the row stride, and big-endian
    16-bit data keeps its byte order in the dtype (`>u2`). The array is valid for as long as the
    message's data is not changed.

    Raises `ImageError` for an unknown encoding, an empty image, or `step` and `data` too small
    for the size they should hold.
    """
    layout = _layout(msg.encoding)
    dtype = np.dtype(layout.dtype)
    height, width, step = msg.height, msg.width, msg.step
    row_bytes = width * layout.pixel_bytes
    if height <= 0 or width <= 0:
        raise _error(msg, "it has no pixels; expected a width and height of at least 1")
    if step < row_bytes:
        raise _error(
            msg,
            f"step is {step}, expected at least {row_bytes} bytes a row; "
            "correct the camera driver's step or its encoding",
        )
    data = _bytes_of(msg)
    # The last row may lack its padding.
    needed = step * (height - 1) + row_bytes
    if data.nbytes < needed:
        raise _error(
            msg,
            f"data is truncated: {data.nbytes} bytes, expected {step * height} "
            f"({height} rows of {step}); check the camera driver and the transport",
        )
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">" if msg.is_bigendian else "<")
    shape: tuple[int, ...] = (height, width)
    strides: tuple[int, ...] = (step, layout.pixel_bytes)
    if layout.channels > 1:
        shape += (layout.channels,)
        strides += (dtype.itemsize,)
    pixels = np.ndarray(shape, dtype, data, strides=strides)
    pixels.flags.writeable = False
    return pixels


def thermal_array(msg: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The thermal image as (H, W) uint8 or uint16 in this machine's byte order.

    A view of the message where that is possible; luminance of colour encodings and data in the
    other byte order are converted, into `out` if given. Use the returned array: `out` stays
    untouched when a view will do. Raises `ImageError` as `view` does.
    """
    pixels = view(msg)
    to_grey = _LAYOUTS[msg.encoding].to_grey
    if to_grey is not None:
        return cv2.cvtColor(pixels, to_grey, dst=output_buffer(out, pixels.shape[:2]))
    if pixels.dtype.isnative and pixels.flags.aligned:
        return pixels
    out = output_buffer(out, pixels.shape, np.uint16)
    np.copyto(out, pixels)
    return out


def visible_bgr(msg: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The visible image as (H, W, 3) uint8 BGR.

    A view of the message for bgr8 and 8UC3 (`out` stays untouched), converted otherwise, into
    `out` if given; 16-bit values keep their high byte. Raises `ImageError` as `view` does.
    """
    pixels = view(msg)
    layout = _LAYOUTS[msg.encoding]
    if layout is _BGR8:
        return pixels
    out = output_buffer(out, (*pixels.shape[:2], 3))
    if layout.to_bgr is not None:
        return cv2.cvtColor(pixels, layout.to_bgr, dst=out)
    np.copyto(out, _high_bytes(msg)[:, :, np.newaxis])
    return out


class Converter:
    """Reads one camera's messages by `thermal_array` or `visible_bgr`, converting in kept memory.

    The array of a call holds until the next one, and no longer than the message's data.
    """

    def __init__(self, read: Callable[[Any, np.ndarray | None], np.ndarray]) -> None:
        self._read = read
        self._kind: tuple[int, int, str] | None = None
        self._out: np.ndarray | None = None

    def __call__(self, msg: Any) -> np.ndarray:
        """The image in `msg`. Raises `ImageError` as `view` does."""
        kind = (msg.height, msg.width, msg.encoding)
        if kind != self._kind:
            self._kind, self._out = kind, None
        pixels = self._read(msg, self._out)
        if pixels.flags.owndata:  # converted: not a view of the message
            self._out = pixels
        return pixels


def fill(msg: Any, pixels: np.ndarray, encoding: str, header: Any) -> Any:
    """Put `pixels` (H, W) or (H, W, C) into the message `msg` and return it.

    Where `msg.data` already is a byte array of the right length (the message was filled before)
    it is overwritten in place, so a publisher that keeps its message allocates nothing.

    Raises `ImageError` if dtype or shape of `pixels` is not that of `encoding`.
    """
    layout = _layout(encoding)
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if (
        pixels.dtype != layout.dtype
        or pixels.ndim != (2 if layout.channels == 1 else 3)
        or channels != layout.channels
        or pixels.size == 0
    ):
        shape = "(H, W)" if layout.channels == 1 else f"(H, W, {layout.channels})"
        raise ImageError(
            f"cannot fill an image message of encoding '{encoding}' from {pixels.dtype} "
            f"{pixels.shape}: expected {np.dtype(layout.dtype)} {shape} with at least one pixel",
            encoding,
        )
    height, width = pixels.shape[:2]
    msg.header = header
    msg.height = height
    msg.width = width
    msg.encoding = encoding
    msg.is_bigendian = int(sys.byteorder == "big")
    msg.step = width * layout.pixel_bytes
    data = msg.data
    if isinstance(data, array.array) and data.typecode == "B" and len(data) == pixels.nbytes:
        np.copyto(np.frombuffer(data, pixels.dtype).reshape(pixels.shape), pixels)
    else:
        # The one way that is fast: bytes or a numpy array are copied element by element.
        data = array.array("B")
        data.frombytes(np.ascontiguousarray(pixels).view(np.uint8))
        msg.data = data
    return msg


def output_buffer(
    out: np.ndarray | None, shape: tuple[int, ...], dtype: type = np.uint8
) -> np.ndarray:
    """`out` if it can take a result of `shape` and `dtype`, a new array if it is None.

    Raises `ValueError` otherwise: OpenCV would silently write into another array instead.
    """
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != tuple(shape) or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype} {out.shape}, expected a contiguous "
            f"{np.dtype(dtype)} array of shape {tuple(shape)}"
        )
    return out


def _layout(encoding: str) -> _Layout:
    try:
        return _LAYOUTS[encoding]
    except KeyError:
        raise ImageError(
            f"unsupported image encoding '{encoding}': expected one of {', '.join(_LAYOUTS)}; "
            "set the camera driver to one of these, or convert the image on its way",
            encoding,
        ) from None


def _bytes_of(msg: Any) -> memoryview:
    try:
        return memoryview(msg.data)
    except TypeError:
        raise _error(
            msg, f"data is a {type(msg.data).__name__}, expected bytes or array.array('B')"
        ) from None


def _high_bytes(msg: Any) -> np.ndarray:
    """(H, W) uint8 view of the more significant bytes of a 16-bit image."""
    return np.ndarray(
        (msg.height, msg.width),
        np.uint8,
        _bytes_of(msg),
        offset=0 if msg.is_bigendian else 1,
        strides=(msg.step, 2),
    )


def _error(msg: Any, problem: str) -> ImageError:
    return ImageError(
        f"bad {msg.width}x{msg.height} '{msg.encoding}' image: {problem}", msg.encoding
    )
