# SPDX-License-Identifier: AGPL-3.0-only
"""What is to be evaluated, and how: checked once, then handed from process to process."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_ros.commands import CommandError
from fusion_ros.frame.settings import ParameterError, Settings

__all__ = ["RESERVED", "Request", "method_name", "plain", "read_settings"]

RESERVED = ("thermal", "rgb", "average", "maximum")
"""Rows of every report, which no method is called."""


@dataclass(frozen=True)
class Request:
    """An evaluation; the attributes are the command's options.

    settings: those of the node. given: names of those that the user has set, which are kept.
    methods: values of `method` to compare; the first one writes the bag and is followed online.
    start, duration: s of the bag, 0 for all of it. every: fuse each n-th pair. samples: pairs that
    the slow measures and the player take. stamps: as the parameter `stamp_source`.
    """

    settings: Settings
    given: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    thermal: str = ""
    rgb: str = ""
    start: float = 0.0
    duration: float = 0.0
    every: int = 1
    samples: int = 24
    detect: bool = False
    stamps: str = "header"
    write_bag: Path | None = None
    compress: bool = False
    rerun: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        times = (self.start, self.duration)
        if not all(0 <= s < math.inf for s in times) or self.every < 1 or self.samples < 1:
            raise CommandError(
                "--start and --duration must not be negative, --every and --samples at least 1"
            )

    @property
    def by_arrival(self) -> bool:
        """Whether images are paired by their time of receipt."""
        return self.stamps == "arrival"

    def to_repeat(self) -> dict[str, Any]:
        """What decides the numbers of a report, as plain values."""
        kept = ("thermal", "rgb", "start", "duration", "every", "samples", "detect", "stamps")
        values = {name: getattr(self, name) for name in kept}
        values["methods"] = list(self.methods)
        return {**values, "given": list(self.given), "settings": plain(self.settings)}


def method_name(method: str) -> str:
    """What a method is called in a report: a model given by its path by its file's stem."""
    if not method.endswith(".onnx"):
        return method
    path = Path(method)
    return path.name if path.stem in RESERVED else path.stem


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as values for JSON and YAML."""
    names = [each.name for each in dataclasses.fields(Settings)]
    values = {name: getattr(settings, name) for name in names}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def read_settings(
    path: Path | None, changes: dict[str, Any], stamps: str | None = None
) -> tuple[Settings, tuple[str, ...], str]:
    """Settings from a ROS parameter file and from options, the names of those given, the stamps.

    The file has `ros__parameters` below `/**` or a node's name. Parameters of the node alone, such
    as qos, are passed over, but for `stamp_source`; stamps: what comes before that. Raises
    CommandError for a file or a value that cannot be used.
    """
    values = {} if path is None else _from_file(path)
    from_file = values.pop("stamp_source", "header")
    values.update({name: value for name, value in changes.items() if value is not None})
    try:
        return Settings(**values), tuple(sorted(values)), stamps or from_file
    except ParameterError as error:
        raise CommandError(str(error)) from None


def _from_file(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"cannot read the parameter file '{path}': {error}") from None
    blocks = [
        block["ros__parameters"]
        for block in (content.values() if isinstance(content, dict) else ())
        if isinstance(block, dict) and isinstance(block.get("ros__parameters"), dict)
    ]
    if not blocks:
        raise CommandError(
            f"'{path}' is no ROS parameter file: expected ros__parameters below '/**' or the name "
            "of a node"
        )
    values = {name: value for block in blocks for name, value in block.items()}
    from fusion_ros.node.parameters import STAMP_SOURCES, Parameters

    unknown = sorted(set(values) - set(Parameters.specs()))
    if unknown:
        raise CommandError(f"'{path}' has unknown parameters: {', '.join(unknown)}")
    stamps = values.get("stamp_source", STAMP_SOURCES[0])
    if stamps not in STAMP_SOURCES:
        expected = " or ".join(STAMP_SOURCES)
        raise CommandError(f"'{path}': stamp_source is '{stamps}', expected {expected}")
    kept = {*Settings.specs(), "stamp_source"}
    return {name: value for name, value in values.items() if name in kept}
