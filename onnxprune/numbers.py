"""The stored numbers of a model that is given other ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.dequantizing import find_dequantized
from onnxprune.model import stored_tensors
from onnxprune.nodes import bodies, uses
from onnxprune.shapes import is_default_domain
from onnxprune.weights import Array, read

Place = tuple[int, int]
"""Where something stored is read: the node, and which of its inputs."""


class Numbers:
    """A copy of a model whose stored numbers change; nothing else does.

    What comes from whole numbers behind DequantizeLinear is read as floats, and stored as what is nearest to these.

    Args:
        original: the model; it stays as it is.
        folder: where its external data lies.

    Attributes:
        proto: the copy.
        changed: tensors that hold other numbers now.
        added: tensors that were not there.
    """

    def __init__(self, original: ModelProto, folder: Path) -> None:
        self.proto = ModelProto()
        self.proto.CopyFrom(original)
        self.changed: list[str] = []
        self.added: list[str] = []
        self._folder = folder
        self._stored = stored_tensors(self.proto)
        self._uses = uses(self.proto.graph)
        self._dequantized = find_dequantized(self.proto, self._stored, folder)
        self._taken = set(_names(self.proto.graph))
        constants = [node for node in self.proto.graph.node if node.op_type == "Constant"]
        self._listed = {
            name for node in constants for name in node.output if all(a.name != "value" for a in node.attribute)
        }  # in an attribute that is no tensor
        self._root: dict[str, str] = {}
        for node in self.proto.graph.node:
            if node.op_type == "Identity" and is_default_domain(node.domain):
                root = self._root.get(node.input[0], node.input[0])
                if root in self._stored:
                    self._root[node.output[0]] = root

    def tensor(self, place: Place) -> TensorProto | None:
        """Find what is stored for an input of a node, whichever name it goes by (None: nothing)."""
        name = self._name(place)
        return self._stored.get(self._root.get(name, name)) if name else None

    def get(self, place: Place) -> Array | None:
        """Read what is stored for an input of a node (None: nothing)."""
        behind = self._dequantized.get(self._name(place))
        if behind is not None:
            numbers = self.get((behind.index, 0))
            return None if numbers is None else behind.steps.floats(numbers)
        tensor = self.tensor(place)
        return None if tensor is None else read(tensor, self._folder)

    def set(self, place: Place, values: Array) -> None:
        """Store other numbers for an input of a node; where others read the old ones, the new ones come beside them."""
        behind = self._dequantized.get(self._name(place))
        if behind is not None:
            self.set((behind.index, 0), behind.steps.whole(values))
            return
        index, position = place
        node = self.proto.graph.node[index]
        node.input.extend([""] * (position + 1 - len(node.input)))
        name = node.input[position]
        if name in self._stored and self._uses[name] == 1 and name not in self._listed:
            tensor = self._stored[name]
            if list(tensor.dims) != list(values.shape):
                self._declare(name, values)
            doc = tensor.doc_string
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            if doc:
                tensor.doc_string = doc
            if name not in self.changed and name not in self.added:
                self.changed.append(name)
            return
        base = name or f"{node.output[0]}_bias"
        number = next(n for n in range(len(self._taken) + 1) if f"{base}_{n}" not in self._taken)
        node.input[position] = new = f"{base}_{number}"
        self._uses[name] -= 1
        self._uses[new] = 1
        self._taken.add(new)
        self.added.append(new)
        self.proto.graph.initializer.append(numpy_helper.from_array(values, new))
        self._stored[new] = self.proto.graph.initializer[-1]
        if self.proto.ir_version < 4:  # older files list their initializers as inputs too
            self.proto.graph.input.append(_declared(new, values))

    def _declare(self, name: str, values: Array) -> None:
        """Declare another shape wherever the graph tells the one of a tensor."""
        for value in (*self.proto.graph.input, *self.proto.graph.value_info):
            if value.name == name:
                value.CopyFrom(_declared(name, values))

    def _name(self, place: Place) -> str:
        index, position = place
        inputs = self.proto.graph.node[index].input
        return inputs[position] if position < len(inputs) else ""


def _declared(name: str, values: Array) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)


def _names(graph: GraphProto) -> Iterator[str]:
    """Name everything in a graph and in the bodies inside it."""
    yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer))
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for body in bodies(node):
            yield from _names(body)
