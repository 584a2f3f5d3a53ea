# SPDX-License-Identifier: AGPL-3.0-only
"""Fusion metrics, the evaluation of models over image sets, and its report."""
