# SPDX-License-Identifier: AGPL-3.0-only
"""The evaluation as one HTML page: tables, and pictures side by side with a zoom."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import cv2
import numpy as np

from fusion_models.evaluation.evaluate import (
    FRAMES_BETWEEN_METRICS,
    METRICS,
    Row,
    Score,
    SetResult,
)
from fusion_models.evaluation.misses import crop
from fusion_models.evaluation.rules import RULES, SOURCES
from fusion_models.evaluation.visibility import Kept
from fusion_models.pairs import ImagePair, is_video

ZOOM = 4
"""The zoom shows this part of a picture's width, twice as wide as high."""
MOST_COLUMNS = 5
CAPTION = ("VIF", "Qabf", "SCD", "AG")
FIRST = {
    "objects": None, "kept": max, "lost": min, "gone": min, "hidden": min, "flicker": min,
    "bright": None,
}  # fmt: skip
"""Columns before the metrics, those of what the product is for, and which value is the best."""
TOO_EXPOSED = 0.01
"""Over-exposure beyond that of the sources from which it is marked."""
MEANING = {
    "objects": "labelled objects that a source shows by 15 grey levels or more",
    "kept": "median over the objects of their contrast, as a share of the better source's",
    "lost": "share of the objects of whose contrast less than half is kept; less is better",
    "gone": "share of the objects that are lost as a whole and in their upper, middle, lower third",
    "hidden": "share of the image that shows under half of a source's structure of 8 to 64 px",
    "flicker": "change from frame to frame along the motion in grey levels, less the sources' mean",
    "bright": "root mean square of the change of mean brightness from frame to frame, grey levels",
    "EN": "entropy of the grey levels in bits: amount of information, noise too",
    "SD": "standard deviation in grey levels: contrast",
    "SF": "spatial frequency: strength of the differences between neighbours, noise too",
    "AG": "average gradient: sharpness, noise too",
    "MI": "mutual information with both sources in nats: how much of them it determines",
    "SCD": "sum of the correlations of differences: fused minus one source beside the other one",
    "VIF": "visual information fidelity to both sources; over 1 a source is amplified",
    "Qabf": "share of the sources' edges that are kept, in strength and direction",
    "SSIM": "structural similarity to both sources, at most 2",
    "PSNR": "peak signal to noise ratio to both sources in dB",
    "CC": "mean correlation with both sources",
    "SSIM/2": "SSIM with the constants of a data range of 2, as CDDFuse's evaluator has it",
    "over": "share of pixels over 245, which look white",
    "excess": "that share minus the mean of both sources; red from one percentage point on",
    "to ir": "mean absolute difference to the thermal image in [0, 1]; a copy has 0",
    "to vi": "the same to the visible image",
    "rank": "mean of the ranks in the metrics; 1 would be the best in each",
}


@dataclass(frozen=True)
class Plate:
    """The pictures of one pair.

    Attributes:
        pictures: JPEG files by title, thermal and visible first.
        width, height: of each picture in pixels. zoom: `(x, y)`, top left of the region to enlarge.
    """

    set_name: str
    stem: str
    pictures: dict[str, bytes]
    width: int
    height: int
    zoom: tuple[int, int]

    @classmethod
    def of(cls, set_name: str, pair: ImagePair, fused: Mapping[str, np.ndarray]) -> Plate:
        """Pictures of a pair and its fused luminances, in the colours of the visible image."""
        images = {"thermal": pair.ir, "visible": pair.colour(pair.vi)}
        images |= {n: pair.colour(image) for n, image in fused.items() if n not in SOURCES}
        height, width = pair.ir.shape
        methods = [image for name, image in fused.items() if name not in RULES]
        return cls(
            set_name, pair.stem, {name: _jpeg(image) for name, image in images.items()},
            width, height, _most_disputed(methods if len(methods) > 1 else list(fused.values())),
        )  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """One object that a fused image loses: crops of thermal, visible and fused side by side."""

    stem: str
    kept: Kept
    jpeg: bytes


class WorstObjects:
    """Collects the objects that each method loses, those with most missing contrast first.

    Args:
        most: objects kept of each set and method.
    Attributes:
        found: losses by name of the set, then by method; the controls have none.
    """

    def __init__(self, most: int = 6):
        self.most = most
        self.found: dict[str, dict[str, list[Loss]]] = {}

    def add(
        self,
        set_name: str,
        pair: ImagePair,
        fused: Mapping[str, np.ndarray],
        scores: Mapping[str, Score],
    ) -> None:
        """Take the fused luminances of a pair and their scores, by method."""
        for method, score in scores.items():
            lost = [one for one in score.kept if one.lost]
            if method in RULES or not lost or not self.most:
                continue
            losses = self.found.setdefault(set_name, {}).setdefault(method, [])
            least = losses[-1].kept.missing if len(losses) >= self.most else 0.0
            lost = [one for one in lost if one.missing > least]
            if not lost:
                continue
            pictures = [pair.colour(image) for image in (pair.vi, fused[method])]
            pictures.insert(0, cv2.cvtColor(pair.ir, cv2.COLOR_GRAY2BGR))
            none = np.zeros((0, 4), np.float32)
            for one in lost:
                box = np.array([one.box], np.float32)
                thermal, visible, image = (crop(picture, box, none) for picture in pictures)
                gap = np.full((len(image), 4, 3), 128, np.uint8)
                strip = np.hstack([thermal, gap, visible, gap, image])
                losses.append(Loss(pair.stem, one, _jpeg(strip)))
            losses.sort(key=lambda loss: -loss.kept.missing)
            del losses[self.most :]


def _jpeg(image: np.ndarray) -> bytes:
    settings = [cv2.IMWRITE_JPEG_QUALITY, 88]
    try:  # keeps colour at full resolution; OpenCV 4.5 cannot
        settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    except AttributeError:
        pass
    return cv2.imencode(".jpg", image, settings)[1].tobytes()


def _most_disputed(images: list[np.ndarray]) -> tuple[int, int]:
    """Top left of the zoom window in which the details of the images differ most."""
    stack = np.stack(images).astype(np.float32)
    detail = np.stack([image - cv2.GaussianBlur(image, (0, 0), 4) for image in stack])
    height, width = stack[0].shape
    size = (max(1, width // ZOOM), max(1, min(height, width // ZOOM // 2)))
    differ = cv2.boxFilter(detail.std(0), -1, size, anchor=(0, 0))
    differ = differ[: height - size[1] + 1, : width - size[0] + 1]
    y, x = np.unravel_index(differ.argmax(), differ.shape)
    return int(x), int(y)


def write_report(
    path: Path,
    head: Mapping,
    results: Iterable[SetResult],
    plates: Iterable[Plate],
    worst: WorstObjects | None = None,
) -> None:
    """Writes the page; nothing but this one file is needed to look at it."""
    results, plates = list(results), list(plates)
    losses = worst.found if worst else {}
    sections = [
        _section(r, [p for p in plates if p.set_name == r.name], losses.get(r.name, {}))
        for r in results
    ]
    links = " ".join(f'<a href="#{_id(r.name)}">{html.escape(r.name)}</a>' for r in results)
    models = "".join(
        f"<li><b>{html.escape(name)}</b> {html.escape(m['file'])}, sha256 {m['sha256'][:16]}, "
        f"{html.escape(m['engine'])}</li>"
        for name, m in head["models"].items()
    )
    facts = ", ".join(f"{k} {value}" for k, value in {**head["host"], **head["versions"]}.items())
    meaning = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in MEANING.items())
    page = Template(_PAGE).substitute(
        links=links, sections="\n".join(sections), models=models, zoom=ZOOM,
        command=html.escape(head["command"]), facts=html.escape(f"{head['date']}, {facts}"),
        meaning=meaning,
    )  # fmt: skip
    path.write_text(page)


def _id(name: str) -> str:
    return html.escape(name.replace("/", "-").replace(" ", "-"))


def _section(result: SetResult, plates: list[Plate], losses: Mapping[str, list[Loss]]) -> str:
    losses = {row.method: losses[row.method] for row in result.rows if row.method in losses}
    scores = {row.method: row.scores for row in result.rows}
    return (
        f'<section id="{_id(result.name)}"><h2>{html.escape(result.name)}</h2>{_table(result)}'
        + "".join(_plate(plate, scores) for plate in plates)
        + _worst(result, losses)
        + "</section>"
    )


def _worst(result: SetResult, losses: Mapping[str, list[Loss]]) -> str:
    if not losses:
        return ""
    rows = []
    means = {row.method: row.mean for row in result.rows}
    for method, several in losses.items():
        figures = []
        for loss in several:
            kept, source = loss.kept, base64.b64encode(loss.jpeg).decode()
            stem = html.escape(loss.stem)
            figures.append(
                f'<figure><img src="data:image/jpeg;base64,{source}" alt="{stem}">'
                f"<figcaption><small>{stem}: contrast {kept.ir:.0f} in thermal, "
                f"{kept.vi:.0f} in the visible, {kept.fused:.0f} fused</small></figcaption>"
                "</figure>"
            )
        mean = means[method]
        lost = f"loses {round(mean['lost'] * mean['objects'])} of {mean['objects']} objects"
        rows.append(
            f"<h4>{html.escape(method)} {lost}</h4><div class=losses>{''.join(figures)}</div>"
        )
    return (
        f"<h3>{html.escape(result.name)}: lost objects, worst first; each in thermal, visible, "
        "fused</h3>" + "".join(rows)
    )


def _table(result: SetResult) -> str:
    ranks = result.ranks()
    # Controls are not marked as best: the maximum would be best in half of the columns.
    methods = [row for row in result.rows if row.method not in RULES] or result.rows
    # What the product is for stands first: most screens do not show all columns.
    first = {name: result.columns[name] for name in FIRST if name in result.columns}
    columns = first | {name: (name, "{:.3f}") for name in METRICS}
    columns |= {name: shape for name, shape in result.columns.items() if name not in first}
    wanted = {**FIRST, **dict.fromkeys(METRICS, max)}
    best = {
        name: form.format(choose(row.mean[key] for row in methods))
        for name, (key, form) in columns.items()
        if (choose := wanted.get(name))
    }
    first_rank = min(ranks[row.method] for row in methods)

    def cell(text: str, mark: str = "") -> str:
        return f'<td class="{mark}">{text}</td>' if mark else f"<td>{text}</td>"

    def cells(row: Row) -> str:
        competes = row in methods
        shown = []
        for name, (key, form) in columns.items():
            text = form.format(row.mean[key])
            bad = key == "over_exposure_excess" and row.mean[key] > TOO_EXPOSED
            good = competes and text == best.get(name)
            shown.append(cell(text, "bad" * bad or "best" * good))
        rank = ranks[row.method]
        return "".join([*shown, cell(f"{rank:.1f}", "best" * (competes and rank == first_rank))])

    head = "".join(f'<th title="{MEANING[name]}">{name}</th>' for name in (*columns, "rank"))
    lines = "".join(
        f'<tr class="{"rule" if row.method in RULES else "method"}">'
        f"<th>{html.escape(row.method)}</th>{cells(row)}</tr>"
        for row in result.rows
    )
    number = len(result.rows[0].scores)
    count = f"{number} pair{'s' * (number > 1)}"
    if is_video(result.name):
        count = (
            f"every {FRAMES_BETWEEN_METRICS}th frame of a video, {number} in all; flicker and "
            "bright are of all its frames"
        )
    return (
        f"<p>Means over {count}. Share of over-exposed pixels in the "
        f"sources: {result.sources_over_exposure:.2%}.</p>"
        f"<div class=wide><table><tr><th></th>{head}</tr>{lines}</table></div>"
    )


def _plate(plate: Plate, scores: Mapping[str, Mapping]) -> str:
    figures = []
    for title, jpeg in plate.pictures.items():
        text = ""
        if title in scores:
            figures_of = scores[title][plate.stem].as_dict()
            text = ", ".join(f"{name} {figures_of[name]:.2f}" for name in CAPTION)
        source = base64.b64encode(jpeg).decode()
        figures.append(
            f"<figure><figcaption><b>{html.escape(title)}</b><br><small>{text or '&nbsp;'}</small>"
            "</figcaption>"
            f'<div class=picture><img src="data:image/jpeg;base64,{source}" '
            f'width={plate.width} height={plate.height} alt="{html.escape(title)}"><i></i></div>'
            "<div class=zoom></div></figure>"
        )
    window = plate.width / ZOOM, plate.width / ZOOM / 2
    x, y = (
        min(1.0, at / max(1.0, size - part))
        for at, size, part in zip(plate.zoom, (plate.width, plate.height), window)
    )
    h = window[1] / plate.height
    rows = -(-len(figures) // MOST_COLUMNS)
    columns = -(-len(figures) // rows)
    return (
        f"<h3>{html.escape(plate.set_name)} / {html.escape(plate.stem)}</h3>"
        f'<div class=plate style="--columns: {columns}; --x: {x:.4f}; --y: {y:.4f}; --h: {h:.4f}">'
        f"{''.join(figures)}</div>"
    )


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>Fusion of thermal and visible images: evaluation</title>
<style>
:root { color-scheme: light dark; --back: #fff; --text: #1c1e21; --soft: #5c636b; --line: #dcdfe3;
        --link: #0b57d0; --best: #d9efdf; --bad: #c5221f }
@media (prefers-color-scheme: dark) {
  :root { --back: #1d1f22; --text: #e3e5e8; --soft: #a0a6ad; --line: #3a3d42; --link: #8ab4f8;
          --best: #275536; --bad: #ff8a80 } }
body { margin: 0 auto; padding: 0 24px 48px; max-width: 1800px; background: var(--back);
       color: var(--text); font: 14px/1.45 system-ui, "DejaVu Sans", sans-serif }
h1 { font-size: 24px; margin-bottom: 4px } h2 { margin: 40px 0 0; font-size: 20px }
h3 { margin: 28px 0 8px; font-size: 15px }
a { color: var(--link); margin-right: 12px } small, p, li, dd { color: var(--soft) }
p { max-width: 110ch } code { color: var(--text); overflow-wrap: anywhere }
details { margin: 12px 0 } summary { cursor: pointer }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0 }
dt { font-weight: 600 } dd { margin: 0 }
@media (min-width: 1300px) { dl { grid-template-columns: max-content 1fr max-content 1fr } }
nav { position: sticky; top: 0; z-index: 2; padding: 8px 0; background: var(--back);
      border-bottom: 1px solid var(--line) }
section { scroll-margin-top: 40px }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: 3px 7px; text-align: right; white-space: nowrap }
tr > th:first-child { position: sticky; left: 0; text-align: left; background: var(--back) }
tr { border-bottom: 1px solid var(--line) }
tr.rule > * { color: var(--soft); font-style: italic; font-weight: normal }
.best { font-weight: bold; background: var(--best) } tr > .bad { color: var(--bad) }
.plate { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: 12px }
@media (max-width: 1000px) { .plate { grid-template-columns: repeat(2, 1fr) } }
figure { margin: 0; min-width: 0 }
figcaption { white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.picture { position: relative; cursor: crosshair; overflow: hidden }
.picture i { position: absolute; box-sizing: border-box; border: 1px solid #fc0;
             pointer-events: none }
img { display: block; width: 100%; height: auto }
/* --x and --y: where the window is on its way from the left to the right and from top to bottom;
   --h: its height as a share of the picture's. */
.picture i { width: calc(100% / $zoom); height: calc(100% * var(--h));
             left: calc(var(--x) * (100% - 100% / $zoom));
             top: calc(var(--y) * (100% - 100% * var(--h))) }
.losses { display: flex; flex-wrap: wrap; gap: 12px } .losses img { width: 480px; max-width: 100% }
h4 { margin: 12px 0 4px; font-size: 14px }
.zoom { aspect-ratio: 2; margin-top: 4px; background-size: calc(100% * $zoom) auto;
        background-position: calc(100% * var(--x)) calc(100% * var(--y)) }
</style>
<h1>Fusion of thermal and visible images</h1>
<p>Figures and pictures of one run, for all methods on the same pairs. No metric is a goal alone:
the pixel-wise <i>maximum</i> wins VIF, Qabf and MI by copying and looks washed out by day, so a
method is good that stands high on all of them and looks natural. The best method in a
column is bold; what works without a network, in italics, does not compete. <i>kept</i> and
<i>lost</i> say whether objects that a camera shows are seen in the fused image: look at these
first.</p>
<p>Below each picture a part of it is enlarged, at first where the methods differ most; the mouse
over a picture moves it in all of them. Fused pictures have the colours of the visible one, as on
the robot.</p>
<details open><summary>What the columns mean</summary><dl>$meaning</dl></details>
<details><summary>What was measured, and on what</summary>
<p><code>$command</code><br>$facts</p><ul>$models</ul></details>
<nav>$links</nav>
$sections
<script>
for (const plate of document.querySelectorAll(".plate")) {
  for (const image of plate.querySelectorAll("img"))
    image.closest("figure").querySelector(".zoom").style.backgroundImage = "url(" + image.src + ")";
  plate.addEventListener("mousemove", event => {
    const image = event.target;
    if (image.tagName != "IMG") return;
    const half = image.clientWidth / $zoom / 2;  // of the window's width, and its whole height
    const share = (at, size, window) =>
      Math.max(0, Math.min(1, (at - window / 2) / (size - window)));
    plate.style.setProperty("--x", share(event.offsetX, image.clientWidth, 2 * half));
    plate.style.setProperty("--y", share(event.offsetY, image.clientHeight, half));
  });
}
</script>
</html>
"""
