# SPDX-License-Identifier: AGPL-3.0-only
"""The demonstration's request, and the plan that this machine can keep up with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusion_ros.cameras.files import PairFolder
from fusion_ros.cameras.street.scene import CONDITIONS, TOUR_STOP_S
from fusion_ros.frame.detector import default_detector_path
from fusion_ros.frame.pipeline import load_detector, load_network
from fusion_ros.inference.models import model_path
from fusion_ros.node.parameters import Parameters
from fusion_ros.size import Size

__all__ = ["Plan", "Request", "make_plan"]

_SIZES = (Size(640, 480), Size(480, 360), Size(400, 300), Size(320, 240))
_LONGEST_S, _HIGHEST_HZ = 36.0, 10.0
_SHARE = 0.6
"""Share of the time between two pairs that the networks may take; the rest is for other work."""
_PAIRS = 100


@dataclass(frozen=True)
class Request:
    """What the user requested; `make_plan` chooses values for 0 and empty.

    method: a method's name or the path of a model; data: folder with ir/ and vi/; detector: ONNX
    file; pairs: number to send; rate: pairs per second; width, height: of the images, pixels.
    Raises ValueError, which names the choices, for values that cannot be used.
    """

    method: str = Parameters.method
    data: Path | None = None
    detector: str = ""
    output: Path = Path("demo_output")
    pairs: int = 0
    rate: float = 0.0
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        if min(self.pairs, self.rate, self.width, self.height) < 0:
            raise ValueError("--pairs, --rate, --width and --height must not be negative")
        if bool(self.width) != bool(self.height):
            raise ValueError("give both --width and --height, or neither")
        if self.detector and not Path(self.detector).is_file():
            raise ValueError(
                f"there is no ONNX file {self.detector}; `make detector` puts one in ~/.cache"
            )
        if self.data:
            PairFolder(self.data)
        self.parameters()

    def parameters(self) -> Parameters:
        """The fusion node's parameters, with full paths: the node may run in another folder."""
        method, detector = self.method, self.detector
        if method.endswith(".onnx"):
            method = str(model_path(method).resolve())
        if detector:
            detector = str(Path(detector).resolve())
        return Parameters(method=method, detector=detector)


@dataclass(frozen=True)
class Plan:
    """What the cameras send: `pairs` at `rate` per second.

    size: of the RGB images; None sends files as they are stored.
    """

    size: Size | None
    rate: float
    pairs: int

    @property
    def duration_s(self) -> float:
        return self.pairs / self.rate

    def gain(self) -> dict[str, float]:
        """Gain control's settings, which count in frames, for the speed that they have at 30 Hz."""
        frames = 30 / self.rate
        return {
            "smoothing": Parameters.gain_smoothing**frames,
            "max_step": min(Parameters.gain_max_step * frames, 255.0),
        }


def make_plan(request: Request, say: Callable[[str], None]) -> Plan:
    """Measure the networks, and choose size and rate so that they keep up; `say` what was chosen.

    Raises EngineError if a network cannot be loaded.
    """
    parameters = request.parameters()
    if request.width:
        sizes: tuple[Size, ...] = (Size(request.width, request.height),)
    elif request.data:
        sizes = (_largest(PairFolder(request.data)),)
    else:
        sizes = _SIZES
    network = load_network(parameters, None, lambda text: None)
    names, found_s = f"{network.method} takes", 0.0
    if parameters.detector or default_detector_path().is_file():
        detector = load_detector(parameters, None, lambda text: None)
        found_s = _seconds(lambda: detector.warmup(Size(640, 480)))
        names = f"{network.method} and the detector take"
    enough = request.rate or (request.pairs or _PAIRS) / _LONGEST_S
    for size in sizes:
        spent = found_s + _seconds(lambda: network.fuser.warmup(size))  # noqa: B023
        if spent * enough <= _SHARE:
            break
    # On a machine that cannot keep up even then, the node displaces frames.
    rate = request.rate or min(max(_SHARE / spent, enough), _HIGHEST_HZ)
    tour = 0 if request.data else math.ceil(rate * TOUR_STOP_S * len(CONDITIONS))
    plan = Plan(
        None if request.data and not request.width else size,
        rate,
        request.pairs or max(_PAIRS, tour),
    )
    say(
        f"{names} {1e3 * spent:.0f} ms at {size} here: "
        f"{plan.pairs} pairs at {rate:.1f} per second, {plan.duration_s:.0f} s"
        + (", faster than this machine can fuse" if spent * rate > 1 else "")
    )
    return plan


def _largest(pairs: PairFolder) -> Size:
    """Size of the largest of some of the images."""
    some = range(0, len(pairs), math.ceil(len(pairs) / 16))
    height, width = max((pairs.visible(i).shape[:2] for i in some), key=math.prod)
    return Size(width, height)


def _seconds(work: Callable[[], object]) -> float:
    """Duration of `work` once it is warm, in s."""
    work()
    durations = []
    for _ in range(2):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)
