# SPDX-License-Identifier: AGPL-3.0-only
"""Image messages become arrays and arrays become messages, and broken ones say why."""

from __future__ import annotations

import array
import sys
import tracemalloc
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

from fusion_ros.frame import images
from fusion_ros.frame.images import ImageError

HEIGHT, WIDTH = 6, 8
CHANNELS = {
    "mono8": 1, "mono16": 1, "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4,
    "8UC1": 1, "16UC1": 1, "8UC3": 3,
}  # fmt: skip


@dataclass
class FakeImage:
    """The fields of sensor_msgs/Image that matter here."""

    height: int = 0
    width: int = 0
    encoding: str = ""
    is_bigendian: int = 0
    step: int = 0
    data: object = field(default_factory=lambda: array.array("B"))
    header: object = None


def pixels_for(encoding: str, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng(7)
    channels = CHANNELS[encoding]
    shape = (height, width) if channels == 1 else (height, width, channels)
    if "16" in encoding:
        return rng.integers(0, 65536, shape, dtype=np.uint16)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def message(pixels: np.ndarray, encoding: str, *, padding: int = 0, big: bool = False) -> FakeImage:
    height, width = pixels.shape[:2]
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(">u2" if big else "<u2")
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAB)
    data = array.array("B")
    data.frombytes(rows.tobytes())
    return FakeImage(height, width, encoding, int(big), rows.shape[1], data)


def bgr_by_hand(pixels: np.ndarray, encoding: str) -> np.ndarray:
    if "16" in encoding:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        return np.stack([pixels] * 3, axis=-1)
    return pixels[..., 2::-1] if encoding.startswith("rgb") else pixels[..., :3]


def test_the_listed_encodings_are_the_promised_ones():
    assert set(images.THERMAL_ENCODINGS) == set(images.VISIBLE_ENCODINGS) == set(CHANNELS)


@pytest.mark.parametrize("padding", [0, 2, 5])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_every_encoding_is_viewed_without_its_row_padding(encoding, padding):
    pixels = pixels_for(encoding)
    np.testing.assert_array_equal(images.view(message(pixels, encoding, padding=padding)), pixels)


@pytest.mark.parametrize("encoding", CHANNELS)
def test_a_view_shares_the_messages_memory_and_cannot_be_scribbled_on(encoding):
    msg = message(pixels_for(encoding), encoding)
    seen = images.view(msg)
    assert np.shares_memory(seen, np.frombuffer(msg.data, np.uint8))
    with pytest.raises(ValueError):
        seen[0, 0] = 0


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_every_encoding_becomes_visible_bgr(encoding, padding):
    pixels = pixels_for(encoding)
    bgr = images.visible_bgr(message(pixels, encoding, padding=padding))
    assert bgr.dtype == np.uint8
    np.testing.assert_array_equal(bgr, bgr_by_hand(pixels, encoding))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_every_encoding_becomes_a_single_thermal_channel(encoding, padding):
    pixels = pixels_for(encoding)
    thermal = images.thermal_array(message(pixels, encoding, padding=padding))
    if CHANNELS[encoding] == 1:
        assert thermal.dtype == pixels.dtype
        np.testing.assert_array_equal(thermal, pixels)
    else:
        blue, green, red = np.moveaxis(bgr_by_hand(pixels, encoding).astype(float), -1, 0)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        assert thermal.dtype == np.uint8
        np.testing.assert_allclose(thermal, luma, atol=1)


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_big_endian_sixteen_bit_is_read_by_value(encoding):
    pixels = pixels_for(encoding)
    msg = message(pixels, encoding, padding=4, big=True)
    np.testing.assert_array_equal(images.view(msg), pixels)
    thermal = images.thermal_array(msg)
    assert thermal.dtype == np.uint16 and thermal.dtype.isnative
    np.testing.assert_array_equal(thermal, pixels)
    np.testing.assert_array_equal(images.visible_bgr(msg), bgr_by_hand(pixels, encoding))


def test_is_bigendian_does_not_matter_to_eight_bit():
    pixels = pixels_for("rgb8")
    msg = message(pixels, "rgb8", big=True)
    np.testing.assert_array_equal(images.visible_bgr(msg), pixels[..., ::-1])


def test_bgr_and_native_thermal_are_not_copied():
    bgr = message(pixels_for("bgr8"), "bgr8")
    assert np.shares_memory(images.visible_bgr(bgr), np.frombuffer(bgr.data, np.uint8))
    raw = message(pixels_for("mono16"), "mono16", padding=6)
    assert np.shares_memory(images.thermal_array(raw), np.frombuffer(raw.data, np.uint8))


@pytest.mark.parametrize("data_type", [bytes, bytearray, memoryview, np.frombuffer])
def test_data_may_be_anything_that_holds_bytes(data_type):
    pixels = pixels_for("rgb8")
    msg = message(pixels, "rgb8")
    raw = msg.data.tobytes()
    msg.data = np.frombuffer(raw, np.uint8) if data_type is np.frombuffer else data_type(raw)
    np.testing.assert_array_equal(images.view(msg), pixels)


def test_the_last_row_may_lack_its_padding():
    pixels = pixels_for("mono8")
    msg = message(pixels, "mono8", padding=5)
    msg.data = msg.data[:-5]
    np.testing.assert_array_equal(images.view(msg), pixels)


@pytest.mark.parametrize("read", [images.view, images.thermal_array, images.visible_bgr])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoding": "yuv422"}, r"'yuv422'.*expected one of mono8, mono16.*8UC3"),
        ({"encoding": ""}, "expected one of"),
        ({"width": 0}, "no pixels"),
        ({"height": 0}, "no pixels"),
        ({"step": 0}, "step is 0, expected at least 24"),
        ({"step": 23}, "step is 23, expected at least 24"),
        ({"height": 7}, "truncated: 144 bytes, expected 168"),
        ({"data": array.array("B", bytes(143))}, "truncated: 143 bytes, expected 144"),
        ({"data": array.array("B")}, "truncated: 0 bytes"),
        ({"data": [0] * 144}, "data is a list, expected bytes"),
    ],
)
def test_a_broken_image_says_what_was_expected(read, change, says):
    msg = message(pixels_for("rgb8"), "rgb8")
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(ImageError, match=says) as caught:
        read(msg)
    assert caught.value.encoding == msg.encoding


def test_conversions_write_into_the_given_array():
    rgb = message(pixels_for("rgb8"), "rgb8")
    bgr = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert images.visible_bgr(rgb, bgr) is bgr and bgr.any()
    grey = np.zeros((HEIGHT, WIDTH), np.uint8)
    assert images.thermal_array(rgb, grey) is grey and grey.any()
    counts = np.zeros((HEIGHT, WIDTH), np.uint16)
    swapped = message(pixels_for("mono16"), "mono16", big=True)
    assert images.thermal_array(swapped, counts) is counts and counts.any()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((HEIGHT, WIDTH + 1, 3), np.uint8),
        np.empty((HEIGHT, WIDTH, 3), np.float32),
        np.empty((HEIGHT, WIDTH, 6), np.uint8)[..., ::2],
    ],
)
def test_an_unfit_output_array_is_refused(out):
    with pytest.raises(ValueError, match=r"expected a contiguous uint8 array of shape \(6, 8, 3\)"):
        images.visible_bgr(message(pixels_for("rgb8"), "rgb8"), out)


@pytest.mark.parametrize("encoding", CHANNELS)
def test_a_filled_message_reads_back_the_same(encoding):
    pixels = pixels_for(encoding)
    msg = images.fill(FakeImage(), pixels, encoding, "header")
    assert (msg.height, msg.width, msg.encoding, msg.header) == (HEIGHT, WIDTH, encoding, "header")
    assert msg.step * HEIGHT == len(msg.data) and msg.data.typecode == "B"
    assert msg.is_bigendian == (sys.byteorder == "big")
    np.testing.assert_array_equal(images.view(msg), pixels)


def test_fill_takes_an_array_that_is_not_contiguous():
    pixels = pixels_for("bgr8", width=2 * WIDTH)[:, ::2]
    np.testing.assert_array_equal(images.view(images.fill(FakeImage(), pixels, "bgr8", 0)), pixels)


def test_a_message_filled_again_reuses_its_data_until_the_size_changes():
    msg = images.fill(FakeImage(), pixels_for("bgr8"), "bgr8", 1)
    data = msg.data
    other = pixels_for("bgr8") ^ 255
    assert images.fill(msg, other, "bgr8", 2).data is data
    np.testing.assert_array_equal(images.view(msg), other)
    larger = pixels_for("bgr8", height=HEIGHT + 2)
    np.testing.assert_array_equal(images.view(images.fill(msg, larger, "bgr8", 3)), larger)


@pytest.mark.parametrize(
    ("pixels", "encoding", "says"),
    [
        (np.zeros((4, 4), np.uint8), "bgr8", r"expected uint8 \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "bgr8", "from float32"),
        (np.zeros((4, 4), np.uint8), "mono16", r"expected uint16 \(H, W\)"),
        (np.zeros((0, 4), np.uint8), "mono8", "at least one pixel"),
        (np.zeros((4, 4), np.uint8), "yuv422", "expected one of"),
    ],
)
def test_fill_refuses_an_array_that_is_not_of_the_encoding(pixels, encoding, says):
    with pytest.raises(ImageError, match=says):
        images.fill(FakeImage(), pixels, encoding, None)


def test_a_real_image_message_goes_both_ways():
    sensor_msgs = pytest.importorskip("sensor_msgs.msg")
    header = pytest.importorskip("std_msgs.msg").Header(frame_id="rgb_optical")
    for encoding in CHANNELS:
        pixels = pixels_for(encoding)
        msg = images.fill(sensor_msgs.Image(), pixels, encoding, header)
        assert msg.header.frame_id == "rgb_optical"
        np.testing.assert_array_equal(images.view(msg), pixels)
        # A second time takes the path that overwrites in place.
        np.testing.assert_array_equal(
            images.view(images.fill(msg, pixels[::-1], encoding, header)), pixels[::-1]
        )


def test_conversion_agrees_with_cv_bridge():
    cv_bridge = pytest.importorskip("cv_bridge").CvBridge()
    sensor_msgs = pytest.importorskip("sensor_msgs.msg")
    for encoding in ("mono8", "rgb8", "bgr8", "rgba8", "bgra8", "8UC3"):
        msg = sensor_msgs.Image()
        images.fill(msg, pixels_for(encoding), encoding, msg.header)
        theirs = cv_bridge.imgmsg_to_cv2(msg, "passthrough" if encoding == "8UC3" else "bgr8")
        np.testing.assert_array_equal(images.visible_bgr(msg), theirs)


def test_a_warm_conversion_allocates_no_image():
    height, width = 240, 320
    rgb = message(pixels_for("rgb8", height, width), "rgb8")
    raw = message(pixels_for("mono16", height, width), "mono16", big=True)
    bgr, counts = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint16)
    published = images.fill(FakeImage(), bgr, "bgr8", None)

    def once():
        images.visible_bgr(rgb, bgr)
        images.visible_bgr(raw, bgr)
        images.thermal_array(raw, counts)
        images.fill(published, bgr, "bgr8", None)

    once()
    tracemalloc.start()
    try:
        once()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < height * width / 2


def test_opencv_accepts_the_views():
    msg = message(pixels_for("mono16"), "mono16", padding=2)
    assert cv2.minMaxLoc(images.thermal_array(msg))[1] == images.view(msg).max()
