# SPDX-License-Identifier: AGPL-3.0-only
"""Measures how well a detector finds labelled objects in each camera alone and in fused images.

    python training/evaluate_detection.py                                  # the shipped detector
    python training/evaluate_detection.py detector=yolov8n_coco.onnx       # a frozen one
    python training/evaluate_detection.py 'detector=runs/on_{row}/detector.onnx'   # one a row
    python training/evaluate_detection.py peer=seafusion:../fused/seafusion methods=caf,new:run.onnx

Rows: visible and infrared alone, the rules without a network, the methods, any folder of fused
images. Each network and the detector run as in the node. Settings are `key=value`:

    detector  ONNX file of a YOLO; default: the one that ships. `{row}` stands for a row's name
    methods   as in evaluate.py; 'none' for none
    pictures  rows besides the methods, comma separated; 'all' or 'none'
    sets      with their split, such as msrs/test,msrs/validation; default: all test sets with boxes
    data, peer, limit, backend, precision, threads   as in evaluate.py
    confidence  detections below it do not count    iou  of suppression, as the node's parameters
    repeats   bootstrap samples of the images for the 95 % intervals (0: none)
    shown     score from which an object counts as found on the page of misses
    misses    crops of each row on the page of misses (0: no page)
    output    folder of detection.json, detection.md and misses.html
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from evaluate import Network, host, load_networks, named, peers_of, versions
from tqdm import tqdm

from fusion_models.boxes import Boxes, BoxReport, class_names
from fusion_models.detection import SHIPPED
from fusion_models.detection.dataset import match_classes, read_labels
from fusion_models.detection.pictures import CONTROLS, RULES, SOURCES, Coloured, Picture, choose
from fusion_models.evaluation.detection import (
    Found,
    Matches,
    Precision,
    interval,
    misses,
    paired_interval,
)
from fusion_models.evaluation.misses import MissesPage
from fusion_models.files import write_text
from fusion_models.pairs import DataError, PairSet, find_sets
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_ros.frame.detector import Detector
from fusion_ros.inference import EngineError, load_engine

DEFAULTS = {
    "detector": "", "methods": "shipped", "pictures": "all", "sets": "", "data": "auto",
    "peer": "", "limit": 0, "backend": "onnxruntime", "precision": "fp32", "threads": 0,
    "confidence": 0.01, "iou": 0.45, "repeats": 1000, "shown": 0.25, "misses": 30,
    "output": "evaluation",
}  # fmt: skip


CLAIMED = ("visible", "infrared", "average", "maximum")
"""Rows that every fused image should surpass: each has the intervals of its difference to them."""


@dataclass(frozen=True)
class Finder:
    """A detector whose classes are matched with those of the labels by name.

    Attributes:
        table: number in the labels' classes by the detector's own, -1 for none.
        file: the ONNX file.
    """

    detector: Detector
    table: np.ndarray
    file: Path

    @classmethod
    def load(cls, path: Path, classes: Sequence[str], config) -> Finder:
        """Load an ONNX file; EngineError or ConfigError if it is of no use for these labels."""
        engine = load_engine(path, config.backend, threads=config.threads)
        detector = Detector(engine, confidence=config.confidence, iou=config.iou)
        names = [detector.class_names[i] for i in sorted(detector.class_names)]
        table, _ = match_classes(names, classes)
        if unknown := [name for i, name in enumerate(classes) if i not in table]:
            print(f"{path.name}: finds no {', '.join(unknown)}, which are labelled")
        unmapped = [name for name, n in zip(names, table) if n < 0]
        if unmapped:
            more = " ..." if len(unmapped) > 8 else ""
            print(f"{path.name}: not labelled, left out: {', '.join(unmapped[:8])}{more}")
        if (table < 0).all():
            raise ConfigError(
                f"{path}: finds none of the labelled {', '.join(classes)}, but {', '.join(names)}"
            )
        return cls(detector, table, path)

    def record(self) -> dict:
        """Checksum of the file, and how it was trained if its card says so."""
        result: dict = {"sha256": hashlib.sha256(self.file.read_bytes()).hexdigest()}
        card = self.file.with_suffix(".json")
        training = json.loads(card.read_text()).get("training", {}) if card.is_file() else {}
        kept = ("start", "settings", "networks", "epochs", "pictures", "minutes", "validation")
        if training:
            result["training"] = {key: training[key] for key in kept if key in training}
        return result

    def __call__(self, picture: np.ndarray) -> Found:
        """Detections in `(H, W, 3)` uint8 BGR."""
        height, width = picture.shape[:2]
        seen = [d for d in self.detector.detect(picture) if self.table[d.class_id] >= 0]
        corners = np.array(
            [(d.x, d.y, d.x + d.width, d.y + d.height) for d in seen], np.float32
        ).reshape(-1, 4)
        return Found(
            self.table[[d.class_id for d in seen]] if seen else np.zeros(0, np.int64),
            corners / np.float32([width, height, width, height]),
            np.array([d.score for d in seen], np.float32),
        )


def file_name(row: str) -> str:
    """A row's name as part of a path, which stands for `{row}`."""
    return row.replace(" ", "_")


def detectors_of(rows: Sequence[str], config, classes: Sequence[str]) -> dict[str, Finder]:
    """The detector of each row; rows share it unless `detector` names one for each."""
    loaded: dict[Path, Finder] = {}
    result = {}
    for row in rows:
        path = Path((config.detector or str(SHIPPED)).replace("{row}", file_name(row)))
        if not path.is_file():
            raise ConfigError(f"no detector at {path}; give detector=<file.onnx>")
        if path not in loaded:
            loaded[path] = Finder.load(path, classes, config)
        result[row] = loaded[path]
    return result


def labelled_tests(config) -> list[PairSet]:
    """The sets to measure: those named, or all test sets with boxes."""
    names = [name for name in config.sets.split(",") if name]
    sets = find_sets(config.data, names, "" if names else "test", config.limit)
    with_boxes = [
        s for s in sets if (s.root / "boxes").is_dir() or (s.root / "boxes.json").is_file()
    ]
    if not with_boxes or (names and len(with_boxes) < len(names)):
        raise DataError(
            f"{', '.join(s.name for s in sets if s not in with_boxes)}: no boxes/ (YOLO) or "
            "boxes.json (COCO) beside ir/ and vi/"
        )
    return with_boxes


def detect_set(
    pairs: PairSet,
    rows: Mapping[str, Picture],
    finders: Mapping[str, Finder],
    truth: Mapping[str, Boxes],
) -> dict[str, dict[str, Found]]:
    """Detections by row and stem."""
    found: dict[str, dict[str, Found]] = {name: {} for name in rows}
    for pair in tqdm(pairs, desc=pairs.name, total=len(pairs), leave=False, disable=None):
        if pair.stem in truth:
            for name, picture in rows.items():
                found[name][pair.stem] = finders[name](picture(pair))
    return found


def times_of_day(stems: Sequence[str]) -> dict[str, list[str]]:
    """Stems by 'night' and 'day', where they end in N or D."""
    ends = {"night": "N", "day": "D"}
    parts = {name: [s for s in stems if s.endswith(end)] for name, end in ends.items()}
    return {name: part for name, part in parts.items() if part}


def measure(rows: Mapping[str, Matches], repeats: int) -> dict[str, dict]:
    """All figures by row: AP by class, by day and night, with intervals over images."""
    samples: dict[str, list[Precision]] = {}
    if repeats:
        samples = {name: m.resampled(repeats) for name, m in rows.items()}
    result: dict[str, dict] = {}
    classes = next(iter(rows.values())).classes
    for name, matches in rows.items():
        whole = matches.precision()
        entry: dict = {"ap50": whole.ap50, "ap": whole.ap, "mAP50": whole.mean50, "mAP": whole.mean}
        for time, stems in times_of_day(matches.stems).items():
            part = matches.precision(stems)
            entry[time] = {"ap50": part.ap50, "ap": part.ap, "mAP50": part.mean50}
        if samples:
            entry["interval"] = {
                "mAP50": interval([p.mean50 for p in samples[name]]),
                **{c: interval([p.ap50[c] for p in samples[name]]) for c in whole.ap50},
            }
        result[name] = entry
    controls = [name for name in CONTROLS if name in rows]
    if samples and controls:
        best = max(controls, key=lambda name: result[name]["mAP50"])
        for name in rows:
            if name != best:
                limits = paired_interval(samples[name], samples[best])
                result[name]["over_best_mean"] = {"mean": best, "mAP50": limits}
    if samples:
        for name, entry in result.items():
            entry["over"] = {
                other: {
                    "mAP50": paired_interval(samples[name], samples[other]),
                    **{c: paired_interval(samples[name], samples[other], kind=c) for c in classes},
                }
                for other in CLAIMED
                if other in rows and other != name
            }
    return result


def without_nan(value):
    """The same with None for figures that do not exist, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def as_markdown(name: str, count: int, figures: Mapping[str, dict]) -> str:
    """The table of one set."""
    classes = list(next(iter(figures.values()))["ap50"])
    times = [t for t in ("night", "day") if t in next(iter(figures.values()))]
    head = ["", *classes, "mAP@.5", "95 %", "mAP@.5:.95"]
    head += [f"{c} {' / '.join(times)}" for c in classes if times]
    head += ["against the best mean"]
    lines = [head]
    for row, entry in figures.items():
        line = [row, *(f"{entry['ap50'][c]:.3f}" for c in classes), f"{entry['mAP50']:.3f}"]
        limits = entry.get("interval", {}).get("mAP50")
        line += [f"{limits[0]:.3f} to {limits[1]:.3f}" if limits else "", f"{entry['mAP']:.3f}"]
        line += [" / ".join(f"{entry[t]['ap50'][c]:.3f}" for t in times) for c in classes if times]
        over = entry.get("over_best_mean")
        line += [f"{over['mAP50'][0]:+.3f} to {over['mAP50'][1]:+.3f}" if over else ""]
        lines.append(line)
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|---" * len(head) + "|")
    title = f"**{name}**, {count} labelled pairs\n\n"
    return title + "\n".join(text) + "\n" + differences(figures)


def differences(figures: Mapping[str, dict]) -> str:
    """Intervals of the difference in mean AP@.5 to the rows of `CLAIMED`; '' without any."""
    others = [other for other in CLAIMED if other in figures]
    if not others or not any(entry.get("over") for entry in figures.values()):
        return ""
    lines = [["mAP@.5 minus that of", *others], ["---"] * (1 + len(others))]
    for row, entry in figures.items():
        line = [row]
        for other in others:
            limits = entry["over"].get(other, {}).get("mAP50")
            line.append(f"{limits[0]:+.3f} to {limits[1]:+.3f}" if limits else "")
        lines.append(line)
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return "\nIntervals (95 %) of differences, image by image:\n\n" + text


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        sets = labelled_tests(config)
        networks: dict[str, Network] = {}
        if config.methods != "none":
            networks = load_networks(
                config.methods, config.backend, config.precision, config.threads
            )
        plain = {**SOURCES, **{name: Coloured(rule) for name, rule in RULES.items()}}
        plain = choose(plain, config.pictures)
        peers = {name: Path(folder) for name, folder in named(config.peer)}
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        results, text = {}, []
        for pairs in sets:
            classes = class_names(pairs.root)
            labels, report = read_labels(pairs, classes, BoxReport())
            print(f"{pairs.name}: {report}", flush=True)
            rows: dict[str, Picture] = {
                **plain,
                **{n: Coloured(f) for n, f in {**networks, **peers_of(pairs, peers)}.items()},
            }
            if not rows:
                raise ConfigError("no rows: give methods=, pictures= or peer=")
            finders = detectors_of(list(rows), config, classes)
            found = detect_set(pairs, rows, finders, labels)
            matches = {name: Matches(labels, found[name], classes) for name in rows}
            figures = measure(matches, config.repeats)
            lost = misses(matches, score=config.shown)
            for name, several in lost.items():
                figures[name]["objects_lost"] = len(several)
            results[pairs.name] = {"pairs": len(labels), "rows": figures}
            text.append(as_markdown(pairs.name, len(labels), figures))
            print("\n" + text[-1], flush=True)
            if config.misses and set(SOURCES) <= set(rows) and lost:
                page = MissesPage(lost, classes, config.misses)
                for pair in pairs:
                    if pair.stem in page.stems:
                        shown = {name: rows[name](pair) for name in page.pictures(pair.stem)}
                        seen = {name: found[name][pair.stem] for name in shown}
                        page.add(pair.stem, labels[pair.stem], shown, seen, config.shown)
                page.write(
                    output / f"misses_{pairs.name.replace('/', '_')}.html",
                    f"{pairs.name}: objects that fused images lose",
                )
    except (ValueError, OSError, EngineError) as error:
        print(f"evaluate_detection.py: {error}", file=sys.stderr)
        return 2
    engines = sorted({finder.detector.engine.description for finder in finders.values()})
    head = {
        "command": shlex.join(["python", "training/evaluate_detection.py", *arguments]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": host(),
        "versions": versions(),
        "detector": {"file": Path(config.detector or SHIPPED).name, "engines": engines},
        "models": {name: network.as_dict() for name, network in networks.items()},
    }
    if len({finder.file for finder in finders.values()}) == 1:
        head["detector"].update(next(iter(finders.values())).record())
    else:
        head["detector"]["rows"] = {row: finder.record() for row, finder in finders.items()}
    write_text(
        output / "detection.json",
        json.dumps({**head, "sets": without_nan(results)}, indent=1) + "\n",
    )
    write_text(output / "detection.md", "\n".join(text))
    print(f"{output / 'detection.json'}, detection.md" + (", misses" if config.misses else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
