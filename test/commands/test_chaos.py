# SPDX-License-Identifier: AGPL-3.0-only
"""The command `chaos`: its plan, its account, and a short run of some faults."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("rclpy")

from fusion_ros.commands.chaos.faults import FAULTS
from fusion_ros.commands.chaos.session import (
    Chaos,
    ChaosReport,
    Planned,
    account,
    schedule,
)
from fusion_ros.node.diagnostics import Report

COUNTS = {
    "thermal_images": 10,
    "rgb_images": 9,
    "thermal_paired": 6,
    "thermal_missing": 2,
    "thermal_unstamped": 2,
    "rgb_paired": 6,
    "rgb_too_far": 1,
    "rgb_unreadable": 2,
    "pairs": 6,
    "fused": 4,
    "displaced": 1,
    "rejected": 1,
}


def report(**changes: int) -> Report:
    return Report(0, {name: str(count) for name, count in (COUNTS | changes).items()})


def test_the_plan_depends_on_the_seed_alone_and_draws_each_fault_as_often():
    plan = schedule(1, 1800.0)
    assert plan == schedule(1, 1800.0) != schedule(2, 1800.0)
    times = [sum(one.name == name for one in plan) for name in FAULTS]
    assert max(times) - min(times) <= 1
    assert min(times) >= 5
    ends = [one.begin_s + one.seconds for one in plan]
    assert all(end < one.begin_s for end, one in zip(ends, plan[1:]))
    assert ends[-1] <= 1800.0


def test_an_image_or_pair_that_no_counter_names_is_missing_from_the_account():
    assert account(report()).missing == 0
    assert account(report(thermal_missing=1)).missing == 1
    assert account(report(fused=3, in_progress=1)).missing == 0
    assert account(report(fused=3)).missing == 1
    assert account(report(thermal_images=11, thermal_alone=1, fused=5)).missing == 0


def test_a_report_names_what_does_not_hold(tmp_path):
    good = ChaosReport(
        30.0,
        60.0,
        [Planned("drift", 3.0, 2.0)],
        [(5.0, 30.0, 90.0), (10.0, 29.0, 91.0)],
        [account(report())],
        29.5,
        30.0,
        1.0,
    )
    assert good.holds
    for changes, text in (
        ({"final_fps": 20.0}, "20.0 fps after the last fault"),
        ({"growth_mb": 21.0}, "memory grew by 21.0 MB"),
        ({"accounts": [account(report(rejected=0))]}, "1 images or pairs are not accounted for"),
        ({"accounts": []}, "no account"),
        ({"ended": "the process ended"}, "the process ended"),
    ):
        bad = dataclasses.replace(good, **changes)
        assert not bad.holds
        assert text in bad.text()
    good.save(tmp_path / "chaos.json")
    assert json.loads((tmp_path / "chaos.json").read_text())["holds"]
    pytest.importorskip("matplotlib")
    good.plot(tmp_path / "chaos.png")
    assert (tmp_path / "chaos.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_node_accounts_for_every_image_among_some_faults(tmp_path):
    names = ("zero_stamps", "truncated", "looping_bag", "second_publisher", "deactivated")
    names += ("full_disk", "flood")
    plan = [Planned(name, 0.2 + 1.2 * number, 0.8) for number, name in enumerate(names)]
    found = Chaos(plan, 15.0, "", tmp_path).run()
    assert not found.ended
    assert [one.missing for one in found.accounts] == [0] * len(found.accounts)
    # Before the deactivation, before the configuration on a full disk, and at the end.
    assert len(found.accounts) == 3
