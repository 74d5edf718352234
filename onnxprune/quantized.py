"""Quantised numbers: which operands hold them, and what they stand for."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels import Channels
from onnxprune.ops.rule import Axes, Key
from onnxprune.weights import Array

ZERO_POINTS = {
    ("DequantizeLinear", 0): 2,
    ("ConvInteger", 1): 3,
    ("MatMulInteger", 0): 2,
    ("MatMulInteger", 1): 3,
    ("QLinearConv", 3): 5,
    ("QLinearMatMul", 0): 2,
    ("QLinearMatMul", 3): 5,
    ("QGemm", 3): 5,
    ("QLinearAdd", 0): 2,
    ("QLinearAdd", 3): 5,
    ("QLinearMul", 0): 2,
    ("QLinearMul", 3): 5,
}
"""Operands (operator, input) that hold quantised numbers, and the input that says which of these stand for zero."""

SCALES = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "QLinearConv": (1, 2, 4, 5),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5),
}
"""Inputs of quantised operators that are scales and zero points."""

QUANTIZED = frozenset(op for op, _ in ZERO_POINTS)
WITHOUT_SCALES = frozenset({"ConvInteger", "MatMulInteger"})


def zero_points(channels: Channels) -> dict[Key, Array]:
    """Give what stands for zero in each stored tensor of quantised numbers, in a shape that broadcasts to it."""
    return _parameters(channels, 0)


def scales(channels: Channels) -> dict[Key, Array]:
    """Give what one step of each stored tensor of quantised numbers is worth, in a shape that broadcasts to it."""
    return _parameters(channels, -1)


def _parameters(channels: Channels, offset: int) -> dict[Key, Array]:
    """Find the zero points of stored tensors, or the inputs at an offset from them: scales come just before."""
    model, found = channels.model, dict[Key, Array]()
    for index, node in enumerate(model.graph.nodes):
        if node.op not in QUANTIZED or (offset and node.op in WITHOUT_SCALES):
            continue
        for position, axes in enumerate(channels.view(index).inputs):
            where = ZERO_POINTS.get((node.op, position), len(node.inputs) - offset) + offset
            name = node.inputs[where].name if where < len(node.inputs) else ""
            name = channels.aliases.root.get(name, name)
            if axes is not None and name in model.stored:
                found[axes.key] = _spread(node, position, model.array(name), axes)
    return found


def _spread(node: gs.Node, position: int, zero: Array, axes: Axes) -> Array:
    """Bring a zero point to a shape that broadcasts to the operand it belongs to."""
    if zero.size == 1:
        return zero.reshape([1] * len(axes))
    along = {"DequantizeLinear": int(node.attrs.get("axis", 1)), "ConvInteger": 0, "QLinearConv": 0}.get(node.op)
    if along is None:  # a matrix product: rows of the first operand, columns of the second
        along = -2 if position == 0 or node.attrs.get("transB", 0) else -1
    if node.attrs.get("block_size", 0):
        repeated = np.repeat(zero, int(node.attrs["block_size"]), along)
        return np.take(repeated, np.arange(axes.shape[along]), along)
    return zero.reshape([len(zero) if axis == along % len(axes) else 1 for axis in range(len(axes))])
