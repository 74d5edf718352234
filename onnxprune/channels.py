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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.errors import InputError
from onnxprune.model import Model
from onnxprune.ops.rule import Atoms, Axes, Key, Mask, View
from onnxprune.tying import Aliases, Reason, Tying, captured, view_of

FROZEN = -1


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
    tying = Tying(model, keep)
    for name in model.bound:
        tying.freeze_tensor(name, Reason(-1, f"model input {name!r}"))
    for index in range(len(model.graph.nodes)):
        if index not in tying.skipped:
            tying.visit(index)
    for tensor in model.graph.outputs:
        tying.freeze_tensor(tensor.name, Reason(-1, f"model output {tensor.name!r}"))
    for index, name in captured(model):
        tying.freeze_tensor(name, Reason(index, "used inside its body"))
    return _components(tying)


def _components(tying: Tying) -> Channels:
    total = tying.total
    left = np.concatenate([*tying.left, np.empty(0, np.int64)])
    right = np.concatenate([*tying.right, np.empty(0, np.int64)])
    ones = np.ones(len(left), bool)
    count, component = connected_components(coo_array((ones, (left, right)), shape=(total, total)), directed=False)
    label = component.astype(np.int64)
    frozen = np.full(count, -1, np.int64)  # per component the first reason, in the order of the graph
    atoms = np.flatnonzero(tying.reason_of >= 0)[::-1]
    order = np.argsort(tying.reason_of[atoms], kind="stable")[::-1]
    frozen[label[atoms[order]]] = tying.reason_of[atoms[order]]
    idle = frozen < 0
    for key, axes in tying.axes.items():
        if isinstance(key, str) and key not in tying.constant:
            idle[label[axes.start : axes.end]] = False
    if idle.any():
        frozen[idle] = len(tying.reasons)
        tying.reasons.append(Reason(-1, "only stored numbers have it, nothing is computed with it"))
    sizes = [size for axes in tying.axes.values() for size in axes.shape]
    axis_of = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    reason_of = frozen[label] if total else np.empty(0, np.int64)
    groups, lonely = _group(tying, label, reason_of < 0, axis_of)
    if len(lonely):
        reason_of[np.isin(label, lonely)] = len(tying.reasons)
        tying.reasons.append(Reason(-1, "all its channels are tied into one"))
    channel_of = np.full(count, FROZEN, np.int64)
    kept = np.concatenate([*(g.channels for g in groups), np.empty(0, np.int64)])
    channel_of[kept] = np.arange(len(kept))
    groups = [Group(g.name, channel_of[g.channels], g.axes, g.multiplicity) for g in groups]
    return Channels(
        tying.model,
        tying.axes,
        tying.aliases,
        tying.readers,
        channel_of[label] if total else np.empty(0, np.int64),
        axis_of,
        tuple(groups),
        reason_of,
        tuple(tying.reasons),
    )


def _group(tying: Tying, label: Atoms, free: Mask, axis_of: Atoms) -> tuple[list[Group], npt.NDArray[np.int64]]:
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
    names = _axis_names(tying)
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


def _axis_names(tying: Tying) -> dict[int, str]:
    """Name the axes of node outputs after their node, those of nodes that make channels first in the graph's order."""
    first_axis: dict[Key, int] = {}
    total = 0
    for key, axes in tying.axes.items():
        first_axis[key] = total
        total += len(axes)
    names: dict[int, str] = {}
    for node in tying.model.graph.nodes:
        for tensor in node.outputs:
            if tensor.name in tying.constant:
                continue
            for offset in range(len(tying.axes.get(tensor.name, ()))):
                names[first_axis[tensor.name] + offset] = node.name or tensor.name
    return names
