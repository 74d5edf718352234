"""Convolutions: the channels of the input meet the weight's input axis, its output axis makes new ones."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxprune.ops.rule import Atoms, Factor, Resize, Rule, Ties, View, every_axis


class Conv(Rule):
    """Conv of any rank; a grouped one loses whole groups, so everything one group touches is tied together."""

    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    why: ClassVar[str] = "spatial axes of a convolution"

    weight_out: ClassVar[int] = 0

    def ties(self, node: Ties) -> None:
        """Tie channels to the weight and, through whole groups, to each other."""
        x, w, y = node.x, node.input(1), node.y
        node.tie(x[0], y[0])
        groups = int(node.attribute("group", 1))
        if groups == 1:
            node.tie(x[1], w[1 - self.weight_out])
            node.tie(w[self.weight_out], y[1])
        else:
            node.tie(w[0], (y if self.weight_out == 0 else x)[1])
            tie_blocks(node, x[1], y[1], groups)
            node.freeze(w[1], "channels inside a group of a convolution")
        if node.has_input(2):
            node.tie(node.input(2)[0], y[1])

    def macs(self, node: View) -> list[list[Factor]]:
        """Each output number sums over the kernel and the input channels of its group."""
        y = node.y
        return [[(y, 1), *((y, a) for a in range(len(y)) if a != 1), *every_axis(node.input(1))[1:]]]

    def resize(self, node: Resize) -> None:
        """Count the groups that stay."""
        groups = int(node.attribute("group", 1))
        if groups > 1:
            channels = node.x[1]
            node.set_attribute("group", node.size(channels) * groups // len(channels))


class ConvTranspose(Conv):
    """ConvTranspose: the weight's axes are the other way round."""

    ops: ClassVar[tuple[str, ...]] = ("ConvTranspose",)
    weight_out: ClassVar[int] = 1

    def macs(self, node: View) -> list[list[Factor]]:
        """Each input number is multiplied into the kernel of every output channel of its group."""
        w, x = node.input(1), node.x
        return [[(w, 1), *every_axis(x), *((w, axis) for axis in range(2, len(w)))]]


def tie_blocks(node: Ties, left: Atoms, right: Atoms, blocks: int) -> None:
    """Tie block i of `left` to block i of `right`, each block whole."""
    for atoms in (left, right):
        whole = atoms.reshape(blocks, -1)
        node.tie(np.repeat(left.reshape(blocks, -1)[:, 0], whole.shape[1]), whole.reshape(-1))
