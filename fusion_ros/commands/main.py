# SPDX-License-Identifier: AGPL-3.0-only
"""The command line `fusion_ros <command> ...`: the list of commands, and how one is run.

To add a command, write a module with

    def parser() -> argparse.ArgumentParser: ...       # imports nothing heavy
    def run(arguments: argparse.Namespace) -> int: ... # imports what it needs, returns the status

and list it in `COMMANDS`. `run` raises `CommandError` for what the user can correct.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from fusion_ros.commands import CommandError
from fusion_ros.missing import remedy

__all__ = ["COMMANDS", "Command", "main"]


@dataclass(frozen=True)
class Command:
    """One command: its module, its line in the list, and whether it is a ROS node.

    A node's module has `main(args) -> int`, which reads ROS arguments, in place of `parser` and
    `run`.
    """

    module: str
    summary: str
    node: bool = False


COMMANDS = {
    "demo": Command("fusion_ros.commands.demo", "fuse two simulated cameras and record the result"),
    "benchmark": Command(
        "fusion_ros.commands.benchmark", "measure latency, losses and load of the fusion node"
    ),
    "build_engine": Command(
        "fusion_ros.commands.build_engine", "build TensorRT engines ahead of the node's first start"
    ),
    "evaluate_bag": Command(
        "fusion_ros.commands.bag.evaluate_bag",
        "evaluate a recording: clocks, pairs, registration, quality, speed",
    ),
    "make_bag": Command(
        "fusion_ros.commands.bag.make_bag", "make a bag of simulated cameras, pairs or videos"
    ),
    "chaos": Command(
        "fusion_ros.commands.chaos", "run the fusion node among random faults, and account for all"
    ),
    "doctor": Command(
        "fusion_ros.commands.doctor", "check what this machine has, and how to mend what is wrong"
    ),
    "gpu_check": Command(
        "fusion_ros.commands.gpu_check", "measure what runs on this machine's GPU, and report it"
    ),
    "top": Command("fusion_ros.commands.top", "watch a running node in the terminal"),
    "fuse_node": Command("fusion_ros.node.main", "run the fusion node", node=True),
    "camera_node": Command(
        "fusion_ros.cameras.camera_node", "run a simulated camera or one from files", node=True
    ),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return its exit status.

    0: done; 1: it failed; 2: its arguments cannot be used; 130: interrupted.
    """
    try:
        status = _main(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `| head` has read enough; Python would write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(args: Sequence[str]) -> int:
    name, *rest = args or [""]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name not in COMMANDS:
        wrong = f"unknown command '{name}': choose one of" if name else "expected one of"
        print(f"fusion_ros: {wrong} {', '.join(COMMANDS)}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return _run(name, COMMANDS[name], rest)
    except CommandError as error:
        print(f"fusion_ros {name}: {error}", file=sys.stderr)
        return error.status
    except ImportError as error:
        if (error.name or "fusion_ros").startswith(("fusion_ros", "fusion_models")):
            raise  # a bug of this package
        print(f"fusion_ros {name}: {remedy(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0 if COMMANDS[name].node else 130


def _run(name: str, command: Command, args: Sequence[str]) -> int:
    if command.node and {"-h", "--help"} & set(args):
        print(_node_usage(name, command))
        return 0
    module = import_module(command.module)
    if command.node:
        for argument in _unread(args):
            assigned = argument if ":=" in argument else "NAME:=VALUE"
            print(
                f"fusion_ros {name}: '{argument}' is ignored: expected ROS arguments; "
                f"'--ros-args -p {assigned}' sets a parameter",
                file=sys.stderr,
            )
        return module.main(list(args))
    parser: argparse.ArgumentParser = module.parser()
    parser.prog = f"fusion_ros {name}"
    return module.run(parser.parse_args(args))


def _unread(args: Sequence[str]) -> list[str]:
    """Arguments that no ROS node reads: those outside `--ros-args ... --`."""
    unread, is_ros = [], False
    for argument in args:
        if argument == "--ros-args":
            is_ros = True
        elif is_ros and argument == "--":
            is_ros = False
        elif not is_ros:
            unread.append(argument)
    return unread


def _node_usage(name: str, command: Command) -> str:
    return "\n".join(
        [
            f"usage: fusion_ros {name} [--ros-args -p NAME:=VALUE ... -r FROM:=TO ...]",
            "",
            f"{command.summary.capitalize()}. Options are those of every ROS 2 node:",
            "  -p NAME:=VALUE      set a parameter",
            "  --params-file FILE  set the parameters of a YAML file",
            "  -r FROM:=TO         remap a topic; __ns:=/robot sets the namespace",
            "",
            f"While it runs, `ros2 param describe /{name} NAME` describes a parameter; those of",
            "fuse_node are in docs/parameters.md too.",
        ]
    )


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fusion_ros <command> [options]",
            "",
            "Real-time fusion of thermal and RGB cameras for ROS 2.",
            "",
            "commands:",
            *lines,
            "",
            "`fusion_ros <command> --help` lists a command's options.",
        ]
    )
