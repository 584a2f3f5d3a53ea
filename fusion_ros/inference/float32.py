# SPDX-License-Identifier: AGPL-3.0-only
"""Models whose tensors are float16 or float64, run as if these were float32."""

from __future__ import annotations

import dataclasses

import numpy as np

from fusion_ros.inference.engine import Engine, Feeds, Form, ModelSpec, TensorSpec
from fusion_ros.size import Size

__all__ = ["as_float32"]

_FLOATS = (np.float16, np.float64)


def as_float32(engine: Engine) -> Engine:
    """Return `engine`, or one around it that takes and gives float32 for other floats.

    Images of 8 bit lose nothing by float16: it holds 2048 steps between 0.5 and 1.
    """
    specs = (*engine.inputs, *engine.outputs)
    return _Float32(engine) if any(spec.dtype in _FLOATS for spec in specs) else engine


class _Float32(Engine):
    """Casts on the CPU what goes into `engine` and what comes out of it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(
            ModelSpec(
                tuple(map(_spec, engine.inputs)),
                tuple(map(_spec, engine.outputs)),
                engine.metadata,
            )
        )
        self._engine = engine

    backend = property(lambda self: self._engine.backend)
    device = property(lambda self: self._engine.device)
    precision = property(lambda self: self._engine.precision)
    description = property(lambda self: self._engine.description)
    passed_over = property(lambda self: self._engine.passed_over)
    gpu_unused = property(lambda self: self._engine.gpu_unused)

    def buffers(self, size: Size, form: Form | None = None) -> dict[str, np.ndarray]:
        # A form takes the model's own tensors to be float32: the CPU converts images instead.
        feeds = self._engine.buffers(size)
        return {spec.name: feeds[spec.name].astype(spec.dtype) for spec in self.inputs}

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._cast(self._engine.run(self._own(feeds)))

    def trial(self, feeds: Feeds) -> dict[str, np.ndarray]:
        return self._cast(self._engine.trial(self._own(feeds)))

    def close(self) -> None:
        self._engine.close()

    def _own(self, feeds: Feeds) -> dict[str, np.ndarray]:
        feeds = self.check(feeds)
        return {s.name: feeds[s.name].astype(s.dtype, copy=False) for s in self._engine.inputs}

    def _cast(self, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {s.name: results[s.name].astype(s.dtype, copy=False) for s in self.outputs}


def _spec(spec: TensorSpec) -> TensorSpec:
    if spec.dtype in _FLOATS:
        return dataclasses.replace(spec, dtype=np.dtype(np.float32))
    return spec
