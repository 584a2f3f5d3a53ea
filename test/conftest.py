# SPDX-License-Identifier: AGPL-3.0-only
"""What all tests share: the environment of their processes, the shared data, skips with reasons."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"fusion_ros", "fusion_models", "training", "support", "support_bags", "made_up_gpu"}

# Inherited by the nodes that tests start: other ROS traffic on this machine or network stays out.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 90))
# Processes that share the tests (`pytest -n`) inherit one domain, and must not hear each other.
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
os.environ["ROS_DOMAIN_ID"] = str(int(os.environ["ROS_DOMAIN_ID"]) + _process)
os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_AUTOINSTALL", "0")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder `../shared` beside the checkout: images and weights with other licences."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip(f"needs the image pairs of {path}, which is not there")
    return path


@pytest.fixture(scope="module")
def ros():
    """An initialised rclpy for the tests of a module."""
    rclpy = pytest.importorskip("rclpy")
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def gpu(monkeypatch):
    """A `MadeUpGpu` with a TensorRT, in place of what this machine has."""
    from made_up_gpu import MadeUpGpu

    from fusion_ros.inference import cuda, tensorrt

    device = MadeUpGpu()
    monkeypatch.setattr(cuda, "driver", lambda: device)
    monkeypatch.setattr(cuda, "runtime", lambda: device)
    monkeypatch.setattr(cuda, "driver_major", lambda: 12)
    monkeypatch.setattr(cuda, "device_name", lambda: "Made-up GPU")
    monkeypatch.setattr(cuda, "compute_capability", lambda: "8.7")
    monkeypatch.setattr(tensorrt, "import_library", lambda: device.library)
    monkeypatch.setattr(tensorrt, "build", device.build)
    return device


def pytest_collection_finish() -> None:
    # A node collects garbage at its cleanup. Among all that is imported by now that takes half a
    # second each time, for nothing.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    # Else libraries report at the end that their types were never freed.
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not Path("/proc/driver/nvidia/version").is_file():
        pytest.skip("needs an NVIDIA GPU and its driver")


def _skip_where_a_module_is_missing(report, error: BaseException) -> None:
    # `colcon test` runs in the active environment as it is, so a missing dependency skips
    # what needs it. `make test` installs them all: there FUSION_ROS_TEST_STRICT makes it a failure.
    # vision_msgs is the exception, it takes a compiler (messages/generate.py).
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return
    module = error.name.partition(".")[0]
    strict = os.environ.get("FUSION_ROS_TEST_STRICT") and module != "vision_msgs"
    if module not in OURS and not strict:
        reason = f"Python module '{module}' is not installed here; `make test` installs it"
        report.outcome, report.longrepr = "skipped", (report.nodeid.partition("::")[0], 0, reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    report = (yield).get_result()
    if report.failed and report.call.excinfo:
        error = report.call.excinfo.value
        _skip_where_a_module_is_missing(report, error.__cause__ or error)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and call.excinfo:
        _skip_where_a_module_is_missing(report, call.excinfo.value)
