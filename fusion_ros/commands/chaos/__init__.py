# SPDX-License-Identifier: AGPL-3.0-only
"""The command `chaos`: many minutes of random faults, and what the fusion node makes of them."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["parser", "run"]


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="fusion_ros chaos",
        description="Send images at a rate while a random fault begins every few seconds; check "
        "afterwards that every image is accounted for, that memory is flat and the rate is held.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="with faults, default 30")
    parser.add_argument("--rate", type=float, default=30.0, help="pairs a second, default 30")
    parser.add_argument("--seed", type=int, default=1, help="of the faults' order, default 1")
    parser.add_argument(
        "--method", default="", help="fusion method; default: the null engine, which only copies"
    )
    parser.add_argument("--list", action="store_true", help="print the faults and end")
    parser.add_argument(
        "--out", type=Path, default=Path("chaos_output"), help="folder of report, plot and log"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the node among faults; return 0 if it holds, 1 if not."""
    from fusion_ros.commands.chaos.faults import FAULTS
    from fusion_ros.commands.chaos.session import Chaos, schedule

    plan = schedule(arguments.seed, 60 * arguments.minutes)
    if arguments.list:
        for name, fault in FAULTS.items():
            print(f"{name:24}{fault.summary}")
        return 0
    for one in plan:
        print(f"{one.begin_s:8.1f} s  {one.seconds:4.1f} s  {one.name}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = Chaos(plan, arguments.rate, arguments.method, arguments.out).run()
    report.save(arguments.out / "chaos.json")
    report.plot(arguments.out / "chaos.png")
    print(report.text())
    return 0 if report.holds else 1
