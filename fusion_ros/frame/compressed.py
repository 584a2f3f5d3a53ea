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

from fusion_ros.frame.bit_depth import BitDepth
from fusion_ros.frame.images import ENCODINGS, ImageError, to_8bit
from fusion_ros.size import Size

__all__ = ["check", "encode_jpeg", "thermal_array", "visible_bgr"]

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
"""Markers of the kinds of JPEG that libjpeg decodes: those of 8 bit with losses."""
_JPEG_OTHERS = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF)
"""Markers of the other kinds: lossless and hierarchical ones."""
_JPEG_SCAN, _JPEG_TABLE, _JPEG_ALONE = 0xDA, 0xDB, (0x01, *range(0xD0, 0xD8))
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_FIRST, _PNG_LAST = b"IHDR", b"IEND"
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
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
    """Raise `ImageError` for data that is no whole JPEG or PNG, without decoding it.

    What follows the image's end is left alone: drivers send buffers that are larger than it.
    """
    name = str(msg.format)
    if "compresseddepth" in name.lower():
        raise ImageError(
            f"format is '{name[:80]}': a compressedDepth image has a header of its own before the "
            "PNG and is not read; subscribe to the image itself or to its compressed topic"
        )
    data = memoryview(msg.data).cast("B")
    if not data.nbytes:
        raise ImageError("the compressed image has no data")
    begin = bytes(data[: len(_PNG)])
    if begin.startswith(_JPEG):
        size = _check_jpeg(bytes(data))
    elif begin == _PNG:
        size = _check_chunks(data)
    else:
        raise ImageError(
            f"the data of format {name[:80]!a} begins with {begin[:4].hex(' ')}: expected a "
            "JPEG or a PNG"
        )
    most = min(_MOST_PIXELS, _FREE_PIXELS + _PIXELS_A_BYTE * data.nbytes)
    if not 0 < size.width * size.height <= most:
        raise ImageError(
            f"the compressed image of {data.nbytes} bytes claims to be {size}: it is damaged, or "
            "no camera's image"
        )


def thermal_array(msg: Any, out: np.ndarray | None = None) -> np.ndarray:
    """The thermal image as (H, W) uint8 or uint16. Raises `ImageError` as `check` does."""
    pixels, encoding = _decode(msg)
    return ENCODINGS[encoding].grey(pixels, Size.of(pixels), None)


def visible_bgr(
    msg: Any, out: np.ndarray | None = None, depth: BitDepth | None = None
) -> np.ndarray:
    """The visible image as (H, W, 3) uint8 BGR; depth: as for `images.visible_bgr`.

    Raises `ImageError` as `check` does.
    """
    pixels, encoding = _decode(msg)
    image = ENCODINGS[encoding].bgr(pixels, Size.of(pixels), None)
    return image if image.dtype == np.uint8 else to_8bit(image, depth=depth)


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


def _check_jpeg(data: bytes) -> Size:
    """Return the size in the header of a JPEG.

    Raises `ImageError` if the header is damaged, or of a kind that cannot be decoded, or if the
    image's end is missing. The end is looked for behind the header, which may hold a thumbnail.
    """
    at, size, has_table = 2, None, False
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if len(data) < at + 4:
            raise _cut_off("JPEG", len(data))
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_ALONE:
            at += 2
            continue
        if data[at] != 0xFF or length < 2 or marker in (0x00, _JPEG[1], _JPEG_END[1]):
            raise _damaged(data, f"byte {at} begins no part of its header")
        if marker in _JPEG_OTHERS:
            raise _damaged(data, f"it is of the kind {marker:#x}, lossless or hierarchical")
        if marker in _JPEG_FRAMES:
            size = _size_in_frame(data, data[at + 4 : at + 2 + length])
        has_table |= marker == _JPEG_TABLE
        at += 2 + length
        if marker == _JPEG_SCAN:
            break
    if size is None or not has_table:
        raise _damaged(data, "its header has no " + ("size" if size is None else "tables"))
    if data.rfind(_JPEG_END, at) < 0:
        raise _cut_off("JPEG", len(data))
    return size


def _size_in_frame(data: bytes, frame: bytes) -> Size:
    """Return the size in the frame header of a JPEG."""
    channels = frame[5] if len(frame) > 5 else 0
    if channels not in (1, 3, 4) or len(frame) != 6 + 3 * channels:
        raise _damaged(data, f"it has {channels} channels, expected 1, 3 or 4")
    if frame[0] != 8:
        raise _damaged(data, f"it has {frame[0]} bits a channel, expected 8")
    return Size(int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big"))


def _check_chunks(data: memoryview) -> Size:
    """Return the size in the header of a PNG.

    Raises `ImageError` unless it is a row of undamaged chunks, without animation.

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
            return Size(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    raise _cut_off("PNG", data.nbytes)


def _damaged(data: bytes, problem: str) -> ImageError:
    return ImageError(
        f"the JPEG of {len(data)} bytes is damaged or cannot be decoded: {problem}; check the "
        "camera driver and the transport"
    )


def _cut_off(kind: str, length: int) -> ImageError:
    return ImageError(
        f"the {kind} of {length} bytes is cut off: its end is missing; check the transport, such "
        "as a lossy link or a message that is too large for it"
    )
