# SPDX-License-Identifier: AGPL-3.0-only
"""baffm: low-rank/sparse features with back-door adjustment over a scene dictionary."""

from fusion_models.baffm.network import Baffm

__all__ = ["Baffm"]
