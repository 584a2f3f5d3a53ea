"""cfi: Siamese U-Net with a causal feature integrator, trained under interventions."""

from fusion_models.cfi.network import Cfi

__all__ = ["Cfi"]
