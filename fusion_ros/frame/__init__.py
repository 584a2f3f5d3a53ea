# SPDX-License-Identifier: AGPL-3.0-only
"""One frame's way through the runtime, without ROS: decode, pair, register, fuse, detect."""
