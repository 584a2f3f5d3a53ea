# SPDX-License-Identifier: AGPL-3.0-only
"""What the node has from its configuration to its cleanup: networks, publishers, worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rclpy.parameter import Parameter

from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pace import Pace
from fusion_ros.frame.pairing import Pair, Pairer
from fusion_ros.frame.pipeline import Network, Pipeline, load_network
from fusion_ros.frame.settings import AUTO
from fusion_ros.node.camera import Camera
from fusion_ros.node.diagnostics import Diagnostics
from fusion_ros.node.frames import Frames, Job
from fusion_ros.node.guard import describe
from fusion_ros.node.loader import Loader
from fusion_ros.node.outputs import Outputs
from fusion_ros.node.parameters import Parameters
from fusion_ros.node.ready import Ready
from fusion_ros.node.worker import Worker

if TYPE_CHECKING:
    from fusion_ros.node.fuse_node import FuseNode

__all__ = ["Configured"]

_PAUSE_S = 0.5
"""How long `pause` waits for the frame in progress, at most, s."""


class Configured:
    """The parts that turn pairs of images into messages, and the parameters they work by.

    All methods belong to the executor's thread. `Frames` runs in the worker's thread, `Loader` in
    its own.

    Raises EngineError or ValueError if the networks cannot be loaded; nothing is left behind.
    """

    def __init__(self, node: FuseNode, parameters: Parameters) -> None:
        self.parameters = parameters
        self._node = node
        self._closed = False
        self._said_method = ""
        self.monitor = Monitor(node.get_logger().warning)
        self.cameras = (Camera("thermal"), Camera("rgb"))
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
            self.say_what_runs,
            self._set_back,
        )
        try:
            self.loader.load_first_detector(parameters)
            self.outputs = Outputs(node)
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
            node.count_publishers_of,
            lambda: node.get_clock().now().nanoseconds,
        )
        # The worker runs on after a deactivation: its frame may be building an engine for minutes.
        # It frees the networks itself, since only its thread can tell when that frame is done.
        self.worker: Worker[Job] = Worker(
            self.frames.process, "fusion", self._frame_failed, self.pipeline.close
        )
        self.diagnostics = Diagnostics(
            node.get_fully_qualified_name().lstrip("/"),
            self.monitor,
            self.pairer,
            self.pipeline,
            self.cameras,
            node.resolve_topic_name,
            node.count_publishers_of,
        )

    def use(self, parameters: Parameters) -> None:
        """Work by other parameters from the next frame on; networks follow once loaded."""
        self.parameters = parameters
        self.pairer.tolerance_ns = round(parameters.tolerance * 1e9)
        self.pairer.reuse_slower = parameters.reuse_slower
        offset_ns = round(parameters.thermal_time_offset * 1e9)
        if offset_ns != self.pairer.thermal_offset_ns:
            self.pairer.thermal_offset_ns = offset_ns
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

    def submit_pairs(self, pairs: list[Pair]) -> None:
        for pair in pairs:
            self.pace.pair(pair.visible.stamp_ns)
            self.submit(Job(pair.thermal.item, pair.visible.item))

    def report(self) -> None:
        """Publish the diagnostics."""
        statuses = self.diagnostics.statuses(
            self.worker.pending, self.loader.detector_problem, self._pace_values()
        )
        self.outputs.diagnostics(statuses)

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
        """Drop waiting images, and wait up to `_PAUSE_S` for the frame in progress."""
        dropped = self.worker.clear() + len(self.pairer.flush())
        self.monitor.count("displaced", dropped)
        self.worker.wait(_PAUSE_S)
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

    def say_what_runs(self, network: Network) -> None:
        if network.method == self._said_method and self.parameters.processing_size == AUTO:
            return  # another size has been logged, with its reason
        self._said_method = network.method
        self.pace.use(network.fuser.processing_size)
        engine = network.fuser.engine.description
        self._node.get_logger().info(f"fusing by {network} on {engine}")

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
            network.fuser.close()

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
