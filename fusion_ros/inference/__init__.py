# SPDX-License-Identifier: AGPL-3.0-only
"""Running an ONNX model by the best engine that this machine has."""

from __future__ import annotations

from fusion_ros.inference.engine import (
    PRECISIONS,
    DeviceArray,
    Engine,
    EngineError,
    FeedError,
    Form,
    ModelSpec,
    Rewrite,
    TensorSpec,
    UnavailableError,
)
from fusion_ros.inference.float32 import as_float32
from fusion_ros.inference.select import (
    BACKENDS,
    Candidate,
    PassedOver,
    Selection,
    load_engine,
)

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Candidate",
    "DeviceArray",
    "Engine",
    "EngineError",
    "FeedError",
    "Form",
    "ModelSpec",
    "PassedOver",
    "Rewrite",
    "Selection",
    "TensorSpec",
    "UnavailableError",
    "as_float32",
    "load_engine",
]
