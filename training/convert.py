# SPDX-License-Identifier: AGPL-3.0-only
"""Turn published data sets into the folders that training and evaluation read.

    python training/convert.py dataset=msrs source=~/MSRS output=data/msrs
    python training/convert.py dataset=llvip source=~/LLVIP output=data/llvip max_width=640 every=4
    python training/convert.py dataset=roadscene source=~/RoadScene test=test_stems.txt symlink=true

Writes `<output>/<split>/{ir,vi,labels,boxes/fusion}/<stem>`, split as by the authors of the set:
    msrs       {train,test}/{ir,vi,Segmentation_labels}/
    llvip      {infrared,visible}/{train,test}/, Annotations/<stem>.xml
    roadscene  cropinfrared/, crop_LR_visible/; no split
    m3fd       Ir/, Vis/, Annotation/<stem>.xml; meta/{train,val,test}.txt where a release has them
    mfnet      images/ (colour and thermal, four channels), labels/, {train,val,test}.txt; without
               the mirrored copies `*_flip`, since training mirrors by itself

Settings as `key=value`:
    dataset    one of those above
    source     folder of the set, unpacked
    output     folder to write, which must not exist; default data/<dataset>
    test       for sets without a split: text file with a stem a line; the rest is for training
    symlink    link images that do not change instead of copying them
    max_width  make images wider than this smaller (0: never)
    every      take every n-th pair only; neighbours of a video are near-identical

Images that do not change are copied byte by byte. Labels are PNG of class ids, those of MSRS and
MFNet: 1 car, 2 person, 3 bike. Where a set has boxes, the boxes are filled with the id of their
class, persons on top; other kinds of objects are left out. The boxes are also written in YOLO form
(`class x y width height`, centre and size as shares of the image); the lines of
`<output>/classes.txt` are their classes. Hidden files are left out, swapped corners of boxes put
right and counted.
"""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from fusion_models.boxes import Boxes
from fusion_models.pairs import EXTENSIONS, DataError, read_class_ids, shorten, visible_files
from fusion_models.settings import ConfigError, merge_settings, show_help

DEFAULTS = {
    "dataset": "", "source": "", "output": "", "test": "", "symlink": False, "max_width": 0,
    "every": 1,
}  # fmt: skip
LAYOUTS = {
    "msrs": "{train,test}/{ir,vi,Segmentation_labels}/*.png",
    "llvip": "{infrared,visible}/{train,test}/*.jpg, Annotations/*.xml",
    "roadscene": "{cropinfrared,crop_LR_visible}/*.jpg",
    "m3fd": "{Ir,Vis}/*.png, Annotation/*.xml",
    "mfnet": "{images,labels}/*.png, {train,val,test}.txt",
}
BOX_CLASSES = {
    "llvip": ("person",), "m3fd": ("People", "Car", "Bus", "Lamp", "Motorcycle", "Truck"),
}  # fmt: skip
"""Classes of the boxes of a set in the order of their YOLO ids; those of M3FD as TarDAL's."""
SYNONYMS = {"people": "person", "pedestrian": "person", "person": "people", "bicycle": "bike"}
"""Other names of classes that relabelled copies of the sets use."""
CLASS_IDS = {
    "car": 1, "bus": 1, "truck": 1, "person": 2, "people": 2, "pedestrian": 2, "bike": 3,
    "bicycle": 3, "motorcycle": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Where one pair of a published set lies.

    Attributes:
        ir, vi: image files, the same one where colour and thermal are its four channels.
        label: PNG of class ids, XML of boxes (Pascal VOC), or None.
    """

    split: str
    ir: Path
    vi: Path
    label: Path | None

    @property
    def stem(self) -> str:
        return self.ir.stem


def child(folder: Path, name: str) -> Path:
    """A folder or file by name, whose case differs between releases. DataError if there is none."""
    exact = folder / name
    same = [p for p in folder.glob("*") if p.name.lower() == name.lower()]
    if not exact.exists() and not same:
        there = shorten([p.name for p in visible_files(folder)])
        raise DataError(f"no {name} in {folder}; there is {there or 'nothing'}")
    return exact if exact.exists() else same[0]


def by_stem(folder: Path, *endings: str) -> dict[str, Path]:
    files = [p for p in visible_files(folder) if p.suffix.lower() in endings]
    if not files:
        raise DataError(f"no files in {folder}; expected {', '.join(endings)}")
    return {p.stem: p for p in files}


def pairs(
    split: str, ir_folder: Path, vi_folder: Path, label_folder: Path | None = None
) -> list[Sample]:
    """The pairs of two folders by stem; DataError naming stems without a partner."""
    ir, vi = by_stem(ir_folder, *EXTENSIONS), by_stem(vi_folder, *EXTENSIONS)
    if lonely := sorted(set(ir) ^ set(vi)):
        raise DataError(
            f"{ir_folder} and {vi_folder}: {len(lonely)} stems in one of them only: "
            f"{shorten(lonely)}; unpack the set again"
        )
    labels = by_stem(label_folder, ".png", ".xml") if label_folder else {}
    return [Sample(split, ir[stem], vi[stem], labels.get(stem)) for stem in ir]


def optional(folder: Path, name: str) -> Path | None:
    try:
        return child(folder, name)
    except DataError:
        return None


def read_list(path: Path) -> set[str]:
    """Stems of a text file with one file name or stem a line."""
    if not path.is_file():
        raise DataError(f"no list of stems {path}")
    stems = {Path(line.strip()).stem for line in path.read_text().splitlines() if line.strip()}
    return {stem for stem in stems if not stem.endswith("_flip")}


def assign(samples: list[Sample], lists: dict[str, Path]) -> list[Sample]:
    """The samples in the splits of the lists; those in none are for training, if no list is."""
    stems = {split: read_list(path) for split, path in lists.items()}
    known = {sample.stem for sample in samples}
    for split, wanted in stems.items():
        if missing := sorted(wanted - known):
            raise DataError(
                f"{lists[split]}: {len(missing)} of {len(wanted)} stems have no images, such as "
                f"{', '.join(missing[:5])}"
            )
    rest = None if "train" in stems else "train"
    placed = [(next((s for s in stems if x.stem in stems[s]), rest), x) for x in samples]
    return [Sample(split, x.ir, x.vi, x.label) for split, x in placed if split]


def read_msrs(source: Path) -> list[Sample]:
    return [
        sample for split in ("train", "test") for folder in (child(source, split),)
        for sample in pairs(split, child(folder, "ir"), child(folder, "vi"),
                            optional(folder, "Segmentation_labels"))
    ]  # fmt: skip


def read_llvip(source: Path) -> list[Sample]:
    ir, vi = child(source, "infrared"), child(source, "visible")
    boxes = optional(source, "Annotations")
    return [
        sample for split in ("train", "test")
        for sample in pairs(split, child(ir, split), child(vi, split), boxes)
    ]  # fmt: skip


def read_roadscene(source: Path) -> list[Sample]:
    return pairs("train", child(source, "cropinfrared"), child(source, "crop_LR_visible"))


def read_m3fd(source: Path) -> list[Sample]:
    labels = optional(source, "Annotation")
    samples = pairs("train", child(source, "Ir"), child(source, "Vis"), labels)
    meta = source / "meta"
    lists = {split: meta / f"{split}.txt" for split in ("train", "val", "test")}
    return assign(samples, {k: path for k, path in lists.items() if path.is_file()})


def read_mfnet(source: Path) -> list[Sample]:
    images = child(source, "images")
    samples = [
        sample for sample in pairs("train", images, images, optional(source, "labels"))
        if not sample.stem.endswith("_flip")
    ]  # fmt: skip
    return assign(samples, {s: child(source, f"{s}.txt") for s in ("train", "val", "test")})


READERS: dict[str, Callable[[Path], list[Sample]]] = {
    "msrs": read_msrs, "llvip": read_llvip, "roadscene": read_roadscene, "m3fd": read_m3fd,
    "mfnet": read_mfnet,
}  # fmt: skip
UNSPLIT = ("roadscene", "m3fd")


def read_image(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f"{path} cannot be read as an image; unpack the set again")
    return image


@dataclass(frozen=True)
class Box:
    """A box of an annotation: its class in lower case, and its edges, pixels that belong to it."""

    name: str
    left: int
    top: int
    right: int
    bottom: int


def read_boxes(path: Path, height: int, width: int, faults: Counter) -> list[Box]:
    """The boxes in a Pascal VOC file, clipped to the image.

    Swapped corners are corrected; boxes outside the image or without area are left out. Both are
    counted in `faults`.

    Raises:
        DataError: the file is no Pascal VOC annotation.
    """
    boxes = []
    try:
        root = ElementTree.fromstring(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        for thing in root.iter("object"):
            box = thing.find("bndbox")
            x1, y1, x2, y2 = (
                round(float(box.findtext(key))) for key in ("xmin", "ymin", "xmax", "ymax")
            )
            faults["boxes with swapped corners, corrected"] += x1 > x2 or y1 > y2
            left, right = sorted((x1, x2))
            top, bottom = sorted((y1, y2))
            if left == right or top == bottom:
                faults["boxes without area, left out"] += 1
            elif left >= width or top >= height or right < 0 or bottom < 0:
                faults["boxes outside the image, left out"] += 1
            else:
                clipped = max(left, 0), max(top, 0), min(right, width - 1), min(bottom, height - 1)
                boxes.append(Box(thing.findtext("name", "").strip().lower(), *clipped))
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a Pascal VOC annotation: {error}") from error
    return boxes


def draw_boxes(boxes: list[Box], height: int, width: int) -> np.ndarray:
    """`(height, width)` uint8 class ids of the filled boxes."""
    label = np.zeros((height, width), np.uint8)
    # Bikes, cars, persons: what a person rides or hides must not hide the person.
    for class_id in (3, 1, 2):
        for box in boxes:
            if CLASS_IDS.get(box.name) == class_id:
                label[box.top : box.bottom + 1, box.left : box.right + 1] = class_id
    return label


def as_yolo(boxes: list[Box], classes: tuple[str, ...], height: int, width: int) -> str:
    """A line of YOLO text for each box; DataError for a class that is not among `classes`."""
    ids = {name.lower(): i for i, name in enumerate(classes)}
    ids |= {
        other: ids[name] for other, name in SYNONYMS.items() if name in ids and other not in ids
    }
    if unknown := [box.name for box in boxes if box.name not in ids]:
        raise DataError(f"class '{unknown[0]}'; expected {', '.join(classes)}")
    # The last pixel belongs to the box, so its edge is one further.
    edges = [(box.left, box.top, box.right + 1, box.bottom + 1) for box in boxes]
    corners = np.array(edges, float).reshape(-1, 4) / (width, height, width, height)
    return Boxes(np.array([ids[box.name] for box in boxes], np.int64), corners).as_yolo()


def convert(
    sample: Sample, folder: Path, max_width: int, symlink: bool = False,
    classes: tuple[str, ...] = (), faults: Counter | None = None,
) -> bool:  # fmt: skip
    """Write one pair below `<folder>/<split>`; return whether it has a label.

    Args:
        classes: of the boxes, in the order of their YOLO ids.
        faults: counts boxes that were corrected or left out, by reason.
    Raises:
        DataError: an image, a label or an annotation is not as this set has them.
    """
    faults = Counter() if faults is None else faults
    ir, vi = read_image(sample.ir), read_image(sample.vi)
    copied = sample.ir != sample.vi
    if not copied:
        if ir.ndim != 3 or ir.shape[2] != 4:
            raise DataError(f"{sample.ir}: {ir.shape}, expected four channels (colour, thermal)")
        ir, vi = ir[..., 3], vi[..., :3]
    if ir.shape[:2] != vi.shape[:2]:
        raise DataError(
            f"{sample.stem}: thermal is {ir.shape[1]}x{ir.shape[0]}, visible "
            f"{vi.shape[1]}x{vi.shape[0]}; the pairs of this set should be of one size"
        )
    height, width = ir.shape[:2]
    place = folder / sample.split
    label = None
    if sample.label and sample.label.suffix.lower() == ".xml":
        boxes = read_boxes(sample.label, height, width, faults)
        label = draw_boxes(boxes, height, width)
        try:
            text = as_yolo(boxes, classes, height, width)
        except DataError as error:
            raise DataError(f"{sample.label}: {error}") from None
        (place / "boxes" / "fusion").mkdir(parents=True, exist_ok=True)
        (place / "boxes" / "fusion" / f"{sample.stem}.txt").write_text(text)
    elif sample.label:
        label = read_class_ids(sample.label)
        if label.shape != (height, width):
            raise DataError(
                f"{sample.label}: {label.shape}, expected one channel of {(height, width)}"
            )
    if max_width and width > max_width:
        copied = False
        size = (max_width, round(height * max_width / width))
        ir, vi = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (ir, vi))
        if label is not None:
            label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    for name, source, image in (("ir", sample.ir, ir), ("vi", sample.vi, vi)):
        if copied:
            (place / name).mkdir(parents=True, exist_ok=True)
            target = place / name / source.name
            if symlink:
                target.symlink_to(os.path.abspath(source))
            else:
                shutil.copyfile(source, target)
        else:
            write_image(place / name / f"{sample.stem}.png", image)
    if label is not None:
        write_image(place / "labels" / f"{sample.stem}.png", label)
    return label is not None


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise DataError(f"cannot write {path}")


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        if config.dataset not in READERS:
            raise ConfigError(f"dataset='{config.dataset}': choose one of {', '.join(READERS)}")
        source = Path(config.source).expanduser()
        if not config.source or not source.is_dir():
            raise ConfigError(f"source='{config.source}': no such folder")
        output = Path(config.output or f"data/{config.dataset}").expanduser()
        if output.exists():
            raise ConfigError(f"{output} exists: remove it or give another output=")
        if config.every < 1 or config.max_width < 0:
            raise ConfigError("every must be >= 1 and max_width >= 0")
        try:
            samples = READERS[config.dataset](source)
        except DataError as error:
            expected = f"{config.dataset} is published as {source}/{LAYOUTS[config.dataset]}"
            raise DataError(f"{error}\n  {expected}") from None
        if config.test:
            if config.dataset not in UNSPLIT:
                raise ConfigError(f"test= is for sets without a split: {', '.join(UNSPLIT)}")
            samples = assign(samples, {"test": Path(config.test).expanduser()})
        if not samples:
            raise DataError(f"{source}: no images; expected {', '.join(EXTENSIONS)}")
        # Renamed when complete: an interrupted conversion leaves no data set.
        partial = output.with_name(output.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        classes = BOX_CLASSES.get(config.dataset, ())
        counts: dict[str, list[bool]] = {}
        faults: Counter = Counter()
        for sample in tqdm(samples[:: config.every], desc=config.dataset, leave=False):
            labelled = convert(sample, partial, config.max_width, config.symlink, classes, faults)
            counts.setdefault(sample.split, []).append(labelled)
        if any(sample.label for sample in samples) and classes:
            (partial / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
        partial.rename(output)
    except (ValueError, OSError) as error:
        print(f"convert.py: {error}", file=sys.stderr)
        return 2
    for split, labelled in counts.items():
        print(f"{output / split}: {len(labelled)} pairs, {sum(labelled)} with labels")
    for fault, count in faults.items():
        if count:
            print(f"{count} {fault}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
