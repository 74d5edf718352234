"""A model that is being rewritten: a fresh onnx-graphsurgeon graph, and what of the original stays to the letter."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxprune.channels import Channels
from onnxprune.model import Model, copy_fields, read_graph
from onnxprune.nodes import has_body
from onnxprune.weights import Array


class Draft:
    """A model that is being rewritten; nodes and numbers that nobody changes are copied from the original.

    Args:
        channels: of the original.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.model: Model = channels.model
        self.graph: gs.Graph = read_graph(self.model.proto)
        self.nodes: list[gs.Node] = list(self.graph.nodes)  # as they were numbered
        self.origin: dict[int, NodeProto] = {
            id(node): proto for node, proto in zip(self.nodes, self.model.proto.graph.node, strict=True)
        }
        self.changed: set[int] = set()  # ids of nodes that differ from the original
        self.replaced: dict[str, Array] = {}  # stored tensors with new numbers
        self.added: list[gs.Constant] = []
        self.constants = {t.name: t for node in self.nodes for t in node.inputs if isinstance(t, gs.Constant)}
        bodies = [body for node in self.nodes for body in node.subgraphs(recursive=True)]
        self.names = {name for graph in (self.graph, *bodies) for name in graph.tensors()} | set(self.model.stored)
        self.outputs = {tensor.name for tensor in self.graph.outputs}

    def _constant(self, name: str, values: Array) -> gs.Constant:
        """Add a stored tensor, named after another."""
        number = 1
        while f"{name}_{number}" in self.names:
            number += 1
        constant = gs.Constant(f"{name}_{number}", values)
        self.names.add(constant.name)
        self.added.append(constant)
        return constant

    def _connect(self, index: int, position: int, tensor: gs.Tensor) -> None:
        node = self.nodes[index]
        while len(node.inputs) <= position:
            node.inputs.append(gs.Variable.empty())
        node.inputs[position] = tensor
        self.changed.add(id(node))

    def _place(self, node: gs.Node) -> int:
        return next(i for i, other in enumerate(self.graph.nodes) if other is node)

    def _values(self, tensor: gs.Tensor) -> Array:
        """Give the numbers of a stored tensor after the cut."""
        added = next((constant for constant in self.added if constant.name == tensor.name), None)
        if added is not None:
            return np.asarray(added.values)
        root = self.channels.aliases.root.get(tensor.name, tensor.name)
        return self.replaced[root] if root in self.replaced else self.model.array(root)

    def _drop_unread(self) -> None:
        """Remove what nobody reads any more: shape arithmetic, aliases and constants whose readers got their own."""
        gone: set[int] = set()
        for index in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[index]
            sizes_only = index in self.model.size_nodes or index in self.channels.aliases.nodes or not node.inputs
            read = any(tensor.outputs or tensor.name in self.outputs for tensor in node.outputs)
            was_read = any(tensor.outputs for tensor in self.model.graph.nodes[index].outputs)
            if sizes_only and not read and (was_read or not node.outputs):
                node.inputs.clear()
                gone.add(id(node))
        if gone:
            self.graph.nodes[:] = [node for node in self.graph.nodes if id(node) not in gone]

    def _unread(self) -> set[str]:
        """Name the initializers that lost all their readers."""
        return {name for name, tensor in self.constants.items() if not tensor.outputs and name not in self.outputs}

    def _export(self) -> ModelProto:
        original = self.model.proto
        result = ModelProto()
        copy_fields(original, result, skip=["graph"])
        copy_fields(original.graph, result.graph, skip=["node", "initializer", "input", "value_info"])
        result.graph.node.extend(self._node(node) for node in self.graph.nodes)
        unread = self._unread()
        for tensor in original.graph.initializer:
            if tensor.name not in unread:
                values = self.replaced.get(tensor.name)
                result.graph.initializer.append(tensor if values is None else stored(tensor, values))
        for constant in self.added:
            result.graph.initializer.append(numpy_helper.from_array(constant.values, constant.name))
        for value in original.graph.input:  # older files list their initializers as inputs too
            if value.name not in unread:
                result.graph.input.append(value)
                if value.name in self.replaced and value.type.tensor_type.HasField("shape"):
                    dims = result.graph.input[-1].type.tensor_type.shape.dim
                    for dim, size in zip(dims, self.replaced[value.name].shape, strict=True):
                        dim.dim_value = size
        if original.ir_version < 4:
            for tensor in result.graph.initializer[len(result.graph.initializer) - len(self.added) :]:
                value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tuple(tensor.dims))
                result.graph.input.append(value)
        return result

    def _node(self, node: gs.Node) -> NodeProto:
        """Write a node: the original where nothing changed, else with what onnx-graphsurgeon drops carried over."""
        origin = self.origin.get(id(node))
        if origin is not None and origin.op_type == "Constant" and node.outputs[0].name in self.replaced:
            return self._constant_node(origin, self.replaced[node.outputs[0].name])
        if origin is not None and id(node) not in self.changed:
            return origin
        if origin is not None and has_body(origin):  # bodies stay, to the letter: no rule changes what is in them
            inner = NodeProto()
            copy_fields(origin, inner, skip=["input"])
            inner.input.extend(tensor.name for tensor in node.inputs)
            return inner
        proto: NodeProto = OnnxExporter.export_node(node)
        if origin is not None:
            proto.doc_string = origin.doc_string
            proto.metadata_props.extend(origin.metadata_props)
        return proto

    @staticmethod
    def _constant_node(origin: NodeProto, values: Array) -> NodeProto:
        proto = NodeProto()
        copy_fields(origin, proto, skip=["attribute"])
        held = next((a.t for a in origin.attribute if a.name == "value"), TensorProto())
        proto.attribute.append(helper.make_attribute("value", stored(held, values)))
        return proto


def stored(origin: TensorProto, values: Array) -> TensorProto:
    """Store new numbers under the name and description of another tensor."""
    tensor = numpy_helper.from_array(values, origin.name)
    tensor.doc_string = origin.doc_string
    return tensor
