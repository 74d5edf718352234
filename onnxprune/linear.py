"""Layers with stored weights, seen alike: convolutions and products with a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnxprune.channels import Channels
from onnxprune.numbers import Place
from onnxprune.ops.rule import Atoms, View
from onnxprune.shapes import is_default_domain
from onnxprune.weights import Array, Floats

FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
Values = Callable[[Channels, str], Array | None]
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """A layer with a stored weight: each output sums over the inputs of its group.

    Attributes:
        index: the node.
        x: atoms of what is summed over, (groups, inputs).
        y: atoms of what comes out, (groups, outputs).
        weight: (groups, outputs, inputs, kernel), a view.
        scale: what the sum is multiplied by.
        beta: what the third operand is multiplied by.
        bias: what is added to each output, (groups, outputs); None where it is not known.
        is_uniform: whether every position sums over the whole kernel, so that of a constant comes a constant.
        outputs_first: whether the stored weight has the outputs of a group before its inputs.
    """

    index: int
    x: Atoms
    y: Atoms
    weight: Array
    scale: float
    beta: float
    bias: Floats | None
    is_uniform: bool
    outputs_first: bool = True

    def layout(self, values: Array, shape: tuple[int, ...]) -> Array:
        """Bring a weight (groups, outputs, inputs, kernel), cut or not, to the axes that the model stores.

        Args:
            values: the weight.
            shape: of the stored weight, of which only the sizes of the kernel are read.
        """
        groups, outputs, inputs = values.shape[:3]
        if len(shape) < 3:
            return np.ascontiguousarray(values[0, :, :, 0] if self.outputs_first else values[0, :, :, 0].T)
        if self.outputs_first:
            return values.reshape(groups * outputs, inputs, *shape[2:])
        return values.swapaxes(1, 2).reshape(groups * inputs, outputs, *shape[2:])

    def response(self, values: Floats) -> Floats:
        """Give what inputs of these values (groups, inputs) add to each output, (groups, outputs)."""
        sums = np.zeros(self.y.shape)
        for group, column in zip(*np.nonzero(values), strict=True):
            sums[group] += values[group, column] * self.weight[group, :, column].sum(axis=-1, dtype=np.float64)
        return self.scale * sums


def by_group(weight: Array, groups: int, outputs_first: bool) -> Array:
    """See a stored weight as (groups, outputs, inputs, kernel); `Linear.layout` is the way back.

    Args:
        weight: of a convolution, or the matrix of a product.
        groups: of the convolution; 1 for a product.
        outputs_first: whether the outputs of a group come before its inputs.
    """
    if weight.ndim < 3:
        return (weight if outputs_first else weight.T)[None, :, :, None]
    parts = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return parts if outputs_first else parts.swapaxes(1, 2)


def stored_values(channels: Channels, name: str) -> Array | None:
    """Give the numbers of a stored float tensor, whichever name it goes by (None: it is none)."""
    model = channels.model
    root = channels.aliases.root.get(name, name)
    return model.array(root) if root in model.stored and model.types[root] in FLOAT_TYPES else None


def floats(channels: Channels, name: str) -> Array | None:
    """Give the numbers of a stored float tensor, or what stored whole numbers stand for (None: it is neither)."""
    model = channels.model
    behind = model.dequantized.get(name)
    if behind is None or model.types.get(name) not in FLOAT_TYPES:
        return stored_values(channels, name)
    return behind.steps.floats(model.array(behind.name))


def linear(
    channels: Channels, index: int, weight: Array | None = None, values: Values = stored_values
) -> Linear | None:
    """Look at a node as a layer with a stored weight (None: it is none).

    Args:
        channels: of the model.
        index: the node.
        weight: taken in place of the one that is stored.
        values: what counts as stored: `stored_values` or `floats`.
    """
    view = channels.view(index)
    node = view.node
    if node.op not in LINEAR or not is_default_domain(node.domain) or None in (*view.inputs[:2], view.outputs[0]):
        return None
    weight = values(channels, node.inputs[1].name) if weight is None else weight
    if weight is None or not weight.size:
        return None
    if node.op in ("Conv", "ConvTranspose"):
        return _convolution(channels, view, weight, values)
    return _product(channels, view, weight, values) if weight.ndim == 2 else None


def bias_place(channels: Channels, index: int) -> Place | None:
    """Find where a layer reads its bias; that of a MatMul is in the Add that alone reads the product."""
    graph = channels.model.graph
    node = graph.nodes[index]
    if node.op != "MatMul":
        return index, 2
    reader = only_reader(channels, index)
    if reader is None or graph.nodes[reader].op != "Add":
        return None
    return reader, 1 if graph.nodes[reader].inputs[0] is node.outputs[0] else 0


def only_reader(channels: Channels, index: int) -> int | None:
    """Find the one node that reads what a node puts out (None: there are more, or it is an output of the model)."""
    graph = channels.model.graph
    made = graph.nodes[index].outputs[0]
    if len(made.outputs) != 1 or made.name in {t.name for t in graph.outputs}:
        return None
    reader = made.outputs[0]
    return next((i for i in range(index, len(graph.nodes)) if graph.nodes[i] is reader), None)


def _convolution(channels: Channels, view: View, weight: Array, values: Values) -> Linear:
    groups = int(view.attribute("group", 1))
    x, y = view.x[1].reshape(groups, -1), view.y[1].reshape(groups, -1)
    outputs_first = view.node.op == "Conv"
    weight = by_group(weight, groups, outputs_first)
    is_uniform = view.node.op == "Conv" and _pads_nothing(view)
    bias = _bias(channels, view, y.size, 1.0, groups, values)
    return Linear(view.index, x, y, weight, 1.0, 1.0, bias, is_uniform, outputs_first)


def _product(channels: Channels, view: View, weight: Array, values: Values) -> Linear:
    is_gemm = view.node.op == "Gemm"
    outputs_first = bool(is_gemm and view.attribute("transB", 0))
    rows = by_group(weight, 1, outputs_first)
    x = view.x[0 if is_gemm and view.attribute("transA", 0) else -1]
    scale, beta = float(view.attribute("alpha", 1.0)), float(view.attribute("beta", 1.0))
    bias = _bias(channels, view, rows.shape[1], beta, 1, values)
    y = view.y[-1][None]
    return Linear(view.index, x[None], y, rows, scale, beta, bias, True, outputs_first)


def _bias(channels: Channels, view: View, size: int, beta: float, groups: int, values: Values) -> Floats | None:
    """Read the third operand of a layer as one number for each output (None: it is something else)."""
    if not view.has_input(2):
        return np.zeros((groups, size // groups))
    stored = values(channels, view.node.inputs[2].name)
    if stored is None or stored.size not in (1, size) or (stored.size > 1 and stored.shape[-1] != size):
        return None
    numbers = np.broadcast_to(stored.reshape(-1).astype(np.float64), size)
    return beta * numbers.reshape(groups, -1)


def _pads_nothing(view: View) -> bool:
    if any(view.attribute("pads", ())):
        return False
    padding = view.attribute("auto_pad", "NOTSET")
    padding = padding.decode() if isinstance(padding, bytes) else padding
    return padding in ("", "NOTSET", "VALID") or all(size == 1 for size in view.input(1).shape[2:])
