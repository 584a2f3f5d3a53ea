# SPDX-License-Identifier: AGPL-3.0-only
"""Pairs of thermal and visible images from a folder with `ir/` and `vi/`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fusion_models.pairs import EXTENSIONS, visible_files

_FOLDERS = {
    "ir": ("ir", "infrared", "thermal"),
    "vi": ("vi", "vis", "visible", "rgb"),
}
"""Names that published sets give the folders, in small letters."""


class FilesError(ValueError):
    """A folder of pairs that cannot be used; the message says what to change."""


def _folder(root: Path, kind: str) -> Path:
    """The folder of thermal (`ir`) or visible (`vi`) images in `root`, however it is spelled."""
    for name in _FOLDERS[kind]:
        for path in visible_files(root):
            if path.name.lower() == name and path.is_dir():
                return path
    inside = [
        path.name
        for path in visible_files(root)
        if path.is_dir() and any((path / name).is_dir() for name in (kind, kind.capitalize()))
    ]
    hint = f"; is it one of the folders in it, {', '.join(inside[:5])}?" if inside else ""
    raise FilesError(
        f"no folder '{root / kind}': expected a folder with ir/ (thermal) and vi/ (visible) "
        f"images, one pair per file stem{hint}"
    )


def _images(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in visible_files(folder):  # without `._x.png`, which macOS writes beside `x.png`
        if path.suffix.lower() not in EXTENSIONS or not path.is_file():
            continue
        if path.stem in found:
            raise FilesError(
                f"'{found[path.stem].name}' and '{path.name}' in '{folder}' have the "
                "same stem: keep one of them"
            )
        found[path.stem] = path
    if not found:
        raise FilesError(f"no images in '{folder}': expected {', '.join(EXTENSIONS)}")
    return found


class PairFolder:
    """Image pairs in the order of their stems; sizes and formats may differ from pair to pair.

    Hidden files are left out.
    Raises `FilesError` when ir/ or vi/ is missing or empty, or when their stems do not agree.
    """

    def __init__(self, path: str | Path) -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise FilesError(f"no folder '{root}': expected a folder with ir/ and vi/")
        thermal, visible = (_images(_folder(root, kind)) for kind in _FOLDERS)
        if thermal.keys() != visible.keys():
            parts = [
                f"{len(only)} only in {name}/ ({', '.join(sorted(only)[:5])}"
                f"{', ...' if len(only) > 5 else ''})"
                for name, only in (
                    ("ir", thermal.keys() - visible.keys()),
                    ("vi", visible.keys() - thermal.keys()),
                )
                if only
            ]
            raise FilesError(
                f"the stems in '{root}' do not pair up: {'; '.join(parts)}. "
                "Every image needs a partner of the same stem in the other folder"
            )
        self.stems = sorted(thermal)
        self._thermal, self._visible = thermal, visible

    def __len__(self) -> int:
        return len(self.stems)

    def thermal(self, index: int) -> np.ndarray:
        """Thermal image of pair `index` modulo the number of pairs, (H, W) uint8 or uint16."""
        path = self._thermal[self.stems[index % len(self)]]
        image = _read(path)
        if image.ndim == 2:
            return image
        return cv2.cvtColor(
            image, cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY
        )

    def visible(self, index: int) -> np.ndarray:
        """Visible image of pair `index` modulo the number of pairs, (H, W, 3) uint8 BGR."""
        path = self._visible[self.stems[index % len(self)]]
        image = _read(path)
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        if image.ndim == 2:
            return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR) if image.shape[2] == 4 else image


def _read(path: Path) -> np.ndarray:
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise FilesError(f"cannot read '{path}': {error.strerror or error}") from error
    image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if len(encoded) else None
    if image is None:
        raise FilesError(
            f"'{path}' is not an image that OpenCV can read: replace or remove it "
            "together with its partner"
        )
    if image.dtype not in (np.uint8, np.uint16) or (
        image.ndim == 3 and image.shape[2] not in (3, 4)
    ):
        raise FilesError(
            f"'{path}' holds {image.dtype} {image.shape}: expected 8 or 16 bits and "
            "1, 3 or 4 channels"
        )
    return image
