# SPDX-License-Identifier: AGPL-3.0-only
"""caf: a small dense network whose loss weights a perception task can search."""

from fusion_models.caf.network import Caf

__all__ = ["Caf"]
