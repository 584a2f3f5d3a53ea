# SPDX-License-Identifier: AGPL-3.0-only
"""Trains a fusion method.

    python training/train.py                                   # baffm, data from the usual places
    python training/train.py method=cfi data=../my_pairs max_steps=20000 precision=16-mixed
    python training/train.py method=cfi resume=true            # go on where it stopped
    python training/train.py method=cfi recipe=paper           # the paper's loss and schedule alone
    torchrun --nproc_per_node=2 training/train.py method=caf   # several processes or GPUs

Settings are `key=value`; `config/training/<method>.yaml` holds each method's defaults,
`config/paper/<method>.yaml` those of its paper, and `fusion_models.trainer.TrainConfig` describes
them all. Results go to `runs/<method>/`, those of the paper's recipe to `runs/paper/<method>/`.
"""

from __future__ import annotations

from fusion_models.interrupt import end_quietly

if __name__ == "__main__":
    end_quietly()

import sys
from pathlib import Path

from fusion_models.pairs import DataError
from fusion_models.settings import show_help
from fusion_models.trainer import ConfigError, Trainer, load_config

CONFIG = Path(__file__).resolve().parent.parent / "config" / "training"


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        trainer = Trainer(load_config(arguments, CONFIG))
    except (ConfigError, DataError, FileNotFoundError, ValueError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    trainer.fit()
    trainer.fabric.print(f"done: {trainer.output}/model.safetensors, run.json, TensorBoard logs")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
