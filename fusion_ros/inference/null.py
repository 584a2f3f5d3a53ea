# SPDX-License-Identifier: AGPL-3.0-only
"""An engine that computes nothing, for measuring everything around the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fusion_ros.inference.engine import Engine, Feeds, is_fp16
from fusion_ros.inference.onnxruntime import read_spec
from fusion_ros.size import Size


class NullEngine(Engine):
    """Returns the input `vi` of a fusion model as its output, and zeros for other models."""

    backend = "null"
    device = "none"

    def __init__(self, onnx: Path) -> None:
        super().__init__(read_spec(onnx))
        self.precision = "fp16" if is_fp16(onnx) else "fp32"
        self._zeros = {s.name: np.zeros(s.filled(Size(1, 1)), s.dtype) for s in self.outputs}

    @property
    def description(self) -> str:
        return "null: no network runs, the visible image passes through"

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        feeds = self.check(feeds)
        if "vi" in feeds and len(self.outputs) == 1:
            return {self.outputs[0].name: feeds["vi"]}
        return self._zeros
