# SPDX-License-Identifier: AGPL-3.0-only
"""Simulated pairs as files, with boxes and masks: what training, evaluation and tests read.

    python -m fusion_ros.cameras.street.export pairs/ --pairs 200 --size 320x240
    python -m fusion_ros.cameras.street.export night/ --video night --pairs 30

Of each kind, `pairs` pairs in one folder:

    ir/<stem>.png               thermal, 8 bit
    vi/<stem>.png               visible, colour
    masks/<stem>.png            8 bit: 0, or k where the object of line k of boxes/fusion shows
    boxes/fusion/<stem>.txt     all objects that a camera shows, in YOLO form: class, centre x and
                                y, width, height as shares of the picture
    boxes/infrared/<stem>.txt   those of them that thermal shows
    boxes/visible/<stem>.txt    those of them that the visible shows
    objects.jsonl               a line each pair: its kind and variant, and of each object the
                                distance, the share that is not hidden and the contrasts
    classes.txt                 names of the classes, a line each

A stem is kind, seed and N for night or D for day, as in `snow_00012D`. A video has `ir/` and `vi/`
alone, and the numbers of its frames as stems.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from fusion_ros.cameras.street.backdrop import Backdrop
from fusion_ros.cameras.street.kinds import (
    BLOCK,
    CLASSES,
    KINDS,
    ORDINARY,
    VARIANTS,
    Scene,
    Target,
    render,
)
from fusion_ros.cameras.street.scene import SCENES, CameraModel
from fusion_ros.cameras.street.simulated import SimulatedRgb, SimulatedThermal
from fusion_ros.size import Size

__all__ = ["contact_sheet", "export", "export_video", "main", "stem_of", "write"]

_FOLDERS = ("ir", "vi", "masks", "boxes/fusion", "boxes/infrared", "boxes/visible")
_FAST = (cv2.IMWRITE_PNG_COMPRESSION, 1)


def export(
    folder: Path,
    pairs: int,
    size: Size = Size(320, 240),
    kinds: Sequence[str] = KINDS,
    first_seed: int = 0,
) -> list[str]:
    """Write `pairs` pairs of each kind, seeds `first_seed` and on; returns their stems.

    What `folder` holds stays, but for pairs of the same stem and for `objects.jsonl`. Raises
    ValueError for an unknown kind, fewer than one pair or a negative seed, before it writes.
    """
    unknown = [kind for kind in kinds if kind not in KINDS + ORDINARY]
    if unknown or not kinds:
        raise ValueError(
            f"kinds {', '.join(unknown) or 'none'}: expected some of {', '.join(KINDS + ORDINARY)}"
        )
    if pairs < 1 or first_seed < 0:
        raise ValueError(f"{pairs} pairs from seed {first_seed}: expected 1 or more from 0 or more")
    seeds = range(first_seed, first_seed + pairs)
    return write(folder, (render(kind, seed, size) for kind in kinds for seed in seeds))


def write(folder: Path, scenes: Iterable[Scene]) -> list[str]:
    """Write pairs in the form that the module describes; returns their stems."""
    folder = Path(folder)
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    stems = []
    with (folder / "objects.jsonl").open("w") as lines:
        for scene in scenes:
            stem = stem_of(scene)
            for name, picture in (
                ("ir", scene.thermal),
                ("vi", scene.visible),
                ("masks", scene.masks),
            ):
                _write_image(folder / name / f"{stem}.png", picture)
            size = Size.of(scene.thermal)
            for name, targets in (
                ("fusion", scene.targets),
                ("infrared", [t for t in scene.targets if t.in_thermal]),
                ("visible", [t for t in scene.targets if t.in_visible]),
            ):
                text = "".join(_yolo_line(target, size) for target in targets)
                (folder / "boxes" / name / f"{stem}.txt").write_text(text)
            entry = {
                "stem": stem,
                "kind": scene.kind,
                "variant": scene.variant,
                "seed": scene.seed,
                "objects": [_rounded(asdict(target)) for target in scene.targets],
            }
            lines.write(json.dumps(entry) + "\n")
            stems.append(stem)
    return stems


def export_video(
    folder: Path,
    scene: str,
    frames: int,
    size: Size = Size(320, 240),
    seed: int = 0,
    rate: float = 10.0,
) -> list[str]:
    """Write `frames` consecutive registered pairs of a moving scene; returns their stems.

    Thermal counts of 16 bits become 8 bits by the range of the first frame, a tenth wider, for the
    whole video: a stretch of each frame by itself would flicker.

    Args:
        rate: frames per second of scene time.
    Raises:
        ValueError: an unknown scene, fewer than one frame or a rate that is not positive.
    """
    if scene not in SCENES or frames < 1 or rate <= 0:
        raise ValueError(
            f"video of {frames} frames of '{scene}' at {rate:g} a second: expected 1 or more of "
            f"{', '.join(SCENES)} at a positive rate"
        )
    folder = Path(folder)
    for name in ("ir", "vi"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    camera = CameraModel.from_fov(*size, 56.0)
    backdrop = Backdrop(camera, seed)
    rgb = SimulatedRgb(camera, scene, seed, backdrop=backdrop)
    thermal = SimulatedThermal(camera, scene, seed, backdrop=backdrop)
    backdrop.release()
    low = high = 0.0
    stems = []
    for number in range(frames):
        counts = thermal.render(number / rate)
        if counts.dtype != np.uint8:
            if not number:
                low, high = np.percentile(counts, (0.5, 99.5))
                low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
            scaled = (counts - low) * (255 / max(high - low, 1))
            counts = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        stems.append(f"{number:05d}")
        _write_image(folder / "ir" / f"{stems[-1]}.png", counts)
        _write_image(folder / "vi" / f"{stems[-1]}.png", rgb.render(number / rate))
    return stems


def _write_image(path: Path, picture: np.ndarray, settings: tuple[int, int] = _FAST) -> None:
    if not cv2.imwrite(str(path), picture, settings):
        raise OSError(f"cannot write {path}: is there space, and the right to write?")


def contact_sheet(
    size: Size = Size(320, 240), kinds: Sequence[str] = KINDS + ORDINARY, seed: int = 0
) -> np.ndarray:
    """Two pairs of each kind and variant side by side: thermal and visible with boxes, BGR uint8.

    Boxes are red around objects that only thermal shows, blue around those that only the visible
    shows, green around those that both show.
    """
    first = seed - seed % BLOCK
    rows = []
    for kind in kinds:
        count = len(VARIANTS.get(kind, ("",)))
        for index in range(count):
            start = first + index * BLOCK
            # The second pair of a variant is of another street.
            pairs = [render(kind, start + shift, size) for shift in (0, count * BLOCK)]
            rows.append(np.hstack([_labelled(scene) for scene in pairs]))
    return np.vstack(rows)


def _labelled(scene: Scene) -> np.ndarray:
    thermal, visible = cv2.cvtColor(scene.thermal, cv2.COLOR_GRAY2BGR), scene.visible.copy()
    for target in scene.targets:
        left, top, right, bottom = target.box
        both = target.in_thermal and target.in_visible
        colour = (0, 200, 0) if both else (40, 40, 255) if target.in_thermal else (255, 120, 0)
        for picture in (thermal, visible):
            cv2.rectangle(picture, (left - 1, top - 1), (right, bottom), colour, 1)
    title = f"{scene.kind} {scene.variant}".strip()
    cv2.putText(thermal, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
    white = (255, 255, 255)
    cv2.putText(thermal, title, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, white, 1, cv2.LINE_AA)
    return np.hstack([thermal, visible])


def stem_of(scene: Scene) -> str:
    """Name of the pair's files: kind, seed, N or D."""
    night = scene.kind in ("night", "faint") or scene.variant == "headlamps"
    return f"{scene.kind}_{scene.seed:05d}{'N' if night else 'D'}"


def _yolo_line(target: Target, size: Size) -> str:
    left, top, right, bottom = target.box
    values = np.array([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)]) / 2
    x, y, width, height = values / (size.width, size.height, size.width, size.height)
    return f"{CLASSES.index(target.kind)} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n"


def _rounded(values: dict) -> dict:
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}


def main(args: list[str] | None = None) -> int:
    """Write pairs to a folder; 0 if it went well, 2 for arguments that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m fusion_ros.cameras.street.export",
        description="Write simulated pairs of thermal and visible pictures with boxes and masks.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--pairs", type=int, default=50, help="of each kind, or frames (default: %(default)s)"
    )
    parser.add_argument("--size", type=Size.parse, default=Size(320, 240), help="as in 320x240")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=None,
        choices=KINDS + ORDINARY,
        metavar="KIND",
        help=f"of {', '.join(KINDS + ORDINARY)} (default: the first four; all for --sheet)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help=f"of the first pair; a multiple of {BLOCK} begins with a new street",
    )
    parser.add_argument(
        "--video",
        choices=SCENES,
        metavar="SCENE",
        help=f"write frames of one moving scene instead: {', '.join(SCENES)}",
    )
    parser.add_argument(
        "--sheet",
        action="store_true",
        help="write sheet.jpg, an overview of the kinds, instead of pairs",
    )
    options = parser.parse_args(args)
    kinds = options.kinds or (KINDS + ORDINARY if options.sheet else KINDS)
    try:
        if options.sheet:
            path = options.folder / "sheet.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet = contact_sheet(options.size, kinds, max(options.seed, 0))
            _write_image(path, sheet, (cv2.IMWRITE_JPEG_QUALITY, 90))
            print(f"overview of the kinds in {path}")
            return 0
        if options.video:
            stems = export_video(
                options.folder, options.video, options.pairs, options.size, options.seed
            )
        else:
            stems = export(options.folder, options.pairs, options.size, kinds, options.seed)
    except (ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{len(stems)} pairs of {options.size} in {options.folder}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
