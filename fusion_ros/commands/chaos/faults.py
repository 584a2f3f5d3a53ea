# SPDX-License-Identifier: AGPL-3.0-only
"""The faults of `chaos`: what each changes in the cameras, the node or its surroundings."""

from __future__ import annotations

import copy
import math
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from lifecycle_msgs.msg import Transition

from fusion_ros.frame import images

if TYPE_CHECKING:
    from fusion_ros.commands.chaos.session import Chaos

__all__ = ["FAULTS", "Fault", "Feed"]

SECOND = 1_000_000_000
CAMERAS = ("thermal", "rgb")
_ANEW = (
    Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_CLEANUP,
    Transition.TRANSITION_CONFIGURE,
    Transition.TRANSITION_ACTIVATE,
)


@dataclass
class Feed:
    """How the cameras send now; a fault changes it, and its end brings the default back.

    silent: cameras that send nothing; stamp: the stamp of a camera's image by the true one and the
    time since the fault's begin in s; change: what becomes of a message; times: how often each
    image is sent.
    """

    silent: frozenset[str] = frozenset()
    stamp: Callable[[str, int, float], int] = lambda camera, stamp_ns, seconds: stamp_ns
    change: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    times: int = 1


@dataclass(frozen=True)
class Fault:
    """One fault: `begin` starts it and returns what ends it.

    seconds: shortest and longest duration.
    """

    summary: str
    begin: Callable[[Chaos], Callable[[], None]]
    seconds: tuple[float, float] = (1.0, 4.0)


def _feed(summary: str, seconds: tuple[float, float] = (1.0, 4.0), **changes: Any) -> Fault:
    """A fault of the cameras."""

    def begin(chaos: Chaos) -> Callable[[], None]:
        chaos.feed = Feed(**changes)
        return lambda: setattr(chaos, "feed", Feed())

    return Fault(summary, begin, seconds)


def _stamps(summary: str, stamp: Callable[[str, int, float], int], **options: Any) -> Fault:
    return _feed(summary, stamp=stamp, **options)


def _of_thermal(stamp: Callable[[int, float], int]) -> Callable[[str, int, float], int]:
    return lambda camera, true, s: stamp(true, s) if camera == "thermal" else true


def _with(**values: Any) -> Callable[[Any], Any]:
    """A copy of a message with other fields; its pixels are shared."""

    def change(message: Any) -> Any:
        changed = copy.copy(message)
        for name, value in values.items():
            setattr(changed, name, value)
        return changed

    return change


def _pixels(make: Callable[[np.ndarray], np.ndarray], encoding: str = "") -> Callable[[Any], Any]:
    """A copy of a message with other pixels."""

    def change(message: Any) -> Any:
        pixels = make(images.view(message))
        return images.fill(type(message)(), pixels, encoding or message.encoding, message.header)

    return change


def _parameters(*settings: dict[str, Any]) -> Callable[[Chaos], Callable[[], None]]:
    """Set parameters, one group after the other; the first group's values come back."""

    def begin(chaos: Chaos) -> Callable[[], None]:
        for values in settings[1:]:
            chaos.set(**values)
        return lambda: chaos.set(**settings[0])

    return begin


def _transitions(*numbers: int) -> Callable[[Chaos], Callable[[], None]]:
    """Take a node away by transitions and bring it back by the others: halves of `numbers`."""
    half = len(numbers) // 2

    def begin(chaos: Chaos) -> Callable[[], None]:
        chaos.account()
        for number in numbers[:half]:
            chaos.transition(number)

        def end() -> None:
            for number in numbers[half:]:
                chaos.transition(number)

        return end

    return begin


def _fill_disk(chaos: Chaos) -> Callable[[], None]:
    """Let no file of the node grow, which fails as on a full disk, and configure it anew."""
    pid, kind = chaos.child.pid, resource.RLIMIT_FSIZE
    limits = resource.prlimit(pid, kind)
    chaos.account()
    resource.prlimit(pid, kind, (0, limits[1]))
    for number in _ANEW:
        chaos.transition(number)
    return lambda: resource.prlimit(pid, kind, limits)


def _pause_process(chaos: Chaos) -> Callable[[], None]:
    os.kill(chaos.child.pid, signal.SIGSTOP)
    return lambda: os.kill(chaos.child.pid, signal.SIGCONT)


def _stop_reader(chaos: Chaos) -> Callable[[], None]:
    pid = chaos.reader.pid
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


def _second_publisher(chaos: Chaos) -> Callable[[], None]:
    publisher = chaos.second.create_publisher(chaos.image_type, "rgb/image_raw", 5)
    chaos.others.append(publisher)

    def end() -> None:
        chaos.others.remove(publisher)
        chaos.second.destroy_publisher(publisher)

    return end


def _second_node(chaos: Chaos) -> Callable[[], None]:
    node = chaos.make_node("fuse_node")
    return node.destroy_node


def _infos(change: Callable[[Any], Any]) -> Callable[[Chaos], Callable[[], None]]:
    def begin(chaos: Chaos) -> Callable[[], None]:
        chaos.send_infos(change)
        return lambda: chaos.send_infos(lambda info: info)

    return begin


def _broken_info(info: Any) -> Any:
    info.k = [math.nan] * 9
    return info


def _absurd_info(info: Any) -> Any:
    info.roi.x_offset = info.roi.width = 2**32 - 1
    info.binning_x = 2**32 - 1
    info.d = [1e300] * 5
    info.distortion_model = "m" * 100_000
    return info


def _jump(true: int, seconds: float) -> int:
    return true - 5 * SECOND if int(seconds * 2) % 2 else true


_NOISE = np.random.default_rng(0)


def _cut_off(message: Any) -> Any:
    return _with(data=message.data[:100])(message)


def _noise(pixels: np.ndarray) -> np.ndarray:
    return _NOISE.integers(0, 65535, pixels.shape, np.uint16)


FAULTS: dict[str, Fault] = {
    "thermal_silent": _feed("the thermal camera dies and returns", silent=frozenset({"thermal"})),
    "rgb_silent": _feed("the RGB camera dies and returns", silent=frozenset({"rgb"})),
    "both_silent": _feed("both cameras die and return", silent=frozenset(CAMERAS)),
    "offset": _stamps("thermal stamps are 0.33 s off", _of_thermal(lambda t, s: t - SECOND // 3)),
    "drift": _stamps("thermal stamps drift by 50 ms/s", _of_thermal(lambda t, s: t + int(5e7 * s))),
    "zero_stamps": _stamps("stamps are zero", lambda camera, t, s: 0),
    "equal_stamps": _stamps("stamps repeat for a second", lambda camera, t, s: t - t % SECOND),
    "negative_stamps": _stamps(
        "stamps are before 1970", lambda camera, t, s: -(t % SECOND) - SECOND
    ),
    "future_stamps": _stamps("stamps are an hour ahead", lambda camera, t, s: t + 3600 * SECOND),
    "since_boot": _stamps(
        "thermal stamps count since the machine's start",
        _of_thermal(lambda t, s: time.monotonic_ns()),
    ),
    "looping_bag": _stamps("stamps jump back and forth by 5 s", lambda camera, t, s: _jump(t, s)),
    "clock_set_back": _stamps(
        "the system clock is set back by a minute", lambda camera, t, s: t - 60 * SECOND
    ),
    "truncated": _feed("RGB data is cut off", change={"rgb": _cut_off}),
    "wrong_step": _feed("the step is too small", change={"rgb": _with(step=7)}),
    "no_pixels": _feed("images of size 0", change={c: _with(width=0, height=0) for c in CAMERAS}),
    "absurd_size": _feed("images of 4 billion rows", change={"thermal": _with(height=2**32 - 1)}),
    "unknown_encoding": _feed(
        "an encoding of 100 kB", change={"rgb": _with(encoding=100_000 * "x")}
    ),
    "other_size": _feed(
        "thermal images of another size", change={"thermal": _pixels(lambda p: p[::2, ::2])}
    ),
    "other_encoding": _feed(
        "RGB images become grey", change={"rgb": _pixels(lambda p: p[..., 0], "mono8")}
    ),
    "flat_thermal": _feed(
        "a thermal image of one value",
        change={"thermal": _pixels(lambda p: np.full_like(p, 29315))},
    ),
    "saturated_thermal": _feed(
        "a thermal image at its limit",
        change={"thermal": _pixels(lambda p: np.full_like(p, 65535))},
    ),
    "empty_thermal": _feed("a thermal image of zeros", change={"thermal": _pixels(np.zeros_like)}),
    "nan_thermal": _feed(
        "thermal degrees that are no numbers",
        change={"thermal": _pixels(lambda p: np.full(p.shape, np.nan, np.float32), "32FC1")},
    ),
    "noise": _feed(
        "thermal images of noise",
        change={"thermal": _pixels(_noise)},
    ),
    "flood": _feed("each image comes ten times", times=10),
    "broken_camera_info": Fault("camera_info of numbers that are none", _infos(_broken_info)),
    "absurd_camera_info": Fault("camera_info of absurd values", _infos(_absurd_info)),
    "bad_parameters": Fault(
        "parameters that cannot be used",
        _parameters(
            {"confidence": 0.25},
            {"tolerance": -1.0},
            {"method": "m" * 300},
            {"method": "/nowhere.onnx"},
            {"confidence": "high"},
            {"gain_low": 99.5},
        ),
    ),
    "foreign_model": Fault(
        "a method whose file is no model",
        lambda chaos: _parameters({}, {"method": chaos.foreign})(chaos),
    ),
    "changed_gain": Fault(
        "other gain control",
        _parameters({"gain_mode": "percentile"}, {"gain_mode": "plateau"}, {"gain_mode": "linear"}),
    ),
    "changed_pairing": Fault(
        "other pairing",
        _parameters(
            {"tolerance": 0.03, "reuse_slower": False, "dropout_policy": "wait"},
            {"tolerance": 0.001, "reuse_slower": True, "dropout_policy": "blank"},
        ),
    ),
    "arrival_stamps": Fault(
        "pairing by arrival", _parameters({"stamp_source": "header"}, {"stamp_source": "arrival"})
    ),
    "deactivated": Fault(
        "the node is deactivated",
        _transitions(Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE),
    ),
    "configured_anew": Fault(
        "the node is cleaned up and configured",
        _transitions(*_ANEW),
    ),
    "full_disk": Fault("no file can be written, while the node is configured anew", _fill_disk),
    "process_paused": Fault("the node's process is stopped", _pause_process, (0.5, 2.0)),
    "stopped_reader": Fault("a reader that keeps all stops taking", _stop_reader, (2.0, 6.0)),
    "second_publisher": Fault("another publisher sends RGB images", _second_publisher),
    "second_node": Fault("another node of the same name", _second_node),
}
