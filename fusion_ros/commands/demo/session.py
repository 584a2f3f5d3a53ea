# SPDX-License-Identifier: AGPL-3.0-only
"""The demonstration's session: starts node and cameras, and records until all is fused."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from fusion_ros.commands import CommandError
from fusion_ros.commands.demo.page import evaluate_run, start_recording
from fusion_ros.commands.demo.plan import Plan, Request, draw_ahead, make_plan
from fusion_ros.commands.demo.recorder import Recorder, Summary
from fusion_ros.harness.processes import Child
from fusion_ros.harness.rig import Rig, ros_session
from fusion_ros.node.parameters import Parameters

__all__ = ["Patience", "demonstrate"]

_LEAD_S = 5.0
"""Least time for the cameras to start and to be found before their first frame."""


@dataclass(frozen=True)
class Patience:
    """Time limits, s.

    start: of the node until its first report; late: of the cameras beyond the time of their
    frames; end: of the node for what is left after the cameras' end.
    """

    start: float = 60.0
    late: float = 15.0
    end: float = 6.0


def demonstrate(request: Request, patience: Patience = Patience()) -> Summary:
    """Run the demonstration and leave its results in `request.output`.

    Raises CommandError if nothing was fused, ProcessError if a process fails or is late.
    """
    output, logs = request.output, request.output / "log"
    shutil.rmtree(logs, ignore_errors=True)
    try:
        logs.mkdir(parents=True)
        for pattern in ("still_*.png", "fusion.mp4", "summary.json", "index.html", "report.json"):
            for old in output.glob(pattern):
                old.unlink()
    except OSError as error:
        raise CommandError(
            f"cannot write to {output} ({error.strerror}): give another folder by --output"
        ) from error
    plan = make_plan(request, lambda text: print(text, flush=True))
    if plan.ahead:
        draw_ahead(plan)
    with ros_session(), Rig() as rig:
        run = start_recording(rig.node, request)
        try:
            summary = _record(rig, request, plan, patience)
        except BaseException:
            if run is not None:
                run.discard()
            raise
    # With the node ended, its processor time is free for the evaluation.
    page = None if run is None else evaluate_run(run, request, plan)
    if page is not None:
        print(f"page of this run, with a verdict: {page}\n")
    return summary


def _record(rig: Rig, request: Request, plan: Plan, patience: Patience) -> Summary:
    output, logs = request.output, request.output / "log"
    begun = time.monotonic()
    fusion = rig.start("fuse_node", logs, _node_parameters(request, plan))
    recorder = Recorder(rig.node, output, plan, scene=None if request.data else "tour")
    # Subscribing to everything that the node offers, so that it does all of its work.
    rig.observer.listen_for_boxes()
    if not rig.wait(lambda: rig.report, patience.start):
        raise fusion.error(f"has reported nothing for {patience.start:g} s")
    # Longer where the node took longer too.
    lead_s = max(_LEAD_S, 1.5 * (time.monotonic() - begun))
    recorder.start_ns = time.time_ns() + round(lead_s * 1e9)
    cameras = [_start_camera(rig, name, request, plan, recorder) for name in ("thermal", "rgb")]

    def ended() -> bool:
        recorder.report = rig.report
        return all(camera.ended() for camera in cameras)

    if not rig.wait(ended, lead_s + plan.duration_s + patience.late):
        running = next(camera for camera in cameras if not camera.ended())
        raise running.error(f"is {patience.late:g} s late: it should have sent its last frame")
    rig.check()
    try:
        report = rig.settle(patience.end)
    except TimeoutError:
        report = rig.next_report(patience.end)  # its counters tell what is left
    if not recorder.codec:
        raise CommandError(f"nothing was fused; the logs are in {logs}/", status=1)
    print(f"video: {output / 'fusion.mp4'} ({recorder.codec})\n")
    return recorder.finish(report)


def _node_parameters(request: Request, plan: Plan) -> dict[str, object]:
    parameters = request.parameters()
    values: dict[str, object] = {f"gain_{name}": value for name, value in plan.gain().items()}
    values["method"] = parameters.method
    values["camera_timeout"] = max(Parameters.camera_timeout, 3 / plan.rate)
    if parameters.detector:
        values["detector"] = parameters.detector
    return values


def _start_camera(rig: Rig, name: str, request: Request, plan: Plan, recorder: Recorder) -> Child:
    values: dict[str, object] = {
        "camera": name,
        "rate": plan.rate,
        "frames": plan.pairs,
        "start_time": str(recorder.start_ns),
        "wait_for_subscribers": 2,  # the node and the recorder
    }
    if request.data:
        values |= {"source": "files", "path": str(request.data.resolve())}
    if plan.ahead:
        values["ahead"] = True
    if plan.size and (request.data or name == "rgb"):
        values |= {"width": plan.size.width, "height": plan.size.height}
    return rig.start(
        "camera_node",
        Path(request.output / "log"),
        values,
        name=f"{name}_camera",
        namespace=name,
        may_end=True,
    )
