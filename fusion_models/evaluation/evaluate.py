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

from fusion_models.evaluation.metrics import NAMES, Metrics, distance, evaluate, over_exposure
from fusion_models.pairs import DataError, ImagePair, PairSet, image_files, read_luminance

METRICS = tuple(NAMES.values())
"""Names of the metrics in the order of tables; for each of them more is better."""
MORE = {
    "over": ("over_exposure", "{:.2%}"), "excess": ("over_exposure_excess", "{:+.2%}"),
    "to ir": ("distance_ir", "{:.3f}"), "to vi": ("distance_vi", "{:.3f}"),
}  # fmt: skip
"""Columns of tables after the metrics: an attribute of `Score`, and its format."""


Fuse = Callable[[ImagePair], np.ndarray]
"""A method under evaluation: a pair to its fused luminance `(H, W)` uint8."""


def average(pair: ImagePair) -> np.ndarray:
    """Pixel-wise average, halves rounded to the even grey level; every method should be better."""
    return np.rint((pair.ir.astype(np.float32) + pair.vi) / 2).astype(np.uint8)


def maximum(pair: ImagePair) -> np.ndarray:
    """Pixel-wise maximum: best in VIF, Qabf and MI, but bright regions lose contrast."""
    return np.maximum(pair.ir, pair.vi)


RULES: dict[str, Fuse] = {"average": average, "max": maximum}


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
        over_exposure: share of its pixels over 245.
        over_exposure_excess: this share less the mean of those of both sources.
        distance_ir, distance_vi: mean absolute difference to a source in [0, 1]; small is a copy.
    """

    metrics: Metrics
    over_exposure: float
    over_exposure_excess: float
    distance_ir: float
    distance_vi: float

    @classmethod
    def of(cls, fused: np.ndarray, pair: ImagePair) -> Score:
        exposed = over_exposure(fused)
        sources = (over_exposure(pair.ir) + over_exposure(pair.vi)) / 2
        return cls(
            evaluate(fused, pair.ir, pair.vi), exposed, exposed - sources,
            distance(fused, pair.ir), distance(fused, pair.vi),
        )  # fmt: skip

    def as_dict(self) -> dict[str, float]:
        """Figures by name: those of `METRICS`, then the attributes."""
        rest = asdict(self)
        del rest["metrics"]
        return {**self.metrics.as_dict(), **rest}


@dataclass(frozen=True)
class Row:
    """The figures of one method on one set, by stem."""

    method: str
    scores: dict[str, Score]

    @cached_property
    def mean(self) -> dict[str, float]:
        """Mean over the images of each figure of `Score.as_dict`."""
        figures = [score.as_dict() for score in self.scores.values()]
        return {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}


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

    def as_markdown(self) -> str:
        """The means as an aligned table; `MORE` explains the columns after the metrics."""
        ranks = self.ranks()
        lines = [["", *METRICS, *MORE, "rank"]]
        for row in self.rows:
            figures = [f"{row.mean[name]:.3f}" for name in METRICS]
            more = [shape.format(row.mean[name]) for name, shape in MORE.values()]
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
            "rows": {
                row.method: {
                    "mean": row.mean,
                    "images": {stem: score.as_dict() for stem, score in row.scores.items()},
                }
                for row in self.rows
            },
        }


def evaluate_set(
    pair_set: PairSet,
    methods: Mapping[str, Fuse],
    each: Callable[[ImagePair, dict[str, np.ndarray]], None] = lambda pair, fused: None,
    measure_all: Callable[..., Iterable[Score]] = starmap,
) -> SetResult:
    """Fuses and measures every pair of a set with every method.

    Args:
        methods: by name, in the order of the table; the pixel-wise `RULES` are put before them.
        each: called after each pair with the fused luminances by method, say to keep some.
        measure_all: `starmap` of a process pool, to measure the images of a pair in parallel.
    Raises:
        DataError: a pair that cannot be read or measured, or fused images of another size.
    """
    methods = {**RULES, **methods}
    scores: dict[str, dict[str, Score]] = {name: {} for name in methods}
    for pair in pair_set:
        fused = {name: fuse(pair) for name, fuse in methods.items()}
        where = f"{pair_set.name}/{pair.stem}"
        for name, image in fused.items():
            if image.shape != pair.ir.shape:
                raise DataError(
                    f"{where}: {name} is {image.shape}, the pair {pair.ir.shape} (height, width); "
                    "fused images must have the size of their pair"
                )
        try:
            measured = list(measure_all(Score.of, [(image, pair) for image in fused.values()]))
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        for name, score in zip(fused, measured):
            scores[name][pair.stem] = score
        each(pair, fused)
    rows = tuple(Row(name, by_stem) for name, by_stem in scores.items())
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
