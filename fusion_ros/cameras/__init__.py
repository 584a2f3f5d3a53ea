# SPDX-License-Identifier: AGPL-3.0-only
"""Simulated and file-backed thermal and RGB cameras."""
