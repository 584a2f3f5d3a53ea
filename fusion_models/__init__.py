# SPDX-License-Identifier: AGPL-3.0-only
"""Thermal/RGB fusion networks: registry, objectives, metrics and the trained weights.

Importing this package imports no torch, so that the runtime can find the weights beside it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"
__all__ = ["WEIGHTS_DIR", "create_model", "create_objective", "list_models", "model_card"]

WEIGHTS_DIR = Path(__file__).parent / "weights"


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("fusion_models.registry"), name)
    raise AttributeError(f"module 'fusion_models' has no attribute {name!r}")
