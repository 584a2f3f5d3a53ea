# SPDX-License-Identifier: AGPL-3.0-only
"""Detection on fused images: the pictures, a detector of our own and its training."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent / "weights" / "detector.onnx"
"""The detector that ships with the package, its card in the same folder; it may be missing."""
