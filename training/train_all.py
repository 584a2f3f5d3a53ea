# SPDX-License-Identifier: AGPL-3.0-only
"""Trains all methods one after another, exports each, and evaluates them side by side.

    python training/train_all.py data=../shared/data output=runs/full max_steps=20000 \
        batch_size=16 crop=256

Repeat the command until all is done: finished runs are not trained again and interrupted ones
continue. The weights go to `<output>/weights`, not into the package. Settings are `key=value`:

    methods   comma separated; default all
    sets      to evaluate, as in evaluate.py
    evaluate  false leaves the evaluation out
    output    folder of the runs; default runs/full

All others go to train.py unchanged.
"""

from __future__ import annotations

from fusion_models.interrupt import end_quietly

if __name__ == "__main__":
    end_quietly()

import json
import subprocess
import sys
import time
from pathlib import Path

from fusion_models import list_models
from fusion_models.settings import ConfigError, parse_arguments, show_help, split_arguments

HERE = Path(__file__).resolve().parent
SETTINGS = ("methods", "output", "sets", "evaluate")
"""Those that do not go to train.py."""


def run(script: str, *arguments: str) -> int:
    """Run a script of this folder with the same Python; return its exit status."""
    print(f"== {script} {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, str(HERE / script), *arguments]).returncode


def finished(folder: Path) -> bool:
    """Whether a run has reached the end of its schedule."""
    record = folder / "run.json"
    if not record.is_file():
        return False
    run_record = json.loads(record.read_text())
    return run_record["steps"] >= run_record["config"]["max_steps"]


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    own, passed = split_arguments(arguments, SETTINGS)
    try:
        given = parse_arguments(own)
        methods = given.get("methods", "") or ",".join(list_models())
        unknown = sorted(set(methods.split(",")) - set(list_models()))
        if unknown:
            raise ConfigError(
                f"unknown methods {', '.join(unknown)}: choose from {', '.join(list_models())}"
            )
    except ConfigError as error:
        print(f"train_all.py: {error}", file=sys.stderr)
        return 2
    output = Path(given.get("output", "") or "runs/full")
    failed = []
    for method in methods.split(","):
        folder, start = output / method, time.monotonic()
        if not finished(folder):
            resume = ["resume=true"] if (folder / "last.ckpt").is_file() else []
            if run("train.py", f"method={method}", f"output={folder}", *resume, *passed):
                failed.append(method)
                continue
        if run("export.py", f"method={method}", f"run={folder}", f"output={output / 'weights'}"):
            failed.append(method)
        print(f"== {method}: {(time.monotonic() - start) / 60:.1f} min", flush=True)
    done = [str(output / "weights" / f"{m}.onnx") for m in methods.split(",") if m not in failed]
    data = next((a for a in passed if a.startswith("data=")), "data=auto")
    evaluate = str(given.get("evaluate", True)).lower() != "false"
    if (
        evaluate
        and done
        and run(
            "evaluate.py",
            f"methods={','.join(done)}",
            f"sets={given.get('sets', '')}",
            data,
            f"output={output / 'evaluation'}",
        )
    ):
        failed.append("evaluation")
    if failed:
        print(
            f"train_all.py: failed: {', '.join(failed)}; repeat the command to go on",
            file=sys.stderr,
        )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
