# SPDX-License-Identifier: AGPL-3.0-only
"""A YOLO of ultralytics with our classes: cut out of a larger one, trained on, and exported.

Needs ultralytics, which stays offline here: nothing is downloaded or installed on the way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fusion_models.detection.dataset import match_classes

os.environ.setdefault("YOLO_AUTOINSTALL", "0")
os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_VERBOSE", "false")

from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

METADATA = ("stride", "task", "batch", "imgsz", "names")
"""What ultralytics' own export writes into an ONNX file, as far as the runtime reads it."""


def load_yolo(path: Path) -> DetectionModel:
    """The network of a `.pt` file, in float32; FileNotFoundError or ValueError if it is none."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give a .pt file of ultralytics")
    model = YOLO(str(path), task="detect").model
    if not isinstance(model, DetectionModel):
        raise ValueError(f"{path} holds a {type(model).__name__}; expected a detection model")
    model.__class__ = DetectionModel  # in the precision of its weights
    return model.float()


def keep_classes(model: DetectionModel, classes: Sequence[str]) -> DetectionModel:
    """Give a detection model other classes, in place.

    Scores of a class that the model has by name keep their weights, so that it finds people and
    cars at once. Those of another start as the mean of all.
    """
    head = model.model[-1]
    known = [model.names[i] for i in sorted(model.names)]
    if known == list(classes):
        return model
    table, _ = match_classes(classes, known)
    for branch in head.cv3:
        old = branch[-1]
        new = nn.Conv2d(old.in_channels, len(classes), 1)
        with torch.no_grad():
            for i, source in enumerate(table):
                rows = slice(None) if source < 0 else slice(source, source + 1)
                new.weight[i] = old.weight[rows].mean(0)
                new.bias[i] = old.bias[rows].mean(0)
        branch[-1] = new.to(old.weight.device, old.weight.dtype)
    head.nc, head.no = len(classes), len(classes) + 4 * head.reg_max
    model.nc, model.names = len(classes), dict(enumerate(classes))
    model.yaml = {**model.yaml, "nc": len(classes)}
    model.criterion = None
    return model


class DetectorLoss(nn.Module):
    """A detector that gives its training loss, differentiable by the image: ultralytics' own.

    Args:
        model: of `load_yolo`; its weights stay trainable.
    """

    def __init__(self, model: DetectionModel):
        super().__init__()
        model.args = get_cfg(overrides={"task": "detect"})  # gains of the terms of the loss
        model.criterion = None
        self.model = model

    def forward(self, images: torch.Tensor, targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss of an image.

        Args:
            images: `[B, 3, H, W]` RGB in [0, 1], H and W multiples of 32.
            targets: `batch_idx` `[N]`, `cls` `[N]` and `bboxes` `[N, 4]` (centre and size as
                shares of the image) of all N objects of the batch.
        """
        self.model.train()  # the head gives its raw output; there are no batch norms to move
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        predictions = _in_float32(self.model(images))
        # A loss of boxes in bf16 would know their edges to a pixel at best.
        with torch.autocast(images.device.type, enabled=False):
            loss, _ = self.model.loss({"img": images.float(), **targets}, predictions)
        return loss.sum() / len(images)


def _in_float32(predictions: dict) -> dict:
    """Raw predictions of a model in training, as its loss takes them."""
    floats = {name: predictions[name].float() for name in ("boxes", "scores")}
    return {**predictions, **floats, "feats": [plane.float() for plane in predictions["feats"]]}


class Bf16Model(DetectionModel):
    """A detection model that trains in bf16 on a processor, which ultralytics leaves to GPUs."""

    def _predict_once(self, x, *args, **kwargs):
        if not self.training:
            return super()._predict_once(x, *args, **kwargs)
        with torch.autocast(x.device.type, torch.bfloat16):
            result = super()._predict_once(x, *args, **kwargs)
        return _in_float32(result)


class FusedTrainer(DetectionTrainer):
    """ultralytics' trainer, except that the head keeps the weights of classes that it has already.

    Args:
        bf16: whether the network, not its loss, computes in bf16.
        **rest: of ultralytics' trainer.
    """

    def __init__(self, bf16: bool = False, **rest):
        self.bf16 = bf16
        super().__init__(**rest)

    def get_model(self, cfg=None, weights=None, verbose=True) -> DetectionModel:
        names = [self.data["names"][i] for i in sorted(self.data["names"])]
        model = keep_classes(weights.float(), names)
        model.__class__ = Bf16Model if self.bf16 else DetectionModel
        return model

    def plot_training_labels(self) -> None:
        """Leave the plots of label statistics out."""


def export_detector(model: DetectionModel, path: Path, width: int, height: int) -> Path:
    """Write a detector as ONNX whose weights are stored in float16.

    It computes in float32: each stored weight is converted once, when the file is loaded. The file
    is half as large and as fast as before.

    Args:
        width, height: of the input in pixels, multiples of 32.
    Returns:
        `path`, which is whole or not there at all.
    """
    import onnx

    if width % 32 or height % 32:
        raise ValueError(f"{width}x{height}: sides must be multiples of 32")
    model = model.eval().float()
    head = model.model[-1]
    head.export, head.format = True, "onnx"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with torch.no_grad():
            torch.onnx.export(
                model,
                (torch.zeros(1, 3, height, width),),
                str(partial),
                input_names=["images"],
                output_names=["output0"],
                opset_version=17,
                dynamo=False,
            )
    finally:
        head.export = False
    exported = _store_half(onnx.load(str(partial)))
    entries = {
        "names": str({int(k): v for k, v in model.names.items()}),
        "imgsz": str([height, width]),
        "stride": str(int(model.stride.max())),
        "task": "detect",
        "batch": "1",
        "license": "AGPL-3.0-only",
    }
    del exported.metadata_props[:]
    onnx.helper.set_model_props(exported, entries)
    onnx.checker.check_model(exported)
    onnx.save(exported, str(partial))
    os.replace(partial, path)
    return path


def _store_half(model):
    """Copy of an ONNX model with its float32 weights in float16, each behind a Cast."""
    from onnx import TensorProto, helper, numpy_helper

    casts, kept = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        small = values.dtype == np.float32 and values.size >= 16
        if small and np.abs(values).max() < np.finfo(np.float16).max:
            stored = numpy_helper.from_array(values.astype(np.float16), tensor.name + "_half")
            casts.append(
                helper.make_node(
                    "Cast",
                    [stored.name],
                    [tensor.name],
                    tensor.name + "_cast",
                    to=TensorProto.FLOAT,
                )
            )
            kept.append(stored)
        else:
            kept.append(tensor)
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    return model
