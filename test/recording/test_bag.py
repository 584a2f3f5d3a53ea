# SPDX-License-Identifier: AGPL-3.0-only
"""Bags of every form give the same images; faults of a bag are reported in a sentence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap")

from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.typesys import Stores, get_typestore

from fusion_ros.frame import compressed, images
from fusion_ros.recording.bag import find_cameras, is_bag, open_bag
from fusion_ros.recording.messages import IMAGE, stamp_ns
from fusion_ros.recording.storage import BagError, Topic
from fusion_ros.recording.writer import BagWriter

START = 1_700_000_000_000_000_000
PERIOD = 50_000_000
COUNT = 12


def thermal_pixels(index):
    return np.full((24, 32), 30_000 + index, np.uint16)


def rgb_pixels(index):
    ramp = np.linspace(0, 200, 32 * 24 * 3).reshape(24, 32, 3)
    return (ramp + index).astype(np.uint8)


def write(
    path, topics=("/thermal/image_raw", "/rgb/image_raw"), compressed=False, enlarge=1, **options
):
    block = np.ones((enlarge, enlarge, 1), np.uint8)
    with BagWriter(path, **options) as writer:
        for index in range(COUNT):
            log = START + index * PERIOD
            for topic, pixels, encoding in (
                (topics[0], thermal_pixels(index), "mono16"),
                (topics[1], np.kron(rgb_pixels(index), block), "bgr8"),
            ):
                header = writer.header(log - 1_000_000, topic.strip("/"))
                if compressed:
                    writer.compressed(f"{topic}/compressed", log, header, pixels, encoding, 100)
                else:
                    writer.image(topic, log, header, pixels, encoding)
    return path


def pixels(camera, message):
    if not hasattr(message, "format"):
        return np.array(images.view(message))
    read = compressed.thermal_array if camera == "thermal" else compressed.visible_bgr
    return read(message)


def content(path):
    """Stamps and pixels of both cameras."""
    with open_bag(path) as bag:
        cameras = find_cameras(bag)
        found = {}
        for name, topics in cameras.named():
            found[name] = [
                (bag.stamp_ns(record), pixels(name, bag.message(record)))
                for record in bag.records([topics.image])
            ]
        return found, bag.problem


def assert_whole(found, exact=True):
    for name, made in (("thermal", thermal_pixels), ("rgb", rgb_pixels)):
        assert [stamp for stamp, _ in found[name]] == [
            START + i * PERIOD - 1_000_000 for i in range(COUNT)
        ]
        for index, (_, pixels) in enumerate(found[name]):
            difference = np.abs(pixels.astype(int) - made(index)).max()
            assert difference <= (0 if exact else 6)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compression", ["none", "message", "file"])
def test_every_storage_and_compression_gives_the_images_that_were_written(
    tmp_path, storage, compression
):
    found, problem = content(write(tmp_path / "bag", storage=storage, compression=compression))
    assert_whole(found)
    assert problem == ""


def test_compressed_images_are_decoded_and_16_bit_ones_stay_exact(tmp_path):
    found, _ = content(write(tmp_path / "bag", compressed=True))
    assert_whole(found, exact=False)
    assert all(np.array_equal(p, thermal_pixels(i)) for i, (_, p) in enumerate(found["thermal"]))


def test_one_file_of_a_bag_is_read_without_its_folder(tmp_path):
    write(tmp_path / "bag")
    found, problem = content(next((tmp_path / "bag").glob("*.mcap")))
    assert_whole(found)
    assert problem == ""


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_without_metadata_is_read_and_says_so(tmp_path, storage):
    path = write(tmp_path / "bag", storage=storage)
    (path / "metadata.yaml").unlink()
    found, problem = content(path)
    assert_whole(found)
    assert "metadata.yaml is missing" in problem


def test_split_files_without_metadata_are_joined_in_the_order_of_time(tmp_path):
    first = write(tmp_path / "a")
    path = tmp_path / "split"
    path.mkdir()
    # The later half lies in the file whose name comes first.
    with open_bag(first) as bag:
        for name, low, high in (("x_1", 0, 6), ("x_0", 6, COUNT)):
            with BagWriter(tmp_path / name) as writer:
                span = START + low * PERIOD, START + high * PERIOD
                for record in bag.records(list(bag.topics), *span):
                    writer.write_raw(record.topic, IMAGE, record.log_ns, record.data)
            file = next((tmp_path / name).glob("*.mcap"))
            shutil.copy(file, path / file.name)
    found, _ = content(path)
    assert_whole(found)


def test_a_ros_1_bag_is_read_with_its_calibration(tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    path = tmp_path / "old.bag"
    with Rosbag1Writer(path) as writer:
        connections = {
            topic: writer.add_connection(topic, kind, typestore=store)
            for topic, kind in (
                ("/thermal/image_raw", IMAGE),
                ("/rgb/image_raw", IMAGE),
                ("/rgb/camera_info", "sensor_msgs/msg/CameraInfo"),
            )
        }
        for index in range(COUNT):
            log = START + index * PERIOD
            stamp = log - 1_000_000
            time = types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
            header = types["std_msgs/msg/Header"](seq=index, stamp=time, frame_id="camera")
            for topic, pixels, encoding in (
                ("/thermal/image_raw", thermal_pixels(index), "mono16"),
                ("/rgb/image_raw", rgb_pixels(index), "bgr8"),
            ):
                message = types[IMAGE](
                    header=header,
                    height=24,
                    width=32,
                    encoding=encoding,
                    is_bigendian=0,
                    step=pixels.strides[0],
                    data=pixels.view(np.uint8).ravel(),
                )
                writer.write(connections[topic], log, store.serialize_ros1(message, IMAGE))
            roi = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
            info = types["sensor_msgs/msg/CameraInfo"](
                header, 24, 32, "plumb_bob", np.zeros(5), np.eye(3).ravel(), np.eye(3).ravel(),
                np.zeros(12), 0, 0, roi,
            )  # fmt: skip
            kind = "sensor_msgs/msg/CameraInfo"
            writer.write(connections["/rgb/camera_info"], log, store.serialize_ros1(info, kind))
    found, _ = content(path)
    assert_whole(found)
    with open_bag(path) as bag:
        cameras = find_cameras(bag)
        assert cameras.rgb.info == "/rgb/camera_info"
        info = bag.message(next(bag.records([cameras.rgb.info])))
        assert list(info.k) == list(np.eye(3).ravel())


def test_what_is_left_of_a_cut_off_mcap_file_is_read_and_the_loss_is_reported(tmp_path):
    path = next(write(tmp_path / "bag", enlarge=20).glob("*.mcap"))
    whole = path.read_bytes()
    torn = tmp_path / "torn.mcap"
    torn.write_bytes(whole[: len(whole) * 6 // 10])
    found, problem = content(torn)
    count = len(found["thermal"])
    assert 3 <= count < COUNT
    assert all(np.array_equal(p, thermal_pixels(i)) for i, (_, p) in enumerate(found["thermal"]))
    assert "cut off" in problem


def test_a_damaged_database_is_reported_in_a_sentence(tmp_path):
    path = next(write(tmp_path / "bag", storage="sqlite3").glob("*.db3"))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:] = bytes(len(data) - middle)
    path.write_bytes(data)
    with pytest.raises(BagError, match="cannot be read as a bag"):
        open_bag(path.parent)


def test_damage_in_the_middle_of_a_bag_ends_it_there_with_a_sentence(tmp_path):
    path = next(write(tmp_path / "bag", enlarge=20, compression="message").glob("*.mcap"))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    found, problem = content(path.parent)
    assert len(found["rgb"]) < COUNT
    assert "damaged" in problem


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.write_text("hello"), "not a bag"),
        (lambda path: path.mkdir(), "found nothing"),
    ],
    ids=["nothing there", "another file", "empty folder"],
)
def test_what_is_no_bag_is_reported_in_a_sentence(tmp_path, make, expected):
    path = tmp_path / "something"
    make(path)
    with pytest.raises(BagError, match=expected):
        open_bag(path)


@pytest.mark.parametrize("name", ["a.mcap", "a.db3", "a.bag"])
@pytest.mark.parametrize("data", [b"", b"not a recording" * 100])
def test_files_with_a_bag_s_name_and_other_content_are_reported_in_a_sentence(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BagError):
        open_bag(path)


@pytest.mark.parametrize(
    "topics",
    [
        ("/flir_boson/image_raw", "/camera/color/image_raw"),
        ("/ir/image_raw", "/vi/image_raw"),
        ("/lepton/image", "/usb_cam/image_raw"),
        ("/robot/thermal_camera/image_raw", "/robot/camera/image_raw"),
    ],
)
def test_cameras_are_found_by_their_names(tmp_path, topics):
    with open_bag(write(tmp_path / "bag", topics=topics)) as bag:
        cameras = find_cameras(bag)
    assert (cameras.thermal.image, cameras.rgb.image) == topics


@pytest.mark.parametrize("rig", ["/front", "/side_left"])
def test_of_several_rigs_the_cameras_of_one_are_taken(rig):
    names = [f"{each}/{camera}/image_raw" for each in ("/b", rig) for camera in ("rgb", "thermal")]
    names.remove("/b/thermal/image_raw")
    bag = SimpleNamespace(topics={name: Topic(name, IMAGE, 10) for name in names})
    cameras = find_cameras(bag)
    expected = (f"{rig}/thermal/image_raw", f"{rig}/rgb/image_raw")
    assert (cameras.thermal.image, cameras.rgb.image) == expected
    assert find_cameras(bag, rgb="/b/rgb/image_raw").rgb.image == "/b/rgb/image_raw"


def test_topics_without_a_recognised_camera_are_listed_with_types_and_counts(tmp_path):
    path = write(tmp_path / "bag", topics=("/front/image", "/rear/image"))
    with open_bag(path) as bag:
        with pytest.raises(BagError, match=rf"--thermal.*--rgb.*/front/image \(Image, {COUNT} mes"):
            find_cameras(bag)
        assert find_cameras(bag, "front/image", "/rear/image").thermal.image == "/front/image"
        with pytest.raises(BagError, match="no image topic '/left'"):
            find_cameras(bag, "/left", "/rear/image")


def test_a_bag_is_distinguished_from_other_folders(tmp_path):
    assert is_bag(write(tmp_path / "bag"))
    assert not is_bag(tmp_path)


def test_a_failed_writer_leaves_nothing_behind(tmp_path):
    writer = BagWriter(tmp_path / "bag")
    writer.image("/a", START, writer.header(START, "a"), rgb_pixels(0), "bgr8")
    writer.__exit__(RuntimeError, RuntimeError(), None)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "bag")
    with pytest.raises(BagError, match="exists already"):
        BagWriter(tmp_path / "bag")


def test_stamps_are_read_without_decoding_and_damaged_messages_have_none():
    assert stamp_ns(b"") == 0
    assert stamp_ns(b"\0\1\0\0" + (7).to_bytes(4, "little") + (9).to_bytes(4, "little")) == (
        7_000_000_009
    )


def test_bags_are_read_without_ros_and_torch():
    code = (
        "import sys; import fusion_ros.recording.bag, fusion_ros.recording.writer; "
        "assert not {'rclpy', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
