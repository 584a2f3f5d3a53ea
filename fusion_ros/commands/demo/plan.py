# SPDX-License-Identifier: AGPL-3.0-only
"""The demonstration's request, and the plan that this machine can keep up with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusion_ros.cameras.files import PairFolder
from fusion_ros.cameras.street.ahead import Loop, LoopPlan
from fusion_ros.cameras.street.scene import CONDITIONS, TOUR_STOP_S, CameraModel
from fusion_ros.frame.pipeline import load_network
from fusion_ros.inference.models import model_path
from fusion_ros.node.parameters import Parameters
from fusion_ros.size import Size

__all__ = ["Plan", "Request", "draw_ahead", "make_plan"]

_SIZE = Size(640, 480)
_RATES = (30.0, 25.0, 20.0, 15.0, 10.0, 7.5, 5.0)
_RATES_OF_FILES = (10.0, 7.5, 5.0)
"""Files are decoded while they are sent, which takes processor time."""
_TYPICAL = 256
"""Size at which a processor should fuse in time, px; the node chooses its own."""
_SHARE = 0.6
"""Share of the time between two pairs that fusion may take; the rest is for other work."""
_PAIRS = 100
_RGB_FOV = 60.0
"""Horizontal field of view of the simulated RGB camera, degrees."""


@dataclass(frozen=True)
class Request:
    """What the user requested; `make_plan` chooses values for 0 and empty.

    method: a method's name or the path of a model; data: folder with ir/ and vi/; detector: ONNX
    file; pairs: number to send; rate: pairs per second; width, height: of the images, pixels; live:
    draw the simulated images while they are sent, instead of before; page: evaluate the run.
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
    live: bool = False
    page: bool = True

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

    size: of the RGB images; None sends files as they are stored. ahead: the simulated cameras play
    what was drawn before.
    """

    size: Size | None
    rate: float
    pairs: int
    ahead: bool = False

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
    """Measure the network, and choose a rate that it keeps up with; `say` what was chosen.

    Raises EngineError if a network cannot be loaded.
    """
    parameters = request.parameters()
    if request.width:
        size = Size(request.width, request.height)
    elif request.data:
        size = _largest(PairFolder(request.data))
    else:
        size = _SIZE
    network = load_network(parameters, None, lambda text: None)
    if network.fuser.engine.device == "CPU":
        network = load_network(parameters, None, lambda text: None, _TYPICAL)
    spent = _seconds(lambda: network.fuser.warmup(size))
    rates = _RATES_OF_FILES if request.data else _RATES
    rate = request.rate or next((r for r in rates if spent * r <= _SHARE), rates[-1])
    tour = 0 if request.data else math.ceil(rate * TOUR_STOP_S * len(CONDITIONS))
    plan = Plan(
        None if request.data and not request.width else size,
        rate,
        request.pairs or max(_PAIRS, tour),
        ahead=not (request.data or request.live),
    )
    say(
        f"{network} takes {1e3 * spent:.0f} ms for {size} here: {plan.pairs} pairs at {rate:g} per "
        f"second, {plan.duration_s:.0f} s"
    )
    return plan


def draw_ahead(plan: Plan) -> None:
    """Draw what the simulated cameras will play, unless an earlier run has; with a progress bar."""
    assert plan.size is not None
    for name, loop in (
        ("RGB", LoopPlan("rgb", "tour", model=CameraModel.from_fov(*plan.size, _RGB_FOV))),
        ("thermal", LoopPlan("thermal", "tour")),
    ):
        shown = -1

        def progress(done: int, count: int, name: str = name) -> None:
            nonlocal shown
            if (percent := 100 * done // count) > shown:
                shown = percent
                line = f"\rdrawing the {name} camera's tour, once: {done} of {count} frames"
                print(line, end="\n" if done == count else "", flush=True)

        Loop(loop, progress=progress)


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
