# SPDX-License-Identifier: AGPL-3.0-only
"""The command `demo`: two cameras and the fusion node as processes, recorded.

It leaves side-by-side stills, a video, `summary.json` and the processes' logs in a folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fusion_ros.commands import CommandError

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="fusion_ros demo",
        description="Fuse the images of two cameras, simulated or from files, and record them.",
    )
    add = made.add_argument
    add("--method", default="", help="fusion method, or the path of a model (*.onnx)")
    add("--data", type=Path, help="folder with ir/ and vi/ to fuse instead of the simulated scene")
    add("--detector", default="", help="ONNX file of a YOLO; default: the one in ~/.cache")
    add("--output", "--out", type=Path, default=Path("demo_output"), help="folder of the results")
    add("--pairs", type=int, default=0, help="pairs to send; default: 100, or a whole tour")
    add("--rate", type=float, default=0.0, help="pairs per second; default: chosen to keep up")
    add("--width", type=int, default=0, help="width of the images (default: 640, or as stored)")
    add("--live", action="store_true", help="draw the simulated images while they are sent")
    add("--height", type=int, default=0, help="height of the images; given with --width")
    add("--no-page", dest="page", action="store_false", help="without the page of the run")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; 0 if something was fused."""
    from fusion_ros.cameras.files import FilesError
    from fusion_ros.commands.demo.plan import Request
    from fusion_ros.commands.demo.session import demonstrate
    from fusion_ros.harness.processes import ProcessError
    from fusion_ros.inference import EngineError

    values = vars(arguments) | {"method": arguments.method or Request.method}
    try:
        request = Request(**values)
    except ValueError as error:
        raise CommandError(str(error)) from None
    try:
        summary = demonstrate(request)
    except (ProcessError, FilesError, EngineError) as error:
        raise CommandError(str(error), status=1) from None
    print(summary)
    print(f"\nstills, video, summary.json and logs are in {request.output}/")
    return 0
