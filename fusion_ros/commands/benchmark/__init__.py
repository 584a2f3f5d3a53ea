# SPDX-License-Identifier: AGPL-3.0-only
"""The node benchmark: how fast the node as it ships is on this machine, and what it loses."""
