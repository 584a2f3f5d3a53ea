# SPDX-License-Identifier: AGPL-3.0-only
"""What exporters write into a detector's ONNX file beside the network."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusion_ros.inference import EngineError
from fusion_ros.size import Size

__all__ = ["DetectorMetadata"]

_LONGEST_TEXT = 1_000_000
_MOST_CLASSES = 100_000
_LONGEST_SIDE = 8192


@dataclass(frozen=True)
class DetectorMetadata:
    """Metadata of ultralytics' exporters, all of it optional.

    task: such as 'detect', 'obb', 'pose', 'segment'; empty if unknown. names: of the classes by
    id. end2end: whether boxes come without duplicates, as corners, score and class. head: the
    network's last module, such as 'RTDETRDecoder'. keypoint_values: numbers a box for key points.
    size: for which the network was trained or exported.
    """

    task: str = ""
    names: Mapping[int, str] | None = None
    end2end: bool | None = None
    head: str = ""
    keypoint_values: int | None = None
    size: Size | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, str], with_names: bool = True) -> DetectorMetadata:
        """Read the `metadata_props` of an ONNX file; what cannot be read counts as missing.

        with_names: False to leave out the names, because others are given.
        Raises EngineError for names that cannot be read, since no other names would be right.
        """
        end2end = _literal(metadata.get("end2end"))
        arguments = _literal(metadata.get("args"))
        if isinstance(arguments, dict) and arguments.get("nms") is True:
            end2end = True
        points = _numbers(metadata.get("kpt_shape"), 2)
        keypoints = points[0] * points[1] if points else None
        sides = _numbers(metadata.get("imgsz"), 2)
        size = Size(sides[1], sides[0]) if sides and max(sides) <= _LONGEST_SIDE else None
        names = metadata.get("names") if with_names else None
        return cls(
            task=metadata.get("task", "").strip().lower() or ("pose" if keypoints else ""),
            names=None if names is None else _names(names),
            end2end=end2end if isinstance(end2end, bool) else None,
            head=metadata.get("head", ""),
            keypoint_values=keypoints,
            size=size,
        )


def _literal(text: str | None) -> Any:
    """Return the value that a Python literal or a JSON word stands for; None if there is none."""
    if text is None or len(text) > _LONGEST_TEXT:
        return None
    words = {"true": True, "false": False}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _numbers(text: str | None, count: int) -> list[int] | None:
    """Return `count` positive whole numbers; one number stands for all of them."""
    value = _literal(text)
    if type(value) is int:
        value = [value] * count
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    return list(value) if all(type(n) is int and 0 < n < 10**6 for n in value) else None


def _names(text: str) -> dict[int, str]:
    value = _literal(text)
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    try:
        names = {int(key): str(name) for key, name in value.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        names = {}
    if not names or not 0 <= min(names) <= max(names) < _MOST_CLASSES:
        raise EngineError(
            f"the class names in the model file cannot be read: expected a dictionary of id and "
            f"name, got {text[:60]!r}; give them by the parameter detector_names"
        )
    return {i: names.get(i, f"class {i}") for i in range(max(names) + 1)}
