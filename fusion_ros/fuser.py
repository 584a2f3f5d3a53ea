"""A pair of images into one fused image: luminance, padding, the network, colour."""

from __future__ import annotations

from time import perf_counter

import cv2
import numpy as np

from fusion_ros.inference import Engine, EngineError

MULTIPLE, SMALLEST = 8, 32
"""Networks take heights and widths that are multiples of 8, from 32 on."""


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Size of the network's inputs for images of `height` x `width`: `shape` of `load_engine`."""
    return tuple(max(n + -n % MULTIPLE, SMALLEST) for n in (height, width))


class Fuser:
    """Fuses thermal and visible images by the network in `engine`.

    The network fuses luminance (BT.601, full range); the visible image's CbCr are reattached
    unchanged. Sizes that are no multiple of 8 are padded by reflection at the bottom and right,
    and cropped back. Nothing is stretched by frame, so a video does not flicker. Buffers are
    kept per resolution, so that with `out` nothing of image size is allocated after the first
    frame. Not thread-safe.

    last_ms: milliseconds of the last `fuse` by stage: 'prepare', 'infer', 'colour'.

    Raises EngineError if the engine's model is no fusion model.
    """

    def __init__(self, engine: Engine) -> None:
        inputs = [spec.name for spec in engine.inputs]
        outputs = [spec.name for spec in engine.outputs]
        if sorted(inputs) != ["ir", "vi"] or outputs != ["fused"]:
            raise EngineError(
                "not a fusion model: expected inputs 'ir' and 'vi' and output 'fused', "
                f"got {', '.join(inputs)} and {', '.join(outputs)}"
            )
        self.engine = engine
        self.last_ms: dict[str, float] = {"prepare": 0.0, "infer": 0.0, "colour": 0.0}
        self._size: tuple[int, int] = (0, 0)

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
        height, width = self._check_pair(thermal, visible_bgr)
        if out is None:
            out = np.empty_like(visible_bgr, order="C")
        elif (out.shape, out.dtype, out.flags.c_contiguous) != (visible_bgr.shape, np.uint8, True):
            raise ValueError(
                f"out must be contiguous uint8 {visible_bgr.shape}, got {out.dtype} {out.shape}"
            )
        self._allocate(height, width)
        cv2.cvtColor(visible_bgr, cv2.COLOR_BGR2YCrCb, dst=self._ycrcb)
        cv2.extractChannel(self._ycrcb, 0, dst=self._luma)
        self._load(self._ir, thermal, 1 / 255)
        self._load(self._vi, self._luma, 1 / 255)
        prepared = perf_counter()
        fused = self._infer()
        inferred = perf_counter()
        # Rounds and clips to 0..255; the network's output is never negative.
        cv2.convertScaleAbs(fused[:height, :width], dst=self._luma, alpha=255)
        cv2.insertChannel(self._luma, self._ycrcb, 0)
        cv2.cvtColor(self._ycrcb, cv2.COLOR_YCrCb2BGR, dst=out)
        self.last_ms["prepare"] = 1e3 * (prepared - start)
        self.last_ms["infer"] = 1e3 * (inferred - prepared)
        self.last_ms["colour"] = 1e3 * (perf_counter() - inferred)
        return out

    def fuse_luminance(self, ir: np.ndarray, vi: np.ndarray) -> np.ndarray:
        """The network's output on luminance alone, for evaluation: all (H, W) float32 in [0, 1].

        Raises ValueError if the two sizes differ, EngineError if the network fails.
        """
        if ir.ndim != 2 or ir.shape != vi.shape or not ir.size:
            raise ValueError(f"ir and vi must have one size (H, W), got {ir.shape}, {vi.shape}")
        height, width = ir.shape
        self._allocate(height, width)
        self._load(self._ir, ir, 1)
        self._load(self._vi, vi, 1)
        return self._infer()[:height, :width].copy()

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
        self._feeds = self.engine.buffers(*padded_size(height, width))
        self._ir = self._feeds["ir"][0, 0]
        self._vi = self._feeds["vi"][0, 0]
        self._ycrcb = np.empty((height, width, 3), np.uint8)
        self._luma = np.empty((height, width), np.uint8)
        self._size = (height, width)

    def _load(self, padded: np.ndarray, image: np.ndarray, scale: float) -> None:
        height, width = image.shape
        inside = padded[:height, :width]
        cv2.multiply(image, scale, dst=inside, dtype=cv2.CV_32F)
        bottom, right = padded.shape[0] - height, padded.shape[1] - width
        if bottom or right:
            # From the image's own part of the buffer into the whole: OpenCV allows this overlap.
            cv2.copyMakeBorder(inside, 0, bottom, 0, right, cv2.BORDER_REFLECT_101, dst=padded)

    def _infer(self) -> np.ndarray:
        return self.engine.run(self._feeds)["fused"][0, 0]
