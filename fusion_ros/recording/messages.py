# SPDX-License-Identifier: AGPL-3.0-only
"""Messages of bags as plain objects with the fields of ROS 2, made without ROS.

Types come from `rosbags`, not from the bag: those of sensor_msgs have been the same since the first
ROS 2, so a bag without message definitions is read too.
"""

from __future__ import annotations

import struct
from functools import cache
from types import SimpleNamespace
from typing import Any

from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from fusion_ros.frame.images import ImageError

__all__ = ["CAMERA_INFO", "COMPRESSED", "IMAGE", "decode", "ros2_types", "stamp_ns"]

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

_EXTRA = {
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y\n",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "vision_msgs/msg/BoundingBox2D": (
        "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n"
    ),
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score\n",
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n"
    ),
    "vision_msgs/msg/Detection2D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox2D bbox\nstring id\n"
    ),
    "vision_msgs/msg/Detection2DArray": (
        "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n"
    ),
    "foxglove_msgs/msg/Color": "float64 r\nfloat64 g\nfloat64 b\nfloat64 a\n",
    "foxglove_msgs/msg/Point2": "float64 x\nfloat64 y\n",
    "foxglove_msgs/msg/CircleAnnotation": (
        "builtin_interfaces/Time timestamp\nfoxglove_msgs/Point2 position\nfloat64 diameter\n"
        "float64 thickness\nfoxglove_msgs/Color fill_color\nfoxglove_msgs/Color outline_color\n"
    ),
    "foxglove_msgs/msg/PointsAnnotation": (
        "builtin_interfaces/Time timestamp\nuint8 type\nfoxglove_msgs/Point2[] points\n"
        "foxglove_msgs/Color outline_color\nfoxglove_msgs/Color[] outline_colors\n"
        "foxglove_msgs/Color fill_color\nfloat64 thickness\n"
    ),
    "foxglove_msgs/msg/TextAnnotation": (
        "builtin_interfaces/Time timestamp\nfoxglove_msgs/Point2 position\nstring text\n"
        "float64 font_size\nfoxglove_msgs/Color text_color\n"
        "foxglove_msgs/Color background_color\n"
    ),
    "foxglove_msgs/msg/ImageAnnotations": (
        "foxglove_msgs/CircleAnnotation[] circles\nfoxglove_msgs/PointsAnnotation[] points\n"
        "foxglove_msgs/TextAnnotation[] texts\n"
    ),
}
"""Definitions of vision_msgs 4 and of foxglove_msgs, which `rosbags` lacks."""


@cache
def ros2_types() -> Any:
    """The type store of ROS 2 with vision_msgs; made once, since it takes half a second."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    types: dict = {}
    for name, text in _EXTRA.items():
        types.update(get_types_from_msg(text, name))
    store.register(types)
    return store


@cache
def _ros1_types() -> Any:
    return get_typestore(Stores.ROS1_NOETIC)


def decode(data: bytes, kind: str, ros1: bool = False) -> Any:
    """The message in `data`, of the ROS 2 type `kind`; of CameraInfo with the fields of ROS 2.

    Raises ImageError if the data does not hold such a message.
    """
    try:
        if not ros1:
            return ros2_types().deserialize_cdr(data, kind)
        message = _ros1_types().deserialize_ros1(data, kind)
    except Exception as error:  # rosbags' own, struct's, UnicodeDecodeError
        raise ImageError(
            f"a message of {len(data)} bytes is not a {kind}: {type(error).__name__}: {error}"[:300]
        ) from None
    if kind != CAMERA_INFO:
        return message
    names = ("header", "height", "width", "distortion_model", "binning_x", "binning_y", "roi")
    fields = {name: getattr(message, name) for name in names}
    return SimpleNamespace(**fields, d=message.D, k=message.K, r=message.R, p=message.P)


def stamp_ns(data: bytes, ros1: bool = False) -> int:
    """Stamp of a serialized message that begins with a header, ns; 0 where there is none."""
    try:
        if ros1:  # seq, secs, nsecs
            seconds, nanoseconds = struct.unpack_from("<II", data, 4)
        else:  # four bytes before the message, of which the second gives the byte order
            seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    except (struct.error, IndexError):
        return 0
    return seconds * 1_000_000_000 + nanoseconds
