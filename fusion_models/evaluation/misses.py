# SPDX-License-Identifier: AGPL-3.0-only
"""One HTML page of the objects that a fused image loses for the detector, as crops side by side."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from fusion_models.boxes import Boxes
from fusion_models.evaluation.detection import Found, Miss
from fusion_models.files import write_text

CROP = 160
"""Sides of a crop on the page in pixels."""
ROOM = 2.5
"""Width of a crop as a multiple of its object's longer side."""


def crop(picture: np.ndarray, boxes: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Square crop of `(H, W, 3)` about the first box, labels drawn white, detections green.

    At the picture's border the box is not in the middle, since there is nothing to show beyond.

    Args:
        boxes: corners in pixels of the object and others, `[N, 4]`. found: of detections.
    """
    left, top, right, bottom = boxes[0]
    half = max(24.0, ROOM / 2 * max(right - left, bottom - top))
    middle = [
        float(np.clip(centre, min(half, size / 2), max(size - half, size / 2)))
        for centre, size in zip(((left + right) / 2, (top + bottom) / 2), picture.shape[1::-1])
    ]
    scale = CROP / (2 * half)
    move = np.float32(
        [[scale, 0, CROP / 2 - scale * middle[0]], [0, scale, CROP / 2 - scale * middle[1]]]
    )
    result = cv2.warpAffine(picture, move, (CROP, CROP), flags=cv2.INTER_CUBIC)
    for several, colour in ((boxes[:1], (255, 255, 255)), (found, (80, 220, 80))):
        for x1, y1, x2, y2 in several:
            first, second = (move[:, :2] @ (x, y) + move[:, 2] for x, y in ((x1, y1), (x2, y2)))
            corners = [tuple(map(int, np.rint(point))) for point in (first, second)]
            cv2.rectangle(result, *corners, colour, 1)
    return result


class MissesPage:
    """Collects crops while the pairs pass by, then writes the page.

    Args:
        lost: of `detection.misses`. most: rows of crops for each fused image, evenly spaced.
    """

    def __init__(self, lost: Mapping[str, Sequence[Miss]], classes: Sequence[str], most: int = 40):
        self.lost, self.classes = lost, classes
        self.shown: dict[str, dict[tuple[str, int], Miss]] = {}
        for row, several in lost.items():
            kept = [several[i] for i in _spaced(len(several), most)]
            self.shown[row] = {(m.stem, m.number): m for m in kept}
        self._rows: dict[str, list[str]] = {row: [] for row in lost}

    @property
    def stems(self) -> set[str]:
        """Pairs of which crops are needed."""
        return {stem for several in self.shown.values() for stem, _ in several}

    def pictures(self, stem: str) -> list[str]:
        """Names of the pictures of a pair that `add` needs."""
        rows = [row for row, several in self.shown.items() if any(w == stem for w, _ in several)]
        return ["infrared", "visible", *rows]

    def add(
        self, stem: str, truth: Boxes, pictures: Mapping[str, np.ndarray],
        found: Mapping[str, Found], score: float = 0.25,
    ) -> None:  # fmt: skip
        """Cut the crops of one pair: of both cameras and of each row that loses objects."""
        for row, several in self.shown.items():
            for (where, number), miss in several.items():
                if where != stem:
                    continue
                cells = []
                for name in ("infrared", "visible", row):
                    height, width = pictures[name].shape[:2]
                    scale = np.array([width, height, width, height], np.float32)
                    seen = found[name].at_least(score)
                    same = seen.classes == truth.classes[number]
                    image = crop(
                        pictures[name],
                        truth.corners[number : number + 1] * scale,
                        seen.corners[same] * scale,
                    )
                    cells.append(f'<td><img src="data:image/jpeg;base64,{_jpeg(image)}"></td>')
                kind = self.classes[truth.classes[number]]
                text = f"{html.escape(stem)}<br>{kind}<br>found in {', '.join(miss.by)}"
                self._rows[row].append(f"<tr><td>{text}</td>{''.join(cells)}</tr>")

    def write(self, path: Path, title: str) -> None:
        """Write the page; nothing but this one file is needed to look at it."""
        sections = []
        for row, lines in self._rows.items():
            count = len(self.lost[row])
            by = {n: sum(n in m.by for m in self.lost[row]) for n in ("infrared", "visible")}
            text = ", ".join(f"{number} of them found in {name}" for name, number in by.items())
            name = html.escape(row)
            sections.append(
                f'<h2 id="{name}">{name}: {count} objects lost</h2>'
                f"<p>{text}; {len(lines)} shown</p>"
                f"<table><tr><th></th><th>infrared</th><th>visible</th><th>{name}</th></tr>"
                f"{''.join(lines)}</table>"
            )
        links = " ".join(
            f'<a href="#{html.escape(r)}">{html.escape(r)} ({len(m)})</a>'
            for r, m in self.lost.items()
        )
        write_text(
            path, _PAGE.format(title=html.escape(title), links=links, body="".join(sections))
        )


def _spaced(count: int, most: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, most)).astype(int).tolist()))


def _jpeg(image: np.ndarray) -> str:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return base64.b64encode(data.tobytes()).decode()


_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px sans-serif;margin:1em auto;max-width:60em;background:#fff;color:#222}}
td,th{{padding:2px 8px 2px 0;text-align:left;vertical-align:top}}img{{display:block}}
a{{margin-right:1em}}</style>
<h1>{title}</h1>
<p>Labelled objects that the detector finds in the image of one camera alone (score .25 or more, IoU
.5 or more, same class) and not in the fused image. White: the label. Green: detections of its
class.</p><p>{links}</p>{body}
"""
