# SPDX-License-Identifier: AGPL-3.0-only
"""Networks that are loaded ahead of a change of size."""

from __future__ import annotations

from fusion_ros.frame.pipeline import Network
from fusion_ros.node.ready import Ready


class Fuser:
    def __init__(self, size: int) -> None:
        self.processing_size = size
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def network(size: int, method: str = "caf") -> Network:
    return Network(method, Fuser(size))


def test_a_network_is_returned_once():
    ready, one = Ready(), network(320)
    ready.keep(one)
    assert ready.has("caf", 320)
    assert not ready.has("cfi", 320)
    assert ready.take("caf", 320) is one
    assert ready.take("caf", 320) is None
    assert not one.fuser.closed


def test_of_three_networks_the_oldest_is_freed():
    ready, networks = Ready(), [network(size) for size in (160, 192, 224)]
    for one in networks:
        ready.keep(one)
    assert [one.fuser.closed for one in networks] == [1, 0, 0]
    assert ready.sizes == [192, 224]


def test_a_second_network_of_a_size_replaces_the_first():
    ready, first, second = Ready(), network(160), network(160)
    ready.keep(first)
    ready.keep(second)
    assert (first.fuser.closed, second.fuser.closed) == (1, 0)
    assert ready.take("caf", 160) is second


def test_networks_kept_after_close_are_freed_at_once():
    ready, early, late = Ready(), network(160), network(192)
    ready.keep(early)
    ready.close()
    ready.keep(late)
    assert (early.fuser.closed, late.fuser.closed) == (1, 1)


def test_both_lanes_of_a_network_are_freed():
    lanes = Fuser(160), Fuser(160)
    ready = Ready()
    ready.keep(Network("caf", lanes[0], "auto", lanes[1]))
    ready.clear()
    assert [one.closed for one in lanes] == [1, 1]
