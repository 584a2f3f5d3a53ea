# SPDX-License-Identifier: AGPL-3.0-only
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
        ir, vi: entries z_i of either modality, `[N, D]` float32, zero mean and unit variance
        overall.
        frequency_ir, frequency_vi: share of each cluster in what training draws, `[N]`, sums to 1.
        backbone: what computed the features.
        projection_ir, projection_vi: `[K + 1, D]`, what brings backbone features `[M, K]` with a
            column of ones into the space of the entries; None in dictionaries without it.
    """

    ir: Tensor
    vi: Tensor
    frequency_ir: Tensor
    frequency_vi: Tensor
    backbone: str
    projection_ir: np.ndarray | None = None
    projection_vi: np.ndarray | None = None

    @classmethod
    def load(cls, path: Path = SHIPPED) -> SceneDictionary:
        """Reads a dictionary; FileNotFoundError says how to build one."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path}: no scene dictionary; build one with `python training/build_dictionary.py`"
            )
        with np.load(path) as data:
            tensors = [
                torch.from_numpy(data[k].astype(np.float32))
                for k in ("ir", "vi", "frequency_ir", "frequency_vi")
            ]
            projections = [data.get(f"projection_{modality}") for modality in ("ir", "vi")]
            return cls(*tensors, str(data["backbone"]), *projections)

    def save(self, path: Path) -> None:
        projections = {"projection_ir": self.projection_ir, "projection_vi": self.projection_vi}
        np.savez_compressed(
            path,
            ir=self.ir.numpy(),
            vi=self.vi.numpy(),
            frequency_ir=self.frequency_ir.numpy(),
            frequency_vi=self.frequency_vi.numpy(),
            backbone=self.backbone,
            **{name: p.astype(np.float16) for name, p in projections.items() if p is not None},
        )

    def scenes(self, features: np.ndarray, modality: str) -> np.ndarray:
        """The entry nearest to each image, `[M]`, by backbone features `[M, K]`.

        Raises:
            ValueError: the dictionary was saved without projections, or for another backbone.
        """
        projection = self.projection_ir if modality == "ir" else self.projection_vi
        if projection is None or len(projection) != features.shape[1] + 1:
            raise ValueError(
                f"the dictionary cannot place features of length {features.shape[1]}: build it "
                "again with `python training/build_dictionary.py`"
            )
        ones = np.ones((len(features), 1), np.float32)
        places = np.hstack((features, ones)) @ projection.astype(np.float32)
        entries = (self.ir if modality == "ir" else self.vi).numpy()
        return np.square(places[:, None] - entries[None]).sum(-1).argmin(1)


@dataclass(frozen=True)
class SceneClusters:
    """What `cluster_scenes` finds.

    Attributes:
        means: `[N, D]`, scaled by one number so that the reduced features have unit variance.
        frequency: share of the (weighted) images in each cluster, `[N]`. labels: cluster of each
        image, `[M]`.
        projection: `[K + 1, D]`, from features and a column of ones to the space of the means.
    """

    means: np.ndarray
    frequency: np.ndarray
    labels: np.ndarray
    projection: np.ndarray


def cluster_scenes(
    features: np.ndarray,
    entries: int,
    components: int,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> SceneClusters:
    """PCA, then k-means++.

    Args:
        features: `[M, K]`, one row an image. entries: N. components: dimensions D kept by the PCA,
            at most min(M, K). With D >= N the network's projections can give the entries any
            logits and any contexts, so that their content restricts nothing; take D well below N.
        weights: how often training draws each image, `[M]`, in any unit (None: equally often).
    Raises:
        ValueError: fewer images than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    if len(features) < entries:
        raise ValueError(
            f"{len(features)} images cannot fill {entries} clusters: "
            "give more data or entries=<less>"
        )
    weights = np.ones(len(features)) if weights is None else np.asarray(weights, float)
    share = weights / weights.sum()
    # scikit-learn's PCA takes no weights: fitted on rows drawn by their share, it needs none.
    drawn = np.random.default_rng(seed).choice(len(features), 4 * len(features), p=share)
    pca = PCA(min(components, *features.shape), random_state=seed).fit(features[drawn])
    reduced = pca.transform(features)
    scale = np.sqrt((share[:, None] * reduced**2).sum() / reduced.shape[1]) + 1e-8
    reduced /= scale
    means = KMeans(entries, init="k-means++", n_init=4, random_state=seed)
    means.fit(reduced, sample_weight=share * len(features))
    frequency = np.bincount(means.labels_, weights=share, minlength=entries)
    turn = pca.components_.T / scale
    projection = np.vstack((turn, -pca.mean_[None] @ turn))
    return SceneClusters(
        means.cluster_centers_.astype(np.float32),
        frequency.astype(np.float32),
        means.labels_,
        projection.astype(np.float32),
    )
