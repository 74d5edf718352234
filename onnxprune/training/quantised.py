"""Weights that are stored as whole numbers behind DequantizeLinear: trained as the floats that these stand for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor

from onnxprune.nodes import every_node
from onnxprune.shapes import is_default_domain
from onnxprune.training.functions import Call, as_tensor
from onnxprune.training.functions.quantization import dequantize_linear, quantize_linear
from onnxprune.weights import Array, read

WHOLE = frozenset(
    {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32}
    | {TensorProto.INT4, TensorProto.UINT4}
)
FURTHEST = 2**22  # from zero; beyond it single precision does not tell a float's whole number for certain


@dataclass(frozen=True)
class Quantised:
    """A stored tensor of whole numbers.

    Attributes:
        node: the DequantizeLinear that reads it, or one of several alike.
        kind: its type.
        scale: what one step stands for.
        zero: the number that stands for zero, where it is given.
    """

    node: NodeProto
    kind: int
    scale: Tensor
    zero: Tensor | None

    @property
    def attributes(self) -> dict[str, object]:
        """Give the attributes of the node, and the type as one of QuantizeLinear."""
        return {a.name: helper.get_attribute_value(a) for a in self.node.attribute} | {"output_dtype": self.kind}

    @property
    def _call(self) -> Call:
        return Call(self.node.op_type, self.node.name, 0, self.attributes, 1, training=False)

    def floats(self, stored: Array) -> Tensor:
        """Give what the stored numbers stand for."""
        return dequantize_linear(self._call, as_tensor(stored), self.scale, self.zero)

    def whole(self, floats: Tensor) -> Array:
        """Give the numbers that stand for what is nearest to some floats."""
        with torch.no_grad():
            return quantize_linear(self._call, floats.cpu(), self.scale, self.zero).numpy()


def find_quantised(
    proto: ModelProto, stored: Mapping[str, TensorProto], folder: Path
) -> Iterator[tuple[str, Quantised]]:
    """Find the stored tensors of several whole numbers that are read as floats, and always as the same.

    Args:
        proto: the model, its local functions inlined.
        stored: its stored tensors.
        folder: where external data lies.
    """
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in every_node(proto.graph):
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    outputs, outer = {value.name for value in proto.graph.output}, {id(node) for node in proto.graph.node}
    for name, tensor in stored.items():
        nodes = readers[name]
        if tensor.data_type not in WHOLE or np.prod(tensor.dims) < 2 or name in outputs or not nodes:
            continue
        node, *others = nodes
        alike = all(list(n.input) == list(node.input) and n.attribute == node.attribute for n in others)
        is_read = node.op_type == "DequantizeLinear" and is_default_domain(node.domain) and node.input[0] == name
        given = [operand for operand in node.input[1:] if operand]
        if not alike or not is_read or not all(id(n) in outer for n in nodes) or not stored.keys() >= set(given):
            continue
        scale, *zeros = (as_tensor(read(stored[operand], folder)) for operand in given)
        if np.abs(read(tensor, folder).astype(np.int64)).max() < FURTHEST and bool((scale > 0).all()):
            yield name, Quantised(node, tensor.data_type, scale, zeros[0] if zeros else None)
