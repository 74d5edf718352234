"""Operators that look into axes at positions: what they look into stays, what only comes along passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from onnxprune.ops.rule import Axes, Rule, Ties

POSITIONS = "it looks into this axis at positions"


def tie_alike(node: Ties, operands: Sequence[Axes], y: Axes, but: int) -> None:
    """Tie all axes of operands to those of an output of the same rank, but one, and those of other sizes."""
    for axis in range(len(y)):
        if axis != but % len(y) and all(x.shape[axis] == y.shape[axis] for x in operands):
            for x in operands:
                node.tie(x[axis], y[axis])


class TopK(Rule):
    """TopK: the axis it sorts stays."""

    ops: ClassVar[tuple[str, ...]] = ("TopK",)
    zero: ClassVar[str] = "never"
    why: ClassVar[str] = "it sorts this axis"

    def ties(self, node: Ties) -> None:
        """Tie the other axes to those of both outputs."""
        for y in node.outputs:
            if y is not None:
                tie_alike(node, [node.x], y, but=int(node.attribute("axis", -1)))


class CumSum(Rule):
    """CumSum: zeros add nothing to the sums behind them."""

    ops: ClassVar[tuple[str, ...]] = ("CumSum",)
    why: ClassVar[str] = "it sums along this axis"

    def ties(self, node: Ties) -> None:
        """Tie all axes; the one that is summed along only where what goes is zero."""
        x, y = node.x, node.y
        along = (node.integers("axis", 1) or [0])[0] % len(x)
        tie_alike(node, [x], y, but=along)
        if node.is_zero(x[along]):
            node.tie(x[along], y[along])
            node.set_zero(y[along], False)


class Reverse(Rule):
    """ReverseSequence: sequences and their steps stay."""

    ops: ClassVar[tuple[str, ...]] = ("ReverseSequence",)
    why: ClassVar[str] = "it reverses sequences along this axis"

    def ties(self, node: Ties) -> None:
        """Tie all axes but those of the batch and of time."""
        held = {int(node.attribute("batch_axis", 1)), int(node.attribute("time_axis", 0))}
        for axis in set(range(len(node.x))) - held:
            node.tie(node.x[axis], node.y[axis])


class Trilu(Rule):
    """Trilu: rows and columns of the matrices stay."""

    ops: ClassVar[tuple[str, ...]] = ("Trilu",)
    why: ClassVar[str] = "what it takes depends on positions along this axis"

    def ties(self, node: Ties) -> None:
        """Tie the axes in front of the matrices."""
        for axis in range(len(node.x) - 2):
            node.tie(node.x[axis], node.y[axis])


class ScatterElements(Rule):
    """ScatterElements: along the other axes, data, indices and updates lie side by side."""

    ops: ClassVar[tuple[str, ...]] = ("Scatter", "ScatterElements")
    why: ClassVar[str] = POSITIONS

    def ties(self, node: Ties) -> None:
        """Tie the other axes, where the updates reach along all of them."""
        operands = [node.input(position) for position in range(3)]
        tie_alike(node, operands, node.y, but=int(node.attribute("axis", 0)))


class GatherElements(Rule):
    """GatherElements: along the other axes, data and indices lie side by side."""

    ops: ClassVar[tuple[str, ...]] = ("GatherElements",)
    why: ClassVar[str] = POSITIONS

    def ties(self, node: Ties) -> None:
        """Tie the other axes, where the indices reach along all of them."""
        tie_alike(node, [node.x, node.input(1)], node.y, but=int(node.attribute("axis", 0)))


class ScatterND(Rule):
    """ScatterND: axes behind those that the indices name are written whole."""

    ops: ClassVar[tuple[str, ...]] = ("ScatterND",)
    why: ClassVar[str] = POSITIONS

    def ties(self, node: Ties) -> None:
        """Tie the trailing axes of data and updates to the output."""
        x, indices, updates, y = node.x, node.input(1), node.input(2), node.y
        for axis in range(indices.shape[-1], len(x)):
            node.tie(x[axis], y[axis])
            node.tie(updates[axis - len(x)], y[axis])


class GatherND(Rule):
    """GatherND: axes behind those that the indices name are read whole."""

    ops: ClassVar[tuple[str, ...]] = ("GatherND",)
    why: ClassVar[str] = POSITIONS

    def ties(self, node: Ties) -> None:
        """Tie the trailing axes of the data to the output."""
        x, indices, y = node.x, node.input(1), node.y
        for axis in range(int(node.attribute("batch_dims", 0)) + indices.shape[-1], len(x)):
            node.tie(x[axis], y[axis - len(x)])


class Compress(Rule):
    """Compress with a stored condition, which is cut along; another one holds its axis."""

    ops: ClassVar[tuple[str, ...]] = ("Compress",)
    why: ClassVar[str] = POSITIONS

    def ties(self, node: Ties) -> None:
        """Tie what is taken to the output, and the condition to what it chooses from."""
        if "axis" not in node.node.attrs:
            return
        x, y, condition = node.x, node.y, node.input(1)
        along = int(node.attribute("axis")) % len(x)
        tie_alike(node, [x], y, but=along)
        chosen = node.value(1)
        if chosen is not None and node.node.inputs[1].name in node.model.stored:
            node.free(x[along])
            node.tie(condition[0], x[along][: len(condition[0])])
            node.tie(x[along][np.flatnonzero(chosen)], y[along])
