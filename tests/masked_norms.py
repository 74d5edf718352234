"""Normalisations written out, over the kept indices only: what a cut that is not exact has to compute.

A cut model averages over what is left of an axis. Its reference keeps the axis and does the same with a mask: sums of
what stays, divided by how many stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Masks = Sequence[Mask]

STORED_AXES_SINCE = 18  # ReduceMean takes its axes as an input


@dataclass
class Writer:
    """Writes elementary nodes in the place of one node.

    Attributes:
        result: the model that is being rewritten; constants are added to it.
        node: the node that is replaced.
        kept: per axis of its first input, which indices stay.
        opset: of the model.
        dtype: of the numbers that are normalised.
    """

    result: ModelProto
    node: NodeProto
    kept: Masks
    opset: int
    dtype: Any

    def __post_init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.attributes = {a.name: helper.get_attribute_value(a) for a in self.node.attribute}
        self.x = self.node.input[0]
        self.rank = len(self.kept)

    def name(self) -> str:
        return f"{self.node.output[0]}/masked/{len(self.nodes)}/{len(self.result.graph.initializer)}"

    def write(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or self.name()
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def store(self, values: Any, dtype: Any = None) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, dtype or self.dtype), self.name())
        self.result.graph.initializer.append(tensor)
        return tensor.name

    def mask(self, axes: Iterable[int]) -> str:
        """Store which numbers stay, as far as some axes decide."""
        masks = [self.kept[a] if a in set(axes) else np.ones(1, bool) for a in range(self.rank)]
        whole = np.ones([len(m) for m in masks], bool)
        for axis, mask in enumerate(masks):
            whole &= mask.reshape([-1 if a == axis else 1 for a in range(self.rank)])
        return self.store(whole, np.bool_)

    def mean(self, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """Average over what stays of some axes."""
        cut = [a for a in axes if not self.kept[a].all()]
        x = self.write("Where", self.mask(cut), x, self.store(0))
        if self.opset < STORED_AXES_SINCE:
            mean = self.write("ReduceMean", x, axes=list(axes), keepdims=keepdims)
        else:
            mean = self.write("ReduceMean", x, self.store(list(axes), np.int64), keepdims=keepdims)
        total, left = prod(len(self.kept[a]) for a in cut), prod(int(self.kept[a].sum()) for a in cut)
        return self.write("Mul", mean, self.store(total / left))

    def normalised(self, x: str, mean: Callable[[str], str], epsilon: float, *, centred: bool = True) -> list[str]:
        """Write (x - mean) / sqrt(variance + epsilon); returns it, the mean and the inverse deviation."""
        middle = mean(x) if centred else ""
        x = self.write("Sub", x, middle) if centred else x
        variance = self.write("Add", mean(self.write("Mul", x, x)), self.store(epsilon))
        inverse = self.write("Reciprocal", self.write("Sqrt", variance))
        return [self.write("Mul", x, inverse), middle, inverse]

    def finish(self, results: Sequence[str]) -> list[NodeProto]:
        """Give the results the names of the outputs."""
        for result, output in zip(results, self.node.output, strict=False):
            if output:
                self.write("Identity", result, output=output)
        return self.nodes

    def along(self, vector: str, axis: int) -> str:
        """Shape a vector so that it broadcasts along an axis."""
        return self.write("Reshape", vector, self.store([-1] + [1] * (self.rank - axis - 1), np.int64))


def averaged_axes(node: NodeProto, rank: int, values: Callable[[str], Array]) -> list[int]:
    """Name the axes that a node averages over, or that it mixes with neighbours."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if not rank:
        return []
    axes: Iterable[int] = ()
    if node.op_type == "ReduceMean":
        axes = attributes.get("axes", ())
        if len(node.input) > 1 and node.input[1]:
            axes = [int(a) for a in values(node.input[1])]
        if not axes and not attributes.get("noop_with_empty_axes", 0):
            axes = range(rank)
    elif node.op_type in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
        axes = [rank - 1]
    elif node.op_type in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        axes = range(attributes.get("axis", -1) % rank, rank)
    elif node.op_type == "InstanceNormalization":
        axes = range(2, rank)
    elif node.op_type == "GroupNormalization":
        axes = range(1, rank)
    elif node.op_type == "LRN":
        axes = [1]
    elif node.op_type == "MeanVarianceNormalization":
        axes = attributes.get("axes", [0, 2, 3])
    return sorted({axis % rank for axis in axes})


def shrunk_axes(node: NodeProto, kept: Masks, averaged: Iterable[int]) -> list[int]:
    """Name the axes over which a node averages less than before; whole groups that go leave the others as they are."""
    shrunk = [axis for axis in averaged if not kept[axis].all()]
    if node.op_type == "GroupNormalization" and 1 in shrunk:
        (groups,) = (a.i for a in node.attribute if a.name == "num_groups")
        by_group = kept[1].reshape(groups, -1)
        if np.array_equal(by_group.any(axis=1), by_group.all(axis=1)):
            shrunk.remove(1)
    return shrunk


def written_out(writer: Writer, axes: Sequence[int]) -> list[NodeProto]:
    """Write a normalisation as elementary nodes that average over what stays."""
    return WAYS[writer.node.op_type](writer, axes)


def _reduce_mean(w: Writer, axes: Sequence[int]) -> list[NodeProto]:
    return w.finish([w.mean(w.x, axes, w.attributes.get("keepdims", 1))])


def _layer_norm(w: Writer, axes: Sequence[int]) -> list[NodeProto]:
    centred = w.node.op_type == "LayerNormalization"
    epsilon = w.attributes.get("epsilon", 1e-5)
    y, *rest = w.normalised(w.x, lambda x: w.mean(x, axes), epsilon, centred=centred)
    y = w.write("Mul", y, w.node.input[1])
    if len(w.node.input) > 2 and w.node.input[2]:
        y = w.write("Add", y, w.node.input[2])
    return w.finish([y, *rest])


def _skip_layer_norm(w: Writer, axes: Sequence[int]) -> list[NodeProto]:
    inputs = dict(enumerate(w.node.input))
    centred = w.node.op_type == "SkipLayerNormalization"
    bias = inputs.get(4 if centred else 3)
    total = w.write("Add", w.x, inputs[1])
    total = w.write("Add", total, bias) if bias else total
    epsilon = w.attributes.get("epsilon", 1e-12)
    y, *rest = w.normalised(total, lambda x: w.mean(x, axes), epsilon, centred=centred)
    y = w.write("Mul", y, inputs[2])
    if centred and inputs.get(3):
        y = w.write("Add", y, inputs[3])
    return w.finish([y, *rest, total])


def _instance_norm(w: Writer, axes: Sequence[int]) -> list[NodeProto]:
    y, *_ = w.normalised(w.x, lambda x: w.mean(x, axes), w.attributes.get("epsilon", 1e-5))
    scale, shift = (w.along(name, 1) for name in w.node.input[1:3])
    return w.finish([w.write("Add", w.write("Mul", y, scale), shift)])


def _group_norm(w: Writer, axes: Sequence[int]) -> list[NodeProto]:
    groups = w.attributes["num_groups"]
    channels, pixels = w.kept[1].reshape(groups, -1), np.ones(1, bool)
    for side in w.kept[2:]:
        pixels = np.logical_and.outer(pixels, side).reshape(-1)
    kept = channels[None, :, :, None] & pixels
    count = w.store(np.maximum(kept.sum(axis=(2, 3), keepdims=True), 1))
    mask, over = w.store(kept, np.bool_), w.store([2, 3], np.int64)

    def mean(x: str) -> str:
        total = w.write("ReduceSum", w.write("Where", mask, x, w.store(0)), over, keepdims=1)
        return w.write("Div", total, count)

    x = w.write("Reshape", w.x, w.store([0, *channels.shape, len(pixels)], np.int64))
    y, *_ = w.normalised(x, mean, w.attributes.get("epsilon", 1e-5))
    per = [1, groups, 1 if w.opset < 21 else channels.shape[1], 1]
    scale, shift = (w.write("Reshape", name, w.store(per, np.int64)) for name in w.node.input[1:3])
    y = w.write("Add", w.write("Mul", y, scale), shift)
    return w.finish([w.write("Reshape", y, w.write("Shape", w.x))])


def _lrn(w: Writer, axes: Sequence[int]) -> list[NodeProto]:
    size, kept = w.attributes["size"], w.kept[1]
    place = np.where(kept, np.cumsum(kept) - 1, -len(kept) * size)
    ahead = place[None] - place[:, None]
    near = kept[:, None] & kept & (ahead >= -((size - 1) // 2)) & (ahead <= size // 2)
    squares = w.write("Conv", w.write("Mul", w.x, w.x), w.store(near.reshape(*near.shape, *[1] * (w.rank - 2))))
    around = w.write("Mul", squares, w.store(w.attributes.get("alpha", 1e-4) / size))
    around = w.write("Add", around, w.store(w.attributes.get("bias", 1.0)))
    return w.finish([w.write("Div", w.x, w.write("Pow", around, w.store(w.attributes.get("beta", 0.75))))])


def _mean_variance(w: Writer, axes: Sequence[int]) -> list[NodeProto]:
    return w.finish(w.normalised(w.x, lambda x: w.mean(x, axes), 1e-9)[:1])


WAYS: dict[str, Callable[[Writer, Sequence[int]], list[NodeProto]]] = {
    "ReduceMean": _reduce_mean,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "SimplifiedLayerNormalization": _layer_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LRN": _lrn,
    "MeanVarianceNormalization": _mean_variance,
}


def opset_of(proto: ModelProto) -> int:
    """Give the version of the standard operators that a model uses."""
    return max(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def default_dtype(proto: ModelProto) -> Any:
    """Say which numbers a model computes with."""
    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in proto.graph.initializer)
    return np.float16 if halves else np.float32
