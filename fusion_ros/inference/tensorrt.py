"""The TensorRT engine, for TensorRT and TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fusion_ros.inference import cuda
from fusion_ros.inference.engine import EngineError


class TensorRTEngine:
    backend = "tensorrt"

    def __init__(
        self,
        onnx: Path,
        shape: tuple[int, int] | None,
        *,
        cache_dir: Path | None,
        log: Callable[[str], None],
    ) -> None:
        if cuda.driver() is None:
            raise EngineError("no NVIDIA GPU with a driver: `nvidia-smi` should list one")
        raise EngineError("the TensorRT backend is not there yet; use onnxruntime on the NVIDIA GPU")
