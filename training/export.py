# SPDX-License-Identifier: AGPL-3.0-only
"""Exports a trained network to the ONNX file the runtime loads.

    python training/export.py method=baffm run=runs/baffm  # a training run -> fusion_models/weights
    python training/export.py method=baffm                 # the committed parameters again
    python training/export.py method=baffm run=runs/baffm output=/tmp/my_weights

Settings are `key=value`:

    method  to export
    run     folder of a training run; '' for the committed parameters
    output  folder; default: that of the package's weights

Writes `<method>.safetensors`, `<method>.json` (the model card), `<method>.onnx` and
`<method>.fp16.onnx`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from fusion_models import WEIGHTS_DIR, create_model, model_card
from fusion_models.checksums import KEY, checksums
from fusion_models.deploy.export import ExportInfo, export_fp16, export_onnx
from fusion_models.registry import count_parameters
from fusion_models.settings import merge_settings, show_help
from fusion_models.trainer import source_commit

DEFAULTS = {"method": "baffm", "run": "", "output": str(WEIGHTS_DIR)}


def without_places(training: dict) -> None:
    """Takes the training machine's folders out of a run's record; names of the sets stay."""
    training["data"] = {"/".join(Path(k).parts[-2:]): n for k, n in training["data"].items()}
    for key in ("data", "output", "init", "validation"):
        training["config"].pop(key, None)
    if loss := training["config"].get("loss"):
        training["config"]["loss"] = Path(loss).name
    if "config" in (training.get("previous") or {}):
        without_places(training["previous"])


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        card = model_card(config.method)
    except ValueError as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    folder = Path(config.run) if config.run else card.checkpoint.parent
    weights = folder / ("model.safetensors" if config.run else card.checkpoint.name)
    record = folder / ("run.json" if config.run else f"{card.name}.json")
    for path in (weights, record):
        if not path.is_file():
            print(
                f"export.py: {path} is missing; train with `python training/train.py "
                f"method={card.name}` and give run=<its output folder>",
                file=sys.stderr,
            )
            return 2
    run = json.loads(record.read_text())
    training = run.get("training", run)
    model = create_model(card.name, **training["config"]["model"])
    model.load_state_dict(load_file(weights))
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    metrics = run.get("metrics", {}) if not config.run else {}
    without_places(training)
    info = ExportInfo(card.name, training, metrics, source_commit(), card.licence)
    path = export_onnx(model, output / f"{card.name}.onnx", info)
    half = export_fp16(path)
    parameters = output / f"{card.name}.safetensors"
    save_file(model.state_dict(), parameters)
    parameters.chmod(0o644)  # safetensors leaves it readable for the owner only
    summary = {
        "method": card.name,
        "title": card.title,
        "paper": card.paper,
        "licence": card.licence,
        "parameters": count_parameters(model),
        "training": training,
        "metrics": metrics,
        KEY: checksums((path, half, parameters)),
    }
    (output / f"{card.name}.json").write_text(json.dumps(summary, indent=2) + "\n")
    for file in (path, half):
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB, {summary['parameters']} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
