# SPDX-License-Identifier: AGPL-3.0-only
"""Command line of the node benchmark.

benchmark --method all                  # all four, 640x480; results in benchmark_output/
benchmark --method cfi --data <folder> -p threads:=1
benchmark --backend null --duration 60  # everything but the network
benchmark compare old.json new.json
benchmark plot benchmark_output/*.json --output benchmark.png
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from fusion_ros.commands.benchmark.compare import compare, table
from fusion_ros.commands.benchmark.measurement import LEAST_PAIRS
from fusion_ros.commands.benchmark.pairs import Pairs, Size, pairs_from_folder, simulated_pairs
from fusion_ros.commands.benchmark.plot import MatplotlibMissing, plot
from fusion_ros.commands.benchmark.results import Result, ResultError
from fusion_ros.frame.detector import default_detector_path
from fusion_ros.harness.processes import set_environment
from fusion_ros.inference import BACKENDS
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.node.parameters import Parameters

_SIZE = (640, 480)
_RATES = (0.1, 1000.0)


class _Unusable(Exception):
    """Arguments or files that cannot be used; the text says what to give instead."""


def main(args: list[str] | None = None) -> int:
    """Run it; 0 if all went well, 1 if a node failed, 2 for arguments that cannot be used."""
    args = sys.argv[1:] if args is None else args
    command = {"compare": _compare, "plot": _plot}.get(args[0] if args else "")
    try:
        return command(args[1:]) if command else _benchmark(args)
    except KeyboardInterrupt:
        return 130
    except _Unusable as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except MatplotlibMissing as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1


def _compare(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark compare", description="Two results side by side, with ratios."
    )
    parser.add_argument("a", metavar="A.json")
    parser.add_argument("b", metavar="B.json")
    options = parser.parse_args(args)
    text = compare(_read(options.a), _read(options.b))
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # `| head` has read enough; Python would write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _plot(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmark plot", description="Latency percentiles and loss against rate."
    )
    parser.add_argument("results", nargs="+", metavar="RESULT.json")
    parser.add_argument("--output", type=Path, default=Path("benchmark.png"))
    options = parser.parse_args(args)
    try:
        plot([_read(path) for path in options.results], options.output)
    except (OSError, ValueError) as error:  # a folder or a file type that there is not
        raise _Unusable(error) from None
    print(f"wrote {options.output}")
    return 0


def _read(path: str) -> Result:
    try:
        return Result.read(path)
    except ResultError as error:
        raise _Unusable(error) from None


def _benchmark(args: list[str]) -> int:
    options = _options(args)
    try:
        _check(options)
        runs = [_parameters(options, method) for method in _methods(options.method)]
        pairs = _pairs(options)
        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise _Unusable(error) from None
    # What needs ROS comes after what can be refused without it.
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from fusion_ros.commands.benchmark.load import Load
    from fusion_ros.commands.benchmark.run import Plan, label, run

    plan = Plan(options.rates, options.duration, options.search, options.start_timeout)
    set_environment()
    # Interrupts are exceptions here, so that the node is ended too and the results are written.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = []
    try:
        load = Load(rclpy.create_node("benchmark"), pairs, options.detect)
        for parameters in runs:
            print(label(parameters), flush=True)
            say = lambda text: print(text, flush=True)  # noqa: E731
            results.append(run(parameters, plan, pairs, load, options.output, say))
    finally:
        rclpy.try_shutdown()
    for result in results:
        print(f"\n{table(result)}")
        if result.error:
            print(f"benchmark: {result.label} ended early: {result.error}", file=sys.stderr)
    print(f"\nresults and logs are in {options.output}/")
    try:
        plot(results, options.output / "benchmark.png")
    except MatplotlibMissing as error:
        print(error)
    return 1 if any(result.error for result in results) else 0


def _options(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--method",
        default=Parameters.method,
        help="fusion method, several with commas, all, or a model's path (*.onnx)",
    )
    add(
        "--backend",
        default=Parameters.backend,
        choices=BACKENDS,
        help="what runs the network; null measures everything but it",
    )
    add(
        "--detect",
        action="store_true",
        help="with the detector; without it no boxes are looked for",
    )
    add(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME:=VALUE",
        help="any other parameter of the node, as in -p threads:=1",
    )
    add("--data", type=Path, help="folder with ir/ and vi/ instead of the simulated cameras")
    add(
        "--size",
        type=_size,
        help="of the RGB images, of both with --data (default: 640x480, or as stored)",
    )
    add(
        "--pairs", type=int, default=10, help="distinct pairs in memory, sent in turn (default: 10)"
    )
    add(
        "--rates",
        type=_numbers,
        default=(10.0, 30.0, 60.0),
        help="fixed rates, Hz (default: 10,30,60)",
    )
    add("--duration", type=float, default=10.0, help="of each of them, s (default: 10)")
    add(
        "--search",
        type=_bounds,
        default=(1.0, 120.0),
        help="bounds of the highest rate, Hz (default: 1,120), or none",
    )
    add(
        "--start-timeout",
        type=float,
        default=120.0,
        help="what the node may take to its first fused image, s (default: 120)",
    )
    add("--output", type=Path, default=Path("benchmark_output"), help="folder of the results")
    return parser.parse_args(args)


def _check(options: argparse.Namespace) -> None:
    if options.pairs < 1:
        raise ValueError(f"--pairs {options.pairs}: at least 1 is needed")
    if not options.start_timeout > 0:
        raise ValueError(f"--start-timeout {options.start_timeout:g}: more than 0 is needed")
    slowest = min(options.rates)
    sent = slowest * options.duration
    if not sent >= LEAST_PAIRS:
        raise ValueError(
            f"--duration {options.duration:g}: at {slowest:g} Hz that is {sent:.0f} pairs, at "
            f"least {LEAST_PAIRS} are needed for percentiles: give {LEAST_PAIRS / slowest:g} s"
        )


def _methods(text: str) -> list[str]:
    return list_methods() if text == "all" else text.split(",")


def _parameters(options: argparse.Namespace, method: str) -> Parameters:
    """The node's parameters; raises ParameterError or ValueError for what cannot be used."""
    values = {"method": method, "backend": options.backend, "detect": options.detect}
    specs = Parameters.specs()
    for text in options.parameter:
        name, assigned, value = text.partition(":=")
        if not assigned or name not in specs:
            raise ValueError(
                f"-p {text}: expected NAME:=VALUE with one of the node's parameters, "
                f"{', '.join(specs)}"
            )
        if name in values:
            raise ValueError(f"-p {text}: use the option --{name}")
        values[name] = _value(value)
    # One's own model by its full path: the node's process may see another folder.
    if method.endswith(".onnx"):
        values["method"] = str(model_path(method).resolve())
    parameters = Parameters(**values)
    detector = Path(parameters.detector or default_detector_path())
    if parameters.detect and not detector.is_file():
        raise ValueError(f"--detect: no ONNX file {detector}; `make detector` puts one in ~/.cache")
    return parameters


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pairs(options: argparse.Namespace) -> Pairs:
    if options.data:
        return pairs_from_folder(options.data, options.size, options.pairs)
    return simulated_pairs(options.size or _SIZE, options.pairs)


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 640x480")
    return int(width), int(height)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(map(float, text.split(",")))
    except ValueError:
        rates = ()
    if not rates or not all(_RATES[0] <= rate <= _RATES[1] for rate in rates):
        raise argparse.ArgumentTypeError(
            f"'{text}' are no rates from {_RATES[0]:g} to {_RATES[1]:g} Hz such as 10,30,60"
        )
    return rates


def _bounds(text: str) -> tuple[float, float] | None:
    if text == "none":
        return None
    rates = _numbers(text)
    if len(rates) != 2 or rates[0] >= rates[1]:
        raise argparse.ArgumentTypeError(f"'{text}' are no two bounds such as 1,120, nor none")
    return rates[0], rates[1]


if __name__ == "__main__":
    sys.exit(main())
