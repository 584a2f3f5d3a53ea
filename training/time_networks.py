# SPDX-License-Identifier: AGPL-3.0-only
"""Times the networks alone: as ONNX, as folded and as plain PyTorch.

    python training/time_networks.py                          # all methods, 640x480, two threads
    python training/time_networks.py methods=cfi,caf repeats=30 output=times.json
    python training/time_networks.py weights=/tmp/my_weights profile=true

(`fusion_ros benchmark` times the whole node instead.) Settings as `key=value`:
    methods        names, comma separated; default all
    width, height  of the images in pixels
    threads        of onnxruntime and PyTorch
    repeats        timed runs of each form
    weights        folder of `<method>.onnx` and `<method>.safetensors`
    profile        times by operator too
    output         JSON file, '' for none

Prints a table of medians. The forms run in turn, so their ratios hold on a busy machine too. With a
CUDA GPU the table also has PyTorch as a CUDA graph in float16 and onnxruntime's CUDA provider, with
upload and download apart, and the time of a whole image pair on each GPU backend, converted by the
CPU and by the network's graph.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from safetensors.torch import load_file

from fusion_models import WEIGHTS_DIR, create_model, list_models
from fusion_models.contract import MULTIPLE, SMALLEST, reference_pair
from fusion_models.deploy.speed import (
    PAUSE,
    Stages,
    Timing,
    count_work,
    interleaved,
    onnxruntime_cuda,
    operator_shares,
    torch_cuda,
    torch_forms,
)
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_models.trainer import source_commit
from fusion_ros.commands.benchmark.machine import cpu_name
from fusion_ros.frame.fuser import Fuser
from fusion_ros.inference import PRECISIONS, EngineError, cuda, load_engine

DEFAULTS = {
    "methods": "",
    "width": 640,
    "height": 480,
    "threads": 2,
    "repeats": 15,
    "weights": str(WEIGHTS_DIR),
    "profile": False,
    "output": "",
}


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        methods = [m for m in config.methods.split(",") if m] or list_models()
        check(config, methods)
    except ConfigError as error:
        print(f"time_networks.py: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(config.threads)
    record = {
        "host": host(),
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "onnx", "numpy")},
        "commit": source_commit(),
        "settings": {k: config[k] for k in ("width", "height", "threads", "repeats")},
        "methods": {method: measure(method, config) for method in methods},
    }
    print(table(record["methods"]))
    if config.output:
        Path(config.output).write_text(json.dumps(record, indent=2) + "\n")
        print(f"wrote {config.output}")
    return 0


def check(config, methods: list[str]) -> None:
    """Raises ConfigError for sizes that the networks do not take and for files that are missing."""
    sides = config.width, config.height
    if any(side % MULTIPLE for side in sides) or min(sides) < SMALLEST:
        raise ConfigError(f"width and height must be multiples of {MULTIPLE}, at least {SMALLEST}")
    if config.threads < 1 or config.repeats < 1:
        raise ConfigError("threads and repeats must be at least 1")
    for method in methods:
        if method not in list_models():
            raise ConfigError(f"unknown method '{method}': choose from {', '.join(list_models())}")
        for suffix in ("onnx", "safetensors"):
            path = Path(config.weights) / f"{method}.{suffix}"
            if not path.is_file():
                raise ConfigError(f"{path} is missing; `python training/export.py` writes it")


def measure(method: str, config) -> dict:
    """All figures of one method, ready for JSON."""
    path = Path(config.weights) / f"{method}.onnx"
    size = (config.height, config.width)
    pair = reference_pair(*size)
    model = create_model(method)
    model.load_state_dict(load_file(path.with_suffix(".safetensors")))
    engine = load_engine(path, "onnxruntime_cpu", threads=config.threads)
    feeds = {"ir": pair[0], "vi": pair[1]}
    forms = {"onnx": lambda: engine.run(feeds), **torch_forms(model, pair)}
    timings = interleaved(forms, config.repeats, pause=PAUSE)
    figures = {
        "onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "engine": engine.description,
        "work": asdict(count_work(path, size)),
        "cpu": {name: asdict(timing) for name, timing in timings.items()},
        "eager_over_onnx": round(timings["eager"].median_ms / timings["onnx"].median_ms, 2),
    }
    engine.close()
    if config.profile:
        figures["operators_ms"] = operator_shares(path, pair, config.threads)
    if torch.cuda.is_available():
        figures["cuda"] = {n: asdict(s) for n, s in on_cuda(model, path, pair, config).items()}
    figures["images"] = {n: asdict(t) for n, t in on_images(path, config).items()}
    return figures


def on_cuda(model: torch.nn.Module, path: Path, pair, config) -> dict[str, Stages]:
    stages = {"torch_graph_fp16": torch_cuda(model, pair, config.repeats)}
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        for name, file in (("fp32", path), ("fp16", path.with_suffix(".fp16.onnx"))):
            if not file.is_file():
                continue
            try:
                stages[f"onnxruntime_{name}"] = onnxruntime_cuda(file, pair, config.repeats)
            except Exception as error:  # onnxruntime's share no base class
                print(f"time_networks.py: no onnxruntime with CUDA for {file.name}: {error}")
    return stages


def on_images(path: Path, config) -> dict[str, Timing]:
    """Camera images to the fused image, by each GPU backend that runs and by what converts."""
    if cuda.driver() is None:
        return {}
    rng = np.random.default_rng(0)
    thermal = rng.integers(0, 256, (config.height, config.width), np.uint8)
    visible = rng.integers(0, 256, (config.height, config.width, 3), np.uint8)
    out = np.empty_like(visible)
    forms = {}
    for backend, precision in product(("tensorrt", "onnxruntime_cuda"), PRECISIONS):
        for converter in ("gpu", "cpu"):
            try:
                engine = load_engine(path, backend, precision=precision)
                fuser = Fuser(engine, convert_on_gpu=converter == "gpu")
                fuser.warmup((config.width, config.height))
            except EngineError as error:
                print(f"time_networks.py: no {backend} in {precision}: {error}")
                break
            if fuser.converts_on_gpu == (converter == "gpu"):
                name = f"{backend}_{engine.precision}_converted_by_{converter}"
                forms[name] = partial(fuser.fuse, thermal, visible, out)
    return interleaved(forms, config.repeats)


def host() -> dict:
    """What the figures were measured on, and how busy it was."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def table(methods: dict[str, dict]) -> str:
    """The CPU's and, where there is one, the GPU's figures as text."""
    lines = [
        f"{'method':12}{'GMAC':>7}{'GB moved':>10}{'onnx ms':>10}{'torch ms':>10}{'eager ms':>10}"
        f"{'eager/onnx':>12}"
    ]
    for name, m in methods.items():
        medians = [m["cpu"][form]["median_ms"] for form in ("onnx", "torch", "eager")]
        times = "".join(f"{ms:10.1f}" for ms in medians)
        work = f"{m['work']['macs'] / 1e9:7.1f}{m['work']['bytes_moved'] / 1e9:10.2f}"
        lines.append(f"{name:12}{work}{times}{m['eager_over_onnx']:12.1f}")
    for name, m in methods.items():
        for form, stages in m.get("cuda", {}).items():
            times = ", ".join(f"{stage} {t['median_ms']:.3f}" for stage, t in stages.items())
            lines.append(f"{name:12}{form}: {times} ms")
        for form, time in m["images"].items():
            lines.append(f"{name:12}images, {form}: {time['median_ms']:.3f} ms")
        for operator, ms in m.get("operators_ms", {}).items():
            if ms >= 0.5:
                lines.append(f"{name:12}{operator:24}{ms:8.1f} ms")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
