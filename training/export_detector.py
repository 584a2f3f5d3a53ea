# SPDX-License-Identifier: AGPL-3.0-only
"""Exports a YOLO of ultralytics to ONNX, where the node looks for its detector.

    python training/export_detector.py [model] [output]

`model` is a name that ultralytics downloads (yolov8n.pt, yolo11s.pt, ...) or a .pt of one's own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from fusion_ros.frame.detector import own_detector_path

SIZE = 640  # input height and width in pixels


def export(model: str, output: Path) -> Path:
    """Write `model` as ONNX to `output`, which is whole or not there at all.

    Raises FileNotFoundError without the weights, ConnectionError if they cannot be downloaded.
    """
    own = Path(model).expanduser()
    if own.parent != Path(".") and not own.is_file():
        raise FileNotFoundError(f"no weights at {own}")
    try:
        from ultralytics import YOLO
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"the Python module {error.name} is missing: pip install '.[detector]'"
        ) from error

    output.parent.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    # ultralytics downloads to the working folder and exports beside the weights.
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        weights = Path(folder, own.name)
        if own.is_file():
            shutil.copyfile(own, weights)
        try:
            os.chdir(folder)
            exported = YOLO(weights.name).export(format="onnx", imgsz=SIZE, simplify=False)
        finally:
            os.chdir(before)
        os.replace(Path(folder, exported), output)
    return output


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="yolov8n.pt")
    parser.add_argument("output", nargs="?", type=Path, default=own_detector_path())
    arguments = parser.parse_args()
    # ultralytics shall install nothing by itself: the extra `detector` has all that it needs.
    os.environ.setdefault("YOLO_AUTOINSTALL", "0")
    try:
        print("detector:", export(arguments.model, arguments.output.absolute()))
    except ConnectionError as error:
        return (
            f"{error}\nNo detector was made: {arguments.model} could not be downloaded. With"
            " weights from elsewhere: make detector DETECTOR_MODEL=<file.pt>, or hand an ONNX"
            " straight to the demo: make demo DETECTOR=<file.onnx>"
        )
    except FileNotFoundError as error:
        return f"{error}; give a .pt file, or the name of a model of ultralytics such as yolov8n.pt"
    return 0


if __name__ == "__main__":
    sys.exit(main())
