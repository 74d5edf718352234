"""Convolutions: the channels of the input meet the weight's input axis, its output axis makes new ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxprune.ops.linear import contract
from onnxprune.ops.rule import Atoms, Factor, Resize, Rule, Ties, Unknown, View, every_axis
from onnxprune.shapes import numbers


class Conv(Rule):
    """Conv of any rank.

    A grouped one loses whole groups, so everything one group touches is tied together; or each group loses as many
    channels as the others.
    """

    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    why: ClassVar[str] = "spatial axes of a convolution"

    weight: ClassVar[int] = 1
    weight_out: ClassVar[int] = 0
    vectors: ClassVar[tuple[int, ...]] = (2,)  # inputs with a number for each output channel, or one for all

    def ties(self, node: Ties) -> None:
        """Tie channels to the weight and, through whole groups, to each other."""
        x, w, y = node.x, node.input(self.weight), node.y
        node.tie(x[0], y[0])
        groups = int(node.attribute("group", 1))
        rows, columns = (y, x) if self.weight_out == 0 else (x, y)  # what the weight's first two axes index
        node.tie(w[0], rows[1])
        if groups == 1:
            node.tie(w[1], columns[1])
            contract(node, x[1], w[1 - self.weight_out])
        elif node.allowed.slots and has_slots(node, self.weight):
            node.balance(rows[1], groups)
            node.balance(columns[1], groups, slots=w[1], weight=w.key)
        else:
            tie_blocks(node, x[1], y[1], groups)
            node.freeze(w[1], "channels inside a group of a convolution")
        for position in self.vectors:
            tie_parameter(node, position, y[1])
        if node.has_input(self.vectors[-1]):
            node.set_zero(y[0], False)  # a bias is added to all of the batch

    def macs(self, node: View) -> list[list[Factor]]:
        """Each output number sums over the kernel and the input channels of its group."""
        y = node.y
        return [[(y, 1), *((y, a) for a in range(len(y)) if a != 1), *every_axis(node.input(self.weight))[1:]]]

    def resize(self, node: Resize) -> None:
        """Count the groups that stay."""
        groups = int(node.attribute("group", 1))
        if groups > 1:
            stays = node.kept(node.x[1]).reshape(groups, -1).any(axis=1)
            node.set_attribute("group", int(stays.sum()))


def has_slots(node: View, position: int = 1) -> bool:
    """Tell whether the groups of a convolution have an inside to cut, in a weight (an input) of its own."""
    weight = node.node.inputs[position]
    return node.input(position).shape[1] > 1 and weight.name in node.model.stored and len(weight.outputs) == 1


class ConvTranspose(Conv):
    """ConvTranspose: the weight's axes are the other way round."""

    ops: ClassVar[tuple[str, ...]] = ("ConvTranspose",)
    weight_out: ClassVar[int] = 1

    def macs(self, node: View) -> list[list[Factor]]:
        """Each input number is multiplied into the kernel of every output channel of its group."""
        w, x = node.input(1), node.x
        return [[(w, 1), *every_axis(x), *((w, axis) for axis in range(2, len(w)))]]


class DeformConv(Conv):
    """DeformConv: a Conv that looks where its offsets say, the same places in every channel."""

    ops: ClassVar[tuple[str, ...]] = ("DeformConv",)
    vectors: ClassVar[tuple[int, ...]] = (3,)

    def ties(self, node: Ties) -> None:
        """Tie as Conv does, and the batch to that of offsets and mask."""
        if int(node.attribute("group", 1)) > 1 or int(node.attribute("offset_group", 1)) > 1:
            raise Unknown("its channels are in groups")
        super().ties(node)
        for position in (2, 4):
            if node.has_input(position):
                node.tie(node.input(position)[0], node.y[0])


def tie_blocks(node: Ties, left: Atoms, right: Atoms, blocks: int) -> None:
    """Tie block i of `left` to block i of `right`, each block whole."""
    for atoms in (left, right):
        whole = atoms.reshape(blocks, -1)
        node.tie(np.repeat(left.reshape(blocks, -1)[:, 0], whole.shape[1]), whole.reshape(-1))


def tie_parameter(node: Ties, position: int, atoms: Atoms) -> None:
    """Tie an optional input with one number for each of `atoms`; a single number is for all of them.

    Raises:
        Unknown: it is neither.
    """
    if not node.has_input(position):
        return
    parameter = node.input(position)
    if len(parameter) == 1 and parameter.shape[0] == len(atoms):
        node.tie(parameter[0], atoms)
    elif numbers(parameter.shape) != 1:
        raise Unknown(f"its input {position} does not vary along one axis")
