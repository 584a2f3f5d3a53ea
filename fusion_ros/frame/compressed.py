# SPDX-License-Identifier: AGPL-3.0-only
"""sensor_msgs/CompressedImage to numpy, and JPEG from numpy.

Messages are duck-typed (`format`, `data`). `format` is as image_transport writes it: the encoding
of the original image, then what the data is, such as `16UC1; png compressed` or
`rgb8; jpeg compressed bgr8`; drivers write `jpeg` or `png` alone.
"""

from __future__ import annotations

import zlib
from typing import Any

import cv2
import numpy as np

from fusion_ros.frame.images import ENCODINGS, ImageError, to_8bit
from fusion_ros.size import Size

__all__ = ["check", "encode_jpeg", "thermal_array", "visible_bgr"]

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_FIRST, _PNG_LAST = b"IHDR", b"IEND"
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_PADDING = 64
"""Bytes that a driver may leave after the end of an image."""
_MOST_PIXELS = 1 << 25
"""Larger than every camera's image: a header that claims more would only fill the memory."""
_PIXELS_A_BYTE, _FREE_PIXELS = 2000, 1 << 20
"""A PNG packs at most 1032 bytes into one; a small image may claim `_FREE_PIXELS` all the same."""
_ENCODINGS = {
    (1, "uint8"): "mono8",
    (3, "uint8"): "bgr8",
    (4, "uint8"): "bgra8",
    (1, "uint16"): "mono16",
    (3, "uint16"): "bgr16",
    (4, "uint16"): "bgra16",
}
_SWAPPED = {"bgr8": "rgb8", "bgra8": "rgba8", "bgr16": "rgb16", "bgra16": "rgba16"}


def check(msg: Any) -> None:
    """Raise `ImageError` for data that is no whole JPEG or PNG, without decoding it."""
    name = str(msg.format)
    if "compresseddepth" in name.lower():
        raise ImageError(
            f"format is '{name[:80]}': a compressedDepth image has a header of its own before the "
            "PNG and is not read; subscribe to the image itself or to its compressed topic"
        )
    data = memoryview(msg.data).cast("B")
    if not data.nbytes:
        raise ImageError("the compressed image has no data")
    begin, end = bytes(data[: len(_PNG)]), bytes(data[-_PADDING:])
    if begin.startswith(_JPEG):
        if end.rstrip(b"\0")[-2:] != _JPEG_END and _JPEG_END not in end:
            raise _cut_off("JPEG", data.nbytes)
    elif begin == _PNG:
        _check_chunks(data)
    else:
        raise ImageError(
            f"the data of format '{name[:80]}' begins with {begin[:4].hex(' ')}: expected a JPEG "
            "or a PNG"
        )


def thermal_array(msg: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The thermal image as (H, W) uint8 or uint16. Raises `ImageError` as `check` does."""
    pixels, encoding = _decode(msg)
    return ENCODINGS[encoding].grey(pixels, Size.of(pixels), None)


def visible_bgr(msg: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The visible image as (H, W, 3) uint8 BGR. Raises `ImageError` as `check` does."""
    pixels, encoding = _decode(msg)
    image = ENCODINGS[encoding].bgr(pixels, Size.of(pixels), None)
    return image if image.dtype == np.uint8 else to_8bit(image)


def encode_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """An (H, W, 3) uint8 BGR image as the bytes of a JPEG, (N,) uint8; quality is 1 to 100."""
    done, data = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not done:
        raise ImageError(f"OpenCV cannot write an image of {Size.of(pixels)} as JPEG")
    return data.ravel()


def _decode(msg: Any) -> tuple[np.ndarray, str]:
    """The pixels and the encoding that they have."""
    check(msg)
    data = np.frombuffer(msg.data, np.uint8)
    size = _claimed_size(data)
    if size is None:
        raise ImageError(f"the JPEG of {data.size} bytes is damaged: its header has no size")
    most = min(_MOST_PIXELS, _FREE_PIXELS + _PIXELS_A_BYTE * data.size)
    if size.width * size.height > most:
        raise ImageError(
            f"the compressed image of {data.size} bytes claims to be {size}: it is damaged, or no "
            "camera's image"
        )
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"OpenCV cannot decode the compressed image ({error.err})") from error
    if pixels is None:
        raise ImageError(f"OpenCV cannot decode the {data.size} bytes of the compressed image")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    encoding = _ENCODINGS.get((channels, pixels.dtype.name))
    if encoding is None:
        raise ImageError(
            f"the compressed image has {channels} channels of {pixels.dtype}: expected 1, 3 or 4 "
            "of 8 or 16 bit"
        )
    # The data is in the order that the last word names; OpenCV takes it for RGB and gives BGR.
    stored = str(msg.format).rpartition("compressed")[2].strip()
    return pixels, _SWAPPED.get(encoding, encoding) if stored.startswith("rgb") else encoding


def _check_chunks(data: memoryview) -> None:
    """Raise `ImageError` unless a PNG is a row of undamaged chunks, without animation.

    OpenCV takes memory for what a chunk claims to be, which can be 4 GB in a file of 100 bytes.
    """
    at, first = len(_PNG), True
    while at + 12 <= data.nbytes:
        length, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        chunk, at = data[at + 4 : at + 8 + length], at + 12 + length
        if at > data.nbytes:
            break
        if zlib.crc32(chunk) != int.from_bytes(data[at - 4 : at], "big"):
            raise ImageError(
                f"the PNG of {data.nbytes} bytes is damaged: the checksum of its chunk {kind!r} "
                "is wrong; check the transport"
            )
        if first is not (kind == _PNG_FIRST) or kind in _ANIMATION:
            raise ImageError(
                f"the PNG of {data.nbytes} bytes is damaged or animated: it has a chunk "
                f"{kind!r} where none belongs"
            )
        first = False
        if kind == _PNG_LAST:
            return
    raise _cut_off("PNG", data.nbytes)


def _claimed_size(data: np.ndarray) -> Size | None:
    """Width and height in the header; None if it cannot be found."""
    raw = data.tobytes() if data.size < 64 else data[: 1 << 16].tobytes()
    if raw.startswith(_PNG):
        return Size(int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big"))
    at = 2
    while at + 9 <= len(raw):
        if raw[at] != 0xFF:
            return None
        marker = raw[at + 1]
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(raw[at + n : at + n + 2], "big") for n in (5, 7))
            return Size(width, height)
        at += 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return None


def _cut_off(kind: str, length: int) -> ImageError:
    return ImageError(
        f"the {kind} of {length} bytes is cut off: its end is missing; check the transport, such "
        "as a lossy link or a message that is too large for it"
    )
