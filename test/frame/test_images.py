# SPDX-License-Identifier: AGPL-3.0-only
"""Image messages become arrays and arrays become messages, and broken ones say why."""

from __future__ import annotations

import array
import itertools
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
    "rgb16": 3, "bgr16": 3, "rgba16": 4, "bgra16": 4,
    "8UC1": 1, "16UC1": 1, "8UC3": 3, "8UC4": 4, "16UC3": 3,
}  # fmt: skip
"""Channels of the encodings of grey and colour pixels side by side."""
TEMPERATURES = {"16SC1": np.int16, "32FC1": np.float32}
BAYER = [f"bayer_{order}{bits}" for order in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)]
PACKED_YUV = {"yuv422": 1, "uyvy": 1, "yuv422_yuy2": 0, "yuyv": 0}
"""Byte of a pixel that is luminance."""
PLANAR_YUV = ["nv12", "nv21", "nv24"]


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
    pixels = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<"))
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAB)
    data = array.array("B")
    data.frombytes(rows.tobytes())
    return FakeImage(height, width, encoding, int(big), rows.shape[1], data)


def bgr_by_hand(pixels: np.ndarray, encoding: str) -> np.ndarray:
    if "16" in encoding:
        pixels = np.rint(pixels / 257).astype(np.uint8)  # 65535 is 255 times 257
    if pixels.ndim == 2:
        return np.stack([pixels] * 3, axis=-1)
    return pixels[..., 2::-1] if encoding.startswith("rgb") else pixels[..., :3]


def yuv_message(encoding: str, yuv: np.ndarray, *, padding: int = 0) -> FakeImage:
    """A message of YUV (H, W, 3) uint8 pixels; chroma is that of each block's first pixel."""
    height, width = yuv.shape[:2]
    luminance, chroma = yuv[..., 0], yuv[..., 1:]
    if encoding in PACKED_YUV:
        pairs = np.empty((height, width, 2), np.uint8)
        pairs[..., PACKED_YUV[encoding]] = luminance
        pairs[..., 1 - PACKED_YUV[encoding]] = chroma[:, ::2].reshape(height, width)
        return message(pairs, encoding, padding=padding)
    if encoding == "nv24":
        # Rows of chroma are twice as long, and so is their padding.
        planes = [
            np.pad(luminance, ((0, 0), (0, padding))),
            np.pad(chroma.reshape(height, -1), ((0, 0), (0, 2 * padding))),
        ]
    else:
        order = slice(None, None, -1 if encoding == "nv21" else 1)
        blocks = chroma[::2, ::2, order].reshape(height // 2, width)
        planes = [np.pad(plane, ((0, 0), (0, padding))) for plane in (luminance, blocks)]
    data = array.array("B", b"".join(plane.tobytes() for plane in planes))
    return FakeImage(height, width, encoding, 0, width + padding, data)


def bgr_of_yuv(yuv: np.ndarray) -> np.ndarray:
    """By ITU-R BT.601: Y from 16 to 235, U and V from 16 to 240."""
    y, u, v = np.moveaxis(yuv.astype(float) - (16, 128, 128), -1, 0)
    kr, kb, scale = 0.299, 0.114, 255 / 219
    chroma = 255 / 224 * 2
    red = scale * y + chroma * (1 - kr) * v
    blue = scale * y + chroma * (1 - kb) * u
    green = (
        scale * y
        - chroma * (1 - kb) * kb / (1 - kr - kb) * u
        - chroma * (1 - kr) * kr / (1 - kr - kb) * v
    )
    return np.clip(np.stack([blue, green, red], axis=-1), 0, 255)


def mosaic(order: str, bgr: np.ndarray) -> np.ndarray:
    """What a sensor under a Bayer pattern measures of a BGR image."""
    cells = [["bgr".index(colour) for colour in order[row : row + 2]] for row in (0, 2)]
    raw = np.empty(bgr.shape[:2], bgr.dtype)
    for row in (0, 1):
        for column in (0, 1):
            raw[row::2, column::2] = bgr[row::2, column::2, cells[row][column]]
    return raw


def test_the_listed_encodings_are_those_of_the_documentation():
    promised = {*CHANNELS, *TEMPERATURES, *BAYER, *PACKED_YUV, *PLANAR_YUV}
    assert set(images.THERMAL_ENCODINGS) == promised
    assert set(images.VISIBLE_ENCODINGS) == promised - set(TEMPERATURES)


@pytest.mark.parametrize("encoding", TEMPERATURES)
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_temperatures_are_read_by_value(encoding, big, padding):
    values = (
        np.random.default_rng(2).normal(25, 300, (HEIGHT, WIDTH)).astype(TEMPERATURES[encoding])
    )
    thermal = images.thermal_array(message(values, encoding, padding=padding, big=big))
    assert thermal.dtype == values.dtype and thermal.dtype.isnative
    np.testing.assert_array_equal(thermal, values)


@pytest.mark.parametrize("encoding", TEMPERATURES)
def test_temperatures_are_refused_as_a_visible_image(encoding):
    msg = message(np.zeros((HEIGHT, WIDTH), TEMPERATURES[encoding]), encoding)
    with pytest.raises(ImageError, match=f"'{encoding}' cannot be a visible image.*bgr8") as caught:
        images.visible_bgr(msg)
    assert caught.value.encoding == encoding


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", BAYER)
def test_bayer_patterns_give_the_colours_under_them(encoding, big, padding):
    colour = np.array([40, 90, 200], np.uint8)
    bgr = np.broadcast_to(colour, (HEIGHT, WIDTH, 3))
    if encoding.endswith("16"):
        bgr = bgr.astype(np.uint16) * 257
    raw = mosaic(encoding[6:10], bgr)
    msg = message(raw, encoding, padding=padding, big=big)
    np.testing.assert_array_equal(images.visible_bgr(msg), np.broadcast_to(colour, bgr.shape))
    thermal = images.thermal_array(msg)
    luminance = bgr[0, 0] @ (0.114, 0.587, 0.299)
    assert thermal.dtype == bgr.dtype and thermal.shape == (HEIGHT, WIDTH)
    np.testing.assert_allclose(thermal, luminance, rtol=0.01)


def test_bayer_patterns_keep_places_and_directions():
    bgr = np.zeros((40, 60, 3), np.uint8)
    bgr[:20, :, 0] = 200
    bgr[:, 40:, 2] = 100
    for encoding in BAYER[::2]:
        seen = images.visible_bgr(message(mosaic(encoding[6:10], bgr), encoding))
        away = np.ones((40, 60), bool)
        away[18:22] = away[:, 38:42] = False
        np.testing.assert_array_equal(seen[away], bgr[away])


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", [*PACKED_YUV, *PLANAR_YUV])
def test_yuv_gives_its_colours_and_its_luminance(encoding, padding):
    rng = np.random.default_rng(4)
    yuv = np.empty((8, 12, 3), np.uint8)
    yuv[..., 0] = rng.integers(60, 180, (8, 12))
    # Of one colour in each block of 2x2, so that nothing is lost.
    yuv[..., 1:] = rng.integers(90, 160, (4, 6, 2)).repeat(2, axis=0).repeat(2, axis=1)
    msg = yuv_message(encoding, yuv, padding=padding)
    np.testing.assert_allclose(images.visible_bgr(msg), bgr_of_yuv(yuv), atol=2)
    np.testing.assert_array_equal(images.thermal_array(msg), yuv[..., 0])


def test_nv24_keeps_the_colour_of_every_pixel():
    yuv = np.random.default_rng(4).integers(80, 170, (5, 7, 3), dtype=np.uint8)
    seen = images.visible_bgr(yuv_message("nv24", yuv))
    np.testing.assert_allclose(seen, bgr_of_yuv(yuv), atol=2)


@pytest.mark.parametrize("encoding", PLANAR_YUV)
@pytest.mark.parametrize("step", [0, 12, 16])
def test_planes_without_padding_are_read_with_any_step(encoding, step):
    yuv = np.full((4, 8, 3), (100, 90, 150), np.uint8)
    msg = yuv_message(encoding, yuv)
    msg.step = step
    np.testing.assert_allclose(images.visible_bgr(msg), bgr_of_yuv(yuv), atol=2)


@pytest.mark.parametrize(
    ("encoding", "width", "height", "says"),
    [
        ("yuv422", 7, 6, "expected an even width, since"),
        ("nv12", 7, 6, "expected an even width and height"),
        ("nv21", 8, 5, "expected an even width and height"),
    ],
)
def test_yuv_of_an_odd_size_is_refused(encoding, width, height, says):
    msg = FakeImage(height, width, encoding, 0, 2 * width, array.array("B", bytes(400)))
    for read in (images.visible_bgr, images.thermal_array):
        with pytest.raises(ImageError, match=says):
            read(msg)


@pytest.mark.parametrize("encoding", PLANAR_YUV)
def test_truncated_planes_say_how_many_bytes_are_missing(encoding):
    msg = yuv_message(encoding, np.zeros((4, 8, 3), np.uint8))
    msg.data.pop()
    with pytest.raises(ImageError, match=rf"{len(msg.data)} bytes, expected {len(msg.data) + 1}"):
        images.visible_bgr(msg)


@pytest.mark.parametrize("encoding", [*CHANNELS, *BAYER, *PACKED_YUV, *PLANAR_YUV])
def test_tiny_images_are_read_or_refused_with_an_image_error(encoding):
    for width, height in itertools.product((1, 2, 3, 4), repeat=2):
        msg = FakeImage(height, width, encoding, 0, 16 * width, array.array("B", bytes(64 * 16)))
        for read, channels in ((images.thermal_array, ()), (images.visible_bgr, (3,))):
            try:
                assert read(msg).shape == (height, width, *channels)
            except ImageError:
                pass


@pytest.mark.parametrize("encoding", BAYER)
@pytest.mark.parametrize("size", [(2, 2), (2, 9), (7, 2), (3, 3)])
def test_bayer_patterns_of_two_rows_or_columns_have_the_colour_under_them(encoding, size):
    width, height = size
    layout = images.ENCODINGS[encoding]
    at = {"r": 40, "g": 120, "b": 200}
    order = np.array([at[colour] for colour in encoding[6:10]]).reshape(2, 2)
    rows, columns = np.indices((height, width)) % 2
    scale = 257 if layout.dtype == np.uint16 else 1
    pixels = (order[rows, columns] * scale).astype(layout.dtype)
    bgr = images.visible_bgr(message(pixels, encoding))
    assert bgr.shape == (height, width, 3)
    np.testing.assert_allclose(bgr, np.broadcast_to([200, 120, 40], bgr.shape), atol=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (8, 1)])
def test_a_bayer_pattern_without_all_colours_is_refused(size):
    pixels = np.zeros(size, np.uint8)
    with pytest.raises(ImageError, match="at least 2x2 pixels"):
        images.visible_bgr(message(pixels, "bayer_rggb8"))


def test_an_encoding_in_capitals_is_refused_with_the_right_name():
    with pytest.raises(ImageError, match="did you mean 'rgb8'"):
        images.view(FakeImage(1, 1, "RGB8", 0, 3, array.array("B", bytes(3))))


def test_an_absurd_encoding_is_cut_in_the_message():
    with pytest.raises(ImageError) as caught:
        images.view(FakeImage(1, 1, "x" * 100_000, 0, 3, array.array("B", bytes(3))))
    assert len(str(caught.value)) < 1000


def test_sixteen_bit_becomes_eight_bit_by_value():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(images.to_8bit(values), np.rint(values / 257))


@pytest.mark.parametrize("padding", [0, 2, 5])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_every_encoding_is_viewed_without_its_row_padding(encoding, padding):
    pixels = pixels_for(encoding)
    np.testing.assert_array_equal(images.view(message(pixels, encoding, padding=padding)), pixels)


@pytest.mark.parametrize("encoding", CHANNELS)
def test_a_view_shares_the_memory_of_the_message_and_is_read_only(encoding):
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
        assert thermal.dtype == pixels.dtype
        scale = 257 if thermal.dtype == np.uint16 else 1
        np.testing.assert_allclose(thermal / scale, luma, atol=1)


@pytest.mark.parametrize("encoding", [name for name in CHANNELS if "16" in name])
def test_big_endian_sixteen_bit_is_read_by_value(encoding):
    pixels = pixels_for(encoding)
    msg = message(pixels, encoding, padding=4, big=True)
    np.testing.assert_array_equal(images.view(msg), pixels)
    thermal = images.thermal_array(msg)
    assert thermal.dtype == np.uint16 and thermal.dtype.isnative
    small = images.thermal_array(message(pixels, encoding))
    np.testing.assert_array_equal(thermal, small)
    np.testing.assert_array_equal(images.visible_bgr(msg), bgr_by_hand(pixels, encoding))


def test_eight_bit_images_ignore_is_bigendian():
    pixels = pixels_for("rgb8")
    msg = message(pixels, "rgb8", big=True)
    np.testing.assert_array_equal(images.visible_bgr(msg), pixels[..., ::-1])


def test_bgr_and_native_thermal_are_not_copied():
    bgr = message(pixels_for("bgr8"), "bgr8")
    assert np.shares_memory(images.visible_bgr(bgr), np.frombuffer(bgr.data, np.uint8))
    raw = message(pixels_for("mono16"), "mono16", padding=6)
    assert np.shares_memory(images.thermal_array(raw), np.frombuffer(raw.data, np.uint8))


@pytest.mark.parametrize("data_type", [bytes, bytearray, memoryview, np.frombuffer])
def test_data_may_be_of_any_type_with_bytes(data_type):
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
        ({"encoding": "yuv444"}, r"'yuv444'.*expected one of mono8, mono16.*8UC3"),
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
        (np.zeros((4, 4), np.uint8), "yuv444", "expected one of"),
        (np.zeros((4, 4), np.uint8), "nv12", "cannot fill"),
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


class StandInCvBridge:
    """The part of cv_bridge's CvBridge that is used, after its Python source, on OpenCV."""

    PATTERNS = {"rggb": "BG", "bggr": "RG", "gbrg": "GR", "grbg": "GB"}

    def __init__(self) -> None:
        self.converted: list[tuple[str, str]] = []

    def imgmsg_to_cv2(self, msg, desired_encoding="passthrough"):
        sixteen, packed = msg.encoding.endswith("16"), msg.encoding.startswith("yuv422")
        if not packed and not msg.encoding.startswith("bayer"):
            raise RuntimeError(f"Unrecognized image encoding [{msg.encoding}]")
        dtype = np.dtype("<u2" if sixteen else np.uint8)
        channels = 2 if packed else 1
        columns = int(msg.step / dtype.itemsize / channels)
        shape = (msg.height, columns, channels)[: 2 + packed]
        pixels = np.ndarray(shape, dtype, msg.data)[: msg.height, : msg.width]
        target = "GRAY" if desired_encoding.startswith("mono") else "BGR"
        if packed:
            order = "YUY2" if msg.encoding.endswith("yuy2") else "UYVY"
            code = f"COLOR_YUV2{target}_{order}"
        else:
            code = f"COLOR_Bayer{self.PATTERNS[msg.encoding[6:10]]}2{target}"
        self.converted.append((msg.encoding, desired_encoding))
        return cv2.cvtColor(np.ascontiguousarray(pixels), getattr(cv2, code))


@pytest.fixture(params=["stand-in", "real"])
def bridge(request, monkeypatch):
    """A CvBridge that conversions go through."""
    if request.param == "real":
        bridge = pytest.importorskip("cv_bridge").CvBridge()
    else:
        bridge = StandInCvBridge()
    module = type(sys)("cv_bridge")
    module.CvBridge = lambda: bridge
    images._cv_bridge.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv_bridge", module)
        images._cv_bridge()
    yield bridge
    images._cv_bridge.cache_clear()


def noise_message(encoding: str, *, padding: int = 0, big: bool = False) -> FakeImage:
    rng = np.random.default_rng(11)
    shape = (HEIGHT, WIDTH, 2) if encoding in PACKED_YUV else (HEIGHT, WIDTH)
    dtype = np.uint16 if encoding.endswith("16") else np.uint8
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    return message(pixels, encoding, padding=padding, big=big)


@pytest.mark.parametrize("encoding", [*BAYER, *PACKED_YUV])
def test_conversion_agrees_with_cv_bridge(bridge, encoding, monkeypatch):
    kinds = itertools.product((0, 3, 4), (False, True))
    messages = [noise_message(encoding, padding=padding, big=big) for padding, big in kinds]
    reads = (images.visible_bgr, images.thermal_array)
    through_bridge = [read(msg).copy() for msg in messages for read in reads]
    images._cv_bridge.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv_bridge", None)
        by_opencv = [read(msg) for msg in messages for read in reads]
    for theirs, ours in zip(through_bridge, by_opencv):
        np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("encoding", ["mono8", "rgb8", "bgr8", "rgba8", "bgra8", "8UC3", "mono16"])
def test_plain_pixels_are_converted_as_cv_bridge_does(encoding):
    bridge = pytest.importorskip("cv_bridge").CvBridge()
    msg = message(pixels_for(encoding), encoding)
    theirs = bridge.imgmsg_to_cv2(msg, "passthrough" if encoding == "8UC3" else "bgr8")
    np.testing.assert_array_equal(images.visible_bgr(msg), theirs)


def test_cv_bridge_converts_bayer_and_yuv_where_it_is_installed():
    bridge = StandInCvBridge()
    module = type(sys)("cv_bridge")
    module.CvBridge = lambda: bridge
    images._cv_bridge.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cv_bridge", module)
        images.visible_bgr(noise_message("bayer_rggb8"))
        images.thermal_array(noise_message("bayer_gbrg16"))
        images.visible_bgr(noise_message("yuv422"))
        images.visible_bgr(message(pixels_for("rgb8"), "rgb8"))
    images._cv_bridge.cache_clear()
    assert bridge.converted[-3:] == [
        ("bayer_rggb8", "bgr8"), ("bayer_gbrg16", "mono16"), ("yuv422", "bgr8"),
    ]  # fmt: skip


@pytest.mark.parametrize("error", [ImportError("numpy.core.multiarray failed"), RuntimeError("?")])
def test_opencv_converts_if_cv_bridge_is_broken(error, monkeypatch):
    def fail():
        raise error

    module = type(sys)("cv_bridge")
    module.CvBridge = fail
    images._cv_bridge.cache_clear()
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    assert images.visible_bgr(noise_message("bayer_rggb8")).shape == (HEIGHT, WIDTH, 3)
    images._cv_bridge.cache_clear()


def test_a_warm_conversion_allocates_no_image():
    height, width = 240, 320
    rgb = message(pixels_for("rgb8", height, width), "rgb8")
    raw = message(pixels_for("mono16", height, width), "mono16", big=True)
    bgr, counts = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint16)
    published = images.fill(FakeImage(), bgr, "bgr8", None)

    def once():
        images.visible_bgr(rgb, bgr)
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
