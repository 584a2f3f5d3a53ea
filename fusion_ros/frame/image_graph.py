# SPDX-License-Identifier: AGPL-3.0-only
"""Networks that convert camera images themselves: the conversion becomes part of the ONNX graph.

On a GPU luminance, padding, colour and letterbox then run where the network runs, and 8 bits a
value are copied to it and back instead of 32. Needs the package `onnx`, unlike the rest of the
runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fusion_models.contract import (
    FUSED,
    FUSED_IMAGE,
    FUSED_MEAN,
    IR,
    THERMAL_IMAGE,
    VI,
    VISIBLE_IMAGE,
)
from fusion_ros.inference import EngineError
from fusion_ros.size import Size

if TYPE_CHECKING:
    from onnx import ModelProto

IMAGE = "camera_image"
"""Input of `detect_in_images`."""

_LUMINANCE = np.float32([[[[0.114]], [[0.587]], [[0.299]]]])
"""Luminance (BT.601, full range) of B, G and R as a 1x1 convolution [1, 3, 1, 1]."""
_RGB_OF_BGR = np.eye(3, dtype=np.float32)[::-1].reshape(3, 3, 1, 1)
_OLDEST_OPSET = 11
"""First opset whose Pad, Clip and Resize take the inputs given here."""


def fuse_images(model: ModelProto, size: Size, padded: Size) -> ModelProto:
    """Make a fusion model (`ir`, `vi` -> `fused`) one of camera images of one size.

    The result takes `thermal_image` [1, 1, H, W] and `visible_image` [1, H, W, 3] BGR and gives
    `fused_image` [1, H, W, 3] BGR, all uint8, and the mean of the fused luminance. It computes what
    `Fuser` computes around the float model on the CPU, but rounds only once, at the end. With
    Y, Cb, Cr of BT.601, keeping Cb and Cr
    while Y changes by d gives (B + d, G + d, R + d): the change of Y is added to all three.

    size: of the images; padded: of the network's inputs, filled by reflection.
    Raises EngineError if the model cannot be extended.
    """
    graph = _Graph(model, {IR, VI}, {FUSED})
    graph.take(THERMAL_IMAGE, (1, 1, *size.shape))
    graph.take(VISIBLE_IMAGE, (1, *size.shape, 3))
    bgr = graph.add("Transpose", graph.to_float(VISIBLE_IMAGE), perm=(0, 3, 1, 2))
    luminance = graph.add("Conv", bgr, graph.constant(_LUMINANCE))
    to_unit = graph.constant(np.float32(1 / 255))
    thermal = graph.reflect(graph.to_float(THERMAL_IMAGE), size, padded)
    graph.add("Mul", thermal, to_unit, output=IR)
    graph.add("Mul", graph.reflect(luminance, size, padded), to_unit, output=VI)
    graph.insert_network()
    inside = graph.crop(FUSED, size, padded)
    fused = graph.add("Mul", inside, graph.constant(np.float32(255)))
    change = graph.add("Sub", fused, luminance)
    # The cast truncates, so adding half a level rounds.
    half = graph.add("Add", change, graph.constant(np.float32(0.5)))
    levels = graph.add("Add", bgr, half)
    ends = (graph.constant(np.float32(0)), graph.constant(np.float32(255)))
    clipped = graph.add("Clip", levels, *ends)
    interleaved = graph.add("Transpose", clipped, perm=(0, 2, 3, 1))
    graph.give(FUSED_IMAGE, interleaved, (1, *size.shape, 3))
    # Bytes cannot show NaN. Without axes and with its dimensions kept it is valid in each opset.
    graph.add("ReduceMean", inside, output=FUSED_MEAN)
    graph.give_float(FUSED_MEAN, (1, 1, 1, 1))
    return graph.finish()


def detect_in_images(
    model: ModelProto, size: Size, scaled: Size, offset: tuple[int, int], canvas: Size, padding: int
) -> ModelProto:
    """Extend a detection model of RGB floats to take `camera_image`, [1, H, W, 3] uint8 BGR.

    size: of the image; scaled: what it is resized to (bilinear); offset: columns left of it and
    rows above it on the `canvas` that the network takes, filled with the level `padding`.
    Raises EngineError if the model cannot be extended.
    """
    name = model.graph.input[0].name
    graph = _Graph(model, {name}, set())
    graph.take(IMAGE, (1, *size.shape, 3))
    image = graph.add("Transpose", graph.to_float(IMAGE), perm=(0, 3, 1, 2))
    if scaled != size:
        sizes = graph.constant(np.int64((1, 3, *scaled.shape)))
        not_given = graph.constant(np.float32([]))
        image = graph.add(
            "Resize",
            image,
            not_given,
            not_given,
            sizes,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
    rgb = graph.add("Conv", image, graph.constant(_RGB_OF_BGR / 255))
    left, top = offset
    right, bottom = canvas.width - scaled.width - left, canvas.height - scaled.height - top
    pads = graph.constant(np.int64((0, 0, top, left, 0, 0, bottom, right)))
    graph.add("Pad", rgb, pads, graph.constant(np.float32(padding / 255)), output=name)
    graph.insert_network()
    return graph.finish()


class _Graph:
    """A model whose graph is extended at its inputs and outputs."""

    def __init__(self, model: ModelProto, inputs: set[str], outputs: set[str]) -> None:
        import onnx

        self._onnx = onnx
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        own = ("", "ai.onnx")
        opset = max((o.version for o in model.opset_import if o.domain in own), default=0)
        if opset < _OLDEST_OPSET:
            raise EngineError(
                f"its ONNX opset is {opset}: export it with {_OLDEST_OPSET} or a later one"
            )
        # Nodes are in order: those that feed the network must come before its own.
        self._network = list(self._graph.node)
        del self._graph.node[:]
        self._remove(self._graph.input, inputs)
        self._remove(self._graph.output, outputs)

    def take(self, name: str, shape: tuple[int, ...]) -> None:
        """Add an input of uint8."""
        self._graph.input.append(self._tensor(name, shape))

    def give(self, name: str, source: str, shape: tuple[int, ...]) -> None:
        """Add the output `name` of uint8 with the values of `source`, which lie in [0, 255]."""
        self.add("Cast", source, output=name, to=self._onnx.TensorProto.UINT8)
        self._graph.output.append(self._tensor(name, shape))

    def give_float(self, name: str, shape: tuple[int, ...]) -> None:
        """Make the float32 tensor `name` an output."""
        kind = self._onnx.TensorProto.FLOAT
        self._graph.output.append(self._onnx.helper.make_tensor_value_info(name, kind, shape))

    def insert_network(self) -> None:
        """Insert the network's nodes: nodes added before feed it, nodes added later read it."""
        self._graph.node.extend(self._network)
        self._network = []

    def finish(self) -> ModelProto:
        """Return the extended model. Raises EngineError if it is not valid."""
        try:
            self._onnx.checker.check_model(self._model)
        except self._onnx.checker.ValidationError as error:
            raise EngineError(f"it cannot be extended to take images: {error}") from error
        return self._model

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """Append a node and return the name of its output."""
        output = output or f"images/{kind}_{len(self._graph.node)}"
        name = f"images/{kind}_to_{output.removeprefix('images/')}"
        node = self._onnx.helper.make_node(kind, inputs, [output], name=name, **attributes)
        self._graph.node.append(node)
        return output

    def constant(self, value: np.ndarray) -> str:
        """Add a constant and return its name."""
        name = f"images/constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(np.array(value), name))
        return name

    def to_float(self, name: str) -> str:
        """Cast to float32."""
        return self.add("Cast", name, to=self._onnx.TensorProto.FLOAT)

    def reflect(self, name: str, size: Size, padded: Size) -> str:
        """Add rows and columns at the bottom and right, mirrored at the last one."""
        for axis, have, want in zip((2, 3), size.shape, padded.shape):
            if want > have:
                # Pad's reflection adds fewer rows than there are, and small images need more.
                indices = np.pad(np.arange(have), (0, want - have), "reflect")
                name = self.add("Gather", name, self.constant(indices), axis=axis)
        return name

    def crop(self, name: str, size: Size, padded: Size) -> str:
        """Remove what `reflect` added."""
        if size == padded:
            return name
        ends = (self.constant(np.int64((0, 0))), self.constant(np.int64(size.shape)))
        return self.add("Slice", name, *ends, self.constant(np.int64((2, 3))))

    def _tensor(self, name: str, shape: tuple[int, ...]):
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.UINT8, shape)

    @staticmethod
    def _remove(tensors, names: set[str]) -> None:
        kept = [tensor for tensor in tensors if tensor.name not in names]
        del tensors[:]
        tensors.extend(kept)
