# SPDX-License-Identifier: AGPL-3.0-only
"""What several tests of training need: made-up pairs and the settings of a tiny run."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fusion_models.data import LoadedPairs
from fusion_models.pairs import PairSet, list_pairs
from fusion_models.trainer import TrainConfig


def write_pairs(root: Path, count=3, size=(48, 64)) -> Path:
    rng = np.random.default_rng(0)
    for name in ("ir", "vi"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            shape = size if name == "ir" else (*size, 3)
            image = cv2.GaussianBlur(rng.integers(0, 255, shape, np.uint8), (0, 0), 2)
            cv2.imwrite(str(root / name / f"{index:02d}.png"), image)
    return root


def load(root, limit=0, **settings) -> LoadedPairs:
    pairs = PairSet(root.name, root, tuple(list_pairs(root)))
    return LoadedPairs(pairs.limited(limit), **settings)


def tiny(pairs, tmp_path, **settings):
    return TrainConfig(**{
        "data": str(pairs), "validation": "", "output": str(tmp_path / "run"), "crop": 32,
        "batch_size": 2, "warmup": 2, "max_steps": 4, "threads": 1, "accelerator": "cpu",
        "save_every": 2, "precision": "32-true", **settings,
    })  # fmt: skip
