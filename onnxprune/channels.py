"""The algorithm: every index of every axis of every tensor is an atom; what nodes tie together is a channel.

A rule (see `onnxprune.ops`) says for one node which atoms can only exist together. The connected components of all ties
are the channels. What a node does not mention stays: silence means frozen. Channels that touch the same axes equally
often form a group, the one thing a search decides on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.errors import InputError
from onnxprune.model import Model
from onnxprune.ops import rule_for
from onnxprune.ops.rule import Atoms, Axes, Key, Mask, Ties, Unknown, View
from onnxprune.shapes import Shape, is_default_domain

FROZEN = -1


@dataclass(frozen=True)
class Reason:
    """Why something stays: the node that holds it (-1: none) and what to tell the user."""

    node: int
    text: str


@dataclass(frozen=True)
class Group:
    """Channels that touch exactly the same axes equally often: one knob.

    Attributes:
        name: the node that makes these channels.
        channels: ids of its channels, in the order of their first atom.
        axes: ids of the axes its channels touch.
        multiplicity: how many atoms of each of these axes one channel owns.
    """

    name: str
    channels: npt.NDArray[np.int64]
    axes: npt.NDArray[np.int64]
    multiplicity: npt.NDArray[np.int64]

    @property
    def width(self) -> int:
        """Number of channels."""
        return len(self.channels)


@dataclass(frozen=True)
class Aliases:
    """Stored tensors under other names, through Identity nodes.

    Attributes:
        root: the stored tensor behind a name.
        nodes: the Identity nodes.
    """

    root: dict[str, str]
    nodes: frozenset[int]


@dataclass(frozen=True)
class Channels:
    """What can be cut from a model, and why the rest cannot.

    Attributes:
        model: the model this was found in.
        axes: the atoms of every tensor, by key.
        aliases: which tensors are stored ones under another name.
        readers: for each small shared parameter, the inputs that got a copy of their own.
        channel_of: channel id of each atom, `FROZEN` where it must stay.
        axis_of: axis id of each atom; axis ids count up tensor by tensor.
        groups: the knobs, in the order of the graph.
        reason_of: index into `reasons` of each atom's channel, -1 where it is free.
        reasons: why things are frozen.
    """

    model: Model
    axes: dict[Key, Axes]
    aliases: Aliases
    readers: dict[str, list[tuple[int, int]]]
    channel_of: npt.NDArray[np.int64]
    axis_of: npt.NDArray[np.int64]
    groups: tuple[Group, ...]
    reason_of: npt.NDArray[np.int64]
    reasons: tuple[Reason, ...]

    @property
    def count(self) -> int:
        """Number of channels, frozen ones aside."""
        return int(self.channel_of.max(initial=FROZEN)) + 1

    def view(self, index: int) -> View:
        """Look at one node with the atoms of its tensors."""
        return view_of(self.model, self.axes, self.aliases, index)

    def reason(self, atoms: Atoms) -> Reason | None:
        """Say why these atoms stay (None: at least one is free)."""
        found = self.reason_of[atoms]
        return self.reasons[int(found.min())] if len(found) and (found >= 0).all() else None


class _Builder:
    """Collects ties and frozen atoms over the whole graph, in its order."""

    def __init__(self, model: Model, keep: Sequence[str]) -> None:
        self.model = model
        self.keep = keep
        self.constant = constant_tensors(model)
        self.aliases = _aliases(model)
        self.skipped = model.size_nodes | self.aliases.nodes | _stored_nodes(model)
        self.readers = _private_readers(model, self.aliases, self.skipped)
        self.axes: dict[Key, Axes] = {}
        self.total = 0
        self._number_atoms()
        self.fixed = np.zeros(self.total, bool)
        self.seen = np.full(self.total, -1, np.int64)
        self.reason_of = np.full(self.total, -1, np.int64)
        self.reasons: list[Reason] = []
        self.left: list[Atoms] = []
        self.right: list[Atoms] = []

    def _number_atoms(self) -> None:
        """Number the atoms of all tensors that rules see: what nodes make first, then what the model is given."""
        model = self.model
        visited = [node for i, node in enumerate(model.graph.nodes) if i not in self.skipped]
        made = [t.name for node in visited for t in node.outputs]
        given = [self.aliases.root.get(t.name, t.name) for node in visited for t in node.inputs]
        for name in dict.fromkeys([*made, *given]):
            if name and name in model.shapes and name not in self.readers:
                self._add(name, model.shapes[name])
        for name, readers in self.readers.items():
            for reader in readers:
                self._add(reader, model.shapes[name])

    def _add(self, key: Key, shape: Shape) -> None:
        self.axes[key] = Axes(key, shape, self.total)
        self.total = self.axes[key].end

    def freeze(self, atoms: Atoms, reason: Reason) -> None:
        """Freeze atoms; the first reason given is the one that is told."""
        fresh = atoms[self.reason_of[atoms] < 0]
        if len(fresh):
            self.fixed[fresh] = True
            self.reason_of[fresh] = len(self.reasons)
            self.reasons.append(reason)

    def freeze_tensor(self, name: str, reason: Reason) -> None:
        """Freeze a whole tensor, whichever name it goes by."""
        axes = self.axes.get(self.aliases.root.get(name, name))
        if axes is not None:
            self.freeze(np.arange(axes.start, axes.end), reason)

    def visit(self, index: int) -> None:
        """Let the rule of a node speak; what it does not mention freezes."""
        node = self.model.graph.nodes[index]
        view = view_of(self.model, self.axes, self.aliases, index)
        rule = rule_for(node)
        ties = Ties(view, self.fixed, self.constant)
        why = self._mute(node, view)
        if why is None and rule is not None:
            try:
                rule.ties(ties)
                why = rule.why
            except Unknown as error:
                ties, why = Ties(view, self.fixed, self.constant), str(error)
        self._record(ties, why or "")

    def _mute(self, node: gs.Node, view: View) -> str | None:
        """Say why no rule may speak for this node (None: one may)."""
        if any(fnmatchcase(node.name, pattern) for pattern in self.keep):
            return "kept as asked"
        if rule_for(node) is None:
            return f"there is no rule for {'' if is_default_domain(node.domain) else f'{node.domain}.'}{node.op}"
        tensors = [*zip(node.inputs, view.inputs, strict=True), *zip(node.outputs, view.outputs, strict=True)]
        unknown = next((tensor.name for tensor, axes in tensors if tensor.name and axes is None), None)
        return None if unknown is None else f"the shape of {unknown!r} is unknown"

    def _record(self, ties: Ties, why: str) -> None:
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
        for atoms, reason in ties.frozen:
            self.seen[atoms] = ties.index
            self.freeze(atoms, Reason(ties.index, reason))
        for axes in (*ties.inputs, *ties.outputs):
            if axes is not None:
                silent = axes.start + np.flatnonzero(self.seen[axes.start : axes.end] != ties.index)
                self.freeze(silent, Reason(ties.index, why))


def find_channels(model: Model, keep: Sequence[str] = ()) -> Channels:
    """Find what can be cut from a model.

    Args:
        model: the loaded model.
        keep: patterns (``*``, ``?``) of node names to leave alone.

    Raises:
        InputError: a pattern matches no node.
    """
    for pattern in keep:
        if not any(fnmatchcase(node.name, pattern) for node in model.graph.nodes):
            raise InputError(f"--keep {pattern!r} matches no node; `onnxprune inspect` lists the names")
    builder = _Builder(model, keep)
    for name in model.bound:
        builder.freeze_tensor(name, Reason(-1, f"model input {name!r}"))
    for index in range(len(model.graph.nodes)):
        if index not in builder.skipped:
            builder.visit(index)
    for tensor in model.graph.outputs:
        builder.freeze_tensor(tensor.name, Reason(-1, f"model output {tensor.name!r}"))
    for index, name in _captured(model):
        builder.freeze_tensor(name, Reason(index, "used inside its body"))
    return _components(builder)


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
    return frozenset(i for i, node in nodes if not node.inputs and node.outputs[0].name in model.stored)


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


def _private_readers(model: Model, aliases: Aliases, skipped: frozenset[int]) -> dict[str, list[tuple[int, int]]]:
    """Find small parameters that several inputs share: equal values merged by an exporter must not tie strangers."""
    readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, node in enumerate(model.graph.nodes):
        if index in skipped:
            continue
        for position, tensor in enumerate(node.inputs):
            root = aliases.root.get(tensor.name, tensor.name)
            if root in model.stored:
                readers[root].append((index, position))
    bound_elsewhere = {t.name for t in model.graph.outputs} | {name for _, name in _captured(model)}
    bound_elsewhere |= {aliases.root[name] for name in bound_elsewhere if name in aliases.root}
    return {
        name: found
        for name, found in readers.items()
        if len(found) > 1 and sum(size > 1 for size in model.shapes[name]) == 1 and name not in bound_elsewhere
    }


def _captured(model: Model) -> list[tuple[int, str]]:
    """List what the bodies of If, Loop and Scan nodes use from outside: (node, tensor name)."""
    found = []
    for index, node in enumerate(model.graph.nodes):
        for body in node.subgraphs(recursive=True):
            used = [t.name for inner in body.nodes for t in inner.inputs] + [t.name for t in body.outputs]
            found += [(index, name) for name in dict.fromkeys(used)]
    return found


def _components(builder: _Builder) -> Channels:
    total = builder.total
    left = np.concatenate([*builder.left, np.empty(0, np.int64)])
    right = np.concatenate([*builder.right, np.empty(0, np.int64)])
    ones = np.ones(len(left), bool)
    count, component = connected_components(coo_array((ones, (left, right)), shape=(total, total)), directed=False)
    label = component.astype(np.int64)
    frozen = np.full(count, -1, np.int64)  # per component the first reason, in the order of the graph
    atoms = np.flatnonzero(builder.reason_of >= 0)[::-1]
    order = np.argsort(builder.reason_of[atoms], kind="stable")[::-1]
    frozen[label[atoms[order]]] = builder.reason_of[atoms[order]]
    idle = frozen < 0
    for key, axes in builder.axes.items():
        if isinstance(key, str) and key not in builder.constant:
            idle[label[axes.start : axes.end]] = False
    if idle.any():
        frozen[idle] = len(builder.reasons)
        builder.reasons.append(Reason(-1, "only stored numbers have it, nothing is computed with it"))
    sizes = [size for axes in builder.axes.values() for size in axes.shape]
    axis_of = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    reason_of = frozen[label] if total else np.empty(0, np.int64)
    groups, lonely = _group(builder, label, reason_of < 0, axis_of)
    if len(lonely):
        reason_of[np.isin(label, lonely)] = len(builder.reasons)
        builder.reasons.append(Reason(-1, "all its channels are tied into one"))
    channel_of = np.full(count, FROZEN, np.int64)
    kept = np.concatenate([*(g.channels for g in groups), np.empty(0, np.int64)])
    channel_of[kept] = np.arange(len(kept))
    groups = [Group(g.name, channel_of[g.channels], g.axes, g.multiplicity) for g in groups]
    return Channels(
        builder.model,
        builder.axes,
        builder.aliases,
        builder.readers,
        channel_of[label] if total else np.empty(0, np.int64),
        axis_of,
        tuple(groups),
        reason_of,
        tuple(builder.reasons),
    )


def _group(builder: _Builder, label: Atoms, free: Mask, axis_of: Atoms) -> tuple[list[Group], npt.NDArray[np.int64]]:
    """Put components with the same signature together; returns the groups and the components that stand alone."""
    atoms = np.flatnonzero(free)
    if not len(atoms):
        return [], np.empty(0, np.int64)
    axes_total = int(axis_of[-1]) + 1
    pairs, multiplicity = np.unique(label[atoms] * axes_total + axis_of[atoms], return_counts=True)
    component, axis = np.divmod(pairs, axes_total)
    starts = np.flatnonzero(np.diff(component, prepend=-1))
    signature = np.add.reduceat(_mixed(axis * 1_000_003 + multiplicity), starts)
    components = component[starts]
    first_atom = np.full(int(label.max()) + 1, len(label), np.int64)
    np.minimum.at(first_atom, label[atoms], atoms)
    order = np.argsort(first_atom[components], kind="stable")
    members: dict[int, list[int]] = defaultdict(list)
    for position in order:
        members[int(signature[position])].append(int(position))
    names = _axis_names(builder)
    ends = np.append(starts[1:], len(pairs))
    groups, lonely, taken = [], [], dict[str, int]()
    for positions in members.values():
        if len(positions) == 1:
            lonely.append(components[positions[0]])
            continue
        own = slice(starts[positions[0]], ends[positions[0]])
        name = next((names[a] for a in axis[own] if a in names), f"axis {axis[own][0]}")
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name} #{taken[name]}"
        groups.append(Group(name, components[positions], axis[own], multiplicity[own]))
    return groups, np.asarray(lonely, np.int64)


def _mixed(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Spread integers over 64 bits (splitmix64), so that sums of them tell multisets apart."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def view_of(model: Model, axes: dict[Key, Axes], aliases: Aliases, index: int) -> View:
    """Look at one node with the atoms of its tensors."""
    node = model.graph.nodes[index]
    inputs = []
    for position, tensor in enumerate(node.inputs):
        own = axes.get((index, position))
        inputs.append(own if own is not None else axes.get(aliases.root.get(tensor.name, tensor.name)))
    return View(model, index, inputs, [axes.get(tensor.name) for tensor in node.outputs])


def _axis_names(builder: _Builder) -> dict[int, str]:
    """Name the axes of node outputs after their node, those of nodes that make channels first in the graph's order."""
    first_axis: dict[Key, int] = {}
    total = 0
    for key, axes in builder.axes.items():
        first_axis[key] = total
        total += len(axes)
    names: dict[int, str] = {}
    for node in builder.model.graph.nodes:
        for tensor in node.outputs:
            if tensor.name in builder.constant:
                continue
            for offset in range(len(builder.axes.get(tensor.name, ()))):
                names[first_axis[tensor.name] + offset] = node.name or tensor.name
    return names
