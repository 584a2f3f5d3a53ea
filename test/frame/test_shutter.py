# SPDX-License-Identifier: AGPL-3.0-only
"""Freezes of a thermal camera: recognised in repeated images and in pauses."""

from __future__ import annotations

from fusion_ros.frame.shutter import Shutter, fingerprint


class Stream:
    """Images of a number each, at a rate."""

    def __init__(self, rate: float = 30.0) -> None:
        self.shutter = Shutter()
        self.rate = rate
        self.now = 0.0

    def send(self, *images: int) -> int:
        """Send images; return the number of freezes that have begun."""
        began = 0
        for image in images:
            self.now += 1 / self.rate
            began += self.shutter.add(bytes([image % 251]), self.now)
        return began


def test_a_run_of_equal_images_is_one_freeze():
    stream = Stream()
    assert stream.send(*range(30)) == 0
    assert stream.send(*[29] * 15) == 1
    assert stream.shutter.frozen
    assert stream.send(*range(30, 60)) == 0
    assert not stream.shutter.frozen
    assert (stream.shutter.freezes, stream.shutter.frozen_images) == (1, 15)


def test_a_pause_is_one_freeze_and_a_restart_is_none():
    stream = Stream()
    stream.send(*range(30))
    stream.now += 0.6
    assert stream.send(*range(30, 60)) == 1
    stream.now += 60
    assert stream.send(*range(60, 90)) == 0


def test_a_camera_that_repeats_each_image_at_a_steady_pace_has_no_freezes():
    stream = Stream(rate=27.0)
    assert stream.send(*(number // 3 for number in range(120))) == 0
    assert stream.send(*[39] * 27) == 1


def test_images_that_never_change_are_no_freeze():
    assert Stream().send(*[7] * 200) == 0


def test_jitter_and_a_lost_image_are_no_freeze():
    stream = Stream()
    stream.send(*range(30))
    stream.now += 2 / 30
    assert stream.send(*range(30, 60)) == 0


def test_fingerprints_tell_noise_from_the_same_image():
    one = bytes(range(256)) * 1200
    other = bytearray(one)
    assert fingerprint(one) == fingerprint(bytes(other))
    for index in range(0, len(other), 7):
        other[index] ^= 1
    assert fingerprint(one) != fingerprint(bytes(other))
    assert len(fingerprint(one)) < 2000
