# SPDX-License-Identifier: AGPL-3.0-only
"""Any image or camera_info message: it is read with the right shape, or refused in a short text."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_ros.frame import compressed, images
from fusion_ros.frame.calibration import from_camera_info
from fusion_ros.frame.images import ENCODINGS, THERMAL_ENCODINGS, VISIBLE_ENCODINGS, ImageError
from fusion_ros.size import Size

LONGEST_TEXT = 1200
quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def attempt(read: Callable[[Any], Any], *arguments: Any) -> tuple[Any, str]:
    """What `read` returns, or None and why it refuses."""
    try:
        return read(*arguments), ""
    except (ImageError, ValueError) as error:
        return None, str(error)


sizes = st.integers(0, 9) | st.sampled_from((2**31, 2**32 - 1))
any_encoding = st.sampled_from((*ENCODINGS, "RGB8", "", "jpeg")) | st.text(max_size=300)


@st.composite
def messages(draw, encoding=any_encoding):
    """Make image messages, whose step and length are right more often than not."""
    height, width, name = draw(sizes), draw(sizes), draw(encoding)
    layout = ENCODINGS.get(name)
    row = width * layout.pixel_bytes if layout else width
    step = draw(st.just(row) | st.integers(0, 64).map(lambda more: row + more) | sizes)
    rows = math.ceil(height * layout.planes) if layout else height
    whole = min(step * rows, 4096)
    length = draw(st.just(whole) | st.integers(0, 2 * whole + 8))
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=name,
        step=step,
        is_bigendian=draw(st.integers(0, 1)),
        data=draw(st.binary(min_size=1, max_size=8)) * (length // 8) + bytes(length % 8),
    )


@quick
@given(messages())
def test_any_message_is_read_as_its_size_or_refused_in_a_short_text(message):
    for read, channels in ((images.thermal_array, ()), (images.visible_bgr, (3,))):
        pixels, refusal = attempt(read, message)
        assert len(refusal) < LONGEST_TEXT
        if pixels is None:
            assert refusal
            continue
        assert pixels.shape == (message.height, message.width, *channels)
        assert pixels.dtype.isnative
        if channels:
            assert pixels.dtype == np.uint8


@quick
@given(st.sampled_from(("mono16", "16UC1", "rgb16", "32FC1")), st.integers(1, 6), st.data())
def test_both_byte_orders_and_any_padding_give_the_same_image(encoding, width, data):
    layout = ENCODINGS[encoding]
    pixels = np.frombuffer(
        data.draw(
            st.binary(min_size=3 * width * layout.pixel_bytes, max_size=None).map(
                lambda raw: raw[: 3 * width * layout.pixel_bytes]
            )
        ),
        np.dtype(layout.dtype).newbyteorder("<"),
    ).reshape(3, -1)
    read = images.visible_bgr if layout.channels == 3 else images.thermal_array
    results = []
    for order, padding in ((0, 0), (1, 0), (0, 5), (1, 3)):
        ordered = pixels.astype(pixels.dtype.newbyteorder("<>"[order]))
        rows = [row.tobytes() + bytes(padding) for row in ordered]
        message = SimpleNamespace(
            height=3,
            width=width,
            encoding=encoding,
            step=width * layout.pixel_bytes + padding,
            is_bigendian=order,
            data=b"".join(rows),
        )
        results.append(np.array(read(message)))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_filled_or_read_in_one_encoding_has_a_grey_or_a_colour_image(encoding):
    layout = ENCODINGS[encoding]
    rows, width = int(4 * layout.planes), 4
    message = SimpleNamespace(
        height=4,
        width=width,
        encoding=encoding,
        step=width * layout.pixel_bytes,
        is_bigendian=0,
        data=bytes(rows * width * layout.pixel_bytes),
    )
    assert encoding in THERMAL_ENCODINGS
    assert images.thermal_array(message).shape == (4, 4)
    if encoding in VISIBLE_ENCODINGS:
        assert images.visible_bgr(message).shape == (4, 4, 3)


@quick
@given(
    st.text(max_size=60) | st.sampled_from(("jpeg", "png", "16UC1; compressedDepth png")),
    st.sampled_from((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF")),
    st.binary(max_size=200),
    st.sampled_from((b"", b"\xff\xd9", b"IEND\xae\x42\x60\x82")),
)
def test_any_compressed_data_is_read_or_refused_in_a_short_text(form, begin, middle, end):
    message = SimpleNamespace(format=form, data=begin + middle + end)
    for read in (compressed.thermal_array, compressed.visible_bgr):
        pixels, refusal = attempt(read, message)
        assert len(refusal) < LONGEST_TEXT
        assert refusal if pixels is None else pixels.size


# onnxruntime may have switched this thread to treat subnormal numbers as 0.
numbers = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=False) | st.sampled_from(
    (0.0, 1.0, 500.0, 320.0)
)
counts = st.integers(0, 2**32 - 1) | st.integers(0, 1280)


@st.composite
def infos(draw):
    nine = st.lists(numbers, min_size=9, max_size=9)
    usual = st.just([500.0, 0, 320.0, 0, 500.0, 240.0, 0, 0, 1.0])
    return SimpleNamespace(
        k=draw(usual | nine),
        d=draw(st.lists(numbers, max_size=15)),
        r=draw(st.just([1.0, 0, 0, 0, 1, 0, 0, 0, 1]) | nine),
        p=draw(st.lists(numbers, min_size=12, max_size=12) | st.just([0.0] * 12)),
        width=draw(counts),
        height=draw(counts),
        distortion_model=draw(
            st.sampled_from(("", "plumb_bob", "rational_polynomial", "equidistant", "fisheye"))
            | st.text(max_size=300)
        ),
        binning_x=draw(st.integers(0, 4) | counts),
        binning_y=draw(st.integers(0, 4) | counts),
        roi=SimpleNamespace(
            x_offset=draw(counts), y_offset=draw(counts), width=draw(counts), height=draw(counts)
        ),
    )


@quick
@given(infos(), st.booleans())
def test_any_camera_info_is_a_lens_or_refused_in_a_short_text(info, rectified):
    calibration = from_camera_info(info, rectified)
    if calibration is None:
        return
    lens, refusal = attempt(calibration.at, Size(64, 48))
    assert len(refusal) < LONGEST_TEXT
    assert refusal if lens is None else lens.matrix.shape == (3, 3)
