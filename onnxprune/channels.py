"""The algorithm: every index of every axis of every tensor is an atom; what nodes tie together is a channel.

A rule (see `onnxprune.ops`) says for one node which atoms can only exist together. The connected components of all ties
are the channels. What a node does not mention stays: silence means frozen. Channels that touch the same axes equally
often form a group, the one thing a search decides on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from onnxprune.balancing import bundle
from onnxprune.components import Components
from onnxprune.errors import InputError
from onnxprune.model import Model
from onnxprune.ops.conv import has_slots
from onnxprune.ops.rule import HOW_TO_SHRINK, Atoms, Axes, Balance, Key, View
from onnxprune.ops.shuffle import Shuffle
from onnxprune.regrouping import choose_carriers
from onnxprune.tying import Aliases, Reason, Tying, view_of
from onnxprune.weights import Ints

FROZEN = -1
FEW_GROUPS = 4  # of fewer whole groups there is no choice to speak of: the inside of each is cut
LONELY = "all its channels are tied into one"


@dataclass(frozen=True)
class Group:
    """Channels that touch exactly the same axes equally often: one knob.

    Attributes:
        name: the node that makes these channels.
        channels: ids of its channels, in the order of their first atom.
        axes: ids of the axes its channels touch.
        multiplicity: how many atoms of each of these axes one channel owns.
        is_approximate: whether something averages over these channels, so that a cut is not exact.
    """

    name: str
    channels: Ints
    axes: Ints
    multiplicity: Ints
    is_approximate: bool = False

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
        shuffles: chains of nodes that permute an axis, by their last node.
        readers: for each small shared parameter, the inputs that got a copy of their own.
        slots: weights whose second axis means other channels in every group of rows, and what these are.
        averaged: per node, the atoms that it averages over and that may go all the same.
        channel_of: channel id of each atom, `FROZEN` where it must stay.
        axis_of: axis id of each atom; axis ids count up tensor by tensor.
        groups: the knobs, in the order of the graph.
        reason_of: index into `reasons` of each atom's channel, -1 where it is free.
        reasons: why things are frozen.
    """

    model: Model
    axes: dict[Key, Axes]
    aliases: Aliases
    shuffles: dict[int, Shuffle]
    readers: dict[str, list[tuple[int, int]]]
    slots: dict[Key, Balance]
    averaged: dict[int, list[Atoms]]
    channel_of: Ints
    axis_of: Ints
    groups: tuple[Group, ...]
    reason_of: Ints
    reasons: tuple[Reason, ...]

    @property
    def advice(self) -> str:
        """What option lets more go (empty: none that is known)."""
        holding = (self.reasons[number] for number in np.unique(self.reason_of[self.reason_of >= 0]))
        if any(reason.text.endswith(HOW_TO_SHRINK) for reason in holding):
            return "; --approximate lets axes shrink that normalisations average over"
        return ""

    @property
    def count(self) -> int:
        """Number of channels, frozen ones aside."""
        return int(self.channel_of.max(initial=FROZEN)) + 1

    def view(self, index: int) -> View:
        """Look at one node with the atoms of its tensors."""
        return view_of(self.model, self.axes, self.aliases, self.shuffles, index)

    def reason(self, atoms: Atoms) -> Reason | None:
        """Say why these atoms stay (None: at least one is free)."""
        found = self.reason_of[atoms]
        return self.reasons[int(found.min())] if len(found) and (found >= 0).all() else None


def find_channels(
    model: Model, keep: Sequence[str] = (), *, approximate: bool = False, slots: bool = False
) -> Channels:
    """Find what can be cut from a model.

    Args:
        model: the loaded model.
        keep: patterns (``*``, ``?``) of node names to leave alone.
        approximate: let axes shrink that normalisations average over; what comes of it is not exact.
        slots: cut the inside of groups and attention heads, instead of whole groups and heads. Grouped convolutions
            whose whole groups leave no choice are always cut inside.

    Raises:
        InputError: a pattern matches no node.
    """
    for pattern in keep:
        if not any(fnmatchcase(node.name, pattern) for node in model.graph.nodes):
            raise InputError(f"--keep {pattern!r} matches no node; `onnxprune inspect` lists the names")
    if slots:
        return _find(model, keep, approximate, range(len(model.graph.nodes)), slots)
    found = _find(model, keep, approximate, (), slots)
    collapsed = _collapsed(found)
    if not collapsed:
        return found
    found = _find(model, keep, approximate, collapsed, slots)
    if not _collapsed(found):
        return found
    inside = _find(model, keep, approximate, collapsed, slots=True)  # what is split beside them is cut alike
    return max(found, inside, key=lambda one: int((one.channel_of >= 0).sum()))


def _find(model: Model, keep: Sequence[str], approximate: bool, inside: Container[int], slots: bool) -> Channels:
    tying = Tying(model, keep, approximate, inside)
    for name in model.bound:
        tying.freeze_tensor(name, Reason(-1, f"model input {name!r}"))
    for index in range(len(model.graph.nodes)):
        if index not in tying.skipped:
            tying.visit(index)
    for tensor in model.graph.outputs:
        tying.freeze_tensor(tensor.name, Reason(-1, f"model output {tensor.name!r}"))
    for index, name in tying.captured:
        tying.freeze_tensor(name, Reason(index, "used inside its body"))
    choose_carriers(tying, slots)
    return _channels(tying)


def _collapsed(found: Channels) -> set[int]:
    """List the grouped convolutions whose whole groups leave no choice, or nearly none."""
    collapsed = set()
    for index, node in enumerate(found.model.graph.nodes):
        if node.op not in ("Conv", "ConvTranspose") or int(node.attrs.get("group", 1)) < 2:
            continue
        view = found.view(index)
        if view.inputs[0] is None or view.outputs[0] is None or view.inputs[1] is None or not has_slots(view):
            continue
        atoms = np.concatenate([view.x[1], view.y[1]])
        channels = found.channel_of[atoms]
        reason = found.reason(atoms)
        if (reason.text if reason else None) == LONELY or 0 < len(np.unique(channels[channels >= 0])) < FEW_GROUPS:
            collapsed.add(index)
    return collapsed


def _channels(tying: Tying) -> Channels:
    components = Components.of(tying)
    _hold_idle(tying, components)
    sizes = [size for axes in tying.axes.values() for size in axes.shape]
    axis_of = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    if tying.balances:
        bundle(tying, components, _signatures(components, axis_of))
    groups, lonely = _group(tying, components, axis_of)
    if len(lonely):
        components.reason[lonely] = len(tying.reasons)
        tying.reasons.append(Reason(-1, LONELY))
    channel_of = np.full(components.count, FROZEN, np.int64)
    kept = np.concatenate([*(g.channels for g in groups), np.empty(0, np.int64)])
    channel_of[kept] = np.arange(len(kept))
    groups = [replace(g, channels=channel_of[g.channels]) for g in groups]
    return Channels(
        tying.model,
        tying.axes,
        tying.aliases,
        tying.shuffles,
        tying.readers,
        {b.weight: b for b in tying.balances if b.weight is not None},
        tying.averaged,
        channel_of[components.label],
        axis_of,
        tuple(groups),
        components.reason[components.label],
        tuple(tying.reasons),
    )


def _hold_idle(tying: Tying, components: Components) -> None:
    """Hold what no activation has: nothing is computed with it."""
    idle = components.reason < 0
    for key, axes in tying.axes.items():
        if isinstance(key, str) and key not in tying.constant:
            idle[components.label[axes.start : axes.end]] = False
    for balance in tying.balances:
        if balance.slots is not None:
            idle[components.label[balance.slots]] = False
    if idle.any():
        components.reason[idle] = len(tying.reasons)
        tying.reasons.append(Reason(-1, "only stored numbers have it, nothing is computed with it"))


def _signatures(components: Components, axis_of: Atoms) -> npt.NDArray[np.uint64]:
    """Sum up for every component which axes it touches, and how often."""
    component, axis, multiplicity = _touched(components, axis_of, np.arange(len(axis_of)))
    signature = np.zeros(components.count, np.uint64)
    np.add.at(signature, component, _mixed(axis * 1_000_003 + multiplicity))
    return signature


def _touched(components: Components, axis_of: Atoms, atoms: Atoms) -> tuple[Atoms, Atoms, Atoms]:
    """List which components some atoms belong to, by component: (component, axis, how many atoms of that axis)."""
    axes_total = int(axis_of[-1]) + 1
    pairs, multiplicity = np.unique(components.label[atoms] * axes_total + axis_of[atoms], return_counts=True)
    component, axis = np.divmod(pairs, axes_total)
    return component, axis, multiplicity


def _group(tying: Tying, components: Components, axis_of: Atoms) -> tuple[list[Group], Ints]:
    """Put components with the same signature together; returns the groups and the components that stand alone."""
    label = components.label
    atoms = np.flatnonzero(components.free())
    if not len(atoms):
        return [], np.empty(0, np.int64)
    component, axis, multiplicity = _touched(components, axis_of, atoms)
    starts = np.flatnonzero(np.diff(component, prepend=-1))
    signature = np.add.reduceat(_mixed(axis * 1_000_003 + multiplicity), starts)
    found = component[starts]
    first_atom = np.full(components.count, len(label), np.int64)
    np.minimum.at(first_atom, label[atoms], atoms)
    approximate = np.zeros(components.count, bool)
    for averaged in tying.averaged.values():
        approximate[label[np.concatenate(averaged)]] = True
    order = np.argsort(first_atom[found], kind="stable")
    members: dict[int, list[int]] = defaultdict(list)
    for position in order:
        members[int(signature[position])].append(int(position))
    names = _axis_names(tying)
    ends = np.append(starts[1:], len(component))
    groups, lonely, taken = [], [], dict[str, int]()
    for positions in members.values():
        if len(positions) == 1:
            lonely.append(found[positions[0]])
            continue
        own = slice(starts[positions[0]], ends[positions[0]])
        name = next((names[a] for a in axis[own] if a in names), f"axis {axis[own][0]}")
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name} #{taken[name]}"
        own_channels = found[positions]
        is_approximate = bool(approximate[own_channels].any())
        groups.append(Group(name, own_channels, axis[own], multiplicity[own], is_approximate))
    return groups, np.asarray(lonely, np.int64)


def _mixed(values: Ints) -> npt.NDArray[np.uint64]:
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
