"""What can go at no cost: channels that are zero or constant, folded into the biases of the layers that read them.

A channel whose number is known before the model runs only adds a constant to what reads it. Where every reader can take
that constant into its bias, or where it is zero, nothing is lost without the channel. The folded model computes what
the original does, and reads nothing from the dead channels: they can stay or go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Channels
from onnxprune.constants import MOVES, POINTWISE, Constants, data_nodes, find_constants
from onnxprune.linear import Linear, bias_place, linear, stored_values
from onnxprune.model import Model, analyse
from onnxprune.numbers import Numbers, Place
from onnxprune.ops import rule_for
from onnxprune.ops.layout import ConstantOfShape
from onnxprune.ops.linear import Einsum, Gemm, MatMul
from onnxprune.ops.normalization import (
    LRN,
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    LpNormalization,
    MeanVarianceNormalization,
)
from onnxprune.ops.pooling import Pool, Resize
from onnxprune.ops.reduction import Arg, Reduce, Softmax
from onnxprune.ops.rule import Atoms, Mask, View
from onnxprune.ops.shuffle import Shuffle
from onnxprune.plan import Plan
from onnxprune.shapes import Run
from onnxprune.weights import Array

NORMS = (BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, MeanVarianceNormalization)
APART = (*MOVES, *NORMS, LRN, Arg, ConstantOfShape, Pool, Resize, Shuffle, Softmax)
"""Rules of operators where what is free never reaches what is not, except in what they average over."""

SUMS = (Einsum, LpNormalization)
"""Rules of operators that zeros add nothing to."""

Find = Callable[[Model], Channels]


@dataclass(frozen=True)
class Lossless:
    """What can go at no cost.

    Attributes:
        original: of the model as it was given.
        channels: of the model whose biases hold what the dead channels added; the same groups.
        dead: per group, the channels that nothing reads any more.
        changed: weights and biases that hold other numbers now.
        added: weights and biases that were not there.
    """

    original: Channels
    channels: Channels
    dead: tuple[Mask, ...]
    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of dead channels."""
        return sum(int(mask.sum()) for mask in self.dead)

    @property
    def folded(self) -> dict[str, list[str]] | None:
        """Name the weights and biases that took over what dead channels added (None: there are no dead channels)."""
        return {"changed": [*self.changed], "added": [*self.added]} if self.count else None

    @property
    def plan(self) -> Plan:
        """Keep all but the dead channels."""
        return Plan(tuple(np.flatnonzero(~mask) for mask in self.dead))


def nothing_lossless(channels: Channels) -> Lossless:
    """Leave a model as it is."""
    return Lossless(channels, channels, tuple(np.zeros(group.width, bool) for group in channels.groups))


def find_lossless(channels: Channels, find: Find, run: Run) -> Lossless:
    """Find the channels that can go at no cost, and fold what they add.

    Args:
        channels: what can be cut from a model.
        find: finds the channels of a model in the way that these were found.
        run: runs a model in memory once.
    """
    constants = find_constants(channels, run)
    dead = np.zeros(channels.count, bool) if constants is None else removable(constants)
    if constants is None or not dead.any():
        return nothing_lossless(channels)
    masks = tuple(dead[group.channels] for group in channels.groups)
    numbers = fold(constants, dead)
    if not numbers:
        return Lossless(channels, channels, masks)
    rewritten = Numbers(channels.model.proto, channels.model.folder)
    for place, values in numbers.items():
        rewritten.set(place, values)
    model = analyse(rewritten.proto, channels.model.folder, run, channels.model.bound)
    read = channels.model
    model.notes, model.data_files, model.is_batch_fixed = read.notes, read.data_files, read.is_batch_fixed
    folded = find(model)
    if not _are_alike(channels, folded):
        return nothing_lossless(channels)
    return Lossless(channels, folded, masks, tuple(rewritten.changed), tuple(rewritten.added))


def _are_alike(channels: Channels, others: Channels) -> bool:
    """Tell whether two models have the same channels; what nodes make has the same atoms in both."""
    made = [channels.axes.get(t.name) for node in channels.model.graph.nodes for t in node.outputs]
    end = max((axes.end for axes in made if axes is not None), default=0)
    names, other_names = ([(g.name, g.width) for g in found.groups] for found in (channels, others))
    return names == other_names and np.array_equal(channels.channel_of[:end], others.channel_of[:end])


def removable(constants: Constants) -> Mask:
    """Tell for each channel whether it is constant somewhere, and whatever reads it can do without it."""
    channels = constants.channels
    held, found = np.zeros(channels.count + 1, bool), np.zeros(channels.count + 1, bool)
    zero = constants.known & (constants.value == 0)
    for index in data_nodes(channels):
        held[channels.channel_of[_needed(constants, zero, index)]] = True
    found[channels.channel_of[constants.known]] = True
    return (found & ~held)[:-1]  # the last is where `channel_of` says FROZEN


def _needed(constants: Constants, zero: Mask, index: int) -> Atoms:
    """List the atoms that a node cannot do without."""
    channels = constants.channels
    view = channels.view(index)
    rule = channels.shuffles.get(index) or rule_for(view.node)
    averaged = channels.averaged.get(index, [])
    atoms = np.concatenate([*(np.arange(a.start, a.end) for a in view.inputs if a is not None), np.empty(0, np.int64)])
    layer = linear(channels, index)
    if layer is not None:
        atoms = _needed_by_layer(constants, zero, index, layer)
    elif type(rule) in (Gemm, MatMul) and None not in view.inputs[:2]:
        left, right = _contracted(view)
        atoms = np.concatenate([part[~(zero[left] | zero[right])] for part in (left, right)])
    elif isinstance(rule, POINTWISE):
        atoms = _ends(channels, view, atoms)
    elif isinstance(rule, Reduce):
        atoms = _ends(channels, view, atoms)
        atoms = atoms[~zero[atoms]]
    elif type(rule) in SUMS:
        atoms = atoms[~zero[atoms]]
    elif type(rule) in APART:
        atoms = atoms[:0]
    return np.concatenate([atoms, *averaged])


def _ends(channels: Channels, view: View, atoms: Atoms) -> Atoms:
    """Take the atoms whose channel does not come out of a node: it went into other channels."""
    passed = [channels.channel_of[axes.start : axes.end] for axes in view.outputs if axes is not None]
    return atoms[~np.isin(channels.channel_of[atoms], np.concatenate([*passed, np.empty(0, np.int64)]))]


def _contracted(view: View) -> tuple[Atoms, Atoms]:
    """Give the atoms of two operands that a product sums over."""
    a, b = view.x, view.input(1)
    if view.node.op == "Gemm":
        return a[0 if view.attribute("transA", 0) else 1], b[1 if view.attribute("transB", 0) else 0]
    return a[-1], b[-2 if len(b) > 1 else 0]


def _needed_by_layer(constants: Constants, zero: Mask, index: int, layer: Linear) -> Atoms:
    """List the inputs that are neither zero, nor foldable, nor read by their own channel alone."""
    fine = zero[layer.x] | _own(constants.channels, layer)
    known = constants.known[layer.x]
    if (known & ~fine).any():
        bias = _with_constants(constants, index, layer, known)
        if bias is not None and np.isfinite(bias[1]).all():
            fine = fine | known
    return layer.x[~fine]


def _own(channels: Channels, layer: Linear) -> Mask:
    """Tell which inputs (groups, inputs) go together with all that reads them: groups that go as a whole."""
    if len(layer.x) == 1:
        return np.zeros(layer.x.shape, bool)
    same = channels.channel_of[layer.y][:, :, None] == channels.channel_of[layer.x][:, None, :]
    return np.asarray(same.all(axis=1))


def _with_constants(constants: Constants, index: int, layer: Linear, gone: Mask) -> tuple[Place, Array] | None:
    """Give the bias that makes up for inputs (groups, inputs) that go, and where it belongs (None: there is none)."""
    place = bias_place(constants.channels, index)
    if place is None or not layer.is_uniform or not layer.beta:
        return None
    node = constants.channels.model.graph.nodes[place[0]]
    name = node.inputs[place[1]].name if place[1] < len(node.inputs) else ""
    bias = stored_values(constants.channels, name) if name else np.zeros(layer.y.size, layer.weight.dtype)
    if bias is None or not bias.ndim or bias.size != layer.y.size or bias.shape[-1] != layer.y.size:
        return None
    added = layer.response(np.where(gone, constants.value[layer.x], 0)) / layer.beta
    with np.errstate(over="ignore"):  # what the type cannot hold is found to be infinite
        return place, (bias.astype(np.float64) + added.reshape(bias.shape)).astype(bias.dtype)


def fold(constants: Constants, dead: Mask) -> dict[Place, Array]:
    """Give the biases that make up for the dead channels, and the weights that read nothing from them.

    Args:
        constants: what is known of the model.
        dead: per channel, whether it goes; all readers can do without it.
    """
    channel_of = constants.channels.channel_of
    goes = np.append(dead, False)  # the last is where `channel_of` says FROZEN
    numbers = {}
    for index in data_nodes(constants.channels):
        layer = linear(constants.channels, index)
        if layer is None:
            continue
        gone = goes[channel_of[layer.x]] & constants.known[layer.x] & (constants.value[layer.x] != 0)
        gone &= ~_own(constants.channels, layer)
        if gone.any():
            found = _with_constants(constants, index, layer, gone)
            assert found is not None  # else the channels would not be dead
            numbers[found[0]] = found[1]
            numbers[index, 1] = _reading_nothing(constants.channels, index, gone)
    return numbers


def _reading_nothing(channels: Channels, index: int, gone: Mask) -> Array:
    """Give the weight of a layer with zeros for inputs (groups, inputs) that go."""
    values = stored_values(channels, channels.model.graph.nodes[index].inputs[1].name)
    weight = np.array(values, order="C")
    layer = linear(channels, index, weight)
    assert layer is not None
    for group, column in zip(*np.nonzero(gone), strict=True):
        layer.weight[group, :, column] = 0
    return weight
