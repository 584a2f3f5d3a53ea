# SPDX-License-Identifier: AGPL-3.0-only
"""Folders of registered thermal and visible images: find them, list and split them, read them.

A pair folder holds `ir/` and `vi/` with equal stems. A data folder holds sets of splits, each a
pair folder: `<data>/<set>/<split>/{ir,vi}`. The split `validation` needs no folder of its own: it
is every eighth pair of `train`, which `train` then leaves out. Needs numpy and OpenCV only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VALIDATION_EVERY = 8
"""Every n-th pair of a `train` folder is kept back for validation."""
SPLITS = ("train", "validation", "val", "test")
ORDER = ("msrs", "tno", "roadscene", "harvard", "llvip")
"""Data sets that come first in tables, in this order; others follow by name."""
VIDEOS = ("m3svd", "simulated_video")
"""Data sets whose pairs are consecutive frames, a sequence in each folder."""


class DataError(ValueError):
    """A data folder is not as expected; the message names every problem and what to change."""


@dataclass(frozen=True)
class ImagePair:
    """One pair: luminances `ir`, `vi` `(H, W)` uint8, and the file of the visible image."""

    stem: str
    ir: np.ndarray
    vi: np.ndarray
    visible_file: Path

    def colour(self, luminance: np.ndarray) -> np.ndarray:
        """`(H, W, 3)` uint8 BGR: a luminance with CbCr of the visible image (BT.601).

        The runtime colours its fused images in the same way.
        """
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        ycrcb = cv2.cvtColor(cv2.imread(str(self.visible_file), flags), cv2.COLOR_BGR2YCrCb)
        ycrcb[..., 0] = luminance
        return cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2BGR)


@dataclass(frozen=True)
class PairSet:
    """The pairs of one split of a data set; iterating reads them one by one as `ImagePair`.

    Attributes:
        name: its path below the data folder, such as `msrs/test`.
        root: the folder with `ir/` and `vi/`.
        files: `(ir, vi)` of each pair, in the order of their stems.
    """

    name: str
    root: Path
    files: tuple[tuple[Path, Path], ...]

    @property
    def stems(self) -> list[str]:
        """File stems of the pairs."""
        return [ir.stem for ir, _ in self.files]

    def limited(self, count: int) -> PairSet:
        """The same set with at most `count` pairs, evenly spaced (0: all)."""
        kept = tuple(self.files[i] for i in spaced(len(self.files), count))
        return PairSet(self.name, self.root, kept)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[ImagePair]:
        for ir_file, vi_file in self.files:
            ir, vi = read_luminance(ir_file, thermal=True), read_luminance(vi_file)
            if ir.shape != vi.shape:
                raise DataError(
                    f"{self.name}/{ir_file.stem}: ir is {ir.shape}, vi {vi.shape} (height, width); "
                    "a pair must be registered and of one size"
                )
            yield ImagePair(ir_file.stem, ir, vi, vi_file)


def image_files(folder: Path) -> dict[str, Path]:
    """Image files of a folder by stem, sorted; empty if there is no such folder.

    Hidden files are left out: `._x.png`, which macOS writes beside `x.png`, is not an image.
    """
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in visible_files(folder) if path.suffix.lower() in EXTENSIONS}


def visible_files(folder: Path) -> list[Path]:
    """Entries of a folder but the hidden ones, sorted."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def list_pairs(root: Path) -> list[tuple[Path, Path]]:
    """`(ir, vi)` files of a pair folder in the order of their stems.

    Raises:
        DataError: a folder is missing or empty, or a stem has no partner; names up to eight.
    """
    root = Path(root)
    ir, vi = image_files(root / "ir"), image_files(root / "vi")
    for name, found in (("ir", ir), ("vi", vi)):
        if not found:
            raise DataError(
                f"{root / name}: no images; expected {root}/ir and {root}/vi with equal stems "
                f"({', '.join(EXTENSIONS)})"
            )
    if lonely := sorted(set(ir) ^ set(vi)):
        raise DataError(
            f"{root}: {len(lonely)} stems without a partner in the other folder: "
            f"{shorten(lonely)}; add or remove images so that the stems agree"
        )
    return [(ir[s], vi[s]) for s in sorted(ir)]


def is_video(name: str) -> bool:
    """Whether the pairs of a set, by its name, are consecutive frames of a video."""
    return name.partition("/")[0] in VIDEOS


def shorten(names: list[str], most: int = 8) -> str:
    """The first names, comma separated, with `...` if there are more."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def spaced(count: int, limit: int) -> list[int]:
    """At most `limit` (0: all) evenly spaced numbers below `count`, first and last included."""
    if not limit or limit >= count:
        return list(range(count))
    return np.linspace(0, count - 1, limit).astype(int).tolist()


def read_luminance(path: Path, thermal: bool = False) -> np.ndarray:
    """Luminance of an image file, `(H, W)` uint8 (BT.601 for colour).

    Of 16 bits the upper 8 are kept. Thermal sensors fill a small part of their 16 bits: such images
    are stretched linearly between their percentiles 1 and 99, as the runtime's gain control does.

    Raises:
        DataError: the file cannot be read, or has another depth or number of channels.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f"{path}: cannot be read as an image; replace or remove the file")
    if image.dtype == np.uint16 and thermal and image.ndim == 2:
        low, high = np.percentile(image, (1, 99))
        scaled = (image - low) * (255.0 / max(high - low, 1.0))
        image = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    elif image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"{path}: pixels are {image.dtype}; expected 8 or 16 bit")
    if image.ndim == 2:
        return image
    if image.shape[2] not in (3, 4):
        raise DataError(f"{path}: {image.shape[2]} channels; expected 1 (grey), 3 or 4 (colour)")
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2YCrCb)[..., 0]


def read_class_ids(path: Path) -> np.ndarray:
    """Class id of each pixel of a label image, `(H, W)` uint8; of a palette PNG its indices.

    Raises:
        DataError: the file cannot be read, or is a colour image, whose colours are not ids.
    """
    # Pillow, since OpenCV turns the indices of a palette into colours.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: cannot be read as a label image ({error})") from error
    if labels.ndim != 2 or labels.max(initial=0) > 255:
        raise DataError(
            f"{path}: {image.mode} image; expected one channel (or a palette) of class ids 0 to 255"
        )
    return labels.astype(np.uint8)


def is_pair_folder(folder: Path) -> bool:
    """Whether a folder has `ir/` and `vi/`."""
    return (folder / "ir").is_dir() and (folder / "vi").is_dir()


def find_pair_folders(data: str | Path) -> dict[str, Path]:
    """Pair folders by name, those of `ORDER` first.

    A name is the path below the data folder, such as `msrs/test`. Where `data` is itself a split or
    a set, the name begins with the name of the set all the same.

    Args:
        data: pair folders, sets, or folders of sets (up to two levels below), comma separated;
            'auto' takes the first of $FUSION_DATA, `data`, `../shared/data` and `.` that has some.
    Raises:
        DataError: nothing found; says where it looked and what it expected.
    """
    auto = str(data) == "auto"
    if auto:
        places = [p for p in (os.environ.get("FUSION_DATA"), "data", "../shared/data", ".") if p]
    else:
        places = [p for p in str(data).split(",") if p]
    found: dict[str, Path] = {}
    for place in map(Path, places):
        here = _pair_folders_below(place)
        if auto and here:
            return _in_order(here)
        if not auto and not here:
            raise DataError(
                f"{place}: no pairs; expected {place}/ir and {place}/vi, or a folder of sets with "
                f"{place}/<set>/<split>/ir and .../vi"
            )
        if twice := sorted(n for n in set(found) & set(here) if not found[n].samefile(here[n])):
            raise DataError(
                f"{shorten(twice)}: in more than one of the folders {', '.join(places)}; "
                "rename one of them, or give one folder of sets"
            )
        found |= here
    if not found:
        raise DataError(
            f"no image pairs in {', '.join(places)}; give data=<folder with ir/ and vi/> or "
            "data=<folder of sets> with <set>/<split>/ir and .../vi"
        )
    return _in_order(found)


def _pair_folders_below(place: Path) -> dict[str, Path]:
    top = place.resolve()
    folders = [place, *sorted(place.glob("*")), *sorted(place.glob("*/*"))]
    found = {}
    for folder in folders:
        if folder.name.startswith(".") or not is_pair_folder(folder):
            continue
        parts = folder.relative_to(place).parts
        if not parts:
            parts = (top.parent.name, top.name) if top.name in SPLITS else (top.name,)
        elif len(parts) == 1 and parts[0] in SPLITS:
            parts = (top.name, *parts)
        found["/".join(parts)] = folder
    return found


def _in_order(found: dict[str, Path]) -> dict[str, Path]:
    def place(name: str) -> int:
        first = name.partition("/")[0]
        return ORDER.index(first) if first in ORDER else len(ORDER)

    return {name: found[name] for name in sorted(found, key=place)}


def find_sets(
    data: str | Path = "auto", names: Iterable[str] = (), split: str = "", limit: int = 0
) -> list[PairSet]:
    """Pair sets below a data folder: those named, those of a split, or all that are not `train`.

    For `validation` a set's folder `validation` or `val` is used where it has one; `train` is then
    whole. Else every eighth pair of `train` is `validation`, and `train` is the others. A pair
    folder that `data` names itself is split in the same way, unless it is called `test`.

    Args:
        data: as for `find_pair_folders`.
        names: of sets with their split, such as `msrs/test` or `msrs/validation`.
        split: 'train', 'validation' or 'test', of all sets that have it; in place of `names`.
        limit: greatest number of pairs of each set, evenly spaced (0: all).
    Raises:
        DataError: no such data, name or split, of which the message lists what there is; or a
            limit below 0.
    """
    if limit < 0:
        raise DataError(f"limit={limit}: expected 0 (all pairs) or more")
    found = find_pair_folders(data)
    named = {Path(place).resolve() for place in str(data).split(",")}
    parts: dict[str, tuple[Path, str]] = {}  # by name: the folder, and which part of it
    by_split: dict[str, list[str]] = {kind: [] for kind in ("train", "validation", "test")}
    for name, folder in found.items():
        base, _, kind = name.rpartition("/")
        if kind in ("validation", "val"):
            parts[name] = folder, "all"
            by_split["validation"].append(name)
        elif kind == "train" or (kind != "test" and folder.resolve() in named):
            base = base if kind == "train" else name
            own = any(f"{base}/{held}" in found for held in ("validation", "val"))
            parts[name] = folder, "all" if own else "train"
            by_split["train"].append(name)
            if not own:
                parts[f"{base}/validation"] = folder, "validation"
                by_split["validation"].append(f"{base}/validation")
        else:
            parts[name] = folder, "all"
            by_split["test"] += [name] if kind == "test" else []
    names = list(names)
    if split:
        names = by_split.get(split, [])
        if not names:
            raise DataError(f"no split '{split}' in {data}; there are {', '.join(found)}")
    elif not names:
        names = [n for n in found if n.rpartition("/")[2] not in SPLITS[:-1]] or list(found)
    if unknown := [name for name in names if name not in parts]:
        raise DataError(f"no set {', '.join(unknown)} in {data}; there are {', '.join(parts)}")
    sets = []
    for name in names:
        folder, part = parts[name]
        if part == "train" and not (split or name.endswith("/train")):
            part = "all"  # measured as a whole; only training leaves pairs out
        files = part_of(list_pairs(folder), part)
        if files:
            sets.append(PairSet(name, folder, tuple(files)).limited(limit))
    if not sets:
        raise DataError(
            f"{', '.join(names)}: no pairs; a set needs {VALIDATION_EVERY} or more in its train "
            "folder for a validation part"
        )
    return sets


def part_of(files: list, part: str) -> list:
    """'all' files, or those for 'train' or 'validation': every eighth is for validation.

    The choice depends on the order of the files only, so that all programs make the same one.
    """
    if part == "all":
        return files
    held = part == "validation"
    return [f for i, f in enumerate(files) if ((i + 1) % VALIDATION_EVERY == 0) == held]
