# SPDX-License-Identifier: AGPL-3.0-only
"""ONNX files rewritten for a while, so that an engine can be made of another form of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fusion_ros.inference.engine import EngineError, Rewrite, fp32_sibling

__all__ = ["rewritten_file"]


@contextmanager
def rewritten_file(onnx: Path, rewrite: Rewrite) -> Iterator[Path]:
    """Yield a temporary file with `onnx` after `rewrite`.

    The float32 form of a float16 model is rewritten into the same folder, for comparison. Raises
    EngineError without the package onnx, for models that `rewrite` refuses, and if the files
    cannot be written.
    """
    with TemporaryDirectory(prefix="fusion_ros_") as folder:
        try:
            from onnx import load, save

            for path in {onnx, fp32_sibling(onnx)}:
                if path.is_file():
                    save(rewrite(load(path)), Path(folder) / path.name)
        except ImportError as error:
            raise EngineError(
                "converting images on the GPU needs the Python package onnx: `pip install onnx`"
            ) from error
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            # EngineError of `rewrite`, and what onnx and protobuf raise for damaged models.
            raise EngineError(f"{onnx.name} cannot be rewritten: {error}") from error
        yield Path(folder) / onnx.name
