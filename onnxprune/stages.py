"""The multi-stage graph of a network: operations seen from inside, blocks of operations, and groups of channels.

After Yu, Mazaheri and Jannesari, "Topology-Aware Network Pruning using Multi-stage Graph Embedding and Reinforcement
Learning" (GNN-RL, arXiv 2102.03214): what repeats is a small graph of its own, embedded once, and its embedding belongs
to the edges of the stage above. Here the stages follow from the graph of any model and from its channels.

1. ``primitive``: an operation takes channels apart, makes every new one of some of them, and puts these together.
2. ``operation``: tensors, and the operations between them; one small graph for each block that is unlike the others.
3. ``group``: the groups that a search decides on, and the operations that read one and make another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.blocks import FAMILIES, find_blocks
from onnxprune.channels import Channels
from onnxprune.extents import Extent, Extents, in_doublings, in_tens
from onnxprune.groups import GROUP_EDGE_FEATURES, GROUP_FEATURES, Groups
from onnxprune.metrics import Costs
from onnxprune.weights import Floats, Ints

ROUNDS = 4  # how far apart tensors may be for a difference to tell blocks apart that have the same parts
PARTLESS = frozenset({"concat", "select", "reshape", "resize", "quantize", "other"})  # these only move numbers

PRIMITIVE_FEATURES = ("source", "slices", "filtered", "sink", "how many")
PRIMITIVE_EDGE_FEATURES = ("into each", "kernel", "multiplies")
TENSOR_FEATURES = ("width", "kept width", "kept share", "positions", "enters", "leaves")
OPERATION_FEATURES = (
    *FAMILIES,
    *("kernel", "stride", "dilation", "parts"),
    *("macs", "original macs", "params", "original params", "kept macs"),
)

FEATURES = {
    "primitive": (PRIMITIVE_FEATURES, PRIMITIVE_EDGE_FEATURES),
    "operation": (TENSOR_FEATURES, OPERATION_FEATURES),
    "group": (GROUP_FEATURES, GROUP_EDGE_FEATURES),
}
"""What the nodes and the edges of each stage are described by."""

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Stage:
    """One level of the graph: small graphs side by side, each of which is embedded once.

    Attributes:
        name: of the level.
        nodes: (nodes, node features) float32.
        edges: (2, edges) source and target of each.
        features: (edges, edge features) float32.
        part: (edges,) the graph of the stage before whose embedding belongs to the edge, -1 for none.
        graph: (nodes,) the graph of this stage that a node belongs to.
        count: number of graphs.
    """

    name: str
    nodes: npt.NDArray[np.float32]
    edges: Ints
    features: npt.NDArray[np.float32]
    part: Ints
    graph: Ints
    count: int


class Stages:
    """The multi-stage graph of one model, at any widths.

    Args:
        channels: what can be cut from the model.
        costs: of the same channels.
        importance: per group the worth of each channel; empty where nothing is known of it.

    Attributes:
        blocks: the operations, in blocks.
        extents: how large everything is.
        groups: the nodes of the last stage.
    """

    def __init__(self, channels: Channels, costs: Costs, importance: Sequence[Floats] = ()) -> None:
        self.channels = channels
        self.blocks = find_blocks(channels, {node.node for node in costs.per_node()})
        self.extents = Extents(channels, costs, self.blocks.operations)
        self.groups = Groups(channels, self.blocks, self.extents, importance)
        self._widths = np.asarray([group.width for group in channels.groups], np.int64)
        self._set_up_edges()
        self._set_up_nodes()

    def _set_up_edges(self) -> None:
        """Draw an edge from all that an operation reads to its first output, and to the others from the first."""
        number = self.extents.tensors
        edges = [
            (place, number[source], number[target])
            for place, operation in enumerate(self.blocks.operations)
            for source, target in (
                *((name, operation.makes[0]) for name in operation.reads),
                *((operation.reads[0], name) for name in operation.makes[1:]),
            )
        ]
        table = np.asarray(edges, np.int64).reshape(-1, 3)
        self._operation = table[:, 0]
        block = self.blocks.block[self._operation]
        ends = block * max(len(number), 1) + table[:, 1:].T  # a tensor is a node of each block that knows it
        nodes, ends = np.unique(ends, return_inverse=True)
        self._edges = ends.reshape(2, -1)
        self._block, self._tensor = np.divmod(nodes, max(len(number), 1))

    def _set_up_nodes(self) -> None:
        """Describe what no plan changes."""
        operations, original = self.blocks.operations, self.extents.original
        attributes = [(FAMILIES.index(o.family), o.kernel, o.stride, o.dilation, o.parts) for o in operations]
        table = np.asarray(attributes, np.float64).reshape(-1, 5)
        self._kind = _ranks(np.column_stack([table, original.macs, original.params]))
        self._family = np.zeros((len(operations), len(FAMILIES)))
        self._family[np.arange(len(operations)), table[:, 0].astype(np.int64)] = 1
        self._attributes = np.column_stack([in_doublings(c, u) for c, u in zip(table.T[1:], (3, 2, 2, 4), strict=True)])
        self._kernel = table[:, 1]
        self._has_part = np.asarray([operation.family not in PARTLESS for operation in operations], bool)
        number = self.extents.tensors
        self._read = np.asarray([number[operation.reads[0]] for operation in operations], np.int64)
        self._made = np.asarray([number[operation.makes[0]] for operation in operations], np.int64)
        source, target = self._edges
        self._enters, self._leaves = (np.ones(len(self._tensor)) for _ in range(2))
        self._enters[target] = 0
        self._leaves[source] = 0
        self._sort = _ranks(np.column_stack([self.extents.places, original.widths]))[self._tensor]

    def at(self, counts: npt.ArrayLike | None = None, extra: npt.ArrayLike | None = None) -> tuple[Stage, ...]:
        """Draw the network as cut to some widths.

        Args:
            counts: (groups,) channels kept; all of them if left out.
            extra: (groups, 3) what the caller knows of each group beside.

        Returns:
            The stages; each belongs to the edges of the next.
        """
        kept = self._counts(counts)
        extent = self.extents.of(kept)
        motif, chosen = self._motifs(extent)
        primitives, part = self._primitives(extent, chosen)
        return primitives, self._operations(extent, motif, chosen, part), self._groups(kept, extent, motif, extra)

    def motifs(self, counts: npt.ArrayLike | None = None) -> Ints:
        """Tell for each block which graph of the stage of operations it is, (blocks,)."""
        return self._motifs(self.extents.of(self._counts(counts)))[0]

    def _counts(self, counts: npt.ArrayLike | None) -> Ints:
        given = self._widths if counts is None else np.asarray(counts, np.int64)
        return np.clip(given, 0, self._widths)

    def _motifs(self, extent: Extent) -> tuple[Ints, Ints]:
        """Find the blocks that are alike: the motif of each block, and the first block of each motif.

        Blocks are alike where they look the same from every node (Weisfeiler and Leman); all is compared in integers.
        """
        source, target = self._edges
        node = _mixed(self._sort, _integers(extent.widths)[self._tensor])
        operation = _mixed(self._kind, _integers(extent.macs), _integers(extent.params))
        edge = operation[self._operation]
        for _ in range(ROUNDS):
            before, after = np.zeros_like(node), np.zeros_like(node)
            np.add.at(before, target, _mixed(node[source], edge))
            np.add.at(after, source, _mixed(node[target], edge))
            node = _mixed(node, before, after)
        block = np.zeros(self.blocks.count, np.uint64)
        np.add.at(block, self._block, node)
        _, first, motif = np.unique(block, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return rank[motif], first[order]

    def _primitives(self, extent: Extent, chosen: Ints) -> tuple[Stage, Ints]:
        """Draw operations from inside; those of the same numbers are one graph. Also tells which is whose, or -1.

        The paper has a node for each channel and filter. They differ in nothing, so a node here stands for all of its
        role and says how many they are.
        """
        picked = np.flatnonzero(np.isin(self.blocks.block, chosen) & self._has_part)
        read, made = self._read[picked], self._made[picked]
        made_numbers = np.maximum(extent.widths[made] * self.extents.places[made], 1)
        summed = np.maximum(extent.macs[picked] / made_numbers / self._kernel[picked], 1)
        multiplies = extent.macs[picked] > 0
        rows = np.column_stack([extent.widths[read], extent.widths[made], summed, self._kernel[picked], multiplies])
        found, part_of = np.unique(rows, axis=0, return_inverse=True)
        part = np.full(len(self.blocks.operations), -1, np.int64)
        part[picked] = part_of.reshape(-1)
        count, one = len(found), np.ones(len(found))
        slices, filtered, summed, kernel, multiplies = found.T
        roles = np.tile(np.eye(4), (count, 1))
        how_many = in_doublings(np.column_stack([one, slices, filtered, one]), 4)
        into_each = in_doublings(np.column_stack([one, summed, filtered]), 4)
        middle = np.column_stack([in_doublings(kernel, 3), multiplies])
        features = np.concatenate([into_each[..., None], np.zeros((count, 3, 2))], axis=2)
        features[:, 1, 1:] = middle
        first = 4 * np.repeat(np.arange(count), 3) + np.tile(np.arange(3), count)
        nodes = np.column_stack([roles, how_many.reshape(-1)])
        nothing = np.full(3 * count, -1, np.int64)
        graph = np.repeat(np.arange(count), 4)
        edges = np.stack([first, first + 1])
        return _stage("primitive", nodes, edges, features.reshape(-1, 3), nothing, graph, count), part

    def _operations(self, extent: Extent, motif: Ints, chosen: Ints, part: Ints) -> Stage:
        """Draw the first block of each motif: what it reads and makes, and the operations between."""
        is_chosen = np.zeros(self.blocks.count, bool)
        is_chosen[chosen] = True
        node = np.flatnonzero(is_chosen[self._block])
        edge = np.flatnonzero(is_chosen[self.blocks.block[self._operation]])
        tensor, operation = self._tensor[node], self._operation[edge]
        original = self.extents.original
        nodes = [
            in_doublings(original.widths[tensor], 4),
            in_doublings(extent.widths[tensor], 4),
            extent.widths[tensor] / np.maximum(original.widths[tensor], 1),
            in_doublings(self.extents.places[tensor], 6),
            self._enters[node],
            self._leaves[node],
        ]
        features = np.column_stack([self._family, self._attributes, *self._prices(extent)])[operation]
        place = np.zeros(len(self._block), np.int64)
        place[node] = np.arange(len(node))
        edges = place[self._edges[:, edge]]
        graph = motif[self._block[node]]
        return _stage("operation", np.column_stack(nodes), edges, features, part[operation], graph, len(chosen))

    def _prices(self, extent: Extent) -> list[Floats]:
        """Tell what operations cost, now and uncut."""
        macs, params, original = self.extents.macs, self.extents.params, self.extents.original
        return [
            in_tens(extent.macs, macs),
            in_tens(original.macs, macs),
            in_tens(extent.params, params),
            in_tens(original.params, params),
            extent.macs / np.maximum(original.macs, 1),
        ]

    def _groups(self, kept: Ints, extent: Extent, motif: Ints, extra: npt.ArrayLike | None) -> Stage:
        """Draw the groups, and the operations between them."""
        groups = self.groups
        block = np.append(self.blocks.block, -1)[groups.operation]
        part = np.append(motif, -1)[block]
        nodes = groups.node_features(kept, extent, extra)
        graph = np.zeros(len(kept), np.int64)
        return _stage("group", nodes, groups.edges, groups.edge_features(extent), part, graph, 1)


def _stage(name: str, nodes: Floats, edges: Ints, features: Floats, part: Ints, graph: Ints, count: int) -> Stage:
    return Stage(name, nodes.astype(np.float32), edges, features.astype(np.float32), part, graph, count)


def _ranks(rows: Floats) -> Ints:
    """Number rows so that equal ones have equal numbers."""
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _integers(values: Floats) -> Ints:
    return np.rint(values).astype(np.int64)


def _mixed(*columns: Ints | Hashes) -> Hashes:
    """Sum up some integers, row by row, in one of 64 bits (splitmix64)."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
