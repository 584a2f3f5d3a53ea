# SPDX-License-Identifier: AGPL-3.0-only
"""One bag evaluated: through it twice, once for the stamps, once with the node's own code."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

import fusion_ros
from fusion_models.evaluation.alignment import Shift, pooled_shift
from fusion_models.evaluation.temporal import brightness_variation
from fusion_ros.commands.bag.offline import OfflineNode, PairOfMessages
from fusion_ros.commands.bag.request import Request, method_name, plain
from fusion_ros.commands.bag.samples import Sample, Shot, mean_figures, measure
from fusion_ros.commands.bag.survey import Survey, look_through
from fusion_ros.commands.bag.verdict import verdict_of
from fusion_ros.frame.calibration import Calibration
from fusion_ros.frame.detector import Detection, Detector
from fusion_ros.frame.fuser import Fuser
from fusion_ros.frame.monitor import Monitor
from fusion_ros.frame.pipeline import Pipeline, load_detector, load_network
from fusion_ros.frame.settings import Settings
from fusion_ros.inference import EngineError
from fusion_ros.recording.bag import Bag, Cameras, find_cameras, open_bag
from fusion_ros.recording.storage import BagError
from fusion_ros.recording.timing import Pairing, pair
from fusion_ros.size import Size

__all__ = ["SCHEMA", "Result", "evaluate"]

SCHEMA = 1
"""Version of report.json; it rises when a reader has to change."""
_COURSE = 300
"""Points of a course over time, at most."""
_BINS = 40
_SHIFT_BINS = 8
_SIZES = (480, 320, 240)
_WAITING = 3
"""Samples that may wait for their measures: more would only fill the memory."""


@dataclass
class Result:
    """An evaluated bag: `report` as in report.json, and the samples with their pictures."""

    report: dict[str, Any]
    samples: list[Sample]


@dataclass
class _Course:
    """Figures of every pair, by name."""

    at_s: list[float] = field(default_factory=list)
    distance_ms: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


class _Method:
    """One pipeline with its settings and monitor."""

    def __init__(self, settings: Settings, log: Callable[[str], None]) -> None:
        self.name = method_name(settings.method)
        self.monitor = Monitor()
        network = load_network(settings, None, log)
        self.pipeline = Pipeline(settings, network, self.monitor)
        self.fused = 0
        self.rejected = 0
        self.problem = ""


def evaluate(
    path: Path,
    request: Request,
    sink: Callable[[Bag, Request, str], Any] | None = None,
) -> Result:
    """Evaluate one bag. Ctrl-C ends it early, with the report of what was done.

    sink: makes a context manager with `frame`, called for every fused pair, and `finish`.
    Raises BagError for a bag that cannot be evaluated, EngineError or ValueError if a network
    cannot be loaded.
    """
    begun = time.monotonic()
    with open_bag(path) as bag:
        cameras = find_cameras(bag, request.thermal, request.rgb)
        return _Evaluation(bag, cameras, request, begun).run(sink)


class _Evaluation:
    def __init__(self, bag: Bag, cameras: Cameras, request: Request, begun: float) -> None:
        self.bag, self.cameras, self.request, self.begun = bag, cameras, request, begun
        start = bag.start_ns + round(1e9 * request.start) if request.start else None
        first = start if start is not None else bag.start_ns
        stop = first + round(1e9 * request.duration) if request.duration else None
        self.span = (start, stop)
        self.events: list[str] = []
        self.interrupted = False
        self.course = _Course()
        self.samples: list[Sample] = []
        self.coverage: list[float] = []

    def run(self, sink: Callable[[Bag, Request, str], Any] | None) -> Result:
        request = self.request
        with self._bar(self._count(), "stamps", " images") as bar:
            survey = look_through(
                self.bag,
                self.cameras,
                self.span,
                request.settings.queue_size,
                bar.update,
                request.by_arrival,
            )
        self.survey = survey
        self.settings = self._chosen(survey)
        used = self.settings
        self.pairing = self._pair(used.tolerance, used.thermal_time_offset)
        if not self.pairing.pairs:
            raise BagError(
                f"no pair within the tolerance of {used.tolerance:g} s: {len(survey.thermal)} "
                f"thermal and {len(survey.rgb)} RGB images, {survey.recommended.reason}; try "
                f"tolerance {survey.recommended.tolerance:g} and thermal_time_offset "
                f"{survey.recommended.thermal_time_offset:g}, or other topics"
            )
        detector = None
        methods: list[_Method] = []
        try:
            for method in request.methods:
                settings = self.settings.replace(method=method)
                methods.append(_Method(settings, self.events.append))
            if request.detect:
                detector = load_detector(self.settings, None, self.events.append)
            with contextlib.ExitStack() as stack:
                outputs = None
                if sink is not None:
                    outputs = stack.enter_context(sink(self.bag, request, methods[0].name))
                node = self._through(methods, detector, outputs)
                speed = self._speed(methods)
                report = self._report(methods, node, speed)
                if outputs is not None:
                    outputs.finish(report)
        finally:
            for each in methods:
                each.pipeline.close()
            if detector is not None:
                detector.close()
        return Result(report, self.samples)

    # --- Before the frames ----------------------------------------------------------------------

    def _count(self) -> int | None:
        if self.span != (None, None):
            return None
        return sum(self.bag.topics[topics.image].count for _, topics in self.cameras.named())

    def _bar(self, total: int | None, what: str, unit: str) -> tqdm:
        # None: only where somebody looks, on a terminal.
        off = None if self.request.progress else True
        return tqdm(total=total, desc=what, unit=unit, disable=off, mininterval=0.5, leave=False)

    def _chosen(self, survey: Survey) -> Settings:
        """The settings to fuse with: the recommended ones for what the user has not set.

        Raises BagError for clocks that no setting brings together.
        """
        given = self.request.given
        found = survey.recommended
        limit = Settings.specs()["thermal_time_offset"].limits[1]
        if abs(found.thermal_time_offset) > limit and "thermal_time_offset" not in given:
            raise BagError(
                f"the thermal camera's stamps are {-found.thermal_time_offset:+.0f} s from the RGB "
                f"camera's, and thermal_time_offset reaches {limit:.0f} s: set the node's "
                "stamp_source to arrival, and evaluate with --stamps arrival"
            )
        values = {"tolerance": found.tolerance, "thermal_time_offset": found.thermal_time_offset}
        return self.request.settings.replace(
            **{name: value for name, value in values.items() if name not in given}
        )

    def _pair(self, tolerance: float, offset: float) -> Pairing:
        s = self.request.settings
        return pair(
            self.survey.thermal,
            self.survey.rgb,
            tolerance,
            offset,
            s.queue_size,
            s.reuse_slower,
        )

    # --- Through the bag ------------------------------------------------------------------------

    def _through(
        self, methods: list[_Method], detector: Detector | None, outputs: Any
    ) -> OfflineNode:
        request = self.request
        count = max(1, self.pairing.pairs // request.every)
        wanted = _spread(count, request.samples)

        def calibrated(name: str, calibration: Calibration | None) -> None:
            for each in methods:
                each.pipeline.change(**{f"{name}_camera": calibration})

        for name, calibration in self.survey.calibrations.items():
            calibrated(name, calibration)
        node = OfflineNode(self.bag, self.cameras, self.settings, calibrated, request.by_arrival)
        waiting: deque[Future[Sample]] = deque()
        self.first_ns = int(self.survey.rgb.stamps[0])
        before: Shot | None = None
        with ThreadPoolExecutor(1) as worker, self._bar(count, "pairs", " pairs") as bar:
            try:
                for index, each in self._every(node):
                    keep = index in wanted or index + 1 in wanted
                    shot = self._frame(index, each, node, methods, detector, outputs, keep)
                    if shot is not None and index in wanted:
                        near = before is not None and before.index == index - 1
                        shot = dataclasses.replace(shot, before=before if near else None)
                        waiting.append(worker.submit(measure, shot))
                        while len(waiting) > _WAITING:
                            self.samples.append(waiting.popleft().result())
                    before = None if shot is None else dataclasses.replace(shot, before=None)
                    bar.update()
            except KeyboardInterrupt:
                self.interrupted = True
                self.events.append("interrupted: the report is of what was done until then")
            self.samples += [each.result() for each in waiting]
        if not self.course.at_s:
            texts = "; ".join([*node.texts.values(), *(m.problem for m in methods if m.problem)])
            reason = texts or ("interrupted" if self.interrupted else "no pair could be fused")
            raise BagError(f"not one pair was fused: {reason}")
        return node

    def _every(self, node: OfflineNode) -> Iterator[tuple[int, PairOfMessages]]:
        for number, each in enumerate(node.pairs(*self.span)):
            if number % self.request.every == 0:
                yield number // self.request.every, each

    def _frame(
        self,
        index: int,
        each: PairOfMessages,
        node: OfflineNode,
        methods: list[_Method],
        detector: Detector | None,
        outputs: Any,
        keep: bool,
    ) -> Shot | None:
        """Fuse one pair by every method; None if that fails."""
        begun = time.perf_counter()
        try:
            thermal, visible = node.convert(each)
        except ValueError as error:
            for method in methods:
                method.rejected += 1
                method.problem = method.problem or str(error)
            return None
        convert_ms = 1e3 * (time.perf_counter() - begun)
        at_s = 1e-9 * (each.rgb_ns - self.first_ns)
        offset_ns = round(1e9 * self.settings.thermal_time_offset)
        shot: Shot | None = None
        for number, method in enumerate(methods):
            try:
                fused = method.pipeline.fuse(thermal, visible)
            except (ValueError, EngineError) as error:
                method.rejected += 1
                method.problem = method.problem or f"{method.name}: {error}"
                return None
            method.fused += 1
            method.monitor.stage("convert", convert_ms)
            luminance = cv2.cvtColor(fused, cv2.COLOR_BGR2GRAY)
            self.course.add(method.name, cv2.mean(luminance)[0])
            self.course.add(f"{method.name} over", _share_over(luminance))
            if number == 0:
                registered, seen = method.pipeline.registered, method.pipeline.seen
                grey = cv2.cvtColor(visible, cv2.COLOR_BGR2GRAY)
                self.course.at_s.append(at_s)
                self.course.distance_ms.append(1e-6 * (each.thermal_ns + offset_ns - each.rgb_ns))
                self.course.add("rgb", cv2.mean(grey)[0])
                self.course.add("thermal", cv2.mean(registered)[0])
                self.coverage.append(1.0 if seen is None else float(seen.mean()))
                boxes = self._detect(detector, method, fused, outputs is not None or keep)
                if outputs is not None:
                    outputs.frame(each, fused, boxes, node.infos.get("rgb"))
                if keep:
                    shot = Shot(
                        index,
                        at_s,
                        registered.copy(),
                        grey,
                        {},
                        {"rgb": visible.copy()},
                        seen,
                        {},
                    )
                    if detector is not None:
                        shot.boxes["thermal"] = detector.detect(
                            cv2.cvtColor(registered, cv2.COLOR_GRAY2BGR)
                        )
                        shot.boxes["rgb"] = detector.detect(visible)
            else:
                boxes = self._detect(detector, method, fused, keep)
            if shot is not None:
                shot.fused[method.name] = luminance
                shot.colour[method.name] = fused.copy()
                if detector is not None:
                    shot.boxes[method.name] = boxes
        return shot

    def _detect(
        self, detector: Detector | None, method: _Method, fused: np.ndarray, wanted: bool
    ) -> list[Detection]:
        if detector is None or not wanted:
            return []
        with method.monitor.timed("detect"):
            return detector.detect(fused)

    # --- Speed ----------------------------------------------------------------------------------

    def _speed(self, methods: list[_Method]) -> dict[str, Any]:
        """Time per stage by method; the first method's rate at smaller processing sizes."""
        speed: dict[str, Any] = {"methods": {}, "sizes": []}
        for each in methods:
            stages = {k: round(v, 3) for k, v in each.monitor.snapshot().stage_ms.items()}
            total = sum(stages.values())
            speed["methods"][each.name] = {
                "stage_ms": stages,
                "total_ms": round(total, 3),
                "fps": round(1000 / total, 2) if total else 0.0,
                "engine": each.pipeline.network.fuser.engine.description,
                "processing_size": each.pipeline.network.fuser.processing_size,
            }
        first = methods[0]
        size = first.pipeline.rgb_size
        if size and not self.interrupted:
            stages = speed["methods"][first.name]["stage_ms"]
            network = ("prepare", "infer", "upsample", "colour")
            rest = sum(ms for name, ms in stages.items() if name not in network)
            speed["sizes"] = _sizes(first.pipeline, size, rest)
        peak_mb = _peak_memory_mb()
        speed["memory_mb"] = peak_mb
        speed["machine"] = f"{os.cpu_count()} processors, {platform.machine()}"
        return speed

    # --- Report ---------------------------------------------------------------------------------

    def _report(
        self, methods: list[_Method], node: OfflineNode, speed: dict[str, Any]
    ) -> dict[str, Any]:
        bag, request = self.bag, self.request
        if bag.problem:
            self.events.insert(0, bag.problem)
        for name, text in node.texts.items():
            self.events.append(f"{node.faults[name]} times: {text}")
        if node.depth.assumption:
            self.events.append(node.depth.assumption)
        for name, kinds in node.encodings.items():
            if len(kinds) > 1:
                shown = ", then ".join(kinds[:6])
                self.events.append(f"the {name} camera's images change: {shown}")
        for each in methods:
            snapshot = each.monitor.snapshot()
            self.events += [fault.text for fault in snapshot.faults]
            if each.rejected:
                self.events.append(f"{each.rejected} pairs could not be fused: {each.problem}")
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "version": fusion_ros.__version__,
            "complete": not self.interrupted and not bag.problem,
            "interrupted": self.interrupted,
            "bag": {
                "name": bag.path.name,
                "kind": bag.kind,
                "seconds": bag.seconds,
                "problem": bag.problem,
                "topics": {
                    topic.name: {"type": topic.type, "messages": topic.count}
                    for topic in sorted(bag.topics.values(), key=lambda topic: topic.name)
                },
            },
            "request": request.to_repeat(),
            "settings": {**plain(self.settings), "method": request.methods[0]},
            "streams": self._streams(node),
            "pairs": self._pairs(node),
            "registration": self._registration(),
            "quality": self._quality(methods),
            "detections": self._detections(methods),
            "course": self._courses(methods),
            "samples": [{"index": s.index, "at_s": s.at_s, "rows": s.rows} for s in self.samples],
            "events": list(dict.fromkeys(self.events)),
            "speed": speed,
            "run": {
                "seconds": round(time.monotonic() - self.begun, 2),
                "pairs_per_second": round(
                    len(self.course.at_s) / max(time.monotonic() - self.begun, 1e-9), 2
                ),
                "path": str(bag.path),
            },
        }
        report["verdict"] = verdict_of(report)
        return rounded(report)

    def _streams(self, node: OfflineNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, topics in self.cameras.named():
            stream = dataclasses.asdict(self.survey.streams[name])
            found[name] = {
                "topic": topics.image,
                "info_topic": topics.info,
                "calibrated": self.survey.calibrations[name] is not None,
                "encodings": node.encodings[name],
                "unstamped": self.survey.unstamped[name],
                "unreadable": node.faults.get(f"{name}_unreadable", 0),
                **stream,
            }
        found["clocks"] = {
            **dataclasses.asdict(self.survey.clocks),
            "drifts": self.survey.clocks.drifts,
        }
        found["recommended"] = dataclasses.asdict(self.survey.recommended)
        return found

    def _pairs(self, node: OfflineNode) -> dict[str, Any]:
        used, usual = self.settings, Settings()
        recommended = self.survey.recommended
        shares = {
            "used": self.pairing,
            "recommended": self._pair(recommended.tolerance, recommended.thermal_time_offset),
            "default": self._pair(usual.tolerance, usual.thermal_time_offset),
        }
        distances = self.pairing.distances_ms
        edges = np.histogram_bin_edges(distances, bins=min(_BINS, max(len(distances) // 4, 4)))
        histogram = np.histogram(distances, edges)[0]
        end = max(float(self.pairing.times_s.max()), 1e-9)
        bins = np.linspace(0, end, _BINS + 1)
        unpaired = np.histogram(np.clip(self.pairing.unpaired_s, 0, end), bins)[0]
        counts = node.counts
        return {
            "tolerance": used.tolerance,
            "thermal_time_offset": used.thermal_time_offset,
            "slower": self.pairing.slower,
            "fused": len(self.course.at_s),
            "share": {name: each.share for name, each in shares.items()},
            "pairs": {name: each.pairs for name, each in shares.items()},
            "thermal": dataclasses.asdict(counts.thermal),
            "rgb": dataclasses.asdict(counts.visible),
            "resets": counts.resets,
            "distance_ms": {
                "median": float(np.median(distances)),
                "p95": float(np.quantile(np.abs(distances), 0.95)),
                "largest": float(np.abs(distances).max()),
            },
            "histogram": {"edges_ms": edges.tolist(), "pairs": histogram.tolist()},
            "unpaired": {"edges_s": bins.tolist(), "images": unpaired.tolist()},
        }

    def _registration(self) -> dict[str, Any]:
        samples = self.samples
        found: dict[str, Any] = {
            "coverage": float(np.mean(self.coverage)),
            "by": "homography"
            if self.settings.homography
            else "camera_info"
            if all(each is not None for each in self.survey.calibrations.values())
            else "none",
            "residual": None,
            "course": [],
            "drifts": False,
        }
        # Images that change their size cannot be pooled: the largest group is.
        groups: dict[tuple, list[Sample]] = {}
        for sample in samples:
            groups.setdefault((sample.surface.shape, sample.scale), []).append(sample)
        if not groups:
            return found
        group = max(groups.values(), key=len)
        scale = group[0].scale
        found["residual"] = _shift(pooled_shift([s.surface for s in group]), scale)
        size = max(4, math.ceil(len(group) / _SHIFT_BINS))
        parts = [group[i : i + size] for i in range(0, len(group), size)]
        for part in parts:
            if len(part) > 2 or len(parts) == 1:
                shift = _shift(pooled_shift([s.surface for s in part]), scale)
                found["course"].append({"at_s": float(np.mean([s.at_s for s in part])), **shift})
        clear = [each for each in found["course"] if each["clear"]]
        if len(clear) > 2:
            x, y = (np.array([each[axis] for each in clear]) for axis in ("x", "y"))
            moved = float(np.hypot(x[-1] - x[0], y[-1] - y[0]))
            errors = max(each["error"] for each in (clear[0], clear[-1]))
            found["moved_px"] = moved
            found["drifts"] = bool(moved > max(2.0, 4 * errors))
        return found

    def _quality(self, methods: list[_Method]) -> dict[str, Any]:
        rows = mean_figures(self.samples)
        for name, row in rows.items():
            values = self.course.values.get(name)
            if values:
                row["brightness_variation"] = brightness_variation(values)
        return {"samples": len(self.samples), "rows": rows, "methods": [m.name for m in methods]}

    def _detections(self, methods: list[_Method]) -> dict[str, Any] | None:
        if not self.request.detect:
            return None
        names = ["thermal", "rgb", *(m.name for m in methods)]
        totals: dict[str, dict[str, int]] = {name: {} for name in names}
        for sample in self.samples:
            for name, counts in sample.objects.items():
                for kind, count in counts.items():
                    totals[name][kind] = totals[name].get(kind, 0) + count
        course = [
            {"at_s": s.at_s, **{n: sum(s.objects.get(n, {}).values()) for n in names}}
            for s in self.samples
        ]
        crops = [kind for s in self.samples for kind, _, _ in s.crops]
        return {
            "by_class": totals,
            "course": course,
            "only_fused": crops.count("found"),
            "lost": crops.count("lost"),
        }

    def _courses(self, methods: list[_Method]) -> dict[str, Any]:
        count = len(self.course.at_s)
        kept = _spread(count, _COURSE, first=0)
        chosen = sorted(kept)
        names = [name for name, values in self.course.values.items() if len(values) == count]
        return {
            "at_s": [self.course.at_s[i] for i in chosen],
            "distance_ms": [self.course.distance_ms[i] for i in chosen],
            "brightness": {
                n: [self.course.values[n][i] for i in chosen] for n in names if " over" not in n
            },
            "over_exposure": {
                n.removesuffix(" over"): [self.course.values[n][i] for i in chosen]
                for n in names
                if n.endswith(" over")
            },
        }


def _spread(count: int, wanted: int, first: int = 1) -> set[int]:
    """At most `wanted` of `count` indices, evenly from `first`, which has one before it."""
    first = min(first, count - 1)
    return {int(i) for i in np.rint(np.linspace(first, count - 1, min(wanted, count)))}


def _share_over(luminance: np.ndarray) -> float:
    """Share of pixels over 245, by every second row and column."""
    return float((luminance[::2, ::2] > 245).mean())


def _shift(shift: Shift, scale: float) -> dict[str, Any]:
    return {
        "x": shift.x * scale,
        "y": shift.y * scale,
        "length": shift.length * scale,
        "error": shift.error * scale,
        "clear": shift.clear,
        "pairs": shift.pairs,
    }


def _sizes(pipeline: Pipeline, size: Size, rest_ms: float) -> list[dict[str, float]]:
    """Frames a second of the network at some processing sizes, with the rest of a frame added."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (size.height, size.width), np.uint8)
    thermal = cv2.GaussianBlur(noise, (0, 0), 5)
    visible = np.repeat(thermal[::-1, :, np.newaxis], 3, axis=2).copy()
    found = []
    for longest in (0, *(each for each in _SIZES if each < max(size))):
        fuser = Fuser(pipeline.network.fuser.engine, longest)
        try:
            fuser.fuse(thermal, visible)
            times = []
            for _ in range(3):
                begun = time.perf_counter()
                fuser.fuse(thermal, visible)
                times.append(time.perf_counter() - begun)
        except (EngineError, ValueError):
            continue
        ms = 1e3 * float(np.median(times)) + rest_ms
        found.append({"processing_size": longest, "ms": round(ms, 2), "fps": round(1000 / ms, 2)})
    return found


def _peak_memory_mb() -> float:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(each for each in text.splitlines() if each.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    except (OSError, StopIteration, ValueError):
        return 0.0


def rounded(value: Any) -> Any:
    """Floats to seven digits, numpy's to Python's: what a reader of JSON can use."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{float(value):.7g}") if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
