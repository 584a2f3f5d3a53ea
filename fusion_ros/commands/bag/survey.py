# SPDX-License-Identifier: AGPL-3.0-only
"""The first look through a bag: stamps, times of receipt and calibrations; no image is decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fusion_ros.frame.calibration import Calibration, from_camera_info, is_rectified_topic
from fusion_ros.frame.images import ImageError
from fusion_ros.recording.bag import Bag, Cameras
from fusion_ros.recording.storage import BagError
from fusion_ros.recording.timing import (
    Clocks,
    Recommendation,
    Stream,
    Times,
    compare_clocks,
    describe_stream,
    recommend,
)

__all__ = ["Survey", "calibration_of", "look_through"]


@dataclass(frozen=True)
class Survey:
    """What the stamps of a bag say.

    thermal, rgb: of images with a stamp; unstamped: numbers of others by camera; calibrations: the
    first of each camera, None where there is none.
    """

    thermal: Times
    rgb: Times
    streams: dict[str, Stream]
    clocks: Clocks
    recommended: Recommendation
    unstamped: dict[str, int] = field(default_factory=dict)
    calibrations: dict[str, Calibration | None] = field(default_factory=dict)


def look_through(
    bag: Bag,
    cameras: Cameras,
    span: tuple[int | None, int | None],
    queue_size: int,
    tick: Callable[[], object] = lambda: None,
    by_arrival: bool = False,
) -> Survey:
    """Read both cameras' stamps in `span`, ns of receipt; `tick` is called for every image.

    by_arrival: the time of receipt counts as the stamp.

    Raises BagError if a camera has no image there.
    """
    found: dict[str, tuple[list[int], list[int]]] = {"thermal": ([], []), "rgb": ([], [])}
    unstamped = {"thermal": 0, "rgb": 0}
    calibrations: dict[str, Calibration | None] = {"thermal": None, "rgb": None}
    images = {topics.image: name for name, topics in cameras.named()}
    infos = {topics.info: name for name, topics in cameras.named() if topics.info}
    for record in bag.records([*images, *infos], *span):
        if record.topic in infos:
            name = infos[record.topic]
            if calibrations[name] is None:
                with contextlib.suppress(ImageError):
                    calibrations[name] = calibration_of(bag.message(record), cameras, name)
            continue
        name = images[record.topic]
        stamp = record.log_ns if by_arrival else bag.stamp_ns(record)
        if stamp > 0:
            found[name][0].append(stamp)
            found[name][1].append(record.log_ns)
        else:
            unstamped[name] += 1
        tick()
    times = {name: Times.of(*lists) for name, lists in found.items()}
    _check(times, unstamped, cameras, bag)
    clocks = compare_clocks(times["thermal"], times["rgb"])
    return Survey(
        times["thermal"],
        times["rgb"],
        {name: describe_stream(each) for name, each in times.items()},
        clocks,
        recommend(times["thermal"], times["rgb"], clocks, queue_size),
        unstamped,
        calibrations,
    )


def calibration_of(info: Any, cameras: Cameras, name: str) -> Calibration | None:
    """The calibration in a CameraInfo message; None if it cannot be used."""
    topic = dict(cameras.named())[name].image
    try:
        return from_camera_info(info, is_rectified_topic(topic))
    except ValueError:
        return None


def _check(times: dict[str, Times], unstamped: dict[str, int], cameras: Cameras, bag: Bag) -> None:
    empty = [name for name in times if not len(times[name])]
    if not empty:
        return
    topics = dict(cameras.named())
    reasons = []
    for name in empty:
        count = unstamped[name]
        reason = f"{count} without a stamp" if count else "none"
        reasons.append(f"the {name} camera has no usable image on {topics[name].image} ({reason})")
    text = " and ".join(reasons)
    raise BagError(
        f"{text}: there is nothing to fuse" + (f"; {bag.problem}" if bag.problem else "")
    )
