# SPDX-License-Identifier: AGPL-3.0-only
"""The rig: nodes in processes and in this one, and waits that end with a failed process."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")

import numpy as np

from fusion_ros.harness.processes import ProcessError
from fusion_ros.harness.rig import Rig

pytestmark = pytest.mark.usefixtures("ros")


def test_a_wait_ends_with_the_process_that_fails(tmp_path):
    with Rig("rig_failing") as rig:
        rig.start("fuse_node", tmp_path, {"method": "nonsense"})
        with pytest.raises(ProcessError, match="(?s)fuse_node ended with status 1.*choose one of"):
            rig.wait(lambda: False)


def test_a_node_in_a_process_fuses_what_is_sent_and_takes_parameters(tmp_path):
    with Rig("rig_process", keep_images=True) as rig:
        node = rig.start("fuse_node", tmp_path, {"backend": "null", "detect": False})
        rig.wait_until_heard()
        thermal, visible = np.zeros((48, 64), np.uint8), np.full((48, 64, 3), 90, np.uint8)
        rig.send(1_000_000_000, thermal, visible)
        assert rig.wait(lambda: 1_000_000_000 in rig.images), node.text()
        assert rig.images[1_000_000_000].encoding == "bgr8"
        assert rig.settle().count("fused") == 1
        assert rig.set(dropout_policy="pass") == ""
        assert "gain_mode" in rig.set(gain_mode="magic")
        rig.stop(node)
        assert node.code == 0
