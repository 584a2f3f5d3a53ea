"""The confounder dictionary of baffm: typical scenes, one vector a scene, for each modality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHIPPED = Path(__file__).parent / "dictionary.npz"


@dataclass(frozen=True)
class SceneDictionary:
    """Cluster means of scene features.

    Attributes:
        ir, vi: entries z_i of either modality, `[N, D]` float32, zero mean and unit variance overall.
        frequency_ir, frequency_vi: share of the training images in each cluster, `[N]`, sums to 1.
        backbone: what computed the features.
    """

    ir: Tensor
    vi: Tensor
    frequency_ir: Tensor
    frequency_vi: Tensor
    backbone: str

    @classmethod
    def load(cls, path: Path = SHIPPED) -> SceneDictionary:
        """Reads a dictionary; FileNotFoundError says how to build one."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path}: no scene dictionary; build one with `python training/build_dictionary.py`"
            )
        with np.load(path) as data:
            tensors = [torch.from_numpy(data[k].astype(np.float32)) for k in
                       ("ir", "vi", "frequency_ir", "frequency_vi")]
            return cls(*tensors, str(data["backbone"]))

    def save(self, path: Path) -> None:
        np.savez_compressed(
            path, ir=self.ir.numpy(), vi=self.vi.numpy(), frequency_ir=self.frequency_ir.numpy(),
            frequency_vi=self.frequency_vi.numpy(), backbone=self.backbone,
        )


def cluster_scenes(features: np.ndarray, entries: int, components: int, seed: int = 0):
    """PCA, then k-means++: cluster means, frequencies and the label of each image.

    Args:
        features: `[M, K]`, one row an image. entries: N. components: dimensions kept by the PCA.
    Returns:
        `(means [N, D], frequency [N], labels [M])`, D = min(components, M, K); the means are scaled
        by one number so that the reduced features have unit variance.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    if len(features) < entries:
        raise ValueError(
            f"{len(features)} images cannot fill {entries} clusters; give more data or entries=<less>"
        )
    reduced = PCA(min(components, *features.shape), random_state=seed).fit_transform(features)
    reduced /= reduced.std() + 1e-8
    means = KMeans(entries, init="k-means++", n_init=4, random_state=seed).fit(reduced)
    frequency = np.bincount(means.labels_, minlength=entries) / len(features)
    return means.cluster_centers_.astype(np.float32), frequency.astype(np.float32), means.labels_
