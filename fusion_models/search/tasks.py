# SPDX-License-Identifier: AGPL-3.0-only
"""Perception tasks that search a loss: detection by a YOLO, segmentation by a SegFormer.

Each gives its own training loss of `[B, 3, H, W]` RGB in [0, 1], differentiable by the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fusion_models.search.data import TaskBatch

SEGMENTATION_CLASSES = 9
"""Of MFNet and MSRS: background, car, person, bike, curve, car stop, guardrail, cone, bump."""
IGNORED = 255


class DetectionTask(nn.Module):
    """A YOLO of ultralytics and its loss for boxes, classes and their distributions.

    Args:
        weights: `.pt` to begin with; classes that it knows by name keep their weights.
        classes: names of the labels' classes.
        trained: first layer that is trained; those before it stay (the head is layer 22).
    """

    def __init__(self, weights: Path, classes: Sequence[str], trained: int = 22):
        super().__init__()
        from fusion_models.detection.network import DetectorLoss, keep_classes, load_yolo

        model = keep_classes(load_yolo(weights), classes)
        for number, layer in enumerate(model.model):
            layer.requires_grad_(number >= trained)
        model.model[-1].dfl.requires_grad_(False)
        self.loss = DetectorLoss(model)

    def forward(self, images: Tensor, batch: TaskBatch) -> Tensor:
        """Mean loss of a crop."""
        targets = {"batch_idx": batch.image, "cls": batch.classes, "bboxes": batch.boxes}
        return self.loss(images, targets)


class SegmentationTask(nn.Module):
    """SegFormer (mit-b0) of transformers and its cross-entropy.

    Args:
        weights: folder of a model of transformers, or '' for random ones.
        classes: number of them.
    """

    def __init__(self, weights: str = "", classes: int = SEGMENTATION_CLASSES):
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        settings = {"num_labels": classes, "semantic_loss_ignore_index": IGNORED}
        if weights:
            self.model = SegformerForSemanticSegmentation.from_pretrained(
                weights, ignore_mismatched_sizes=True, local_files_only=True, **settings
            )
        else:
            self.model = SegformerForSemanticSegmentation(SegformerConfig(**settings))
        self.model.eval()  # no dropout: two passes over one batch must agree
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> SegmentationTask:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor, batch: TaskBatch) -> Tensor:
        """Mean cross-entropy of a pixel whose class is known."""
        return self.model((images - self.mean) / self.std, labels=batch.class_map).loss


TASKS = ("detection", "segmentation")
