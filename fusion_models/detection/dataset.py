# SPDX-License-Identifier: AGPL-3.0-only
"""Labelled pairs as a data set of ultralytics: pictures, label files and its YAML in one folder.

    <folder>/images/<split>/<picture>-<set>-<stem>.jpg
    <folder>/labels/<split>/<picture>-<set>-<stem>.txt     class x y width height, in our classes
    <folder>/<split>.txt                                   the pictures that belong to it
    <folder>/data.yaml, <folder>/dataset.json

Labels come in YOLO form beside the pairs (`fusion_models.boxes`), or in COCO form as
`boxes.json`. Classes are matched by name; what is named in neither is listed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from fusion_models.boxes import Boxes, BoxReport, class_names, read_boxes
from fusion_models.detection.pictures import Picture
from fusion_models.files import write_text
from fusion_models.pairs import DataError, ImagePair, PairSet

CLASSES = ("person", "bicycle", "car", "bus")
"""Classes of the shipped detector. Real labels have the first three, simulated scenes all."""
ALIASES = {"people": "person", "pedestrian": "person", "bike": "bicycle", "cyclist": "bicycle"}
"""Other data sets' names of the same objects."""
LEAST_PIXELS = 3.0
"""Boxes narrower or lower than this before resizing are left out of training."""


def match_classes(labels: Sequence[str], wanted: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Number in `wanted` of each class of `labels`, -1 where there is none, and those without.

    Names agree without regard to case, and by `ALIASES`.
    """
    names = [ALIASES.get(name.lower(), name.lower()) for name in labels]
    number = {ALIASES.get(n.lower(), n.lower()): i for i, n in enumerate(wanted)}
    table = np.array([number.get(name, -1) for name in names], np.int64)
    return table, [label for label, n in zip(labels, table) if n < 0]


def read_labels(
    pairs: PairSet, wanted: Sequence[str] = CLASSES, report: BoxReport | None = None
) -> tuple[dict[str, Boxes], BoxReport]:
    """Boxes of a set in the numbers of `wanted`, by stem; see `boxes.read_boxes`.

    `<set>/boxes.json` in COCO form is read where there is no folder `boxes/`. Boxes of classes that
    `wanted` lacks are left out and counted in the report as `unmapped class <name>`.

    Raises:
        DataError: no labels, or none whose class is wanted.
    """
    report = report or BoxReport()
    own = BoxReport(problems=report.problems)  # counts by the labels' own names
    if (pairs.root / "boxes").is_dir() or not (pairs.root / "boxes.json").is_file():
        found, _ = read_boxes(pairs, "union", own)
        names: Sequence[str] = class_names(pairs.root)
    else:
        found, names = _read_coco(pairs, own)
    table, _ = match_classes(names, wanted)
    mapped = {}
    for stem, boxes in found.items():
        numbers = table[boxes.classes]
        for lost in boxes.classes[numbers < 0]:
            report.note(f"unmapped class {names[lost]}", f"{pairs.name}/{stem}")
        kept = numbers >= 0
        mapped[stem] = Boxes(numbers[kept], boxes.corners[kept])
        report.objects.update(wanted[n] for n in numbers[kept])
    if not any(len(boxes) for boxes in mapped.values()):
        raise DataError(
            f"{pairs.name}: no box of {', '.join(wanted)}; the labels have {', '.join(names)}"
        )
    return mapped, report


def _read_coco(pairs: PairSet, report: BoxReport) -> tuple[dict[str, Boxes], list[str]]:
    """Boxes by stem and class names of `boxes.json`; images without an entry are noted."""
    path = pairs.root / "boxes.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {c["id"]: str(c["name"]).lower() for c in data["categories"]}
        images = {i["id"]: i for i in data["images"]}
        annotations = [(a["image_id"], a["category_id"], a["bbox"]) for a in data["annotations"]]
        sizes = {k: (float(i["width"]), float(i["height"])) for k, i in images.items()}
        stems = {k: Path(i["file_name"]).stem for k, i in images.items()}
        if wrong := [stems[k] for k, size in sizes.items() if not min(size) > 0]:
            raise ValueError(f"no width and height of {wrong[0]}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not in COCO form ({error!r}); expected images, annotations and categories"
        ) from None
    order = sorted(names)
    kept: dict[str, list[tuple[int, np.ndarray]]] = {stem: [] for stem in stems.values()}
    for number, (image, category, box) in enumerate(annotations):
        where = f"boxes.json annotation {number}"
        if image not in images or category not in names:
            what = f"unknown image {image}" if image not in images else f"unknown class {category}"
            report.note(what, where)
            continue
        try:
            left, top, width, height = map(float, box)
            if not np.isfinite((left, top, width, height)).all():
                raise ValueError("not finite")
        except (TypeError, ValueError):
            raise DataError(
                f"{path}: annotation {number} has the bbox {str(box)[:60]}; expected left, top, "
                "width, height in pixels"
            ) from None
        if width < 0 or height < 0:
            report.note("swapped corners, corrected", where)
            left, top = min(left, left + width), min(top, top + height)
            width, height = abs(width), abs(height)
        corners = np.array([left, top, left + width, top + height]) / (sizes[image] * 2)
        inside = corners.clip(0, 1)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            kind_of = "without area" if not width * height else "outside the image"
            report.note(f"{kind_of}, left out", where)
            continue
        if np.abs(inside - corners).max() > 1e-3:
            report.note("partly outside the image, clipped", where)
        kept[stems[image]].append((order.index(category), inside))
    found = {}
    for stem in pairs.stems:
        if stem not in kept:
            report.note("no labels", stem)
        elif kept[stem]:
            numbers, corners = zip(*kept[stem])
            found[stem] = Boxes(np.array(numbers, np.int64), np.array(corners, np.float32))
        else:
            report.note("images without a box", stem)
            found[stem] = Boxes.empty()
    for stem in sorted(set(stems.values()) - set(pairs.stems)):
        report.note("labels without a pair", stem)
    if not found:
        raise DataError(f"{path}: no labels for any of the {len(pairs)} pairs of {pairs.name}")
    return found, [names[i] for i in order]


def resized_pairs(pairs: PairSet, folder: Path, size: tuple[int, int]) -> PairSet:
    """The same pairs brought to one width and height, as files in `folder`.

    Pairs that were squeezed to another format get their proportions back, and large ones, which
    cost time, the size at which they are fused.
    """
    files = []
    for pair_files in pairs.files:
        targets = []
        for name, source in zip(("ir", "vi"), pair_files):
            target = folder / name / f"{source.stem}.png"
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                flags = cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_COLOR if name == "vi" else 0)
                picture = cv2.imread(str(source), flags | cv2.IMREAD_IGNORE_ORIENTATION)
                if picture is None:
                    raise DataError(f"{source}: cannot be read as an image; replace or remove it")
                smaller = size[0] < picture.shape[1]
                way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
                _write(target, cv2.resize(picture, size, interpolation=way))
            targets.append(target)
        files.append((targets[0], targets[1]))
    return PairSet(pairs.name, folder, tuple(files))


def _write(path: Path, picture: np.ndarray) -> None:
    """Write an image file, which is whole or not there at all."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    png = path.suffix == ".png"
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 1] if png else [cv2.IMWRITE_JPEG_QUALITY, 95]
    if not cv2.imwrite(str(partial), picture, settings):
        raise OSError(f"cannot write {path}: is there space, and the right to write?")
    os.replace(partial, path)


@dataclass
class Part:
    """Pairs of one set for one split of the data set.

    Attributes:
        pictures: by name; each pair gives `draws` of them, chosen at random (0: all).
        marks: added to the name of a picture's files, say the checksum of its network: pictures of
            an older network are then not taken for those of the new one.
        longest: longer side in pixels of the pictures as written (0: as they are). They are made
            at the pairs' size and resized after it as the node does it for its detector: what a
            network makes of a large pair is not what it makes of a small one.
    """

    pairs: PairSet
    labels: Mapping[str, Boxes]
    pictures: Mapping[str, Picture]
    draws: int = 0
    marks: Mapping[str, str] = field(default_factory=dict)
    longest: int = 0


@dataclass
class Written:
    """What a data set holds: pictures by split, objects by split and class, by kind of picture."""

    pictures: Counter = field(default_factory=Counter)
    objects: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)


def write_dataset(
    folder: Path,
    parts: Mapping[str, Iterable[Part]],
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    each: Callable = lambda name: None,
) -> Path:
    """Write the pictures and labels of all splits; pictures that are there already stay.

    Args:
        parts: by split, 'train' and 'val'.
        each: called with the name of each picture, for a progress bar.
    Returns:
        The YAML that ultralytics' trainers take.
    """
    rng = np.random.default_rng(seed)
    written = Written()
    for split, several in parts.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        listed = []
        for part in several:
            names = list(part.pictures)
            for files, stem in zip(part.pairs.files, part.pairs.stems):
                chosen = names
                if 0 < part.draws < len(names):
                    chosen = [names[i] for i in rng.permutation(len(names))[: part.draws]]
                if stem not in part.labels:
                    continue
                one = PairSet(part.pairs.name, part.pairs.root, (files,))
                pair: ImagePair | None = None
                for name in chosen:
                    set_name = part.pairs.name.replace("/", "_")
                    mark = f"@{part.marks[name]}" if name in part.marks else ""
                    file = f"{name.replace(' ', '_')}{mark}-{set_name}-{stem}"
                    target = images / f"{file}.jpg"
                    if not target.is_file() or not (labels / f"{file}.txt").is_file():
                        if pair is None:
                            pair = next(iter(one))
                        picture = _resized(part.pictures[name](pair), part.longest)
                        boxes = _write_picture(target, picture, part.labels[stem])
                        write_text(labels / f"{file}.txt", boxes.as_yolo())
                    lines = (labels / f"{file}.txt").read_text().splitlines()
                    listed.append(f"./images/{split}/{file}.jpg\n")
                    written.pictures[split] += 1
                    written.kinds[name] += 1
                    written.objects.update(
                        f"{split} {classes[int(line.split()[0])]}" for line in lines
                    )
                    each(file)
        write_text(folder / f"{split}.txt", "".join(listed))
    text = json.dumps(
        {
            "path": str(folder.resolve()),
            "train": "train.txt",
            "val": "val.txt",
            "names": dict(enumerate(classes)),
        },
        indent=1,
    )  # JSON is YAML
    write_text(folder / "data.yaml", text)
    write_text(
        folder / "dataset.json",
        json.dumps({k: dict(v) for k, v in vars(written).items()}, indent=1) + "\n",
    )
    return folder / "data.yaml"


def _resized(picture: np.ndarray, longest: int) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if not 0 < scale < 1:
        return picture
    size = (round(width * scale), round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)


def _write_picture(path: Path, picture: np.ndarray, boxes: Boxes) -> Boxes:
    """Write one picture; returns the boxes that are large enough in it."""
    height, width = picture.shape[:2]
    sizes = (boxes.corners[:, 2:] - boxes.corners[:, :2]) * (width, height)
    kept = (sizes >= LEAST_PIXELS).all(1)
    _write(path, picture)
    return Boxes(boxes.classes[kept], boxes.corners[kept])
