# SPDX-License-Identifier: AGPL-3.0-only
"""Opening a bag of any kind, and finding the cameras' topics in it.

with open_bag("drive_0042") as bag:
    topics = find_cameras(bag)
    for record in bag.records([topics.thermal.image, topics.rgb.image]):
        image = bag.message(record)        # fields of sensor_msgs/Image or CompressedImage
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_ros.recording import messages
from fusion_ros.recording.messages import CAMERA_INFO, COMPRESSED, IMAGE
from fusion_ros.recording.rosbag import Rosbag
from fusion_ros.recording.storage import BagError, Record, Storage, Topic
from fusion_ros.recording.torn_mcap import TornMcap

__all__ = ["Bag", "CameraTopics", "Cameras", "find_cameras", "is_bag", "open_bag"]

_FILES = (".mcap", ".db3", ".bag")
_THERMAL = re.compile(r"thermal|infrared|lwir|boson|lepton|flir|optris|seek|(^|[/_])t?ir([/_]|$)")
_RGB = re.compile(r"rgb|colou?r|visible|(^|[/_])vis?([/_]|$)|usb_cam|webcam")
_OURS = re.compile(r"fused|annotated|overlay|debug|detection|depth|mask")
_PART = re.compile(r"_\d+$")
_RAW = re.compile(r"image_raw(/|$)|image_rect|image_color")


class Bag:
    """A bag that is open; use it in a `with` block. The attributes are those of `Storage`."""

    def __init__(self, path: Path, storage: Storage, problem: str = "") -> None:
        self.path = path
        self._storage = storage
        self._problem = problem
        self.kind, self.topics = storage.kind, storage.topics
        self.start_ns, self.end_ns = storage.start_ns, storage.end_ns

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def problem(self) -> str:
        """What cannot be read, in one sentence or more; empty for a sound bag."""
        return "; ".join(text for text in (self._problem, self._storage.problem) if text)

    @property
    def ros1(self) -> bool:
        """Whether its messages are serialized as in ROS 1."""
        return self._storage.ros1

    @property
    def seconds(self) -> float:
        """From the first to the last message."""
        return 1e-9 * (self.end_ns - self.start_ns)

    def records(
        self,
        topics: Collection[str],
        start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[Record]:
        """Messages of `topics`, see `Storage.records`."""
        return self._storage.records(topics, start_ns, stop_ns)

    def stamp_ns(self, record: Record) -> int:
        """Stamp in the header, ns, without decoding the message."""
        return messages.stamp_ns(record.data, self.ros1)

    def message(self, record: Record) -> Any:
        """The decoded message; raises ImageError for damaged data."""
        return messages.decode(record.data, self.topics[record.topic].type, self.ros1)

    def close(self) -> None:
        """Close all files."""
        self._storage.close()


def is_bag(path: Path) -> bool:
    """Whether a path looks like one bag, by its name and the names in it.

    A folder without metadata.yaml is one if its files are called like the parts of one recording,
    `drive_0.mcap` and `drive_1.mcap`, and no folder in it is a bag.
    """
    if not path.is_dir():
        return path.suffix in _FILES and path.is_file()
    if (path / "metadata.yaml").is_file():
        return True
    inside = list(path.iterdir())
    files = [file for file in inside if file.suffix in _FILES and file.is_file()]
    if not files or any(is_bag(each) for each in inside if each.is_dir()):
        return False
    return len({_PART.sub("", file.stem) for file in files}) == 1


def open_bag(path: str | Path) -> Bag:
    """Open a rosbag2 folder, one of its files, or a ROS 1 file.

    A folder without metadata.yaml and an mcap file without its end are read as far as possible,
    which `Bag.problem` says. Raises BagError, a sentence for the user.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise BagError(f"there is no '{path}': expected a bag (a folder, or *.mcap, *.db3, *.bag)")
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.suffix not in _FILES:
            raise BagError(
                f"'{path}' is not a bag: expected a rosbag2 folder, or a file *.mcap, *.db3 or "
                "*.bag (ROS 1)"
            )
        return Bag(path, _open_file(path))
    except PermissionError as error:
        raise BagError(f"'{path}' cannot be read: {error.strerror or error}") from None


def _open_folder(path: Path) -> Bag:
    problem = ""
    files = sorted(file for file in path.iterdir() if file.suffix in _FILES)
    if (path / "metadata.yaml").is_file():
        try:
            return Bag(path, Rosbag([path]))
        except PermissionError:
            raise
        except Exception as error:  # damaged metadata, missing or torn files
            problem = f"metadata.yaml and the files do not fit ({_short(error)})"
    elif files:
        problem = "metadata.yaml is missing; the files were read without it"
    if not files:
        found = sorted(each.name for each in path.iterdir())[:8]
        raise BagError(
            f"'{path}' is not a bag: expected metadata.yaml and files *.mcap or *.db3, found "
            f"{', '.join(found) or 'nothing'}" + (f"; {problem}" if problem else "")
        )
    if len(files) == 1:
        return Bag(path, _open_file(files[0]), problem)
    left_out: list[str] = []

    def passed_over(file: Path, error: Exception) -> None:
        left_out.append(f"'{file.name}' cannot be opened ({_short(error)})")

    storage = Rosbag(files, passed_over)
    if not storage.topics:
        raise BagError(f"'{path}' cannot be read: {'; '.join(left_out)}")
    return Bag(path, storage, "; ".join([problem, *left_out]))


def _open_file(path: Path) -> Storage:
    if not path.stat().st_size:
        raise BagError(f"'{path}' is empty: expected a recording")
    try:
        return Rosbag([path])
    except PermissionError:
        raise
    except Exception as error:
        if path.suffix == ".mcap":
            return TornMcap(path)
        advice = (
            "; `rosbag reindex` repairs a ROS 1 bag whose recording was cut off"
            if path.suffix == ".bag"
            else ""
        )
        raise BagError(f"'{path}' cannot be read as a bag: {_short(error)}{advice}") from None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]


@dataclass(frozen=True)
class CameraTopics:
    """Topics of one camera; `info` is empty where the bag has no camera_info for it."""

    image: str
    info: str = ""


@dataclass(frozen=True)
class Cameras:
    """Topics of both cameras."""

    thermal: CameraTopics
    rgb: CameraTopics

    def named(self) -> Iterable[tuple[str, CameraTopics]]:
        """Both with their names."""
        return (("thermal", self.thermal), ("rgb", self.rgb))


def find_cameras(bag: Bag, thermal: str = "", rgb: str = "") -> Cameras:
    """The cameras' topics: those given, others by type and name.

    Raises BagError, which lists all image topics with their types and counts, where they cannot be
    told.
    """
    found = {
        topic.name: topic for topic in bag.topics.values() if topic.type in (IMAGE, COMPRESSED)
    }
    for wanted in (thermal, rgb):
        if wanted and _resolved(wanted, found) is None:
            raise BagError(f"the bag has no image topic '{wanted}'; {_listed(found)}")
    chosen_thermal = _resolved(thermal, found) or _choice(found, _THERMAL, _RGB, rgb)
    chosen_rgb = _resolved(rgb, found) or _choice(found, _RGB, _THERMAL, chosen_thermal)
    if not chosen_rgb and chosen_thermal:
        # A camera that is called after nothing: the only other one is the RGB camera.
        others = [
            t for t in found if not _THERMAL.search(t.lower()) and not _OURS.search(t.lower())
        ]
        stems = {_namespace(topic) for topic in others}
        if len(stems) == 1:
            chosen_rgb = min(others, key=lambda t: (found[t].type == COMPRESSED, len(t)))
    missing = [n for n, t in (("thermal", chosen_thermal), ("rgb", chosen_rgb)) if not t]
    if missing:
        options = " and ".join(f"--{name} TOPIC" for name in missing)
        which = "the topics of both cameras" if len(missing) == 2 else f"the {missing[0]} camera"
        raise BagError(f"{which} cannot be told by name: give {options}; {_listed(found)}")
    if chosen_thermal == chosen_rgb:
        raise BagError(f"both cameras would be '{chosen_rgb}': give --thermal and --rgb")
    return Cameras(
        *(CameraTopics(name, _info_of(bag, name)) for name in (chosen_thermal, chosen_rgb))
    )


def _resolved(name: str, found: dict[str, Topic]) -> str | None:
    if not name:
        return None
    return next((n for n in (name, f"/{name.lstrip('/')}") if n in found), None)


def _choice(found: dict[str, Topic], like: re.Pattern, unlike: re.Pattern, taken: str) -> str:
    """The one topic that is called like a camera and has images; '' if there is none."""
    fits = [
        topic
        for topic in found.values()
        if like.search(topic.name.lower())
        and not unlike.search(topic.name.lower())
        and not _OURS.search(topic.name.lower())
        and topic.name != taken
        and topic.count
    ]
    # First those of the other camera's robot or rig; then raw images before compressed ones, which
    # are the former with losses.
    fits.sort(
        key=lambda t: (
            -_shared_parts(t.name, taken),
            t.type == COMPRESSED,
            not _RAW.search(t.name),
            len(t.name),
            t.name,
        )
    )
    return fits[0].name if fits else ""


def _shared_parts(one: str, other: str) -> int:
    """Number of namespaces that two topics have in common."""
    pairs = zip(one.split("/")[1:-1], other.split("/")[1:-1])
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _namespace(topic: str) -> str:
    parts = topic.removesuffix("/compressed").rsplit("/", 1)
    return parts[0]


def _info_of(bag: Bag, image: str) -> str:
    info = f"{_namespace(image)}/camera_info"
    known = bag.topics.get(info)
    return info if known and known.type == CAMERA_INFO and known.count else ""


def _listed(found: dict[str, Topic]) -> str:
    if not found:
        return "it has no topics of images at all"
    lines = (f"{t.name} ({t.type.rsplit('/', 1)[1]}, {t.count} messages)" for t in found.values())
    return f"its image topics are {', '.join(lines)}"
