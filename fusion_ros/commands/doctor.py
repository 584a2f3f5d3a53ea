# SPDX-License-Identifier: AGPL-3.0-only
"""The command `doctor`: what this machine has for the fusion node, and how to mend what is wrong.

It runs without ROS, numpy, OpenCV and onnxruntime too, since they may be what is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import enum
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fusion_ros.missing import remedy

__all__ = ["Check", "Level", "System", "as_json", "as_text", "examine", "parser", "run"]

_MESSAGES = (
    "rcl_interfaces",
    "lifecycle_msgs",
    "sensor_msgs",
    "std_msgs",
    "diagnostic_msgs",
    "builtin_interfaces",
)
_SHARED_MEMORY_MB = 512
_FREE_DISK_MB = 1024
_FIRST_PYTHON, _LAST_PYTHON = (3, 10), (3, 14)
_CLOCK_ERROR = 5
"""TIME_ERROR of adjtimex(2): the clock is not synchronised."""
_LEAST_TIME = 1_700_000_000.0


class Level(str, enum.Enum):
    """OK; WARN: the node runs, but something does not, or is slow; MISSING: it does not run."""

    OK = "OK"
    WARN = "WARN"
    MISSING = "MISSING"


@dataclass(frozen=True)
class Check:
    """What was found on one subject, and the command that mends it; empty where all is well."""

    name: str
    level: Level
    found: str
    mend: str = ""


class System:
    """What the checks ask; tests make up another one.

    environ: the environment; home: the user's folder.
    """

    def __init__(self) -> None:
        self.environ: Mapping[str, str] = os.environ
        self.home = Path.home()
        self.python = sys.version_info[:3]

    def load(self, module: str) -> Any:
        """Import a module; raises what its import raises."""
        return import_module(module)

    def version(self, module: str) -> str:
        """The version of an importable module, 'unknown' if it does not tell."""
        found = getattr(self.load(module), "__version__", None)
        if found is None:
            try:
                found = version(module.replace("_", "-").partition(".")[0])
            except PackageNotFoundError:
                found = "unknown"
        return str(found)

    def text(self, path: str | Path) -> str:
        """The content of a file; empty if it cannot be read."""
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return ""

    def exists(self, path: str | Path) -> bool:
        return Path(path).exists()

    def free_mb(self, path: str | Path) -> float | None:
        """Free space below a folder, MiB; None if there is no such folder."""
        try:
            return shutil.disk_usage(path).free / 2**20
        except OSError:
            return None

    def writable(self, path: Path) -> bool:
        """Whether this user may write into a folder, or make it if it is not there."""
        while not path.exists() and path != path.parent:
            path = path.parent
        return os.access(path, os.W_OK | os.X_OK)

    def size_mb(self, path: Path) -> float:
        """Size of all files below a folder, MiB."""
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) / 2**20

    def clock_state(self) -> int | None:
        """What adjtimex(2) returns; None where it cannot be asked."""
        try:
            return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))
        except (OSError, AttributeError):
            return None

    def now(self) -> float:
        """The system's time, s since 1970."""
        return time.time()


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="fusion_ros doctor",
        description="Check what this machine has for the fusion node. Exit status 1: the node "
        "would not run.",
    )
    made.add_argument("--json", action="store_true", help="print JSON, to paste into an issue")
    made.add_argument("--method", default="", help="fusion method or *.onnx to load for the check")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Print all checks; return 1 if the node would not run."""
    checks = examine(System(), arguments.method)
    print(as_json(checks) if arguments.json else as_text(checks))
    return int(any(check.level is Level.MISSING for check in checks))


def examine(system: System, method: str = "") -> list[Check]:
    """Make all checks; one that fails itself is a finding too."""
    checks: list[Check] = []
    for group in (_machine, _libraries, _ros, _gpu, lambda s: _networks(s, method), _storage):
        try:
            checks.extend(group(system))
        except Exception as error:  # what a broken installation raises
            name = getattr(group, "__name__", "networks").strip("_<>")
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
            checks.append(Check(name, Level.WARN, f"cannot be checked: {problem}"))
    return [_without_home(check, system.home) for check in checks]


def as_text(checks: list[Check]) -> str:
    """One line a check, below it the command that mends it, and the verdict."""
    wide = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.level.value:7}  {check.name:{wide}}  {check.found}")
        if check.mend:
            lines.append(f"{'':7}  {'':{wide}}  -> {check.mend}")
    missing = [check.name for check in checks if check.level is Level.MISSING]
    verdict = f"fuse_node does not run here: {', '.join(missing)}" if missing else "fuse_node runs"
    return "\n".join([*lines, "", verdict])


def as_json(checks: list[Check]) -> str:
    """All checks, and `runs`: whether the node would run."""
    import fusion_ros

    content = {
        "fusion_ros": fusion_ros.__version__,
        "runs": not any(check.level is Level.MISSING for check in checks),
        "checks": [asdict(check) for check in checks],
    }
    return json.dumps(content, indent=2)


def _without_home(check: Check, home: Path) -> Check:
    """The check without the user's name, since it may be published."""
    found, mend = (text.replace(str(home), "~") for text in (check.found, check.mend))
    return Check(check.name, check.level, found, mend)


# --- Machine --------------------------------------------------------------------------------------


def _machine(system: System) -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = re.search(r'PRETTY_NAME="?([^"\n]+)', system.text("/etc/os-release"))
    memory = re.search(r"MemTotal:\s+(\d+)", system.text("/proc/meminfo"))
    found = [name[1] if name else platform.system(), platform.machine(), f"{cores} cores"]
    if memory:
        found.append(f"{int(memory[1]) / 2**20:.1f} GiB memory")
    model = re.search(r"model name\s*:\s*(.+)", system.text("/proc/cpuinfo"))
    board = system.text("/proc/device-tree/model").strip("\0\n ")
    if model or board:
        found.append(model[1].strip() if model else board)
    yield Check("machine", Level.OK, ", ".join(found))

    text = ".".join(map(str, system.python))
    if _FIRST_PYTHON <= system.python[:2] <= _LAST_PYTHON:
        yield Check("Python", Level.OK, text)
    else:
        first, last = (".".join(map(str, one)) for one in (_FIRST_PYTHON, _LAST_PYTHON))
        yield Check(
            "Python", Level.MISSING, f"{text}, expected {first} to {last}",
            "use ROS's own: source /opt/ros/<distribution>/setup.bash; /usr/bin/python3",
        )  # fmt: skip

    state, now = system.clock_state(), system.now()
    if now < _LEAST_TIME:
        yield Check(
            "clock", Level.WARN, f"the year is {time.gmtime(now).tm_year}",
            "sudo timedatectl set-ntp true",
        )  # fmt: skip
    elif state == _CLOCK_ERROR:
        yield Check(
            "clock", Level.WARN,
            "not synchronised: images stamped by other machines would not pair",
            "sudo timedatectl set-ntp true, or install chrony",
        )  # fmt: skip
    else:
        yield Check("clock", Level.OK, "synchronised" if state is not None else "state unknown")


# --- Libraries ------------------------------------------------------------------------------------


def _libraries(system: System) -> Iterator[Check]:
    for module, name, least in (
        ("numpy", "numpy", (1, 21, 6)),
        ("cv2", "OpenCV", (4, 5, 4)),
        ("onnxruntime", "onnxruntime", (1, 18)),
    ):
        check = _library(system, module, name, least)
        if module == "onnxruntime" and check.level is Level.OK:
            providers = system.load("onnxruntime").get_available_providers()
            names = ", ".join(p.removesuffix("ExecutionProvider") for p in providers)
            check = Check(name, check.level, f"{check.found}, providers: {names}")
        yield check


def _library(system: System, module: str, name: str, least: tuple[int, ...]) -> Check:
    try:
        found = system.version(module)
    except ImportError as error:
        named = ImportError(*error.args, name=error.name or module)
        problem, _, mend = remedy(named).partition(": `")
        return Check(name, Level.MISSING, problem, f"`{mend}" if mend else "")
    except Exception as error:  # a module that was built for another numpy
        return Check(
            name, Level.MISSING, f"cannot be imported: {' '.join(str(error).split())}",
            f"pip install --force-reinstall {_package(module, least)}",
        )  # fmt: skip
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < least:
        return Check(
            name, Level.MISSING, f"{found}, expected {'.'.join(map(str, least))} or newer",
            f"pip install --upgrade {_package(module, least)}",
        )  # fmt: skip
    return Check(name, Level.OK, found)


def _package(module: str, least: tuple[int, ...]) -> str:
    name = {"cv2": "opencv-python-headless"}.get(module, module)
    return f"'{name}>={'.'.join(map(str, least))}'"


# --- ROS ------------------------------------------------------------------------------------------


def _ros(system: System) -> Iterator[Check]:
    environ = system.environ
    distribution = environ.get("ROS_DISTRO", "")
    try:
        rclpy = system.version("rclpy")
        for module in _MESSAGES:
            system.load(f"{module}.msg" if module != "lifecycle_msgs" else "lifecycle_msgs.srv")
    except Exception as error:
        named = error if isinstance(error, ImportError) else ImportError(str(error), name="rclpy")
        problem, _, mend = remedy(named).partition("): ")
        yield Check("ROS 2", Level.MISSING, problem + (")" if mend else ""), mend)
        return
    where = f"{distribution}, " if distribution else "wheels, no distribution is sourced; "
    yield Check("ROS 2", Level.OK, f"{where}rclpy {rclpy}")
    yield from _rmw(system, distribution)

    domain = environ.get("ROS_DOMAIN_ID", "0") or "0"
    if domain.isdecimal() and int(domain) <= 232:
        place = environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "") or "SUBNET"
        if environ.get("ROS_LOCALHOST_ONLY") == "1":
            place = "LOCALHOST"
        yield Check("discovery", Level.OK, f"domain {domain}, range {place}")
    else:
        yield Check(
            "discovery", Level.MISSING, f"ROS_DOMAIN_ID is '{domain}', expected 0 to 232",
            "unset ROS_DOMAIN_ID",
        )  # fmt: skip

    apt = f"sudo apt install ros-{distribution or '$ROS_DISTRO'}-"
    for module, without in (
        ("vision_msgs", "no boxes are published on `detections`"),
        ("cv_bridge", "Bayer and YUV images are converted by OpenCV"),
    ):
        try:
            system.load("vision_msgs.msg" if module == "vision_msgs" else module)
        except Exception as error:
            found = f"cannot be imported ({' '.join(str(error).split())}): {without}"
            needed = module == "vision_msgs"
            yield Check(
                module, Level.WARN if needed else Level.OK, found,
                apt + module.replace("_", "-") if needed else "",
            )  # fmt: skip
        else:
            yield Check(module, Level.OK, "installed")


def _rmw(system: System, distribution: str) -> Iterator[Check]:
    asked = system.environ.get("RMW_IMPLEMENTATION", "")
    try:
        name = system.load("rclpy.utilities").get_rmw_implementation_identifier()
    except Exception as error:
        package = (asked or "rmw_fastrtps_cpp").replace("_", "-")
        yield Check(
            "RMW", Level.MISSING, f"{asked or 'the default'} does not load: {error}",
            f"sudo apt install ros-{distribution or '$ROS_DISTRO'}-{package}, or "
            "unset RMW_IMPLEMENTATION",
        )  # fmt: skip
        return
    yield Check("RMW", Level.OK, name)
    if "fastrtps" not in name:
        yield Check("RMW profile", Level.OK, f"none is needed for {name}")
        return
    variables = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    given = [system.environ[one] for one in variables if system.environ.get(one)]
    wanted = variables[distribution in ("humble", "iron", "jazzy")]
    ours = "$(ros2 pkg prefix --share fusion_ros)/config/fastdds_shm.xml"
    mend = f"export {wanted}={ours}, for the cameras too; fuse.launch.py sets it"
    if not given:
        yield Check(
            "RMW profile", Level.WARN,
            "none: Fast DDS's own shared memory holds no camera image, so images are late or lost",
            mend,
        )  # fmt: skip
    elif not system.exists(given[0]):
        yield Check("RMW profile", Level.WARN, f"there is no file {given[0]}", mend)
    else:
        yield Check("RMW profile", Level.OK, given[0])


# --- GPU ------------------------------------------------------------------------------------------


def _gpu(system: System) -> Iterator[Check]:
    cuda = system.load("fusion_ros.inference.cuda")
    if not cuda.gpu_is_present():
        yield Check("GPU", Level.OK, "no NVIDIA GPU: the networks run on the processor")
        return
    driver = re.search(r"Module\s+([\d.]+)", system.text("/proc/driver/nvidia/version"))
    version_text = f"driver {driver[1]}" if driver else "driver of unknown version"
    if not cuda.device_name():
        yield Check(
            "GPU", Level.WARN, f"an NVIDIA GPU that CUDA cannot use, {version_text}",
            "nvidia-smi should list it; in a container: docker run --gpus all",
        )  # fmt: skip
        return
    yield Check(
        "GPU", Level.OK,
        f"{cuda.device_name()}, compute capability {cuda.compute_capability()}, {version_text}, "
        f"CUDA {cuda.driver_major()}",
    )  # fmt: skip
    try:
        library = system.load("fusion_ros.inference.tensorrt").import_library()
        yield Check("TensorRT", Level.OK, library.description)
    except Exception as error:
        yield Check(
            "TensorRT", Level.WARN, " ".join(str(error).split()),
            "on a Jetson: sudo apt install python3-libnvinfer; an RTX GPU: "
            "pip install 'fusion_ros[tensorrt]'",
        )  # fmt: skip
    for module, name, mend in (
        (
            "cuda.bindings.runtime",
            "cuda-bindings",
            f"pip install 'cuda-bindings=={cuda.driver_major() or 12}.*'",
        ),
        ("onnx", "onnx", "pip install onnx"),
    ):
        try:
            system.load(module)
        except Exception as error:
            found = f"cannot be imported ({' '.join(str(error).split())}): TensorRT needs it"
            if module == "onnx":
                found = found.replace("TensorRT needs it", "the processor converts images")
            yield Check(name, Level.WARN, found, mend)
        else:
            yield Check(name, Level.OK, system.version(module))


# --- Networks and storage -------------------------------------------------------------------------


def _networks(system: System, method: str) -> Iterator[Check]:
    try:
        models = system.load("fusion_ros.inference.models")
        settings = system.load("fusion_ros.frame.settings").Settings
        pipeline = system.load("fusion_ros.frame.pipeline")
    except ImportError as error:
        yield Check("network", Level.MISSING, f"not checked: {remedy(error)}")
        return
    passed_over: list[str] = []
    try:
        chosen = settings(**({"method": method} if method else {}))
        network = pipeline.load_network(chosen, None, passed_over.append)
    except Exception as error:
        yield Check(
            "network", Level.MISSING, " ".join(str(error).split()),
            f"method:=<one of {', '.join(models.list_methods()) or 'none shipped'}>",
        )  # fmt: skip
        return
    engine = network.fuser.engine
    found = f"{network.method} on {engine.description}"
    if engine.gpu_unused:
        yield Check(
            "network", Level.WARN, f"{found}; the GPU is not used: {engine.gpu_unused}",
            "see the lines on GPU and TensorRT above",
        )  # fmt: skip
    else:
        yield Check("network", Level.OK, found)
    network.close()
    yield _detector(system, pipeline, settings)


def _detector(system: System, pipeline: Any, settings: Any) -> Check:
    path = system.load("fusion_ros.frame.detector").default_detector_path()
    if not system.exists(path):
        return Check("detector", Level.WARN, f"none at {path}: no boxes", "make detector")
    try:
        detector = pipeline.load_detector(settings(detect_every=1), None, lambda text: None)
    except Exception as error:
        return Check("detector", Level.WARN, " ".join(str(error).split()), "make detector")
    found = f"{path}, {len(detector.class_names)} classes"
    detector.close()
    return Check("detector", Level.OK, found)


def _storage(system: System) -> Iterator[Check]:
    cache = system.home / ".cache" / "fusion_ros"
    size = f"{system.size_mb(cache):.0f} MiB" if system.exists(cache) else "not there yet"
    free = system.free_mb(system.home)
    if not system.writable(cache):
        yield Check(
            "cache", Level.WARN, f"{cache} cannot be written: engines are built at every start",
            f'sudo chown -R "$USER" {cache}',
        )  # fmt: skip
    elif free is not None and free < _FREE_DISK_MB:
        yield Check(
            "cache", Level.WARN, f"{cache}, {size}, {free:.0f} MiB are free on its disk",
            f"rm -r {cache}/*.engine",
        )  # fmt: skip
    else:
        yield Check("cache", Level.OK, f"{cache}, {size}")

    shared = system.free_mb("/dev/shm")
    if shared is None:
        yield Check(
            "shared memory", Level.WARN, "there is no /dev/shm: images go through the network",
            "docker run --ipc=host, or mount a tmpfs at /dev/shm",
        )  # fmt: skip
    elif shared < _SHARED_MEMORY_MB:
        yield Check(
            "shared memory", Level.WARN,
            f"{shared:.0f} MiB free in /dev/shm, {_SHARED_MEMORY_MB} are wanted: images are slow",
            "docker run --ipc=host or --shm-size=1g; elsewhere sudo mount -o remount,size=1G "
            "/dev/shm",
        )  # fmt: skip
    else:
        yield Check("shared memory", Level.OK, f"{shared:.0f} MiB free in /dev/shm")
