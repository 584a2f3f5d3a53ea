# SPDX-License-Identifier: AGPL-3.0-only
"""One frame in a worker's thread: fuse a pair of messages, find objects, publish both."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from fusion_ros.frame import compressed, images
from fusion_ros.frame.annotation import draw
from fusion_ros.frame.detector import Detection
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pace import Pace, Shares
from fusion_ros.frame.pipeline import Pipeline, Prepared
from fusion_ros.frame.settings import AUTO
from fusion_ros.frame.thermography import Thermography
from fusion_ros.node.advice import far_apart
from fusion_ros.node.camera import Camera
from fusion_ros.node.graph import Graph
from fusion_ros.node.guard import describe
from fusion_ros.node.outputs import ANNOTATED, DETECTIONS, FUSED, NotActiveError, Outputs
from fusion_ros.node.search import Search

__all__ = ["Frames", "Job", "check"]

_CALIBRATION_S = 0.2
"""How long the first frame waits for camera_info, at most, s."""
_DOUBTFUL = 50
"""Images that are decoded before they are paired, after one that could not be decoded."""
_ODD_LATENCY_MS = 10_000.0
"""A latency above this comes from clocks that differ, not from processing."""


_READERS = {"thermal": images.thermal_array, "rgb": images.visible_bgr}
_DECODERS = {"thermal": compressed.thermal_array, "rgb": compressed.visible_bgr}


def check(camera: Camera, msg: Image | CompressedImage) -> None:
    """Raise `ImageError` for an image that cannot be used, before it takes another as its partner.

    It is not decoded for that, unless one of this camera could not be decoded lately.
    """
    if isinstance(msg, CompressedImage):
        compressed.check(msg)
    else:
        images.view(msg)
    if camera.doubtful:
        (_DECODERS if isinstance(msg, CompressedImage) else _READERS)[camera.name](msg)
        camera.doubtful -= 1


@dataclass(frozen=True)
class Job:
    """Images to fuse; one of them is None while its camera is silent."""

    thermal: Image | CompressedImage | None
    rgb: Image | CompressedImage | None
    queued: float = field(default_factory=time.perf_counter)


class Frames:
    """Takes one `Job` after the other, or two at a time, through the pipeline.

    An exception costs that frame.

    Boxes, and the image with boxes, come for each `detect_every`-th frame and with its header.
    Where that is auto, `search` finds them in another thread.

    Args:
        pace: gets the times of each frame.
        search_failed: called with an exception of the search beside fusion.
        cameras: the thermal and the RGB camera.
        graph: for the node's clock and the publishers of a topic that is named relative to it.

    Attributes:
        await_calibration: the next frame waits for camera_info.
        arrival_stamps: images are paired by their arrival, whatever their headers say.
        decided: a frame in hand is handed to the publishers; what follows are its boxes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        monitor: Monitor,
        outputs: Outputs,
        pace: Pace,
        search_failed: Callable[[Exception], None],
        cameras: Sequence[Camera],
        graph: Graph,
    ) -> None:
        self.await_calibration = False
        self.arrival_stamps = False
        self.decided = False
        self._pipeline = pipeline
        self._monitor = monitor
        self._outputs = outputs
        self._pace = pace
        self._searched = 0
        self.search = Search(self._search_and_publish, search_failed)
        self._cameras = cameras
        self._rgb = cameras[1]
        self._graph = graph
        self._shares = Shares()
        readers = _READERS | {"rgb": partial(images.visible_bgr, depth=self._rgb.depth)}
        self._converters = [
            {name: images.Converter(read) for name, read in readers.items()} for _ in range(2)
        ]
        self._decoders = _DECODERS | {"rgb": partial(compressed.visible_bgr, depth=self._rgb.depth)}

    def process(self, job: Job, lane: int = 0) -> Generator[None, None, None]:
        """Fuse the job's images and publish what has subscribers; a generator for `Lanes`.

        lane: 0 or 1; two frames that are in progress at a time have different ones.
        Raises an exception for images that cannot be fused. One after the fused image was handed
        over costs the frame its boxes only.
        """
        start, shared, handed_over = time.perf_counter(), self._shares.begin(), False
        try:
            self._monitor.stage("queue", 1e3 * (start - job.queued))
            prepared = self._prepare(job, lane)
            yield
            fused = prepared.fuse()
            network = self._pipeline.running
            infer_s = network.infer_s(lane)
            yield
            header = (job.thermal if job.rgb is None else job.rgb).header
            handed_over = self.decided = self._hand_over(job, fused, header)
            if not handed_over:
                return
            searching = time.perf_counter()
            self._search(fused, header, prepared.thermography)
            end = time.perf_counter()
            busy_s, shared = self._shares.end(shared), None
            if job.thermal is not None and job.rgb is not None:
                share = busy_s / (end - start)
                self._pace.images(max(self._pipeline.rgb_size))
                self._pace.frame(
                    network.fuser.processing_size,
                    busy_s,
                    share * infer_s,
                    share * (end - searching),
                )
        except Exception as error:
            if not handed_over:
                raise
            self._monitor.fault("detector_failed", f"a frame has no boxes: {describe(error)}")
        finally:
            if shared is not None:
                self._shares.end(shared)
            if handed_over:
                self.decided = False

    def _prepare(self, job: Job, lane: int) -> Prepared:
        """Do what comes before the network."""
        if self.await_calibration:
            self.await_calibration = False
            self._await_calibration()
        with self._monitor.timed("convert"):
            thermal, visible = (
                self._read(camera, msg, lane)
                for camera, msg in zip(self._cameras, (job.thermal, job.rgb))
            )
        return self._pipeline.prepare(thermal, visible, lane)

    def _hand_over(self, job: Job, fused: np.ndarray, header: Any) -> bool:
        """Hand the fused image to the publishers; return whether anybody is to have it."""
        monitor, outputs = self._monitor, self._outputs
        if not outputs.active:
            monitor.count("displaced")  # the node was deactivated meanwhile
            return False
        handed_over = time.perf_counter()
        with monitor.timed("fill"):
            outputs.image(
                FUSED, fused, header, lambda error: self._published(job, header, handed_over, error)
            )
        outputs.info(self._rgb.info, header)
        return True

    def _read(
        self, camera: Camera, msg: Image | CompressedImage | None, lane: int
    ) -> np.ndarray | None:
        if msg is None:
            return None
        try:
            if isinstance(msg, CompressedImage):
                return self._decoders[camera.name](msg)
            return self._converters[lane][camera.name](msg)
        except images.ImageError:
            camera.doubtful = _DOUBTFUL
            raise

    def _search(self, fused: np.ndarray, header: Any, temperatures: Thermography | None) -> None:
        """Find objects in this frame or have it done, if its boxes have subscribers and are due."""
        pipeline = self._pipeline
        if not (self._outputs.wanted(DETECTIONS) or self._outputs.wanted_image(ANNOTATED)):
            return
        if not pipeline.detects:
            self._publish_boxes(fused, [], header)
        elif pipeline.detect_every == AUTO:
            if not self.search.pending:
                self.search.offer(fused, (header, temperatures and temperatures.kept()))
        else:
            self._searched += 1
            if self._searched >= pipeline.detect_every:
                self._searched = 0
                self._search_and_publish(fused, (header, temperatures), latest=True)

    def _search_and_publish(
        self,
        fused: np.ndarray,
        source: tuple[Any, Thermography | None],
        latest: bool = False,
    ) -> None:
        """Find objects; source: the image's header and its temperatures."""
        header, temperatures = source
        found = self._detect(fused, latest, header)
        if temperatures is not None:
            found = temperatures.measure(found)
        self._monitor.count("detections", len(found))
        if self._outputs.active:
            self._publish_boxes(fused, found, header)

    def _publish_boxes(self, fused: np.ndarray, found: list[Detection], header: Any) -> None:
        with self._monitor.timed("publish_boxes"):
            self._outputs.detections(found, header)
            if self._outputs.wanted_image(ANNOTATED):
                self._outputs.image(ANNOTATED, draw(fused, found), header)

    def _detect(self, fused: np.ndarray, latest: bool, header: Any) -> list[Detection]:
        self._monitor.count("searched")
        try:
            seconds = 1e-9 * images.stamp_ns(header)
            return self._pipeline.detect(fused, latest, seconds)
        except Exception as error:  # a model of a user may raise anything
            self._monitor.fault("detector_failed", f"a frame has no boxes: {describe(error)}")
            return []

    def _await_calibration(self) -> None:
        """Wait shortly for the camera_info of both cameras, if it has publishers."""
        end = time.monotonic() + _CALIBRATION_S
        for camera in self._cameras:
            if self._graph.publishers(camera.info_topic):
                camera.has_info.wait(max(0.0, end - time.monotonic()))

    def _published(
        self, job: Job, header: Any, handed_over: float, error: Exception | None
    ) -> None:
        """Count a frame whose image was published or could not be; in the publishing thread."""
        if isinstance(error, NotActiveError):
            self._monitor.count("displaced")
        elif error is not None:
            self._monitor.count("rejected")
        else:
            self._monitor.stage("publish", 1e3 * (time.perf_counter() - handed_over))
            self._monitor.fused(self._latency_ms(job, header))

    def _latency_ms(self, job: Job, header: Any) -> float | None:
        """Time from the stamp, or from the arrival if that is what counts; None if unknown."""
        if self.arrival_stamps:
            return 1e3 * (time.perf_counter() - job.queued)
        now_ns = self._graph.now_ns()
        if not now_ns:
            return None  # no /clock, which the diagnostics tell
        latency_ms = 1e-6 * (now_ns - images.stamp_ns(header))
        if abs(latency_ms) <= _ODD_LATENCY_MS:
            return latency_ms
        self._monitor.fault("odd_stamps", far_apart(latency_ms, self._graph.sim_time))
        return None
