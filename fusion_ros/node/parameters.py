# SPDX-License-Identifier: AGPL-3.0-only
"""Parameters of the fusion node: the settings of a frame's way, and those of the node itself."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_ros.frame.settings import ParameterError, Settings, Spec, parameter
from fusion_ros.inference.models import list_methods
from fusion_ros.size import Size

__all__ = ["QOS", "Parameters", "explain_unknown", "markdown_table", "typed", "unread_files"]

QOS = ("reliable", "best_effort")
TRANSPORTS = ("auto", "raw", "compressed")
STAMP_SOURCES = ("header", "arrival")

_USUAL_SIZE = Size(640, 480)
_HEADER = "| parameter | default | values | meaning |"
_NOTE = "\\* read when the node configures; the others change while it runs"


@dataclass(frozen=True)
class Parameters(Settings):
    """Values of all parameters, of the right types and within their limits.

    Raises `ParameterError` for a value of another type or outside its limits.
    """

    autostart: bool = parameter(True, "configure and activate the node when it starts")
    build_only: bool = parameter(
        False,
        "load the networks for image_size (640x480 if that is empty), which builds and caches "
        "TensorRT engines, then exit",
    )
    image_size: str = parameter(
        "",
        "size of the RGB images, such as 640x480, for which the networks are prepared when the "
        "node configures; empty: when the first image comes",
    )
    camera_timeout: float = parameter(
        1.0,
        "a camera without an image for longer than this counts as silent, s",
        (0.05, 3600),
        dynamic=True,
    )
    thermal_hold: float = parameter(
        1.0,
        "while the thermal camera pauses, as for its shutter, RGB images are fused with its latest "
        "image for up to this long, s; 0: they wait for the next one",
        (0, 60),
        dynamic=True,
    )
    thermal_rate: float = parameter(
        0.0,
        "images a second that the thermal camera should send, below half of which is a warning; "
        "0: what it was seen to send",
        (0, 1000),
        dynamic=True,
    )
    rgb_rate: float = parameter(0.0, "the same of the RGB camera", (0, 1000), dynamic=True)
    input_transport: str = parameter(
        "auto",
        "images that are subscribed to: raw (sensor_msgs/Image), compressed "
        "(sensor_msgs/CompressedImage, on the topic itself or on <topic>/compressed), or auto: "
        "compressed where no raw ones are published",
        choices=TRANSPORTS,
    )
    stamp_source: str = parameter(
        "header",
        "time by which images are paired: that of the header, or that of their arrival, for "
        "cameras whose clocks do not agree",
        choices=STAMP_SOURCES,
        dynamic=True,
    )
    jpeg_quality: int = parameter(
        95, "quality of the images on <topic>/compressed", (1, 100), dynamic=True
    )
    stuck_timeout: float = parameter(
        30.0,
        "a frame that takes longer than this, s, is reported as an error; building an engine for "
        "a new size can take minutes",
        (0.1, 3600),
        dynamic=True,
    )
    exit_when_stuck: bool = parameter(
        False,
        "end the process with status 3 after stuck_timeout, so that the launch file's respawn or "
        "a lifecycle manager starts it anew",
        dynamic=True,
    )
    bond: bool = parameter(
        True,
        "keep up a bond with nav2's lifecycle manager while active, where the package bond is "
        "installed",
    )
    qos: str = parameter(
        "reliable",
        "reliability requested from the cameras; best_effort matches every publisher",
        choices=QOS,
    )
    log_period: float = parameter(
        5.0, "interval between log lines with rate and latency, s; 0: none", (0, 3600)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size:
            try:
                Size.parse(self.image_size)
            except ValueError as error:
                raise ParameterError("image_size", f"{error}, or an empty text") from None

    @staticmethod
    def declare(node: Any) -> None:
        """Declare all on an rclpy node; values given to the node at its start apply to them."""
        from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

        for field in dataclasses.fields(Parameters):
            name, spec = field.name, field.metadata["spec"]
            # Types are checked here, not by rclpy: `tolerance:=1` is a number too, and the error
            # can say what is expected.
            descriptor = ParameterDescriptor(description=spec.description, dynamic_typing=True)
            descriptor.additional_constraints = _allowed(name, spec)
            if not spec.dynamic:
                descriptor.additional_constraints += "; read when the node configures"
            if spec.kind is float and spec.limits:
                low, high = map(float, spec.limits)
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=low, to_value=high)
                ]
            elif spec.kind in (int, "auto") and spec.limits:
                low, high = spec.limits
                descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
            node.declare_parameter(name, _as_ros(field.default), descriptor)
            # rclpy takes an empty list for bytes and 1 for an integer: store the right type. A
            # value that has no such type is reported when the node configures.
            with contextlib.suppress(ParameterError):
                node.set_parameters([typed(node.get_parameter(name))])

    @classmethod
    def from_node(cls, node: Any) -> Parameters:
        """Read the node's values; raises `ParameterError` for one that cannot be used."""
        return cls(**{name: node.get_parameter(name).value for name in cls.specs()})

    @classmethod
    def check_changes(cls, now: dict[str, Any], changes: dict[str, Any]) -> None:
        """Check `changes` of the values `now`, of which others may be wrong.

        Raises `ParameterError` if a changed value cannot be used.
        """
        values = now | changes
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        while True:
            try:
                cls(**values)
                return
            except ParameterError as error:
                name = error.name
                if name in changes or values.get(name) == defaults[name]:
                    raise
                # Wrong before this change, and not to be blamed on it.
                values[name] = defaults[name]

    @property
    def expected_size(self) -> Size | None:
        """Size of the RGB images that the networks are prepared for; None if unknown."""
        if self.image_size:
            return Size.parse(self.image_size)
        return _USUAL_SIZE if self.build_only else None


def typed(parameter: Any) -> Any:
    """An rclpy Parameter in the type that is declared for its name; others as they are.

    Raises `ParameterError` for a value that has no such type or is not allowed.
    """
    from rclpy.parameter import Parameter

    spec = Parameters.specs().get(parameter.name)
    if spec is None:
        return parameter
    kinds = {
        bool: Parameter.Type.BOOL,
        int: Parameter.Type.INTEGER,
        float: Parameter.Type.DOUBLE,
        str: Parameter.Type.STRING,
        "floats": Parameter.Type.DOUBLE_ARRAY,
        "texts": Parameter.Type.STRING_ARRAY,
    }
    value = spec.coerce(parameter.name, parameter.value)
    kind = type(value) if spec.kind == "auto" else spec.kind
    return Parameter(parameter.name, kinds[kind], _as_ros(value))


def explain_unknown(name: str) -> str:
    """Say that the node has no parameter `name`, and which one may be meant."""
    if name.startswith("qos_overrides."):
        return (
            f"parameter '{name[:300]}' has no effect: expected qos_overrides.<topic>.<publisher or "
            "subscription>.<history, depth, reliability or durability>, with the full name of a "
            "topic of this node"
        )
    close = difflib.get_close_matches(name, Parameters.specs(), 1)
    hint = f": do you mean '{close[0]}'?" if close else "; `ros2 param list` names all it has"
    return f"parameter '{name[:100]}' has no effect, this node has none of that name{hint}"


def unread_files(arguments: Sequence[str], node: str) -> list[str]:
    """Warnings about parameter files that hold nothing for a node.

    arguments: the process's command line, with `--params-file PATH` in it; node: its full name,
    such as `/front/fuse_node`. rcl skips sections of other nodes in silence.
    """
    import yaml  # comes with rclpy

    warnings = []
    for flag, path in zip(arguments, arguments[1:]):
        if flag != "--params-file":
            continue
        try:
            sections = _sections(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # rcl has reported it
        if sections and not any(_matches(section, node) for section in sections):
            warnings.append(
                f"{path} sets no parameter of this node: it is for {', '.join(sections)}, "
                f"expected '{node}' or '/**'"
            )
    return warnings


def _sections(content: Any, prefix: str = "") -> list[str]:
    """Full names of the nodes that a parameter file is for, wildcards included."""
    names: list[str] = []
    for key, value in content.items() if isinstance(content, dict) else ():
        name = f"{prefix}/{str(key).strip('/')}"
        if isinstance(value, dict):
            names += [name] if "ros__parameters" in value else _sections(value, name)
    return names


def _matches(section: str, node: str) -> bool:
    # As in rcl: `*` stands for one part of a name, `**` for any number of parts.
    pattern = re.escape(section).replace(r"/\*\*", "(/[^/]+)*").replace(r"\*", "[^/]+")
    return re.fullmatch(pattern, node) is not None


def markdown_table() -> str:
    """All parameters as a Markdown table, with the note that belongs to it.

    It needs numpy, OpenCV and the weights folder, which names the methods; it needs no ROS. The
    text depends on nothing else, so a test can look for it in a page. It starts with `_HEADER` and
    ends with `_NOTE`, by which `main` finds it in a page.
    """
    rows = [_HEADER, "|---|---|---|---|"]
    for field in dataclasses.fields(Parameters):
        spec: Spec = field.metadata["spec"]
        name = f"`{field.name}`" + ("" if spec.dynamic else " *")
        default = json.dumps(_as_ros(field.default))
        rows.append(f"| {name} | `{default}` | {_allowed(field.name, spec)} | {spec.description} |")
    return "\n".join([*rows, "", _NOTE])


def _allowed(name: str, spec: Spec) -> str:
    # The methods are known only where their weights are: they are no part of the class.
    return f"one of {', '.join(list_methods())}, or *.onnx" if name == "method" else spec.allowed


def _as_ros(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def main(arguments: list[str]) -> None:
    """Print the table; with a page's path, put it in the place of that page's table."""
    if not arguments:
        print(markdown_table())
        return
    page = Path(arguments[0])
    text = page.read_text()
    start = text.index(_HEADER)
    end = text.index(_NOTE, start) + len(_NOTE)
    page.write_text(text[:start] + markdown_table() + text[end:])


if __name__ == "__main__":
    main(sys.argv[1:])
