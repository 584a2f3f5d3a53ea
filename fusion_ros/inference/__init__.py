"""Running an ONNX model by the best engine that this machine has."""

from __future__ import annotations

from fusion_ros.inference.engine import (
    BACKENDS,
    PRECISIONS,
    Engine,
    EngineError,
    ModelSpec,
    TensorSpec,
    load_engine,
)

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Engine",
    "EngineError",
    "ModelSpec",
    "TensorSpec",
    "load_engine",
]
