# SPDX-License-Identifier: AGPL-3.0-only
"""One run: the node in its own process, its highest rate, then the fixed rates."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from rclpy.utilities import get_rmw_implementation_identifier

from fusion_ros.commands.benchmark.load import Load
from fusion_ros.commands.benchmark.machine import (
    Host,
    Versions,
    busy_seconds,
    cpu_seconds,
    memory_of,
)
from fusion_ros.commands.benchmark.measurement import LEAST_PAIRS, Measurement
from fusion_ros.commands.benchmark.pairs import BenchmarkInput
from fusion_ros.commands.benchmark.results import Config, Input, Result
from fusion_ros.commands.benchmark.search import confirm_peak, find_peak
from fusion_ros.harness.environment import PROFILE_VARIABLE
from fusion_ros.harness.processes import Child, ProcessError
from fusion_ros.harness.rig import Rig
from fusion_ros.inference.models import model_path
from fusion_ros.node.diagnostics import Report
from fusion_ros.node.parameters import Parameters

__all__ = ["Plan", "label", "run"]

MOST_LOSS = 0.05
_TRIAL_S, _TRIAL_PAIRS = 5.0, 20
"""A trial of the search: long enough that one lost pair is no more than the loss allowed."""
_WARM_HZ, _WARM_PAIRS = 10.0, 5
_LONGEST_END_S = 60.0
_WARM_MEMORY_S = 60.0
"""Time in which memory may grow, s: buffers and caches fill."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    rates: fixed rates, Hz, each for `duration_s`; search: bounds of the highest rate, Hz, None for
    no search; start_timeout_s: time limit of the node's first fused image.
    """

    rates: tuple[float, ...]
    duration_s: float
    search: tuple[float, float] | None
    start_timeout_s: float

    @property
    def trial_s(self) -> float:
        return min(self.duration_s, _TRIAL_S)


def label(parameters: Parameters) -> str:
    """Name of these parameters' results, in plots and in the file's name."""
    if parameters.backend == "null":
        return "null"
    name = Path(parameters.method).stem
    fp16 = parameters.precision == "fp16" and not name.endswith("fp16")
    return f"{name}_fp16" if fp16 else name


def run(
    parameters: Parameters,
    plan: Plan,
    pairs: BenchmarkInput,
    rig: Rig,
    folder: Path,
    say: Callable[[str], None],
) -> Result:
    """Measure the node with these parameters, and write `folder`/benchmark_<label>.json.

    The file is written after each measurement. A node that fails ends the run; `error` of the
    result then says how it failed, with the end of its log.
    """
    return _Run(parameters, plan, pairs, rig, folder, say).run()


class _Run:
    def __init__(
        self,
        parameters: Parameters,
        plan: Plan,
        pairs: BenchmarkInput,
        rig: Rig,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._parameters, self._plan, self._rig, self._say = parameters, plan, rig, say
        self._load = Load(rig, pairs)
        name = label(parameters)
        self._logs = folder / "log"
        self._path = folder / f"benchmark_{name}.json"
        self._result = Result(
            label=name,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            host=Host.this(),
            versions=Versions.installed(get_rmw_implementation_identifier()),
            config=_config(parameters, plan),
            input=_input(pairs),
        )

    def run(self) -> Result:
        result = self._result
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            if self._plan.search is not None:
                self._search(*self._plan.search)
            for rate in self._plan.rates:
                result.rates.append(self._at(rate))
                result.write(self._path)
        except ProcessError as error:
            result.error = str(error)
        except KeyboardInterrupt:
            result.error = "interrupted"
            raise
        finally:
            result.write(self._path)
        return result

    def _search(self, low: float, high: float) -> None:
        """Find the highest rate by short trials of one node, then measure it like the others."""
        result, trials = self._result, self._result.search

        def loss_in_trial(rate: float) -> float:
            trials.append(self._measure(node, rate, self._plan.trial_s, _TRIAL_PAIRS))
            result.write(self._path)
            return trials[-1].missed

        def loss_at(rate: float) -> float:
            measured = self._at(rate)
            if measured.missed > MOST_LOSS:
                trials.append(measured)
            else:
                result.peak = measured
            result.write(self._path)
            return measured.missed

        with self._node("search") as node:
            peak = find_peak(loss_in_trial, low, high, MOST_LOSS)
        if peak is not None:
            peak = confirm_peak(loss_at, peak, low, MOST_LOSS)
        failed = [trial for trial in trials if trial.missed > MOST_LOSS]
        if failed:
            lowest = min(failed, key=lambda trial: trial.rate_hz)
            result.peak_limit = "node" if lowest.kept else "sender"
        else:
            result.peak_limit = "bound"
        if peak is None:
            self._say(f"  more than {MOST_LOSS:.0%} are lost at {low:g} Hz already")

    def _at(self, rate: float) -> Measurement:
        """Measure one rate with a new node, so that its means and its memory are of this rate."""
        with self._node(f"{rate:.3g}hz") as node:
            return self._measure(node, rate, self._plan.duration_s, LEAST_PAIRS)

    def _measure(self, node: Child, rate: float, seconds: float, least: int) -> Measurement:
        rig = self._rig
        before = self._idle(node)
        rig.arrivals.clear()
        cpu_s, busy_s = cpu_seconds(node.pid), busy_seconds()
        warm_end, warm_mb = time.monotonic() + _WARM_MEMORY_S, 0.0

        def watch() -> None:
            nonlocal warm_mb
            if not warm_mb and time.monotonic() > warm_end:
                warm_mb = memory_of(node.pid).resident_mb

        sending = self._load.send(rate, max(least, round(rate * seconds)), watch)
        cpu_s, busy_s = cpu_seconds(node.pid) - cpu_s, busy_seconds() - busy_s
        after = self._idle(node)
        self._result.engine = after.values["engine"]
        memory = memory_of(node.pid)
        growth = round(memory.resident_mb - warm_mb, 1) if warm_mb else None
        measured = Measurement.of(
            sending, rig.arrivals, before, after, cpu_s, busy_s, memory, growth
        )
        latency = measured.latency_ms
        times = f"{latency.p50:.1f} / {latency.p95:.1f} / {latency.p99:.1f} ms" if latency else "-"
        self._say(
            f"  {rate:6.1f} Hz (offered {measured.offered_hz:.1f}): {measured.fps:.1f} fps, "
            f"{measured.loss:.1%} lost, latency {times}"
        )
        return measured

    @contextmanager
    def _node(self, name: str) -> Iterator[Child]:
        """Start a node and wait until it has fused its first images."""
        rig = self._rig
        rig.observer.forget()
        begun_ns, begun = time.time_ns(), time.monotonic()
        node = rig.start(
            "fuse_node",
            self._logs,
            _node_parameters(self._parameters, self._plan),
            name=f"{self._result.label}_{name}",
        )
        try:
            while len(rig.arrivals) < _WARM_PAIRS:
                if time.monotonic() > begun + self._plan.start_timeout_s:
                    raise node.error(
                        f"has fused {len(rig.arrivals)} images in its first "
                        f"{self._plan.start_timeout_s:g} s; an engine that takes longer to build "
                        "is built by build_engine, or waited for by --start-timeout"
                    )
                self._load.send(_WARM_HZ, _WARM_PAIRS)
            first_ns = min(arrival.published_ns for arrival in rig.arrivals.values())
            self._result.starts_s.append(round(1e-9 * (first_ns - begun_ns), 3))
            yield node
        finally:
            rig.stop(node)

    def _idle(self, node: Child) -> Report:
        """Wait for the node's report that no pair is in progress."""
        try:
            return self._rig.settle(_LONGEST_END_S, unpaired=True)
        except TimeoutError:
            raise node.error(
                f"has not finished {_LONGEST_END_S:.0f} s after the last pair"
            ) from None


def _node_parameters(parameters: Parameters, plan: Plan) -> dict[str, object]:
    """Parameters that differ from the defaults; at low rates a camera times out later."""
    slowest = min((*plan.rates, *(plan.search or ())))
    parameters = parameters.replace(camera_timeout=max(parameters.camera_timeout, 3 / slowest))
    values = {name: getattr(parameters, name) for name in Parameters.specs()}
    return {name: value for name, value in values.items() if value != getattr(Parameters, name)}


def _config(parameters: Parameters, plan: Plan) -> Config:
    own = ("method", "backend", "precision", "threads", "detect")
    model = model_path(parameters.method, parameters.precision)
    return Config(
        **{name: getattr(parameters, name) for name in own},
        parameters={k: v for k, v in _node_parameters(parameters, plan).items() if k not in own},
        model_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        rates=plan.rates,
        duration_s=plan.duration_s,
        search=plan.search,
        trial_s=plan.trial_s,
        most_loss=MOST_LOSS,
        profile=Path(os.environ.get(PROFILE_VARIABLE, "")).name,
    )


def _input(pairs: BenchmarkInput) -> Input:
    return Input(
        source=pairs.source,
        pairs=len(pairs),
        thermal="{}x{}".format(*pairs.thermal_size),
        thermal_encoding=pairs.thermal_encoding,
        visible="{}x{}".format(*pairs.visible_size),
        visible_encoding="bgr8",
        sha256=pairs.sha256,
    )
