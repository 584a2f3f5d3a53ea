# SPDX-License-Identifier: AGPL-3.0-only
"""What a file is that is given as an ONNX model, found before a library reads it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fusion_ros.inference.engine import EngineError

__all__ = ["check_onnx_file", "external_data", "why_missing"]

_HEAD = 512
"""Number of bytes by which other kinds of file are recognised."""
_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])")
_URI = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+):(?P<rest>/.*)")
_GRAPH = 7
"""Number of the field `graph` of an ONNX ModelProto."""

_FIELDS = 40
"""Greatest field number that is accepted; ONNX has numbers up to 26."""

_EXPORT = "export it to ONNX, with ultralytics by `yolo export model=<file>.pt format=onnx`"
_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer: fetch the file itself by `git lfs pull`"),
    (rb"\s*(<!doctype html|<html|<head)", "a web page: the download of the model has failed"),
    (rb"\s*<\?xml", "XML, such as an OpenVINO model: give the ONNX file that it was made from"),
    (rb"PK\x03\x04", f"a PyTorch checkpoint (.pt) or another zip archive: {_EXPORT}"),
    (rb"\x80[\x02-\x05]", f"a PyTorch checkpoint (.pt) or another pickle: {_EXPORT}"),
    (
        rb"p?ftrt|ptrt|[\x00-\xff]{2}\x00\x00\s*\{",
        "a TensorRT engine: give the ONNX file that it was made from, the node builds its engine "
        "for this GPU itself",
    ),
    (rb"[\x00-\xff]{4}TFL3", "a TensorFlow Lite model: export the network to ONNX"),
    (rb"\x89HDF", "a Keras model: export the network to ONNX"),
    (rb"[\x00-\xff]{8}\{\"", f"a safetensors file, which holds weights only: {_EXPORT}"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf", "a compressed file: unpack it"),
    (rb"\s*[\[{]", "a JSON file"),
)
"""How a file of another kind begins, and what to do with it."""


def check_onnx_file(path: Path) -> None:
    """Raise EngineError, saying what the file is, unless it looks like a whole ONNX model.

    It is no proof: the library that loads the model checks the rest.
    """
    try:
        if not path.is_file():
            reason = why_missing(path) or "give the path of an exported model"
            raise EngineError(f"no ONNX file {path}: {reason}")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if not head:
                raise EngineError(f"{path} is not an ONNX file, it is empty: export it again")
            for beginning, kind in _KINDS:
                if re.match(beginning, head, re.IGNORECASE):
                    raise EngineError(f"{path} is not an ONNX file, it is {kind}")
            problem = _parse(file, size)
    except (OSError, ValueError) as error:  # the latter by a path with a zero byte
        raise EngineError(f"the ONNX file {path} cannot be read: {error}") from None
    if problem:
        raise EngineError(f"{path} is not a whole ONNX file: {problem}; export or copy it again")


def why_missing(path: Path) -> str:
    """Return what a path is that leads to no file, and what to do; empty if nothing is known."""
    if uri := _URI.match(str(path)):
        if uri["scheme"].lower() == "file":
            return f"it is a URI, expected a path: {uri['rest']}"
        return "it is a URI, expected a path: nothing is downloaded, fetch the file first"
    if path.is_dir():
        return "it is a folder: give the path of a file in it"
    if path.exists():
        return "it is no ordinary file"
    if path.is_symlink():
        return f"it is a link to {os.readlink(path)}, where no file is"
    return ""


def external_data(data: bytes) -> list[str]:
    """Return the paths, relative to an ONNX file with the content `data`, of its weights' files.

    Found by their protobuf encoding (StringStringEntryProto: key 'location', value a path),
    because the package onnx may be missing on a robot. Strings that are not names of files are
    left out.
    """
    names = {data[m.end() : m.end() + m[1][0]] for m in re.finditer(_LOCATION, data)}
    found = []
    for name in sorted(names):
        try:
            found.append(name.decode())
        except UnicodeDecodeError:
            continue
    return found


def _parse(file, size: int) -> str:
    """Walk over the fields of a ModelProto; return what is wrong, or nothing."""
    file.seek(0)
    has_graph = False
    while (at := file.tell()) < size:
        key = _varint(file)
        if key is None:
            return f"it ends within a field at byte {at} of {size}"
        number, wire = key >> 3, key & 7
        if not 0 < number <= _FIELDS or wire not in (0, 1, 2, 5):
            return f"byte {at} of {size} begins no field of an ONNX model"
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire in (0, 2):
            value = _varint(file)
            if value is None:
                return f"it ends within a field at byte {at} of {size}"
            length = value if wire == 2 else 0
        if file.tell() + length > size:
            return f"it has {size} bytes, and its field at byte {at} alone says {length}"
        has_graph |= number == _GRAPH and wire == 2
        file.seek(length, 1)
    return "" if has_graph else "it has no graph"


def _varint(file) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    return None
