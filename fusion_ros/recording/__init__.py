# SPDX-License-Identifier: AGPL-3.0-only
"""Recordings: bags read and written without ROS, and what the stamps in them say."""
