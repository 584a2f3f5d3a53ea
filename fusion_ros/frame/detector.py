# SPDX-License-Identifier: AGPL-3.0-only
"""Objects in an image by a YOLO in ONNX form: letterbox, network, suppression, drawing."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from fusion_ros.frame.image_graph import IMAGE, detect_in_images
from fusion_ros.inference import DeviceArray, Engine, EngineError, Form
from fusion_ros.inference.cache import default_cache_dir
from fusion_ros.size import Size

FREE_SIZE = 640
"""Input height and width, in pixels, of a model that leaves them free."""
PADDING = 114
"""Grey level around the image."""
MAX_DETECTIONS = 300

COCO_NAMES = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)


@dataclass(frozen=True)
class Detection:
    """One object: x, y is the box's top-left corner; all four in pixels of the image given."""

    class_name: str
    class_id: int
    score: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Letterbox:
    """An image of size `source` scaled to `scaled` and centred on a canvas, offset `left, top`.

    Rounding is that of ultralytics' LetterBox and scale_boxes, so that boxes agree to the pixel.
    """

    source: Size
    scaled: Size
    left: int
    top: int

    @classmethod
    def fit(cls, source: Size, canvas: Size) -> Letterbox:
        """Scale `source` as large as `canvas` allows without a change of its proportions."""
        ratio = min(canvas.width / source.width, canvas.height / source.height)
        scaled = Size(*(max(round(n * ratio), 1) for n in source))
        left, top = (round((c - n) / 2 - 0.1) for c, n in zip(canvas, scaled))
        return cls(source, scaled, left, top)

    def to_source(self, corners: np.ndarray) -> np.ndarray:
        """Convert (N, 4) x1, y1, x2, y2 from the canvas to the source image, clipped to it."""
        limits = np.array(self.source * 2, np.float32)
        offset = np.array((self.left, self.top) * 2, np.float32)
        scale = limits / np.array(self.scaled * 2, np.float32)
        return np.clip((corners - offset) * scale, 0, limits)


class Detector:
    """Finds objects by an ultralytics detection model (YOLOv8, YOLO11 and others of their form).

    The model takes `[1, 3, H, W]` float32 RGB in [0, 1] and gives `[1, 4 + classes, N]` (centre,
    size and class scores; overlapping boxes of a class are suppressed here) or, exported end to
    end, `[1, N, 6]` (corners, score, class). On a GPU the letterbox is part of the network's graph,
    and an image that is there already is not copied from the CPU.

    size: height and width of the input in pixels; 0 for the model's own, or `FREE_SIZE`.
    class_names: by class id; default the ONNX file's `names`, else COCO's 80.
    confidence, iou, classes (names to keep, empty for all) may be set at any time.

    Raises EngineError for models of another form or size, ValueError for thresholds outside [0, 1]
    and for classes that the model does not know.
    """

    def __init__(
        self,
        engine: Engine,
        class_names: Sequence[str] | None = None,
        confidence: float = 0.25,
        iou: float = 0.45,
        classes: Sequence[str] = (),
        size: int = 0,
    ) -> None:
        _check_form(engine)
        self.engine = engine
        height, width = engine.inputs[0].shape[2:]
        if size and (width or size, height or size) != (size, size):
            raise EngineError(
                f"the detector takes images of {width or 'any'}x{height or 'any'} only, "
                f"detector_size asks for {size}: export one by `make detector "
                f"DETECTOR_SIZE={size}`, or set detector_size to 0"
            )
        free = size or FREE_SIZE
        self._canvas = Size(width or free, height or free)
        self.class_names = _class_names(engine, class_names)
        self.confidence = confidence
        self.iou = iou
        self.classes = list(classes)
        self._letterbox: Letterbox | None = None
        self._feeds: dict[str, np.ndarray] = {}

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

    def form(self, size: Size) -> Form:
        """Return the form of the network that takes camera images of `size`."""
        box = Letterbox.fit(size, self._canvas)
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
        ids = {name: i for i, name in self.class_names.items()}
        unknown = [name for name in names if name not in ids]
        if unknown:
            raise ValueError(
                f"the detector has no class {', '.join(map(repr, unknown))}: it knows "
                f"{', '.join(ids)}"
            )
        self._classes = list(names)
        self._class_ids = np.array([ids[name] for name in names], np.int64)

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
            output = self.engine.run(feeds)
        except EngineError:
            self._letterbox = None  # another engine may run the next frame, in another form
            raise
        boxes, scores, ids = self._decode(next(iter(output.values()))[0])
        corners = self._letterbox.to_source(boxes)
        return [
            Detection(self.class_names.get(i, f"class {i}"), i, score, x1, y1, x2 - x1, y2 - y1)
            for (x1, y1, x2, y2), score, i in zip(corners.tolist(), scores.tolist(), ids.tolist())
        ]

    def _allocate(self, source: Size) -> None:
        """Have the letterbox and the buffers for images of size `source`."""
        if self._letterbox is not None and self._letterbox.source == source:
            return
        self._letterbox = None
        self._feeds = self.engine.buffers(self._canvas, self.form(source))
        box = Letterbox.fit(source, self._canvas)
        if not self.converts_on_gpu:
            width, height = box.scaled
            planes = self._feeds[self.engine.inputs[0].name][0]
            planes[:] = PADDING / 255
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
        for channel in range(3):
            cv2.extractChannel(resized, 2 - channel, dst=self._plane)
            cv2.multiply(self._plane, 1 / 255, dst=self._inside[channel], dtype=cv2.CV_32F)

    def _decode(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return corners (N, 4) on the canvas, scores (N,) and class ids (N,), strongest first."""
        if output.shape[-1] == 6:
            keep = output[:, 4] > self.confidence
            corners, scores = output[keep, :4], output[keep, 4]
            ids = output[keep, 5].astype(np.int64)
        else:
            keep = output[4:].max(axis=0) > self.confidence
            centre, half, scores = output[:2, keep], output[2:4, keep] / 2, output[4:, keep]
            corners = np.concatenate((centre - half, centre + half)).T
            ids, scores = scores.argmax(axis=0), scores.max(axis=0)
        if self._class_ids.size:
            keep = np.isin(ids, self._class_ids)
            corners, scores, ids = corners[keep], scores[keep], ids[keep]
        if not len(scores):
            return corners, scores, ids
        if output.shape[-1] == 6:
            best = np.argsort(-scores, kind="stable")
        else:
            # Each class on a place of its own, so that boxes of two classes never overlap;
            # cv2.dnn.NMSBoxesBatched, which does the same, is missing below OpenCV 4.7.
            shifts = ids[:, None] * (corners.max() - corners.min() + 1).astype(np.float64)
            boxes = np.hstack((corners[:, :2] + shifts, corners[:, 2:] - corners[:, :2]))
            kept = cv2.dnn.NMSBoxes(boxes, scores, self.confidence, self.iou)
            best = np.array(kept, np.int64).reshape(-1)  # (N, 1) in OpenCV 4.5, () without a box
            best = best[np.argsort(-scores[best], kind="stable")]
        best = best[:MAX_DETECTIONS]
        return corners[best], scores[best], ids[best]


def draw(bgr: np.ndarray, detections: Sequence[Detection]) -> np.ndarray:
    """Return a copy of `bgr`, (H, W, 3) uint8, with a box and a label for each detection."""
    image = bgr.copy()
    height, width = image.shape[:2]
    line = max(1, round((height + width) / 560))
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.42 * max(1.0, (height + width) / 1120)
    for detection in reversed(detections):
        colour = _colour(detection.class_id)
        left, top = round(detection.x), round(detection.y)
        corner = (round(detection.x + detection.width), round(detection.y + detection.height))
        cv2.rectangle(image, (left, top), corner, colour, line, cv2.LINE_AA)
        label = f"{detection.class_name} {detection.score:.2f}"
        (text_width, text_height), baseline = cv2.getTextSize(label, font, size, 1)
        # Above the box, or inside it at the top of the image; never beyond the right edge.
        left = max(0, min(left, width - text_width - 4))
        base = top - baseline if top > text_height + 2 * baseline else top + text_height + baseline
        plate = ((left, base - text_height - 3), (left + text_width + 4, base + baseline))
        cv2.rectangle(image, *plate, colour, cv2.FILLED)
        bright = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2] > 140
        ink = (0, 0, 0) if bright else (255, 255, 255)
        cv2.putText(image, label, (left + 2, base), font, size, ink, 1, cv2.LINE_AA)
    return image


def default_detector_path() -> Path:
    """Return the path of the detector that is used unless another is named (`make detector`)."""
    return default_cache_dir() / "detector.onnx"


def _colour(class_id: int) -> tuple[int, int, int]:
    # Hues a golden ratio apart, so that neighbouring class ids look different.
    hue = int(180 * (class_id * 0.618034 % 1))
    return tuple(map(int, cv2.cvtColor(np.uint8([[[hue, 200, 255]]]), cv2.COLOR_HSV2BGR)[0, 0]))


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in 0..1, got {value}")
    return float(value)


def _check_form(engine: Engine) -> None:
    inputs, outputs = engine.inputs, engine.outputs
    image = inputs[0].shape
    takes_image = len(inputs) == 1 and len(image) == 4 and image[1] in (3, None)
    gives_boxes = len(outputs) == 1 and len(outputs[0].shape) == 3
    if not (takes_image and gives_boxes and inputs[0].dtype == np.float32):
        shapes = ", ".join(f"{s.name} {s.shape}" for s in (*inputs, *outputs))
        raise EngineError(
            "not a detection model: expected one float32 input [1, 3, H, W] and one output "
            f"[1, 4 + classes, N] or [1, N, 6], got {shapes}; export one by `make detector`"
        )


def _class_names(engine: Engine, given: Sequence[str] | None) -> Mapping[int, str]:
    _, rows, columns = engine.outputs[0].shape
    if given is not None:
        names = dict(enumerate(given))
    else:
        try:
            names = dict(ast.literal_eval(engine.metadata["names"]))
        except (KeyError, ValueError, SyntaxError, TypeError):
            names = dict(enumerate(COCO_NAMES))
    count = None if rows is None or columns in (6, None) else rows - 4
    if count is not None and len(names) != count:
        raise EngineError(f"the detector scores {count} classes, but {len(names)} are named")
    return names
