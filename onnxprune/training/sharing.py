"""Small parameters that unrelated nodes share, because exporters merge equal numbers, are trained each for itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from onnxprune.linear import LINEAR
from onnxprune.nodes import every_node
from onnxprune.shapes import is_default_domain
from onnxprune.weights import Array, read

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
LEARNT = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), (1, 2)),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization"), (1, 2)),
    "PRelu": (1,),
}
"""Where layers read what they learn; elsewhere a single number is a constant of a formula."""


class Unshared:
    """A copy of a model in which every layer has small parameters of its own.

    Exporters store equal numbers once: biases of zeros, scales of ones. Weights, and vectors of several numbers, that
    several nodes read are shared on purpose, and stay so, and so does what goes with such weights.

    Args:
        original: the model; it stays as it is.
        folder: where its external data lies.

    Attributes:
        proto: the copy.
        originals: the name of the tensor that each new one was copied from.
    """

    def __init__(self, original: ModelProto, folder: Path) -> None:
        self.proto = ModelProto()
        self.proto.CopyFrom(original)
        self.originals: dict[str, str] = {}
        self._before: dict[tuple[int, int], str] = {}  # what a node read in place of a copy
        graph = self.proto.graph
        stored, single = writable(self.proto), single_parameters(graph)
        weights = {node.input[1] for node in graph.node if node.op_type in LINEAR}
        large = {name for name, tensor in stored.items() if not is_vector(tensor.dims) or name in weights}
        small = {
            name: tensor
            for name, tensor in stored.items()
            if name not in large
            and tensor.data_type in FLOATS
            and (np.prod(tensor.dims) > 1 or name in single)
            and _are_equal(read(tensor, folder))
        }
        root = {name: name for name in small}
        places: dict[str, dict[tuple[object, ...], list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for index, node in enumerate(graph.node):
            if node.op_type == "Identity" and is_default_domain(node.domain) and node.input[0] in root:
                root[node.output[0]] = root[node.input[0]]
                continue
            for position, name in enumerate(node.input):
                if name in root:
                    layer = tuple(weight for weight in node.input if weight in large) or index
                    places[root[name]][layer, position].append((index, position))
        taken = {name for node in every_node(graph) for name in (*node.input, *node.output)}
        taken |= {entry.name for entry in (*graph.initializer, *graph.input)}
        for name, found in places.items():
            for number, layer_places in enumerate(list(found.values())[1:], start=1):
                new = f"{name}_{number}"
                while new in taken:
                    new += "_"
                taken.add(new)
                self.originals[new] = name
                for index, position in layer_places:
                    self._before[index, position] = graph.node[index].input[position]
                    graph.node[index].input[position] = new
                graph.initializer.add().CopyFrom(small[name])
                graph.initializer[-1].name = new
                if self.proto.ir_version < 4:  # older files list their initializers as inputs too
                    tensor = small[name]
                    graph.input.append(helper.make_tensor_value_info(new, tensor.data_type, tensor.dims))

    def rejoin(self, proto: ModelProto) -> None:
        """Let nodes read the original tensor again where their copy is still equal to it."""
        stored = writable(proto)
        gone = set()
        for (index, position), before in self._before.items():
            new = proto.graph.node[index].input[position]
            if _same(stored[new], stored[self.originals[new]]):
                proto.graph.node[index].input[position] = before
                gone.add(new)
        for listed in (proto.graph.initializer, proto.graph.input):
            kept = [entry for entry in listed if entry.name not in gone]
            del listed[:]
            listed.extend(kept)


def single_parameters(graph: GraphProto) -> set[str]:
    """Name what layers read as a weight, a scale, a bias or a slope, and may train even where it is one number."""
    places = ((node, place) for node in every_node(graph) for place in LEARNT.get(node.op_type, ()))
    return {node.input[place] for node, place in places if place < len(node.input)}


def is_vector(shape: Iterable[int]) -> bool:
    """Tell whether at most one axis is longer than 1: a bias, a scale, a slope."""
    return sum(size > 1 for size in shape) < 2


def writable(proto: ModelProto) -> dict[str, TensorProto]:
    """Find the tensors that a model stores as such, by name; what is written to them is written to the model."""
    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and is_default_domain(node.domain):
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
    return found


def write(tensor: TensorProto, values: Array, folder: Path) -> None:
    """Store other numbers in the type of those before; where nothing changes, the tensor stays to the letter."""
    before = read(tensor, folder)
    values = values.astype(before.dtype)
    if not np.array_equal(before, values, equal_nan=True):
        doc = tensor.doc_string
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        if doc:
            tensor.doc_string = doc


def _are_equal(values: Array) -> bool:
    return values.size > 0 and bool((values == values.reshape(-1)[0]).all())


def _same(one: TensorProto, other: TensorProto) -> bool:
    return one.raw_data == other.raw_data and list(one.float_data) == list(other.float_data)
