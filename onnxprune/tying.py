"""Let every node speak: number the atoms, collect what rules tie and freeze, in the order of the graph.

What a node does not mention stays: silence means frozen. Small parameters that several nodes share get atoms of their
own for each reader, because exporters merge equal values of strangers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import InputError, at
from onnxprune.model import Model
from onnxprune.ops import rule_for
from onnxprune.ops.rule import (
    Allowed,
    Atoms,
    Axes,
    Balance,
    ContradictionError,
    Key,
    Known,
    Mask,
    Regroup,
    Ties,
    Unknown,
    View,
)
from onnxprune.ops.shuffle import Shuffle, find_shuffles
from onnxprune.shapes import Shape, is_default_domain


@dataclass(frozen=True)
class Reason:
    """Why something stays: the node that holds it (-1: none) and what to tell the user."""

    node: int
    text: str


@dataclass(frozen=True)
class Aliases:
    """Stored tensors under other names, through Identity nodes.

    Attributes:
        root: the stored tensor behind a name.
        nodes: the Identity nodes.
    """

    root: dict[str, str]
    nodes: frozenset[int]


class Tying:
    """Collects ties and frozen atoms over the whole graph, in its order.

    Args:
        model: the model.
        keep: patterns of node names to leave alone.
        approximate: whether axes that normalisations average over may shrink.
        slots: nodes that lose the inside of their groups, instead of whole groups.
    """

    def __init__(self, model: Model, keep: Sequence[str], approximate: bool, slots: Container[int]) -> None:
        self.model = model
        self.keep = keep
        self.approximate = approximate
        self.slots = slots
        self.constant = constant_tensors(model)
        self.aliases = _aliases(model)
        self.sized = _sized(model)
        self.captured = captured(model)
        elsewhere = {t.name for t in model.graph.outputs} | {name for _, name in self.captured}
        self.shuffles = find_shuffles(model, elsewhere)
        inside = {index for shuffle in self.shuffles.values() for index in shuffle.nodes[:-1]}
        self.skipped = model.size_nodes | self.aliases.nodes | _stored_nodes(model) | inside
        self.readers = _private_readers(model, self.aliases, self.skipped, elsewhere)
        self.axes: dict[Key, Axes] = {}
        self.total = 0
        self._number_atoms()
        self.fixed = np.zeros(self.total, bool)
        self.zero = self._stored_atoms()
        self.told = np.full(self.total, -1, np.int64)  # the node that said which slices are zero
        self.seen = np.full(self.total, -1, np.int64)
        self.reason_of = np.full(self.total, -1, np.int64)
        self.reasons: list[Reason] = []
        self.left: list[Atoms] = []
        self.right: list[Atoms] = []
        self.averaged: dict[int, list[Atoms]] = {}
        self.regroups: list[Regroup] = []
        self.balances: list[Balance] = []
        self._freeze_computed()

    def _freeze_computed(self) -> None:
        """Freeze what cannot be sliced: what shape arithmetic gives, should it be a weight, and sparse tensors."""
        for index in sorted(self.model.size_nodes):
            for tensor in self.model.graph.nodes[index].outputs:
                if tensor.name in self.axes:
                    axes = self.axes[tensor.name]
                    self.freeze(np.arange(axes.start, axes.end), Reason(index, "it computes with sizes"))
        for sparse in self.model.proto.graph.sparse_initializer:
            self.freeze_tensor(sparse.values.name, Reason(-1, "it is stored as a sparse tensor"))

    def _number_atoms(self) -> None:
        """Number the atoms of all tensors that rules see: what nodes make first, then what the model is given."""
        model = self.model
        visited = [i for i in range(len(model.graph.nodes)) if i not in self.skipped]
        made = [t.name for i in visited for t in model.graph.nodes[i].outputs]
        read = [self._inputs(i) for i in visited]
        given = [self.aliases.root.get(t.name, t.name) for tensors in read for t in tensors]
        for name in dict.fromkeys([*made, *given]):
            if name and name in model.shapes and name not in self.readers:
                self._add(name, model.shapes[name])
        for name, readers in self.readers.items():
            for reader in readers:
                self._add(reader, model.shapes[name])

    def _inputs(self, index: int) -> list[gs.Tensor]:
        """List what a node reads; the last node of a shuffle stands for all of it."""
        nodes = self.model.graph.nodes
        if index in self.shuffles:
            return [nodes[self.shuffles[index].nodes[0]].inputs[0]]
        return list(nodes[index].inputs)

    def _add(self, key: Key, shape: Shape) -> None:
        self.axes[key] = Axes(key, shape, self.total)
        self.total = self.axes[key].end

    def _stored_atoms(self) -> Mask:
        """Tell which atoms belong to stored tensors, whose slices can be zeroed."""
        stored = np.zeros(self.total, bool)
        for key, axes in self.axes.items():
            if isinstance(key, tuple) or key in self.model.stored:
                stored[axes.start : axes.end] = True
        return stored

    def view(self, index: int) -> View:
        """Look at one node with the atoms of its tensors."""
        return view_of(self.model, self.axes, self.aliases, self.shuffles, index)

    def freeze(self, atoms: Atoms, reason: Reason) -> None:
        """Freeze atoms; the first reason given is the one that is told."""
        fresh = atoms[self.reason_of[atoms] < 0]
        if len(fresh):
            self.fixed[fresh] = True
            self.reason_of[fresh] = len(self.reasons)
            self.reasons.append(reason)

    def freeze_tensor(self, name: str, reason: Reason) -> None:
        """Freeze a whole tensor, whichever name it goes by, and what it tells the size of."""
        for found in (name, *self.sized.get(name, ())):
            axes = self.axes.get(self.aliases.root.get(found, found))
            if axes is not None:
                self.freeze(np.arange(axes.start, axes.end), reason)

    def visit(self, index: int) -> None:
        """Let the rule of a node speak; what it does not mention freezes.

        Raises:
            InputError: the shapes of a node contradict each other.
        """
        node = self.model.graph.nodes[index]
        view = self.view(index)
        rule = self.shuffles.get(index) or rule_for(node)
        known = Known(self.fixed, self.zero, self.constant)
        allowed = Allowed(self.approximate, index in self.slots)
        ties = Ties(view, known, allowed)
        why = self._mute(node, view)
        if why is None and rule is not None:
            try:
                rule.ties(ties)
                why = rule.why
            except ContradictionError as error:
                raise InputError(f"{at(node.name, node.op)}: {error}; the file is broken, export it again") from error
            except Unknown as error:
                ties, why = Ties(view, known, allowed), str(error)
            except (IndexError, TypeError, ValueError) as error:  # untrusted files hold nodes that make no sense
                ties, why = Ties(view, known, allowed), f"its attributes make no sense to its rule: {error}"
        self._record(ties, rule.zero if rule is not None else "never", why or "")

    def _mute(self, node: gs.Node, view: View) -> str | None:
        """Say why no rule may speak for this node (None: one may)."""
        if any(fnmatchcase(node.name, pattern) for pattern in self.keep):
            return "kept as asked"
        if view.index in self.shuffles:
            return None
        if rule_for(node) is None:
            name = f"{'' if is_default_domain(node.domain) else f'{node.domain}.'}{node.op}"
            if any((node.op, node.domain or "") == (f.name, f.domain) for f in self.model.proto.functions):
                return f"{name} is a function of the model, which onnx.inliner.inline_local_functions opens"
            return f"there is no rule for {name}"
        tensors = [*zip(node.inputs, view.inputs, strict=True), *zip(node.outputs, view.outputs, strict=True)]
        unknown = next((tensor.name for tensor, axes in tensors if tensor.name and axes is None), None)
        return None if unknown is None else f"the shape of {unknown!r} is unknown"

    def _record(self, ties: Ties, zero: str, why: str) -> None:
        for left, right in ties.pairs:
            self.left.append(left)
            self.right.append(right)
            fixed = self.fixed[left] | self.fixed[right]
            if fixed.any():
                self.fixed[left] = fixed
                self.fixed[right] = fixed
            self.seen[left] = ties.index
            self.seen[right] = ties.index
        for atoms in ties.mentioned:
            self.seen[atoms] = ties.index
        for regroup in ties.regroups:
            self.regroups.append(regroup)
            for atoms in (*regroup.left, *regroup.right):
                self.seen[atoms] = ties.index
        for balance in ties.balances:
            self.balances.append(balance)
            self.seen[balance.blocks] = ties.index
            if balance.slots is not None:
                self.seen[balance.slots] = ties.index
        for atoms in ties.approximated:
            self.averaged.setdefault(ties.index, []).append(atoms)
            self.seen[atoms] = ties.index
        for atoms, reason in ties.frozen:
            self.seen[atoms] = ties.index
            self.freeze(atoms, Reason(ties.index, reason))
        for axes in (*ties.inputs, *ties.outputs):
            if axes is not None:
                silent = axes.start + np.flatnonzero(self.seen[axes.start : axes.end] != ties.index)
                self.freeze(silent, Reason(ties.index, why))
        self._record_zeros(ties, zero)

    def _record_zeros(self, ties: Ties, zero: str) -> None:
        """Note which slices of the outputs are zero where the weights of their channels are."""
        made = [axes for axes in ties.outputs if axes is not None]
        for pair in ties.pairs if zero != "never" else ():
            for after, before in (pair, pair[::-1]):
                if len(after) and any(axes.start <= after[0] < axes.end for axes in made):
                    known, so_far = self.zero[before], self.zero[after]
                    combined = so_far & known if zero == "all" else so_far | known
                    self.zero[after] = np.where(self.told[after] == ties.index, combined, known)
                    self.told[after] = ties.index
                    break
        for atoms, is_zero in ties.zeroed:
            self.zero[atoms] = is_zero


def captured(model: Model) -> list[tuple[int, str]]:
    """List what the bodies of If, Loop and Scan nodes use from outside: (node, tensor name)."""
    found = []
    for index, node in enumerate(model.graph.nodes):
        for body in node.subgraphs(recursive=True):
            used = [t.name for inner in body.nodes for t in inner.inputs] + [t.name for t in body.outputs]
            found += [(index, name) for name in dict.fromkeys(used)]
    return found


def constant_tensors(model: Model) -> frozenset[str]:
    """Name the tensors that follow from stored numbers alone."""
    constant = set(model.stored)
    for node in model.graph.nodes:
        names = [t.name for t in node.inputs if t.name]
        if names and all(name in constant for name in names) and not any(node.subgraphs()):
            constant.update(t.name for t in node.outputs)
    return frozenset(constant)


def _stored_nodes(model: Model) -> frozenset[int]:
    """Find the Constant nodes: what they hold counts as stored, like an initializer."""
    nodes = enumerate(model.graph.nodes)
    return frozenset(i for i, node in nodes if not node.inputs and any(t.name in model.stored for t in node.outputs))


def _sized(model: Model) -> dict[str, frozenset[str]]:
    """Name for each tensor of shape arithmetic the tensors whose sizes it follows from."""
    sized: dict[str, frozenset[str]] = {}
    for index in sorted(model.size_nodes):
        node = model.graph.nodes[index]
        names = [t.name for t in node.inputs]
        if node.op not in ("Shape", "Size"):
            names = [name for source in names for name in sized.get(source, ())]
        sized.update((t.name, frozenset(names)) for t in node.outputs)
    return sized


def _aliases(model: Model) -> Aliases:
    """Follow Identity nodes on stored tensors: exporters merge equal parameters of strangers that way."""
    root: dict[str, str] = {}
    nodes = set()
    for index, node in enumerate(model.graph.nodes):
        if node.op == "Identity" and is_default_domain(node.domain):
            source = root.get(node.inputs[0].name, node.inputs[0].name)
            if source in model.stored:
                root[node.outputs[0].name] = source
                nodes.add(index)
    return Aliases(root, frozenset(nodes))


def _private_readers(
    model: Model, aliases: Aliases, skipped: frozenset[int], elsewhere: Set[str]
) -> dict[str, list[tuple[int, int]]]:
    """Find small parameters that several inputs share: equal values merged by an exporter must not tie strangers."""
    readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, node in enumerate(model.graph.nodes):
        if index in skipped:
            continue
        for position, tensor in enumerate(node.inputs):
            root = aliases.root.get(tensor.name, tensor.name)
            if root in model.stored:
                readers[root].append((index, position))
    measured = {t.name for i in model.size_nodes for t in model.graph.nodes[i].inputs}  # each has one shape
    bound_elsewhere = elsewhere | measured
    bound_elsewhere |= {aliases.root[name] for name in bound_elsewhere if name in aliases.root}
    return {
        name: found
        for name, found in readers.items()
        if len(found) > 1 and sum(size > 1 for size in model.shapes[name]) == 1 and name not in bound_elsewhere
    }


def view_of(model: Model, axes: dict[Key, Axes], aliases: Aliases, shuffles: Mapping[int, Shuffle], index: int) -> View:
    """Look at one node with the atoms of its tensors; the last node of a shuffle stands for all of it."""
    node = model.graph.nodes[index]
    if index in shuffles:
        start = model.graph.nodes[shuffles[index].nodes[0]].inputs[0].name
        return View(model, index, [axes.get(start)], [axes.get(node.outputs[0].name)])
    inputs = []
    for position, tensor in enumerate(node.inputs):
        own = axes.get((index, position))
        inputs.append(own if own is not None else axes.get(aliases.root.get(tensor.name, tensor.name)))
    return View(model, index, inputs, [axes.get(tensor.name) for tensor in node.outputs])
