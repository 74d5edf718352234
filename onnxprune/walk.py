"""Run a model piece by piece over the same samples: what one piece computes is held for the next.

Repair looks at every layer with the layers before it already repaired. Run from its inputs each time, a network of n
layers would be computed n times; piece by piece it is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from onnxprune import runtime
from onnxprune.nodes import bodies
from onnxprune.shapes import real_inputs
from onnxprune.weights import Array

HELD_BYTES = 2_000_000_000  # of activations that are held; where more would be needed, earlier nodes run again

Feeds = Callable[[], Iterable[Mapping[str, Array]]]
"""Gives the same inputs each time, batch by batch."""

Held = dict[str, list[Array]]
"""Tensors by name, batch by batch."""


@dataclass(frozen=True)
class Needs:
    """What leads to some tensors.

    Attributes:
        nodes: in the order of the graph.
        sources: names of what they start from.
        stored: names of stored tensors they read.
    """

    nodes: list[int]
    sources: list[str]
    stored: set[str]


class Walk:
    """A model on its way from its inputs to its outputs.

    Args:
        proto: the model; its weights may change between steps, but not those of nodes already passed.
        folder: where its external data lies.
        feeds: its inputs, batch by batch.
        limit: most bytes of activations to hold.
        threads: of onnxruntime; None leaves the choice to it.
        batches: how many there are, so that what will not fit is not begun; 0 where that is not known.
    """

    def __init__(
        self,
        proto: ModelProto,
        folder: Path,
        feeds: Feeds,
        limit: int = HELD_BYTES,
        threads: int | None = None,
        batches: int = 0,
    ) -> None:
        self.proto = proto
        self.folder = folder
        self.limit = limit
        self.threads = threads
        self.batches = batches
        self.nodes = list(proto.graph.node)
        self.reads = [list(_reads(node)) for node in self.nodes]
        self.maker = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.place = 0
        self._feeds = feeds
        self._inputs = {value.name: value for value in real_inputs(proto.graph)}
        self._held: Held | None = None  # None: at the inputs
        self._varies = self._data_names()

    def _data_names(self) -> set[str]:
        """Name what depends on the inputs."""
        names = set(self._inputs)
        for node, reads in zip(self.nodes, self.reads, strict=True):
            if any(name in names for name in reads):
                names.update(name for name in node.output if name)
        return names

    def live(self, index: int) -> set[str]:
        """Name what is known before a node runs and needed from then on."""
        needed = {name for reads in self.reads[index:] for name in reads if name in self._varies}
        return {name for name in needed if self.maker.get(name, -1) < index}

    def advance(self, index: int) -> None:
        """Hold what the nodes from `index` on need; where that is too much, earlier nodes will run again."""
        names = sorted(self.live(index))
        if index <= self.place or not names:
            return
        held: Held = {name: [] for name in names}
        used = 0
        for batch in self.taps(names):
            if not all(isinstance(values, np.ndarray) for values in batch.values()):
                return  # sequences and the like are computed again
            for name, values in batch.items():
                held[name].append(values)
                used += values.nbytes
            if used * max(1, self.batches / len(held[names[0]])) > self.limit:
                return
        if held[names[0]]:
            self._held, self.place = held, index

    def taps(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Compute some tensors from what is held, or all over again where that is not enough, batch by batch."""
        held = self._held
        needs = self._needs(names, self._inputs if held is None else held)
        if held is not None and not needs.stored.isdisjoint(self._inputs):
            held, needs = None, self._needs(names, self._inputs)
        wanted = [name for name in names if name not in needs.sources]
        session = None
        if wanted:
            session = runtime.Session(self._piece(needs, wanted, held), folder=self.folder, threads=self.threads)
        for batch in self._feeds() if held is None else _batches(held):
            found = {name: batch[name] for name in names if name in needs.sources}
            if session is not None:
                results = session.run({name: batch[name] for name in needs.sources}, wanted)
                found.update(zip(wanted, results, strict=True))
            yield found

    def _needs(self, names: Sequence[str], known: Container[str]) -> Needs:
        """Find what leads from what is known to some tensors."""
        nodes, sources, stored = set[int](), set[str](), set[str]()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name in known:
                sources.add(name)
            elif name in self.maker:
                index = self.maker[name]
                if index not in nodes:
                    nodes.add(index)
                    stack.extend(_reads(self.nodes[index]))  # as they are now: stored numbers may have new names
            else:
                stored.add(name)
        return Needs(sorted(nodes), sorted(sources), stored)

    def _piece(self, needs: Needs, wanted: Sequence[str], held: Held | None) -> ModelProto:
        """Build the model from what is known to some tensors."""
        original, stored = self.proto, needs.stored
        model = ModelProto(ir_version=max(original.ir_version, 4), domain=original.domain)
        model.opset_import.extend(original.opset_import)
        model.functions.extend(original.functions)
        model.graph.name = original.graph.name or "piece"
        model.graph.node.extend(self.nodes[index] for index in needs.nodes)
        model.graph.initializer.extend(t for t in original.graph.initializer if t.name in stored)
        model.graph.sparse_initializer.extend(t for t in original.graph.sparse_initializer if t.values.name in stored)
        for name in needs.sources:
            model.graph.input.append(self._inputs[name] if held is None else _like(name, held[name]))
        model.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
        return model


def _batches(held: Held) -> Iterator[dict[str, Array]]:
    for number in range(len(next(iter(held.values())))):
        yield {name: values[number] for name, values in held.items()}


def _like(name: str, batches: Sequence[Array]) -> ValueInfoProto:
    """Declare a tensor of the type of some arrays, and of their shape but for what differs from one to the next."""
    kind = helper.np_dtype_to_tensor_dtype(batches[0].dtype)
    sizes = [set(found) for found in zip(*(values.shape for values in batches), strict=True)]
    shape = [found.pop() if len(found) == 1 else f"{name}_{axis}" for axis, found in enumerate(sizes)]
    return helper.make_tensor_value_info(name, kind, shape)


def _reads(node: NodeProto) -> Iterator[str]:
    """Name what a node reads, the nodes of its bodies included."""
    yield from (name for name in node.input if name)
    for body in bodies(node):
        yield from _captured(body)


def _captured(body: GraphProto) -> Iterator[str]:
    inside = {t.name for t in body.initializer} | {t.values.name for t in body.sparse_initializer}
    inside |= {value.name for value in body.input}
    for node in body.node:
        yield from (name for name in _reads(node) if name not in inside)
        inside.update(node.output)
    yield from (value.name for value in body.output if value.name not in inside)
