# SPDX-License-Identifier: AGPL-3.0-only
"""The steps of one frame in order: gain control, registration, fusion, detection.

Arrays in, arrays out, without ROS. Networks, settings and calibration may be changed from other
threads at any time: the changes take effect between two frames.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from fusion_ros.frame.border import SoftBorder
from fusion_ros.frame.calibration import Calibration, rotation_between
from fusion_ros.frame.detector import Detection, Detector, default_detector_path, own_detector_path
from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.no_data import EmptyBorder
from fusion_ros.frame.pace import START_ON_CPU
from fusion_ros.frame.registration import Registration
from fusion_ros.frame.settings import AUTO, Settings
from fusion_ros.frame.thermal import GainControl
from fusion_ros.frame.thermography import Thermography
from fusion_ros.frame.tracking import Tracker
from fusion_ros.inference import DeviceArray, Engine, EngineError, load_engine
from fusion_ros.inference.models import check_shipped, model_path
from fusion_ros.size import Size

__all__ = ["Network", "Pipeline", "Prepared", "RegistrationState", "load_detector", "load_network"]

_OVERLAP_UP_TO = 448
"""Longer side, px, up to which two images are fused at a time; at 640, caf takes 490 MB more."""
_SAME = 0.1
"""Thermal pixels by which a calibration may change, as with autofocus, before maps are renewed."""


@dataclass(frozen=True)
class Network:
    """A loaded fusion network, and the parameters `method` and `processing_size` that name it.

    beside: the same network once more, with memory of its own, where two images are fused at a
        time.
    """

    method: str
    fuser: Fuser
    processing_size: int | str = 0
    beside: Fuser | None = None

    def __str__(self) -> str:
        size = self.fuser.processing_size
        return self.method + (f" at up to {size} px" if size else "")

    def fits(self, settings: Settings) -> bool:
        """Whether `settings` name this network; at which size `auto` runs makes no difference."""
        wanted = (settings.method, settings.processing_size)
        return (self.method, self.processing_size) == wanted

    @property
    def lanes(self) -> int:
        """How many images can be fused at a time."""
        return 1 if self.beside is None else 2

    def fuser_of(self, lane: int) -> Fuser:
        """Return what fuses the images of a lane, 0 or 1."""
        return self.beside if lane and self.beside else self.fuser

    def infer_s(self, lane: int) -> float:
        """How long the network took for the latest images of a lane, s."""
        return 1e-3 * self.fuser_of(lane).last_ms["infer"]

    def close(self) -> None:
        """Free the network once the images in hand are fused."""
        self.fuser.close()
        if self.beside is not None:
            self.beside.close()


def load_network(
    settings: Settings,
    size: Size | None,
    log: Callable[[str], None],
    auto: int | None = None,
) -> Network:
    """Load the network that `settings` name, warmed up for RGB images of `size` if known.

    auto: the size where `processing_size` is auto, px; by default full size on a GPU and a small
    one on a processor, to start with.
    Raises EngineError or ValueError saying what is missing and what to do.
    """
    check_shipped(settings.method)

    def load() -> Engine:
        return load_engine(
            # The float16 file is in the same folder, and the engine chooses between them.
            model_path(settings.method),
            settings.backend,
            precision=settings.precision,
            threads=settings.threads,
            log=log,
        )

    engine = load()
    processing_size = settings.processing_size
    if processing_size == AUTO:
        processing_size = auto
        if processing_size is None:
            processing_size = START_ON_CPU if engine.device == "CPU" else 0
    fuser, beside = Fuser(engine, processing_size), None
    if settings.processing_size == AUTO and _overlaps(engine, settings):
        longest = processing_size or (max(size) if size else None)
        if longest and longest <= _OVERLAP_UP_TO:
            # Not warmed up: it takes its memory when the first image overlaps with another one.
            beside = Fuser(load(), processing_size)
    if size:
        fuser.warmup(size)
    return Network(settings.method, fuser, settings.processing_size, beside)


def _overlaps(engine: Engine, settings: Settings) -> bool:
    """Whether two images at a time take less than one after the other.

    A network's operators wait for their slowest thread, and some have one thread only: on two cores
    four methods fuse 12 to 33 % more images a second two at a time. A GPU is busy with one, and
    what is set to one thread is to leave the other cores free.
    """
    threads = settings.threads or len(os.sched_getaffinity(0))
    return engine.device == "CPU" and threads > 1


def load_detector(settings: Settings, size: Size | None, log: Callable[[str], None]) -> Detector:
    """Load the detector that `settings` name, warmed up for images of `size` if known.

    Raises EngineError or ValueError saying what is missing and what to do.
    """
    path = settings.detector or default_detector_path()
    try:
        engine = load_engine(path, settings.backend, threads=settings.threads, log=log)
    except EngineError as error:
        raise EngineError(
            f"{error}. `make detector` puts a YOLO at {own_detector_path()}; any other is "
            "named by the parameter detector"
        ) from None
    detector = Detector(
        engine,
        settings.detector_names or None,
        confidence=settings.confidence,
        iou=settings.iou,
        classes=settings.classes,
        size=settings.detector_size,
        layout=settings.detector_layout,
    )
    # Beside fusion it runs in a thread of low priority, which the threads of a session on a
    # processor take over where they are started: at the first image.
    if size and not (settings.detect_every == AUTO and engine.device == "CPU"):
        detector.warmup(size)
    return detector


@dataclass(frozen=True)
class _Setup:
    """Everything that may be replaced between two frames."""

    settings: Settings
    network: Network
    detector: Detector | None = None
    thermal_camera: Calibration | None = None
    rgb_camera: Calibration | None = None


@dataclass(frozen=True)
class RegistrationState:
    """How the latest images were registered.

    source: `homography`, `camera_info`, or why there is none.
    problems: what is wrong with it, for as long as it is used.
    coverage: share of the RGB pixels that the thermal camera sees, 0 to 1.
    """

    source: str = "nothing yet"
    problems: tuple[str, ...] = ()
    thermal_size: Size | None = None
    rgb_size: Size | None = None
    coverage: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """Images that only the network has not seen yet.

    fuse: return the fused (H, W, 3) uint8 BGR image, to be called once.
    thermography: temperatures in the image, valid as long as the images are; None without a
        thermal image, or if detections carry no temperature.
    """

    fuse: Callable[[], np.ndarray]
    thermography: Thermography | None


class Pipeline:
    """Processes one pair of images after the other: one thread calls `fuse`.

    Where the network has two lanes, two threads can share the work: one at a time calls `prepare`,
    each for a lane of its own, and what that returns is fused beside the other lane's images.
    `detect` may be called by the same thread or by one other. The duration of each step
    goes to `monitor` as a stage, and problems as faults.

    released: called with each network that runs no more, in the thread that calls `fuse` or
        `change`; by default it is freed.
    """

    def __init__(
        self,
        settings: Settings,
        network: Network,
        monitor: Monitor,
        released: Callable[[Network], None] = lambda network: network.close(),
    ) -> None:
        self.monitor = monitor
        self._released = released
        self._lock = threading.Lock()
        self._detecting = threading.Lock()
        self._setup = _Setup(settings, network)
        self._closed = False
        self._running: _Setup | None = None
        self._gain = GainControl()
        self._tracker = Tracker()
        self._empty = EmptyBorder()
        self._border: tuple[tuple, SoftBorder] | None = None
        self._registration = Registration()
        self._plain: tuple[tuple[float, ...], Registration] | None = None
        self._registered_for: _RegisteredFor | None = None
        self._unusable: str | None = None
        self.registration_state = RegistrationState()
        self._rgb_size: Size | None = None
        self._buffers: dict[tuple[str, int], np.ndarray] = {}
        self._on_device: DeviceArray | None = None
        self._registered: np.ndarray | None = None
        self._thermography: Thermography | None = None

    def change(self, **changes: Settings | Network | Detector | Calibration | None) -> None:
        """Replace parts of the pipeline from the next frame on.

        changes: `settings`, `network`, `detector`, `thermal_camera` and `rgb_camera` (an
            `Calibration`, or None for a camera that is not calibrated).
        """
        with self._lock:
            old, self._setup = self._setup, dataclasses.replace(self._setup, **changes)
            # What a frame ran on is freed by the next frame. Others no frame will ever run on:
            # one that is replaced before its first frame, one that comes after the end.
            if self._closed:
                self._free(self._setup)
            elif old.network is not self._setup.network and (
                self._running is None or self._running.network is not old.network
            ):
                self._released(old.network)

    @property
    def network(self) -> Network:
        return self._setup.network

    @property
    def running(self) -> Network | None:
        """The network of the latest frame; None before the first."""
        return self._running and self._running.network

    @property
    def detector(self) -> Detector | None:
        return self._setup.detector

    @property
    def rgb_size(self) -> Size | None:
        """Size of the latest RGB image."""
        return self._rgb_size

    @property
    def thermography(self) -> Thermography | None:
        """Temperatures in the latest image, until the next `fuse`; None without a thermal image."""
        return self._thermography if self._setup.settings.detections_temperature else None

    @property
    def detects(self) -> bool:
        """Whether `detect` looks for objects: the setting is on and a detector is loaded."""
        return self._setup.settings.detect and self._setup.detector is not None

    @property
    def detect_every(self) -> int | str:
        """The setting: search every such frame, or auto."""
        return self._setup.settings.detect_every

    @property
    def registered(self) -> np.ndarray | None:
        """The thermal image of the latest `fuse` as it was fused, valid until the next call.

        (H, W) uint8 in RGB pixels; None if there was no thermal image.
        """
        return self._registered

    @property
    def seen(self) -> np.ndarray | None:
        """RGB pixels that the thermal camera saw in the latest `fuse`, (H, W) bool; None: all."""
        border = self._registration.border
        return None if border is None else border.seen

    def fuse(self, thermal: np.ndarray | None, visible: np.ndarray | None) -> np.ndarray:
        """The fused (H, W, 3) uint8 BGR image, valid until the next call.

        thermal: (H, W) as `GainControl` takes it; visible: (H, W, 3) uint8 BGR. One of the two
        may be None: parameter `dropout_policy` says whether the other passes through or is fused
        with black.
        Raises ValueError for images of another kind, EngineError if the network fails.
        """
        return self.prepare(thermal, visible).fuse()

    def prepare(
        self, thermal: np.ndarray | None, visible: np.ndarray | None, lane: int = 0
    ) -> Prepared:
        """Do all that comes before the network, for images as `fuse` takes them.

        lane: 0 or 1; what a lane holds is valid until the next call for it.
        Raises ValueError for images of another kind; the rest as in `fuse`.
        """
        setup = self._take_over()
        self._on_device = self._thermography = None
        if visible is not None:
            self._rgb_size = Size.of(visible)
        size = self._rgb_size or Size.of(thermal)
        border = None
        if thermal is not None:
            counts = thermal
            thermal_size, calibration = Size.of(thermal), setup.thermal_camera
            seen = self._empty.update(thermal, calibration is not None and calibration.rectified)
            with self.monitor.timed("gain"):
                thermal = self._gain.apply(thermal, self._buffer("gain", thermal.shape, lane))
            with self.monitor.timed("register"):
                self._register(setup, thermal_size, size)
                out = self._buffer("warp", size.shape, lane)
                thermal = self._registration.warp(thermal, size, out)
                border = self._border_of(seen, size)
            self._pass_on_warning()
            self._note_registration(setup, thermal_size, size)
            self._thermography = Thermography(
                counts, self._registration, size, setup.settings.relation
            )
        self._registered = thermal
        out = self._buffer("fused", (*size.shape, 3), lane)
        if thermal is None or visible is None:
            if setup.settings.dropout_policy == "pass":
                alone = _alone(thermal, visible, border, out)
                return Prepared(lambda: alone, self.thermography)
            thermal = np.zeros(size.shape, np.uint8) if thermal is None else thermal
            visible = np.zeros((*size.shape, 3), np.uint8) if visible is None else visible
        fuser = setup.network.fuser_of(lane)

        def fuse() -> np.ndarray:
            fused, milliseconds = fuser.fuse(thermal, visible, out), dict(fuser.last_ms)
            self._on_device = fuser.on_device()
            for stage, ms in milliseconds.items():
                self.monitor.stage(stage, ms)
            if border is not None:
                with self.monitor.timed("border"):
                    border.blend(fused, visible)
                # What the GPU still holds lacks the border: the detector reads the finished image.
                self._on_device = None
            return fused

        return Prepared(fuse, self.thermography)

    def detect(
        self, fused: np.ndarray, latest: bool = True, seconds: float = 0.0
    ) -> list[Detection]:
        """Objects in a fused image, strongest first; tracked ones with their number.

        seconds: time of the image, for tracking. latest: it is the image of the latest `fuse`,
        which may still be in GPU memory; another thread than that of `fuse` gives a copy and False.
        Raises EngineError if the network fails.
        """
        with self._detecting:
            setup = self._running
            if self._closed or not (setup and setup.settings.detect and setup.detector):
                return []
            with self.monitor.timed("detect"):
                found = setup.detector.detect(fused, self._on_device if latest else None)
            if setup.detector.dropped:
                self.monitor.count("boxes_dropped", setup.detector.dropped)
            if setup.settings.track:
                with self.monitor.timed("track"):
                    found = self._tracker.update(found, seconds, setup.settings.confidence)
            return found

    def close(self) -> None:
        """Free the networks; nothing runs afterwards."""
        with self._lock:
            self._closed = True
            if self._running is not None and self._running.network is not self._setup.network:
                self._running.network.close()
            self._free(self._setup)

    def _free(self, setup: _Setup) -> None:
        setup.network.close()
        if setup.detector is not None:
            with self._detecting:
                setup.detector.close()

    def _take_over(self) -> _Setup:
        if self._setup is self._running:
            return self._setup
        # Stored first, so that a setting that fails costs one frame and not every frame.
        with self._lock:
            old, new = self._running, self._setup
            self._running = new
        if old is not None and old.network is not new.network:
            self._released(old.network)
        p = new.settings
        if old is None or old.settings is not p:
            gain = self._gain
            gain.mode, gain.low, gain.high = p.gain_mode, p.gain_low, p.gain_high
            gain.smoothing, gain.max_step = p.gain_smoothing, p.gain_max_step
            gain.min_span, gain.stretch_8bit = p.gain_min_span, p.gain_stretch_8bit
            gain.plateau, gain.celsius = p.gain_plateau, p.gain_range
            gain.radiometry, gain.polarity = p.relation, p.thermal_polarity
        if new.detector is not None:
            new.detector.confidence, new.detector.iou = p.confidence, p.iou
            try:
                new.detector.classes = p.classes
            except ValueError as error:
                self.monitor.fault("classes", f"classes stays as it was: {error}")
        return new

    def _register(self, setup: _Setup, thermal_size: Size, size: Size) -> None:
        """Renew the registration if the calibration or the sizes have changed."""
        settings, thermal, rgb = setup.settings, setup.thermal_camera, setup.rgb_camera
        by_lenses = not (settings.homography or thermal is None or rgb is None)
        calibration = (thermal, rgb, settings.thermal_rotation) if by_lenses else None
        key = _RegisteredFor(calibration, settings.homography, (thermal_size, size))
        before = self._registered_for
        if key == before:
            return
        self._registered_for = key
        self._unusable = None
        try:
            if by_lenses:
                registration = Registration.of_lenses(
                    thermal.at(thermal_size),
                    rgb.at(size),
                    rotation_between(thermal, rgb, settings.rotation),
                )
            else:
                registration = self._by_homography(settings.homography)
            was_by_lenses = before is not None and before.calibration is not None
            comparable = by_lenses and was_by_lenses and before.sizes == key.sizes
            if comparable and _agree(self._registration, registration, thermal_size, size):
                return
            registration.prepare(thermal_size, size)
        except ValueError as error:
            registration = Registration()
            given = "cameras' calibration" if by_lenses else "parameter homography"
            self._unusable = f"the {given} cannot be used: {error}"
            self.monitor.fault("calibration", self._unusable)
        self._registration = registration

    def _by_homography(self, values: tuple[float, ...]) -> Registration:
        """The registration of the parameter `homography`, with the maps that it has made."""
        if self._plain is None or self._plain[0] != values:
            self._plain = (values, Registration(values or None))
        return self._plain[1]

    def _border_of(self, seen: np.ndarray | None, size: Size) -> SoftBorder | None:
        """The edge of the thermal camera's view, or of what it has data of."""
        if seen is None:
            return self._registration.border
        key = (seen, self._registration, self._registration.border)
        held = self._border
        if held is None or held[1].size != size or any(a is not b for a, b in zip(held[0], key)):
            self._border = (key, self._registration.border_within(seen, size))
        return self._border[1]

    def _note_registration(self, setup: _Setup, thermal_size: Size, size: Size) -> None:
        """Keep what the diagnostics tell of the registration."""
        registration = self._registration
        uncalibrated = [
            name
            for name, camera in (("thermal", setup.thermal_camera), ("rgb", setup.rgb_camera))
            if camera is None
        ]
        problems = [text for text in (self._unusable, registration.problem) if text]
        if self._unusable:
            source = "none, as if aligned"
        elif setup.settings.homography:
            source = "homography"
        elif not uncalibrated:
            source = "camera_info"
        else:
            source = "none, as if aligned"
            if len(uncalibrated) == 1:
                problems.append(
                    f"only one camera is calibrated, so its camera_info is not used: the "
                    f"{uncalibrated[0]} camera sends none, or one without K and P"
                )
        state = RegistrationState(
            source, tuple(problems), thermal_size, size, registration.coverage
        )
        if state != self.registration_state:
            self.registration_state = state

    def _pass_on_warning(self) -> None:
        if self._registration.warning:
            self.monitor.fault("registration", self._registration.warning)
            self._registration.warning = None

    def _buffer(self, name: str, shape: tuple[int, ...], lane: int) -> np.ndarray:
        buffer = self._buffers.get((name, lane))
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[name, lane] = np.empty(shape, np.uint8)
        return buffer


class _RegisteredFor(NamedTuple):
    """What a registration was made from; `calibration` is None where the cameras' do not count."""

    calibration: tuple[Calibration, Calibration, tuple[float, ...]] | None
    homography: tuple[float, ...]
    sizes: tuple[Size, Size]


def _alone(
    thermal: np.ndarray | None,
    visible: np.ndarray | None,
    border: SoftBorder | None,
    out: np.ndarray,
) -> np.ndarray:
    """The image of one camera in place of the fused one; the thermal one is written to `out`."""
    if thermal is None:
        return visible
    if border is not None:
        border.blend(thermal, np.zeros_like(thermal))
    return cv2.cvtColor(thermal, cv2.COLOR_GRAY2BGR, dst=out)


def _agree(one: Registration, other: Registration, thermal_size: Size, size: Size) -> bool:
    """Whether two registrations differ by less than `_SAME` in the thermal camera's view."""
    grid = np.meshgrid(np.linspace(0, size.width - 1, 16), np.linspace(0, size.height - 1, 12))
    pixels = np.column_stack([axis.ravel() for axis in grid])
    old, new = one.thermal_pixels(pixels), other.thermal_pixels(pixels)
    if old is None or new is None or (np.isnan(old) != np.isnan(new)).any():
        return False
    inside = ((old > -1) & (old < thermal_size)) | ((new > -1) & (new < thermal_size))
    return not (np.abs(old - new)[inside.all(axis=1)] >= _SAME).any()
