# SPDX-License-Identifier: AGPL-3.0-only
"""Parameters of the fusion node: the settings of a frame's way and those of the node itself."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_ros.frame.settings import ParameterError, Settings, Spec, parameter
from fusion_ros.inference.models import list_methods
from fusion_ros.size import Size

__all__ = ["QOS", "Parameters", "markdown_table"]

QOS = ("reliable", "best_effort")

_USUAL_SIZE = Size(640, 480)
_HEADER = "| parameter | default | values | meaning |"
_NOTE = "\\* read when the node configures; the others change while it runs"


@dataclass(frozen=True)
class Parameters(Settings):
    """Values of all parameters, of the right types and within their limits.

    Raises `ParameterError` for a value of another type or outside its limits.
    """

    autostart: bool = parameter(True, "configure and activate at the start")
    build_only: bool = parameter(
        False,
        "make the networks ready for image_size, 640x480 where it is empty, which builds and keeps "
        "TensorRT's engines, and exit",
    )
    image_size: str = parameter(
        "",
        "size of the RGB images, as in 640x480, for which the networks are made ready at the "
        "start; empty: when the first one comes",
    )
    camera_timeout: float = parameter(
        1.0,
        "a camera counts as silent after so long without an image, s",
        (0.05, 3600),
        dynamic=True,
    )
    qos: str = parameter(
        "reliable", "reliability asked of the cameras; best_effort matches any", choices=QOS
    )
    log_period: float = parameter(
        5.0, "log frames per second and latency this often, s; 0 for never", (0, 3600)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size:
            try:
                Size.parse(self.image_size)
            except ValueError as error:
                raise ParameterError("image_size", f"{error}, or nothing") from None

    @staticmethod
    def declare(node: Any) -> None:
        """Declare all on an rclpy node, which the node's overrides then apply to."""
        from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

        for field in dataclasses.fields(Parameters):
            spec: Spec = field.metadata["spec"]
            # Types are checked here, not by rclpy: `tolerance:=1` is a number too, and the error
            # can say what is expected.
            descriptor = ParameterDescriptor(description=spec.description, dynamic_typing=True)
            descriptor.additional_constraints = _allowed(field.name, spec)
            if not spec.dynamic:
                descriptor.additional_constraints += "; read when the node configures"
            if spec.kind is float and spec.limits:
                low, high = map(float, spec.limits)
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=low, to_value=high)
                ]
            elif spec.kind is int and spec.limits:
                low, high = spec.limits
                descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
            node.declare_parameter(field.name, _as_ros(field.default), descriptor)

    @classmethod
    def from_node(cls, node: Any) -> Parameters:
        """The node's values; raises `ParameterError` for one that cannot be used."""
        return cls(**{name: node.get_parameter(name).value for name in cls.specs()})

    @property
    def expected_size(self) -> Size | None:
        """The size that the networks are made ready for at the start; None if unknown."""
        if self.image_size:
            return Size.parse(self.image_size)
        return _USUAL_SIZE if self.build_only else None


def markdown_table() -> str:
    """Return all parameters as a Markdown table, with the note that belongs to it."""
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
