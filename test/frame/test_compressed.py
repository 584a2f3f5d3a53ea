# SPDX-License-Identifier: AGPL-3.0-only
"""Compressed images: each form is read as image_transport writes it, others are refused."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from fusion_ros.frame.bit_depth import BitDepth
from fusion_ros.frame.compressed import check, encode_jpeg, thermal_array, visible_bgr
from fusion_ros.frame.images import ImageError

GREY = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
BGR = np.dstack([np.full((48, 64), level, np.uint8) for level in (200, 120, 40)])


def message(pixels: np.ndarray, form: str, suffix: str = ".png") -> SimpleNamespace:
    return SimpleNamespace(format=form, data=cv2.imencode(suffix, pixels)[1].tobytes())


@pytest.mark.parametrize("form", ["16UC1; png compressed", "mono16; png compressed ", "png"])
def test_16_bit_png_keeps_its_counts(form):
    np.testing.assert_array_equal(thermal_array(message(GREY, form)), GREY)


def test_8_bit_thermal_images_are_read_from_png_and_jpeg():
    grey = (GREY >> 8).astype(np.uint8)
    np.testing.assert_array_equal(thermal_array(message(grey, "mono8; png compressed")), grey)
    read = thermal_array(message(grey, "mono8; jpeg compressed", ".jpg")).astype(int)
    np.testing.assert_allclose(read, grey, atol=4)
    assert thermal_array(message(BGR, "jpeg", ".jpg")).shape == (48, 64)


@pytest.mark.parametrize(
    ("form", "suffix", "swapped"),
    [
        ("jpeg", ".jpg", False),
        ("rgb8; jpeg compressed bgr8", ".jpg", False),
        ("bgr8; png compressed bgr8", ".png", False),
        ("rgb8; png compressed rgb8", ".png", True),
        ("bayer_rggb8; jpeg compressed bgr8", ".jpg", False),
    ],
)
def test_colours_are_in_the_order_that_the_format_names(form, suffix, swapped):
    read = visible_bgr(message(BGR[..., ::-1] if swapped else BGR, form, suffix))
    np.testing.assert_allclose(read.astype(int), BGR, atol=4)


def test_a_png_of_12_bits_is_as_bright_as_its_camera():
    twelve = BGR.astype(np.uint16) * 16
    read = visible_bgr(message(twelve, "bgr16; png compressed bgr16"), depth=BitDepth())
    np.testing.assert_allclose(read, BGR, atol=1)


def test_16_bit_colour_grey_and_alpha_become_8_bit_bgr():
    wide = BGR.astype(np.uint16) * 257
    np.testing.assert_array_equal(visible_bgr(message(wide, "bgr16; png compressed bgr16")), BGR)
    alpha = np.dstack([BGR, np.full((48, 64), 255, np.uint8)])
    np.testing.assert_array_equal(visible_bgr(message(alpha, "bgra8; png compressed")), BGR)
    assert visible_bgr(message(BGR[..., 0], "mono8; png compressed")).shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_that_is_cut_off_is_refused(suffix):
    whole = message(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8), "x", suffix)
    for kept in (0.99, 0.5, 0.1):
        cut = SimpleNamespace(format="x", data=whole.data[: int(kept * len(whole.data))])
        with pytest.raises(ImageError, match="is cut off"):
            check(cut)
        with pytest.raises(ImageError, match="is cut off"):
            visible_bgr(cut)
    check(whole)


@pytest.mark.parametrize("after", [bytes(4000), b"\xff" * 100, bytes(range(250))])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_what_a_driver_leaves_behind_the_end_of_an_image_is_no_part_of_it(suffix, after):
    whole = message(BGR, "x", suffix)
    longer = SimpleNamespace(format="x", data=whole.data + after)
    check(longer)
    np.testing.assert_array_equal(visible_bgr(longer), visible_bgr(whole))


def test_a_jpeg_that_is_cut_off_behind_its_thumbnail_is_refused():
    thumbnail, whole = (message(BGR, "jpeg", ".jpg").data for _ in range(2))
    part = b"Exif\0\0" + thumbnail
    begin = b"\xff\xd8\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part
    check(SimpleNamespace(format="jpeg", data=begin + whole[2:]))
    with pytest.raises(ImageError, match="is cut off"):
        check(SimpleNamespace(format="jpeg", data=(begin + whole[2:])[:-40]))


def with_byte(data: bytes, marker: bytes, offset: int, value: int) -> bytes:
    changed = bytearray(data)
    changed[data.index(marker) + offset] = value
    return bytes(changed)


FRAME, QUANTISATION, SCAN = b"\xff\xc0", b"\xff\xdb", b"\xff\xda"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda jpeg: with_byte(jpeg, FRAME, 4, 12), "12 bits a channel"),
        (lambda jpeg: with_byte(jpeg, FRAME, 9, 0), "0 channels"),
        (lambda jpeg: with_byte(jpeg, FRAME, 1, 0xC3), "lossless"),
        (lambda jpeg: with_byte(with_byte(jpeg, FRAME, 7, 0), FRAME, 8, 0), "claims to be 0x48"),
        (lambda jpeg: jpeg.replace(QUANTISATION, b"\xff\xfe"), "no tables"),
        (lambda jpeg: jpeg[: jpeg.index(FRAME)] + jpeg[jpeg.index(SCAN) :], "no size"),
        (lambda jpeg: jpeg[: jpeg.index(SCAN)] + b"\xff\xd9" * 4, "is damaged"),
        (lambda jpeg: b"\xff\xd8\xff\xd9\xff\xd9", "is damaged"),
    ],
)
def test_a_jpeg_that_cannot_be_decoded_is_refused_by_its_header(change, says):
    jpeg = message(BGR, "jpeg", ".jpg").data
    with pytest.raises(ImageError, match=says):
        check(SimpleNamespace(format="jpeg", data=change(jpeg)))


@pytest.mark.parametrize(
    ("form", "data", "says"),
    [
        ("16UC1; compressedDepth png", b"\0" * 12 + b"\x89PNG\r\n\x1a\n", "compressedDepth"),
        ("h264", b"\0\0\0\1\x67", "expected a JPEG or a PNG"),
        ("jpeg", b"", "no data"),
        ("jpeg", b"\xff\xd8\xff" * 50 + b"\xff\xd9", "is damaged"),
        ("a" * 100_000, b"12345678", "begins with"),
    ],
)
def test_what_is_no_image_is_refused_in_a_short_text(form, data, says):
    with pytest.raises(ImageError, match=says) as refused:
        visible_bgr(SimpleNamespace(format=form, data=data))
    assert len(str(refused.value)) < 400


def test_a_header_that_claims_an_absurd_size_is_refused_before_memory_is_taken():
    data = bytearray(cv2.imencode(".png", BGR)[1].tobytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="60000x60000"):
        visible_bgr(SimpleNamespace(format="png", data=bytes(data)))
    data = bytearray(encode_jpeg(BGR, 90).tobytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(ImageError, match="60000x60000"):
        visible_bgr(SimpleNamespace(format="jpeg", data=bytes(data)))


def test_a_png_whose_bytes_are_damaged_is_refused():
    data = bytearray(cv2.imencode(".png", BGR)[1].tobytes())
    data[60] ^= 1
    with pytest.raises(ImageError, match="checksum of its chunk"):
        check(SimpleNamespace(format="png", data=bytes(data)))
