# SPDX-License-Identifier: AGPL-3.0-only
"""sensor_msgs/Image to numpy and back, without copies wherever the encoding allows it.

Messages are duck-typed (`height`, `width`, `encoding`, `is_bigendian`, `step`, `data`), so
nothing here needs ROS. An image that cannot be read raises `ImageError`, whose text says what
was wrong, what was expected and what to do.

To add an input encoding, add one entry to `ENCODINGS`. 16 bit becomes 8 bit in two places: in
`to_8bit` here for visible images, and in `thermal.GainControl` for thermal ones.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from fusion_ros.frame.bit_depth import ALL_BITS, BitDepth
from fusion_ros.size import Size

__all__ = [
    "ENCODINGS",
    "THERMAL_ENCODINGS",
    "VISIBLE_ENCODINGS",
    "Converter",
    "Encoding",
    "ImageError",
    "fill",
    "output_buffer",
    "stamp_ns",
    "thermal_array",
    "to_8bit",
    "view",
    "visible_bgr",
]


class ImageError(ValueError):
    """An image message that cannot be used; `encoding` is the message's, where known."""

    def __init__(self, message: str, encoding: str | None = None):
        super().__init__(message)
        self.encoding = encoding


Conversion = Callable[[np.ndarray, Size, "np.ndarray | None"], np.ndarray]
"""From the array of `view` and the image's size to grey or BGR, written to the array if given."""


def _as_is(pixels: np.ndarray, size: Size, out: np.ndarray | None) -> np.ndarray:
    return pixels


def _colour(code: int, channels: int = 3) -> Conversion:
    """Conversion by a colour code of OpenCV, in the bit depth of the pixels."""

    def convert(pixels: np.ndarray, size: Size, out: np.ndarray | None) -> np.ndarray:
        if pixels.ndim == 2:
            pixels = pixels[:, : size.width]  # planar encodings: leave out the rows' padding
        shape = size.shape if channels == 1 else (*size.shape, channels)
        return cv2.cvtColor(pixels, code, dst=output_buffer(out, shape, pixels.dtype.type))

    return convert


def _grey(code: int) -> Conversion:
    return _colour(code, channels=1)


def _demosaic(code: int, channels: int) -> Conversion:
    """Conversion of a Bayer pattern, of two rows or columns as well: OpenCV makes those black."""
    convert = _colour(code, channels)

    def of_any_size(pixels: np.ndarray, size: Size, out: np.ndarray | None) -> np.ndarray:
        if not _is_tiny(size):
            return convert(pixels, size, out)
        # By an even number of pixels, so that the pattern goes on.
        padded = cv2.copyMakeBorder(pixels, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)
        image = convert(padded, Size.of(padded), None)[2:-2, 2:-2]
        out = output_buffer(out, image.shape, image.dtype.type)
        np.copyto(out, image)
        return out

    return of_any_size


def _is_tiny(size: Size) -> bool:
    """Whether OpenCV cannot demosaic an image of this size."""
    return min(size) < 3


def _first_plane(pixels: np.ndarray, size: Size, out: np.ndarray | None) -> np.ndarray:
    """The luminance of planar YUV as it is, a view."""
    return pixels[: size.height, : size.width]


_BGR_OF_YUV = np.array([[1.164, 2.018, 0], [1.164, -0.391, -0.813], [1.164, 0, 1.596]])
_BGR_OF_YUV = np.column_stack((_BGR_OF_YUV, _BGR_OF_YUV @ (-16, -128, -128))).astype(np.float32)
"""BT.601 with Y from 16 to 235, as OpenCV converts the other YUV encodings."""


def _bgr_of_nv24(pixels: np.ndarray, size: Size, out: np.ndarray | None) -> np.ndarray:
    """NV24, which OpenCV does not convert: Y, then U and V of every pixel side by side."""
    luminance = _first_plane(pixels, size, None)
    chroma = pixels[size.height :].reshape(size.height, -1)[:, : 2 * size.width]
    yuv = cv2.merge([luminance, chroma.reshape(*size.shape, 2)])
    return cv2.transform(yuv, _BGR_OF_YUV, dst=output_buffer(out, (*size.shape, 3)))


_ANY_SIZE = Size(1, 1)
_bgr_of_grey = _colour(cv2.COLOR_GRAY2BGR)


@dataclass(frozen=True)
class Encoding:
    """How the pixels of an encoding lie in memory, and how they become grey and BGR.

    dtype, channels: of the array that `view` gives.
    grey: to the thermal image, (H, W) of `dtype`.
    bgr: to the visible image, (H, W, 3) of `dtype`; None where it cannot be one.
    planes: rows in memory for each row of the image; above 1 where chroma follows luminance.
    multiple: the width and height are multiples of these.
    least: width and height are at least this.
    bridged: cv_bridge converts it, where it is installed.
    """

    dtype: type
    channels: int = 1
    grey: Conversion = _as_is
    bgr: Conversion | None = _bgr_of_grey
    planes: int | Fraction = 1
    multiple: Size = _ANY_SIZE
    least: int = 1
    bridged: bool = False

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel in a row (of the first plane)."""
        return self.channels * np.dtype(self.dtype).itemsize


def _colours(dtype: type, order: str) -> Encoding:
    """Encoding of interleaved colours in an order that OpenCV names: RGB, BGR, RGBA, BGRA."""
    grey = _grey(getattr(cv2, f"COLOR_{order}2GRAY"))
    bgr = _as_is if order == "BGR" else _colour(getattr(cv2, f"COLOR_{order}2BGR"))
    return Encoding(dtype, len(order), grey, bgr)


def _bayer(dtype: type, order: str) -> Encoding:
    """Encoding of a Bayer pattern; OpenCV names it by its second row's second and third pixel."""
    grey, bgr = (getattr(cv2, f"COLOR_Bayer{order}2{to}") for to in ("GRAY", "BGR"))
    return Encoding(dtype, 1, _demosaic(grey, 1), _demosaic(bgr, 3), least=2, bridged=True)


def _packed_yuv(order: str) -> Encoding:
    """Encoding of YUV 4:2:2: two bytes a pixel, of which one is luminance."""
    grey, bgr = (getattr(cv2, f"COLOR_YUV2{to}_{order}") for to in ("GRAY", "BGR"))
    return Encoding(np.uint8, 2, _grey(grey), _colour(bgr), multiple=Size(2, 1), bridged=True)


def _planar_yuv(order: str) -> Encoding:
    """Encoding of YUV 4:2:0: luminance, then half as many rows of chroma."""
    bgr = _colour(getattr(cv2, f"COLOR_YUV2BGR_{order}"))
    return Encoding(np.uint8, 1, _first_plane, bgr, planes=Fraction(3, 2), multiple=Size(2, 2))


ENCODINGS: dict[str, Encoding] = {
    "mono8": Encoding(np.uint8),
    "mono16": Encoding(np.uint16),
    "rgb8": _colours(np.uint8, "RGB"),
    "bgr8": _colours(np.uint8, "BGR"),
    "rgba8": _colours(np.uint8, "RGBA"),
    "bgra8": _colours(np.uint8, "BGRA"),
    "rgb16": _colours(np.uint16, "RGB"),
    "bgr16": _colours(np.uint16, "BGR"),
    "rgba16": _colours(np.uint16, "RGBA"),
    "bgra16": _colours(np.uint16, "BGRA"),
    # OpenCV's own names do not define the channels: grey, BGR and BGRA by convention.
    "8UC1": Encoding(np.uint8),
    "8UC3": _colours(np.uint8, "BGR"),
    "8UC4": _colours(np.uint8, "BGRA"),
    "16UC1": Encoding(np.uint16),
    "16UC3": _colours(np.uint16, "BGR"),
    "16SC1": Encoding(np.int16, bgr=None),
    # Degrees Celsius or kelvin.
    "32FC1": Encoding(np.float32, bgr=None),
    "bayer_rggb8": _bayer(np.uint8, "BG"),
    "bayer_bggr8": _bayer(np.uint8, "RG"),
    "bayer_gbrg8": _bayer(np.uint8, "GR"),
    "bayer_grbg8": _bayer(np.uint8, "GB"),
    "bayer_rggb16": _bayer(np.uint16, "BG"),
    "bayer_bggr16": _bayer(np.uint16, "RG"),
    "bayer_gbrg16": _bayer(np.uint16, "GR"),
    "bayer_grbg16": _bayer(np.uint16, "GB"),
    # From ROS 2 Iron on yuv422 is called uyvy, too, and yuv422_yuy2 yuyv.
    "yuv422": _packed_yuv("UYVY"),
    "uyvy": _packed_yuv("UYVY"),
    "yuv422_yuy2": _packed_yuv("YUY2"),
    "yuyv": _packed_yuv("YUY2"),
    "nv12": _planar_yuv("NV12"),
    "nv21": _planar_yuv("NV21"),
    "nv24": Encoding(np.uint8, 1, _first_plane, _bgr_of_nv24, planes=3),
}
"""Every encoding that is read, by its name in sensor_msgs/Image."""

THERMAL_ENCODINGS: tuple[str, ...] = tuple(ENCODINGS)
"""Encodings `thermal_array` reads; colour ones (a false-colour camera) give their luminance."""

VISIBLE_ENCODINGS: tuple[str, ...] = tuple(name for name, e in ENCODINGS.items() if e.bgr)
"""Encodings `visible_bgr` reads."""


def stamp_ns(header: Any) -> int:
    """Stamp of a std_msgs/Header, ns; negative for a time before 1970."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def view(msg: Any) -> np.ndarray:
    """The message's pixels as a read-only array that shares its memory.

    Returns (H, W) or (H, W, C) of the encoding's dtype; `step` becomes the row stride, and
    big-endian data keeps its byte order in the dtype (`>u2`). YUV in planes (nv12, nv21, nv24)
    comes as it lies in memory, (rows of all planes, step) with padding. The array is valid for
    as long as the message's data is not changed.

    Raises `ImageError` for an unknown encoding, an empty image, and `step` and `data` too small
    for the size they should hold.
    """
    encoding = _encoding(msg.encoding)
    dtype = np.dtype(encoding.dtype)
    height, width, step = msg.height, msg.width, msg.step
    row_bytes = width * encoding.pixel_bytes
    if height <= 0 or width <= 0:
        raise _error(msg, "it has no pixels; expected a width and height of at least 1")
    if min(width, height) < encoding.least:
        least = encoding.least
        raise _error(msg, f"expected at least {least}x{least} pixels, since they share colours")
    if width % encoding.multiple.width or height % encoding.multiple.height:
        which = "width" if encoding.multiple.height == 1 else "width and height"
        raise _error(msg, f"expected an even {which}, since pixels share their colour")
    data = _bytes_of(msg)
    rows = int(height * encoding.planes)
    if encoding.planes > 1 and data.nbytes == rows * row_bytes:
        step = row_bytes  # without padding; drivers disagree about the step of planes
    if step < row_bytes:
        raise _error(
            msg,
            f"step is {step}, expected at least {row_bytes} bytes a row; "
            "correct the camera driver's step or its encoding",
        )
    # The last row may lack its padding.
    needed = step * rows if encoding.planes > 1 else step * (rows - 1) + row_bytes
    if data.nbytes < needed:
        raise _error(
            msg,
            f"data is truncated: {data.nbytes} bytes, expected {step * rows} "
            f"({rows} rows of {step}); check the camera driver and the transport",
        )
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">" if msg.is_bigendian else "<")
    shape: tuple[int, ...] = (rows, step if encoding.planes > 1 else width)
    strides: tuple[int, ...] = (step, encoding.pixel_bytes)
    if encoding.channels > 1:
        shape += (encoding.channels,)
        strides += (dtype.itemsize,)
    pixels = np.ndarray(shape, dtype, data, strides=strides)
    pixels.flags.writeable = False
    return pixels


def thermal_array(msg: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The thermal image as (H, W) uint8, uint16, int16 or float32 in this machine's byte order.

    A view of the message where that is possible; luminance of colour encodings and data in the
    other byte order are converted, into `out` if given. Use the returned array: `out` stays
    untouched when a view will do. 8 and 16 bit, signed or not, keep their values; 32FC1 keeps
    its degrees. Raises `ImageError` as `view` does.
    """
    pixels = view(msg)
    encoding = ENCODINGS[msg.encoding]
    if encoding.grey is _as_is:
        return _native(pixels, out)
    return _convert(msg, pixels, encoding.grey, "mono16" if pixels.itemsize == 2 else "mono8", out)


def visible_bgr(
    msg: Any, out: np.ndarray | None = None, depth: BitDepth | None = None
) -> np.ndarray:
    """The visible image as (H, W, 3) uint8 BGR.

    A view of the message for bgr8 and 8UC3 (`out` stays untouched), converted otherwise, into
    `out` if given; see `to_8bit` for 16-bit ones. depth: of the camera's 16-bit images; None if
    they use all bits. Raises `ImageError` as `view` does.
    """
    encoding = _encoding(msg.encoding)
    if encoding.bgr is None:
        raise ImageError(
            f"encoding {_shown(msg.encoding)} cannot be a visible image: "
            f"expected one of {', '.join(VISIBLE_ENCODINGS)}",
            msg.encoding,
        )
    pixels = view(msg)
    if pixels.dtype == np.uint8:
        return _convert(msg, pixels, encoding.bgr, "bgr8", out)
    return to_8bit(_convert(msg, pixels, encoding.bgr, "bgr16", None), out, depth)


def to_8bit(
    pixels: np.ndarray, out: np.ndarray | None = None, depth: BitDepth | None = None
) -> np.ndarray:
    """16 bit to 8 bit, for visible images: 0..65535 becomes 0..255, rounded, as in cv_bridge.

    depth: how many of the 16 bits are used, which then become 0..255; None for all.
    """
    bits = ALL_BITS if depth is None else depth.update(pixels)
    out = output_buffer(out, pixels.shape)
    return cv2.convertScaleAbs(pixels, dst=out, alpha=255 / (2**bits - 1))


def _native(pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The array itself, or a copy in this machine's byte order and alignment."""
    if pixels.dtype.isnative and pixels.flags.aligned:
        return pixels
    out = output_buffer(out, pixels.shape, pixels.dtype.type)
    np.copyto(out, pixels)
    return out


def _convert(
    msg: Any, pixels: np.ndarray, convert: Conversion, target: str, out: np.ndarray | None
) -> np.ndarray:
    """Pixels as `target`, an encoding of cv_bridge: by cv_bridge where it can, else by OpenCV."""
    size = Size(msg.width, msg.height)
    encoding = ENCODINGS[msg.encoding]
    # cv_bridge takes rows for whole pixels, and fails at big-endian ones beside numpy 2.
    little = pixels.itemsize == 1 or not msg.is_bigendian
    bridged = encoding.bridged and not (encoding.least > 1 and _is_tiny(size))
    if bridged and little and msg.step % encoding.pixel_bytes == 0:
        converted = _by_cv_bridge(msg, target)
        if converted is not None:
            return converted
    try:
        return convert(_native(pixels), size, out)
    except cv2.error as error:
        raise _error(msg, f"OpenCV cannot convert it ({error.err})") from error


@cache
def _cv_bridge() -> Any:
    """A CvBridge, or None where cv_bridge is missing or cannot convert."""
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()
        # Its compiled part fails where it was built for another numpy.
        probe = SimpleNamespace(height=2, width=2, step=4, is_bigendian=0, data=bytes(8))
        probe.encoding = "yuv422"
        bridge.imgmsg_to_cv2(probe, "bgr8")
    except Exception:  # a broken installation may raise anything; OpenCV converts instead
        return None
    return bridge


def _by_cv_bridge(msg: Any, target: str) -> np.ndarray | None:
    """The image converted by cv_bridge, or None where OpenCV has to."""
    bridge = _cv_bridge()
    if bridge is None:
        return None
    layout = ENCODINGS[target]
    shape = (msg.height, msg.width, layout.channels)[: 2 + (layout.channels > 1)]
    try:
        image = bridge.imgmsg_to_cv2(msg, target)
    except Exception:  # an encoding or a step that this version of cv_bridge does not know
        return None
    return image if image.dtype == layout.dtype and image.shape == shape else None


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
    layout = _encoding(encoding)
    if layout.planes > 1:
        raise ImageError(f"cannot fill an image message of encoding '{encoding}'", encoding)
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


def _encoding(name: str) -> Encoding:
    try:
        return ENCODINGS[name]
    except (KeyError, TypeError):
        pass
    meant = str(name).strip("\0 ").lower()
    hint = f"did you mean '{meant}'? " if meant in ENCODINGS else ""
    raise ImageError(
        f"unsupported image encoding {_shown(name)}: {hint}expected one of "
        f"{', '.join(ENCODINGS)}; set the camera driver to one of these, or convert the image on "
        "its way",
        name,
    )


def _shown(encoding: Any) -> str:
    """An encoding in quotes, in printable characters, cut where it is too long to be one."""
    text = str(encoding)
    return ascii(text) if len(text) <= 40 else ascii(f"{text[:40]}...")


def _bytes_of(msg: Any) -> memoryview:
    try:
        return memoryview(msg.data)
    except TypeError:
        raise _error(
            msg, f"data is a {type(msg.data).__name__}, expected bytes or array.array('B')"
        ) from None


def _error(msg: Any, problem: str) -> ImageError:
    return ImageError(
        f"bad {msg.width}x{msg.height} {_shown(msg.encoding)} image: {problem}", msg.encoding
    )
