# SPDX-License-Identifier: AGPL-3.0-only
"""The environment variable that names Fast DDS its profile."""

from __future__ import annotations

import os

__all__ = ["PROFILE_VARIABLE"]

# Fast DDS 3 renamed the variable, and warns of the name that Fast DDS 2 knows.
_FAST_DDS_2 = ("humble", "iron", "jazzy")
PROFILE_VARIABLE = (
    "FASTRTPS_DEFAULT_PROFILES_FILE"
    if os.environ.get("ROS_DISTRO") in _FAST_DDS_2
    else "FASTDDS_DEFAULT_PROFILES_FILE"
)
