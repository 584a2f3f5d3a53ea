# SPDX-License-Identifier: AGPL-3.0-only
"""Filling the messages that the node publishes, other than images (see `frame.images`)."""

from __future__ import annotations

import array
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import CameraInfo, CompressedImage
from std_msgs.msg import Header

from fusion_ros.frame.detector import Detection
from fusion_ros.node.diagnostics import Status

__all__ = ["camera_info", "compressed_image", "detection_array", "diagnostic_array"]


def detection_array(detections: Sequence[Detection], header: Header) -> Any:
    """Return a vision_msgs/Detection2DArray: class names as ids, boxes by centre and size in px.

    `id` of a box is the number of its object where objects are tracked, else empty. Where the
    temperature of a box is known, its second hypothesis is `temperature=36.4` (degrees Celsius)
    with a score of 0: no message type has a field for it, readers take the first hypothesis or
    the best one for the class, and the class names stay what the detector's are.

    Raises ImportError where vision_msgs is not installed.
    """
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
        found = Detection2D(header=header, results=[hypothesis], bbox=box)
        if one.celsius is not None:
            temperature = ObjectHypothesisWithPose()
            temperature.hypothesis.class_id = f"temperature={one.celsius:.1f}"
            found.results.append(temperature)
        found.id = str(one.track_id) if one.track_id else ""
        array.detections.append(found)
    return array


def camera_info(info: CameraInfo, header: Header) -> CameraInfo:
    """`info` with another header; the original stays as it is."""
    result = copy.copy(info)
    result.header = header
    return result


def compressed_image(data: np.ndarray, form: str, header: Header) -> CompressedImage:
    """Return a CompressedImage of (N,) uint8 data; form: its `format`."""
    held = array.array("B")
    held.frombytes(memoryview(data))
    return CompressedImage(header=header, format=form, data=held)


def diagnostic_array(statuses: Sequence[Status], stamp: Any) -> DiagnosticArray:
    """Return the DiagnosticArray that `diagnostics.Report.read` reads back."""
    return DiagnosticArray(
        header=Header(stamp=stamp),
        status=[
            DiagnosticStatus(
                name=status.name,
                hardware_id=status.hardware_id,
                level=bytes([status.level]),
                message=status.message,
                values=[KeyValue(key=key, value=text) for key, text in status.values.items()],
            )
            for status in statuses
        ],
    )
