"""Weights that are stored as whole numbers behind DequantizeLinear: trained as the floats that these stand for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.dequantizing import Steps, steps_of
from onnxprune.nodes import attributes_of, every_node
from onnxprune.weights import read

FURTHEST = 2**22  # from zero; beyond it single precision does not tell a float's whole number for certain


@dataclass(frozen=True)
class Quantized:
    """A stored tensor of whole numbers.

    Attributes:
        node: the DequantizeLinear that reads it, or one of several alike.
        steps: what its numbers stand for.
    """

    node: NodeProto
    steps: Steps

    @property
    def attributes(self) -> dict[str, object]:
        """Give the attributes of the node, and the type as one of QuantizeLinear."""
        return attributes_of(self.node) | {"output_dtype": self.steps.kind}


def find_quantized(
    proto: ModelProto, stored: Mapping[str, TensorProto], folder: Path
) -> Iterator[tuple[str, Quantized]]:
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
        if np.prod(tensor.dims) < 2 or name in outputs or not nodes or not all(id(n) in outer for n in nodes):
            continue
        node, *others = nodes
        alike = all(list(n.input) == list(node.input) and n.attribute == node.attribute for n in others)
        steps = steps_of(node, stored, folder) if alike and node.input[0] == name else None
        if steps is not None and np.abs(read(tensor, folder).astype(np.int64)).max() < FURTHEST:
            yield name, Quantized(node, steps)
