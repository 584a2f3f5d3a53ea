"""Where built engines and other files that can be made again are kept."""

from __future__ import annotations

from pathlib import Path


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "fusion_ros"
