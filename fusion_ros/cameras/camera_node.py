# SPDX-License-Identifier: AGPL-3.0-only
"""The camera node: publishes `image_raw` and `camera_info` of a simulated camera or of files.

Frame k is due at start_time + k / rate on the node's clock. Two camera processes with the same
`start_time` therefore agree on every due time without any exchange: simulated cameras show the
same moment of the same scene, file cameras the same pair with the same stamp.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from dataclasses import dataclass

import cv2
import numpy as np
import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.duration import Duration
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from fusion_ros.cameras.files import FilesError, PairFolder
from fusion_ros.cameras.street import scene
from fusion_ros.cameras.street.ahead import LOOP_RATE, Loop, LoopPlan
from fusion_ros.cameras.street.simulated import (
    COUNTS_PER_KELVIN,
    ZERO_CELSIUS,
    SimulatedRgb,
    SimulatedThermal,
)
from fusion_ros.frame import images

ENCODINGS = {
    "thermal": ("mono16", "16UC1", "mono8", "8UC1"),
    "rgb": ("bgr8", "rgb8", "bgra8", "rgba8", "mono8", "8UC3"),
}
_FROM_BGR = {
    "rgb8": cv2.COLOR_BGR2RGB,
    "bgra8": cv2.COLOR_BGR2BGRA,
    "rgba8": cv2.COLOR_BGR2RGBA,
    "mono8": cv2.COLOR_BGR2GRAY,
}
_MAX_JITTER = 0.45  # greatest jitter, as a share of a period: frames keep their order
_RECEIPT_S = 5.0
"""Longest wait at the end for the receipt of what was sent."""


class ParameterError(ValueError):
    """A parameter value that cannot be used."""


@dataclass(frozen=True)
class Settings:
    """Values of the node's parameters, checked."""

    camera: str
    source: str
    path: str
    scene: str
    seed: int
    ahead: bool
    rate: float
    width: int
    height: int
    fov: float
    encoding: str
    frames: int
    loop: bool
    start_ns: int  # 0: the grid starts at the clock's zero
    offset_ns: int
    jitter: float
    wait_for_subscribers: int
    reliable: bool
    frame_id: str


# name: (default, description, (low, high) or None, choices or None)
_PARAMETERS = {
    "camera": ("rgb", "which camera this node is", None, ("thermal", "rgb")),
    "source": ("simulated", "where frames come from", None, ("simulated", "files")),
    "path": ("", "source files: folder with ir/ and vi/", None, None),
    "scene": ("tour", "source simulated: light and weather", None, scene.SCENES),
    "seed": (0, "source simulated: which street; the same for both cameras", (0, 2**31 - 1), None),
    "ahead": (
        False,
        "source simulated: draw a loop of frames before the first is sent and play it, which takes "
        "little processor time; loops are kept in ~/.cache/fusion_ros/street",
        None,
        None,
    ),
    "rate": (
        0.0,
        "frames per second; 0: 30 for rgb, 9 for thermal, 10 for files",
        (0.0, 240.0),
        None,
    ),
    "width": (0, "pixels; 0: 640 for rgb, 320 for thermal, as stored for files", (0, 4096), None),
    "height": (0, "pixels; 0: 480 for rgb, 256 for thermal, as stored for files", (0, 4096), None),
    "fov": (
        0.0,
        "source simulated: horizontal field of view in degrees; 0: 60 for rgb, 66 for thermal",
        (0.0, 120.0),
        None,
    ),
    "encoding": (
        "",
        "encoding of the published images; empty: bgr8 for rgb, mono16 for thermal, from files "
        "the stored depth",
        None,
        None,
    ),
    "frames": (
        0,
        "end after this many frames, counted from start_time if that is set; 0: never",
        (0, 2**31 - 1),
        None,
    ),
    "loop": (True, "source files: start over after the last pair", None, None),
    "clock_offset": (
        0.0,
        "seconds by which this camera's stamps run ahead of the node's clock",
        (-10.0, 10.0),
        None,
    ),
    "jitter": (0.0, "standard deviation of the time of exposure in seconds", (0.0, 1.0), None),
    "wait_for_subscribers": (
        0,
        "send nothing before image_raw has this many subscribers",
        (0, 100),
        None,
    ),
    "qos": (
        "reliable",
        "reliability of image_raw and camera_info",
        None,
        ("reliable", "best_effort"),
    ),
    "frame_id": ("", "frame_id of the headers; empty: <camera>_optical_frame", None, None),
}


def _declare(node: Node) -> Settings:
    """Declare the parameters; raises `ParameterError`, which names parameter and choices."""
    values = {}
    for name, (default, description, limits, choices) in _PARAMETERS.items():
        kind = type(default)
        # `rate:=10` arrives as an integer; a strict double parameter would refuse it.
        descriptor = ParameterDescriptor(
            description=description, read_only=True, dynamic_typing=kind is float
        )
        if choices:
            descriptor.additional_constraints = "one of: " + ", ".join(choices)
        elif limits:
            descriptor.additional_constraints = f"from {limits[0]} to {limits[1]}"
        try:
            value = node.declare_parameter(name, default, descriptor).value
        except InvalidParameterTypeException as error:
            raise ParameterError(f"parameter {name}: expected {kind.__name__}, {error}") from error
        if kind is float:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ParameterError(f"parameter {name}: {value!r} is not a number")
            value = float(value)
        if choices and value not in choices:
            raise ParameterError(f"parameter {name}: '{value}': choose one of {', '.join(choices)}")
        if limits and not limits[0] <= value <= limits[1]:
            raise ParameterError(
                f"parameter {name}: {value} is not from {limits[0]} to {limits[1]}"
            )
        values[name] = value
    start = node.declare_parameter(
        "start_time",
        0.0,
        ParameterDescriptor(
            description="zero of scene time and frame grid: the clock's seconds, or nanoseconds as "
            "a string; the same for both cameras. 0: the zero of the clock",
            read_only=True,
            dynamic_typing=True,
        ),
    ).value
    encodings = ENCODINGS[values["camera"]]
    if values["encoding"] and values["encoding"] not in encodings:
        raise ParameterError(
            f"parameter encoding: '{values['encoding']}': choose one of "
            f"{', '.join(encodings)} for the {values['camera']} camera"
        )
    if values["source"] == "files" and not values["path"]:
        raise ParameterError("parameter path: needed with source files, a folder with ir/ and vi/")
    if bool(values["width"]) != bool(values["height"]):
        raise ParameterError("parameters width and height: give both or none")
    thermal = values["camera"] == "thermal"
    rate = values["rate"] or (10.0 if values["source"] == "files" else 9.0 if thermal else 30.0)
    return Settings(
        values["camera"],
        values["source"],
        values["path"],
        values["scene"],
        values["seed"],
        values["ahead"],
        rate,
        values["width"],
        values["height"],
        values["fov"],
        values["encoding"],
        values["frames"],
        values["loop"],
        _start_ns(start),
        round(values["clock_offset"] * 1e9),
        values["jitter"],
        values["wait_for_subscribers"],
        values["qos"] == "reliable",
        values["frame_id"] or f"{values['camera']}_optical_frame",
    )


def _start_ns(value) -> int:
    """Convert seconds as a number, or nanoseconds as a string of digits, to nanoseconds."""
    try:
        if isinstance(value, str):
            start = int(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            # An integer too large for seconds of any clock is nanoseconds.
            start = value if isinstance(value, int) and value > 10**14 else round(value * 1e9)
        else:
            raise ValueError
        if start < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise ParameterError(
            f"parameter start_time: {value!r} is neither seconds as a number nor "
            "nanoseconds as a string of digits"
        ) from None
    return start


def _loop(settings: Settings, model: scene.CameraModel) -> Loop:
    """Frames rendered ahead; logs the progress, since the first run takes a while."""
    logger = get_logger("camera_node")

    def progress(done: int, count: int) -> None:
        if done == 1 or done * 4 // count > (done - 1) * 4 // count:
            logger.info(f"frames of the {settings.camera} camera drawn ahead: {done} of {count}")

    try:
        # One loop serves every lower rate: it plays the frame nearest in time.
        rate = max(settings.rate, LOOP_RATE)
        plan = LoopPlan(settings.camera, settings.scene, settings.seed, rate=rate, model=model)
    except ValueError as error:
        raise ParameterError(f"parameter ahead: {error}") from error
    return Loop(plan, progress=progress)


class _SimulatedSource:
    """Frames of a simulated camera."""

    count = math.inf

    def __init__(self, settings: Settings) -> None:
        thermal = settings.camera == "thermal"
        usual = scene.THERMAL_CAMERA if thermal else scene.RGB_CAMERA
        fov = settings.fov or (66.0 if thermal else 60.0)
        try:
            self.model = scene.CameraModel.from_fov(
                settings.width or usual.width, settings.height or usual.height, fov
            )
        except ValueError as error:
            raise ParameterError(f"parameters width, height, fov: {error}") from error
        if settings.ahead:
            self._camera = _loop(settings, self.model)
        else:
            make = SimulatedThermal if thermal else SimulatedRgb
            self._camera = make(self.model, settings.scene, settings.seed)
        self.span = tuple((c + ZERO_CELSIUS) * COUNTS_PER_KELVIN for c in (-10.0, 45.0))

    def frame(self, index: int, scene_s: float) -> np.ndarray:
        return self._camera.render(scene_s)


class _FilesSource:
    """Frames of one side of a folder of pairs."""

    model = None
    span = (0.0, 65535.0)

    def __init__(self, settings: Settings) -> None:
        self._pairs = PairFolder(settings.path)
        self._read = self._pairs.thermal if settings.camera == "thermal" else self._pairs.visible
        self._size = (settings.width, settings.height) if settings.width else None
        self.count = math.inf if settings.loop else len(self._pairs)
        self._read(0)  # an unreadable folder is an error before anything is sent

    def frame(self, index: int, scene_s: float) -> np.ndarray:
        image = self._read(index)
        if self._size and image.shape[1::-1] != self._size:
            shrinks = self._size[0] < image.shape[1]
            image = cv2.resize(
                image, self._size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
        return image


def encode(frame: np.ndarray, encoding: str, span: tuple) -> tuple[np.ndarray, str]:
    """Convert a thermal (H, W) uint8/uint16 or BGR (H, W, 3) uint8 frame; encoding '' keeps it.

    Between 16 and 8 bits the counts in `span` (low, high) are scaled to 0..255.
    """
    if frame.ndim == 3:
        code = _FROM_BGR.get(encoding)
        return (frame if code is None else cv2.cvtColor(frame, code)), encoding or "bgr8"
    deep = frame.dtype == np.uint16
    if not encoding:
        return frame, "mono16" if deep else "mono8"
    low, high = span
    if deep and encoding in ("mono8", "8UC1"):
        scaled = (frame.astype(np.float32) - low) * (255.0 / (high - low))
        frame = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    elif not deep and encoding in ("mono16", "16UC1"):
        frame = frame.astype(np.uint16) * 257
    return frame, encoding


class CameraNode(Node):
    """Publishes `image_raw` and `camera_info` in its namespace, for one camera.

    sent, skipped: number of frames published, and left out because they were late.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__("camera_node", **kwargs)
        self.settings = _declare(self)
        make = _FilesSource if self.settings.source == "files" else _SimulatedSource
        self._source = make(self.settings)
        qos = QoSProfile(
            depth=5,
            reliability=ReliabilityPolicy.RELIABLE
            if self.settings.reliable
            else ReliabilityPolicy.BEST_EFFORT,
        )
        self._images = self.create_publisher(Image, "image_raw", qos)
        self._infos = self.create_publisher(CameraInfo, "camera_info", qos)
        self._image = Image()
        # The thread that sends frames also serves callbacks between them: /clock, parameters.
        self._waiter = SingleThreadedExecutor(context=self.context)
        self._waiter.add_node(self)
        self._stopping = False
        self.sent = self.skipped = 0

    def run(self) -> int:
        """Send frames until the last one, `stop` or shutdown; return the number sent."""
        if self.settings.wait_for_subscribers:
            self._wait_for_subscribers()
        self._send()
        self._wait_for_receipt()
        return self.sent

    def stop(self) -> None:
        """Make `run` return soon; may be called by a signal handler."""
        self._stopping = True

    def _going_on(self) -> bool:
        return self.context.ok() and not self._stopping

    def _serve(self, seconds: float) -> None:
        """Run one callback, or wait `seconds` for one; no callback's error ends the process."""
        try:
            self._waiter.spin_once(timeout_sec=seconds)
        except ExternalShutdownException:
            self.stop()
        except Exception as error:
            if self.context.ok():
                text = f"a callback failed: {type(error).__name__}: {error}"
                self.get_logger().error(text, throttle_duration_sec=10.0)

    def _send(self) -> None:
        s = self.settings
        index = self._next_index()
        origin = self._origin(index)
        tried = 0
        while self._going_on():
            # Cameras that share a grid count by it, so that a late one ends with the other.
            if s.frames and (index if s.start_ns else tried) >= s.frames:
                break
            if index - origin >= self._source.count:
                break
            exposed = s.start_ns + round(index * 1e9 / s.rate) + self._jitter_ns(index)
            # Rendered ahead of time, so that only sending is left when the frame is due.
            frame = self._frame(index - origin, (exposed - s.start_ns) * 1e-9)
            if not self._sleep_until(exposed):  # the clock went back, or shutdown
                index = self._next_index()
                origin = self._origin(index)
                continue
            tried += 1  # counts unreadable frames too: otherwise the node might never end
            if frame is not None:
                self._try_to_publish(frame, exposed + s.offset_ns)
            following = max(index + 1, self._next_index())
            if following > index + 1:
                self.skipped += following - index - 1
                self.get_logger().warning(
                    f"cannot keep up with {s.rate:g} frames per second, {self.skipped} skipped so "
                    "far: lower rate, width or height",
                    throttle_duration_sec=10.0,
                )
            index = following

    def _origin(self, index: int) -> int:
        """Index on the grid of the source's frame 0."""
        return 0 if self.settings.start_ns or math.isinf(self._source.count) else index

    def _next_index(self) -> int:
        """Index of the next frame on the grid; one that is late by < 1/2 period is due now."""
        while self._going_on():
            now = self.get_clock().now().nanoseconds
            if now > 0:  # simulated time has begun
                periods = (now - self.settings.start_ns) * self.settings.rate * 1e-9
                return max(0, math.ceil(periods - 0.5))
            self._serve(0.01)
        return 0

    def _jitter_ns(self, index: int) -> int:
        s = self.settings
        if not s.jitter:
            return 0
        draw = np.random.default_rng([s.seed, index, len(s.camera)]).normal() * s.jitter
        limit = _MAX_JITTER / s.rate
        return round(1e9 * min(max(draw, -limit), limit))

    def _frame(self, number: int, scene_s: float) -> np.ndarray | None:
        try:
            return self._source.frame(number, scene_s)
        except Exception as error:  # a frame that cannot be published is left out
            self._leave_out(error)
            return None

    def _try_to_publish(self, frame: np.ndarray, stamp_ns: int) -> None:
        try:
            self._publish(frame, stamp_ns)
        except Exception as error:
            if self.context.ok():
                self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        text = str(error) if isinstance(error, FilesError) else f"{type(error).__name__}: {error}"
        self.get_logger().error(f"frame left out: {text}", throttle_duration_sec=60.0)

    def _sleep_until(self, target_ns: int) -> bool:
        """Wait for a time of the node's clock; False if it jumped back, or at the end.

        Each round reads the clock again, so that no error accumulates.
        """
        last = self.get_clock().now().nanoseconds
        self._serve(0)
        while self._going_on():
            now = self.get_clock().now().nanoseconds
            if now < last - 100_000_000:
                return False
            if now >= target_ns:
                return True
            last = now
            # Simulated time runs at any speed: each message of /clock ends the wait.
            self._serve(min((target_ns - now) * 1e-9, 0.05))
        return False

    def _publish(self, frame: np.ndarray, stamp_ns: int) -> None:
        pixels, encoding = encode(frame, self.settings.encoding, self._source.span)
        header = Header(stamp=Time(nanoseconds=stamp_ns).to_msg(), frame_id=self.settings.frame_id)
        images.fill(self._image, np.ascontiguousarray(pixels), encoding, header)
        self._images.publish(self._image)
        self._infos.publish(self._info(header, pixels.shape[1], pixels.shape[0]))
        self.sent += 1

    def _info(self, header: Header, width: int, height: int) -> CameraInfo:
        """Intrinsics; all zero, which means uncalibrated, for images from files."""
        info = CameraInfo(header=header, width=width, height=height)
        model = self._source.model
        if model is not None:
            info.distortion_model = "plumb_bob"
            info.d = [0.0] * 5
            info.k = model.matrix.ravel().tolist()
            info.r = np.eye(3).ravel().tolist()
            info.p = np.hstack([model.matrix, np.zeros((3, 1))]).ravel().tolist()
        return info

    def _wait_for_subscribers(self) -> None:
        awaited = self.settings.wait_for_subscribers
        asked = time.monotonic()
        while self._going_on():
            found = self._images.get_subscription_count()
            if found >= awaited:
                break
            self._serve(0.05)
            if time.monotonic() - asked > 5.0:
                asked = time.monotonic()
                self.get_logger().info(
                    f"waiting for subscribers of {self._images.topic_name}: {found} of {awaited}"
                )
        # The subscriber discovers this publisher a little later than this one discovers it.
        time.sleep(0.3)

    def _wait_for_receipt(self) -> None:
        """Wait until all messages were received, so that the end loses none."""
        end = time.monotonic() + _RECEIPT_S
        for publisher in (self._images, self._infos):
            received = False
            try:
                # In short waits: a signal is not handled before the wait returns.
                while not received and self._going_on() and time.monotonic() < end:
                    received = publisher.wait_for_all_acked(Duration(seconds=0.1))
            except Exception:  # rclpy's RCLError: the context was shut down meanwhile
                if self.context.ok():
                    raise
                return
            if not received and self._going_on():
                self.get_logger().warning(f"not all of {publisher.topic_name} was received")


def main(args: list[str] | None = None) -> int:
    """Run the node; 0 after the last frame or an interrupt, 1 for a bad parameter.

    args: ROS arguments, by default those of the process. Must run in the main thread.
    """
    # Once the node runs, signals only set a flag: as an exception, one could hit any destructor and
    # be lost there, and `ros2 launch` repeats the Ctrl-C that the terminal sent already.
    running: CameraNode | None = None
    signals = 0

    def stop(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        if running is not None:
            running.stop()
        elif signals == 1:
            raise KeyboardInterrupt  # drawing the scene takes seconds

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    status = 0
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = CameraNode()
        running = node
        if not signals:
            node.run()
        print(
            f"{node.settings.camera} camera: {node.sent} frames sent, {node.skipped} skipped",
            flush=True,
        )
        node.destroy_node()
    except KeyboardInterrupt:
        pass
    except (ParameterError, FilesError) as error:
        print(f"camera_node: {error}", file=sys.stderr)
        status = 1
    finally:
        rclpy.try_shutdown()
        # Python's end would set our handlers back to the default, which kills.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    sys.exit(main())
