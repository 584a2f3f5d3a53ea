# SPDX-License-Identifier: AGPL-3.0-only
"""The page of a demonstration's own run: what its cameras sent, recorded and evaluated."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusion_ros.commands.demo.plan import Plan, Request
from fusion_ros.missing import remedy

__all__ = ["RunBag", "evaluate_run", "start_recording"]

_EVALUATED = 40
"""Pairs that are fused once more for the page."""
_SAMPLES = 12
_TOPICS = {
    "thermal/image_raw": "sensor_msgs/msg/Image",
    "thermal/camera_info": "sensor_msgs/msg/CameraInfo",
    "rgb/image_raw": "sensor_msgs/msg/Image",
    "rgb/camera_info": "sensor_msgs/msg/CameraInfo",
}


class RunBag:
    """Records what both cameras send, as it comes, to a bag in the output folder.

    node: the rclpy node whose executor takes the messages.
    """

    def __init__(self, node: Any, output: Path) -> None:
        from sensor_msgs.msg import CameraInfo, Image

        from fusion_ros.recording.writer import BagWriter

        self.path = output / ".run" / "demo"
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self._writer = BagWriter(self.path)
        for topic, kind in _TOPICS.items():
            callback = functools.partial(self._on_message, f"/{topic}", kind)
            message = Image if kind.endswith("/Image") else CameraInfo
            node.create_subscription(message, topic, callback, 10, raw=True)

    def close(self) -> None:
        """End the recording."""
        self._writer.__exit__(None, None, None)

    def discard(self) -> None:
        """Remove the recording."""
        self._writer.discard()
        shutil.rmtree(self.path.parent, ignore_errors=True)

    def _on_message(self, topic: str, kind: str, raw: bytes) -> None:
        self._writer.write_raw(topic, kind, time.time_ns(), raw)


def start_recording(node: Any, request: Request) -> RunBag | None:
    """Record the run, if a page is wanted and the libraries for it are there."""
    if not request.page:
        return None
    try:
        import jinja2  # noqa: F401
        import rosbags  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        print(f"without a page of this run: {remedy(error)}", flush=True)
        return None
    return RunBag(node, request.output)


def evaluate_run(
    run: RunBag, request: Request, plan: Plan, say: Callable[[str], None] = print
) -> Path | None:
    """Evaluate the recording, write the page to the output folder and remove the recording.

    Returns the page; None if the recording cannot be evaluated, after saying why.
    """
    from fusion_ros.commands.bag.one import evaluate_to
    from fusion_ros.commands.bag.request import Request as Evaluation
    from fusion_ros.commands.bag.results import PAGE
    from fusion_ros.frame.detector import default_detector_path
    from fusion_ros.frame.settings import Settings
    from fusion_ros.inference import EngineError
    from fusion_ros.recording.storage import BagError

    parameters = request.parameters()
    gain = {f"gain_{name}": value for name, value in plan.gain().items()}
    settings = Settings(method=parameters.method, detector=parameters.detector, **gain)
    evaluation = Evaluation(
        settings,
        tuple(gain),
        (parameters.method,),
        every=max(1, plan.pairs // _EVALUATED),
        samples=_SAMPLES,
        detect=bool(parameters.detector) or default_detector_path().is_file(),
    )
    say("evaluating the run for its page")
    try:
        run.close()
        evaluate_to(run.path, request.output, evaluation)
    except (BagError, EngineError, ValueError) as error:
        say(f"no page: {error}")
        return None
    finally:
        run.discard()
    return request.output / PAGE
