# SPDX-License-Identifier: AGPL-3.0-only
"""Trains one detector for each input with equal budget and measures each on its own input.

    python training/detector_per_input.py start=yolov8n.pt sets=msrs,msrs128 tests=msrs/test
    python training/detector_per_input.py start=yolov8n.pt epochs=10 "pictures=visible,mean .7"

This is how papers on fusion compare inputs: the detector may adapt to each, from the same weights,
by the same settings, on the same pairs. Checkpoints are chosen on validation pairs. Repeat the
command until all is done: inputs that are finished are not trained again, unless their network, the
folder of data or a setting is another now. Settings are `key=value`:

    start     .pt of ultralytics to begin with
    pictures  inputs without a network, comma separated; 'all' or 'none'
    methods   networks whose fused images are inputs, as in evaluate.py; 'none' for none
    tests     sets to measure with their split; default: all test sets with boxes
    repeats   bootstrap samples, as in evaluate_detection.py
    data, threads   as in evaluate.py
    output    folder of a folder for each input, and of detection.json, detection.md, misses

All others go to train_detector.py, the same for every input; here epochs=5, simulated=0 and
classes=person,bicycle,car unless you give others.
"""

from __future__ import annotations

from fusion_models.interrupt import end_quietly

if __name__ == "__main__":
    end_quietly()

import json
import sys
from pathlib import Path

from evaluate import load_networks
from evaluate_detection import file_name
from train_all import run

from fusion_models.detection.pictures import RULES, SOURCES, choose
from fusion_models.files import write_text
from fusion_models.pairs import find_sets
from fusion_models.settings import (
    ConfigError,
    check_counts,
    merge_settings,
    parse_arguments,
    show_help,
    split_arguments,
)
from fusion_ros.inference import EngineError

DEFAULTS = {
    "start": "", "methods": "shipped", "tests": "", "repeats": 1000, "data": "auto", "threads": 0,
    "pictures": "visible,infrared,average,maximum,mean .7,mean .8", "output": "runs/per_input",
}  # fmt: skip
BUDGET = {
    "epochs": "5", "simulated": "0", "fuse_size": "640", "classes": "person,bicycle,car",
}  # fmt: skip
"""Of each training, unless the arguments say otherwise."""


def train(name: str, made_of: dict, folder: Path, given: list[str]) -> bool:
    """Train the detector of an input, unless `folder` holds one made of the same already.

    Args:
        made_of: all that the detector depends on, as JSON.
        given: arguments for train_detector.py.
    Returns:
        Whether the detector is there.
    """
    record = folder / "made_of.json"
    text = json.dumps(made_of, indent=1) + "\n"
    if record.is_file() and record.read_text() == text and (folder / "detector.onnx").is_file():
        print(f"{name}: trained already, in {folder}")
        return True
    record.unlink(missing_ok=True)
    if run("train_detector.py", *given, f"output={folder}"):
        return False
    write_text(record, text)
    return True


def main(arguments: list[str]) -> int:
    """Train, measure and write the table; return 0, or 2 if an input could not be trained."""
    if show_help(arguments, __doc__):
        return 0
    own, passed = split_arguments(arguments, DEFAULTS)
    try:
        config = merge_settings(DEFAULTS, own)
        start = Path(config.start).expanduser()
        if not start.is_file():
            raise ConfigError(f"start={config.start}: no such file; give a .pt of ultralytics")
        check_counts(config, "threads", "repeats")
        if config.tests:  # before hours of training
            find_sets(config.data, str(config.tests).split(","))
        parse_arguments(passed)
        budget = {**BUDGET, **dict(one.split("=", 1) for one in passed)}
        plain = choose({**SOURCES, **RULES}, config.pictures)
        networks = {}
        if config.methods != "none":
            networks = load_networks(config.methods, "onnxruntime", "fp32", config.threads)
    except (ValueError, OSError, EngineError) as error:
        print(f"detector_per_input.py: {error}", file=sys.stderr)
        return 2
    output, both = Path(config.output), [f"data={config.data}", f"threads={config.threads}"]
    for name in (*plain, *networks):
        methods, digest = "none", ""
        if name in networks:
            methods = f"{name}:{networks[name].onnx}"
            digest = networks[name].as_dict()["sha256"]
        made_of = {
            "start": start.name, "data": str(config.data), "budget": budget, "input": name,
            "network": digest,
        }  # fmt: skip
        given = [f"start={start}", f"methods={methods}", f"pictures={name}", *both]
        given += [f"{key}={value}" for key, value in budget.items()]
        if not train(name, made_of, output / file_name(name), given):
            print(f"detector_per_input.py: {name} could not be trained", file=sys.stderr)
            return 2
    return run(
        "evaluate_detection.py", f"detector={output}/{{row}}/detector.onnx", *both,
        f"methods={config.methods}", f"pictures={','.join(plain) or 'none'}",
        f"sets={config.tests}", f"repeats={config.repeats}", f"output={output}",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
