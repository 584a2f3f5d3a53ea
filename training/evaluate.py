# SPDX-License-Identifier: AGPL-3.0-only
"""Measures fusion methods side by side: a table, a JSON and a report with pictures.

    python training/evaluate.py                                 # all shipped methods, all test sets
    python training/evaluate.py methods=baffm,cfi sets=tno/test data=../shared/data
    python training/evaluate.py methods=mine:runs/x/baffm.onnx peer=SeAFusion:../fused/SeAFusion
    python training/evaluate.py sets=msrs/test processing_size=0,320    # what a small size costs
    python training/evaluate.py sets=simulated,simulated_video   # needs no data
    python training/evaluate.py sets=m3svd                      # videos: also flicker
    python training/evaluate.py cards=true                      # and write the means into the cards

What works without a network is always among the rows: each camera alone, the pixel-wise average
and maximum, a weighted mean. A network runs as on the robot: padded by reflection, its output
clipped and rounded to 8 bit, never stretched.

Beside the metrics stands whether objects stay visible: `hidden` needs no labels; `kept`, `lost` and
`gone` are of labelled boxes, or of exact masks in the set `simulated`, drawn on the spot: glare,
snow, faint 8-bit thermal and hot road or bright wall at noon. Of videos, consecutive frames, there
are flicker and variation of brightness too; all frames count for these, every fifth for the rest.

Settings as `key=value`:
    methods   shipped methods or ONNX files, each also as NAME:FILE, comma separated; '' is none
    sets      comma separated, such as tno/test,roadscene/test or, for all of its splits, m3svd;
              default all below data but `train`, `validation` and m3svd, which is slow
    split     all sets of one split in place of sets: test, train or validation, which is every
              eighth pair of `train`. Choose settings by validation, report test.
    data      folder of sets; 'auto' tries $FUSION_DATA, data, ../shared/data, the current folder
    peer      NAME:DIR of fused images as one more row, DIR/<stem>.png or DIR/<set>/<stem>.png;
              several comma separated; in sets whose stems it lacks it is left out
    limit     pairs of each set, evenly spaced (0: all); of a video the first ones
    simulated   pairs of each kind in `simulated`, frames of each scene in `simulated_video`; 0
              leaves both out
    pictures  pairs of each set in the report
    worst     objects of each set and method in the report, those of which most is lost
    backend, precision, threads   of the networks, as the node's parameters
    processing_size   likewise; several comma separated, each but 0 as rows of its own, `baffm@320`
    workers   processes that compute the metrics (0: none but this one)
    cards     write the means of the sets into the model card, <method>.json beside the ONNX file
    output    folder of evaluation.json and report.html
"""

from __future__ import annotations

from fusion_models.interrupt import end_quietly

if __name__ == "__main__":
    end_quietly()

import hashlib
import json
import multiprocessing
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import starmap
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fusion_models.evaluation.evaluate import (
    METRICS,
    OF_SETS,
    FusedFolder,
    Score,
    SetResult,
    evaluate_set,
    write_json,
)
from fusion_models.evaluation.report import Plate, WorstObjects, write_report
from fusion_models.evaluation.rules import RULES, Fuse
from fusion_models.pairs import ImagePair, PairSet, find_sets, is_video, list_pairs, spaced
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_models.trainer import source_commit
from fusion_ros.cameras.street.export import export, export_video
from fusion_ros.commands.benchmark.machine import cpu_name
from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.settings import Settings
from fusion_ros.inference import EngineError, load_engine
from fusion_ros.inference.engine import fp16_sibling
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.size import Size

DEFAULTS = {
    "methods": "shipped", "sets": "", "split": "", "data": "auto", "peer": "", "limit": 0,
    "simulated": 10, "pictures": 6, "worst": 6,
    "backend": "onnxruntime", "precision": "fp32", "threads": 0,
    "processing_size": "0",
    "workers": 2, "cards": False, "output": "evaluation",
}  # fmt: skip
STILLS, FILM = "simulated", "simulated_video"
"""Names of the sets that are drawn on the spot."""
SIMULATED_SEED = 200_000
"""First seed of the simulated sets: training draws from 0 on, validation from 100000 on."""
SIMULATED_SIZE = Size(640, 480)
FILMED = ("day", "night", "glare", "faint")
"""Scenes of `simulated_video`."""
CARDED = (*METRICS, "ssim_range_2", "hidden", *(key for key, _ in OF_SETS.values()))
"""Figures that go into the model cards."""


@dataclass(frozen=True)
class Network:
    """An exported network as a method under evaluation."""

    onnx: Path
    fuser: Fuser

    def __call__(self, pair: ImagePair) -> np.ndarray:
        ir, vi = (image.astype(np.float32) / 255 for image in (pair.ir, pair.vi))
        return np.rint(self.fuser.fuse_luminance(ir, vi).clip(0, 1) * 255).astype(np.uint8)

    @property
    def card(self) -> Path:
        """The model card, `<method>.json` beside the ONNX file."""
        return self.onnx.with_suffix(".json")

    def as_dict(self) -> dict[str, str]:
        """What the JSON says of it: the file that really ran, its sha256 and the engine."""
        engine = self.fuser.engine
        file = fp16_sibling(self.onnx) if engine.precision == "fp16" else self.onnx
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return {"file": file.name, "sha256": digest, "engine": engine.description}


def named(text: str) -> list[tuple[str, str]]:
    """`NAME:VALUE,VALUE` as pairs; a value without a name is named after its stem."""
    parts = [part.rpartition(":") for part in text.split(",") if part]
    return [(name or Path(value).name.removesuffix(".onnx"), value) for name, _, value in parts]


def load_networks(
    methods: str, backend: str, precision: str, threads: int, processing_sizes: str = "0"
) -> dict[str, Network]:
    """The networks of the setting `methods` by row name; prints what runs each."""
    sizes = processing_sizes.split(",")
    for size in sizes:
        try:
            Settings(processing_size=int(size))
        except ValueError as error:
            raise ConfigError(f"processing_size={processing_sizes}: {error}") from None
    networks = {}
    for name, value in named(",".join(list_methods()) if methods == "shipped" else methods):
        for size in map(int, sizes):
            row = f"{name}@{size}" if size else name
            if row in networks or row in RULES:
                raise ConfigError(f"two rows named '{row}': name one otherwise, methods=NAME:FILE")
            onnx = model_path(value)
            engine = load_engine(onnx, backend, precision=precision, threads=threads)
            print(f"{row}: {engine.description}")
            networks[row] = Network(onnx, Fuser(engine, size))
    return networks


def open_sets(
    data: str | Path, sets: str, split: str, limit: int, simulated: int, folder: Path
) -> list[PairSet]:
    """The sets of the settings of these names; those that are drawn go below `folder`.

    Raises:
        DataError: a set that is not there.
        ConfigError: `simulated` is negative, or 0 although a simulated set is named.
    """
    if simulated < 0:
        raise ConfigError(f"simulated={simulated}: expected 0 or more")
    names = [name for name in sets.split(",") if name]
    wanted = [name for name in names if name.partition("/")[0] not in (STILLS, FILM)]
    found: list[PairSet] = []
    if wanted or split or not names:
        there = find_sets(data, split=split) if split or not wanted else []
        if not wanted and not split:
            there = [pair_set for pair_set in there if not is_video(pair_set.name)]
        exact = [name for name in wanted if "/" in name]
        for base in (name for name in wanted if "/" not in name):
            every = [s for s in find_sets(data) if s.name.partition("/")[0] == base]
            there += every or find_sets(data, [base])
        there += find_sets(data, exact) if exact else []
        found += [_shortened(pair_set, limit) for pair_set in there]
    drawn = simulated > 0
    if drawn and (STILLS in names or not (names or split)):
        export(folder / STILLS, simulated, SIMULATED_SIZE, first_seed=SIMULATED_SEED)
        files = tuple(list_pairs(folder / STILLS))
        found.append(_shortened(PairSet(STILLS, folder / STILLS, files), limit))
    for scene in FILMED:
        name = f"{FILM}/{scene}"
        if drawn and ({FILM, name} & set(names) or not (names or split)):
            export_video(folder / name, scene, max(simulated, 2), SIMULATED_SIZE, SIMULATED_SEED)
            pair_set = PairSet(name, folder / name, tuple(list_pairs(folder / name)))
            found.append(_shortened(pair_set, limit))
    if unknown := [n for n in names if not any((s.name + "/").startswith(n + "/") for s in found)]:
        known = ", ".join(f"{FILM}/{scene}" for scene in FILMED)
        raise ConfigError(f"no set {', '.join(unknown)}; simulated are {STILLS}, {known}")
    return found


def _shortened(pair_set: PairSet, limit: int) -> PairSet:
    if limit and is_video(pair_set.name):  # frames must stay consecutive
        return PairSet(pair_set.name, pair_set.root, pair_set.files[:limit])
    return pair_set.limited(limit)


def peers_of(pair_set: PairSet, peers: dict[str, Path]) -> dict[str, Fuse]:
    """The peers that have fused images of all pairs of a set; says so where some are missing."""
    fitting = {}
    for name, folder in peers.items():
        peer = FusedFolder(folder, pair_set)
        if not peer.missing:
            fitting[name] = peer
        elif len(peer.missing) < len(pair_set.stems):
            count = f"{len(peer.missing)} of {len(pair_set.stems)}"
            print(f"{pair_set.name} without {name}: {count} missing, say {peer.missing[0]}")
    return fitting


def host() -> dict:
    """What the figures were computed on; no names of persons or machines."""
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__,
        "onnxruntime": version("onnxruntime"), "commit": source_commit(),
    }  # fmt: skip


def write_cards(networks: dict[str, Network], results: list[SetResult]) -> None:
    """Figures of `CARDED` by set into the card of each network; other sets in it stay."""
    for name, network in networks.items():
        means = {
            result.name: {key: round(row.mean[key], 5) for key in CARDED if key in row.mean}
            for result in results for row in result.rows if row.method == name
        }  # fmt: skip
        card = json.loads(network.card.read_text())
        card["metrics"] = {**card.get("metrics", {}), **means}
        network.card.write_text(json.dumps(card, indent=2) + "\n")


@contextmanager
def measuring(workers: int) -> Iterator[Callable]:
    """`starmap` of a pool of processes."""
    if not workers:
        yield starmap
        return
    # Not forked: a copy of a process in which OpenCV has threads hangs.
    with multiprocessing.get_context("spawn").Pool(workers, cv2.setNumThreads, (1,)) as pool:
        yield pool.starmap


def evaluate_with_pictures(
    pair_set: PairSet,
    methods: dict[str, Fuse],
    count: int,
    worst: WorstObjects,
    measure_all: Callable = starmap,
) -> tuple[SetResult, list[Plate]]:
    """The figures of a set, and the pictures of `count` of its pairs, evenly spaced.

    Its lost objects go into `worst`.
    """
    stems = pair_set.stems
    shown = {stems[i] for i in spaced(len(stems), count)} if count else set()
    plates = []
    with tqdm(total=len(stems), desc=pair_set.name, leave=False, disable=None) as bar:

        def each(pair: ImagePair, fused: dict[str, np.ndarray], scores: dict[str, Score]) -> None:
            bar.update()
            worst.add(pair_set.name, pair, fused, scores)
            if pair.stem in shown:
                plates.append(Plate.of(pair_set.name, pair, fused))

        video = is_video(pair_set.name)
        return evaluate_set(pair_set, methods, each, measure_all, video), plates


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    drawn = tempfile.TemporaryDirectory(prefix="simulated_")
    try:
        config = merge_settings(DEFAULTS, arguments)
        networks = load_networks(
            config.methods, config.backend, config.precision, config.threads,
            str(config.processing_size),
        )  # fmt: skip
        peers = {name: Path(folder) for name, folder in named(config.peer)}
        if both := sorted({*networks, *RULES} & set(peers)):
            raise ConfigError(f"two rows named '{both[0]}': name the peer otherwise")
        if config.cards:
            if config.limit:
                raise ConfigError("cards=true needs whole sets: leave limit out")
            if config.processing_size not in (0, "0"):
                raise ConfigError("cards=true is for full size: leave processing_size out")
            if missing := [str(n.card) for n in networks.values() if not n.card.is_file()]:
                raise ConfigError(f"cards=true needs the model cards {', '.join(missing)}")
        sets = open_sets(
            config.data, config.sets, config.split, config.limit, config.simulated,
            Path(drawn.name),
        )  # fmt: skip
        rows = [{**networks, **peers_of(pair_set, peers)} for pair_set in sets]
        for name in peers:
            if not any(name in methods for methods in rows):
                raise ConfigError(
                    f"peer {name}: {peers[name]} has the images of no set; expected "
                    f"{peers[name]}/<stem>.png or {peers[name]}/<set>/<stem>.png for all its pairs"
                )
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        results, plates, worst = [], [], WorstObjects(config.worst)
        with measuring(config.workers) as measure_all:
            for pair_set, methods in zip(sets, rows):
                result, pictures = evaluate_with_pictures(
                    pair_set, methods, config.pictures, worst, measure_all
                )
                print(result.as_markdown() + "\n", flush=True)
                results.append(result)
                plates += pictures
    except (ValueError, EngineError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    finally:
        drawn.cleanup()
    if config.cards:
        write_cards(networks, results)
    head = {
        "command": shlex.join(["python", "training/evaluate.py", *arguments]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": host(),
        "versions": versions(),
        "models": {name: network.as_dict() for name, network in networks.items()},
    }
    write_json(output / "evaluation.json", head, results)
    write_report(output / "report.html", head, results, plates, worst)
    print(f"{output / 'evaluation.json'}, {output / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
