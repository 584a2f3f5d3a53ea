# SPDX-License-Identifier: AGPL-3.0-only
"""Networks rewritten before an engine runs them, as those that convert camera images themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fusion_ros.inference.engine import (
    Engine,
    Log,
    Rewrite,
    Size,
    fp16_sibling,
    fp32_sibling,
)  # fmt: skip


class ImageForm:
    """Beside the engine of a network, the one that takes images of the latest size as they are.

    images: that engine, or None where the CPU converts for `engine`; feeds: arrays for its inputs.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.images: Engine | None = None
        self.feeds: dict[str, np.ndarray] = {}
        self._fits: tuple[Size, str] | None = None

    @property
    def running(self) -> Engine:
        """What runs the network for images of the latest size."""
        return self.images or self.engine

    def fit(self, size: Size, form: Callable[[Size], Rewrite | None]) -> Engine | None:
        """Have `images` for this size, rewritten by `form(size)`, where the engine can; else None.

        size: (height, width) of the camera images.
        """
        key = (size, self.engine.backend)  # `auto` may have gone on to another
        if self._fits != key:
            if self.images is not None:
                self.images.close()
            self.images, self._fits = None, key
            rewrite = form(size)
            if rewrite is not None:
                self.images = self.engine.rewritten(rewrite, size)
            self.feeds = self.images.buffers(*size) if self.images is not None else {}
        return self.images

    def close(self) -> None:
        """Free both; nothing runs afterwards."""
        for engine in (self.images, self.engine):
            if engine is not None:
                engine.close()


@contextmanager
def rewritten_files(onnx: Path, rewrite: Rewrite) -> Iterator[Path]:
    """`onnx`, and its form of the other precision, after `rewrite`, while the context lasts.

    Raises ImportError without the package onnx, EngineError for models that `rewrite` refuses.
    """
    from onnx import load, save

    with TemporaryDirectory(prefix="fusion_ros_") as folder:
        for path in {onnx, fp32_sibling(onnx), fp16_sibling(onnx)}:
            if path.is_file():
                save(rewrite(load(path)), Path(folder) / path.name)
        yield Path(folder) / onnx.name


def start_rewritten(
    onnx: Path, rewrite: Rewrite, start: Callable[[Path], Engine], log: Log
) -> Engine | None:
    """What `start` makes of `onnx` after `rewrite`; None, with a line in the log, if it cannot be.

    The file is gone afterwards: `start` has to read all it will need.
    """
    try:
        with rewritten_files(onnx, rewrite) as path:
            return start(path)
    except ImportError:
        log("images are converted on the CPU, not on the GPU: `pip install onnx` for the latter")
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        # Whatever onnx, CUDA or a full disk say to it: the CPU can convert.
        log(f"images of {onnx.name} are converted on the CPU, not on the GPU: {error}")
    return None
