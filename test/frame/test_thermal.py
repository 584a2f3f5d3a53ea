# SPDX-License-Identifier: AGPL-3.0-only
"""Gain control shows the scene, ignores broken pixels and does not flicker."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fusion_ros.frame.radiometry import PRESETS
from fusion_ros.frame.thermal import MODES, GainControl

HEIGHT, WIDTH = 120, 160
BACKGROUND = (slice(None), slice(0, 60))


def scene(seed: int = 0, *, base: int = 7500, hot: int = 0) -> np.ndarray:
    """A room-temperature gradient with sensor noise, and a hot square of `hot` pixels a side."""
    rng = np.random.default_rng(seed)
    counts = base + np.linspace(-150, 150, WIDTH) + rng.normal(0, 4, (HEIGHT, WIDTH))
    if hot:
        counts[10 : 10 + hot, 80 : 80 + hot] = base + 2500
    return counts.astype(np.uint16)


def test_percentiles_fill_the_grey_scale():
    image = GainControl().apply(scene())
    assert image.dtype == np.uint8
    assert image.min() == 0 and image.max() == 255
    assert 0.9 < ((image > 0) & (image < 255)).mean() < 0.99
    assert abs(float(image.mean()) - 127) < 4


def test_grey_levels_are_linear_between_the_limits():
    frame = scene()
    control = GainControl()
    image = control.apply(frame)
    low, high = control.limits
    expected = np.clip((frame - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(image, expected, atol=0.51)


def test_the_limits_are_the_frames_percentiles():
    frame = scene()
    control = GainControl(low=5, high=90)
    control.apply(frame)
    np.testing.assert_allclose(control.limits, np.percentile(frame, [5, 90]), atol=2)


def test_the_limits_of_a_large_frame_are_estimated_well():
    frame = np.random.default_rng(3).normal(8000, 300, (1024, 1280)).astype(np.uint16)
    control = GainControl()
    control.apply(frame)
    np.testing.assert_allclose(control.limits, np.percentile(frame, [1, 99]), atol=25)


def test_linear_mode_takes_the_extremes_of_what_is_larger_than_a_pixel():
    frame = scene(hot=8)
    frame[100, 20] = 60000
    frame[60, 20:22] = 40
    control = GainControl(mode="linear")
    image = control.apply(frame)
    low, high = control.limits
    assert high == frame[12, 82] and abs(low - np.percentile(frame, 1)) < 20
    assert image[14, 84] == 255 and image.min() == 0


def test_mode_none_keeps_the_high_byte():
    frame = scene()
    np.testing.assert_array_equal(GainControl(mode="none").apply(frame), frame >> 8)


@pytest.mark.parametrize("mode", ["percentile", "linear", "none"])
def test_eight_bit_passes_through_untouched(mode):
    frame = (scene() >> 5).astype(np.uint8)
    assert GainControl(mode=mode).apply(frame) is frame


def test_eight_bit_is_stretched_if_the_setting_is_on():
    frame = np.random.default_rng(0).normal(100, 15, (HEIGHT, WIDTH)).astype(np.uint8)
    image = GainControl(stretch_8bit=True).apply(frame)
    assert image.min() == 0 and image.max() == 255


@pytest.mark.parametrize("mode", ["percentile", "linear", "plateau"])
@pytest.mark.parametrize("value", [0, 1, 7500, 65535])
def test_a_constant_image_becomes_mid_grey(mode, value):
    control = GainControl(mode=mode)
    for _ in range(3):
        image = control.apply(np.full((HEIGHT, WIDTH), value, np.uint16))
    assert set(np.unique(image)) <= {127, 128}


def test_noise_of_an_even_scene_is_not_amplified():
    frame = (7500 + np.random.default_rng(0).normal(0, 2, (HEIGHT, WIDTH))).astype(np.uint16)
    assert GainControl(min_span=50).apply(frame).std() < 15


def test_dead_and_saturated_pixels_change_nothing():
    clean, broken = scene(), scene()
    broken[3, 5] = 0
    broken[40, 44] = 65535
    broken[:, 100] = 65535
    ours, theirs = GainControl().apply(clean), GainControl().apply(broken)
    difference = np.abs(ours.astype(int) - theirs)
    difference[:, 100] = difference[3, 5] = difference[40, 44] = 0
    assert difference.max() <= 6


def telemetry(rows: int) -> np.ndarray:
    """Rows as a Lepton adds them: counters, and many zeros."""
    values = np.zeros((rows, WIDTH), np.uint16)
    values[0, :20] = np.random.default_rng(5).integers(0, 65536, 20)
    values[-1, :10] = 58744
    return values


@pytest.mark.parametrize("mode", ["percentile", "linear", "plateau"])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("at_top", [False, True])
def test_telemetry_rows_change_nothing_and_show_the_row_next_to_them(mode, rows, at_top):
    frame = scene(hot=40)
    parts = [frame, telemetry(rows)]
    plain = GainControl(mode=mode).apply(frame)
    image = GainControl(mode=mode).apply(np.vstack(parts[::-1] if at_top else parts))
    inside = image[rows:] if at_top else image[:-rows]
    assert np.abs(inside.astype(int) - plain).max() <= 1
    beside = (image[:rows], image[rows]) if at_top else (image[-rows:], image[-rows - 1])
    assert (beside[0] == beside[1]).all()


@pytest.mark.parametrize("mode", ["percentile", "linear", "plateau"])
@pytest.mark.parametrize("width", [2, 10, 30])
def test_a_border_of_zeros_takes_no_part_and_is_black(mode, width):
    frame = scene(hot=40)
    bordered = np.pad(frame, width)
    image = GainControl(mode=mode).apply(bordered)
    inside = image[width:-width, width:-width]
    # Of a larger frame other pixels are sampled, and the medians of its outermost pixels differ.
    assert np.abs(inside.astype(int) - GainControl(mode=mode).apply(frame)).max() <= 8
    assert not image[width:-width, :width].any()


@pytest.mark.parametrize("mode", ["percentile", "linear", "plateau"])
@pytest.mark.parametrize(
    ("convert", "tolerance"),
    [
        (lambda counts: (counts.astype(int) - 27315).astype(np.int16), 0),
        (lambda counts: (counts / 100).astype(np.float32), 1),
        (lambda counts: (counts / 100 - 273.15).astype(np.float32), 1),
    ],
)
def test_signed_counts_and_degrees_give_the_image_of_the_counts(mode, convert, tolerance):
    frame = scene(base=29300, hot=40)
    expected = GainControl(mode=mode).apply(frame)
    image = GainControl(mode=mode).apply(convert(frame))
    assert np.abs(image.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["percentile", "linear", "plateau"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max, -1e30])
def test_what_is_no_temperature_takes_no_part_and_is_black(mode, value):
    frame = (scene(base=29300, hot=40) / 100).astype(np.float32)
    expected = GainControl(mode=mode).apply(frame)
    broken = frame.copy()
    broken[::7, 100:] = value
    image = GainControl(mode=mode).apply(broken)
    assert not image[::7, 100:].any()
    kept = broken == frame
    assert np.abs(image[kept].astype(int) - expected[kept]).max() <= 3


def test_a_frame_without_data_becomes_black():
    for value in (np.nan, np.finfo(np.float32).max):
        frame = np.full((HEIGHT, WIDTH), value, np.float32)
        for mode in ("percentile", "linear", "none"):
            assert not GainControl(mode=mode).apply(frame).any()


def test_mode_none_keeps_the_order_of_signed_counts_and_rounds_degrees():
    control = GainControl(mode="none")
    counts = np.int16([[-32768, -1, 0, 32767]])
    assert control.apply(counts).tolist() == [[0, 127, 128, 255]]
    degrees = np.float32([[-20, 24.4, 24.6, 300]])
    assert control.apply(degrees).tolist() == [[0, 24, 25, 255]]


def test_the_plateau_gives_contrast_to_a_crowded_part_of_the_range():
    frame = scene(base=29300).astype(np.int32)
    frame[:, 120:] += 3000  # a warm part, far above the rest
    frame = frame.astype(np.uint16)
    background = (slice(None), slice(0, 110))
    percentile = GainControl().apply(frame)[background]
    plateau = GainControl(mode="plateau").apply(frame)
    assert plateau[background].std() > 2 * percentile.std()
    assert plateau[:, 125:].min() > plateau[background].max()


def test_the_plateau_keeps_the_order_of_counts_and_bounds_their_contrast():
    frame = scene(hot=40)
    control = GainControl(mode="plateau", plateau=3)
    image = control.apply(frame)
    low, high = control.limits
    order = np.argsort(frame, axis=None)
    assert (np.diff(image.ravel()[order].astype(int)) >= 0).all()
    counts = np.arange(int(low), int(high), dtype=np.uint16)[np.newaxis].repeat(4, axis=0)
    ramp = GainControl(mode="plateau", plateau=1).apply(counts)
    assert np.abs(ramp[0] - np.linspace(0, 255, counts.shape[1])).max() < 6


@pytest.mark.parametrize("celsius", [(20.0, 40.0), (-10.0, 100.0)])
@pytest.mark.parametrize(
    ("radiometry", "encode"),
    [
        (None, lambda t: np.rint(100 * (t + 273.15)).astype(np.uint16)),
        (None, lambda t: np.rint(100 * t).astype(np.int16)),
        (None, lambda t: t.astype(np.float32)),
        (None, lambda t: (t + 273.15).astype(np.float32)),
        ("lepton_low_gain", lambda t: np.rint(10 * (t + 273.15)).astype(np.uint16)),
        ("seek", lambda t: np.rint(64 * (t + 40)).astype(np.uint16)),
    ],
)
def test_a_fixed_range_shows_a_temperature_as_one_grey_level(celsius, radiometry, encode):
    control = GainControl(mode="fixed", celsius=celsius, radiometry=PRESETS.get(radiometry))
    for warm in (30.0, 90.0):
        degrees = np.full((HEIGHT, WIDTH), 25.0)
        degrees[:20] = warm
        expected = np.clip((degrees - celsius[0]) / (celsius[1] - celsius[0]), 0, 1) * 255
        np.testing.assert_allclose(control.apply(encode(degrees)), expected, atol=1.5)


def test_a_black_hot_camera_gives_a_white_hot_image():
    frame = scene(hot=40)
    turned = (65535 - frame.astype(int)).astype(np.uint16)
    expected = GainControl().apply(frame)
    image = GainControl(polarity="black_hot").apply(turned)
    assert np.abs(image.astype(int) - expected).max() <= 2
    eight = (frame >> 5).astype(np.uint8)
    np.testing.assert_array_equal(GainControl(polarity="black_hot").apply(255 - eight), eight)
    turned[5, 5] = 0
    assert GainControl(polarity="black_hot").apply(turned)[5, 5] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_the_plateau_does_not_flicker_when_a_hot_object_comes_and_goes(smoothing):
    control = GainControl(mode="plateau", smoothing=smoothing)
    frames = [scene(i) for i in range(20)]
    frames += [scene(i, hot=40) for i in range(20, 60)]
    frames += [scene(i) for i in range(60, 100)]
    levels = np.array([control.apply(frame)[:, 0:60].mean(axis=0) for frame in frames])
    assert np.abs(np.diff(levels, axis=0)).max() < 8


def background_levels(control: GainControl, frames: list[np.ndarray]) -> np.ndarray:
    """(frame, column): mean level of every column of the background."""
    return np.array([control.apply(frame)[BACKGROUND].mean(axis=0) for frame in frames])


@pytest.mark.parametrize("mode", ["percentile", "linear"])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_the_background_does_not_flicker_when_a_hot_object_comes_and_goes(mode, smoothing):
    control = GainControl(mode=mode, smoothing=smoothing, max_step=3.0)
    frames = [scene(i) for i in range(20)]
    frames += [scene(i, hot=40) for i in range(20, 80)]
    frames += [scene(i) for i in range(80, 140)]
    levels = background_levels(control, frames)
    assert np.abs(np.diff(levels, axis=0)).max() < 5
    # It does adapt all the same.
    assert levels[10].mean() - levels[79].mean() > 20


def test_a_still_scene_with_sensor_noise_keeps_its_levels():
    levels = background_levels(GainControl(), [scene(i) for i in range(60)])
    assert np.abs(np.diff(levels.mean(axis=1))).max() < 0.5


def test_the_limits_reach_those_of_a_changed_scene():
    control = GainControl()
    control.apply(scene())
    for i in range(300):
        control.apply(scene(i, hot=40))
    wanted = GainControl()
    wanted.apply(scene(hot=40))
    np.testing.assert_allclose(control.limits, wanted.limits, rtol=0.01)


def test_another_scene_is_shown_at_once():
    control = GainControl()
    for i in range(5):
        control.apply(scene(i))
    changed = control.apply(scene(base=20000))
    np.testing.assert_array_equal(changed, GainControl().apply(scene(base=20000)))


@pytest.mark.parametrize("value", [0, 65535])
def test_one_blank_frame_does_not_change_the_next_ones(value):
    control = GainControl()
    before = control.apply(scene())
    control.apply(np.full((HEIGHT, WIDTH), value, np.uint16))
    np.testing.assert_allclose(control.apply(scene()), before, atol=3)


def test_a_change_of_bit_depth_resets_the_limits():
    control = GainControl(stretch_8bit=True)
    control.apply(scene())
    frame = np.random.default_rng(0).normal(100, 15, (HEIGHT, WIDTH)).astype(np.uint8)
    np.testing.assert_array_equal(control.apply(frame), GainControl(stretch_8bit=True).apply(frame))


def test_frames_may_change_size():
    control = GainControl()
    for height, width in ((120, 160), (1, 1), (33, 501), (512, 640)):
        frame = np.full((height, width), 7500, np.uint16)
        assert control.apply(frame).shape == (height, width)


def test_reset_discards_the_limits():
    control = GainControl()
    control.apply(scene(hot=100))
    control.reset()
    np.testing.assert_array_equal(control.apply(scene()), GainControl().apply(scene()))


def test_settings_take_effect_between_frames_without_a_jump():
    control = GainControl()
    before = control.apply(scene()).astype(int)
    control.low, control.high = 20.0, 80.0
    assert np.abs(control.apply(scene()) - before).max() <= 4
    control.mode = "none"
    np.testing.assert_array_equal(control.apply(scene()), scene() >> 8)


def test_frames_with_padded_rows_are_read_correctly():
    padded = np.zeros((HEIGHT, WIDTH + 24), np.uint16)
    padded[:, :WIDTH] = scene()
    np.testing.assert_array_equal(
        GainControl().apply(padded[:, :WIDTH]), GainControl().apply(scene())
    )


@pytest.mark.parametrize("mode", ["percentile", "linear", "none"])
def test_a_warm_gain_control_allocates_no_image(mode):
    frame = np.random.default_rng(0).integers(7000, 8000, (512, 640), dtype=np.uint16)
    out = np.empty(frame.shape, np.uint8)
    control = GainControl(mode=mode)
    assert control.apply(frame, out) is out
    tracemalloc.start()
    try:
        control.apply(frame, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < frame.size / 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mode": "clahe"}, "expected one of percentile, linear, plateau, fixed, none"),
        ({"low": 99.0, "high": 1.0}, "0 <= low < high <= 100"),
        ({"high": 101.0}, "0 <= low < high <= 100"),
        ({"smoothing": 1.0}, "0 <= smoothing < 1"),
        ({"max_step": 0.0}, "more than 0 grey levels"),
        ({"min_span": 0.0}, "more than 0 counts"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        GainControl(**settings)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.float64),
        np.zeros((0, 4), np.uint16),
        np.zeros((4, 4), np.dtype(np.uint16).newbyteorder()),
    ],
)
def test_a_frame_that_is_not_thermal_is_refused(frame):
    with pytest.raises(
        ValueError, match="expected .H, W. uint8, uint16, int16 or float32 in native"
    ):
        GainControl().apply(frame)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flat", [False, True], ids=["a scene", "one temperature"])
def test_the_mean_of_a_static_scene_varies_by_less_than_a_grey_level(mode, flat):
    rng, gain = np.random.default_rng(1), GainControl(mode)
    scene = np.full((240, 320), 29315.0)
    if not flat:
        scene += np.linspace(0, 400, 320)
        scene[80:200, 120:180] = 30600
    means = [
        gain.apply((scene + rng.normal(0, 8, scene.shape)).astype(np.uint16)).mean()
        for _ in range(120)
    ]
    assert np.ptp(means[20:]) < 1
