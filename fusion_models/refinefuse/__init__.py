# SPDX-License-Identifier: AGPL-3.0-only
"""refinefuse: four-scale encoders refined by spatial, pooled-attention and channel modules."""

from fusion_models.refinefuse.network import RefineFuse

__all__ = ["RefineFuse"]
