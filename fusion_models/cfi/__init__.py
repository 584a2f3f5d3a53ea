# SPDX-License-Identifier: AGPL-3.0-only
"""cfi: Siamese U-Net with a causal feature integrator, trained under interventions."""

from fusion_models.cfi.network import Cfi

__all__ = ["Cfi"]
