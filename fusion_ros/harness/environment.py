# SPDX-License-Identifier: AGPL-3.0-only
"""The environment of ROS processes: discovery, domain and Fast DDS profile."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["PROFILE_VARIABLE", "profile_path", "set_environment"]

# Fast DDS 3 renamed the variable and warns about the name that Fast DDS 2 reads.
_FAST_DDS_2 = ("humble", "iron", "jazzy")
PROFILE_VARIABLE = (
    "FASTRTPS_DEFAULT_PROFILES_FILE"
    if os.environ.get("ROS_DISTRO") in _FAST_DDS_2
    else "FASTDDS_DEFAULT_PROFILES_FILE"
)
_SHARED_MEMORY_BYTES = 512e6
"""Free shared memory below which the profile, with 64 MB a process, is not used."""


def set_environment() -> None:
    """Restrict ROS to this machine and a domain of its own, and load the Fast DDS profile.

    Variables that are set already are kept. Call this before `rclpy.init`; processes that are
    started afterwards inherit the environment.
    """
    environ = os.environ
    environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    # As in the node's own process: readers that stop do not hold a publisher.
    environ.setdefault("RMW_FASTRTPS_PUBLICATION_MODE", "ASYNCHRONOUS")
    profile, memory = profile_path(), Path("/dev/shm")
    if profile and memory.is_dir() and shutil.disk_usage(memory).free > _SHARED_MEMORY_BYTES:
        environ.setdefault(PROFILE_VARIABLE, str(profile))


def profile_path() -> Path | None:
    """Find the Fast DDS profile in the checkout or in share/ of the installation."""
    _, _, checkout, *above = Path(__file__).resolve().parents
    folders = [checkout, *(folder / "share" / "fusion_ros" for folder in (checkout, *above))]
    paths = (folder / "config" / "fastdds_shm.xml" for folder in folders)
    return next((path for path in paths if path.is_file()), None)
