# SPDX-License-Identifier: AGPL-3.0-only
"""The command `make_bag`: simulated cameras, folders of pairs or videos as a bag.

Rates, clocks, jitter and losses are of choice and exactly known, so that an evaluation can be
checked against them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_ros.commands import CommandError
from fusion_ros.commands.bag.plan import CameraPlan, Plan, Source

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Made", "make_bag", "parser", "run"]

_START_S = 1_700_000_000
_PROGRESS_EVERY = 50


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="fusion_ros make_bag",
        description="Make a bag of two cameras: simulated, from folders of pairs, or from videos.",
    )
    add = made.add_argument
    add("output", type=Path, help="the new bag, a folder")
    source = made.add_argument_group("source (default: the simulated street)").add_argument
    source("--scene", default="night", help="simulated light and weather; tour shows all")
    source("--seed", type=int, default=0, help="which street, jitter and drops")
    source(
        "--data", type=Path, nargs="+", metavar="FOLDER", help="folders with ir/ and vi/, joined"
    )
    source("--thermal-video", type=Path, metavar="FILE", help="given with --rgb-video")
    source("--rgb-video", type=Path, metavar="FILE")
    source("--size", default="", metavar="WxH", help="size of the RGB images")
    source("--thermal-size", default="", metavar="WxH", help="size of the thermal images")
    time = made.add_argument_group("time").add_argument
    time("--seconds", type=float, default=0.0, help="length; default: 10, or all of the source")
    time("--rate", type=float, default=0.0, help="RGB images a second; default: 30")
    time("--thermal-rate", type=float, default=0.0, help="default: 9 simulated, else as --rate")
    time("--source-rate", type=float, default=0.0, help="pairs a second of --data; default: --rate")
    time("--offset", type=float, default=0.0, help="s by which thermal stamps run ahead")
    time("--drift", type=float, default=0.0, help="microseconds a second that they gain")
    time("--jitter", type=float, default=0.0, help="standard deviation of the exposure times, s")
    time("--delay", type=float, default=0.004, help="mean time from exposure to receipt, s")
    time("--drop", type=float, default=0.0, help="share of RGB images that are lost, 0 to 0.9")
    time("--thermal-drop", type=float, default=0.0, help="share of thermal images that are lost")
    form = made.add_argument_group("form").add_argument
    form("--storage", default="mcap", choices=("mcap", "sqlite3"))
    form("--compression", default="none", choices=("none", "message", "file"), help="zstd")
    form(
        "--compressed",
        default="none",
        choices=("none", "rgb", "thermal", "both"),
        help="cameras recorded as CompressedImage: JPEG, or PNG for 16 bit",
    )
    form("--quality", type=int, default=90, help="of JPEG, 1 to 100")
    form("--encoding", default="bgr8", choices=("bgr8", "rgb8", "bgra8", "rgba8", "mono8"))
    form("--thermal-encoding", default="", choices=("", "mono16", "mono8"))
    form("--no-info", action="store_true", help="without camera_info")
    form(
        "--misalign",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("X", "Y"),
        help="RGB pixels by which camera_info is wrong",
    )
    form("--thermal-topic", default="/thermal/image_raw")
    form("--rgb-topic", default="/rgb/image_raw")
    return made


@dataclass(frozen=True)
class Made:
    """What a bag holds: images of each camera, and how many were dropped on purpose."""

    thermal: int
    rgb: int
    thermal_dropped: int
    rgb_dropped: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.rgb} RGB images ({self.rgb_dropped} dropped) and {self.thermal} thermal ones "
            f"({self.thermal_dropped} dropped) of {self.seconds:.1f} s"
        )


def run(arguments: argparse.Namespace) -> int:
    """Make the bag."""
    from fusion_ros.cameras.files import FilesError
    from fusion_ros.recording.storage import BagError

    try:
        made = make_bag(_plan(arguments), lambda text: print(text, flush=True))
    except (BagError, FilesError) as error:
        raise CommandError(str(error), status=4) from None
    except ValueError as error:
        raise CommandError(str(error)) from None
    print(f"{arguments.output}: {made}")
    return 0


def _plan(a: argparse.Namespace) -> Plan:
    from fusion_ros.size import Size

    simulated = not (a.data or a.thermal_video or a.rgb_video)
    if bool(a.thermal_video) != bool(a.rgb_video):
        raise CommandError("--thermal-video and --rgb-video are given together")
    if a.data and a.rgb_video:
        raise CommandError("--data and videos are two sources: give one of them")
    for name in ("rate", "thermal_rate", "source_rate", "seconds", "jitter", "delay"):
        if not 0 <= getattr(a, name) < 1e6:
            raise CommandError(f"--{name.replace('_', '-')} must not be negative")
    for name in ("drop", "thermal_drop"):
        if not 0 <= getattr(a, name) <= 0.9:
            raise CommandError(f"--{name.replace('_', '-')} is a share from 0 to 0.9")
    rate = a.rate or 30.0
    thermal_rate = a.thermal_rate or (9.0 if simulated else rate)
    sizes = [tuple(Size.parse(text)) if text else (0, 0) for text in (a.thermal_size, a.size)]
    packed = {"none": (), "both": ("thermal", "rgb")}.get(a.compressed, (a.compressed,))
    thermal = CameraPlan(
        a.thermal_topic,
        thermal_rate,
        a.offset,
        a.drift,
        a.jitter,
        a.thermal_drop,
        sizes[0],
        a.thermal_encoding,
        "thermal" in packed,
    )
    rgb = CameraPlan(
        a.rgb_topic, rate, 0.0, 0.0, a.jitter, a.drop, sizes[1], a.encoding, "rgb" in packed
    )
    return Plan(
        a.output,
        thermal,
        rgb,
        a.seconds or (10.0 if simulated else 0.0),
        a.scene,
        a.seed,
        tuple(a.data or ()),
        (a.thermal_video, a.rgb_video) if a.rgb_video else None,
        a.source_rate or rate,
        a.delay,
        a.storage,
        a.compression,
        a.quality,
        not a.no_info,
        tuple(a.misalign),
    )


def make_bag(plan: Plan, say: Callable[[str], None] = lambda text: None) -> Made:
    """Write the bag of `plan`; `say` how far it is.

    Raises BagError if it cannot be written, FilesError or ValueError if the source cannot be used.
    """
    import numpy as np

    from fusion_ros.commands.bag.sources import open_source
    from fusion_ros.recording.writer import BagWriter

    source = open_source(plan)
    seconds = min(plan.seconds or source.seconds, source.seconds)
    schedules = {
        name: _schedule(camera, plan, seconds, np.random.default_rng([plan.seed, index]))
        for index, (name, camera) in enumerate((("thermal", plan.thermal), ("rgb", plan.rgb)))
    }
    due = sorted(
        (log, name, at, stamp)
        for name, (events, _) in schedules.items()
        for at, stamp, log in events
    )
    say(f"{len(due)} images to write")
    with BagWriter(plan.output, plan.storage, plan.compression) as writer:
        for number, (log, name, at, stamp) in enumerate(due, 1):
            camera = plan.rgb if name == "rgb" else plan.thermal
            _write(writer, plan, name, camera, source, (at, stamp, log))
            if number % (_PROGRESS_EVERY * 10) == 0:
                say(f"{number} of {len(due)} images")
    counts = {name: len(events) for name, (events, _) in schedules.items()}
    return Made(
        counts["thermal"], counts["rgb"], schedules["thermal"][1], schedules["rgb"][1], seconds
    )


def _schedule(
    camera: CameraPlan, plan: Plan, seconds: float, rng: np.random.Generator
) -> tuple[list[tuple[float, int, int]], int]:
    """Exposure in s, stamp and receipt in ns of each image that is kept; and how many are not."""
    import numpy as np

    count = max(1, round(seconds * camera.rate))
    exposed = np.arange(count) / camera.rate
    if camera.jitter_s:
        limit = 0.45 / camera.rate
        jitter = np.clip(rng.normal(0, camera.jitter_s, count), -limit, limit)
        exposed = np.maximum(exposed + jitter, 0)
    # The first and the last image are kept: a loss there could not be seen in the bag.
    lost = 1 + rng.permutation(max(count - 2, 0))[: round(camera.drop * count)]
    kept = np.setdiff1d(np.arange(count), lost)
    transport = plan.delay_s * (1 + 0.1 * rng.standard_normal(count).clip(-3, 3))
    clock = camera.offset_s + exposed * (1 + 1e-6 * camera.drift_ppm)
    start = _START_S * 1_000_000_000
    stamps = np.rint(clock * 1e9).astype(np.int64) + start
    logs = np.maximum.accumulate(np.rint((exposed + transport) * 1e9).astype(np.int64) + start)
    events = [(float(exposed[i]), int(stamps[i]), int(logs[i])) for i in kept]
    return events, len(lost)


def _write(writer, plan: Plan, name: str, camera: CameraPlan, source: Source, times) -> None:
    import numpy as np

    from fusion_ros.commands.bag.sources import encoded, resized

    at, stamp, log = times
    pixels = resized(source.image(name, at), camera.size)
    pixels, encoding = encoded(pixels, camera.encoding, name)
    header = writer.header(stamp, f"{name}_optical_frame")
    if camera.compressed:
        topic = f"{camera.topic}/compressed"
        writer.compressed(topic, log, header, pixels, encoding, plan.quality)
    else:
        writer.image(camera.topic, log, header, pixels, encoding)
    if not plan.info:
        return
    height, width = pixels.shape[:2]
    matrix = source.matrix(name)
    if matrix is None:
        matrix = np.zeros((3, 3))
    elif name == "rgb":
        # Wrong on purpose: the thermal image is registered `misalign` pixels away from its place.
        matrix = matrix.copy()
        matrix[:2, 2] += plan.misalign
    topic = f"{camera.topic.rsplit('/', 1)[0]}/camera_info"
    writer.camera_info(topic, log, header, width, height, matrix)
