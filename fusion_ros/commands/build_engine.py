# SPDX-License-Identifier: AGPL-3.0-only
"""The command `build_engine`: builds TensorRT engines ahead of the node's first start."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from fusion_models.contract import FUSED
from fusion_ros.commands import CommandError
from fusion_ros.frame.detector import Detector
from fusion_ros.frame.fuser import Fuser, padded_size, processed_size
from fusion_ros.inference import PRECISIONS, Engine, EngineError, load_engine
from fusion_ros.inference.engine import WORKSPACE_MIB
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.inference.rewrite import rewritten_file
from fusion_ros.size import Size

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="fusion_ros build_engine",
        description="Build TensorRT engines, so that the node's first start does not wait for it.",
    )
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
    return parser


def run(options: argparse.Namespace) -> int:
    """Build the engines; return 0, or 1 if a model could not be built.

    Raises CommandError for a model that does not exist.
    """
    size = Size(options.width, options.height)
    models = options.models or list_methods()
    try:
        files = [model_path(model, options.precision) for model in models]
    except ValueError as error:
        raise CommandError(str(error)) from None
    failed = False
    for model, onnx in zip(models, files):
        try:
            report = _prove(onnx, size, options) if options.target else _keep(onnx, size, options)
            print(f"{onnx.name}: {report}")
        except (EngineError, ValueError) as error:
            print(f"{model}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _keep(onnx: Path, size: Size, options: argparse.Namespace) -> str:
    """Have the engines in the cache that the node uses."""
    engine = load_engine(
        onnx,
        "tensorrt",
        cache_dir=options.cache_dir,
        workspace_mib=options.workspace,
        log=print,
    )
    part = _part(engine, options.processing_size)
    part.warmup(size)
    description = engine.description
    part.close()
    return f"ready, {description}"


def _prove(onnx: Path, size: Size, options: argparse.Namespace) -> str:
    """Build for another GPU, in the form that converts images on the GPU if there is one."""
    from fusion_ros.inference.tensorrt import build, import_library

    part = _part(load_engine(onnx, "onnxruntime_cpu"), options.processing_size)
    form = part.form(size)
    with ExitStack() as stack:
        if form is None:
            size = padded_size(processed_size(size, options.processing_size))
        else:
            try:
                onnx = stack.enter_context(rewritten_file(onnx, form.rewrite))
            except EngineError as error:
                print(f"{onnx.name}: the CPU converts images: {error}")
                size = padded_size(size)
        built = build(
            import_library(),
            onnx,
            size,
            workspace_mib=options.workspace,
            target=options.target,
            log=print,
        )
    return (
        f"builds for {options.target}, {built.layers} layers, {len(built.data) / 1e6:.1f} MB, "
        f"{built.seconds:.1f} s"
    )


def _part(engine: Engine, processing_size: int) -> Fuser | Detector:
    """Return what the node runs this network in, so that the same engines are built."""
    if [spec.name for spec in engine.outputs] == [FUSED]:
        return Fuser(engine, processing_size)
    return Detector(engine)
