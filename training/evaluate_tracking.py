# SPDX-License-Identifier: AGPL-3.0-only
"""Measures over sequences how steadily a detector and the tracker find each object.

    python training/evaluate_tracking.py                        # the shipped detector, all methods
    python training/evaluate_tracking.py detector=yolov8n_coco.onnx scenes=night,smoke images=100
    python training/evaluate_tracking.py scenes= videos=m3svd                  # real videos

For each camera alone, each rule and each method: recall (share of the images of an object in which
it is found), identity breaks (its number changes) and detections of nothing. The street's objects
are known exactly; one counts where a third of it can be seen and it is 12 pixels high or more. A
real video has no labels; its objects are what the tracker follows in at least `least` images of
one camera alone, so that the question is what fusing hides of it. Settings are `key=value`:

    detector, methods, pictures, backend, precision, threads, iou   as in evaluate_detection.py
    confidence  least score of a detection
    scenes      of the simulated street, comma separated
    videos      sets of consecutive frames, such as m3svd or m3svd/0111_1716; data as in evaluate.py
    least       images in which a camera alone must show an object of a video
    images, rate   of each sequence, and images in a second; video_rate of the videos
    size        of the images
    seed        of the street
    output      folder of the images, tracking.json and tracking.md
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
from evaluate import host, load_networks, open_sets, versions
from evaluate_detection import DEFAULTS as DETECTION
from evaluate_detection import without_nan
from tqdm import tqdm

from fusion_models.detection import SHIPPED
from fusion_models.detection.pictures import SOURCES, Picture, choose
from fusion_models.detection.pictures import pictures as all_pictures
from fusion_models.evaluation.tracks import Record, Seen, shown_by, total
from fusion_models.files import write_text
from fusion_models.pairs import PairSet, is_video, list_pairs
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_ros.cameras.street.scene import CameraModel
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal
from fusion_ros.frame.detector import Detector
from fusion_ros.frame.thermal import GainControl
from fusion_ros.frame.tracking import Tracker
from fusion_ros.inference import EngineError, load_engine
from fusion_ros.size import Size

LEAST_SHARE, LEAST_HEIGHT = 0.33, 12.0
DEFAULTS = {
    **{k: DETECTION[k] for k in ("detector", "methods", "pictures", "backend", "precision",
                                 "threads", "iou")},
    "confidence": 0.25, "scenes": "day,dusk,night,smoke,glare", "videos": "", "data": "auto",
    "least": 5, "images": 60, "rate": 10.0, "video_rate": 30.0, "size": "640x480", "seed": 0,
    "output": "evaluation",
}  # fmt: skip


@dataclass(frozen=True)
class Sequence:
    """One sequence.

    Attributes:
        truth: what each pair shows; None where no labels say so.
        seconds: time of each pair.
    """

    pairs: PairSet
    truth: list[Seen] | None
    seconds: list[float]


def simulate(folder: Path, scene: str, images: int, rate: float, size: Size, seed: int) -> Sequence:
    """Draw a sequence as files, registered and with gain control as in the node."""
    camera = CameraModel.from_fov(*size, 57.0)
    rgb, thermal = SimulatedRgb(camera, scene, seed), SimulatedThermal(camera, scene, seed)
    gain, truth = GainControl(), []
    seconds = [10 + number / rate for number in range(images)]
    for name in ("ir", "vi"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, time_s in enumerate(seconds):
        stem = f"{number:05d}"
        cv2.imwrite(str(folder / "vi" / f"{stem}.png"), rgb.render(time_s))
        cv2.imwrite(str(folder / "ir" / f"{stem}.png"), gain.apply(thermal.render(time_s)))
        shown = [
            t for t in rgb.truth(time_s) if t.visible >= LEAST_SHARE and t.height >= LEAST_HEIGHT
        ]
        corners = [(t.x, t.y, t.x + t.width, t.y + t.height) for t in shown]
        truth.append(Seen([t.name for t in shown], [_kind(t.kind) for t in shown], corners))
    files = list_pairs(folder)[:images]
    return Sequence(PairSet(f"simulated/{scene}", folder, tuple(files)), truth, seconds)


def _kind(name: str) -> str:
    return "car" if name == "truck" else name  # the detectors differ in where a car ends


def found(picture, detector: Detector, tracker: Tracker, seconds: float) -> Seen:
    """Detections with the numbers of their tracks."""
    several = tracker.update(detector.detect(picture), seconds, detector.confidence)
    several = [d for d in several if _kind(d.class_name) in ("person", "bicycle", "car", "bus")]
    corners = [(d.x, d.y, d.x + d.width, d.y + d.height) for d in several]
    return Seen([d.track_id for d in several], [_kind(d.class_name) for d in several], corners)


def follow(sequence: Sequence, picture: Picture, detector: Detector) -> list[Seen]:
    """What is found in each image of one row on one sequence."""
    tracker = Tracker()
    return [
        found(picture(pair), detector, tracker, seconds)
        for pair, seconds in zip(sequence.pairs, sequence.seconds)
    ]


def measure(
    sequence: Sequence, rows: Mapping[str, Picture], detector: Detector, least: int
) -> dict[str, Record]:
    """Record of each row on one sequence."""
    shown = tqdm(rows.items(), desc=sequence.pairs.name, leave=False, disable=None)
    seen = {name: follow(sequence, picture, detector) for name, picture in shown}
    truth = sequence.truth
    if truth is None:
        truth = shown_by({name: seen[name] for name in ("infrared", "visible")}, least)
    records = {name: Record() for name in rows}
    for name, several in seen.items():
        for known, one in zip(truth, several):
            records[name].add(known, one)
    return records


def videos(config, folder: Path) -> list[Sequence]:
    """The videos that the settings name."""
    if not config.videos:
        return []
    found = open_sets(config.data, config.videos, "", config.images, 1, folder)
    for pairs in found:
        if not is_video(pairs.name):
            raise ConfigError(f"videos={config.videos}: {pairs.name} has no consecutive frames")
    return [
        Sequence(pairs, None, [10 + n / config.video_rate for n in range(len(pairs))])
        for pairs in found
    ]


def rows_of(config) -> dict:
    """The pictures to measure by name."""
    networks = {}
    if config.methods != "none":
        networks = load_networks(config.methods, config.backend, config.precision, config.threads)
    every = all_pictures(networks)
    chosen = choose(every, config.pictures)
    return {**chosen, **{name: every[name] for name in networks}}


def table(records: dict[str, dict[str, Record]]) -> Iterator[str]:
    """Lines of a table: all sequences together, and the recall in each."""
    scenes = list(next(iter(records.values())))
    head = ["", "recall", "breaks a hundred", "wrong an image", *(f"recall, {s}" for s in scenes)]
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for name, by_scene in records.items():
        whole = total(list(by_scene.values())).as_dict()
        figures = [whole["recall"], whole["breaks a hundred"], whole["wrong an image"]]
        text = [f"{figures[0]:.3f}", f"{figures[1]:.1f}", f"{figures[2]:.2f}"]
        text += [
            f"{record.recall:.3f}" if record.shown else "no objects" for record in by_scene.values()
        ]
        yield f"| {name} | " + " | ".join(text) + " |"


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        if config.images < 2 or config.rate <= 0 or config.video_rate <= 0 or config.least < 1:
            raise ConfigError("images: expected 2 or more; rate, video_rate, least: over 0")
        scenes = [scene for scene in config.scenes.split(",") if scene]
        if not scenes and not config.videos:
            raise ConfigError("nothing to measure: give scenes= or videos=")
        path = Path(config.detector or SHIPPED)
        if not path.is_file():
            raise ConfigError(f"no detector at {path}; give detector=<file.onnx>")
        detector = Detector(
            load_engine(path, config.backend, threads=config.threads),
            confidence=config.confidence, iou=config.iou,
        )  # fmt: skip
        rows, size = rows_of(config), Size.parse(config.size)
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        if config.videos and not set(SOURCES) <= set(rows):
            raise ConfigError(f"videos= needs the pictures {', '.join(SOURCES)}")
        parts: dict[str, dict[str, dict[str, Record]]] = {}
        real = videos(config, output)
        for scene in scenes:
            folder = output / "sequences" / scene
            sequence = simulate(folder, scene, config.images, config.rate, size, config.seed)
            for name, record in measure(sequence, rows, detector, config.least).items():
                parts.setdefault("simulated", {}).setdefault(name, {})[scene] = record
        for sequence in real:
            for name, record in measure(sequence, rows, detector, config.least).items():
                parts.setdefault("videos", {}).setdefault(name, {})[sequence.pairs.name] = record
    except (ValueError, OSError, EngineError) as error:
        print(f"evaluate_tracking.py: {error}", file=sys.stderr)
        return 2
    text = "\n".join(
        f"**{part}**\n\n" + "\n".join(table(records)) + "\n" for part, records in parts.items()
    )
    print(text)
    record = {
        "command": shlex.join(["python", "training/evaluate_tracking.py", *arguments]),
        "host": host(), "versions": versions(), "detector": path.name,
        **{
            part: {n: {s: r.as_dict() for s, r in by.items()} for n, by in records.items()}
            for part, records in parts.items()
        },
    }  # fmt: skip
    write_text(output / "tracking.json", json.dumps(without_nan(record), indent=1) + "\n")
    write_text(output / "tracking.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
