# SPDX-License-Identifier: AGPL-3.0-only
"""The verdict's first sentence says what fusing gains, and what it costs."""

from __future__ import annotations

import pytest

from fusion_ros.commands.bag.verdict import best_method, verdict_of


def report(**rows):
    """A report with these rows (hidden, lost), everything else in order."""
    quality = {
        name: {"hidden": hidden, "lost": lost, "objects": 50, "over_exposure": 0.0, "VIF": 1.0}
        for name, (hidden, lost) in rows.items()
    }
    stream = {
        "count": 300,
        "dropped": 0,
        "longest_gap_ms": 40.0,
        "repeated": 0,
        "back": 0,
        "unstamped": 0,
        "unreadable": 0,
        "period_ms": 33.3,
        "jitter_ms": 0.5,
        "rate_hz": 30.0,
    }
    return {
        "quality": {"rows": quality, "methods": [n for n in rows if n in ("cfi", "baffm")]},
        "streams": {
            "thermal": stream,
            "rgb": stream,
            "clocks": {"known": True, "drifts": False, "drift_ppm": 0.0, "offset_ms": 0.0},
            "recommended": {"tolerance": 0.01, "thermal_time_offset": 0.0},
        },
        "pairs": {"share": {"recommended": 1.0, "default": 1.0}, "slower": "thermal"},
        "registration": {"residual": None, "drifts": False, "coverage": 1.0, "by": "camera_info"},
        "speed": {"methods": {}, "sizes": []},
    }


def test_without_a_network_no_method_is_recommended():
    without = report(**SOURCES, cfi=(0.4, 0.2))
    without["speed"]["methods"] = {"cfi": {"engine": "null: no network runs"}}
    assert verdict_of(without)["method"].startswith("No network ran")


def test_the_defaults_are_not_praised_for_pairs_of_the_wrong_images():
    late = report(**SOURCES, cfi=(0.1, 0.1))
    assert "(the defaults: 100.0 %)" in verdict_of(late)["settings"]
    late["streams"]["recommended"]["thermal_time_offset"] = -0.05
    assert "(the defaults: 100.0 %, of images 50 ms apart)" in verdict_of(late)["settings"]


SOURCES = {"thermal": (0.5, 0.4), "rgb": (0.4, 0.2), "average": (0.6, 0.5), "maximum": (0.3, 0.3)}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0.1, 0.1), "Use cfi: it hides"),
        ((0.1, 0.5), "Use cfi with care: "),
        ((0.45, 0.2), "Use cfi only if you need one image"),
        ((0.1, None), "Use cfi: it hides"),
    ],
)
def test_the_first_sentence_weighs_the_method_against_the_better_source(row, words):
    rows = {name: (h, None if row[1] is None else lost) for name, (h, lost) in SOURCES.items()}
    verdict = verdict_of(report(**rows, cfi=row))
    assert verdict["method"].startswith(words)
    if row[1] is not None:
        assert "(RGB alone: 20 %)" in verdict["method"]


def test_the_method_that_loses_less_is_preferred_to_one_that_hides_less():
    assert best_method(report(**SOURCES, cfi=(0.1, 0.4), baffm=(0.3, 0.1))) == "baffm"


def test_a_recording_without_faults_has_nothing_to_mend():
    found = verdict_of(report(**SOURCES, cfi=(0.05, 0.1)))
    assert found["problems"] == []
    assert found["mend"].startswith("Nothing needs mending")


def test_a_drifting_clock_comes_before_lost_images():
    bad = report(**SOURCES, cfi=(0.05, 0.1))
    bad["streams"]["clocks"].update(drifts=True, drift_ppm=250.0)
    bad["streams"]["rgb"] = {**bad["streams"]["rgb"], "dropped": 20}
    found = verdict_of(bad)
    assert "drifts by +250" in found["mend"]
    assert "lost 20 images" in found["problems"][1]
