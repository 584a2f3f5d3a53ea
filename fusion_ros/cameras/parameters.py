# SPDX-License-Identifier: AGPL-3.0-only
"""Parameters of the camera node: what they mean, and their checked values."""

from __future__ import annotations

from dataclasses import dataclass

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.node import Node

from fusion_ros.cameras.street import scene

__all__ = ["ENCODINGS", "ParameterError", "Settings", "declare"]

Value = bool | int | float | str

ENCODINGS = {
    "thermal": ("mono16", "16UC1", "mono8", "8UC1"),
    "rgb": ("bgr8", "rgb8", "bgra8", "rgba8", "mono8", "8UC3"),
}
_USUAL_RATES = {"thermal": 9.0, "rgb": 30.0}


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


def declare(node: Node) -> Settings:
    """Declare the parameters; raises `ParameterError`, which names parameter and choices."""
    values = {name: _declare(node, name, *row) for name, row in _PARAMETERS.items()}
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
    usual_rate = 10.0 if values["source"] == "files" else _USUAL_RATES[values["camera"]]
    return Settings(
        rate=values.pop("rate") or usual_rate,
        start_ns=_start_ns(start),
        offset_ns=round(values.pop("clock_offset") * 1e9),
        reliable=values.pop("qos") == "reliable",
        frame_id=values.pop("frame_id") or f"{values['camera']}_optical_frame",
        **values,
    )


def _declare(
    node: Node,
    name: str,
    default: Value,
    description: str,
    limits: tuple[float, float] | None,
    choices: tuple[str, ...] | None,
) -> Value:
    """Declare one parameter and return its value, of the default's type and within its limits."""
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
        raise ParameterError(f"parameter {name}: {value} is not from {limits[0]} to {limits[1]}")
    return value


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
