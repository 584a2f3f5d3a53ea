# SPDX-License-Identifier: AGPL-3.0-only
"""The JSON file of a benchmark: host, versions, configuration, input and all figures."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion_ros.commands.benchmark.machine import Host, Memory, Versions
from fusion_ros.commands.benchmark.measurement import Losses, Measurement
from fusion_ros.frame.monitor import Percentiles

__all__ = ["SCHEMA", "Config", "Input", "Result", "ResultError"]

SCHEMA = 1


class ResultError(ValueError):
    """A file is not a result of the benchmark; the text names it and the reason."""


@dataclass(frozen=True)
class Config:
    """What was requested.

    parameters: the node's, where they differ from the defaults; model_sha256: of the ONNX file;
    rates: fixed ones, Hz; search: bounds of the highest rate, Hz, or None; profile: the Fast DDS
    profile's file name, empty for none.
    """

    method: str
    backend: str
    precision: str
    threads: int
    detect: bool
    parameters: dict[str, Any]
    model_sha256: str
    rates: tuple[float, ...]
    duration_s: float
    search: tuple[float, float] | None
    trial_s: float
    most_loss: float
    profile: str


@dataclass(frozen=True)
class Input:
    """The pairs that were sent; sizes as width x height."""

    source: str
    pairs: int
    thermal: str
    thermal_encoding: str
    visible: str
    visible_encoding: str
    sha256: str


@dataclass
class Result:
    """The figures of one method that have been measured so far.

    engine: what ran the network, by the node's report. starts_s: for each start of the
    node, from there to its first fused image, pairs coming in all the time. search: the trials at
    rates between the bounds; peak: the highest rate with no more than `most_loss` lost, measured
    like the fixed ones; peak_limit: what kept it from being higher, 'node', 'sender' or 'bound'.
    error: what ended the run before its end, empty if nothing did.
    """

    label: str
    created: str
    host: Host
    versions: Versions
    config: Config
    input: Input
    engine: str = ""
    starts_s: list[float] = field(default_factory=list)
    search: list[Measurement] = field(default_factory=list)
    peak: Measurement | None = None
    peak_limit: str = ""
    rates: list[Measurement] = field(default_factory=list)
    error: str = ""
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        values = dataclasses.asdict(self)
        values = {"schema": values.pop("schema"), **values}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(values, indent=2) + "\n")
        temporary.replace(path)

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """Read a file that `write` wrote; raises ResultError if it is not a result."""
        try:
            values = json.loads(Path(path).read_text())
        except OSError as error:
            raise ResultError(f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise ResultError(f"{path} is not JSON: {error}") from None
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != SCHEMA:
            raise ResultError(
                f"{path} is not a result of this benchmark: its schema is {schema}, expected "
                f"{SCHEMA}; `benchmark` writes such files"
            )
        try:
            config = values["config"]
            config["rates"] = tuple(config["rates"])
            config["search"] = config["search"] and tuple(config["search"])
            parts = {
                "host": Host(**values["host"]),
                "versions": Versions(**values["versions"]),
                "config": Config(**config),
                "input": Input(**values["input"]),
                "search": [_measurement(one) for one in values["search"]],
                "peak": values["peak"] and _measurement(values["peak"]),
                "rates": [_measurement(one) for one in values["rates"]],
            }
            return cls(**{**values, **parts})
        except (KeyError, TypeError) as error:
            raise ResultError(f"{path} is damaged: {error}; measure again") from None


def _measurement(values: dict[str, Any]) -> Measurement:
    parts: dict[str, Any] = {"losses": Losses(**values["losses"])}
    for name in ("latency_ms", "receipt_ms", "late_ms"):
        parts[name] = values[name] and Percentiles(**values[name])
    parts["memory"] = Memory(**values["memory"])
    return Measurement(**{**values, **parts})
