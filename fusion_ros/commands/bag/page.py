# SPDX-License-Identifier: AGPL-3.0-only
"""A report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from fusion_ros.commands.bag import charts
from fusion_ros.commands.bag.request import method_name
from fusion_ros.commands.bag.samples import RULES, SOURCES, Sample
from fusion_ros.commands.bag.verdict import size_that_holds

__all__ = ["overview", "render", "settings_file"]

_FOLDER = Path(__file__).parent
_COLUMNS = {
    "lost": (
        "lost",
        "objects that stand out less than half as much as in a source",
        "{:.1%}",
    ),
    "hidden": ("hidden", "share of the picture where structure of a source is hidden", "{:.1%}"),
    "over_exposure": ("over", "share of pixels over 245", "{:.2%}"),
    "flicker": (
        "flicker",
        "change along the motion beyond the sources', grey levels",
        "{:+.2f}",
    ),
    "brightness_variation": ("brightness", "change of the mean from image to image", "{:.2f}"),
    **{name: (name, "", "{:.3f}") for name in ("VIF", "Qabf", "SSIM", "SCD", "MI", "CC")},
    **{name: (name, "", "{:.1f}") for name in ("EN", "SD", "SF", "AG", "PSNR")},
}
_TITLES = {"thermal": "thermal", "rgb": "RGB"}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True
    )
    environment.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f} %"
    environment.filters["num"] = lambda value, digits=2: (
        "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001
    )
    environment.globals["title"] = lambda name: _TITLES.get(name, name)
    return environment


def settings_file(report: dict[str, Any]) -> str:
    """The recommended settings as a ROS parameter file, commented."""
    from fusion_ros.frame.settings import Settings

    found = report["streams"]["recommended"]
    values = {
        "method": report["verdict"]["best"],
        "tolerance": found["tolerance"],
        "thermal_time_offset": found["thermal_time_offset"],
    }
    if report["request"].get("stamps") == "arrival":
        values["stamp_source"] = "arrival"
    usual = Settings()
    for name, value in report["settings"].items():
        if name not in values and value != _plain(getattr(usual, name)):
            values[name] = value
    # A model is named by its path; the report names it by the path's stem.
    paths = {method_name(method): method for method in report["request"]["methods"]}
    values["method"] = paths.get(values["method"], values["method"])
    size = size_that_holds(report)
    if size and "processing_size" not in values:
        values["processing_size"] = size
    lines = [
        f"# Settings for the cameras in {report['bag']['name']}: found by fusion_ros evaluate_bag.",
        "# ros2 launch fusion_ros fuse.launch.py params_file:=<this file>",
        "/**:",
        "  ros__parameters:",
        *(f"    {name}: {json.dumps(value)}" for name, value in values.items()),
    ]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def render(report: dict[str, Any], samples: Sequence[Sample]) -> str:
    """The page of one bag."""
    best = report["verdict"]["best"]
    methods = report["quality"]["methods"]
    rows = report["quality"]["rows"]
    columns = {
        key: column
        for key, column in _COLUMNS.items()
        if any(row.get(key) is not None for row in rows.values())
    }
    order = [name for name in (*SOURCES, *RULES, *methods) if name in rows]
    ranked = _ranked(samples, best)
    frames = [
        {
            "at": sample.at_s,
            "hidden": sample.rows[best]["hidden"],
            "pictures": {name: _data(picture) for name, picture in sample.pictures.items()},
        }
        for sample in samples
    ]
    template = _environment().get_template("page.html.j2")
    return template.render(
        report=report,
        best=best,
        methods=methods,
        views=["thermal", "rgb", best, *(name for name in methods if name != best)],
        columns=columns,
        rows=[(name, [_cell(rows[name].get(key), column[2]) for key, column in columns.items()])
              for name in order],
        figures=_figures(report, samples),
        frames_json=_script(frames),
        ranked=ranked,
        crops=[
            (kind, name, _data(picture))
            for kind in ("found", "lost")
            for sample in samples
            for k, name, picture in sample.crops
            if k == kind
        ][:24],
        settings=settings_file(report),
    )  # fmt: skip


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)  # noqa: RUF001


def _ranked(samples: Sequence[Sample], best: str) -> list[tuple[str, int]]:
    """Places of the worst, median and best sample by lost objects, then by what is hidden."""
    if not samples:
        return []

    def bad(index: int) -> tuple[float, float]:
        row = samples[index].rows[best]
        share = row["lost_objects"] / row["objects"] if row["objects"] else 0.0
        return share, row["hidden"]

    order = sorted(range(len(samples)), key=bad)
    return [("worst", order[-1]), ("median", order[len(order) // 2]), ("best", order[0])]


def _figures(report: dict[str, Any], samples: Sequence[Sample]) -> dict[str, str]:
    """All charts as SVG."""
    pairs, course = report["pairs"], report["course"]
    clocks = report["streams"]["clocks"]
    moments = [sample.at_s for sample in samples]
    names = [*SOURCES, *report["quality"]["methods"]]
    shifts = report["registration"]["course"]
    found = {
        "distances": charts.histogram(
            pairs["histogram"]["edges_ms"],
            pairs["histogram"]["pairs"],
            "thermal less RGB stamp of a pair, ms",
            "pairs",
        ),
        "unpaired": charts.histogram(
            pairs["unpaired"]["edges_s"], pairs["unpaired"]["images"], "s", "unpaired images"
        ),
        "clocks": charts.lines(
            [at for at, _ in clocks["course"]],
            {"thermal ahead": [ms for _, ms in clocks["course"]]},
            "s",
            "thermal clock ahead, ms",
        ),
        "shift": charts.lines(
            [each["at_s"] for each in shifts],
            {
                axis: [each[key] if each["clear"] else None for each in shifts]
                for axis, key in (("right", "x"), ("down", "y"))
            },
            "s",
            "shift, px",
            zero=True,
            dots=True,
        ),
        "hidden": charts.lines(
            moments,
            {
                _TITLES.get(n, n): [
                    100 * s.rows[n]["hidden"] if n in s.rows else None for s in samples
                ]
                for n in names
            },
            "s",
            "hidden, %",
            zero=True,
        ),
        "brightness": charts.lines(
            course["at_s"],
            {_TITLES.get(n, n): course["brightness"].get(n, []) for n in names},
            "s",
            "grey level",
        ),
    }
    detections = report["detections"]
    if detections:
        found["detections"] = charts.lines(
            [each["at_s"] for each in detections["course"]],
            {_TITLES.get(n, n): [each[n] for each in detections["course"]] for n in names},
            "s",
            "objects",
            zero=True,
        )
    return found


def overview(results: Sequence[dict[str, Any]]) -> str:
    """The page that compares bags; each has `name`, and `report` with `page`, or `error`."""
    return _environment().get_template("overview.html.j2").render(results=results)


def _data(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")


def _script(value: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, separators=(",", ":")).replace("</", "<\\/")
