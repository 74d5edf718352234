"""Branches that lose all their inner channels: what comes out of them is a constant.

A convolution or matrix product over no channels gives its bias. Where that is added to (or multiplied with) something
of full size, after nothing but operators that treat channels one by one, the whole branch is a constant per channel,
and all nodes inside it can go.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels import Channels, Group
from onnxprune.ops import RULES, rule_for
from onnxprune.ops.conv import Conv
from onnxprune.ops.elementwise import Elementwise
from onnxprune.ops.linear import Gemm, MatMul
from onnxprune.ops.normalization import BatchNormalization
from onnxprune.ops.rule import Mask
from onnxprune.shapes import is_default_domain
from onnxprune.tying import captured, constant_tensors
from onnxprune.weights import Ints

JOINS = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum"})
ENDS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
CHANNELWISE = frozenset({op for op, rule in RULES.items() if isinstance(rule, Elementwise | BatchNormalization)})


@dataclass(frozen=True)
class Branches:
    """What becomes of the nodes where some tensors lose all their numbers.

    Attributes:
        gone: nodes that compute nothing any more, or nothing that is read.
        ends: nodes over no channels, whose output is their bias.
        constant: nodes after them that compute constants.
    """

    gone: frozenset[int]
    ends: frozenset[int]
    constant: frozenset[int]


class Depth:
    """Finds which groups can lose all channels, and what that takes along.

    Args:
        channels: of the model.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.nodes: list[gs.Node] = list(channels.model.graph.nodes)
        self.outputs = {t.name for t in channels.model.graph.outputs}
        self.captured = {name for _, name in captured(channels.model)}
        names = [(key, axis) for key, axes in channels.axes.items() for axis in range(len(axes))]
        self._tensor_of_axis = [key if isinstance(key, str) else None for key, _ in names]
        self._size_of_axis = [channels.axes[key].shape[axis] for key, axis in names]
        self._shuffled = {  # tensors inside a shuffle, by what comes out of it
            self.nodes[shuffle.nodes[-1]].outputs[0].name: [self.nodes[i].outputs[0].name for i in shuffle.nodes[:-1]]
            for shuffle in channels.shuffles.values()
        }
        self._makers = {t.name: index for index, node in enumerate(self.nodes) for t in node.outputs}

    @cached_property
    def takes_along(self) -> dict[int, frozenset[int]]:
        """Name the groups that can lose all channels, any of them together, and the groups that nobody reads then.

        Two branches that are added to nothing but each other cannot both go: the first in the graph's order may.
        """
        found = {}
        ends = frozenset[int]()
        for position, group in enumerate(self.channels.groups):
            branches = self._branches_without(group)
            along = self._takes_along(position, group, branches) if branches is not None else None
            if branches is not None and along is not None and self._flow((), ends | branches.ends) is not None:
                found[position] = along
                ends |= branches.ends
        return found

    def closed(self, counts: Ints) -> Ints:
        """Set the groups to 0 that nobody reads, given those that are 0."""
        return np.where(self.unread(counts), 0, counts)

    def unread(self, counts: Ints) -> Mask:
        """Tell which groups nobody reads, given those that are 0."""
        result = np.zeros(len(counts), bool)
        for position, along in self.takes_along.items():
            if counts[position] == 0:
                result[list(along)] = True
        return result

    def branches(self, empty: Collection[str]) -> Branches | None:
        """Work out what becomes of the nodes where tensors lose all their numbers (None: it cannot be done)."""
        found = self._flow(empty)
        if found is None:
            return None
        unread = self._unread(found.gone | found.ends | found.constant)
        return Branches(found.gone | unread, found.ends, found.constant)

    def _flow(self, empty: Collection[str], given: Collection[int] = ()) -> Branches | None:
        """Follow what is lost through the graph.

        Args:
            empty: tensors that lose all their numbers.
            given: nodes that sum over nothing, beside those that read these.
        """
        gone, ends, constant = set(), set(), set()
        known: set[str] = set()
        inside = {name for last, names in self._shuffled.items() if last in empty for name in names}
        empty = {*empty, *inside}
        for index, node in enumerate(self.nodes):
            names = [t.name for t in node.outputs if t.name]
            reads_known = any(t.name in known for t in node.inputs)
            if names and all(name in empty for name in names):
                gone.add(index)
            elif index in given or any(t.name in empty for t in node.inputs):
                if reads_known or not self._is_end(index):
                    return None
                ends.add(index)
                known.update(names)
            elif reads_known:
                if self._is_join(node, known):
                    continue
                others = [t.name for t in node.inputs if t.name and t.name not in known]
                if node.op not in CHANNELWISE or not all(map(self._is_stored, others)):
                    return None
                constant.add(index)
                known.update(names)
        if known & (self.outputs | self.captured):
            return None
        return Branches(frozenset(gone), frozenset(ends), frozenset(constant))

    def _branches_without(self, group: Group) -> Branches | None:
        empty = self._empty(group)
        return self.branches(empty) if empty is not None else None

    def _takes_along(self, position: int, group: Group, branches: Branches) -> frozenset[int] | None:
        if not branches.ends:
            return None
        empty = self._empty(group) or set()
        along = set()
        for other, candidate in enumerate(self.channels.groups):
            tensors = self._activations(candidate)
            if other != position and tensors and all(self._makers.get(t) in branches.gone for t in tensors):
                along.add(other)
        emptied = empty.union(*(self._empty(self.channels.groups[other]) or () for other in along))
        costly = [index for index in branches.gone if self._has_macs(index)]
        if any(t.name not in emptied for index in costly for t in self.nodes[index].outputs):
            return None
        return frozenset(along)

    def _has_macs(self, index: int) -> bool:
        rule = rule_for(self.nodes[index])
        return rule is not None and isinstance(rule, Conv | Gemm | MatMul)

    def _activations(self, group: Group) -> list[str]:
        """List the tensors a group's channels are in, stored ones aside."""
        found = dict.fromkeys(self._tensor_of_axis[axis] for axis in group.axes)
        return [name for name in found if name is not None and name in self._makers]

    def _empty(self, group: Group) -> set[str] | None:
        """Name the tensors that have no numbers without this group (None: other channels share an axis with it)."""
        for axis, owned in zip(group.axes, group.multiplicity, strict=True):
            if self._size_of_axis[axis] != owned * group.width:
                return None
        return set(self._activations(group))

    def _is_end(self, index: int) -> bool:
        """Tell whether a node sums over nothing now, with a stored weight."""
        node = self.nodes[index]
        weights = [t.name for t in node.inputs[1:] if t.name]
        return node.op in ENDS and is_default_domain(node.domain) and all(map(self._is_stored, weights))

    def _is_stored(self, name: str) -> bool:
        return name in self.channels.model.stored or name in self.channels.aliases.root

    def _is_join(self, node: gs.Node, known: Collection[str]) -> bool:
        """Tell whether a node meets something of the full size of its output."""
        shapes = self.channels.model.shapes
        others = [t.name for t in node.inputs if t.name and t.name not in known]
        full = shapes.get(node.outputs[0].name)
        return node.op in JOINS and any(shapes.get(name) == full and name not in self._constant for name in others)

    def _unread(self, idle: Collection[int]) -> set[int]:
        """List the nodes of which nobody reads anything, once some nodes are idle."""
        unread = set(idle)
        while True:
            more = {
                index for index, node in enumerate(self.nodes) if index not in unread and self._is_unread(node, unread)
            }
            if not more:
                return unread - set(idle)
            unread |= more

    def _is_unread(self, node: gs.Node, idle: Collection[int]) -> bool:
        """Tell whether all who read a node are idle; what nobody read in the first place is left alone."""
        places = [self._place.get(id(reader)) for tensor in node.outputs for reader in tensor.outputs]
        is_output = any(tensor.name in self.outputs or tensor.name in self.captured for tensor in node.outputs)
        return bool(places) and not is_output and all(place in idle for place in places)

    @cached_property
    def _constant(self) -> frozenset[str]:
        return constant_tensors(self.channels.model)

    @cached_property
    def _place(self) -> dict[int, int]:
        return {id(node): index for index, node in enumerate(self.nodes)}
