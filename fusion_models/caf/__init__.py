# SPDX-License-Identifier: AGPL-3.0-only
"""caf: a small dense network whose loss weights are searched by a perception task."""

from fusion_models.caf.network import Caf

__all__ = ["Caf"]
