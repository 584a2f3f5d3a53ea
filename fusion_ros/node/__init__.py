# SPDX-License-Identifier: AGPL-3.0-only
"""The ROS nodes' side: parameters, topics, diagnostics, lifecycle."""
