# SPDX-License-Identifier: AGPL-3.0-only
"""Times fusion at a smaller size beside full size, and draws the results side by side.

    python training/processing_size.py                           # all methods, 640x480 at 320
    python training/processing_size.py size=160 methods=cfi repeats=30
    python training/processing_size.py repeats=0 picture=docs/processing_size.jpg

The effect on the metrics: `training/evaluate.py sets=msrs/test processing_size=0,320`.

Settings as `key=value`: methods (names or ONNX files with commas; all), size (the node's parameter
`processing_size`), width, height, backend, precision, threads, repeats (0: no times), picture
(JPEG of the first method's results on the simulated cameras; '' for none). Prints a table of
medians in ms, of the whole of `Fuser.fuse`; both sizes in turn, so that the ratios hold on a busy
machine too.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

from fusion_models.deploy.speed import PAUSE, interleaved
from fusion_models.settings import ConfigError, merge_settings, show_help
from fusion_ros.cameras.street.scene import CameraModel, thermal_to_rgb
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal
from fusion_ros.frame.fuser import Fuser, processed_size
from fusion_ros.frame.registration import Registration
from fusion_ros.frame.thermal import GainControl
from fusion_ros.inference import EngineError, load_engine
from fusion_ros.inference.models import list_methods, model_path
from fusion_ros.size import Size

DEFAULTS = {
    "methods": "", "size": 320, "width": 640, "height": 480, "backend": "onnxruntime_cpu",
    "precision": "fp32", "threads": 2, "repeats": 15, "picture": "",
}  # fmt: skip

SHOWN = (("night", 4.0), ("day", 4.0))
"""Scenes of the simulated cameras, and the second."""
CROP = (0.60, 0.36, 0.25, 0.29)
"""Left, top, width and height of what the picture shows, as shares: persons and a sign."""
ZOOM, TITLE = 2, 24


def simulated_pair(scene: str, time_s: float, width: int, height: int) -> tuple:
    """Registered thermal (H, W) uint8 and visible (H, W, 3) uint8 BGR of the simulated cameras."""
    camera = CameraModel.from_fov(width, height, 60.0)
    counts = SimulatedThermal(scene_name=scene).render(time_s)
    registration = Registration(thermal_to_rgb(rgb=camera).ravel())
    thermal = registration.warp(GainControl().apply(counts), (width, height))
    return thermal, SimulatedRgb(camera, scene_name=scene).render(time_s)


def fuse_and_enlarge(fuser: Fuser, thermal: np.ndarray, visible: np.ndarray, size: int):
    """What processing at `size` would give without guides: the change enlarged bilinearly."""
    height, width = thermal.shape
    small = processed_size(Size(width, height), size)
    ycrcb = cv2.cvtColor(visible, cv2.COLOR_BGR2YCrCb)
    ir, vi = (image.astype(np.float32) / 255 for image in (thermal, ycrcb[..., 0]))
    ir, vi_small = (cv2.resize(x, small, interpolation=cv2.INTER_AREA) for x in (ir, vi))
    change = fuser.fuse_luminance(ir, vi_small) - vi_small
    fused = vi + cv2.resize(change, (width, height), interpolation=cv2.INTER_LINEAR)
    ycrcb[..., 0] = np.rint(fused.clip(0, 1) * 255)
    return cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2BGR)


def draw(full: Fuser, small: Fuser, width: int, height: int) -> np.ndarray:
    """Crops side by side: thermal, visible, fused at full size, at the small one in two ways."""
    left, top, crop_width, crop_height = (
        round(share * side) for share, side in zip(CROP, (width, height) * 2)
    )
    px = small.processing_size
    titles = ("thermal", "visible", "fused at full size", f"fused at {px} px",
              f"at {px} px, enlarged bilinearly")  # fmt: skip
    rows = []
    for scene, time_s in SHOWN:
        thermal, visible = simulated_pair(scene, time_s, width, height)
        images = (
            cv2.cvtColor(thermal, cv2.COLOR_GRAY2BGR), visible, full.fuse(thermal, visible),
            small.fuse(thermal, visible), fuse_and_enlarge(full, thermal, visible, px),
        )  # fmt: skip
        crops = [x[top : top + crop_height, left : left + crop_width] for x in images]
        rows.append(np.hstack(crops).repeat(ZOOM, 0).repeat(ZOOM, 1))
    bar = np.full((TITLE, rows[0].shape[1], 3), 24, np.uint8)
    for number, title in enumerate(titles):
        place = (number * crop_width * ZOOM + 8, TITLE - 8)
        cv2.putText(bar, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (235,) * 3, 1, cv2.LINE_AA)
    return np.vstack([bar, *rows])


def main(arguments: list[str]) -> int:
    if show_help(arguments, __doc__):
        return 0
    try:
        config = merge_settings(DEFAULTS, arguments)
        width, height = config.width, config.height
        fused_at = processed_size(Size(width, height), config.size)
        if fused_at == (width, height):
            raise ConfigError(f"size={config.size} is no smaller than {width}x{height}")
        methods = config.methods.split(",") if config.methods else list_methods()
        pair = simulated_pair(*SHOWN[0], width, height)
        if config.repeats:
            print(
                f"| | {width}x{height} ms | {fused_at} ms | times as fast "
                "| of it network | upsampling | the rest |\n|---|---|---|---|---|---|---|"
            )
        for number, method in enumerate(methods):
            fusers = [
                Fuser(
                    load_engine(
                        model_path(method), config.backend, precision=config.precision,
                        threads=config.threads,
                    ),
                    size,
                )
                for size in (0, config.size)
            ]  # fmt: skip
            if config.repeats:
                print(times(method, fusers, pair, config.repeats), flush=True)
            if config.picture and not number:
                quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
                if not cv2.imwrite(config.picture, draw(*fusers, width, height), quality):
                    raise ConfigError(f"picture={config.picture} cannot be written")
            for fuser in fusers:
                fuser.engine.close()
    except (ValueError, EngineError, cv2.error) as error:
        print(f"processing_size.py: {error}", file=sys.stderr)
        return 2
    return 0


def times(method: str, fusers: list[Fuser], pair: tuple, repeats: int) -> str:
    """A row of the table."""
    out = np.empty_like(pair[1])
    stages: list[dict[str, float]] = []

    def at_small_size() -> None:
        fusers[1].fuse(*pair, out)
        stages.append(dict(fusers[1].last_ms))

    forms = {"full": lambda: fusers[0].fuse(*pair, out), "small": at_small_size}
    full, small = (t.median_ms for t in interleaved(forms, repeats, pause=PAUSE).values())
    infer, upsample = (np.median([s[name] for s in stages]) for name in ("infer", "upsample"))
    rest = np.median([s["prepare"] + s["colour"] for s in stages])
    return (
        f"| {method} | {full:.0f} | {small:.1f} | {full / small:.1f} | {infer:.1f} "
        f"| {upsample:.1f} | {rest:.1f} |"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
