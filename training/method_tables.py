# SPDX-License-Identifier: AGPL-3.0-only
"""Fill the tables of docs/methods.md: costs, papers' figures beside ours, ablations, effects.

    python training/method_tables.py               # after a new evaluation, ablation or analysis
    python training/method_tables.py check=true    # status 1 if the page is not up to date

The page has `<!-- table NAME -->` and `<!-- end -->` around each table; what is between them is
replaced. NAME is `cost`; `paper METHOD`, from docs/papers.yaml and docs/evaluation.json;
`ablation METHOD`, from docs/ablations/METHOD.json; `effects`, from docs/effects.json;
`targets`, from docs/targets.json; or `time`, from the videos of docs/evaluation.json and
docs/evaluation_m3svd.json. No figure is typed by hand.

Settings as `key=value`: docs (the folder), check.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml

from fusion_models import list_models
from fusion_models.cfi.interventions import KINDS
from fusion_models.deploy.cost import cost_of
from fusion_models.files import write_text
from fusion_models.pairs import is_video
from fusion_models.settings import ConfigError, merge_settings, show_help

DEFAULTS = {"docs": str(Path(__file__).resolve().parent.parent / "docs"), "check": False}
TABLE = re.compile(r"(<!-- table ([a-z]+)(?: ([a-z0-9_]+))? -->\n).*?(<!-- end -->)", re.DOTALL)
PRESETS = {"refinefuse": {"as in the paper": {"preset": "paper", "regional": False}}}
"""Settings of networks that the table of costs has besides the shipped ones."""
STATED = {"refinefuse": "2.21 M, 12.73, 48.11", "baffm": "extractor: 0.05 M, 3.02, 12.09 (LRRNet)"}
"""Costs that the papers state."""
OPEN = "Not measured yet.\n"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table of these cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def cost_table(docs: Path) -> str:
    """Parameters and GMAC of each method as it is trained, at 256 x 256 and 512 x 512."""
    rows = []
    for method in list_models():
        variants = {"": {}, **PRESETS.get(method, {})}
        for name, settings in variants.items():
            cost = cost_of(method, **settings)
            macs = [f"{cost.macs[size] / 1e9:.2f}" for size in (256, 512)]
            label = f"{method}, {name}" if name else method
            # What a paper states belongs to the variant that is meant to meet it, if there is one.
            stated = STATED.get(method, "not stated") if name or method not in PRESETS else ""
            rows.append([label, f"{cost.parameters / 1e6:.3f} M", *macs, stated])
    head = ["method", "parameters", "GMAC at 256", "GMAC at 512", "the paper says"]
    return markdown(head, rows)


def paper_table(docs: Path, method: str) -> str:
    """The paper's figures beside ours, and what can be compared."""
    papers = yaml.safe_load((docs / "papers.yaml").read_text(encoding="utf-8"))
    if method not in papers:
        raise ConfigError(f"docs/papers.yaml has nothing of {method}")
    sets = json.loads((docs / "evaluation.json").read_text())["sets"]
    rows = []
    for table in papers[method]:
        result = sets.get(table.get("ours", ""))
        where = table["paper_set"]
        if result:
            where += f"; ours: {table['ours']}, {result['pairs']} pairs"
        for name, figure in table["figures"].items():
            ours, note = "-", figure.get("note", "")
            if result and figure.get("comparable", True):
                mean = result["rows"][method]["mean"]
                key = figure.get("key", name)
                if key in mean:
                    value = mean[key] * figure.get("times", 1) + figure.get("plus", 0)
                    ours = f"{value:.3f}"
                else:
                    note = f"{note}; evaluate again for ours".strip("; ")
            elif not figure.get("comparable", True):
                note = f"not comparable: {note}"
            rows.append([where, name, f"{figure['paper']:g}", ours, note])
            where = ""
    return markdown(["set", "figure", "paper", "ours", ""], rows)


def ablation_table(docs: Path, method: str) -> str:
    """Means of each row, and whether its difference to the row it is compared with is clear."""
    path = docs / "ablations" / f"{method}.json"
    if not path.is_file() or "seeds" not in (found := json.loads(path.read_text())):
        return OPEN
    rows, sets = found["rows"], list(found["pairs"])
    first = next(iter(rows))
    figures = list(rows[first]["sets"][sets[0]])
    text = ""
    for name in sets:
        shown = [figure for figure in figures if figure in rows[first]["sets"][name]]
        lines = []
        for row, by in rows.items():
            cells = []
            for figure in shown:
                value = by["sets"][name][figure]
                mark = ""
                if value.get("difference", {}).get("clear"):
                    mark = " **+**" if value["difference"]["mean"] > 0 else " **-**"
                cells.append(f"{value['mean']:.3f}{mark}")
            lines.append([row, *cells])
        text += f"{name}, {len(found['pairs'][name])} pairs:\n\n"
        text += markdown(["row", *shown], lines) + "\n"
    steps = sorted({row["steps"] for row in rows.values()})
    schedule = ", ".join(f"{s}" for s in steps)
    return (
        text
        + f"{schedule} steps, {found['seeds']} seeds, {found['device']}; `{found['command']}`. "
        "**+** and **-**: clearly above or below the row whose name, with a comma, begins the "
        "row's own, else the first (95 % interval of the difference over the images without 0, and "
        "all seeds agree); without a mark no difference is shown.\n"
    )


def effects_table(docs: Path) -> str:
    """Average treatment effects with intervals, and whether the paper's order holds."""
    path = docs / "effects.json"
    if not path.is_file():
        return OPEN
    found = json.loads(path.read_text())
    rows = []
    for name, by_set in found["sets"].items():
        for method, by in by_set["methods"].items():
            for quality, order in by["order"].items():
                cells = [
                    "{:.4f} [{:.4f}, {:.4f}]".format(of["mean"], *of["interval"])
                    for of in (by[kind][quality] for kind in KINDS)
                ]
                rows.append([f"{name}, {by_set['pairs']}", method, quality, *cells, order])
    return (
        markdown(["set, pairs", "method", "quality", *KINDS, "the paper's order"], rows)
        + f"\n{found['draws']} draws of masks; 95 % intervals over the pairs; "
        f"`{found['command']}`.\n"
    )


def rules_table(rows: list[dict]) -> str:
    """Rules of the common target, one row for each set and rule, as compare_targets.py measures."""
    lines = []
    for row in rows:
        lost = "no labels" if row["lost"] is None else f"{row['lost']:.3f}"
        figures = [f"{row[name]:.3f}" for name in ("hidden", "vif", "qabf", "scd")]
        lines.append([f"{row['set']}, {row['pairs']}", row["rule"], lost, *figures])
    head = ["set, pairs", "rule left out", "lost", "hidden", "VIF", "Qabf", "SCD"]
    return markdown(head, lines)


def targets_table(docs: Path) -> str:
    """Rules of the common target, from docs/targets.json, with the command that measured them."""
    path = docs / "targets.json"
    if not path.is_file():
        return OPEN
    return (
        rules_table(json.loads(path.read_text(encoding="utf-8")))
        + "\n`python training/compare_targets.py output=docs/targets`, with simulated pairs of "
        "`python -m fusion_ros.cameras.street.export data/simulated/val --pairs 6 --seed 100000`, "
        "and in data/simulated_640/val `--pairs 5 --seed 100000 --size 640x480`.\n"
    )


def time_table(docs: Path) -> str:
    """Flicker and variation of brightness of each row, over the videos of each data set."""
    videos: dict[str, list[dict]] = {}
    for name in ("evaluation_m3svd.json", "evaluation.json"):
        if (docs / name).is_file():
            for set_name, result in json.loads((docs / name).read_text())["sets"].items():
                if is_video(set_name):
                    videos.setdefault(set_name.partition("/")[0], []).append(result["rows"])
    if not videos:
        return OPEN
    head, lines = [""], {}
    for name, several in videos.items():
        head += [f"{name}, {len(several)} videos: flicker", "least to most", "brightness"]
        for method in several[0]:
            flicker = [rows[method]["mean"]["flicker"] for rows in several]
            steps = [rows[method]["mean"]["brightness"] for rows in several]
            lines.setdefault(method, [method]).extend(
                [
                    f"{sum(flicker) / len(flicker):+.2f}",
                    f"{min(flicker):+.2f} to {max(flicker):+.2f}",
                    f"{sum(steps) / len(steps):.2f}",
                ]
            )
    return markdown(head, list(lines.values()))


def fill(page: str, docs: Path) -> str:
    """The page with all its tables made again.

    Raises:
        ConfigError: a table of an unknown name.
    """
    makers = {
        "cost": cost_table, "paper": paper_table, "ablation": ablation_table,
        "effects": effects_table, "targets": targets_table, "time": time_table,
    }  # fmt: skip

    def table(match: re.Match) -> str:
        head, name, method, end = match.groups()
        if name not in makers:
            raise ConfigError(f"table '{name}': expected one of {', '.join(makers)}")
        return head + makers[name](docs, *([method] if method else [])) + end

    return TABLE.sub(table, page)


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        docs = Path(config.docs)
        page = docs / "methods.md"
        before = page.read_text(encoding="utf-8")
        after = fill(before, docs)
    except (ValueError, OSError) as error:
        print(f"method_tables.py: {error}", file=sys.stderr)
        return 2
    if config.check:
        if before != after:
            print(f"{page} is not up to date: run python training/method_tables.py")
        return int(before != after)
    write_text(page, after)
    print(f"{page}: {len(TABLE.findall(after))} tables")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
