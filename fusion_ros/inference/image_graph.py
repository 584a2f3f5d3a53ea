# SPDX-License-Identifier: AGPL-3.0-only
"""Camera images at a network's own ends: converting them becomes part of its ONNX graph.

On a GPU luminance, padding, colour and letterbox then run where the network runs, and 8 bits a
value travel to it and back instead of 32. Needs the package `onnx`, which the runtime otherwise
does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fusion_ros.inference.engine import EngineError, Size

if TYPE_CHECKING:
    from onnx import ModelProto

THERMAL, VISIBLE, FUSED = "thermal_image", "visible_image", "fused_image"
"""Inputs and output of `fuse_images`."""
IMAGE = "camera_image"
"""Input of `detect_in_images`."""

_LUMINANCE = np.float32([[[[0.114]], [[0.587]], [[0.299]]]])
"""BT.601, full range, of B, G and R, as 1x1 convolution [1, 3, 1, 1]."""
_RGB_OF_BGR = np.eye(3, dtype=np.float32)[::-1].reshape(3, 3, 1, 1)
_OLDEST_OPSET = 11
"""From which on Pad, Clip and Resize take what they take here as inputs."""


def fuse_images(model: ModelProto, size: Size, padded: Size) -> ModelProto:
    """A fusion model (`ir`, `vi` -> `fused`) of camera images of one size.

    Takes `thermal_image` [1, 1, H, W] and `visible_image` [1, H, W, 3] BGR, gives `fused_image`
    [1, H, W, 3] BGR, all uint8: what `Fuser` does of its own around the float model, but that
    nothing is rounded on the way. (Y + d, Cr, Cb) is (B + d, G + d, R + d), so that to keep CbCr
    is to add the change of Y to all three.

    size: H and W of the images, in pixels; padded: of the network's inputs, which reflection fills.
    Raises EngineError if the model cannot be extended.
    """
    graph = _Graph(model, {"ir", "vi"}, {"fused"})
    graph.take(THERMAL, (1, 1, *size))
    graph.take(VISIBLE, (1, *size, 3))
    bgr = graph.add("Transpose", graph.to_float(VISIBLE), perm=(0, 3, 1, 2))
    luminance = graph.add("Conv", bgr, graph.constant(_LUMINANCE))
    to_unit = graph.constant(np.float32(1 / 255))
    graph.add("Mul", graph.reflect(graph.to_float(THERMAL), size, padded), to_unit, output="ir")
    graph.add("Mul", graph.reflect(luminance, size, padded), to_unit, output="vi")
    graph.after()
    inside = graph.crop("fused", size, padded)
    fused = graph.add("Mul", inside, graph.constant(np.float32(255)))
    change = graph.add("Sub", fused, luminance)
    # Casting cuts off what follows the point, so half a level more rounds.
    half = graph.add("Add", change, graph.constant(np.float32(0.5)))
    levels = graph.add("Add", bgr, half)
    ends = (graph.constant(np.float32(0)), graph.constant(np.float32(255)))
    clipped = graph.add("Clip", levels, *ends)
    interleaved = graph.add("Transpose", clipped, perm=(0, 2, 3, 1))
    graph.give(FUSED, interleaved, (1, *size, 3))
    return graph.finish()


def detect_in_images(
    model: ModelProto, size: Size, scaled: Size, offset: Size, canvas: Size, padding: int
) -> ModelProto:
    """A detection model of RGB floats as one of `camera_image` [1, H, W, 3] uint8 BGR.

    size: H and W of the image; scaled: what it is resized to (bilinear); offset: rows above and
    columns left of it on the `canvas` that the network sees, filled with the level `padding`.
    Raises EngineError if the model cannot be extended.
    """
    name = model.graph.input[0].name
    graph = _Graph(model, {name}, set())
    graph.take(IMAGE, (1, *size, 3))
    image = graph.add("Transpose", graph.to_float(IMAGE), perm=(0, 3, 1, 2))
    if scaled != size:
        sizes = graph.constant(np.int64((1, 3, *scaled)))
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
    after = [c - s - o for c, s, o in zip(canvas, scaled, offset)]
    pads = graph.constant(np.int64((0, 0, *offset, 0, 0, *after)))
    graph.add("Pad", rgb, pads, graph.constant(np.float32(padding / 255)), output=name)
    graph.after()
    return graph.finish()


class _Graph:
    """The nodes of a model while others are put before and after them."""

    def __init__(self, model: ModelProto, inputs: set[str], outputs: set[str]) -> None:
        import onnx

        self._onnx = onnx
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        own = ("", "ai.onnx")
        opset = max((o.version for o in model.opset_import if o.domain in own), default=0)
        if opset < _OLDEST_OPSET:
            raise EngineError(f"its opset is {opset}: export it with one from {_OLDEST_OPSET} on")
        # What was in front of the network is put in front of its nodes.
        self._network = list(self._graph.node)
        del self._graph.node[:]
        self._remove(self._graph.input, inputs)
        self._remove(self._graph.output, outputs)

    def take(self, name: str, shape: tuple[int, ...]) -> None:
        """Have an input of uint8."""
        self._graph.input.append(self._tensor(name, shape))

    def give(self, name: str, source: str, shape: tuple[int, ...]) -> None:
        """Have `source`, values from 0 to 255, as an output of uint8."""
        self.add("Cast", source, output=name, to=self._onnx.TensorProto.UINT8)
        self._graph.output.append(self._tensor(name, shape))

    def after(self) -> None:
        """Put the network here: what was added feeds it, what will be added reads it."""
        self._graph.node.extend(self._network)
        self._network = []

    def finish(self) -> ModelProto:
        """The model. Raises EngineError if it has become none."""
        try:
            self._onnx.checker.check_model(self._model)
        except self._onnx.checker.ValidationError as error:
            raise EngineError(f"no images can be put in front of it: {error}") from error
        return self._model

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        """Append a node; the name of its output."""
        output = output or f"images/{kind}_{len(self._graph.node)}"
        name = f"images/{kind}_to_{output.removeprefix('images/')}"
        node = self._onnx.helper.make_node(kind, inputs, [output], name=name, **attributes)
        self._graph.node.append(node)
        return output

    def constant(self, value: np.ndarray) -> str:
        name = f"images/constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(np.array(value), name))
        return name

    def to_float(self, name: str) -> str:
        return self.add("Cast", name, to=self._onnx.TensorProto.FLOAT)

    def reflect(self, name: str, size: Size, padded: Size) -> str:
        """Rows and columns added at the bottom and right, mirrored at the last one."""
        for axis, have, want in zip((2, 3), size, padded):
            if want > have:
                # Not Pad: by reflection it adds less than there is, and small images need more.
                indices = np.pad(np.arange(have), (0, want - have), "reflect")
                name = self.add("Gather", name, self.constant(indices), axis=axis)
        return name

    def crop(self, name: str, size: Size, padded: Size) -> str:
        if size == padded:
            return name
        ends = (self.constant(np.int64((0, 0))), self.constant(np.int64(size)))
        return self.add("Slice", name, *ends, self.constant(np.int64((2, 3))))

    def _tensor(self, name: str, shape: tuple[int, ...]):
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.UINT8, shape)

    @staticmethod
    def _remove(tensors, names: set[str]) -> None:
        kept = [tensor for tensor in tensors if tensor.name not in names]
        del tensors[:]
        tensors.extend(kept)
