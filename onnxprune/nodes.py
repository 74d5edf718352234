"""Nodes of a graph and of the bodies inside it, and their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from onnx import FunctionProto, GraphProto, NodeProto, helper


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """Give the bodies of an If, Loop or Scan node."""
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def has_body(node: NodeProto) -> bool:
    """Tell whether a node has graphs inside, as If, Loop and Scan have."""
    return next(bodies(node), None) is not None


def every_node(graph: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Give the nodes of a graph or function and of the bodies inside it."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from every_node(body)


def every_body(graph: GraphProto | FunctionProto) -> Iterator[GraphProto]:
    """Give the bodies inside a graph or function, and those inside them."""
    for node in every_node(graph):
        yield from bodies(node)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Give the attributes of a node by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def uses(graph: GraphProto) -> Counter[str]:
    """Count how often each name is read in a graph and in the bodies inside it, or is an output of theirs."""
    found = Counter(value.name for value in graph.output)
    for node in graph.node:
        found.update(node.input)
        for body in bodies(node):
            found += uses(body)
    return found


def sort_nodes(graph: GraphProto) -> None:
    """Put nodes that stand behind one that reads them before it, and move no others.

    ONNX demands that order; some converters, onnxruntime's to half precision among them, append nodes at the end, and
    onnxruntime itself does not mind. Where nodes read each other in a circle all stay where they are.
    """
    maker = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    needs = [{maker[name] for name in _read_by(node) if name in maker} for node in graph.node]
    if all(at > max(need, default=-1) for at, need in enumerate(needs)):
        return
    order: dict[int, None] = {}
    for at in range(len(needs)):
        path = {} if at in order else {at: None}  # each reads the next
        while path:
            last = next(reversed(path))
            missing = min(needs[last] - order.keys(), default=None)
            if missing is None:
                order[last] = path.pop(last)
            elif missing in path:
                return
            else:
                path[missing] = None
    nodes = [NodeProto.FromString(graph.node[at].SerializeToString()) for at in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _read_by(node: NodeProto) -> Iterator[str]:
    """Name what a node reads, and the bodies inside it."""
    yield from node.input
    for body in bodies(node):
        for inner in body.node:
            yield from _read_by(inner)
        yield from (value.name for value in body.output)
