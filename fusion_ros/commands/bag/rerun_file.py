# SPDX-License-Identifier: AGPL-3.0-only
"""`--rerun`: both cameras, the fused images and their boxes for the rerun viewer."""

from __future__ import annotations

import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fusion_ros.commands import CommandError
from fusion_ros.commands.bag.offline import PairOfMessages
from fusion_ros.commands.bag.request import Request
from fusion_ros.frame import compressed, images
from fusion_ros.frame.bit_depth import BitDepth
from fusion_ros.frame.detector import Detection
from fusion_ros.recording.bag import Bag

__all__ = ["RerunFile"]

_QUALITY = 85


class RerunFile:
    """A file *.rrd that appears when it is complete."""

    def __init__(self, bag: Bag, request: Request, method: str) -> None:
        try:
            import rerun
        except ImportError:
            raise CommandError("--rerun needs rerun-sdk: `pip install rerun-sdk`") from None
        self._rerun = rerun
        self._path = Path(request.rerun)
        self._part = self._path.with_name(f".{self._path.name}.part-{os.getpid()}")
        self._method = method
        self._depth = BitDepth(request.settings.rgb_bits)

    def __enter__(self) -> RerunFile:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._rerun.RecordingStream("fusion_ros")
        self._stream.save(self._part)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._stream.flush()
        self._stream.disconnect()
        if kind is None:
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)

    def frame(
        self, pair: PairOfMessages, fused: np.ndarray, boxes: Sequence[Detection], info: Any
    ) -> None:
        """Add one fused image with its sources."""
        rerun, log = self._rerun, self._stream.log
        self._stream.set_time("stamp", timestamp=1e-9 * pair.rgb_ns)
        packed = [hasattr(each, "format") for each in (pair.thermal, pair.rgb)]
        thermal = (compressed if packed[0] else images).thermal_array(pair.thermal)
        read = (compressed if packed[1] else images).visible_bgr
        visible = read(pair.rgb, depth=self._depth)
        log("thermal", rerun.Image(thermal.copy()))
        for name, picture in (("rgb", visible), ("fused", fused)):
            data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
            log(name, rerun.EncodedImage(contents=data.tobytes(), media_type="image/jpeg"))
        log("distance_ms", rerun.Scalars(1e-6 * (pair.thermal_ns - pair.rgb_ns)))
        if boxes:
            log(
                "fused/boxes",
                rerun.Boxes2D(
                    array=[(b.x, b.y, b.width, b.height) for b in boxes],
                    array_format=rerun.Box2DFormat.XYWH,
                    labels=[b.class_name for b in boxes],
                ),
            )
        else:
            log("fused/boxes", rerun.Clear(recursive=False))

    def finish(self, report: dict[str, Any]) -> None:
        """Add the verdict."""
        verdict = report["verdict"]
        text = "\n\n".join(verdict[key] for key in ("method", "settings", "mend"))
        self._stream.log("verdict", self._rerun.TextDocument(text), static=True)
