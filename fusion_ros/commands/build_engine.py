# SPDX-License-Identifier: AGPL-3.0-only
"""Builds TensorRT engines ahead of time, so that the node's first start does not wait for it."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from fusion_ros.frame.detector import Detector
from fusion_ros.frame.fuser import Fuser, padded_size, processed_size
from fusion_ros.inference.engine import PRECISIONS, Engine, EngineError, Size
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.inference.onnxruntime import OnnxRuntimeEngine
from fusion_ros.inference.rewritten import rewritten_files
from fusion_ros.inference.tensorrt import (
    WORKSPACE_MIB,
    Build,
    TensorRTEngine,
    build,
    import_library,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Console script `build_engine`. Returns 0, or 1 if any model could not be built."""
    parser = argparse.ArgumentParser(prog="build_engine", description=__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="method or *.onnx; default: all that ship"
    )
    parser.add_argument("--width", type=int, default=640, help="of the images, default 640")
    parser.add_argument("--height", type=int, default=480, help="of the images, default 480")
    parser.add_argument(
        "--processing-size",
        type=int,
        default=0,
        metavar="PX",
        help="the node's parameter processing_size, default 0",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--cache-dir", type=Path, help="default: ~/.cache/fusion_ros")
    parser.add_argument(
        "--workspace",
        type=int,
        default=WORKSPACE_MIB,
        metavar="MIB",
        help="most GPU memory for one layer (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        default="",
        metavar="X.Y",
        help="only prove that the models build for this compute capability, such as 8.9: needs "
        "TensorRT-RTX but no GPU, and keeps nothing",
    )
    options = parser.parse_args(arguments)
    size = (options.height, options.width)
    failed = False
    for model in options.models or list_methods():
        try:
            onnx = model_path(model, options.precision)
            if options.target:
                part = _part(OnnxRuntimeEngine(onnx, "CPU"), options.processing_size)
                built = _prove(onnx, part, size, options)
                print(
                    f"{onnx.name}: builds for {options.target}, {built.layers} layers, "
                    f"{len(built.data) / 1e6:.1f} MB, {built.seconds:.1f} s"
                )
            else:
                engine = TensorRTEngine(
                    onnx, cache_dir=options.cache_dir, workspace_mib=options.workspace, log=print
                )
                part = _part(engine, options.processing_size)
                part.warmup(size[::-1])
                print(f"{onnx.name}: ready, {part.running.description}")
                part.close()
        except (EngineError, ValueError) as error:
            print(f"{model}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _part(engine: Engine, processing_size: int) -> Fuser | Detector:
    """What the node does with this network: the same engines are built for it here."""
    if [spec.name for spec in engine.outputs] == ["fused"]:
        return Fuser(engine, processing_size)
    return Detector(engine)


def _prove(onnx: Path, part: Fuser | Detector, size: Size, options: argparse.Namespace) -> Build:
    rewrite = part.image_form(size)
    if rewrite is None:
        return _build(onnx, padded_size(*processed_size(*size, options.processing_size)), options)
    with ExitStack() as stack:
        try:
            onnx = stack.enter_context(rewritten_files(onnx, rewrite))
        except (ImportError, EngineError) as error:
            print(f"{onnx.name}: the CPU converts images, since the network cannot: {error}")
        return _build(onnx, padded_size(*size), options)


def _build(onnx: Path, size: Size, options: argparse.Namespace) -> Build:
    library, workspace = import_library(), options.workspace
    return build(library, onnx, size, workspace_mib=workspace, target=options.target, log=print)


if __name__ == "__main__":
    sys.exit(main())
