# SPDX-License-Identifier: AGPL-3.0-only
"""Pack the training data, run the GPU tests and train all methods within minutes of a fast GPU.

    python training/on_gpu.py data=../shared/data                      # all of it, on this machine
    python training/on_gpu.py do=pack data=../shared/data              # here: writes gpu_pack/
    python training/on_gpu.py do=test,train output=trained             # there, beside gpu_pack/
    python training/on_gpu.py output=trained minutes=30 methods=cfi recipe=paper

Each method is trained for as many steps as fit into its share of the time, found by a short trial;
the weights lie in `<output>/weights` and all that resuming needs in `<output>/<method>`. Repeat the
command to go on where it was cut off: what is done stays. Settings are `key=value`:

    do        stages, comma separated: pack, test, train
    data      folder of sets to pack (see `train.py`). pack: folder to pack into and to train from
    limit     pairs of each set to pack, evenly spaced (0: all; else every eighth of them validates)
    methods   comma separated; '' for all. minutes: for tests and training together
    tests     what pytest is given, '' for no tests
    output    folder of the results; `on_gpu.json` says what ran on what, and for how long

All others go to `train.py`; crop=256 batch_size=16 unless said otherwise. With max_steps there is
no trial.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import torch
import train_all
from tqdm import tqdm

from fusion_models import list_models
from fusion_models.files import write_text
from fusion_models.pairs import find_sets, list_pairs, read_luminance, spaced
from fusion_models.settings import ConfigError, merge_settings, show_help, split_arguments
from fusion_models.trainer import Trainer, load_config

HERE = Path(__file__).resolve().parent
STAGES = ("pack", "test", "train")
DEFAULTS = {
    "do": ",".join(STAGES), "data": "auto", "pack": "gpu_pack", "limit": 0, "methods": "",
    "minutes": 10.0, "tests": "-m gpu test", "output": "gpu_output",
}  # fmt: skip
USUAL = ("crop=256", "batch_size=16")
TRIAL_STEPS = 30
RESERVE = 0.15
"""Share of a method's time that is left for its start, its validation and its export."""
NO_TESTS = 5
"""Exit status of pytest that has found nothing to run."""


def unused_sets(methods: list[str], passed: list[str]) -> set[str]:
    """Names of the sets from which no recipe of these methods draws."""
    mixes = [load_config([f"method={m}", *passed], train_config()).mix for m in methods]
    named = {name for mix in mixes for name in mix}
    return {name for name in named if not any(mix.get(name, 1.0) > 0 for mix in mixes)}


def train_config() -> Path:
    """Folder of the recipes."""
    return HERE.parent / "config" / "training"


def pack(data: str, folder: Path, unused: set[str], limit: int) -> dict[str, int]:
    """Copy the `train` splits as luminances, without loss; number of pairs by name of the set.

    A network sees luminances alone, so a third of the visible images' bytes is enough. Pairs that
    are there already stay.
    """
    packed = {}
    for pair_set in find_sets(data, split="train"):
        name = pair_set.name.removesuffix("/train")
        if name in unused:
            continue
        # With the pairs that validate: the split is made again, and the same, where it trains.
        whole = list_pairs(pair_set.root)
        files = [whole[i] for i in spaced(len(whole), limit)]
        for ir_file, vi_file in tqdm(files, name, leave=False, disable=None):
            for kind, file in (("ir", ir_file), ("vi", vi_file)):
                target = folder / name / "train" / kind / f"{ir_file.stem}.png"
                if target.is_file():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_suffix(".partial.png")
                image = read_luminance(file, thermal=kind == "ir")
                if not cv2.imwrite(str(partial), image):
                    raise OSError(
                        f"cannot write {partial}: is there space, and the right to write?"
                    )
                partial.replace(target)
            label = pair_set.root / "labels" / f"{ir_file.stem}.png"
            if label.is_file():
                copy = folder / name / "train" / "labels" / label.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(label.read_bytes())
        packed[name] = len(files)
    return packed


def run_tests(arguments: str, output: Path) -> dict:
    """Run pytest; its exit status and last line. All it says goes to `<output>/tests.txt`."""
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", *arguments.split()],
        cwd=HERE.parent, capture_output=True, text=True,
    )  # fmt: skip
    (output / "tests.txt").write_text(result.stdout + result.stderr)
    last = (result.stdout.strip().splitlines() or [""])[-1]
    return {
        "status": result.returncode, "said": last,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def steps_within(method: str, seconds: float, settings: list[str], output: Path) -> int:
    """Steps of a method that fit into some seconds, by a trial on this machine."""
    folder = output / "trial" / method
    arguments = [f"method={method}", f"output={folder}", "validation=", *settings]
    trainer = Trainer(load_config([*arguments, f"max_steps={TRIAL_STEPS}"], train_config()))
    steps = []

    def timed(update=trainer._update_average) -> None:
        update()
        if trainer.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        steps.append(time.monotonic())

    trainer._update_average = timed
    trainer.fit()
    # The first steps choose algorithms and fill caches.
    each = (steps[-1] - steps[len(steps) // 2]) / max(1, len(steps) - 1 - len(steps) // 2)
    return max(1, int(seconds * (1.0 - RESERVE) / each))


def train(methods: list[str], deadline: float, settings: list[str], output: Path) -> dict:
    """Train and export the methods one after another until `deadline` (of time.monotonic)."""
    done = {}
    for number, method in enumerate(methods):
        started = time.monotonic()
        share = max(1.0, (deadline - started) / (len(methods) - number))
        given = [f"methods={method}", f"output={output}", "evaluate=false", *settings]
        chosen = any(setting.startswith("max_steps=") for setting in settings)
        # A run that was begun goes on with the steps that it has.
        if not chosen and not (output / method / "config.yaml").is_file():
            steps = steps_within(method, share, settings, output)
            given += [f"max_steps={steps}", f"save_every={max(1, steps // 10)}"]
            given += [f"validate_every={max(1, steps // 2)}", f"warmup={min(100, steps // 10)}"]
        status = train_all.main(given)
        record = output / method / "run.json"
        run = json.loads(record.read_text()) if record.is_file() else {}
        done[method] = {
            "status": int(status), "seconds": round(time.monotonic() - started, 1),
            **{key: run.get(key) for key in ("steps", "device", "precision", "loss_last")},
        }  # fmt: skip
    return done


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    started = time.monotonic()
    own, passed = split_arguments(arguments, DEFAULTS)
    summary: dict = {}
    try:
        config = merge_settings(DEFAULTS, own)
        stages = config.do.split(",")
        if unknown := sorted(set(stages) - set(STAGES)):
            raise ConfigError(f"do={config.do}: {unknown[0]} is none of {', '.join(STAGES)}")
        methods = config.methods.split(",") if config.methods else list_models()
        unused = unused_sets(methods, passed)
        output, folder = Path(config.output), Path(config.pack)
        output.mkdir(parents=True, exist_ok=True)
        if "pack" in stages:
            summary["pack"] = pack(config.data, folder, unused, config.limit)
            started = time.monotonic()  # packing is not the GPU's time
        elif not folder.is_dir() and "train" in stages:
            raise ConfigError(f"pack={folder} is not there: run do=pack first, or copy it here")
        if "test" in stages and config.tests:
            summary["test"] = run_tests(config.tests, output)
            print(f"tests: {summary['test']['said']}", flush=True)
        if "train" in stages:
            deadline = started + 60.0 * config.minutes
            settings = [*USUAL, f"data={folder}", *passed]
            summary["train"] = train(methods, deadline, settings, output)
    except (ValueError, OSError) as error:
        print(f"on_gpu.py: {error}", file=sys.stderr)
        return 2
    summary["minutes"] = round((time.monotonic() - started) / 60, 2)
    write_text(output / "on_gpu.json", json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    failed = [m for m, run in summary.get("train", {}).items() if run["status"]]
    if summary.get("test", {}).get("status", 0) not in (0, NO_TESTS):
        failed.append(f"tests (see {output / 'tests.txt'})")
    if failed:
        print(f"on_gpu.py: failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
