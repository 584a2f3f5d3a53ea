# SPDX-License-Identifier: AGPL-3.0-only
"""Network -> ONNX: the contract with the runtime, folded, checked and described by metadata."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import fusion_models
from fusion_models.contract import FP16_LIMIT, MULTIPLE, reference_pair
from fusion_models.deploy.half import to_half
from fusion_models.registry import deploy_form

OPSET = 18


class ExportError(RuntimeError):
    """The exported network differs from the trained one; the message says by how much."""


@dataclass
class ExportInfo:
    """Metadata written into the ONNX file.

    Attributes:
        method: registry name. training: data, schedule, seed and commit of the run.
        metrics: mean metrics by set and name. source_commit: of the exporting tree.
    """

    method: str
    training: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    source_commit: str = ""
    licence: str = "AGPL-3.0-only"

    def as_metadata(self) -> dict[str, str]:
        """Properties as the flat strings that ONNX stores."""
        return {
            "method": self.method,
            "version": fusion_models.__version__,
            "training_data": ", ".join(self.training.get("data", {})),
            "training": json.dumps(self.training),
            "metrics": json.dumps(self.metrics),
            "source_commit": self.source_commit,
            "licence": self.licence,
        }


class _Clamped(nn.Module):
    """A network with the input names and the output range of the contract."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ir: torch.Tensor, vi: torch.Tensor) -> torch.Tensor:
        return self.model(ir, vi).clamp(0.0, 1.0)


def export_onnx(model: nn.Module, path: Path, info: ExportInfo) -> Path:
    """Writes a network as one ONNX file with inputs `ir`, `vi` and output `fused`.

    All three are `[1, 1, H, W]` float32 in [0, 1]; H and W are free multiples of 8. What is
    constant at inference is folded (``deploy()`` of the network, then constant folding).

    Raises:
        ExportError: onnxruntime's output differs from torch's by more than 1e-4.
    """
    path = Path(path)
    model = model.to("cpu", torch.float32, memory_format=torch.contiguous_format)
    deployed = _Clamped(deploy_form(model)).eval()
    # Sizes as multiples of 8 of a free number: the strided levels then divide without a remainder.
    rows, columns = (torch.export.Dim(name, min=4, max=512) for name in ("rows", "columns"))
    free = {2: MULTIPLE * rows, 3: MULTIPLE * columns}
    example = torch.rand(2, 1, 1, 96, 128)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*axis name.*")
        program = torch.onnx.export(
            deployed,
            (example[0], example[1]),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=["ir", "vi"],
            output_names=["fused"],
            dynamic_shapes={"ir": free, "vi": free},
        )
    program.optimize()
    proto = program.model_proto
    for value, name in ((proto.graph.input, ("ir", "vi")), (proto.graph.output, ("fused",))):
        for tensor, wanted in zip(value, name):
            if tensor.name != wanted:
                raise ExportError(f"exported tensor '{tensor.name}' should be named '{wanted}'")
            dims = tensor.type.tensor_type.shape.dim
            dims[0].dim_value = dims[1].dim_value = 1
            dims[2].dim_param, dims[3].dim_param = "height", "width"
    del proto.metadata_props[:]
    for key, text in info.as_metadata().items():
        proto.metadata_props.add(key=key, value=text)
    for node in proto.graph.node:  # the exporter's notes carry paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(proto, path)
    worst = max(difference_to_onnx(model, path, size) for size in ((96, 128), (480, 640)))
    if worst > 1e-4:
        raise ExportError(f"{path}: differs from the trained network by {worst:.2e}, allowed 1e-4")
    return path


def export_fp16(path: Path) -> Path:
    """Writes `<name>.fp16.onnx` beside a float32 `<name>.onnx`; inputs and output stay float32.

    See :func:`fusion_models.deploy.half.to_half` for what computes in float16.

    Raises:
        ExportError: a parameter does not fit float16, or the mean absolute difference of the two
            files' outputs on a reference pair exceeds 2/255.
    """
    path = Path(path)
    try:
        proto = to_half(onnx.load(path))
    except ValueError as error:
        raise ExportError(f"{path}: {error}") from error
    proto.metadata_props.add(key="precision", value="fp16")
    onnx.checker.check_model(proto, full_check=True)
    half = path.with_suffix(".fp16.onnx")
    # onnxruntime's CPU kernels leave out the rounding between operators, ONNX's reference
    # implementation rounds every result: more than any GPU does, and slow, hence a small pair.
    pair = reference_pair(64, 96)
    with np.errstate(all="ignore"):
        got = ReferenceEvaluator(proto).run(None, {"ir": pair[0], "vi": pair[1]})[0]
    difference = float(np.abs(got - _run(path, pair)).mean())
    if not difference <= FP16_LIMIT:
        raise ExportError(
            f"{half}: differs from float32 by {difference * 255:.2f}/255 in the mean, allowed are "
            f"{FP16_LIMIT * 255:.0f}/255; ship float32 only"
        )
    onnx.save_model(proto, half)
    return half


def _run(path: Path, pair: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["fused"], {"ir": pair[0], "vi": pair[1]})[0]


@torch.inference_mode()
def difference_to_onnx(model: nn.Module, path: Path, size: tuple[int, int], seed: int = 0) -> float:
    """Mean absolute difference between a network and its ONNX file on reference images.

    Args:
        size: (H, W), multiples of 8.
    """
    pair = reference_pair(*size, seed)
    wanted = model.eval()(*torch.from_numpy(pair)).clamp(0, 1).numpy()
    return float(np.abs(_run(path, pair) - wanted).mean())
