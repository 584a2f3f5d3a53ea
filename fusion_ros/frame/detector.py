# SPDX-License-Identifier: AGPL-3.0-only
"""Objects in an image by a detection model in ONNX form: letterbox, network, suppression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from fusion_models.contract import reference_image
from fusion_models.detection import SHIPPED
from fusion_ros.frame.coco import COCO_NAMES
from fusion_ros.frame.detector_layouts import Boxes, find_layout
from fusion_ros.frame.detector_metadata import DetectorMetadata
from fusion_ros.frame.image_graph import IMAGE, detect_in_images
from fusion_ros.frame.letterbox import PADDING, Letterbox
from fusion_ros.inference import DeviceArray, Engine, EngineError, Form, as_float32
from fusion_ros.inference.cache import default_cache_dir
from fusion_ros.size import Size

__all__ = ["Detection", "Detector", "default_detector_path", "own_detector_path"]

FREE_SIZE = 640
"""Input height and width, in pixels, of a model that leaves them free and names no size."""
MAX_DETECTIONS = 300
_LARGEST_BATCH = 64
_SIDES = (8, 8192)
"""Least and greatest height and width of a model's input."""


@dataclass(frozen=True)
class Detection:
    """One object: x, y is the box's top-left corner; all four in pixels of the image given.

    track_id: the object's number over several images, from 1 on; 0 if it is not tracked.
    celsius: its temperature, where the thermal camera measures it.
    """

    class_name: str
    class_id: int
    score: float
    x: float
    y: float
    width: float
    height: float
    track_id: int = 0
    celsius: float | None = None


class Detector:
    """Finds objects by a detection model, of the layouts in `detector_layouts`.

    Boxes that overlap are suppressed where the model leaves that to others. Of models that give
    more than upright boxes (turned boxes, key points, masks), the boxes are used; a turned box
    becomes the upright one around it. On a GPU the letterbox is part of the network's graph, and
    an image that is there already is not copied from the CPU.

    engine: a model of images `[N, 3, H, W]` of float32 or float16; of a batch, the first image is
        used.
    size: height and width of the input in pixels; 0 for the model's own, or `FREE_SIZE`.
    layout: one of `detector_layouts.LAYOUTS`.
    class_names: by class id; default the ONNX file's `names`, else COCO's 80.
    confidence, iou, classes (names to keep, empty for all) may be set at any time.
    dropped: boxes of the latest image that cannot be real: not finite, without a size, outside.

    Raises EngineError for models that are not understood or of another size, ValueError for
    thresholds outside [0, 1] and for classes that the model does not know.
    """

    def __init__(
        self,
        engine: Engine,
        class_names: Sequence[str] | None = None,
        confidence: float = 0.25,
        iou: float = 0.45,
        classes: Sequence[str] = (),
        size: int = 0,
        layout: str = "auto",
    ) -> None:
        engine = as_float32(engine)
        metadata = DetectorMetadata.read(engine.metadata, with_names=not class_names)
        if class_names:
            metadata = replace(metadata, names=dict(enumerate(class_names)))
        self.engine = engine
        self._canvas = _canvas(engine, metadata, size)
        self._feeds: dict[str, np.ndarray] = {
            spec.name: np.zeros(spec.filled(self._canvas), spec.dtype) for spec in engine.inputs
        }
        self._fill_constants()
        self._feeds[engine.inputs[0].name][:] = reference_image(*self._canvas.shape)
        outputs = engine.trial(self._feeds)
        self.layout = find_layout(outputs, metadata, self._canvas, layout)
        self.class_names = _class_names(metadata, self.layout.classes)
        self.confidence = confidence
        self.iou = iou
        self.classes = list(classes)
        self.dropped = 0
        self._letterbox: Letterbox | None = None
        self._feeds = {}

    @property
    def converts_on_gpu(self) -> bool:
        """Whether the network converted the latest image itself."""
        return IMAGE in self._feeds

    def warmup(self, size: Size) -> None:
        """Search one black image of `size`, so that the first real one is fast."""
        self.detect(np.zeros((size[1], size[0], 3), np.uint8))

    def close(self) -> None:
        """Free the network; nothing runs afterwards."""
        self._feeds, self._letterbox = {}, None
        self.engine.close()

    def form(self, size: Size) -> Form | None:
        """Return the form of the network that takes camera images of `size`.

        None if only the CPU makes what this network takes: a batch, BGR bytes, a second input.
        """
        batch = self.engine.inputs[0].filled(self._canvas)[0]
        if batch > 1 or self.layout.bytes_bgr or len(self.engine.inputs) > 1:
            return None
        box = self._fit(size)
        return Form(
            size,
            partial(
                detect_in_images,
                size=size,
                scaled=box.scaled,
                offset=(box.left, box.top),
                canvas=self._canvas,
                padding=PADDING,
            ),
        )

    @property
    def confidence(self) -> float:
        """Boxes with a lower score are dropped."""
        return self._confidence

    @confidence.setter
    def confidence(self, value: float) -> None:
        self._confidence = _fraction("confidence", value)

    @property
    def iou(self) -> float:
        """Of two boxes of one class that overlap more than this, the weaker is dropped."""
        return self._iou

    @iou.setter
    def iou(self, value: float) -> None:
        self._iou = _fraction("iou", value)

    @property
    def classes(self) -> list[str]:
        """Names of the classes to report; empty for all."""
        return self._classes

    @classes.setter
    def classes(self, names: Sequence[str]) -> None:
        known = list(dict.fromkeys(self.class_names.values()))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"the detector has no class {', '.join(map(repr, unknown))}: expected "
                f"{', '.join(known)}"
            )
        self._classes = list(names)
        # A name may stand for several classes, as in sets that were joined.
        wanted = [i for i, name in self.class_names.items() if name in self._classes]
        self._class_ids = np.array(wanted, np.int64)

    def detect(self, bgr: np.ndarray, on_device: DeviceArray | None = None) -> list[Detection]:
        """Find objects in `bgr`, (H, W, 3) uint8, strongest first.

        on_device: the same image in GPU memory, so that a network on the GPU needs no copy of it.
        Raises ValueError for any other image, EngineError if the network fails.
        """
        if bgr.ndim != 3 or bgr.shape[2] != 3 or bgr.dtype != np.uint8 or not bgr.size:
            raise ValueError(f"the image must be (H, W, 3) uint8, got {bgr.shape} {bgr.dtype}")
        self._allocate(Size.of(bgr))
        feeds = self._feeds
        if not self.converts_on_gpu:
            self._load(bgr)
        elif on_device is not None and self.engine.reads_device:
            feeds = {IMAGE: on_device}
        else:
            np.copyto(feeds[IMAGE][0], bgr)
        try:
            outputs = self.engine.run(feeds)
        except EngineError:
            self._letterbox = None  # another engine may run the next frame, in another form
            raise
        boxes = self._suppress(self.layout.decode(outputs, self.confidence))
        corners = self._letterbox.to_source(boxes.corners)
        sizes = corners[:, 2:] - corners[:, :2]
        inside = (sizes > 0).all(axis=1)
        self.dropped = boxes.dropped + int((~inside).sum())
        return [
            Detection(self.class_names.get(i, f"class {i}"), i, score, x, y, width, height)
            for (x, y), (width, height), score, i in zip(
                corners[inside, :2].tolist(),
                sizes[inside].tolist(),
                boxes.scores[inside].tolist(),
                boxes.ids[inside].tolist(),
            )
        ]

    def _fit(self, source: Size) -> Letterbox:
        return Letterbox.fit(source, self._canvas, self.layout.fit)

    def _fill_constants(self) -> None:
        """Fill the second input of RT-DETR and D-FINE: width and height that boxes refer to."""
        for spec in self.engine.inputs[1:]:
            self._feeds[spec.name][:] = self._canvas

    def _allocate(self, source: Size) -> None:
        """Have the letterbox and the buffers for images of size `source`."""
        if self._letterbox is not None and self._letterbox.source == source:
            return
        self._letterbox = None
        self._feeds = self.engine.buffers(self._canvas, self.form(source))
        box = self._fit(source)
        if not self.converts_on_gpu:
            self._fill_constants()
            width, height = box.scaled
            planes = self._feeds[self.engine.inputs[0].name][0]
            planes[:] = PADDING if self.layout.bytes_bgr else PADDING / 255
            self._inside = planes[:, box.top : box.top + height, box.left : box.left + width]
            self._resized = np.empty((height, width, 3), np.uint8)
            self._plane = np.empty((height, width), np.uint8)
        self._letterbox = box

    def _load(self, bgr: np.ndarray) -> None:
        """Letterbox `bgr` into the network's input."""
        if Size.of(bgr) == self._letterbox.scaled:
            resized = bgr
        else:
            resized = cv2.resize(
                bgr, self._letterbox.scaled, dst=self._resized, interpolation=cv2.INTER_LINEAR
            )
        bgr, scale = self.layout.bytes_bgr, 1 if self.layout.bytes_bgr else 1 / 255
        for channel in range(3):
            cv2.extractChannel(resized, channel if bgr else 2 - channel, dst=self._plane)
            cv2.multiply(self._plane, scale, dst=self._inside[channel], dtype=cv2.CV_32F)

    def _suppress(self, boxes: Boxes) -> Boxes:
        """Return the boxes to report, strongest first."""
        if self._class_ids.size:
            boxes = boxes[np.isin(boxes.ids, self._class_ids)]
        if not len(boxes.scores):
            return boxes
        if self.layout.overlapping:
            # Each class on a place of its own, so that boxes of two classes never overlap;
            # cv2.dnn.NMSBoxesBatched, which does the same, is missing below OpenCV 4.7.
            corners = boxes.corners
            extent = corners.max() - corners.min() + 1
            shifts = boxes.ids[:, None] * extent.astype(np.float64)
            placed = np.hstack((corners[:, :2] + shifts, corners[:, 2:] - corners[:, :2]))
            kept = cv2.dnn.NMSBoxes(placed, boxes.scores, self.confidence, self.iou)
            # (N, 1) in OpenCV 4.5, () without a box
            boxes = boxes[np.array(kept, np.int64).reshape(-1)]
        return boxes[np.argsort(-boxes.scores, kind="stable")[:MAX_DETECTIONS]]


def default_detector_path() -> Path:
    """Return the path of the detector that is used unless another is named.

    It is the user's own, where `make detector` has put one, else the one that ships.
    """
    own = own_detector_path()
    return SHIPPED if SHIPPED.is_file() and not own.is_file() else own


def own_detector_path() -> Path:
    """Return the path at which `make detector` puts a detector of the user's choice."""
    return default_cache_dir() / "detector.onnx"


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in 0..1, got {value}")
    return float(value)


def _canvas(engine: Engine, metadata: DetectorMetadata, asked: int) -> Size:
    """Return the size of the images that the model takes; EngineError if it takes none.

    asked: height and width in pixels, or 0 for the model's own.
    """
    image, *others = engine.inputs
    shape = image.shape
    size = metadata.size or Size(FREE_SIZE, FREE_SIZE)
    if asked:
        size = Size(asked, asked)
    takes_images = len(shape) == 4 and shape[1] == 3 and image.dtype == np.float32
    if takes_images:
        size = Size(shape[3] or size.width, shape[2] or size.height)
        takes_images = all(_SIDES[0] <= n <= _SIDES[1] for n in size)
        takes_images &= (shape[0] or 1) <= _LARGEST_BATCH
    # RT-DETR and D-FINE take the width and height that boxes shall refer to.
    takes_images &= len(others) <= 1 and all(
        spec.dtype == np.int64 and len(spec.shape) == 2 and spec.shape[1] in (2, None)
        for spec in others
    )
    takes_images &= all(n is None or n > 0 for spec in engine.inputs for n in spec.shape)
    if not takes_images:
        found = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in engine.inputs)
        task = f", with task {metadata.task}" if metadata.task else ""
        raise EngineError(
            "not a detection model of colour images: expected one input of float32 or float16 "
            f"[N, 3, H, W] with sides of {_SIDES[0]} to {_SIDES[1]}, got "
            f"{found.replace('None', '?')}{task}; export one by `make detector`"
        )
    if asked and size != (asked, asked):
        raise EngineError(
            f"the detector takes images of {shape[3] or 'any'}x{shape[2] or 'any'} only, "
            f"detector_size asks for {asked}: export one by `make detector DETECTOR_SIZE={asked}`, "
            "or set detector_size to 0"
        )
    return size


def _class_names(metadata: DetectorMetadata, count: int | None) -> Mapping[int, str]:
    """Return the names that are known, COCO's for 80 classes, else 'class 0' and so on."""
    if metadata.names is not None:
        return metadata.names
    if count == len(COCO_NAMES):
        return dict(enumerate(COCO_NAMES))
    return {i: f"class {i}" for i in range(count or 0)}
