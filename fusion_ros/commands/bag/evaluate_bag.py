# SPDX-License-Identifier: AGPL-3.0-only
"""The command `evaluate_bag`: bags in, a page with a verdict and an exit status out.

0: evaluated, all criteria met; 1: criteria failed; 2: arguments that cannot be used; 3: a bag that
cannot be evaluated; 4: results that cannot be written; 130: interrupted, with a report of what was
done.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_ros.commands import CommandError

if TYPE_CHECKING:
    from fusion_ros.commands.bag.request import Request

__all__ = ["parser", "run"]

FAILED, UNUSABLE, NO_RESULT, INTERRUPTED = 1, 3, 4, 130


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="fusion_ros evaluate_bag",
        description="Evaluate recordings of a thermal and an RGB camera: clocks, pairs, "
        "registration, what fusion shows, and how fast it is here.",
    )
    add = made.add_argument
    add("bags", type=Path, nargs="+", metavar="BAG", help="a bag, or a folder of bags")
    add("--out", type=Path, default=Path("evaluation"), help="folder of the results")
    add("--methods", nargs="+", default=[], metavar="METHOD", help="to compare, or all")
    add("--model", action="append", default=[], metavar="ONNX", help="a model of your own")
    add("--thermal", default="", metavar="TOPIC", help="default: by type and name")
    add("--rgb", default="", metavar="TOPIC")
    add("--params", type=Path, metavar="FILE", help="the node's parameter file")
    add(
        "--stamps",
        choices=("header", "arrival"),
        help="time to pair by: that of the header, or of receipt, as the parameter stamp_source",
    )
    add("--backend", help="engine for the networks; default: that of the parameters")
    add("--processing-size", metavar="PX", help="a number, or auto, which is fixed here: see docs")
    add("--detector", metavar="ONNX", help="look for objects; 'default' is the one in ~/.cache")
    part = made.add_argument_group("part of the bag").add_argument
    part("--start", type=float, default=0.0, metavar="S", help="seconds to pass over")
    part("--duration", type=float, default=0.0, metavar="S", help="seconds to evaluate; 0: all")
    part("--every", type=int, default=1, metavar="N", help="fuse each n-th pair")
    part("--samples", type=int, default=24, metavar="N", help="pairs for the slow measures")
    test = made.add_argument_group("as a test").add_argument
    test("--criteria", type=Path, metavar="FILE", help="YAML of limits: exit status 0 or 1")
    test("--init-criteria", type=Path, metavar="FILE", help="write one that this bag meets")
    test("--baseline", type=Path, metavar="REPORT", help="compare with an earlier report.json")
    more = made.add_argument_group("more outputs").add_argument
    more("--write-bag", type=Path, metavar="OUT", help="fused images, boxes, events as an mcap bag")
    more("--compress", action="store_true", help="fused images in that bag as JPEG")
    more("--rerun", type=Path, metavar="FILE.rrd", help="for the rerun viewer (rerun-sdk)")
    live = made.add_argument_group("online").add_argument
    live("--online", action="store_true", help="also play the bag over DDS to a node started here")
    live("--node", default="", metavar="NAME", help="a running node to play to, as in /fuse_node")
    live(
        "--rate",
        type=float,
        default=1.0,
        help="speed of playing; 1: as recorded; 0: waits for each image",
    )
    live("--loop", type=int, default=1, metavar="N", help="times to play the bag")
    many = made.add_argument_group("many bags").add_argument
    many("--scheduler", default="", metavar="ADDRESS", help="a dask scheduler, tcp://host:8786")
    many("--workers", type=int, default=0, metavar="N", help="local processes; default: by cores")
    many("--again", action="store_true", help="evaluate bags anew whose results are there")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and say where the results are."""
    from fusion_ros.commands.bag.criteria import load_criteria, read_report
    from fusion_ros.commands.bag.evaluation import SCHEMA
    from fusion_ros.commands.bag.many import Job, bags_of, evaluate_many
    from fusion_ros.commands.bag.one import evaluate_to
    from fusion_ros.commands.bag.results import OutputError
    from fusion_ros.inference import EngineError
    from fusion_ros.recording.storage import BagError, WriteError

    request = _request(arguments)
    limits = load_criteria(arguments.criteria) if arguments.criteria else {}
    before = read_report(arguments.baseline, SCHEMA) if arguments.baseline else None
    bags = bags_of(arguments.bags)
    if len(bags) > 1 or arguments.scheduler:
        alone = ("write_bag", "rerun", "online", "node", "init_criteria", "baseline")
        given = [f"--{name.replace('_', '-')}" for name in alone if getattr(arguments, name)]
        if given:
            raise CommandError(f"{', '.join(given)} take one bag, not {len(bags)}")
        job = Job(request, limits, arguments.out, arguments.again)
        return evaluate_many(bags, job, arguments.scheduler, arguments.workers)
    try:
        report = evaluate_to(
            bags[0],
            arguments.out,
            request,
            limits=limits,
            before=before,
            init_criteria=arguments.init_criteria,
            online=_online(arguments),
        )
    except (OutputError, WriteError) as error:
        raise CommandError(str(error), NO_RESULT) from None
    except BagError as error:
        raise CommandError(str(error), UNUSABLE) from None
    except (EngineError, ValueError) as error:
        raise CommandError(str(error)) from None
    _tell(report, arguments.out)
    if report["interrupted"]:
        return INTERRUPTED
    return 0 if report.get("criteria", {"passed": True})["passed"] else FAILED


def _request(a: argparse.Namespace) -> Request:
    from fusion_ros.commands.bag.request import Request, method_name, read_settings
    from fusion_ros.inference.models import list_methods

    detector = a.detector if a.detector not in (None, "default") else None
    changes = {
        "backend": a.backend,
        "processing_size": int(size)
        if (size := a.processing_size or "").isdigit()
        else size or None,
        "detector": detector,
    }
    settings, given, stamps = read_settings(a.params, changes, a.stamps)
    methods: list[str] = []
    for name in a.methods:
        methods += list_methods() if name == "all" else [name]
    methods = list(dict.fromkeys([*methods, *a.model])) or [settings.method]
    stems = [method_name(name) for name in methods]
    if len(set(stems)) < len(stems):
        raise CommandError(f"two methods have one name: {', '.join(methods)}")
    try:
        for name in methods:
            settings.replace(method=name)
    except ValueError as error:
        raise CommandError(str(error)) from None
    return Request(
        settings,
        given,
        tuple(methods),
        a.thermal,
        a.rgb,
        a.start,
        a.duration,
        a.every,
        a.samples,
        detect=a.detector is not None,
        stamps=stamps,
        write_bag=a.write_bag,
        compress=a.compress,
        rerun=a.rerun,
    )


def _online(a: argparse.Namespace):
    if not (a.online or a.node):
        return None
    if a.rate < 0 or a.loop < 1:
        raise CommandError("--rate must not be negative, and --loop at least 1")
    from fusion_ros.commands.bag.online import Online

    return Online(a.node, a.rate, a.loop)


def _tell(report: dict, out: Path) -> None:
    verdict = report["verdict"]
    print("\n".join([verdict["method"], verdict["settings"], verdict["mend"]]))
    for each in report.get("criteria", {}).get("checks", []):
        word = "passed" if each["passed"] else "FAILED"
        print(f"{word}: {each['name']} is {each['shown']}, wanted {each['wanted']}")
    for each in report.get("baseline", {}).get("changes", []):
        print(f"{each['name']}: {each['before']:.5g} before, {each['now']:.5g} now")
    print(f"\n{report['pairs']['fused']} pairs; the page is {out / 'index.html'}")
