# SPDX-License-Identifier: AGPL-3.0-only
"""The command `benchmark`: latency, losses and load of the fusion node over DDS.

fusion_ros benchmark --method all                  # all four at 640x480
fusion_ros benchmark --method cfi --data <folder> -p threads:=1
fusion_ros benchmark --backend null --duration 60  # everything but the network
fusion_ros benchmark --backend null --rates 30 --search none --check loss=0,p95=15
fusion_ros benchmark pace --method baffm           # what auto does while others take the cores
fusion_ros benchmark compare old.json new.json
fusion_ros benchmark plot benchmark_output/*.json --output benchmark.png

Results, logs and a plot are left in benchmark_output/.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_ros.commands import CommandError
from fusion_ros.commands.benchmark.limits import Limits
from fusion_ros.inference import BACKENDS
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.node.parameters import Parameters
from fusion_ros.size import Size

if TYPE_CHECKING:
    from fusion_ros.commands.benchmark.pairs import BenchmarkInput
    from fusion_ros.commands.benchmark.results import Result
    from fusion_ros.commands.benchmark.run import Plan

__all__ = ["measure", "parser", "run"]

_SIZE = Size(640, 480)
_PARAMETER = {
    "action": "append",
    "default": [],
    "metavar": "NAME:=VALUE",
    "help": "any other parameter of the node, as in -p threads:=1",
}
_RATES = (0.1, 1000.0)
_LEAST_PACE_S = 3
"""Of all phases: a sample a second is taken."""


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="fusion_ros benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(made)
    made.set_defaults(action=_benchmark)
    actions = made.add_subparsers(title="other actions", metavar="")
    two = actions.add_parser("compare", help="two results side by side, with ratios")
    two.add_argument("a", metavar="A.json")
    two.add_argument("b", metavar="B.json")
    two.set_defaults(action=_compare)
    paced = actions.add_parser(
        "pace", help="size and rate over time, with load from another process in the middle"
    )
    paced.add_argument("--method", default=Parameters.method, help="fusion method or *.onnx")
    paced.add_argument("--rate", type=float, default=30.0, help="pairs per second, default 30")
    paced.add_argument(
        "--sizes", default="auto,0,320", help="values of processing_size (default: %(default)s)"
    )
    paced.add_argument(
        "--phases", default="20,20,20", help="before, during and after the load, s (%(default)s)"
    )
    paced.add_argument("--load", type=int, default=1, help="busy processes, default 1")
    paced.add_argument("--size", type=_size, default=_SIZE, help="of the RGB images, as 640x480")
    paced.add_argument("--output", type=Path, default=Path("benchmark_output"))
    paced.add_argument("--detect", action="store_true", help="detect objects too")
    paced.add_argument("-p", "--parameter", **_PARAMETER)
    paced.set_defaults(action=_pace, backend=Parameters.backend)
    drawn = actions.add_parser("plot", help="latency percentiles and loss against rate")
    drawn.add_argument("results", nargs="+", metavar="RESULT.json")
    drawn.add_argument("--output", type=Path, default=Path("benchmark.png"))
    drawn.set_defaults(action=_plot)
    tables = actions.add_parser("tables", help="write results into the tables of Markdown pages")
    tables.add_argument("pages", nargs="+", type=Path, metavar="PAGE.md")
    tables.set_defaults(action=_tables)
    return made


def run(arguments: argparse.Namespace) -> int:
    """Run what the options describe; 0 if all went well, 1 if a node or a limit failed."""
    return arguments.action(arguments)


def measure(
    runs: Sequence[Parameters], plan: Plan, pairs: BenchmarkInput, output: Path
) -> list[Result]:
    """Measure the node with each of these parameters; results and logs go to `output`.

    A node that fails ends its own run only: `error` of its result says how.
    """
    from fusion_ros.commands.benchmark.run import label
    from fusion_ros.commands.benchmark.run import run as run_one
    from fusion_ros.harness.rig import Rig, ros_session

    def say(text: str) -> None:
        print(text, flush=True)

    results = []
    with ros_session(), Rig() as rig:
        if any(parameters.detect for parameters in runs):
            rig.observer.listen_for_boxes()
        for parameters in runs:
            say(label(parameters))
            results.append(run_one(parameters, plan, pairs, rig, output, say))
    return results


def _compare(options: argparse.Namespace) -> int:
    from fusion_ros.commands.benchmark.compare import compare

    print(compare(_read(options.a), _read(options.b)), flush=True)
    return 0


def _plot(options: argparse.Namespace) -> int:
    from fusion_ros.commands.benchmark.plot import MatplotlibMissing, plot

    try:
        plot([_read(path) for path in options.results], options.output)
    except (OSError, ValueError) as error:  # a folder or a file type that does not exist
        raise CommandError(str(error)) from None
    except MatplotlibMissing as error:
        raise CommandError(str(error), status=1) from None
    print(f"wrote {options.output}")
    return 0


def _tables(options: argparse.Namespace) -> int:
    from fusion_ros.commands.benchmark.tables import TableError, fill_tables

    for page in options.pages:
        try:
            page.write_text(fill_tables(page.read_text(), page.parent))
        except (OSError, TableError) as error:
            raise CommandError(f"{page}: {error}") from None
        print(f"wrote the tables of {page}")
    return 0


def _pace(options: argparse.Namespace) -> int:
    from fusion_ros.commands.benchmark.pairs import simulated_pairs

    try:
        phases = [float(one) for one in options.phases.split(",")]
        finite = all(map(math.isfinite, (*phases, options.rate)))
        lasts = len(phases) == 3 and min(phases) >= 0 and sum(phases) >= _LEAST_PACE_S
        if not (finite and lasts and options.rate > 0 and options.load >= 0):
            raise ValueError(
                f"--phases {options.phases} --rate {options.rate:g} --load {options.load}: "
                f"expected three durations of {_LEAST_PACE_S} s or more together, such as "
                "20,20,20, a positive rate in Hz and no negative load"
            )
        runs = [
            (size, _parameters(options, options.method, processing_size=size))
            for size in options.sizes.split(",")
        ]
        pairs = simulated_pairs(options.size, 10)
        from fusion_ros.commands.benchmark.pace import (
            PacePlan,
            measure_pace,
            plot_pace,
            write_pace,
        )

        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    from fusion_ros.commands.benchmark.plot import MatplotlibMissing
    from fusion_ros.harness.processes import ProcessError
    from fusion_ros.harness.rig import Rig, ros_session

    plan = PacePlan(options.rate, *phases, options.load)
    name = Path(options.method).stem
    path = options.output / f"pace_{name}_{options.rate:g}hz.json"
    try:
        with ros_session(), Rig() as rig:
            found = measure_pace(
                runs, plan, pairs, rig, options.output, lambda text: print(text, flush=True)
            )
    except ProcessError as error:
        raise CommandError(str(error), status=1) from None
    write_pace(found, plan, options.method, path)
    try:
        title = f"{name}, {options.size} at {options.rate:g} Hz"
        plot_pace(found, plan, title, path.with_suffix(".png"))
    except MatplotlibMissing as error:
        print(error)
    print(f"samples and plot are in {options.output}/")
    return 0


def _read(path: str) -> Result:
    from fusion_ros.commands.benchmark.results import Result, ResultError

    try:
        return Result.read(path)
    except ResultError as error:
        raise CommandError(str(error)) from None


def _benchmark(options: argparse.Namespace) -> int:
    from fusion_ros.commands.benchmark.pairs import pairs_from_folder, simulated_pairs

    try:
        _check(options)
        runs = [_parameters(options, method) for method in _methods(options.method)]
        if options.data:
            pairs = pairs_from_folder(options.data, options.size, options.pairs)
        else:
            pairs = simulated_pairs(options.size or _SIZE, options.pairs)
        # What needs ROS comes after what can be refused without it.
        from fusion_ros.commands.benchmark.run import Plan

        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from None
    plan = Plan(options.rates, options.duration, options.search, options.start_timeout)
    results = measure(runs, plan, pairs, options.output)
    return _report(results, options)


def _report(results: list[Result], options: argparse.Namespace) -> int:
    """Print tables and verdicts and draw the plot; 1 if a node failed or a limit was exceeded."""
    from fusion_ros.commands.benchmark.compare import table
    from fusion_ros.commands.benchmark.plot import MatplotlibMissing, plot

    failed = []
    for result in results:
        print(f"\n{table(result)}")
        for verdict in options.check.verdicts(result):
            print(verdict)
            if not verdict.met:
                failed.append(f"{result.label}: {verdict}")
        if result.error:
            failed.append(f"{result.label} ended early: {result.error}")
    print(f"\nresults and logs are in {options.output}/")
    try:
        plot(results, options.output / "benchmark.png")
    except MatplotlibMissing as error:
        print(error)
    if failed:
        raise CommandError("\n".join(failed), status=1)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
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
        help="backend of the network; null measures everything but the network",
    )
    add(
        "--detect",
        action="store_true",
        help="detect objects too",
    )
    add("-p", "--parameter", **_PARAMETER)
    add("--data", type=Path, help="folder with ir/ and vi/ instead of the simulated cameras")
    add(
        "--size",
        type=_size,
        help="size of the RGB images, of both with --data (default: 640x480, or as stored)",
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
    add("--duration", type=float, default=10.0, help="duration of each fixed rate, s (default: 10)")
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
        help="time limit of the node's first fused image, s (default: 120)",
    )
    add(
        "--check",
        type=_limits,
        default=Limits(),
        metavar="NAME=VALUE,...",
        help="fail where a fixed rate exceeds these limits: " + Limits.describe(),
    )
    add("--output", type=Path, default=Path("benchmark_output"), help="folder of the results")


def _check(options: argparse.Namespace) -> None:
    if options.pairs < 1:
        raise ValueError(f"--pairs {options.pairs}: at least 1 is needed")
    if not options.start_timeout > 0:
        raise ValueError(f"--start-timeout {options.start_timeout:g}: more than 0 is needed")
    from fusion_ros.commands.benchmark.measurement import LEAST_PAIRS

    slowest = min(options.rates)
    sent = slowest * options.duration
    if not sent >= LEAST_PAIRS:
        raise ValueError(
            f"--duration {options.duration:g}: at {slowest:g} Hz that is {sent:.0f} pairs, at "
            f"least {LEAST_PAIRS} are needed for percentiles: give {LEAST_PAIRS / slowest:g} s"
        )


def _methods(text: str) -> list[str]:
    return list_methods() if text == "all" else text.split(",")


def _parameters(options: argparse.Namespace, method: str, **given: str) -> Parameters:
    """Read the node's parameters; raises ValueError for what cannot be used."""
    from fusion_ros.frame.detector import default_detector_path

    values = {"method": method, "backend": options.backend, "detect": options.detect, **given}
    specs = Parameters.specs()
    for text in options.parameter:
        name, assigned, value = text.partition(":=")
        if not assigned or name not in specs:
            raise ValueError(
                f"-p {text}: expected NAME:=VALUE with one of the node's parameters, "
                f"{', '.join(specs)}"
            )
        if name in values:
            option = {"processing_size": "sizes"}.get(name, name)
            raise ValueError(f"-p {text}: use the option --{option}")
        values[name] = _value(value)
    # The user's own model by its full path: the node's process may run in another folder.
    if method.endswith(".onnx"):
        values["method"] = str(model_path(method).resolve())
    parameters = Parameters(**values)
    detector = Path(parameters.detector or default_detector_path())
    if parameters.detect and not detector.is_file():
        raise ValueError(
            f"--detect: there is no ONNX file {detector}; `make detector` puts one in ~/.cache"
        )
    return parameters


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _size(text: str) -> Size:
    try:
        return Size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _limits(text: str) -> Limits:
    try:
        return Limits.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(map(float, text.split(",")))
    except ValueError:
        rates = ()
    if not rates or not all(_RATES[0] <= rate <= _RATES[1] for rate in rates):
        raise argparse.ArgumentTypeError(
            f"'{text}': expected rates from {_RATES[0]:g} to {_RATES[1]:g} Hz, such as 10,30,60"
        )
    return rates


def _bounds(text: str) -> tuple[float, float] | None:
    if text == "none":
        return None
    rates = _numbers(text)
    if len(rates) != 2 or rates[0] >= rates[1]:
        raise argparse.ArgumentTypeError(f"'{text}': expected two rising rates as 1,120, or none")
    return rates[0], rates[1]
