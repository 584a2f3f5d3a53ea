# SPDX-License-Identifier: AGPL-3.0-only
"""Running an ONNX model by the best engine that this machine has."""

from __future__ import annotations

from fusion_ros.inference.engine import (
    BACKENDS,
    PRECISIONS,
    DeviceArray,
    Engine,
    EngineError,
    ModelSpec,
    Rewrite,
    TensorSpec,
    load_engine,
)

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "DeviceArray",
    "Engine",
    "EngineError",
    "ModelSpec",
    "Rewrite",
    "TensorSpec",
    "load_engine",
]
