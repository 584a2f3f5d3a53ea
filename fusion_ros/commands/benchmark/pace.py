# SPDX-License-Identifier: AGPL-3.0-only
"""How the node keeps its pace while another process takes processor time and stops again."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from fusion_ros.commands.benchmark.load import Load
from fusion_ros.commands.benchmark.machine import Host, busy_seconds, cpu_seconds
from fusion_ros.commands.benchmark.pairs import BenchmarkInput
from fusion_ros.commands.benchmark.plot import MatplotlibMissing
from fusion_ros.frame.monitor import percentiles
from fusion_ros.harness.rig import Rig
from fusion_ros.node.parameters import Parameters

__all__ = ["PacePlan", "PaceRun", "Phase", "Sample", "measure_pace", "plot_pace", "write_pace"]

_WARM_HZ, _WARM_PAIRS = 10.0, 5
_LONGEST_START_S = 120.0


@dataclass(frozen=True)
class PacePlan:
    """What to do.

    rate: pairs per second. before, during, after: how long without a load, with one, and without
    it again, s. load: number of busy processes besides the node.
    """

    rate: float
    before: float
    during: float
    after: float
    load: int

    @property
    def seconds(self) -> float:
        return self.before + self.during + self.after


@dataclass(frozen=True)
class Sample:
    """One second.

    size: px, 0 for full size. fps: fused images that came back. lost: share of the pairs sent.
    p50_ms: from stamp to publishing, None without an image. busy: whether the load ran. other:
    processor time of everything but node and sender, of one core.
    """

    at_s: float
    size: int
    fps: float
    lost: float
    p50_ms: float | None
    busy: bool
    other: float


@dataclass(frozen=True)
class Phase:
    """The second half of the time before, during or after the load, when the size has settled.

    fps, lost, p50_ms, p95_ms: over all of its images, as in `Sample`; size: at its end.
    """

    name: str
    fps: float
    lost: float
    p50_ms: float | None
    p95_ms: float | None
    size: int


@dataclass
class PaceRun:
    """One node's samples. label: what sets it apart from the others."""

    label: str
    engine: str = ""
    phases: list[Phase] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def measure_pace(
    runs: Sequence[tuple[str, Parameters]],
    plan: PacePlan,
    pairs: BenchmarkInput,
    rig: Rig,
    folder: Path,
    say: Callable[[str], None],
) -> list[PaceRun]:
    """Send the same pairs to one node after the other, with the same load in the middle."""
    found = []
    (folder / "log").mkdir(parents=True, exist_ok=True)
    for label, parameters in runs:
        values = {name: getattr(parameters, name) for name in Parameters.specs()}
        changed = {k: v for k, v in values.items() if v != getattr(Parameters, k)}
        rig.observer.forget()
        load = Load(rig, pairs)
        node = rig.start("fuse_node", folder / "log", changed, name=f"pace_{label}")
        try:
            end = time.monotonic() + _LONGEST_START_S
            while len(rig.arrivals) < _WARM_PAIRS:
                if time.monotonic() > end:
                    raise node.error(f"has fused nothing in its first {_LONGEST_START_S:g} s")
                load.send(_WARM_HZ, _WARM_PAIRS)
            run = PaceRun(label)
            with _busy(plan) as is_busy:
                sampler = _Sampler(rig, plan, run, is_busy, node.pid)
                load.send(plan.rate, round(plan.rate * plan.seconds), sampler)
            run.engine = rig.report.values.get("engine", "") if rig.report else ""
            run.phases = sampler.phases()
        finally:
            rig.stop(node)
        found.append(run)
        say(f"  {label}: {_summary(run)}")
    return found


class _Sampler:
    """Notes one `Sample` a second; called before each pair."""

    def __init__(
        self, rig: Rig, plan: PacePlan, run: PaceRun, is_busy: Callable[[float], bool], pid: int
    ) -> None:
        self._rig, self._plan, self._run, self._is_busy, self._pid = rig, plan, run, is_busy, pid
        self._start = self._last = time.monotonic()
        self._sent = 0
        self._seen = set(rig.arrivals)
        self._pairs: list[tuple[int, list[float]]] = []
        self._times = self._cpu()

    def _cpu(self) -> tuple[float, float]:
        return busy_seconds(), cpu_seconds(self._pid) + time.process_time()

    def __call__(self) -> None:
        now = time.monotonic()
        busy = self._is_busy(now - self._start)
        self._sent += 1
        if now - self._last < 1:
            return
        new = [stamp for stamp in self._rig.arrivals if stamp not in self._seen]
        self._seen.update(new)
        arrivals = self._rig.arrivals
        latencies = [1e-6 * (arrivals[stamp].published_ns - stamp) for stamp in new]
        self._pairs.append((self._sent, latencies))
        report = self._rig.report
        before, self._times = self._times, self._cpu()
        all_s, ours_s = (b - a for a, b in zip(before, self._times))
        self._run.samples.append(
            Sample(
                at_s=round(now - self._start, 2),
                size=report.count("processing_size") if report else 0,
                fps=round(len(new) / (now - self._last), 2),
                lost=round(max(0.0, 1 - len(new) / self._sent), 3),
                p50_ms=round(percentiles(latencies).p50, 1) if latencies else None,
                busy=busy,
                other=round(max(0.0, all_s - ours_s) / (now - self._last), 2),
            )
        )
        self._last, self._sent = now, 0

    def phases(self) -> list[Phase]:
        """Sum up the phases that have at least one sample."""
        plan, found = self._plan, []
        ends = (plan.before, plan.before + plan.during, plan.seconds)
        starts = (0.0, *ends[:2])
        for name, start, end in zip(("before", "during", "after"), starts, ends):
            settled = [
                (sample, *pairs)
                for sample, pairs in zip(self._run.samples, self._pairs)
                if (start + end) / 2 < sample.at_s <= end
            ]
            if not settled:
                continue
            samples, sent, latencies = zip(*settled)
            pooled = [ms for some in latencies for ms in some]
            found.append(
                Phase(
                    name,
                    round(sum(one.fps for one in samples) / len(samples), 1),
                    round(max(0.0, 1 - len(pooled) / sum(sent)), 3),
                    round(percentiles(pooled).p50, 1) if pooled else None,
                    round(percentiles(pooled).p95, 1) if pooled else None,
                    samples[-1].size,
                )
            )
        return found


@contextmanager
def _busy(plan: PacePlan) -> Iterator[Callable[[float], bool]]:
    """Give a function that starts and ends the load by the time since the start, in s."""
    context = multiprocessing.get_context("spawn")
    processes: list[multiprocessing.process.BaseProcess] = []

    def at(seconds: float) -> bool:
        due = plan.before <= seconds < plan.before + plan.during
        if due and not processes:
            processes.extend(context.Process(target=_spin, daemon=True) for _ in range(plan.load))
            for process in processes:
                process.start()
        elif not due:
            stop()
        return due and bool(plan.load)

    def stop() -> None:
        while processes:
            process = processes.pop()
            process.kill()
            process.join()

    try:
        yield at
    finally:
        stop()


def _spin() -> None:
    while True:
        pass


def _summary(run: PaceRun) -> str:
    return "; ".join(
        f"{one.name} {one.fps:.1f} fps, {one.lost:.0%} lost, p50 {one.p50_ms} and p95 "
        f"{one.p95_ms} ms at {one.size or 'full size'}"
        for one in run.phases
    )


def write_pace(runs: Sequence[PaceRun], plan: PacePlan, method: str, path: Path) -> None:
    """Write plan, machine and samples as JSON."""
    content = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": method,
        "host": asdict(Host.this()),
        "plan": asdict(plan),
        "runs": [asdict(run) for run in runs],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot_pace(runs: Sequence[PaceRun], plan: PacePlan, title: str, path: Path) -> None:
    """Draw size, rate and latency over time, the load shaded. Raises MatplotlibMissing."""
    try:
        import matplotlib
    except ImportError:
        raise MatplotlibMissing("no plot without matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, sharex=True, layout="constrained", figsize=(8, 7))
    for run in runs:
        times = [one.at_s for one in run.samples]
        sizes = [one.size or None for one in run.samples]
        label = "full" if run.label == "0" else run.label
        axes[0].plot(times, sizes, drawstyle="steps-pre", label=label)
        axes[1].plot(times, [one.fps for one in run.samples], label=label)
        axes[2].plot(times, [one.p50_ms for one in run.samples], label=label)
    for axis, name in zip(axes, ("size, px (full: no line)", "fused a second", "p50 latency, ms")):
        axis.set_ylabel(name)
        axis.axvspan(plan.before, plan.before + plan.during, color="0.92")
        axis.set_ylim(bottom=0)
    axes[1].axhline(plan.rate, color="grey", linestyle="--", linewidth=0.8)
    axes[1].legend(frameon=False)
    axes[2].set_xlabel(f"s (shaded: beside a load of {plan.load})")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
