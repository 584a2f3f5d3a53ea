# SPDX-License-Identifier: AGPL-3.0-only
"""What `make_bag` writes: rates, clocks and losses as requested, of every source."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")

from support_bags import small_plan

from fusion_ros.commands import main
from fusion_ros.commands.bag.make_bag import make_bag
from fusion_ros.frame import images
from fusion_ros.frame.calibration import from_camera_info
from fusion_ros.recording.bag import find_cameras, open_bag
from fusion_ros.recording.timing import Times, compare_clocks, describe_stream


def times(bag, topic):
    records = [(bag.stamp_ns(record), record.log_ns) for record in bag.records([topic])]
    return Times.of(*zip(*records))


def test_offset_drift_and_drops_in_the_bag_are_those_of_the_plan(tmp_path):
    plan = small_plan(
        tmp_path / "bag",
        seconds=4,
        thermal={"drift_ppm": 5000.0, "drop": 0.1},
        rgb={"drop": 0.1},
    )
    made = make_bag(plan)
    with open_bag(plan.output) as bag:
        cameras = find_cameras(bag)
        thermal, rgb = (times(bag, topics.image) for _, topics in cameras.named())
    assert (len(thermal), len(rgb)) == (made.thermal, made.rgb)
    assert describe_stream(thermal).dropped == made.thermal_dropped == 4
    assert describe_stream(rgb).dropped == made.rgb_dropped == 8
    clocks = compare_clocks(thermal, rgb)
    assert clocks.offset_ms == pytest.approx(50 + 5 * 2, abs=2)
    assert clocks.drift_ppm == pytest.approx(5000, rel=0.1)


def test_the_simulated_cameras_are_calibrated_and_16_bit(tmp_path):
    plan = small_plan(tmp_path / "bag", seconds=0.2)
    make_bag(plan)
    with open_bag(plan.output) as bag:
        cameras = find_cameras(bag)
        image = bag.message(next(bag.records([cameras.thermal.image])))
        assert images.thermal_array(image).dtype == np.uint16
        info = bag.message(next(bag.records([cameras.thermal.info])))
        assert from_camera_info(info).at((80, 64)).matrix[0, 2] == pytest.approx(39.5)


def test_pairs_of_folders_and_videos_become_bags(tmp_path):
    rng = np.random.default_rng(0)
    for side in ("ir", "vi"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for index in range(3):
            image = rng.integers(0, 255, (48, 64, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "pairs" / side / f"{index}.png"), image)
    assert (
        main.main(["make_bag", str(tmp_path / "a"), "--data", *[str(tmp_path / "pairs")] * 2]) == 0
    )
    with open_bag(tmp_path / "a") as bag:
        cameras = find_cameras(bag)
        assert [bag.topics[t.image].count for _, t in cameras.named()] == [6, 6]
        shown = [images.view(bag.message(r)).copy() for r in bag.records([cameras.rgb.image])]
    expected = cv2.imread(str(tmp_path / "pairs" / "vi" / "1.png"))
    assert np.array_equal(shown[1], expected)
    assert np.array_equal(shown[4], expected)

    video = cv2.VideoWriter(
        str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48)
    )
    if not video.isOpened():
        pytest.skip("this OpenCV writes no MJPG")
    for index in range(5):
        video.write(np.full((48, 64, 3), 40 * index, np.uint8))
    video.release()
    files = ["--thermal-video", str(tmp_path / "v.avi"), "--rgb-video", str(tmp_path / "v.avi")]
    assert main.main(["make_bag", str(tmp_path / "b"), *files, "--rate", "10"]) == 0
    with open_bag(tmp_path / "b") as bag:
        grey = [images.view(bag.message(r)).mean() for r in bag.records(["/thermal/image_raw"])]
    assert np.allclose(grey, [0, 40, 80, 120, 160], atol=3)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--scene", "moon"], 2, "moon"),
        (["--drop", "2"], 2, "0 to 0.9"),
        (["--data", "nowhere"], 4, "nowhere"),
        (["--rgb-video", "a.mp4"], 2, "together"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(tmp_path, capsys, arguments, status, said):
    assert main.main(["make_bag", str(tmp_path / "bag"), *arguments]) == status
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
