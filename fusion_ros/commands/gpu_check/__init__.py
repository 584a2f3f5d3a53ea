# SPDX-License-Identifier: AGPL-3.0-only
"""The command `gpu_check`: what runs on this machine's GPU, measured and written down.

It leaves gpu_check.md and gpu_check.json, which say what ran, on which GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fusion_ros.commands import CommandError

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="fusion_ros gpu_check",
        description="Run tests, engines and the node on an NVIDIA GPU, and report what ran.",
    )
    add = made.add_argument
    add("--width", type=int, default=640, help="of the images (default: %(default)s)")
    add("--height", type=int, default=480, help="of the images (default: %(default)s)")
    add("--methods", default="", help="fusion methods or *.onnx, with commas (default: all)")
    add("--repeats", type=int, default=100, help="runs of each measurement (default: %(default)s)")
    add("--rates", default="30,60", help="of the node's run, Hz, or none (default: %(default)s)")
    add("--seconds", type=float, default=15.0, help="of each rate (default: %(default)s)")
    add("--minutes", type=float, default=10.0, help="after which nothing new is begun")
    add("--tests", default="test", help="folder of the tests, or none (default: %(default)s)")
    add("--output", type=Path, default=Path("gpu_check_output"), help="folder of the report")
    return made


def run(options: argparse.Namespace) -> int:
    """Make the check; 0 if all that was begun ran, 1 if something failed or there is no GPU."""
    from fusion_ros.commands.gpu_check.report import markdown, write
    from fusion_ros.commands.gpu_check.steps import Plan, check
    from fusion_ros.inference import cuda
    from fusion_ros.inference.models import list_methods, model_path
    from fusion_ros.size import Size

    if not cuda.device_name():
        raise CommandError(
            "no NVIDIA GPU that CUDA can use: `fusion_ros doctor` says what is missing", status=1
        )
    try:
        methods = tuple(filter(None, options.methods.split(","))) or tuple(list_methods())
        for method in methods:
            model_path(method)
        none = options.rates in ("", "none")
        rates = () if none else tuple(float(rate) for rate in options.rates.split(","))
        size = Size(options.width, options.height)
    except ValueError as error:
        raise CommandError(str(error)) from None
    plan = Plan(
        size=size,
        methods=methods,
        repeats=options.repeats,
        rates=rates,
        seconds=options.seconds,
        minutes=options.minutes,
        tests=None if options.tests in ("", "none") else Path(options.tests),
        output=options.output,
    )
    plan.output.mkdir(parents=True, exist_ok=True)
    report = check(plan, lambda text: print(text, flush=True))
    write(report, plan.output)
    print(markdown(report))
    print(f"the report is in {plan.output}/gpu_check.md and gpu_check.json")
    return int(any(step.status == "failed" for step in report.steps))
