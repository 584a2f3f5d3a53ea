# SPDX-License-Identifier: AGPL-3.0-only
"""Any streams of stamps: each image ends in one counter, and pairs keep to the rules."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_ros.frame.pairing import Pairer

MS = 1_000_000
stamps = st.integers(-(10**6), 10**19) | st.integers(0, 400).map(lambda n: n * 10 * MS)
arrivals = st.lists(st.tuples(st.booleans(), stamps), max_size=60)
ENDS = ("paired", "too_far", "missing", "stale", "waiting")


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    arrivals,
    st.integers(0, 100).map(lambda n: n * MS),
    st.integers(1, 5),
    st.booleans(),
    st.integers(-500, 500).map(lambda n: n * MS),
)
def test_every_image_is_counted_once_and_pairs_are_within_the_tolerance(
    images, tolerance, queue, reuse, offset
):
    pairer = Pairer(tolerance, queue, offset, reuse)
    pairs = []
    for number, (is_thermal, stamp) in enumerate(images):
        add = pairer.add_thermal if is_thermal else pairer.add_visible
        pairs += add(stamp, number)
        counts = pairer.counts
        for stream in (counts.thermal, counts.visible):
            assert stream.received == sum(getattr(stream, end) for end in ENDS)
    pairs += pairer.flush()
    counts = pairer.counts
    for stream, sent in ((counts.thermal, True), (counts.visible, False)):
        assert stream.received == sum(one[0] is sent for one in images)
        assert stream.waiting == 0
    for pair in pairs:
        assert abs(pair.thermal.stamp_ns + offset - pair.visible.stamp_ns) <= tolerance
        assert images[pair.thermal.item] == (True, pair.thermal.stamp_ns)
        assert images[pair.visible.item] == (False, pair.visible.stamp_ns)
    if not reuse:
        assert counts.thermal.paired == counts.visible.paired == len(pairs)
        assert len({pair.thermal.item for pair in pairs}) == len(pairs)
        assert len({pair.visible.item for pair in pairs}) == len(pairs)
