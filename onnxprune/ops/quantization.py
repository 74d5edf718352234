"""Quantised numbers: integers with a scale and a zero point, which may vary along an axis.

Zero, of a quantised slice, means that it stands for zero: it holds its zero point.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxprune.ops.conv import Conv, tie_parameter
from onnxprune.ops.linear import MatMul
from onnxprune.ops.rule import Axes, Rule, Ties


class Quantize(Rule):
    """QuantizeLinear and DequantizeLinear: indices carry scales and zero points along, blocks as a whole."""

    ops: ClassVar[tuple[str, ...]] = ("DequantizeLinear", "QuantizeLinear")

    def ties(self, node: Ties) -> None:
        """Tie all axes to the output, and the one that scales vary along to them."""
        x, y = node.x, node.y
        for axis in range(len(x)):
            node.tie(x[axis], y[axis])
        block = int(node.attribute("block_size", 0))
        along = int(node.attribute("axis", 1)) % max(len(x), 1)
        for position in (1, 2):
            if block and node.has_input(position):
                self._tie_blocks(node, node.input(position), along, block)
            else:
                tie_parameter(node, position, x[along] if len(x) else np.empty(0, np.int64))
        for axis in range(len(x)):
            node.set_zero(y[axis], node.zeros(x[axis]))

    @staticmethod
    def _tie_blocks(node: Ties, scale: Axes, along: int, block: int) -> None:
        for axis in range(len(scale)):
            atoms = node.x[axis]
            node.tie(np.repeat(scale[axis], block)[: len(atoms)] if axis == along else scale[axis], atoms)


class DynamicQuantizeLinear(Rule):
    """DynamicQuantizeLinear: its range always takes in zero, so zeros that go do not change it."""

    ops: ClassVar[tuple[str, ...]] = ("DynamicQuantizeLinear",)
    why: ClassVar[str] = "its range depends on what is along this axis"

    def ties(self, node: Ties) -> None:
        """Tie the axes whose removed slices are zero."""
        for axis in range(len(node.x)):
            if node.is_zero(node.x[axis]):
                node.tie(node.x[axis], node.y[axis])


class QLinearConv(Conv):
    """QLinearConv: a Conv whose output channels may have scales and zero points of their own."""

    ops: ClassVar[tuple[str, ...]] = ("QLinearConv",)
    weight: ClassVar[int] = 3
    vectors: ClassVar[tuple[int, ...]] = (4, 5, 8)


class ConvInteger(Conv):
    """ConvInteger: a Conv whose output channels may have zero points of their own."""

    ops: ClassVar[tuple[str, ...]] = ("ConvInteger",)
    vectors: ClassVar[tuple[int, ...]] = (3,)


class MatMulInteger(MatMul):
    """MatMulInteger: a MatMul whose rows and columns may have zero points of their own."""

    ops: ClassVar[tuple[str, ...]] = ("MatMulInteger",)
    of_rows: ClassVar[tuple[int, ...]] = (2,)  # parameters of the first operand's rows
    of_columns: ClassVar[tuple[int, ...]] = (3,)  # and of the second one's columns

    def ties(self, node: Ties) -> None:
        """Tie as MatMul does, and what rows and columns have of their own."""
        super().ties(node)
        none = np.empty(0, np.int64)
        for position in self.of_rows:
            tie_parameter(node, position, node.x[-2] if len(node.x) > 1 else none)
        for position in self.of_columns:
            tie_parameter(node, position, node.input(self.right)[-1] if len(node.input(self.right)) > 1 else none)


class QLinearMatMul(MatMulInteger):
    """QLinearMatMul: a MatMul whose rows and columns may have scales and zero points of their own."""

    ops: ClassVar[tuple[str, ...]] = ("QLinearMatMul",)
    right: ClassVar[int] = 3
    of_rows: ClassVar[tuple[int, ...]] = (1, 2, 6, 7)
    of_columns: ClassVar[tuple[int, ...]] = (4, 5)
