"""Attention as one operator: heads go whole, and with four axes the inside of all heads alike."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxprune.ops.conv import tie_blocks
from onnxprune.ops.linear import contract
from onnxprune.ops.rule import Atoms, Axes, Factor, Resize, Rule, Ties, Unknown, View

Q, K, V = 0, 1, 2
PAST = {K: 4, V: 5}  # inputs
PRESENT = {K: 1, V: 2}  # outputs
SCORES = 3  # output


class Attention(Rule):
    """Attention: a key head goes with all query heads that share it."""

    ops: ClassVar[tuple[str, ...]] = ("Attention",)
    why: ClassVar[str] = "it looks at positions along this axis"

    def ties(self, node: Ties) -> None:
        """Tie batches, heads, and, with four axes, what is inside all heads."""
        q, k, v, y = node.x, node.input(K), node.input(V), node.y
        packed = len(q) == 3
        heads = [self._heads(node, side) for side in (Q, K, V)]
        if packed:
            for side, axes in enumerate((q, k, v)):
                tie_blocks(node, axes[2], axes[2], len(heads[side]))
            tie_blocks(node, y[2], y[2], len(heads[Q]))
        else:
            contract(node, q[3], k[3])
            node.tie(v[3], y[3])
        shared = len(heads[Q]) // len(heads[K])
        out = y[2].reshape(len(heads[Q]), -1)[:, 0] if packed else y[1]
        for one in (np.repeat(heads[K], shared), np.repeat(heads[V], shared), out):
            node.tie(heads[Q], one)
        for other in (k[0], v[0], y[0]):
            node.tie(q[0], other)
        self._tie_others(node, heads, packed)
        self._say_zeros(node, heads, packed, shared)

    @staticmethod
    def _heads(node: View, side: int) -> Atoms:
        """Give one atom of each head of an operand."""
        return heads_of(node.input(side), int(node.attribute("q_num_heads" if side == Q else "kv_num_heads", 0)))

    @staticmethod
    def _tie_others(node: Ties, heads: list[Atoms], packed: bool) -> None:
        """Tie the mask, what is remembered of keys and values, and the scores."""
        if node.has_input(3):
            mask = node.input(3)
            for axis, atoms in ((0, node.x[0]), (1, heads[Q])):
                own = axis - 4 + len(mask)
                if own >= 0 and len(mask[own]) == len(atoms):
                    node.tie(mask[own], atoms)
                elif own >= 0:
                    node.free(mask[own])
        for side in (K, V):
            past = node.input(PAST[side]) if node.has_input(PAST[side]) else None
            present = node.outputs[PRESENT[side]] if node.has_output(PRESENT[side]) else None
            for memory in (past, present):
                if memory is not None:
                    node.tie(memory[0], node.x[0])
                    node.tie(memory[1], heads[side])
                    if not packed:
                        node.tie(memory[3], node.input(side)[3])
        if node.has_input(6):
            node.tie(node.input(6)[0], node.x[0])
        scores = node.outputs[SCORES] if node.has_output(SCORES) else None
        if scores is not None:
            node.tie(scores[0], node.x[0])
            node.tie(scores[1], heads[Q])
            node.set_nothing_zero(scores)  # they may come after a mask or a Softmax

    @staticmethod
    def _say_zeros(node: Ties, heads: list[Atoms], packed: bool, shared: int) -> None:
        """Say that the result is zero where the values are, whatever the scores."""
        v, y = node.input(V), node.y
        node.set_zero(y[0], node.zeros(v[0]))
        size = len(y[2]) // len(heads[Q]) if packed else 1
        node.set_zero(y[2 if packed else 1], np.repeat(node.zeros(heads[V]), shared * size))
        if not packed:
            node.set_zero(y[3], node.zeros(v[3]))

    def macs(self, node: View) -> list[list[Factor]]:
        """Every query meets every key, and the scores every value; what is remembered counts as well."""
        q, k, y = node.x, node.input(K), node.y
        found: list[list[Factor]] = []
        for axes in (q, y):
            rows: list[Factor] = [(axes, a) for a in ((1, 0, 2, 3) if len(axes) == 4 else (2, 0, 1))]
            found.append([*rows, (k, len(k) - 2)])
            if node.has_input(PAST[K]):
                found.append([*rows, (node.input(PAST[K]), 2)])
        return found

    def resize(self, node: Resize) -> None:
        """Count the heads, and keep the scale where it followed from the size of a head."""
        for name, side in (("q_num_heads", Q), ("kv_num_heads", K)):
            if name in node.node.attrs:
                node.set_attribute(name, node.size(self._heads(node, side)))
        inside = node.x[3] if len(node.x) == 4 else np.empty(0, np.int64)
        if "scale" not in node.node.attrs and not node.kept(inside).all():
            node.set_attribute("scale", 1 / np.sqrt(len(inside)))


class RotaryEmbedding(Rule):
    """RotaryEmbedding: numbers of a head turn in pairs, so heads go whole."""

    ops: ClassVar[tuple[str, ...]] = ("RotaryEmbedding",)
    why: ClassVar[str] = "it turns pairs of numbers along this axis by their positions"
    cosines: ClassVar[int] = 1  # their place among the inputs

    def ties(self, node: Ties) -> None:
        """Tie batches and heads; where the heads lie side by side, each as a whole."""
        x, y = node.x, node.y
        node.tie(x[0], y[0])
        if len(x) == 4:
            node.tie(x[1], y[1])
        else:
            tie_blocks(node, x[2], y[2], self._count(node))

    def _count(self, node: View) -> int:
        count = int(node.attribute("num_heads", 0))
        if count:
            return count
        turned = 2 * node.input(self.cosines).shape[-1]
        if len(node.x[2]) % turned:
            raise Unknown("it does not say how many heads it has")
        return len(node.x[2]) // turned

    def resize(self, node: Resize) -> None:
        """Count the heads."""
        count = int(node.attribute("num_heads", 0))
        if count:
            node.set_attribute("num_heads", node.size(heads_of(node.x, count)))


def heads_of(axes: Axes, count: int) -> Atoms:
    """Give one atom of each head: heads are an axis of their own, or so many lie side by side."""
    heads: Atoms = axes[1] if len(axes) == 4 else axes[2].reshape(count, -1)[:, 0]
    return heads
