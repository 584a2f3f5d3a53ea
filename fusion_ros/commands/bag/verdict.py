# SPDX-License-Identifier: AGPL-3.0-only
"""The verdict of a report in three sentences: which method, which settings, what to mend first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Problem", "best_method", "problems", "size_that_holds", "verdict_of"]

_FEW_PAIRS = 0.95
_FAR_PX = 2.0
_FAR_S = 0.01
_MUCH_HIDDEN = 0.10
_MORE_LOST = 0.05
_RANKED = ("VIF", "Qabf", "SSIM")


@dataclass(frozen=True)
class Problem:
    """Something to mend; the higher the weight, the earlier."""

    weight: float
    text: str


def verdict_of(report: dict[str, Any]) -> dict[str, Any]:
    """Sentences `method`, `settings` and `mend`, and all problems, the worst first."""
    found = problems(report)
    return {
        "best": best_method(report),
        "method": _method_sentence(report),
        "settings": _settings_sentence(report),
        "mend": _mend_sentence(found),
        "problems": [each.text for each in found],
    }


def best_method(report: dict[str, Any]) -> str:
    """The method that loses and hides least; among equals the one with the better metrics."""
    quality = report["quality"]
    rows = {name: quality["rows"].get(name, {}) for name in quality["methods"]}

    def rank(name: str) -> tuple:
        row = rows[name]
        lost = row.get("lost")
        # Differences of a few objects or a percent of the picture are none.
        score = sum(row.get(key, 0.0) or 0.0 for key in _RANKED)
        return round(20 * (lost or 0.0)), round(50 * row.get("hidden", 0.0)), -score

    return min(rows, key=rank)


def _method_sentence(report: dict[str, Any]) -> str:
    rows = report["quality"]["rows"]
    best = best_method(report)
    if best not in rows:
        return f"{best} ran, but no pair could be measured."
    engine = report["speed"]["methods"].get(best, {}).get("engine", "")
    if engine.startswith("null"):
        return (
            "No network ran, since the backend is null: quality and speed are those of the RGB "
            "image, and say nothing of a method."
        )
    hidden = {name: 100 * rows[name]["hidden"] for name in (best, "thermal", "rgb", "average")}
    alone = min(("thermal", "rgb"), key=hidden.__getitem__)
    shown = {"thermal": "the thermal image", "rgb": "the RGB image"}[alone]
    others = [name for name in report["quality"]["methods"] if name != best]
    use = f"Use {best}" + (f" rather than {', '.join(others)}" if others else "")
    lost, objects, loses_more = rows[best].get("lost"), "", False
    if lost is not None:
        source = min(("thermal", "rgb"), key=lambda name: rows[name]["lost"])
        least = rows[source]["lost"]
        loses_more = lost > least + _MORE_LOST
        name = {"thermal": "thermal", "rgb": "RGB"}[source]
        objects = (
            f" and loses {100 * lost:.0f} % of {rows[best]['objects']} objects ({name} alone: "
            f"{100 * least:.0f} %)"
        )
    what = f"it hides structure of a camera in {hidden[best]:.1f} % of the picture{objects}"
    if loses_more:
        return (
            f"{use} with care: {what}, which is more; {shown} alone hides structure in "
            f"{hidden[alone]:.1f} %."
        )
    if hidden[best] < hidden[alone] - 0.5:
        return (
            f"{use}: {what}, while {shown} alone lacks it in {hidden[alone]:.1f} % and the average "
            f"of both in {hidden['average']:.1f} %."
        )
    return (
        f"{use} only if you need one image: {what}, no less than {shown} alone "
        f"({hidden[alone]:.1f} %)."
    )


def _settings_sentence(report: dict[str, Any]) -> str:
    found = report["streams"]["recommended"]
    share = report["pairs"]["share"]
    wanted = report["streams"][report["pairs"]["slower"]]["rate_hz"]
    offset_s = abs(found["thermal_time_offset"])
    # With the defaults a fast camera's images have partners, too, but the wrong ones.
    apart = f", of images {1000 * offset_s:.0f} ms apart" if offset_s > _FAR_S else ""
    text = (
        f"Set tolerance to {found['tolerance']:g} s and thermal_time_offset to "
        f"{found['thermal_time_offset']:g} s, which pairs {100 * share['recommended']:.1f} % of "
        f"the slower camera's images (the defaults: {100 * share['default']:.1f} %{apart})"
    )
    sizes = report["speed"]["sizes"]
    if not sizes:
        return text + "."
    full, size = sizes[0], size_that_holds(report)
    here = f"this machine holds {full['fps']:.1f} frames a second at full size"
    if full["fps"] >= wanted:
        return f"{text}; {here}, enough for the {wanted:.1f} of the slower camera."
    if size:
        fps = next(each["fps"] for each in sizes if each["processing_size"] == size)
        return (
            f"{text}, and processing_size to {size}: {here}, {fps:.1f} then, and the slower "
            f"camera gives {wanted:.1f}."
        )
    return f"{text}; {here}, while the slower camera gives {wanted:.1f}."


def size_that_holds(report: dict[str, Any]) -> int:
    """The largest processing size that keeps up with the slower camera; 0: full size, or none."""
    wanted = report["streams"][report["pairs"]["slower"]]["rate_hz"]
    fits = [each for each in report["speed"]["sizes"] if each["fps"] >= wanted]
    return fits[0]["processing_size"] if fits else 0


def _mend_sentence(found: list[Problem]) -> str:
    if not found:
        return (
            "Nothing needs mending: clocks, pairs, registration and exposure are as they should be."
        )
    text = found[0].text
    return f"Mend first: {text}."


def problems(report: dict[str, Any]) -> list[Problem]:
    """What is wrong with the recording and the cameras, the worst first."""
    found = [
        *_of_recording(report),
        *_of_streams(report),
        *_of_pairs(report),
        *_of_registration(report),
        *_of_images(report),
    ]
    return sorted(found, key=lambda each: -each.weight)


def _of_recording(report: dict[str, Any]) -> list[Problem]:
    problem = report.get("bag", {}).get("problem")
    if not problem:
        return []
    if not any(report["streams"][name]["dropped"] for name in ("thermal", "rgb")):
        return [Problem(9, f"the recording: {problem}")]
    return [Problem(90, f"the recording: {problem}; losses may be its own and not the cameras'")]


def _of_streams(report: dict[str, Any]) -> list[Problem]:
    streams, found = report["streams"], []
    for name in ("thermal", "rgb"):
        stream = streams[name]
        images = max(stream["count"], 1)
        share = stream["dropped"] / (images + stream["dropped"])
        if share > 0.01:
            found.append(
                Problem(
                    10 + 100 * share,
                    f"the {name} camera lost {stream['dropped']} images ({100 * share:.1f} %), the "
                    f"longest gap is {stream['longest_gap_ms']:.0f} ms; look at its driver and the "
                    "recorder's load",
                )
            )
        odd = stream["repeated"] + stream["back"]
        if odd:
            found.append(
                Problem(
                    30 + 100 * odd / images,
                    f"{odd} stamps of the {name} camera repeat or go back; its driver should stamp "
                    "each image once, at exposure",
                )
            )
        bad = stream["unstamped"] + stream["unreadable"]
        if bad:
            found.append(
                Problem(
                    40 + 100 * bad / images,
                    f"{bad} images of the {name} camera have no stamp or cannot be read",
                )
            )
        if stream["period_ms"] and stream["jitter_ms"] > 0.15 * stream["period_ms"]:
            found.append(
                Problem(
                    8,
                    f"stamps of the {name} camera jitter by {stream['jitter_ms']:.1f} ms; stamp at "
                    "exposure, not at receipt",
                )
            )
    clocks = streams["clocks"]
    if clocks["drifts"]:
        found.append(
            Problem(
                60,
                f"the thermal camera's clock drifts by {clocks['drift_ppm']:+.0f} microseconds a "
                "second against the RGB camera's, so no constant offset stays right; synchronise "
                "them (PTP, chrony, or stamps by the host)",
            )
        )
    elif abs(streams["recommended"]["thermal_time_offset"]) > _FAR_S:
        offset = -1000 * streams["recommended"]["thermal_time_offset"]
        found.append(
            Problem(
                20,
                f"the thermal camera's stamps are {offset:+.1f} ms off the RGB camera's; "
                "thermal_time_offset corrects that, a common clock or trigger is better",
            )
        )
    return found


def _of_pairs(report: dict[str, Any]) -> list[Problem]:
    share = report["pairs"]["share"]["recommended"]
    if share >= _FEW_PAIRS:
        return []
    slower = report["pairs"]["slower"]
    return [
        Problem(
            50 + 50 * (1 - share),
            f"only {100 * share:.0f} % of the {slower} camera's images have a partner at any "
            "sensible tolerance",
        )
    ]


def _of_registration(report: dict[str, Any]) -> list[Problem]:
    registration, found = report["registration"], []
    residual = registration["residual"]
    if registration["drifts"]:
        found.append(
            Problem(
                55,
                f"the registration moved by {registration['moved_px']:.1f} px during the "
                "recording; fix the cameras to each other",
            )
        )
    if residual and residual["clear"] and residual["length"] > _FAR_PX + 2 * residual["error"]:
        advice = (
            "calibrate both cameras, or give a homography"
            if registration["by"] == "none"
            else f"correct the {registration['by']}"
        )
        found.append(
            Problem(
                45 + min(residual["length"], 20),
                f"the thermal image lies {residual['x']:+.1f} px to the right and "
                f"{residual['y']:+.1f} px below the RGB image (uncertainty "
                f"{residual['error']:.1f} px); {advice}",
            )
        )
    if registration["coverage"] < 0.5:
        found.append(
            Problem(
                25,
                f"the thermal camera sees {100 * registration['coverage']:.0f} % of the RGB image "
                "only",
            )
        )
    return found


def _of_images(report: dict[str, Any]) -> list[Problem]:
    rows, found = report["quality"]["rows"], []
    if not rows:
        return found
    best = best_method(report)
    if rows[best].get("hidden", 0) > _MUCH_HIDDEN:
        found.append(
            Problem(
                15,
                f"structure of a camera is hidden in {100 * rows[best]['hidden']:.0f} % of the "
                "fused image",
            )
        )
    if rows["rgb"]["over_exposure"] > 0.05:
        found.append(
            Problem(
                12,
                f"{100 * rows['rgb']['over_exposure']:.0f} % of the RGB image is over-exposed; "
                "lower its exposure",
            )
        )
    return found
