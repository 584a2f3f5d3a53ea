# SPDX-License-Identifier: AGPL-3.0-only
"""Fuzzing of message decoding: any image message gives an image of its size or an ImageError.

    pip install '.[cpu,fuzz]'
    python test/fuzz/fuzz_images.py -max_total_time=600 /tmp/found test/fuzz/corpus/images

An input is a byte that chooses raw or compressed, then the message's fields, then its data.
"""

from __future__ import annotations

import struct
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

try:
    import atheris
except ImportError:  # the corpus is tested without it
    atheris = None

with atheris.instrument_imports(include=["fusion_ros"]) if atheris else nullcontext():
    from fusion_ros.frame import compressed, images
    from fusion_ros.frame.calibration import from_camera_info
    from fusion_ros.frame.images import ENCODINGS, ImageError
    from fusion_ros.frame.shutter import fingerprint
    from fusion_ros.frame.thermal import MODES, GainControl
    from fusion_ros.size import Size

_NAMES = tuple(ENCODINGS)
_MOST_PIXELS = 1 << 16
"""Larger images would only be slow."""
_HEAD = struct.Struct("<BBHHHB")
_INFO = struct.Struct("<9d5d12d4I")


def decode(data: bytes) -> str:
    """Decode `data` as one message; return what it was taken for.

    Any exception but ImageError (of images) and ValueError (of camera_info) is a finding.
    """
    if len(data) < _HEAD.size:
        return "nothing"
    kind, encoding, width, height, step, big = _HEAD.unpack_from(data)
    rest = data[_HEAD.size :]
    if kind % 3 == 2:
        return _info(rest)
    try:
        if kind % 3 == 1:
            form, _, payload = rest.partition(b"\0")
            message = SimpleNamespace(format=form.decode("latin1"), data=payload)
            compressed.check(message)
            thermal = compressed.thermal_array(message)
            assert compressed.visible_bgr(message).shape == (*thermal.shape, 3)
        else:
            if width * height > _MOST_PIXELS:
                return "large"
            message = SimpleNamespace(
                encoding=_NAMES[encoding % len(_NAMES)],
                width=width,
                height=height,
                step=step,
                is_bigendian=big & 1,
                data=rest,
            )
            images.view(message)
            fingerprint(message.data)
            thermal = images.thermal_array(message)
            assert thermal.shape == (height, width)
            if ENCODINGS[message.encoding].bgr is not None:
                assert images.visible_bgr(message).shape == (height, width, 3)
    except ImageError:
        return "refused"
    with np.errstate(all="ignore"):
        grey = GainControl(MODES[big % len(MODES)], stretch_8bit=True).apply(thermal)
    assert grey.shape == thermal.shape and grey.dtype == np.uint8
    return "image"


def _info(data: bytes) -> str:
    if len(data) < _INFO.size:
        return "nothing"
    values = _INFO.unpack_from(data)
    roi = dict(zip(("x_offset", "y_offset", "width", "height"), values[26:30]))
    message = SimpleNamespace(
        k=values[:9],
        d=values[9:14],
        r=(1.0, 0, 0, 0, 1, 0, 0, 0, 1),
        p=values[14:26],
        width=64,
        height=48,
        distortion_model="plumb_bob",
        binning_x=1,
        binning_y=1,
        roi=SimpleNamespace(**roi),
    )
    calibration = from_camera_info(message)
    if calibration is None:
        return "uncalibrated"
    try:
        calibration.at(Size(64, 48))
    except ValueError:
        return "refused"
    return "lens"


def main() -> None:
    atheris.Setup(sys.argv, lambda data: decode(data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
