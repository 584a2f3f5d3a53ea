# SPDX-License-Identifier: AGPL-3.0-only
"""The machine that a benchmark runs on, and the load of its processes, read from /proc."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

import fusion_ros

__all__ = [
    "Host", "Memory", "Versions", "busy_seconds", "cpu_name", "cpu_seconds", "memory_of",
]  # fmt: skip

_PROC = Path("/proc")


@dataclass(frozen=True)
class Host:
    """The machine. memory_gb: GiB; load: mean number of runnable processes of the minute before."""

    cpu: str
    cores: int
    memory_gb: float
    gpu: str
    os: str
    kernel: str
    load: float

    @classmethod
    def this(cls) -> Host:
        try:
            name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
        except OSError:
            name = platform.system()
        board = _board()
        memory_kb = _field(_text(_PROC / "meminfo"), "MemTotal").split()
        nvidia = sorted(_PROC.glob("driver/nvidia/gpus/*/information"))
        gpus = [_field(_text(path), "Model") for path in nvidia]
        return cls(
            cpu=cpu_name(),
            cores=len(os.sched_getaffinity(0)),
            memory_gb=round(int(memory_kb[0]) / 2**20, 1) if memory_kb else 0.0,
            gpu=", ".join(gpus) or (board if "jetson" in board.lower() else ""),
            os=name,
            # Without the build's name, which may be that of a machine.
            kernel=f"{platform.system()} {platform.release().partition('-')[0]} "
            f"{platform.machine()}",
            load=round(os.getloadavg()[0], 2),
        )


@dataclass(frozen=True)
class Versions:
    """Versions of the software in use.

    ros_distro is empty where no ROS is sourced, commit outside a checkout.
    """

    python: str
    fusion_ros: str
    commit: str
    numpy: str
    opencv: str
    onnxruntime: str
    rclpy: str
    ros_distro: str
    rmw: str

    @classmethod
    def installed(cls, rmw: str) -> Versions:
        try:
            rclpy = version("rclpy")
        except PackageNotFoundError:
            rclpy = "unknown"
        return cls(
            python=platform.python_version(),
            fusion_ros=fusion_ros.__version__,
            commit=_commit(),
            numpy=np.__version__,
            opencv=cv2.__version__,
            onnxruntime=onnxruntime.__version__,
            rclpy=rclpy,
            ros_distro=os.environ.get("ROS_DISTRO", ""),
            rmw=rmw,
        )


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process now and at most, MiB."""

    resident_mb: float
    peak_mb: float


def cpu_name() -> str:
    """The processor's model; on ARM, which does not say, the board's, else the architecture."""
    return _field(_text(_PROC / "cpuinfo"), "model name") or _board() or platform.machine()


def cpu_seconds(pid: int) -> float:
    """Processor time that all threads of a process have taken; 0.0 if it is gone."""
    fields = _text(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 13:
        return 0.0
    # utime and stime, fields 14 and 15 of proc(5); what is split begins with the third.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Processor time of everything on this machine, on all cores, s; 0.0 where it is unknown.

    Time that the hypervisor has taken away counts too.
    """
    fields = _text(_PROC / "stat").partition("\n")[0].split()[1:9]
    if len(fields) < 8:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> Memory:
    """Memory of a process; zeros if it is gone."""
    status = _text(_PROC / str(pid) / "status")

    def mb(name: str) -> float:
        return round(int((_field(status, name) or "0 kB").split()[0]) / 1024, 1)

    return Memory(mb("VmRSS"), mb("VmHWM"))


def _board() -> str:
    return _text(Path("/proc/device-tree/model")).strip("\0\n ")


def _commit() -> str:
    checkout = Path(fusion_ros.__file__).parents[1]
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return ""


def _field(text: str, name: str) -> str:
    """The value of the first line `name: value`; empty if there is none."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
