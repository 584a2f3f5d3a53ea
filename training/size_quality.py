# SPDX-License-Identifier: AGPL-3.0-only
"""Compares fusion at smaller sizes with fusion at full size: what a faster node shows less of.

    python training/size_quality.py                               # all methods, both sets
    python training/size_quality.py methods=baffm sets=msrs/test limit=20
    python training/size_quality.py sizes=400,320,256,192,160 output=docs/size_quality

Settings are `key=value`:

    methods  names or ONNX files, comma separated; default all
    sets     with their split, comma separated
    data     folder of sets; 'auto' looks in the usual places
    sizes    values of the node's parameter `processing_size`, beside full size
    limit    pairs of each set, evenly spaced (0: all)
    threads  of onnxruntime (0: it decides)
    output   writes <output>.json and <output>.md; '' prints only

VIF and Qabf: means over the pairs. lost: share of the objects labelled in either camera that a
source shows and the fused image does not, where the set has boxes; hidden: share of all places of
which that holds.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fusion_models.evaluation.metrics import qabf, vif
from fusion_models.evaluation.objects import Objects, labelled_objects
from fusion_models.evaluation.visibility import hidden
from fusion_models.files import write_text
from fusion_models.pairs import DataError, ImagePair, PairSet, find_sets
from fusion_models.settings import (
    ConfigError,
    check_counts,
    merge_settings,
    result_files,
    show_help,
)
from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.settings import Settings
from fusion_ros.inference import EngineError, load_engine
from fusion_ros.inference.models import list_methods, model_path

DEFAULTS = {
    "methods": "", "sets": "msrs/test,roadscene/test", "data": "auto",
    "sizes": "400,320,256,192,160", "limit": 0, "threads": 0, "output": "",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One method at one size on one set; size 0 is full size. lost: None without boxes."""

    method: str
    set: str
    size: int
    pairs: int
    vif: float
    qabf: float
    hidden: float
    lost: float | None
    objects: int


def measure(method: str, pair_set: PairSet, size: int, threads: int) -> Row:
    """Fuse all pairs of a set at a size and compare each result with its sources."""
    fuser = Fuser(load_engine(model_path(method), "onnxruntime_cpu", threads=threads), size)
    scores, objects = [], []
    labels = labelled_objects(pair_set)
    name = Path(method).stem
    title = f"{name} {pair_set.name} {size}"
    for pair in tqdm(pair_set, title, len(pair_set), leave=False, disable=None):
        fused = _fuse(fuser, pair)
        scores.append([f(fused, pair.ir, pair.vi) for f in (vif, qabf, hidden)])
        objects += labels.get(pair.stem, Objects()).kept(fused, pair.ir, pair.vi)
    fuser.close()
    means = np.mean(scores, axis=0)
    lost = float(np.mean([one.lost for one in objects])) if objects else None
    return Row(name, pair_set.name, size, len(scores), *map(float, means), lost, len(objects))


def table(rows: list[Row]) -> str:
    """Markdown: a row for each, with the change against full size in brackets."""
    lines = [
        "| method | set | pairs | size, px | VIF | Qabf | lost | hidden |",
        "|---|---|---|---|---|---|---|---|",
    ]
    full = {(row.method, row.set): row for row in rows if row.size == 0}
    for row in rows:
        base = full[row.method, row.set]
        same = row is base
        cells = [row.method, row.set, str(row.pairs), str(row.size or "full")]
        for name in ("vif", "qabf"):
            value, other = getattr(row, name), getattr(base, name)
            # Images without any structure have a VIF of 0.
            change = "" if same or not other else f" ({value / other - 1:+.1%})"
            cells.append(f"{value:.3f}{change}")
        for name in ("lost", "hidden"):
            value, other = getattr(row, name), getattr(base, name)
            if value is None:
                cells.append("no boxes")
            else:
                cells.append(
                    f"{value:.1%}" + ("" if same else f" ({100 * (value - other):+.1f} points)")
                )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Measure and print the table; return 0, or 2 for settings that cannot be used."""
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        check_counts(config, "threads")
        sizes = [0, *_sizes(str(config.sizes))]
        methods = [m for m in str(config.methods).split(",") if m] or list_methods()
        for method in methods:
            model_path(method)
        refuse_repeated("methods", [Path(method).stem for method in methods])
        sets = find_sets(config.data, str(config.sets).split(","), limit=config.limit)
        files = result_files(config.output, ".md", ".json")
        rows = [
            measure(method, pair_set, size, config.threads)
            for method in methods
            for pair_set in sets
            for size in sizes
        ]
    except (ConfigError, DataError, EngineError, ValueError) as error:
        print(f"size_quality.py: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if files:
        markdown, record = files
        write_text(markdown, table(rows))
        write_text(record, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def refuse_repeated(key: str, names: list) -> None:
    """Refuse two rows of one name with ConfigError: their changes could not be told apart."""
    if again := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ConfigError(f"{key}: {', '.join(again)} more than once; name each once")


def _sizes(text: str) -> list[int]:
    if not all(re.fullmatch(r"-?\d+", one.strip()) for one in text.split(",")):
        raise ConfigError(f"sizes={text}: expected whole numbers of pixels, such as 320,160")
    try:
        sizes = [int(one) for one in text.split(",")]
        for size in sizes:
            Settings(processing_size=size)
    except ValueError as error:
        raise ConfigError(f"sizes={text}: {error}") from None
    refuse_repeated("sizes", sizes)
    return [size for size in sizes if size]


def _fuse(fuser: Fuser, pair: ImagePair) -> np.ndarray:
    """The fused luminance as the node gives it: rounded to 8 bit."""
    ir, vi = (image.astype(np.float32) / 255 for image in (pair.ir, pair.vi))
    return np.rint(255 * np.clip(fuser.fuse_luminance(ir, vi), 0, 1)).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
