# SPDX-License-Identifier: AGPL-3.0-only
"""Finding the fusion models that ship with the package."""

from __future__ import annotations

from pathlib import Path

from fusion_models import WEIGHTS_DIR
from fusion_models.checksums import check_weights
from fusion_ros.inference.onnx_file import why_missing


def list_methods() -> list[str]:
    """Return the shipped fusion methods in alphabetical order: stems of `weights/<method>.onnx`."""
    return sorted(p.stem for p in WEIGHTS_DIR.glob("*.onnx") if not p.stem.endswith(".fp16"))


def model_path(method_or_path: str | Path, precision: str = "fp32") -> Path:
    """Return the ONNX file of a shipped method, or the path `*.onnx` of any other model.

    Raises ValueError naming the choices if there is no such method, file or precision.
    """
    text = str(method_or_path)
    if text.endswith(".onnx"):
        path = Path(text).expanduser()
        if not path.is_file():
            reason = why_missing(path) or f"give a method ({_choices()}) or a path"
            raise ValueError(f"no ONNX file {path}: {reason}")
    elif text in list_methods():
        path = WEIGHTS_DIR / f"{text}.onnx"
    else:
        raise ValueError(f"unknown method '{text}': choose one of {_choices()}, or a path *.onnx")
    if precision == "fp16" and not path.name.endswith(".fp16.onnx"):
        path = path.with_suffix(".fp16.onnx")
        if not path.is_file():
            raise ValueError(f"'{text}' has no fp16 model ({path} is missing): choose fp32")
    return path


def check_shipped(method: str) -> None:
    """Raise ValueError if the ONNX files of a shipped method are not those that were shipped.

    A model that is given by its path is not checked.
    """
    if not method.endswith(".onnx"):
        check_weights(WEIGHTS_DIR / f"{method}.json", ".onnx")


def _choices() -> str:
    return ", ".join(list_methods()) or "none shipped"
