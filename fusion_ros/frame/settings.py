# SPDX-License-Identifier: AGPL-3.0-only
"""Settings of the frame pipeline: their types, limits, defaults and descriptions.

The parameters of the node (`node.parameters.Parameters`) add what only a ROS node needs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_models.contract import SMALLEST
from fusion_ros.frame.detector_layouts import LAYOUTS
from fusion_ros.frame.radiometry import PRESETS, Radiometry
from fusion_ros.frame.registration import homography_from_intrinsics, parse_homography
from fusion_ros.frame.thermal import MODES, POLARITIES
from fusion_ros.inference import BACKENDS, PRECISIONS
from fusion_ros.inference.models import model_path

__all__ = ["AUTO", "DROPOUT_POLICIES", "ParameterError", "Settings", "Spec", "parameter"]

AUTO = "auto"
"""The value of a parameter that leaves a number to the node."""
DROPOUT_POLICIES = ("wait", "pass", "blank")

_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    "auto": "auto or a whole number",
    "floats": "a list of numbers",
    "texts": "a list of texts",
}


class ParameterError(ValueError):
    """An invalid parameter value; the text names the parameter and the allowed values."""

    def __init__(self, name: str, problem: str):
        super().__init__(f"parameter {name}: {problem}")
        self.name = name


@dataclass(frozen=True)
class Spec:
    """Type, description and limits of one parameter.

    kind: bool, int, float, str, 'auto' (a whole number or the text auto), 'floats' or 'texts'.
    limits: least and greatest value, both allowed.
    dynamic: may change while the node is configured; others are read when the node configures.
    """

    kind: type | str
    description: str
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    dynamic: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.limits:
            return f"{_TYPES[self.kind]} from {self.limits[0]:g} to {self.limits[1]:g}"
        return _TYPES[self.kind]

    def coerce(self, name: str, value: Any) -> Any:
        """`value` converted to this kind; raises `ParameterError` if it is not allowed."""
        value = self._as_kind(value)
        if value is None:
            raise ParameterError(name, f"expected {self.allowed}")
        if self.choices and value not in self.choices:
            raise ParameterError(name, f"'{value}' is not {self.allowed}")
        if self.limits and value != AUTO and not self.limits[0] <= value <= self.limits[1]:
            raise ParameterError(name, f"{value} is not {self.allowed}")
        return value

    def _as_kind(self, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.kind is float:
            return float(value) if number and math.isfinite(value) else None
        if self.kind in ("floats", "texts"):
            # An empty list has no type in ROS: it arrives as no value, or as one of bytes.
            if value is None:
                return ()
            if isinstance(value, (str, bool, int, float)):
                return None
            one = Spec(float if self.kind == "floats" else str, "")
            values = tuple(map(one._as_kind, value))
            return None if None in values else values
        if self.kind == "auto":
            # A command line and a launch file give numbers as text where text is allowed too.
            if isinstance(value, str) and value.strip().isdecimal():
                return int(value)
            return value if value == AUTO or type(value) is int else None
        return value if type(value) is self.kind else None


def parameter(
    default: Any,
    description: str,
    limits: tuple[float, float] | None = None,
    choices: Sequence[str] = (),
    dynamic: bool = False,
    kind: type | str | None = None,
) -> Any:
    """A dataclass field with the `Spec` that checks and describes it."""
    spec = Spec(kind or type(default), description, limits, tuple(choices), dynamic)
    return dataclasses.field(default=default, metadata={"spec": spec})


@dataclass(frozen=True)
class Settings:
    """Values of all settings, with the right types and within their limits.

    Raises `ParameterError` for a value of another type or outside its limits.
    """

    method: str = parameter(
        "baffm",
        "fusion method, or path of your own model (*.onnx)",
        dynamic=True,
    )
    backend: str = parameter(
        "auto", "engine for the networks; auto takes the fastest that works", choices=BACKENDS
    )
    precision: str = parameter("fp32", "arithmetic of the fusion network", choices=PRECISIONS)
    threads: int = parameter(0, "CPU threads per network; 0: all cores", (0, 256))
    processing_size: int | str = parameter(
        AUTO,
        "larger images are fused at this length of the longer side, px, and their texture is "
        "added again: faster; auto: the largest at which the node keeps the cameras' rate; "
        f"{SMALLEST} or more; 0: full size",
        (0, 16384),
        dynamic=True,
        kind="auto",
    )
    min_processing_size: int = parameter(
        160, "least size that processing_size auto may choose, px", (SMALLEST, 16384), dynamic=True
    )
    target_rate: float = parameter(
        0.0,
        "fused images per second that processing_size auto aims at, where the cameras send more; "
        "0: the cameras' rate",
        (0, 1000),
        dynamic=True,
    )
    detect: bool = parameter(True, "detect objects in the fused image", dynamic=True)
    detector: str = parameter(
        "",
        "path of the detector's ONNX file; empty: ~/.cache/fusion_ros/detector.onnx if it is "
        "there, else the one that ships",
    )
    detector_size: int = parameter(
        0,
        "height and width of the detector's input, px, a multiple of 32, where its file leaves "
        "them free; 0: the file's own, or 640",
        (0, 4096),
    )
    detect_every: int | str = parameter(
        AUTO,
        "search every such fused image, which waits for its boxes; auto: search beside fusion, in "
        "the time that it leaves",
        (1, 1000),
        dynamic=True,
        kind="auto",
    )
    detector_names: tuple[str, ...] = parameter(
        (),
        "names of the detector's classes in the order of its scores; empty: as in its file",
        kind="texts",
    )
    detector_layout: str = parameter(
        "auto",
        "where boxes and scores are in the detector's outputs; auto: by its metadata and a trial "
        "run",
        choices=LAYOUTS,
    )
    confidence: float = parameter(0.25, "minimum score of a box", (0, 1), dynamic=True)
    iou: float = parameter(
        0.45,
        "overlap (IoU) above which the weaker of two boxes of a class is dropped",
        (0, 1),
        dynamic=True,
    )
    classes: tuple[str, ...] = parameter(
        (), "names of the classes to report; empty: all", dynamic=True, kind="texts"
    )
    track: bool = parameter(
        False,
        "follow objects from image to image: `id` of a box is its object's number",
        dynamic=True,
    )
    tolerance: float = parameter(
        0.03, "maximum time between the two images of a pair, s", (0, 10), dynamic=True
    )
    thermal_time_offset: float = parameter(
        0.0, "added to thermal stamps before pairing, s", (-3600, 3600), dynamic=True
    )
    reuse_slower: bool = parameter(
        False,
        "pair every image of the faster camera with the nearest of the slower one, which is then "
        "used several times",
        dynamic=True,
    )
    queue_size: int = parameter(
        10, "maximum number of images of a camera that wait for a partner", (1, 1000)
    )
    dropout_policy: str = parameter(
        "wait",
        "while one camera is silent: wait for it, pass the other camera's images through, or "
        "fuse them with a black image (blank)",
        choices=DROPOUT_POLICIES,
        dynamic=True,
    )
    rgb_bits: int = parameter(
        0,
        "bits that 16-bit RGB images use, such as 12, which become the 8 bits of the fused image; "
        "0: by their values, 10, 12, 14 or 16",
        (0, 16),
        dynamic=True,
    )
    gain_mode: str = parameter(
        "percentile",
        "how thermal counts become 8-bit grey levels",
        choices=MODES,
        dynamic=True,
    )
    gain_low: float = parameter(
        1.0, "percentile of the counts shown as black", (0, 100), dynamic=True
    )
    gain_high: float = parameter(
        99.0, "percentile of the counts shown as white", (0, 100), dynamic=True
    )
    gain_smoothing: float = parameter(
        0.9, "weight of the previous limits of the gain, per frame", (0, 0.999), dynamic=True
    )
    gain_max_step: float = parameter(
        3.0,
        "maximum change of a grey level by gain control per frame, of 255",
        (0.01, 255),
        dynamic=True,
    )
    gain_min_span: float = parameter(
        50.0, "minimum distance between black and white, counts", (1, 65535), dynamic=True
    )
    gain_stretch_8bit: bool = parameter(
        False, "apply gain control to 8-bit thermal images too", dynamic=True
    )
    gain_plateau: float = parameter(
        4.0, "most that mode plateau raises contrast, as a factor", (1, 100), dynamic=True
    )
    gain_range: tuple[float, ...] = parameter(
        (0.0, 50.0),
        "temperatures shown as black and as white in mode fixed, degrees Celsius",
        dynamic=True,
        kind="floats",
    )
    thermal_polarity: str = parameter(
        "white_hot",
        "how the thermal camera shows heat; the fused image shows it bright always",
        choices=POLARITIES,
        dynamic=True,
    )
    radiometry: str = parameter(
        "auto",
        "how counts become temperatures, by camera or format; custom: by temperature_scale and "
        "temperature_offset; auto: hundredths of a kelvin (16 bit), of a degree Celsius (signed), "
        "or kelvin and degrees Celsius by their size (float)",
        choices=("auto", "custom", *PRESETS),
        dynamic=True,
    )
    temperature_scale: float = parameter(
        0.01, "degrees a count, where radiometry is custom", (1e-6, 1000), dynamic=True
    )
    temperature_offset: float = parameter(
        -273.15,
        "degrees Celsius at 0 counts, where radiometry is custom",
        (-1e6, 1e6),
        dynamic=True,
    )
    detections_temperature: bool = parameter(
        True,
        "tell the temperature of each box, of 16-bit and float thermal images",
        dynamic=True,
    )
    homography: tuple[float, ...] = parameter(
        (),
        "3x3 matrix from thermal to RGB pixels, 9 numbers row by row; empty: from both camera_info",
        kind="floats",
    )
    thermal_rotation: tuple[float, ...] = parameter(
        (),
        "rotation from the thermal to the RGB optical frame, used with both camera_info: roll, "
        "pitch, yaw in rad, or a 3x3 matrix, 9 numbers row by row; empty: none",
        kind="floats",
    )

    def __post_init__(self) -> None:
        for name, spec in self.specs().items():
            object.__setattr__(self, name, spec.coerce(name, getattr(self, name)))
        try:
            model_path(self.method, self.precision)
        except ValueError as error:
            raise ParameterError("method", str(error)) from None
        except (OSError, RuntimeError) as error:  # too long, or below an unknown user's home
            raise ParameterError("method", f"no path '{self.method[:80]}': {error}") from None
        if self.processing_size != AUTO and 0 < self.processing_size < SMALLEST:
            raise ParameterError(
                "processing_size",
                f"{self.processing_size} px is too small to fuse: expected {SMALLEST} or more, "
                "or 0 for the images' own size",
            )
        if self.detector_size % 32:
            raise ParameterError(
                "detector_size",
                f"{self.detector_size} px is not a multiple of 32, which YOLO needs",
            )
        if self.gain_low >= self.gain_high:
            raise ParameterError(
                "gain_low", f"{self.gain_low:g} is not below gain_high, {self.gain_high:g}"
            )
        if len(self.gain_range) != 2 or self.gain_range[0] >= self.gain_range[1]:
            raise ParameterError(
                "gain_range",
                f"{list(self.gain_range)} is not a range: expected two rising temperatures",
            )
        if self.homography:
            try:
                parse_homography(self.homography)
            except ValueError as error:
                raise ParameterError("homography", str(error)) from None
        if len(self.thermal_rotation) not in (0, 3, 9):
            raise ParameterError(
                "thermal_rotation",
                f"{len(self.thermal_rotation)} numbers, expected 3 (roll, pitch, yaw in rad) or "
                "9 (a matrix, row by row)",
            )
        try:
            homography_from_intrinsics(np.eye(3), np.eye(3), self.rotation)
        except ValueError as error:
            raise ParameterError("thermal_rotation", str(error)) from None

    @classmethod
    def specs(cls) -> dict[str, Spec]:
        """The `Spec` of each parameter by name."""
        return {f.name: f.metadata["spec"] for f in dataclasses.fields(cls)}

    @classmethod
    def static_names(cls) -> set[str]:
        """Names of the parameters that are read when the node configures and fixed after that."""
        return {name for name, spec in cls.specs().items() if not spec.dynamic}

    def replace(self, **changes: Any) -> Settings:
        """A copy with `changes`; raises `ParameterError` as the constructor does."""
        return dataclasses.replace(self, **changes)

    @property
    def relation(self) -> Radiometry | None:
        """How counts become temperatures; None for the usual relation of their type."""
        if self.radiometry == "custom":
            return Radiometry(self.temperature_scale, self.temperature_offset)
        return PRESETS.get(self.radiometry)

    @property
    def rotation(self) -> np.ndarray | None:
        """`thermal_rotation` as a (3, 3) matrix, Rz(yaw) Ry(pitch) Rx(roll); None if not given."""
        values = self.thermal_rotation
        if not values:
            return None
        if len(values) == 9:
            return np.array(values).reshape(3, 3)
        (sr, cr), (sp, cp), (sy, cy) = ((math.sin(a), math.cos(a)) for a in values)
        roll = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
        pitch = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        yaw = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        return yaw @ pitch @ roll
