# SPDX-License-Identifier: AGPL-3.0-only
"""Built engines on disk: keyed by what they depend on, built once, rebuilt if they do not load."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TypeVar

from fusion_ros.inference.engine import EngineError
from fusion_ros.inference.onnx_file import external_data

Loaded = TypeVar("Loaded")


def default_cache_dir() -> Path:
    """Return the folder of engines and detector weights, `~/.cache/fusion_ros`."""
    return Path.home() / ".cache" / "fusion_ros"


class StaleEngine(EngineError):
    """A cached engine must be built again: it is damaged, or of another driver or GPU."""


def model_sha256(onnx: Path) -> str:
    """Hash an ONNX file together with its external data (such as `x.onnx.data`)."""
    data = onnx.read_bytes()
    digest = hashlib.sha256(data)
    for name in external_data(data):
        try:
            digest.update((onnx.parent / name).read_bytes())
        except (OSError, ValueError):
            continue
    return digest.hexdigest()


@dataclass(frozen=True)
class EngineKey:
    """Everything that a built engine depends on.

    model: name for the reader; onnx_sha256: `model_sha256`, identifies it. library: name and
    version. height, width: of the inputs, in pixels.
    """

    model: str
    onnx_sha256: str
    library: str
    device: str
    compute_capability: str
    precision: str
    height: int
    width: int

    @property
    def filename(self) -> str:
        """Name of the engine's file in the cache."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.model}-{self.width}x{self.height}-{self.precision}-{digest[:12]}.engine"


@dataclass(frozen=True)
class CachedEngine:
    """A serialized engine.

    fp16_error: mean absolute difference of its outputs in [0, 1] from float32; None if they were
    not compared.
    """

    data: bytes
    fp16_error: float | None = None


class EngineCache:
    """Engine files in `folder`, safe among processes that start at the same time.

    A file is one line of JSON (key, checksum, fp16_error) and the engine. It is written under
    another name and renamed, so that no reader sees half of it; builders of one key wait for each
    other under a file lock. If the folder cannot be written, engines are built at each start.
    """

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.folder = folder
        self._log = log

    def get(
        self,
        key: EngineKey,
        build: Callable[[], CachedEngine],
        load: Callable[[CachedEngine], Loaded],
    ) -> Loaded:
        """Return `load` of the engine of `key`, which `build` makes if there is none.

        If `load` raises StaleEngine, the engine is built again, once; a second one is raised.
        """
        path = self.folder / key.filename
        try:
            return load(_read(path, key))
        except FileNotFoundError:
            pass
        except StaleEngine as error:
            self._log(f"cached engine {path.name} is not usable, building it again: {error}")
        with self.lock(path):
            # Another process may have built it while this one waited.
            try:
                return load(_read(path, key))
            except (FileNotFoundError, StaleEngine):
                pass
            engine = build()
            self.write(path, _pack(key, engine))
        return load(engine)

    def read(self, path: Path) -> bytes:
        """Read what `write` wrote; nothing if there is no such file or it cannot be read."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._log(f"cannot read {path.name}, going on without it: {error}")
            return b""

    def write(self, path: Path, data: bytes) -> None:
        """Write `data` to `path` as a whole; log it if that is not possible."""
        temporary = None
        try:
            with NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
                temporary = Path(file.name)
                file.write(data)
            temporary.replace(path)
        except OSError as error:
            self._log(f"cannot keep {path.name} for the next start: {error}")
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Hold the lock file beside `path`; log it if another process must be waited for."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.with_name(f"{path.name}.lock").open("w")
        except OSError:
            yield  # no process can write here, so there is nothing to protect
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._log(f"another process is building {path.name}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _pack(key: EngineKey, engine: CachedEngine) -> bytes:
    header = {
        "key": asdict(key),
        "sha256": hashlib.sha256(engine.data).hexdigest(),
        "fp16_error": engine.fp16_error,
    }
    return json.dumps(header).encode() + b"\n" + engine.data


def _read(path: Path, key: EngineKey) -> CachedEngine:
    """Read an engine. Raises FileNotFoundError, StaleEngine if it is damaged or of another key."""
    # Checked first, because TensorRT crashes the process on some damaged files.
    try:
        line, _, data = path.read_bytes().partition(b"\n")
        header = json.loads(line)
        whole = header["sha256"] == hashlib.sha256(data).hexdigest()
        if header["key"] == asdict(key) and whole:
            return CachedEngine(data, header["fp16_error"])
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StaleEngine(f"{path} cannot be read: {error!r}") from error
    raise StaleEngine(f"{path} is damaged")
