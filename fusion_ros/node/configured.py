# SPDX-License-Identifier: AGPL-3.0-only
"""What the node has from its configuration to its cleanup: networks, publishers, worker."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from rclpy.parameter import Parameter

from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pace import Pace
from fusion_ros.frame.pairing import Pair, Pairer, PairingCounts
from fusion_ros.frame.pipeline import Network, Pipeline, load_network
from fusion_ros.frame.settings import AUTO
from fusion_ros.frame.shutter import Shutter
from fusion_ros.node.camera import Camera
from fusion_ros.node.diagnostics import Diagnostics, Work
from fusion_ros.node.frames import Frames, Job
from fusion_ros.node.graph import Graph
from fusion_ros.node.guard import describe
from fusion_ros.node.loader import Loader
from fusion_ros.node.outputs import (
    ANNOTATED,
    DETECTIONS,
    FUSED,
    FUSED_INFO,
    Outputs,
    compressed_topic,
)
from fusion_ros.node.parameters import Parameters
from fusion_ros.node.ready import Ready
from fusion_ros.node.worker import Lanes

if TYPE_CHECKING:
    from fusion_ros.node.fuse_node import FuseNode

__all__ = ["Configured"]

_PAUSE_S = 0.5
"""How long `pause` waits for the frame in progress, at most, s."""


class Configured:
    """The parts that turn pairs of images into messages, and the parameters they work by.

    All methods belong to the executor's thread, but for `counts` and `work`. `Frames` runs in the
    worker's thread, `Outputs` publishes in its own, `Loader` loads in its own.

    Raises EngineError or ValueError if the networks cannot be loaded; nothing is left behind.
    """

    def __init__(self, node: FuseNode, parameters: Parameters) -> None:
        self.parameters = parameters
        self._node = node
        self._closed = False
        self._said_method = ""
        self.monitor = Monitor(node.get_logger().warning)
        self.cameras = (Camera("thermal"), Camera("rgb"))
        self.shutter = Shutter()
        self.graph = Graph(node)
        self._refuse_shared_topics()
        self._pairing = threading.Lock()
        self.pairer = Pairer(
            round(parameters.tolerance * 1e9),
            parameters.queue_size,
            round(parameters.thermal_time_offset * 1e9),
            parameters.reuse_slower,
        )
        network = load_network(parameters, parameters.expected_size, node.log_once)
        self.ready = Ready()
        self.pipeline = Pipeline(parameters, network, self.monitor, self._released)
        self.pace = Pace(
            network.fuser.processing_size, parameters.min_processing_size, parameters.target_rate
        )
        self._ahead: tuple[int, ...] = ()
        self.loader = Loader(
            self.pipeline,
            self.ready,
            self.monitor,
            node.log_once,
            self.replaced,
            self._set_back,
        )
        try:
            self.loader.load_first_detector(parameters)
            self.outputs = Outputs(node, self._unpublished, self._publishing_failed)
            self.outputs.jpeg_quality = parameters.jpeg_quality
        except Exception:
            self.loader.stop(0.0)
            self.pipeline.close()
            raise
        self.frames = Frames(
            self.pipeline,
            self.monitor,
            self.outputs,
            self.pace,
            self._search_failed,
            self.cameras,
            self.graph,
        )
        self.frames.arrival_stamps = parameters.stamp_source == "arrival"
        self.cameras[1].depth.given = parameters.rgb_bits
        # The worker outlives a deactivation, since the frame in hand may be building an engine.
        # It frees the networks itself: nobody else knows when that frame is done.
        self.worker: Lanes[Job] = Lanes(
            self.frames.process, "fusion", self._frame_failed, self.pipeline.close
        )
        self._follow(network)
        self.diagnostics = Diagnostics(
            self.monitor, self.pipeline, self.cameras, self.graph, self.counts, self.work
        )

    def use(self, parameters: Parameters) -> None:
        """Work by other parameters from the next frame on; networks follow once loaded."""
        self.parameters = parameters
        with self._pairing:
            self.pairer.tolerance_ns = round(parameters.tolerance * 1e9)
            self.pairer.reuse_slower = parameters.reuse_slower
            offset_ns = round(parameters.thermal_time_offset * 1e9)
            if offset_ns != self.pairer.thermal_offset_ns:
                self.pairer.thermal_offset_ns = offset_ns
        self.frames.arrival_stamps = parameters.stamp_source == "arrival"
        self.cameras[1].depth.given = parameters.rgb_bits
        self.outputs.jpeg_quality = parameters.jpeg_quality
        self.pipeline.change(settings=parameters)
        self.pace.least = parameters.min_processing_size
        self.pace.target_rate = parameters.target_rate
        self._ahead = ()
        self.loader.request(parameters, self.pace.size)

    def keep_pace(self) -> None:
        """Change the size if the cameras' rate asks for it; to be called several times a second."""
        if self.parameters.processing_size != AUTO or self.loader.busy:
            return
        change = self.pace.decide()
        if change is not None:
            self._ahead = ()
            self._node.get_logger().info(change.reason)
            self.loader.request(self.parameters, change.size)
            return
        ahead = tuple(self.pace.neighbours())
        if ahead and not set(ahead) <= set(self._ahead):
            self._ahead = ahead
            self.loader.request(self.parameters, self.pace.size, ahead)

    def submit(self, job: Job) -> None:
        """Hand images to the worker; they displace those that still wait for it."""
        if self.worker.submit(job):
            self.monitor.count("displaced")
            self.pace.lost()

    def pair(self, camera: Camera, stamp_ns: int, image: Any) -> None:
        """Hand on the pairs that an image of a camera completes."""
        add = self.pairer.add_thermal if camera.name == "thermal" else self.pairer.add_visible
        with self._pairing:
            self._submit_pairs(add(stamp_ns, image))

    def flush(self) -> None:
        """Do without the partners of the images that wait for some."""
        with self._pairing:
            self._submit_pairs(self.pairer.flush())

    def counts(self) -> PairingCounts:
        """The counters of the pairing; from any thread."""
        with self._pairing:
            return self.pairer.counts

    def work(self) -> Work:
        """What is under way; from any thread."""
        waiting, publishing = self.worker.pending, self.outputs.pending_images
        return Work(
            max(0, waiting - self.frames.decided) + publishing,
            waiting + self.outputs.pending + self.frames.search.pending,
            self.worker.busy_s,
            self.outputs.busy_s,
            self.loader.detector_problem,
            self._pace_values(),
        )

    def _pace_values(self) -> dict[str, object]:
        """What diagnostics show of the pace: sizes, rates and what limits them."""
        pace = self.pace.state()
        return {
            "processing_size_auto": self.parameters.processing_size == AUTO,
            "processing_sizes_ready": " ".join(map(str, self.ready.sizes)) or "none",
            "wanted_fps": pace.wanted_fps,
            "held_fps": pace.held_fps,
            "load": pace.load,
            "limited_by": pace.limit,
            "searching": self.frames.search.pending,
        }

    def pause(self) -> None:
        """Drop waiting images; the frame in hand gets a moment to finish."""
        self.diagnostics.pause()
        with self._pairing:
            dropped = self.worker.clear() + len(self.pairer.flush())
        self.monitor.count("displaced", dropped)
        if self.worker.wait(_PAUSE_S):
            self.outputs.wait(_PAUSE_S)
        self.frames.search.pause(_PAUSE_S)

    def close(self, timeout: float) -> bool:
        """End the threads and free the networks; return whether that is done.

        Waits up to `timeout` seconds. Threads that still run end later and free their networks
        then.
        """
        self._closed = True
        end = time.monotonic() + timeout
        self.worker.stop(timeout)
        self.frames.search.stop(max(0.0, end - time.monotonic()))
        self.loader.stop(0.1)
        self.ready.close()
        self.outputs.close()
        return not self.alive

    @property
    def alive(self) -> bool:
        """Whether a thread still runs."""
        return self.worker.alive or self.loader.alive or self.frames.search.alive

    def _follow(self, network: Network) -> None:
        """Have as many images in hand as the network takes at a time."""
        self.worker.width = self.pace.lanes = network.lanes

    def replaced(self, network: Network) -> None:
        """Follow a network that runs from the next frame on; called in the loader's thread."""
        self._follow(network)
        self.say_what_runs(network)

    def say_what_runs(self, network: Network) -> None:
        if network.method == self._said_method and self.parameters.processing_size == AUTO:
            return  # another size has been logged, with its reason
        self._said_method = network.method
        self.pace.use(network.fuser.processing_size)
        engine = network.fuser.engine.description
        self._node.get_logger().info(f"fusing by {network} on {engine}")

    def _submit_pairs(self, pairs: list[Pair]) -> None:
        for pair in pairs:
            self.monitor.count("pairs")
            self.pace.pair(pair.visible.stamp_ns)
            apart_ns = pair.thermal.stamp_ns - pair.visible.stamp_ns
            apart_ns += self.pairer.thermal_offset_ns
            self.monitor.sample("pair_distance_ms", 1e-6 * abs(apart_ns))
            self.submit(Job(pair.thermal.item, pair.visible.item))

    def _unpublished(self, topic: str) -> None:
        """A newer message took the place of one that waited to be published."""
        self.monitor.count("unpublished")
        if topic == FUSED:
            self.monitor.count("displaced")

    def _publishing_failed(self, error: Exception) -> None:
        if not self._closed and self._node.context.ok():
            self.monitor.fault("publishing_failed", f"publishing failed: {describe(error)}")

    def _refuse_shared_topics(self) -> None:
        """Raise ValueError where remapping gives two topics one name."""
        topics: dict[str, str] = {}
        of_images = [*(one.image_topic for one in self.cameras), FUSED, ANNOTATED]
        others = [*(one.info_topic for one in self.cameras), FUSED_INFO, DETECTIONS]
        named = [(topic, self.graph.resolve(topic)) for topic in (*of_images, *others)]
        # Their compressed forms are beside them, whatever they are remapped to.
        beside = [(compressed_topic(t), compressed_topic(full)) for t, full in named[:4]]
        for topic, full in (*named, *beside):
            if full in topics:
                raise ValueError(
                    f"the topics {topics[full]} and {topic} are both remapped to {full}: expected "
                    "a name for each"
                )
            topics[full] = topic

    def _frame_failed(self, error: Exception) -> None:
        # After `close` the publishers are destroyed, so errors are expected and not reported.
        if not self._closed and self._node.context.ok():
            self.monitor.count("rejected")
            self.monitor.fault("frame_failed", f"a frame was left out: {describe(error)}")

    def _released(self, network: Network) -> None:
        """Keep a network that was replaced, if a change of size may need it again; else free it."""
        if network.fits(self.parameters) and self.parameters.processing_size == AUTO:
            self.ready.keep(network)
        else:
            network.close()

    def _search_failed(self, error: Exception) -> None:
        if not self._closed and self._node.context.ok():
            self.monitor.fault("detector_failed", f"a frame has no boxes: {describe(error)}")

    def _set_back(self, wanted: Parameters, size: int, running: Network) -> None:
        """Set the parameters of the network that stays; called in the loader's thread."""
        if running.fits(wanted):  # auto: only the size cannot be loaded
            self.pace.refuse(size)
            return
        names = ("method", "processing_size")
        values = (running.method, running.processing_size)

        def set_back() -> None:
            now = self.parameters
            if not self._closed and all(getattr(now, n) == getattr(wanted, n) for n in names):
                # Both at once: between two calls, a network that is not wanted would be loaded.
                self._node.set_parameters_atomically(
                    [Parameter(name, value=value) for name, value in zip(names, values)]
                )

        self._node.call_later(set_back)
