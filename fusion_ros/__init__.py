# SPDX-License-Identifier: AGPL-3.0-only
"""Runtime of fusion_ros: thermal and visible images in, fused images and boxes out."""

__version__ = "0.1.0"
