# SPDX-License-Identifier: AGPL-3.0-only
"""Parameters and multiply-accumulates of the networks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the networks need torch: pip install .[train]")

from fusion_models import list_models  # noqa: E402
from fusion_models.deploy.cost import cost_of, count_macs  # noqa: E402


def test_a_convolution_costs_its_taps_at_each_place():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 5, 3, padding=1)

        def forward(self, ir, vi):
            return self.conv(torch.cat((ir, vi), 1))

    assert count_macs(Pair(), 16, 24) == 2 * 5 * 9 * 16 * 24


def test_refinefuse_in_the_paper_s_preset_has_the_paper_s_size_and_cost():
    cost = cost_of("refinefuse", preset="paper", regional=False)
    assert cost.parameters / 1e6 == pytest.approx(2.21, rel=0.005)
    assert cost.macs[256] / 1e9 == pytest.approx(12.73, rel=0.005)
    assert cost.macs[512] / 1e9 == pytest.approx(48.11, rel=0.005)


@pytest.mark.parametrize("method", list_models())
def test_four_times_the_pixels_cost_at_most_four_times_as_much(method):
    cost = cost_of(method, regional=False)
    assert 3.5 * cost.macs[256] < cost.macs[512] <= 4 * cost.macs[256]
