"""Weights stored as whole numbers behind DequantizeLinear: the floats that they stand for, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.nodes import attributes_of, uses
from onnxprune.shapes import is_default_domain
from onnxprune.weights import Array, read

WHOLE = frozenset(
    {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32}
    | {TensorProto.INT4, TensorProto.UINT4}
)


@dataclass(frozen=True)
class Steps:
    """What stored whole numbers stand for: ``(number - zero) * scale``.

    Attributes:
        scale: what one step is worth, in a shape that broadcasts to the numbers, with as many axes.
        zero: the number that stands for zero, likewise.
        kind: ONNX element type of the numbers.
    """

    scale: Array
    zero: Array
    kind: int

    def floats(self, whole: Array) -> Array:
        """Give what numbers stand for, in the type of the scale."""
        return np.asarray((whole.astype(self.scale.dtype) - self.zero.astype(self.scale.dtype)) * self.scale)

    def whole(self, floats: Array) -> Array:
        """Give the numbers that stand for what is nearest to some floats."""
        dtype = helper.tensor_dtype_to_np_dtype(self.kind)
        bits = int(dtype.name.lstrip("uint"))
        least = 0 if dtype.name.startswith("u") else -(2 ** (bits - 1))
        numbers = np.rint(floats.astype(np.float64) / self.scale.astype(np.float64)) + self.zero
        return np.asarray(np.clip(numbers, least, least + 2**bits - 1).astype(dtype))


@dataclass(frozen=True)
class Dequantized:
    """A stored tensor of whole numbers that one node alone reads as floats.

    Attributes:
        index: the DequantizeLinear.
        name: of the stored tensor.
        steps: what its numbers stand for.
    """

    index: int
    name: str
    steps: Steps


def find_dequantized(proto: ModelProto, stored: Mapping[str, TensorProto], folder: Path) -> dict[str, Dequantized]:
    """Find the floats that come from stored whole numbers and that are read once, by their names."""
    found = dict[str, Dequantized]()
    for index, node in enumerate(proto.graph.node):
        steps = steps_of(node, stored, folder)
        if steps is not None:
            found[node.output[0]] = Dequantized(index, node.input[0], steps)
    used = uses(proto.graph) if found else {}
    return {name: numbers for name, numbers in found.items() if used[name] == 1}


def steps_of(node: NodeProto, stored: Mapping[str, TensorProto], folder: Path) -> Steps | None:
    """Read what the stored numbers stand for that a node reads (None: it is no DequantizeLinear, or they are none).

    Args:
        node: any node.
        stored: the tensors that the model stores.
        folder: where external data lies.
    """
    if node.op_type != "DequantizeLinear" or not is_default_domain(node.domain):
        return None
    given = [name for name in node.input if name]
    if not stored.keys() >= set(given) or stored[given[0]].data_type not in WHOLE:
        return None
    numbers = stored[given[0]]
    attributes = attributes_of(node)
    axis, block = int(attributes.get("axis", 1)), int(attributes.get("block_size", 0))
    shape = tuple(numbers.dims)
    scale = read(stored[given[1]], folder)
    zero = read(stored[given[2]], folder) if len(given) > 2 else np.zeros_like(scale)
    scale, zero = (_beside(shape, values, axis, block) for values in (scale, zero))
    return Steps(scale, zero, numbers.data_type) if (scale.astype(np.float32) > 0).all() else None


def _beside(shape: tuple[int, ...], values: Array, axis: int, block: int) -> Array:
    """Lay scales or zero points along the axis of some numbers that they belong to."""
    if values.size == 1:
        return values.reshape([1] * len(shape))
    axis %= len(shape)
    if block:
        return np.take(np.repeat(values, block, axis), np.arange(shape[axis]), axis)
    return values.reshape([-1 if at == axis else 1 for at in range(len(shape))])
