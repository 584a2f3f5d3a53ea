# SPDX-License-Identifier: AGPL-3.0-only
"""The parts of `gpu_check`: tests, engines and their differences, times, and the node."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from fusion_ros.commands import doctor
from fusion_ros.commands.benchmark.pairs import simulated_pairs
from fusion_ros.commands.gpu_check.report import Report, Step
from fusion_ros.frame.fuser import Fuser
from fusion_ros.inference import PRECISIONS, cuda, load_engine
from fusion_ros.inference.models import model_path
from fusion_ros.size import Size

__all__ = ["Plan", "check"]

_BACKENDS = ("tensorrt", "onnxruntime_cuda")
_WARM_UP = 5
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to check.

    size: of the images. methods: names or paths. repeats: of each time. rates: of the node, Hz,
    each for `seconds`. minutes: after which nothing is begun. tests: their folder, None for none.
    output: folder of the report.
    """

    size: Size
    methods: tuple[str, ...]
    repeats: int
    rates: tuple[float, ...]
    seconds: float
    minutes: float
    tests: Path | None
    output: Path


def check(plan: Plan, say: Say) -> Report:
    """Take one step after the other; one that fails is reported, and the others follow."""
    end = time.monotonic() + 60 * plan.minutes
    pair = _pair(plan.size)
    todo: list[tuple[str, Callable[[], Iterator[dict[str, Any]]]]] = [
        ("engines", lambda: _engines(plan, pair, end, say)),
        ("parts of a frame", lambda: _parts(plan, pair, end)),
        ("images on the GPU", lambda: _conversions(plan, pair)),
    ]
    if plan.rates:
        todo.append(("the node", lambda: _node(plan)))
    if plan.tests:
        todo.append(("GPU tests", lambda: _tests(plan, end)))
    steps = []
    for name, rows in todo:
        step = Step(name)
        steps.append(step)
        start = time.monotonic()
        if start > end:
            step.reason = f"{plan.minutes:g} minutes were over"
            continue
        say(f"{name} ...")
        try:
            for row in rows():
                step.rows.append(row)
                say("  " + ", ".join(f"{key} {value}" for key, value in row.items()))
            failed = [row for row in step.rows if row.get("failed")]
            step.status = "failed" if failed else "ran"
            step.reason = f"{len(failed)} of {len(step.rows)}" if failed else ""
        except Exception as error:  # the libraries' exceptions share no base class
            step.status, step.reason = "failed", f"{type(error).__name__}: {error}"
            say(f"  failed: {step.reason}")
        step.seconds = time.monotonic() - start
    findings = doctor.examine(doctor.System())
    return Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        gpu=_gpu(),
        size=str(plan.size),
        steps=steps,
        doctor=[asdict(one) | {"level": one.level.value} for one in findings],
    )


def _gpu() -> dict[str, str]:
    from fusion_ros.inference.tensorrt import import_library

    try:
        library = import_library().description
    except Exception:  # the doctor's lines say why
        library = ""
    driver = Path("/proc/driver/nvidia/version")
    text = driver.read_text() if driver.is_file() else ""
    found = re.search(r"Module\s+([\d.]+)", text)
    return {
        "name": cuda.device_name(),
        "compute_capability": cuda.compute_capability(),
        "driver": found[1] if found else "",
        "library": library,
    }


def _pair(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return a pair of the simulated scene, both (H, W), 8 bit."""
    import cv2

    from fusion_ros.frame.thermal import GainControl

    both = simulated_pairs(size, 1)
    thermal, visible = GainControl().apply(both.thermal[0]), both.visible[0]
    return cv2.resize(thermal, size, interpolation=cv2.INTER_LINEAR), visible


def _engines(
    plan: Plan, pair: tuple[np.ndarray, np.ndarray], end: float, say: Say
) -> Iterator[dict[str, Any]]:
    """Build each method in each precision, compare it with the CPU and time a whole frame."""
    for method in plan.methods:
        reference = Fuser(load_engine(model_path(method), "onnxruntime_cpu")).fuse(*pair)
        for backend in _BACKENDS:
            for precision in PRECISIONS:
                row: dict[str, Any] = {"method": Path(method).stem, "backend": backend}
                row |= {"precision": precision, "failed": ""}
                if time.monotonic() > end:
                    yield row | {"failed": f"not begun: {plan.minutes:g} minutes were over"}
                    continue
                try:
                    yield row | _engine(method, backend, precision, pair, reference, plan, say)
                except Exception as error:  # the libraries' exceptions share no base class
                    yield row | {"failed": " ".join(str(error).split())}


def _engine(
    method: str,
    backend: str,
    precision: str,
    pair: tuple[np.ndarray, np.ndarray],
    reference: np.ndarray,
    plan: Plan,
    say: Say,
) -> dict[str, Any]:
    said: list[str] = []
    start = time.perf_counter()
    engine = load_engine(model_path(method, precision), backend, log=said.append)
    fuser = Fuser(engine)
    try:
        fused = fuser.fuse(*pair)
        ready = time.perf_counter() - start
        difference = np.abs(fused.astype(int) - reference)
        out = np.empty_like(fused)
        return {
            "ready_s": ready,
            "built": any(text.startswith("built ") for text in said),
            "converts_images": fuser.converts_on_gpu,
            "mean_difference_of_255": float(difference.mean()),
            "largest_of_255": int(difference.max()),
            "frame_ms": _median_ms(lambda: fuser.fuse(*pair, out), plan.repeats),
            "runs": engine.description,
        }
    finally:
        for text in said:
            say(f"    {text}")
        fuser.close()


def _parts(plan: Plan, pair: tuple[np.ndarray, np.ndarray], end: float) -> Iterator[dict[str, Any]]:
    """Time upload, network and download, with and without the CUDA graph."""
    for method in plan.methods:
        for precision in PRECISIONS:
            if time.monotonic() > end:
                return
            row: dict[str, Any] = {"method": Path(method).stem, "precision": precision}
            row["failed"] = ""
            try:
                fuser = Fuser(load_engine(model_path(method, precision), "tensorrt"))
                fuser.fuse(*pair)
                yield row | fuser.engine.profile(plan.repeats)
                fuser.close()
            except Exception as error:  # as above
                yield row | {"failed": " ".join(str(error).split())}


def _conversions(plan: Plan, pair: tuple[np.ndarray, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Time a frame that the GPU converts and one that the CPU converts."""
    for method in plan.methods[:1]:
        for on_gpu in (True, False):
            fuser = Fuser(load_engine(model_path(method), "tensorrt"), convert_on_gpu=on_gpu)
            out = np.empty_like(pair[1])
            ms = _median_ms(lambda: fuser.fuse(*pair, out), plan.repeats)  # noqa: B023
            stages = {f"{stage}_ms": value for stage, value in fuser.last_ms.items()}
            converts = "GPU" if fuser.converts_on_gpu else "CPU"
            yield {"method": Path(method).stem, "converts": converts, "frame_ms": ms} | stages
            fuser.close()


def _node(plan: Plan) -> Iterator[dict[str, Any]]:
    """Run the node at the rates, with the first method."""
    from fusion_ros.commands.benchmark import measure
    from fusion_ros.commands.benchmark.run import Plan as BenchmarkPlan
    from fusion_ros.node.parameters import Parameters

    parameters = Parameters(method=plan.methods[0], detect=False)
    result, *_ = measure(
        [parameters],
        BenchmarkPlan(plan.rates, plan.seconds, None, 300.0),
        simulated_pairs(plan.size, 10),
        plan.output,
    )
    if result.error:
        raise RuntimeError(result.error)
    for one in result.rates:
        latency = one.latency_ms
        yield {
            "rate_hz": one.offered_hz,
            "fps": one.fps,
            "loss": one.loss,
            "p50_ms": latency.p50 if latency else "",
            "p95_ms": latency.p95 if latency else "",
            "cpu_percent": one.cpu_percent,
            "runs": result.engine,
        }


def _tests(plan: Plan, end: float) -> Iterator[dict[str, Any]]:
    """Run the tests that need a GPU."""
    seconds = max(30.0, end - time.monotonic())
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(plan.tests)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        said, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        said, status = str(error.stdout or ""), 1
    (plan.output / "tests.log").write_text(said)
    last = said.strip().splitlines()[-1] if said.strip() else "no output"
    yield {"tests": last.strip("= "), "failed": "" if status == 0 else "see tests.log"}


def _median_ms(work: Callable[[], object], repeats: int) -> float:
    """Median duration of `work` once it is warm, ms."""
    durations = []
    for number in range(_WARM_UP + repeats):
        start = time.perf_counter()
        work()
        if number >= _WARM_UP:
            durations.append(1e3 * (time.perf_counter() - start))
    return statistics.median(durations)
