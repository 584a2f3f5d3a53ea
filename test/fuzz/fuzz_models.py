# SPDX-License-Identifier: AGPL-3.0-only
"""Fuzzing of the loaders of models: any file gives a fuser, a detector or an EngineError.

    pip install '.[cpu,fuzz]'
    python test/fuzz/fuzz_models.py -max_total_time=600 /tmp/found test/fuzz/corpus/models

New files that reach new code are kept in the first folder; a crash is written to the working
folder. `-help=1` lists the options, which are those of libFuzzer.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np

try:
    import atheris
except ImportError:  # the corpus is tested without it
    atheris = None

with atheris.instrument_imports(include=["fusion_ros"]) if atheris else nullcontext():
    from fusion_ros.frame.detector import Detector
    from fusion_ros.frame.fuser import Fuser
    from fusion_ros.inference import EngineError, load_engine

_SIZE = (48, 64)


def load(data: bytes, folder: Path) -> list[str]:
    """Load `data` as each kind of model and run it once; return the names of what it is.

    Any exception but EngineError is a finding.
    """
    path = folder / "model.onnx"
    path.write_bytes(data)
    found = []
    for kind, run in (("fusion", _fuse), ("detection", _detect)):
        try:
            engine = load_engine(path, "onnxruntime_cpu", threads=1)
            run(engine)
        except EngineError:
            continue
        found.append(kind)
    return found


def _fuse(engine) -> None:
    fused = Fuser(engine).fuse(np.zeros(_SIZE, np.uint8), np.full((*_SIZE, 3), 200, np.uint8))
    assert fused.shape == (*_SIZE, 3)


def _detect(engine) -> None:
    for one in Detector(engine).detect(np.full((*_SIZE, 3), 120, np.uint8)):
        assert 0 <= one.score <= 1
        assert one.width > 0 and one.height > 0
        assert one.x >= 0 and one.x + one.width <= _SIZE[1] + 1e-3
        assert one.y >= 0 and one.y + one.height <= _SIZE[0] + 1e-3


def main() -> None:
    # In memory, where there is such a folder: a file is written for each input.
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        atheris.Setup(sys.argv, lambda data: load(data, Path(folder)) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
