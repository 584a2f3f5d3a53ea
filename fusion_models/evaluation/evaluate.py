# SPDX-License-Identifier: AGPL-3.0-only
"""Fusion methods measured on sets of pairs: rows of figures, for each image and on average."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import starmap
from pathlib import Path

import numpy as np

from fusion_models.evaluation.metrics import (
    NAMES,
    Metrics,
    distance,
    evaluate,
    over_exposure,
    ssim,
)
from fusion_models.evaluation.objects import Objects, labelled_objects
from fusion_models.evaluation.rules import RULES, Fuse
from fusion_models.evaluation.temporal import OverTime, VideoTimes
from fusion_models.evaluation.visibility import Kept, hidden, summary
from fusion_models.pairs import DataError, ImagePair, PairSet, image_files, read_luminance

METRICS = tuple(NAMES.values())
"""Names of the metrics in the order of tables; for each of them more is better."""
MORE = {
    "SSIM/2": ("ssim_range_2", "{:.3f}"),
    "over": ("over_exposure", "{:.2%}"), "excess": ("over_exposure_excess", "{:+.2%}"),
    "to ir": ("distance_ir", "{:.3f}"), "to vi": ("distance_vi", "{:.3f}"),
    "hidden": ("hidden", "{:.3f}"),
}  # fmt: skip
"""Columns of tables after the metrics: an attribute of `Score`, and its format."""
OF_SETS = {
    "objects": ("objects", "{:d}"), "kept": ("kept", "{:.2f}"), "lost": ("lost", "{:.3f}"),
    "gone": ("gone", "{:.3f}"),
    "flicker": ("flicker", "{:+.2f}"), "bright": ("brightness", "{:.2f}"),
}  # fmt: skip
"""Columns of tables for figures of a whole set: a key of `Row.mean`, where the set has it."""
FRAMES_BETWEEN_METRICS = 5
"""Of a video every n-th frame is measured with all metrics: neighbours have nearly the same."""


class FusedFolder:
    """Fused images of another program as a method: `<stem>.<png|jpg|...>`; colour becomes grey.

    Args:
        folder: of the images, or of folders with them named as the set (`<folder>/tno/test/`).
    Attributes:
        missing: stems of the set that have no image here.
    """

    def __init__(self, folder: Path, pair_set: PairSet):
        inside = folder / pair_set.name
        self._files = image_files(inside if inside.is_dir() else folder)
        self.missing = [stem for stem in pair_set.stems if stem not in self._files]

    def __call__(self, pair: ImagePair) -> np.ndarray:
        return read_luminance(self._files[pair.stem])


@dataclass(frozen=True)
class Score:
    """All figures of one fused image.

    Attributes:
        ssim_range_2: SSIM on the scale of CDDFuse's evaluator, near 1.0 (see `metrics.ssim`).
        over_exposure: share of its pixels over 245.
        over_exposure_excess: this share less the mean of those of both sources.
        distance_ir, distance_vi: mean absolute difference to a source in [0, 1]; small is a copy.
        hidden: share of the image where it hides structure of a source (see `visibility`).
        kept: what it keeps of each labelled object that a source shows.
    """

    metrics: Metrics
    ssim_range_2: float
    over_exposure: float
    over_exposure_excess: float
    distance_ir: float
    distance_vi: float
    hidden: float
    kept: tuple[Kept, ...] = ()

    @classmethod
    def of(cls, fused: np.ndarray, pair: ImagePair, objects: Objects = Objects()) -> Score:
        exposed = over_exposure(fused)
        sources = (over_exposure(pair.ir) + over_exposure(pair.vi)) / 2
        return cls(
            evaluate(fused, pair.ir, pair.vi), ssim(fused, pair.ir, pair.vi, 2.0), exposed,
            exposed - sources, distance(fused, pair.ir), distance(fused, pair.vi),
            hidden(fused, pair.ir, pair.vi), objects.kept(fused, pair.ir, pair.vi),
        )  # fmt: skip

    def as_dict(self) -> dict[str, float]:
        """Figures by name: those of `METRICS`, then the attributes but `kept`."""
        rest = asdict(self)
        del rest["metrics"], rest["kept"]
        return {**self.metrics.as_dict(), **rest}


@dataclass(frozen=True)
class Row:
    """The figures of one method on one set, by stem.

    Attributes:
        over_time: of a video, else None.
    """

    method: str
    scores: dict[str, Score]
    over_time: OverTime | None = None

    @cached_property
    def mean(self) -> dict[str, float]:
        """Mean over the images of each figure of `Score.as_dict`, then figures of the whole set.

        These are, with labelled objects, their number, what is kept of them (the median) and the
        shares that are lost and gone; of a video flicker and variation of brightness (see
        `temporal`).
        """
        figures = [score.as_dict() for score in self.scores.values()]
        found = {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}
        found |= summary([one for score in self.scores.values() for one in score.kept])
        return found | (self.over_time.as_dict() if self.over_time else {})

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Objects, kept, lost and gone by what precedes `_` in the stems, as in `snow_00012D`."""
        kinds: dict[str, list[Kept]] = {}
        for stem, score in self.scores.items():
            if "_" in stem:
                kinds.setdefault(stem.partition("_")[0], []).extend(score.kept)
        return {kind: summary(kept) for kind, kept in kinds.items() if kept}

    def as_dict(self) -> dict:
        """What the JSON holds of a method on a set."""
        found: dict = {"mean": self.mean}
        if any(score.kept for score in self.scores.values()):
            found["by_kind"] = self.by_kind()
        found["images"] = {
            stem: score.as_dict()
            | ({"kept": [round(one.ratio, 3) for one in score.kept]} if score.kept else {})
            for stem, score in self.scores.items()
        }
        return found


@dataclass(frozen=True)
class SetResult:
    """All rows of one set.

    Attributes:
        rows: the rules of `RULES` first.
    """

    name: str
    rows: tuple[Row, ...]

    @property
    def sources_over_exposure(self) -> float:
        """Share of pixels over 245, mean of both sources over the set."""
        mean = self.rows[0].mean
        return mean["over_exposure"] - mean["over_exposure_excess"]

    def ranks(self) -> dict[str, float]:
        """Mean rank of each method over all metrics; 1 would be the best at every one."""
        table = np.array([[row.mean[name] for name in METRICS] for row in self.rows])
        ranks = 1 + (table[None] > table[:, None]).sum(1)
        return {row.method: float(rank) for row, rank in zip(self.rows, ranks.mean(1))}

    @property
    def columns(self) -> dict[str, tuple[str, str]]:
        """Columns after the metrics that this set has: a key of `Row.mean`, and its format."""
        there = self.rows[0].mean
        return MORE | {name: shape for name, shape in OF_SETS.items() if shape[0] in there}

    def as_markdown(self) -> str:
        """The means as an aligned table; `columns` explains those after the metrics."""
        ranks = self.ranks()
        lines = [["", *METRICS, *self.columns, "rank"]]
        for row in self.rows:
            figures = [f"{row.mean[name]:.3f}" for name in METRICS]
            more = [shape.format(row.mean[name]) for name, shape in self.columns.values()]
            lines.append([row.method, *figures, *more, f"{ranks[row.method]:.1f}"])
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = [
            "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            + " |" for line in lines
        ]  # fmt: skip
        rule = ["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]
        text.insert(1, "|" + "|".join(rule) + "|")
        exposed = f"sources over-exposed {self.sources_over_exposure:.2%}"
        count = len(self.rows[0].scores)
        return f"**{self.name}**, {count} pairs, {exposed}\n\n" + "\n".join(text)

    def as_dict(self) -> dict:
        """What the JSON holds of a set."""
        return {
            "pairs": len(self.rows[0].scores),
            "sources": {"over_exposure": self.sources_over_exposure},
            "rows": {row.method: row.as_dict() for row in self.rows},
        }


Each = Callable[[ImagePair, dict[str, np.ndarray], dict[str, Score]], None]
"""Called after each measured pair with the fused luminances and the scores by method."""


def evaluate_set(
    pair_set: PairSet,
    methods: Mapping[str, Fuse],
    each: Each = lambda pair, fused, scores: None,
    measure_all: Callable[..., Iterable[Score]] = starmap,
    video: bool = False,
) -> SetResult:
    """Fuses and measures every pair of a set with every method.

    Labelled objects count where the set has them (see `objects`).

    Args:
        methods: by name, in the order of the table; the controls `RULES` are put before them.
        each: to keep some of the images.
        measure_all: `starmap` of a process pool, to measure the images of a pair in parallel.
        video: the pairs are consecutive frames; flicker and brightness are measured between all of
            them, everything else on every fifth.
    Raises:
        DataError: a pair or label that cannot be read or measured, or fused images of another size.
    """
    methods = {**RULES, **methods}
    scores: dict[str, dict[str, Score]] = {name: {} for name in methods}
    objects = labelled_objects(pair_set)
    times = VideoTimes() if video else None
    for number, pair in enumerate(pair_set):
        fused = {name: fuse(pair) for name, fuse in methods.items()}
        where = f"{pair_set.name}/{pair.stem}"
        for name, image in fused.items():
            if image.shape != pair.ir.shape:
                raise DataError(
                    f"{where}: {name} is {image.shape}, the pair {pair.ir.shape} (height, width); "
                    "fused images must have the size of their pair"
                )
        if times is not None:
            times.add(pair.ir, pair.vi, fused)
            if number % FRAMES_BETWEEN_METRICS:
                continue
        there = objects.get(pair.stem, Objects())
        try:
            measured = list(
                measure_all(Score.of, [(image, pair, there) for image in fused.values()])
            )
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        by_method = dict(zip(fused, measured))
        for name, score in by_method.items():
            scores[name][pair.stem] = score
        each(pair, fused, by_method)
    over_time = times.result() if times else {}
    rows = tuple(Row(name, by_stem, over_time.get(name)) for name, by_stem in scores.items())
    return SetResult(pair_set.name, rows)


def write_json(path: Path, head: Mapping, results: Iterable[SetResult]) -> None:
    """Writes `head` and, under "sets", the results, rounded to 1e-5, an image a line."""
    sets = {result.name: result.as_dict() for result in results}
    path.write_text(_dump({**head, "sets": sets}) + "\n")


def _dump(value, indent: str = "") -> str:
    if isinstance(value, float):
        return json.dumps(round(value, 5))
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value)
    inner = indent + " "
    items = [f"{json.dumps(key)}: {_dump(item, inner)}" for key, item in value.items()]
    if any(isinstance(item, Mapping) for item in value.values()) or indent == " ":
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{indent}}}"
    return "{" + ", ".join(items) + "}"
