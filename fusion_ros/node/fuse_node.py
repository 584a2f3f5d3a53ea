# SPDX-License-Identifier: AGPL-3.0-only
"""The fusion node: parameters, topics and wiring around pairing, pipeline and monitor.

Callbacks look at an image and put it into the pairing; one worker thread takes the newest pair
along the pipeline and publishes. A bad frame costs that frame and is counted.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from fusion_ros.frame import images
from fusion_ros.frame.detector import Detection, draw
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pairing import Pair, Pairer, PairingCounts
from fusion_ros.frame.pipeline import Intrinsics, Network, Pipeline, load_detector, load_network
from fusion_ros.frame.settings import ParameterError
from fusion_ros.inference import EngineError
from fusion_ros.node.parameters import Parameters
from fusion_ros.node.worker import Worker

_QUEUE = 10
_IMAGES = 5
"""So many images of each camera wait to be taken in, at most: newer ones would win over them."""
_FEW_IMAGES = 5
"""So many images of both cameras without a pair are worth a word."""
_RECENT_S = 5.0
"""Faults no older than this make the diagnostics a warning."""
_CALIBRATION_S = 0.2
"""What the first frame waits for camera_info, at most."""
_STOP_S = 5.0
"""What the end waits for the frame in hand, which may be building an engine, at most."""
_SAME_INTERRUPT_S = 1.0
"""Terminal and launcher both hand on one Ctrl-C: only a later signal is a second one."""
_ODD_LATENCY_MS = 10_000.0
"""Beyond this it is the clocks that differ."""


@dataclass
class _Camera:
    """One input, and what is known of it.

    heard: monotonic time of its latest image, s; overdue, silent: for longer than the timeout it
    sent nothing at the latest check, and at the one before as well.
    """

    name: str
    add: Callable[[int, Image], list[Pair]]
    heard: float
    overdue: bool = False
    silent: bool = False
    stamp_ns: int | None = None
    info: Intrinsics | None = None
    has_info: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Job:
    """Images to fuse; one of them is None while its camera is silent."""

    thermal: Image | None
    rgb: Image | None
    queued: float


class FuseNode(LifecycleNode):
    """Subscribes to two cameras, publishes fused images, boxes and diagnostics.

    All callbacks are of one mutually exclusive group, so none runs beside another; only
    `_process` and what it calls (worker) and `_load` (loader) run in threads of their own.

    Raises `ParameterException` for overrides outside a parameter's range; all other errors in
    parameters come with `on_configure`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("fuse_node", **kwargs)
        Parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_parameters)
        # `_parameters` and `_publishers` are names of rclpy's own.
        self._settings: Parameters | None = None
        self._pipeline: Pipeline | None = None
        self._loader: Worker[Parameters] | None = None
        self._worker: Worker[_Job] | None = None
        self._publishers_of: dict[str, Any] = {}
        self._said: set[str] = set()
        self._entities: list[tuple[Callable[[Any], Any], Any]] = []

    def start(self) -> bool:
        """Configure and activate, as `autostart` asks for; whether that succeeded."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def build(self) -> bool:
        """Make the networks ready and say what is, as `build_only` asks for; whether they are."""
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            return False
        network, detector = self._pipeline.network, self._pipeline.detector
        ready = f"{network} on {network.fuser.running.description}"
        if detector is not None:
            ready += f"; the detector on {detector.running.description}"
        size = "{}x{}".format(*self._settings.expected_size)
        self.get_logger().info(f"ready for images of {size}: {ready}")
        return True

    # --- Lifecycle ----------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._configure()
        except Exception as error:  # rclpy would swallow what is not expected
            expected = isinstance(error, (EngineError, ValueError))
            text = str(error) if expected else f"{type(error).__name__}: {error}"
            self.get_logger().error(f"not configured: {text}")
            self._release()
            return TransitionCallbackReturn.FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        self._activate()
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._deactivate()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        return super().on_error(state)

    def close(self) -> bool:
        """Stop the threads and free the networks, from any state.

        False if a thread is still busy after some seconds; what it uses is not freed then.
        """
        self._deactivate(_STOP_S)
        return self._release() and self._worker is None

    def _configure(self) -> None:
        parameters = Parameters.from_node(self)
        size = parameters.expected_size
        network = load_network(parameters, size, self._say_once)
        self._monitor = Monitor(self.get_logger().warning)
        self._pipeline = Pipeline(parameters, network, self._monitor)
        self._pairer = Pairer(
            round(parameters.tolerance * 1e9),
            parameters.queue_size,
            round(parameters.thermal_time_offset * 1e9),
            parameters.reuse_slower,
        )
        self._resets = 0
        self._settings = parameters
        if parameters.detect:
            try:
                self._pipeline.change(detector=load_detector(parameters, size, self._say_once))
            except (EngineError, ValueError) as error:
                if parameters.detector:
                    raise
                self._monitor.fault("detector_missing", f"fusing without a detector: {error}")
        self._loader = Worker(self._load, "loader")
        self._to_thermal = images.Converter(images.thermal_array)
        self._to_visible = images.Converter(images.visible_bgr)
        self._messages = {topic: Image() for topic in ("fused/image", "fused/image_annotated")}
        for topic in self._messages:
            self._advertise(Image, topic)
        self._advertise(DiagnosticArray, "/diagnostics")
        self._advertise_detections()

    def _advertise(self, kind: type, topic: str) -> None:
        self._publishers_of[topic] = self.create_lifecycle_publisher(kind, topic, _QUEUE)

    def _advertise_detections(self) -> None:
        try:
            from vision_msgs.msg import Detection2DArray

            self._advertise(Detection2DArray, "detections")
        except Exception as error:  # not installed, or built for another rclpy
            self.get_logger().warning(
                f"publishing no detections, since vision_msgs cannot be used ({error}): "
                "apt install ros-$ROS_DISTRO-vision-msgs; everything else works"
            )

    def _activate(self) -> None:
        now = time.monotonic()
        # The pairer's counts go on, the cameras are new: nothing to compare yet.
        self._checked: PairingCounts | None = None
        self._thermal = _Camera("thermal", self._pairer.add_thermal, now)
        self._rgb = _Camera("rgb", self._pairer.add_visible, now)
        self._calibration_awaited = not self._settings.homography
        self._worker = Worker(self._process, "fusion")
        self._subscribe(self._thermal)
        self._subscribe(self._rgb)
        # A bag that pauses stops the node's clock, and is to be noticed.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        log_period = self._settings.log_period
        every = ((0.2, self._watch), (1.0, self._on_second), (log_period, self._log_rate))
        for period, callback in every:
            if period:
                timer = self.create_timer(period, callback, clock=steady)
                self._entities.append((self.destroy_timer, timer))
        self._say_what_runs(self._pipeline.network)

    def _say_what_runs(self, network: Network) -> None:
        self.get_logger().info(f"fusing by {network} on {network.fuser.running.description}")

    def _say_once(self, text: str) -> None:
        # The same backends are passed over for every network.
        if text not in self._said:
            self._said.add(text)
            self.get_logger().info(text)

    def _subscribe(self, camera: _Camera) -> None:
        reliable = self._settings.qos == "reliable"
        qos = QoSProfile(
            depth=_IMAGES,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        events = SubscriptionEventCallbacks(
            incompatible_qos=lambda event: self._on_incompatible_qos(camera)
        )
        for kind, topic, callback in (
            (Image, f"{camera.name}/image_raw", lambda msg: self._on_image(camera, msg)),
            (CameraInfo, f"{camera.name}/camera_info", lambda msg: self._on_info(camera, msg)),
        ):
            subscription = self.create_subscription(
                kind, topic, callback, qos, event_callbacks=events
            )
            self._entities.append((self.destroy_subscription, subscription))

    def _deactivate(self, timeout: float | None = None) -> None:
        for destroy, entity in self._entities:
            destroy(entity)
        self._entities.clear()
        if self._worker is not None:
            lost = self._worker.stop(timeout) + len(self._pairer.flush())
            self._monitor.count("displaced", lost)
            if not self._worker.alive:
                self._worker = None

    def _release(self) -> bool:
        """Free what `_configure` made; False if a load goes on."""
        ended = True
        if self._loader is not None:
            # A load under way may take minutes: its result is thrown away when it comes.
            self._loader.stop(timeout=0.1)
            ended = not self._loader.alive
            if ended:
                self._loader = None
        for publisher in self._publishers_of.values():
            self.destroy_lifecycle_publisher(publisher)
        self._publishers_of = {}
        # A frame in hand runs on the networks: freeing them under it would crash the process.
        if self._pipeline is not None and self._worker is None:
            self._pipeline.close()
        self._pipeline = self._settings = None
        return ended

    # --- Parameters ---------------------------------------------------------------------------

    def _on_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        specs = Parameters.specs()
        changes = {p.name: p.value for p in changed if p.name in specs}
        if not changes or self._settings is None:
            return SetParametersResult(successful=True)
        try:
            for name in changes.keys() & Parameters.static_names():
                if specs[name].coerce(name, changes[name]) != getattr(self._settings, name):
                    raise ParameterError(
                        name,
                        "is read when the node configures: set it after the transition 'cleanup', "
                        "then 'configure' and 'activate'",
                    )
            parameters = self._settings.replace(**changes)
            self._check_classes(parameters)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._use(parameters)
        return SetParametersResult(successful=True)

    def _check_classes(self, parameters: Parameters) -> None:
        detector = self._pipeline.detector
        unknown = set(parameters.classes) - set(detector.class_names.values() if detector else ())
        if detector and unknown:
            raise ParameterError(
                "classes",
                f"the detector has no {', '.join(sorted(unknown))}: it knows "
                f"{', '.join(detector.class_names.values())}",
            )

    def _use(self, parameters: Parameters) -> None:
        self._settings = parameters
        self._pairer.tolerance_ns = round(parameters.tolerance * 1e9)
        self._pairer.reuse_slower = parameters.reuse_slower
        offset_ns = round(parameters.thermal_time_offset * 1e9)
        if offset_ns != self._pairer.thermal_offset_ns:
            self._pairer.thermal_offset_ns = offset_ns
        self._pipeline.change(settings=parameters)
        self._loader.submit(parameters)

    def _load(self, parameters: Parameters) -> None:
        """Bring the pipeline's networks to these parameters; runs in the loader's thread."""
        pipeline = self._pipeline
        if pipeline is None:
            return
        running = pipeline.network
        size = pipeline.rgb_size or parameters.expected_size
        if not running.fits(parameters):
            try:
                network = load_network(parameters, size, self._say_once)
            except Exception as error:  # whatever a model file can do
                self._monitor.fault(
                    "method_load_failed",
                    f"still fusing by {running}: {parameters.method} with processing_size "
                    f"{parameters.processing_size} cannot be loaded: {error}",
                )
                self._set_back_network(parameters, running)
            else:
                pipeline.change(network=network)
                self._say_what_runs(network)
        if parameters.detect and pipeline.detector is None:
            try:
                pipeline.change(detector=load_detector(parameters, size, self._say_once))
            except Exception as error:  # as above
                self._monitor.fault("detector_missing", f"fusing without a detector: {error}")

    def _set_back_network(self, failed: Parameters, running: Network) -> None:
        names = ("method", "processing_size")
        values = (running.method, running.fuser.processing_size)

        def set_back() -> None:
            now = self._settings
            if now is not None and all(getattr(now, n) == getattr(failed, n) for n in names):
                # At once: one after the other would have a network loaded that nobody asked for.
                self.set_parameters_atomically(
                    [Parameter(name, value=value) for name, value in zip(names, values)]
                )

        # Parameters belong to the executor's thread.
        if self.executor is not None:
            self.executor.create_task(set_back)

    # --- Input --------------------------------------------------------------------------------

    def _on_image(self, camera: _Camera, msg: Image) -> None:
        camera.heard = time.monotonic()
        camera.overdue = camera.silent = False
        stamp_ns = Time.from_msg(msg.header.stamp).nanoseconds
        if not stamp_ns:
            self._monitor.fault(
                f"{camera.name}_unstamped",
                f"{camera.name} images have no stamp: the driver must set header.stamp",
            )
            return
        try:
            images.view(msg)
        except images.ImageError as error:
            self._monitor.fault(f"{camera.name}_unreadable", f"{camera.name} camera: {error}")
            return
        camera.stamp_ns = stamp_ns
        other = self._rgb if camera is self._thermal else self._thermal
        if other.silent and self._settings.dropout_policy != "wait":
            self._monitor.count(f"{camera.name}_alone")
            thermal = camera is self._thermal
            self._submit(msg if thermal else None, None if thermal else msg)
        else:
            self._submit_pairs(camera.add(stamp_ns, msg))

    def _submit_pairs(self, pairs: list[Pair]) -> None:
        for pair in pairs:
            self._submit(pair.thermal.item, pair.visible.item)

    def _submit(self, thermal: Image | None, rgb: Image | None) -> None:
        if self._worker.submit(_Job(thermal, rgb, time.perf_counter())):
            self._monitor.count("displaced")

    def _on_info(self, camera: _Camera, msg: CameraInfo) -> None:
        # A matrix of zeros says that the camera is not calibrated.
        info = Intrinsics(tuple(msg.k), (msg.width, msg.height)) if msg.k[0] > 0 else None
        if info != camera.info:
            camera.info = info
            self._pipeline.change(**{f"{camera.name}_camera": info})
        camera.has_info.set()

    def _on_incompatible_qos(self, camera: _Camera) -> None:
        self._monitor.fault(
            "incompatible_qos",
            f"a publisher of the {camera.name} camera offers best effort only, this node asks for "
            f"{self._settings.qos}, so nothing arrives: set the parameter qos:=best_effort",
        )

    # --- Work, in the worker's thread -----------------------------------------------------------

    def _process(self, job: _Job) -> None:
        try:
            self._fuse(job)
        except Exception as error:  # one bad frame costs one frame, whatever is wrong with it
            if self.context.ok():
                self._monitor.count("rejected")
                self._monitor.fault(
                    "frame_failed", f"a frame was left out: {type(error).__name__}: {error}"
                )

    def _fuse(self, job: _Job) -> None:
        monitor, pipeline = self._monitor, self._pipeline
        monitor.stage("queue", 1e3 * (time.perf_counter() - job.queued))
        self._await_calibration()
        with monitor.timed("convert"):
            thermal = None if job.thermal is None else self._to_thermal(job.thermal)
            visible = None if job.rgb is None else self._to_visible(job.rgb)
        fused = pipeline.fuse(thermal, visible)
        header = (job.thermal if job.rgb is None else job.rgb).header
        with monitor.timed("publish"):
            self._publish_image("fused/image", fused, header)
        # Nobody to see the boxes: no need to look for them.
        looked_at = self._wanted("detections") or self._wanted("fused/image_annotated")
        if looked_at and pipeline.detects:
            found = self._detect(fused)
            monitor.count("detections", len(found))
        else:
            found = []
        with monitor.timed("publish_boxes"):
            if self._wanted("detections"):
                self._publishers_of["detections"].publish(_detection_array(found, header))
            if self._wanted("fused/image_annotated"):
                self._publish_image("fused/image_annotated", draw(fused, found), header)
        published = self.get_clock().now().nanoseconds
        latency_ms = 1e-6 * (published - Time.from_msg(header.stamp).nanoseconds)
        monitor.fused(latency_ms)
        if abs(latency_ms) > _ODD_LATENCY_MS:
            monitor.fault(
                "odd_stamps",
                f"images are stamped {1e-3 * latency_ms:.1f} s before this node's time, so latency "
                "means nothing: synchronise the clocks, or set use_sim_time for a bag",
            )

    def _detect(self, fused: np.ndarray) -> list[Detection]:
        try:
            return self._pipeline.detect(fused)
        except EngineError as error:
            self._monitor.fault("detector_failed", f"a frame has no boxes: {error}")
            return []

    def _await_calibration(self) -> None:
        """Give both camera_info the time to arrive before the first frame, if they are sent."""
        if not self._calibration_awaited:
            return
        self._calibration_awaited = False
        end = time.monotonic() + _CALIBRATION_S
        for camera in (self._thermal, self._rgb):
            # Unlike subscribing, counting takes a name as it is, without remapping it.
            if self.count_publishers(self.resolve_topic_name(f"{camera.name}/camera_info")):
                camera.has_info.wait(max(0.0, end - time.monotonic()))

    def _wanted(self, topic: str) -> bool:
        publisher = self._publishers_of.get(topic)
        return publisher is not None and publisher.get_subscription_count() > 0

    def _publish_image(self, topic: str, pixels: np.ndarray, header: Header) -> None:
        if self._wanted(topic):
            message = images.fill(self._messages[topic], pixels, "bgr8", header)
            self._publishers_of[topic].publish(message)

    # --- Regularly ------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Find cameras that are silent."""
        cameras = (self._thermal, self._rgb)
        now = time.monotonic()
        for camera in cameras:
            overdue = now - camera.heard > self._settings.camera_timeout
            # Seen twice: after a pause of this whole process, images may wait to be taken in.
            camera.silent = overdue and camera.overdue
            camera.overdue = overdue
        waits = self._settings.dropout_policy == "wait"
        if (all if waits else any)(camera.silent for camera in cameras):
            # Nothing comes that could be a better partner for what waits.
            self._submit_pairs(self._pairer.flush())

    def _on_second(self) -> None:
        for camera in (self._thermal, self._rgb):
            if camera.silent:
                topic = self.resolve_topic_name(f"{camera.name}/image_raw")
                self._monitor.fault(
                    f"{camera.name}_silent",
                    f"no {camera.name} image for {time.monotonic() - camera.heard:.1f} s on "
                    f"{topic} (publishers: {self.count_publishers(topic)}): start the camera or "
                    "remap the topic",
                )
        counts = self._pairer.counts
        if counts.resets > self._resets:
            self._monitor.fault("time_jump", "stamps jumped back: pairing began anew")
            self._resets = counts.resets
        self._check_pairing(counts)
        self._publishers_of["/diagnostics"].publish(self._report(counts))

    def _check_pairing(self, counts: PairingCounts) -> None:
        """Say so when both cameras send, but none of their images belong together."""
        before, self._checked = self._checked, counts
        if before is None or counts.visible.paired > before.visible.paired:
            return
        new = [
            getattr(counts, stream).received - getattr(before, stream).received
            for stream in ("thermal", "visible")
        ]
        if min(new) < _FEW_IMAGES or None in (self._thermal.stamp_ns, self._rgb.stamp_ns):
            self._checked = before
            return
        p = self._settings
        ahead = 1e-9 * (self._thermal.stamp_ns - self._rgb.stamp_ns) + p.thermal_time_offset
        self._monitor.fault(
            "unpaired",
            f"of the latest {new[0]} thermal and {new[1]} RGB images none are a pair: thermal "
            f"stamps are {ahead:+.3f} s from the RGB ones, the tolerance is {p.tolerance:g} s; set "
            "thermal_time_offset or tolerance",
        )

    def _report(self, counts: PairingCounts) -> DiagnosticArray:
        monitor, pipeline = self._monitor.snapshot(), self._pipeline
        engine = pipeline.network.fuser.running
        detector = pipeline.detector
        values: dict[str, Any] = {
            "method": pipeline.network.method,
            "engine": engine.description,
            "detector": detector.running.description if detector else "none",
            "size": "{}x{}".format(*pipeline.rgb_size) if pipeline.rgb_size else "unknown",
            "processing_size": pipeline.network.fuser.processing_size,
            "fps": monitor.fps,
            "mean_fps": monitor.mean_fps,
        }
        if monitor.latency_ms:
            for name, ms in dataclasses.asdict(monitor.latency_ms).items():
                values[f"latency_{name}_ms"] = ms
        for name, ms in monitor.stage_ms.items():
            values[f"stage_{name}_ms"] = ms
        for camera, stream in (("thermal", counts.thermal), ("rgb", counts.visible)):
            for name, count in dataclasses.asdict(stream).items():
                values[f"{camera}_{name}"] = count
        values["resets"] = counts.resets
        values["in_progress"] = self._worker.pending
        # All that was paired or alone is in progress, fused, displaced or rejected.
        counters = ("thermal_alone", "rgb_alone", "fused", "displaced", "rejected", "detections")
        values.update(dict.fromkeys(counters, 0))
        values.update(monitor.counters)
        recent = [fault.text for fault in monitor.faults if fault.age_s < _RECENT_S]
        status = DiagnosticStatus(
            name=f"{self.get_fully_qualified_name().lstrip('/')}: fusion",
            hardware_id=engine.device,
            level=DiagnosticStatus.WARN if recent else DiagnosticStatus.OK,
            message="; ".join(recent) or f"{monitor.fps:.1f} fps by {values['method']}",
            values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()],
        )
        return DiagnosticArray(
            header=Header(stamp=self.get_clock().now().to_msg()), status=[status]
        )

    def _log_rate(self) -> None:
        monitor = self._monitor.snapshot()
        if not monitor.latency_ms:
            return
        latency, counters = monitor.latency_ms, monitor.counters
        self.get_logger().info(
            f"{self._pipeline.network.method}: {monitor.fps:.1f} fps, latency "
            f"p50 {latency.p50:.0f}, p95 {latency.p95:.0f}, p99 {latency.p99:.0f} ms, "
            f"fused {counters['fused']}, displaced {counters.get('displaced', 0)}, "
            f"rejected {counters.get('rejected', 0)}"
        )


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _detection_array(detections: list[Detection], header: Header) -> Any:
    """vision_msgs/Detection2DArray; class names as ids, boxes by their centre, in pixels."""
    from vision_msgs.msg import (
        BoundingBox2D,
        Detection2D,
        Detection2DArray,
        ObjectHypothesisWithPose,
    )

    array = Detection2DArray(header=header)
    for one in detections:
        box = BoundingBox2D(size_x=one.width, size_y=one.height)
        box.center.position.x = one.x + one.width / 2
        box.center.position.y = one.y + one.height / 2
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = one.class_name
        hypothesis.hypothesis.score = one.score
        array.detections.append(Detection2D(header=header, results=[hypothesis], bbox=box))
    return array


def main(args: list[str] | None = None) -> int:
    """Run the node until it is interrupted; 1 if its parameters or models cannot be used.

    A thread that is busy then, such as with building an engine, is given some seconds, and ends
    with the process.
    """
    # rclpy's own handlers pull the context away from under the threads. With these an interrupt is
    # an exception in this thread, wherever it is, and the node ends in order.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    node, status, closed = None, 0, True
    try:
        node = FuseNode()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        building = node.get_parameter("build_only").value
        if building:
            status = 0 if node.build() else 1
        elif node.get_parameter("autostart").value and not node.start():
            status = 1
        while not building and not status and rclpy.ok():
            # Returns now and then, since signals are not seen while it waits.
            executor.spin_once(timeout_sec=0.2)
    except ParameterException as error:
        print(f"fuse_node: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        pass
    finally:
        _end_at_once_by_another_signal()
        if node is not None:
            closed = node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    if not closed:
        # Python's own end would take the libraries away from under the thread.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _end_at_once_by_another_signal() -> None:
    ending_since = time.monotonic()

    def end(number: int, frame: object) -> None:
        if time.monotonic() - ending_since > _SAME_INTERRUPT_S:
            os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


if __name__ == "__main__":
    sys.exit(main())
