# SPDX-License-Identifier: AGPL-3.0-only
"""A method of one's own: one folder with one decorator trains, exports and runs in the runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch: pip install .[train]")
for module in ("kornia", "lightning_fabric", "onnxscript"):
    pytest.importorskip(module, reason=f"training needs {module}: pip install .[train]")

from support_training import tiny, write_pairs  # noqa: E402

import fusion_models  # noqa: E402
from fusion_models import (  # noqa: E402
    create_model,
    list_models,
    registry,
)
from fusion_models.deploy.export import ExportInfo, export_onnx  # noqa: E402
from fusion_models.trainer import Trainer  # noqa: E402
from fusion_ros.frame.fuser import Fuser  # noqa: E402
from fusion_ros.inference import load_engine  # noqa: E402
from fusion_ros.inference.models import model_path  # noqa: E402

NETWORK = '''
"""A method of one's own: the mean plus a learned correction."""

import torch
from torch import nn

from fusion_models.registry import ModelCard, register_model


class MineObjective(nn.Module):
    def forward(self, model, batch):
        return {"max": (model(batch.ir, batch.vi) - torch.maximum(batch.ir, batch.vi)).abs().mean()}


@register_model(ModelCard("mine", "a correction of the mean", "none"), MineObjective)
class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.correct = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, ir, vi):
        return ((ir + vi) / 2 + self.correct(torch.cat((ir, vi), 1))).clamp(0, 1)
'''


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    folder = tmp_path / "more_models" / "mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from fusion_models.mine.network import Mine\n")
    (folder / "network.py").write_text(NETWORK)
    path = [*fusion_models.__path__, str(folder.parent)]
    monkeypatch.setattr(fusion_models, "__path__", path)
    yield "mine"
    registry._METHODS.pop("mine", None)
    for name in [n for n in sys.modules if n.startswith("fusion_models.mine")]:
        del sys.modules[name]


def test_a_fifth_method_trains_exports_and_runs_without_runtime_code(own_method, tmp_path):
    assert own_method in list_models()
    pairs = write_pairs(tmp_path / "pairs")
    Trainer(tiny(pairs, tmp_path, method=own_method, max_steps=6)).fit()
    model = create_model(own_method)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    onnx = export_onnx(model, tmp_path / "mine.onnx", ExportInfo(own_method))
    engine = load_engine(model_path(str(onnx)), "onnxruntime_cpu")
    assert engine.metadata["method"] == own_method
    rng = np.random.default_rng(0)
    thermal = rng.integers(0, 256, (48, 64), np.uint8)
    visible = rng.integers(0, 256, (48, 64, 3), np.uint8)
    fused = Fuser(engine).fuse(thermal, visible)
    assert fused.shape == (48, 64, 3) and fused.dtype == np.uint8


def test_the_runtime_imports_no_torch():
    code = (
        "import sys, fusion_ros.frame.fuser, fusion_ros.frame.detector, fusion_ros.frame.pairing,"
        "fusion_ros.frame.thermal, fusion_ros.frame.registration, fusion_ros.inference.models,"
        "fusion_ros.inference, fusion_models;"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
