# SPDX-License-Identifier: AGPL-3.0-only
"""A pair of images into one fused image: luminance, size, padding, the network, colour."""

from __future__ import annotations

import threading
from functools import partial
from time import perf_counter

import cv2
import numpy as np

from fusion_models.contract import (
    FUSED,
    FUSED_IMAGE,
    FUSED_MEAN,
    IR,
    MULTIPLE,
    SMALLEST,
    THERMAL_IMAGE,
    VI,
    VISIBLE_IMAGE,
)
from fusion_ros.frame.fusion_model import check_fusion_model, check_mean
from fusion_ros.frame.image_graph import fuse_images
from fusion_ros.frame.upsampling import GuidedUpsampler
from fusion_ros.inference import DeviceArray, Engine, EngineError, Form, as_float32
from fusion_ros.size import Size

__all__ = ["Fuser", "padded_size", "processed_size"]


def padded_size(size: Size, multiple: int = MULTIPLE) -> Size:
    """Return the size of the network's inputs, multiples of `multiple`, for images of `size`."""
    least = SMALLEST + -SMALLEST % multiple
    return Size(*(max(n + -n % multiple, least) for n in size))


def processed_size(size: Size, processing_size: int) -> Size:
    """Return the size, before padding, at which images of `size` are fused.

    processing_size: its longer side in pixels; smaller images, and all images with 0, keep their
        own size.
    """
    share = processing_size / max(size)
    if not 0 < share < 1:
        return size
    return Size(*(max(round(n * share), 1) for n in size))


class Fuser:
    """Fuses thermal and visible images by the network in `engine`.

    The network fuses luminance (BT.601, full range); the visible image's Cb and Cr are kept. Sizes
    that are not multiples of 8 are padded by reflection at the bottom and right, and cropped back.
    No image is stretched by its own content, so a video does not flicker. Buffers are kept for the
    latest size: with `out` nothing of image size is allocated after the first frame. Calls from
    several threads wait for each other.

    On a GPU, luminance, padding and colour are part of the network's graph (see `fuse_images`),
    and 8-bit images are copied to it and back. That graph rounds only once, so results differ
    from the CPU's: by two grey levels at most if the network averages, rarely by more otherwise.

    processing_size: longer side, in pixels, to which larger images are reduced for the network.
        The CPU then upsamples the change along the edges of both luminances (see
        `GuidedUpsampler`). 0 for the images' own size.
    convert_on_gpu: False to convert on the CPU even if the network runs on a GPU.
    last_ms: milliseconds of the last `fuse` by stage: 'prepare', 'infer', 'colour', and between
        the latter two 'upsample' if images may be reduced. On a GPU, conversions are part of
        'infer', and the other stages are copies to and from its buffers.

    For a model of one fixed size, larger images are reduced to it; float16 and float64 tensors are
    cast. Raises EngineError if the engine's model does not meet the contract of
    `fusion_models.contract`, as far as one trial run shows, and ValueError for a
    `processing_size` below 0.
    """

    def __init__(
        self, engine: Engine, processing_size: int = 0, *, convert_on_gpu: bool = True
    ) -> None:
        engine = as_float32(engine)
        self._multiple = check_fusion_model(engine)
        if processing_size < 0:
            raise ValueError(
                f"processing_size is pixels, or 0 for the images' own size, got {processing_size}"
            )
        self.engine = engine
        self.processing_size = processing_size
        self._may_reduce = bool(processing_size) or None not in engine.inputs[0].shape[-2:]
        stages = ("prepare", "infer", *(["upsample"] if self._may_reduce else []), "colour")
        self.last_ms: dict[str, float] = dict.fromkeys(stages, 0.0)
        self._convert_on_gpu = convert_on_gpu
        self._using = threading.Lock()
        self._allocated: tuple[Size, bool] | None = None
        self._feeds: dict[str, np.ndarray] = {}

    @property
    def converts_on_gpu(self) -> bool:
        """Whether the network converted the latest images itself."""
        return THERMAL_IMAGE in self._feeds

    def warmup(self, size: Size) -> None:
        """Fuse one black pair of `size`, so that the first real one is fast."""
        width, height = size
        self.fuse(np.zeros((height, width), np.uint8), np.zeros((height, width, 3), np.uint8))

    def fuse(
        self, thermal: np.ndarray, visible_bgr: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the fused colour image, (H, W, 3) uint8 BGR, written to `out` if given.

        thermal: (H, W) uint8, warm is bright; visible_bgr: (H, W, 3) uint8, the same H and W.
        Raises ValueError for other shapes and dtypes, EngineError if the network fails or its
        output is NaN, infinite or far from [0, 1].
        """
        _check_pair(thermal, visible_bgr)
        if out is None:
            out = np.empty_like(visible_bgr, order="C")
        elif (out.shape, out.dtype, out.flags.c_contiguous) != (visible_bgr.shape, np.uint8, True):
            raise ValueError(
                f"out must be contiguous uint8 {visible_bgr.shape}, got {out.dtype} {out.shape}"
            )
        with self._using:
            start = perf_counter()
            self._allocate(Size.of(thermal), self._convert_on_gpu)
            if self.converts_on_gpu:
                self._fuse_images(start, thermal, visible_bgr, out)
            else:
                self._fuse_luminances(start, thermal, visible_bgr, out)
        return out

    def fuse_luminance(self, ir: np.ndarray, vi: np.ndarray) -> np.ndarray:
        """Return the fused luminance, for evaluation; all are (H, W) float32 in [0, 1].

        Raises ValueError if the two sizes differ, EngineError if the network fails.
        """
        if ir.ndim != 2 or ir.shape != vi.shape or not ir.size:
            raise ValueError(f"ir and vi must have one size (H, W), got {ir.shape}, {vi.shape}")
        with self._using:
            self._allocate(Size.of(ir), False)
            self._load(ir, vi, 1)
            return self._at_full_size(self._infer()[FUSED][0, 0][self._inside]).copy()

    def form(self, size: Size) -> Form | None:
        """Return the form of the network that takes camera images of `size`.

        None if the network takes another size, since only the CPU resizes.
        """
        if self._processed_size(size) != size:
            return None
        padded = self._network_size(size)
        return Form(size, partial(fuse_images, size=size, padded=padded))

    def on_device(self) -> DeviceArray | None:
        """Return the place in GPU memory of the latest fused image, [1, H, W, 3] uint8 BGR."""
        return self.engine.on_device(FUSED_IMAGE) if self.converts_on_gpu else None

    def close(self) -> None:
        """Free the network once the call in progress is done; nothing runs afterwards."""
        with self._using:
            self._feeds, self._allocated = {}, None
            self.engine.close()

    def _fuse_images(
        self, start: float, thermal: np.ndarray, visible: np.ndarray, out: np.ndarray
    ) -> None:
        np.copyto(self._feeds[THERMAL_IMAGE][0, 0], thermal)
        np.copyto(self._feeds[VISIBLE_IMAGE][0], visible)
        prepared = perf_counter()
        results = self._infer()
        fused = results[FUSED_IMAGE]
        check_mean(float(results[FUSED_MEAN].mean()))
        inferred = perf_counter()
        np.copyto(out, fused[0])
        self._time(start, prepared, inferred, inferred)

    def _fuse_luminances(
        self, start: float, thermal: np.ndarray, visible: np.ndarray, out: np.ndarray
    ) -> None:
        cv2.cvtColor(visible, cv2.COLOR_BGR2YCrCb, dst=self._ycrcb)
        cv2.extractChannel(self._ycrcb, 0, dst=self._luma)
        self._load(thermal, self._luma, 1 / 255)
        prepared = perf_counter()
        fused = self._infer()[FUSED][0, 0][self._inside]
        check_mean(cv2.mean(fused)[0])
        inferred = perf_counter()
        fused = self._at_full_size(fused)
        upsampled = perf_counter()
        # Clipped at 0 first: convertScaleAbs takes absolute values. It rounds and clips at 255.
        cv2.threshold(fused, 0, 0, cv2.THRESH_TOZERO, dst=fused)
        cv2.convertScaleAbs(fused, dst=self._luma, alpha=255)
        cv2.insertChannel(self._luma, self._ycrcb, 0)
        cv2.cvtColor(self._ycrcb, cv2.COLOR_YCrCb2BGR, dst=out)
        self._time(start, prepared, inferred, upsampled)

    def _time(self, start: float, prepared: float, inferred: float, upsampled: float) -> None:
        self.last_ms["prepare"] = 1e3 * (prepared - start)
        self.last_ms["infer"] = 1e3 * (inferred - prepared)
        if self._may_reduce:
            self.last_ms["upsample"] = 1e3 * (upsampled - inferred)
        self.last_ms["colour"] = 1e3 * (perf_counter() - upsampled)

    def _network_size(self, size: Size) -> Size:
        """Return the size of the network's inputs for images of `size`: its own if it has one."""
        height, width = self.engine.inputs[0].shape[-2:]
        padded = padded_size(size, self._multiple)
        return Size(width or padded.width, height or padded.height)

    def _processed_size(self, size: Size) -> Size:
        """Return the size at which images of `size` are fused: within the network's own, if any."""
        small = processed_size(size, self.processing_size)
        room = self._network_size(small)
        share = min(room.width / small.width, room.height / small.height)
        return small if share >= 1 else processed_size(small, max(int(share * max(small)), 1))

    def _allocate(self, size: Size, convert_on_gpu: bool) -> None:
        if self._allocated == (size, convert_on_gpu):
            return
        self._allocated = None
        small = self._processed_size(size)
        form = self.form(size) if convert_on_gpu else None
        self._feeds = self.engine.buffers(self._network_size(small), form)
        # The part of the network's inputs and output without padding.
        self._inside = (slice(small.height), slice(small.width))
        self._upsampler = None
        if small != size:
            self._upsampler = GuidedUpsampler(small.shape, size.shape)
            self._ir, self._vi, self._fused = np.empty((3, *size.shape), np.float32)
        self._ycrcb = np.empty((*size.shape, 3), np.uint8)
        self._luma = np.empty(size.shape, np.uint8)
        self._allocated = (size, convert_on_gpu)

    def _load(self, ir: np.ndarray, vi: np.ndarray, scale: float) -> None:
        """Fill the network's inputs with the images times `scale`."""
        for name, image in ((IR, ir), (VI, vi)):
            padded = self._feeds[name][0, 0]
            inside = padded[self._inside]
            if self._upsampler is None:
                cv2.multiply(image, scale, dst=inside, dtype=cv2.CV_32F)
            else:
                full = self._ir if name == IR else self._vi
                cv2.multiply(image, scale, dst=full, dtype=cv2.CV_32F)
                cv2.resize(full, inside.shape[::-1], dst=inside, interpolation=cv2.INTER_AREA)
            bottom, right = padded.shape[0] - inside.shape[0], padded.shape[1] - inside.shape[1]
            if bottom or right:
                # From a part of the buffer into the whole of it, which OpenCV allows.
                cv2.copyMakeBorder(inside, 0, bottom, 0, right, cv2.BORDER_REFLECT_101, dst=padded)

    def _infer(self) -> dict[str, np.ndarray]:
        try:
            outputs = self.engine.run(self._feeds)
        except EngineError:
            self._allocated = None  # another engine may run the next frame, in another form
            raise
        if not self.converts_on_gpu and outputs[FUSED].shape != self._feeds[IR].shape:
            # Not each size is tried when a model is loaded, and OpenCV takes any.
            raise EngineError(
                f"the network makes {list(outputs[FUSED].shape)} of images "
                f"{list(self._feeds[IR].shape)}, expected the same shape: the frame is left out"
            )
        return outputs

    def _at_full_size(self, fused: np.ndarray) -> np.ndarray:
        if self._upsampler is None:
            return fused
        ir, vi = (self._feeds[name][0, 0][self._inside] for name in (IR, VI))
        return self._upsampler.upsample(fused, ir, vi, self._ir, self._vi, self._fused)


def _check_pair(thermal: np.ndarray, visible: np.ndarray) -> None:
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
