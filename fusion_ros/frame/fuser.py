# SPDX-License-Identifier: AGPL-3.0-only
"""A pair of images into one fused image: luminance, size, padding, the network, colour."""

from __future__ import annotations

from time import perf_counter

import cv2
import numpy as np

from fusion_ros.frame.upsampling import GuidedUpsampler
from fusion_ros.inference import DeviceArray, Engine, EngineError, Rewrite
from fusion_ros.inference.image_graph import FUSED, THERMAL, VISIBLE, fuse_images
from fusion_ros.inference.rewritten import ImageForm

MULTIPLE, SMALLEST = 8, 32
"""Networks take heights and widths that are multiples of 8, from 32 on."""


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Size of the network's inputs for images of `height` x `width`: `shape` of `load_engine`."""
    return tuple(max(n + -n % MULTIPLE, SMALLEST) for n in (height, width))


def processed_size(height: int, width: int, processing_size: int) -> tuple[int, int]:
    """Height and width, before padding, at which images of `height` x `width` are fused.

    processing_size: the longer of the two, in pixels; where the images are no larger, and with
        0, they keep their own size.
    """
    share = processing_size / max(height, width)
    if not 0 < share < 1:
        return height, width
    return tuple(max(round(n * share), 1) for n in (height, width))


class Fuser:
    """Fuses thermal and visible images by the network in `engine`.

    The network fuses luminance (BT.601, full range); the visible image's CbCr are reattached
    unchanged. Sizes that are no multiple of 8 are padded by reflection at the bottom and right,
    and cropped back. Nothing is stretched by frame, so a video does not flicker. Buffers are
    kept per resolution, so that with `out` nothing of image size is allocated after the first
    frame. Not thread-safe.

    On a GPU luminance, padding and colour are part of the network's graph (see `fuse_images`), so
    that 8-bit images travel to it and back. Nothing is rounded on the way there, so results differ
    a little: by two grey levels at most where the network takes averages, rarely more elsewhere.

    processing_size: longer side, in pixels, of what the network sees of larger images. Both
        luminances are made small, and the change is brought back up along the edges of both
        (see `GuidedUpsampler`), which the CPU does. 0 for the images' own size.
    convert_on_gpu: False to convert on the CPU even if the network runs on a GPU.
    last_ms: milliseconds of the last `fuse` by stage: 'prepare', 'infer', 'colour', and between
        the latter two 'upsample' if there is a `processing_size`. Conversions on the GPU are part
        of 'infer', and copying images to and from its buffers is what is left of the others.

    Raises EngineError if the engine's model is no fusion model, ValueError for a
    `processing_size` below 0.
    """

    def __init__(
        self, engine: Engine, processing_size: int = 0, *, convert_on_gpu: bool = True
    ) -> None:
        inputs = [spec.name for spec in engine.inputs]
        outputs = [spec.name for spec in engine.outputs]
        if sorted(inputs) != ["ir", "vi"] or outputs != ["fused"]:
            raise EngineError(
                "not a fusion model: expected inputs 'ir' and 'vi' and output 'fused', "
                f"got {', '.join(inputs)} and {', '.join(outputs)}"
            )
        if processing_size < 0:
            raise ValueError(f"processing_size is pixels, or 0 for all, got {processing_size}")
        self.engine = engine
        self.processing_size = processing_size
        stages = ("prepare", "infer", *(["upsample"] if processing_size else []), "colour")
        self.last_ms: dict[str, float] = dict.fromkeys(stages, 0.0)
        self._size: tuple[int, int] = (0, 0)
        self._form = ImageForm(engine)
        self._convert_on_gpu = convert_on_gpu

    def warmup(self, size: tuple[int, int]) -> None:
        """Fuse one black pair of `size` (width, height), so that the first real one is fast."""
        width, height = size
        self.fuse(np.zeros((height, width), np.uint8), np.zeros((height, width, 3), np.uint8))

    def fuse(
        self, thermal: np.ndarray, visible_bgr: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The fused colour image, (H, W, 3) uint8 BGR, written to `out` if given.

        thermal: (H, W) uint8, warm is bright; visible_bgr: (H, W, 3) uint8, the same H and W.
        Raises ValueError for other shapes and dtypes, EngineError if the network fails.
        """
        start = perf_counter()
        size = self._check_pair(thermal, visible_bgr)
        if out is None:
            out = np.empty_like(visible_bgr, order="C")
        elif (out.shape, out.dtype, out.flags.c_contiguous) != (visible_bgr.shape, np.uint8, True):
            raise ValueError(
                f"out must be contiguous uint8 {visible_bgr.shape}, got {out.dtype} {out.shape}"
            )
        if self._convert_on_gpu and self._form.fit(size, self.image_form) is not None:
            self._fuse_images(start, thermal, visible_bgr, out)
        else:
            self._fuse_arrays(start, thermal, visible_bgr, out)
        return out

    @property
    def running(self) -> Engine:
        """What runs the network for images of the latest size."""
        return self._form.running

    def image_form(self, size: tuple[int, int]) -> Rewrite | None:
        """What makes the network one of camera images of `size` (height, width).

        None where it sees them at another size: then the CPU converts.
        """
        fixed = self.engine.inputs[0].shape[-2:]
        padded = tuple(n or free for n, free in zip(fixed, padded_size(*size)))
        too_large = any(n > room for n, room in zip(size, padded))
        if too_large or processed_size(*size, self.processing_size) != size:
            return None
        return lambda model: fuse_images(model, size, padded)

    def on_device(self) -> DeviceArray | None:
        """Where the GPU still has the image of the latest `fuse`, [1, H, W, 3] uint8 BGR."""
        return self._form.images and self._form.images.on_device(FUSED)

    def close(self) -> None:
        """Free the networks; nothing runs afterwards."""
        self._form.close()

    def _fuse_images(
        self, start: float, thermal: np.ndarray, visible: np.ndarray, out: np.ndarray
    ) -> None:
        feeds = self._form.feeds
        np.copyto(feeds[THERMAL][0, 0], thermal)
        np.copyto(feeds[VISIBLE][0], visible)
        prepared = perf_counter()
        fused = self._form.images.run(feeds)[FUSED]
        inferred = perf_counter()
        np.copyto(out, fused[0])
        self._time(start, prepared, inferred, inferred)

    def _fuse_arrays(
        self, start: float, thermal: np.ndarray, visible: np.ndarray, out: np.ndarray
    ) -> None:
        self._allocate(*thermal.shape)
        cv2.cvtColor(visible, cv2.COLOR_BGR2YCrCb, dst=self._ycrcb)
        cv2.extractChannel(self._ycrcb, 0, dst=self._luma)
        self._load(thermal, self._luma, 1 / 255)
        prepared = perf_counter()
        fused = self._infer()
        inferred = perf_counter()
        fused = self._at_full_size(fused)
        upsampled = perf_counter()
        # Rounds and clips to 0..255; the network's output is never negative.
        cv2.convertScaleAbs(fused, dst=self._luma, alpha=255)
        cv2.insertChannel(self._luma, self._ycrcb, 0)
        cv2.cvtColor(self._ycrcb, cv2.COLOR_YCrCb2BGR, dst=out)
        self._time(start, prepared, inferred, upsampled)

    def _time(self, start: float, prepared: float, inferred: float, upsampled: float) -> None:
        self.last_ms["prepare"] = 1e3 * (prepared - start)
        self.last_ms["infer"] = 1e3 * (inferred - prepared)
        if self.processing_size:
            self.last_ms["upsample"] = 1e3 * (upsampled - inferred)
        self.last_ms["colour"] = 1e3 * (perf_counter() - upsampled)

    def fuse_luminance(self, ir: np.ndarray, vi: np.ndarray) -> np.ndarray:
        """The fused luminance, for evaluation, of luminance alone: all (H, W) float32 in [0, 1].

        Raises ValueError if the two sizes differ, EngineError if the network fails.
        """
        if ir.ndim != 2 or ir.shape != vi.shape or not ir.size:
            raise ValueError(f"ir and vi must have one size (H, W), got {ir.shape}, {vi.shape}")
        self._allocate(*ir.shape)
        self._load(ir, vi, 1)
        return self._at_full_size(self._infer()).copy()

    @staticmethod
    def _check_pair(thermal: np.ndarray, visible: np.ndarray) -> tuple[int, int]:
        if thermal.ndim != 2 or thermal.dtype != np.uint8 or not thermal.size:
            raise ValueError(
                f"thermal must be (H, W) uint8, got {thermal.shape} {thermal.dtype}: "
                "apply gain control first"
            )
        if visible.shape != (*thermal.shape, 3) or visible.dtype != np.uint8:
            raise ValueError(
                f"visible must be uint8 {(*thermal.shape, 3)} as the thermal image is "
                f"{thermal.shape}, got {visible.dtype} {visible.shape}: register thermal first"
            )
        return thermal.shape

    def _allocate(self, height: int, width: int) -> None:
        if self._size == (height, width):
            return
        self._size = (0, 0)
        small = processed_size(height, width, self.processing_size)
        self._feeds = self.engine.buffers(*padded_size(*small))
        # What the network fuses of each of its inputs: all but the padding.
        self._inside = (slice(small[0]), slice(small[1]))
        self._upsampler = None
        if small != (height, width):
            self._upsampler = GuidedUpsampler(small, (height, width))
            self._ir, self._vi, self._fused = np.empty((3, height, width), np.float32)
        self._ycrcb = np.empty((height, width, 3), np.uint8)
        self._luma = np.empty((height, width), np.uint8)
        self._size = (height, width)

    def _load(self, ir: np.ndarray, vi: np.ndarray, scale: float) -> None:
        """Fill the network's inputs with the images times `scale`."""
        for name, image in (("ir", ir), ("vi", vi)):
            padded = self._feeds[name][0, 0]
            inside = padded[self._inside]
            if self._upsampler is None:
                cv2.multiply(image, scale, dst=inside, dtype=cv2.CV_32F)
            else:
                full = self._ir if name == "ir" else self._vi
                cv2.multiply(image, scale, dst=full, dtype=cv2.CV_32F)
                cv2.resize(full, inside.shape[::-1], dst=inside, interpolation=cv2.INTER_AREA)
            bottom, right = padded.shape[0] - inside.shape[0], padded.shape[1] - inside.shape[1]
            if bottom or right:
                # From the image's own part of the buffer into the whole: OpenCV allows this.
                cv2.copyMakeBorder(inside, 0, bottom, 0, right, cv2.BORDER_REFLECT_101, dst=padded)

    def _infer(self) -> np.ndarray:
        return self.engine.run(self._feeds)["fused"][0, 0][self._inside]

    def _at_full_size(self, fused: np.ndarray) -> np.ndarray:
        if self._upsampler is None:
            return fused
        ir, vi = (self._feeds[name][0, 0][self._inside] for name in ("ir", "vi"))
        return self._upsampler.upsample(fused, ir, vi, self._ir, self._vi, self._fused)
