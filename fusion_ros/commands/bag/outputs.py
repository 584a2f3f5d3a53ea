# SPDX-License-Identifier: AGPL-3.0-only
"""`--write-bag`: fused images, boxes, diagnostics and the report's events as a new mcap bag.

Stamps and times of receipt are those of the original, so both open side by side.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusion_ros.commands.bag.offline import PairOfMessages
from fusion_ros.commands.bag.request import Request
from fusion_ros.frame.detector import Detection
from fusion_ros.recording.bag import Bag
from fusion_ros.recording.messages import CAMERA_INFO
from fusion_ros.recording.writer import BagWriter

__all__ = ["BagOutputs"]

FUSED, INFO, BOXES = "/fused/image", "/fused/camera_info", "/detections"
ANNOTATIONS, DIAGNOSTICS, EVENTS = "/fused/annotations", "/diagnostics", "/evaluation/events"
_DETECTIONS = "vision_msgs/msg/Detection2DArray"
_ANNOTATIONS = "foxglove_msgs/msg/ImageAnnotations"
_DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
_LOG = "rcl_interfaces/msg/Log"
_LINE_LOOP, _WARN, _INFO = 2, 30, 20
_QUALITY = 90
_SECOND_NS = 1_000_000_000


class BagOutputs:
    """The bag that an evaluation writes; a context manager that takes frame after frame."""

    def __init__(self, bag: Bag, request: Request, method: str) -> None:
        self._writer = BagWriter(request.write_bag)
        self._compress = request.compress
        self._detect = request.detect
        self._method = method
        self._frames = 0
        self._reported_ns = self._latest_ns = 0

    def __enter__(self) -> BagOutputs:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def frame(
        self, pair: PairOfMessages, fused: np.ndarray, boxes: Sequence[Detection], info: Any
    ) -> None:
        """Add one fused image, (H, W, 3) uint8 BGR, with its boxes and the RGB camera's info."""
        writer, log_ns = self._writer, pair.log_ns
        header = writer.header(pair.stamp_ns, pair.rgb.header.frame_id)
        if self._compress:
            writer.compressed(f"{FUSED}/compressed", log_ns, header, fused, "bgr8", _QUALITY)
        else:
            writer.image(FUSED, log_ns, header, fused, "bgr8")
        if info is not None and hasattr(info, "__msgtype__"):
            info.header = header
            writer.write(INFO, CAMERA_INFO, log_ns, info)
        if self._detect:
            writer.write(BOXES, _DETECTIONS, log_ns, self._detections(header, boxes))
            writer.write(ANNOTATIONS, _ANNOTATIONS, log_ns, self._annotations(header, boxes))
        self._frames += 1
        self._latest_ns = max(log_ns, self._latest_ns)
        if log_ns - self._reported_ns >= _SECOND_NS:
            self._reported_ns = log_ns
            distance_ms = 1e-6 * (pair.thermal_ns - pair.rgb_ns)
            values = {"method": self._method, "fused": self._frames, "distance_ms": distance_ms}
            self._diagnose(log_ns, values)

    def finish(self, report: dict[str, Any]) -> None:
        """Add the verdict and the events of the report, at the end of the recording."""
        verdict = report["verdict"]
        texts = [(_INFO, verdict[key]) for key in ("method", "settings", "mend")]
        texts += [(_WARN, text) for text in report["events"]]
        make, stamp = self._writer.type(_LOG), self._writer.header(self._latest_ns, "").stamp
        for level, text in texts:
            log = make(stamp, level, "evaluate_bag", text, "", "", 0)
            self._writer.write(EVENTS, _LOG, self._latest_ns, log)

    def _diagnose(self, log_ns: int, values: dict[str, Any]) -> None:
        kind = self._writer.type
        pairs = [kind("diagnostic_msgs/msg/KeyValue")(k, str(v)) for k, v in values.items()]
        status = kind("diagnostic_msgs/msg/DiagnosticStatus")(
            0, "evaluate_bag: fusion", f"{values['fused']} fused", "", pairs
        )
        array = kind(_DIAGNOSTICS)(self._writer.header(log_ns, ""), [status])
        self._writer.write(DIAGNOSTICS, _DIAGNOSTICS, log_ns, array)

    def _detections(self, header: Any, boxes: Sequence[Detection]) -> Any:
        kind = self._writer.type
        point, orientation = kind("geometry_msgs/msg/Point"), kind("geometry_msgs/msg/Quaternion")
        pose = kind("geometry_msgs/msg/PoseWithCovariance")(
            kind("geometry_msgs/msg/Pose")(point(0.0, 0.0, 0.0), orientation(0.0, 0.0, 0.0, 1.0)),
            np.zeros(36),
        )
        found = []
        for one in boxes:
            centre = kind("vision_msgs/msg/Point2D")(
                float(one.x + one.width / 2), float(one.y + one.height / 2)
            )
            box = kind("vision_msgs/msg/BoundingBox2D")(
                kind("vision_msgs/msg/Pose2D")(centre, 0.0), float(one.width), float(one.height)
            )
            guess = kind("vision_msgs/msg/ObjectHypothesis")(one.class_name, float(one.score))
            result = kind("vision_msgs/msg/ObjectHypothesisWithPose")(guess, pose)
            found.append(kind("vision_msgs/msg/Detection2D")(header, [result], box, ""))
        return kind(_DETECTIONS)(header, found)

    def _annotations(self, header: Any, boxes: Sequence[Detection]) -> Any:
        kind = self._writer.type
        point, colour = kind("foxglove_msgs/msg/Point2"), kind("foxglove_msgs/msg/Color")
        line, clear = colour(1.0, 0.6, 0.2, 1.0), colour(0.0, 0.0, 0.0, 0.0)
        loops, texts = [], []
        for one in boxes:
            x0, y0 = float(one.x), float(one.y)
            x1, y1 = x0 + float(one.width), y0 + float(one.height)
            corners = [point(*at) for at in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
            loops.append(
                kind("foxglove_msgs/msg/PointsAnnotation")(
                    header.stamp, _LINE_LOOP, corners, line, [], clear, 2.0
                )
            )
            texts.append(
                kind("foxglove_msgs/msg/TextAnnotation")(
                    header.stamp, point(x0, y0), one.class_name, 12.0, line, clear
                )
            )
        return kind(_ANNOTATIONS)([], loops, texts)
