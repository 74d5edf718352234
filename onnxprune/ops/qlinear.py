"""Quantised operators of onnxruntime's own, com.microsoft: what its quantiser writes beside QLinearConv."""

from __future__ import annotations

from typing import ClassVar

from onnxprune.ops.conv import tie_parameter
from onnxprune.ops.elementwise import tie_broadcast
from onnxprune.ops.linear import Gemm
from onnxprune.ops.microsoft import DOMAIN
from onnxprune.ops.pooling import Pool
from onnxprune.ops.rule import Axes, Rule, Ties, Unknown, View
from onnxprune.ops.slicing import Concat


class QLinearAdd(Rule):
    """QLinearAdd and QLinearMul: two quantised operands, with broadcasting."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("QLinearAdd", "QLinearMul")

    def ties(self, node: Ties) -> None:
        """Tie both operands to the output."""
        y, operands = node.y, (node.x, node.input(3))
        tie_broadcast(node, operands, y)
        for axis in range(len(y)):
            if any(len(x) < len(y) or x.shape[axis] != y.shape[axis] for x in operands):
                node.set_zero(y[axis], False)


class QLinearLeakyRelu(Rule):
    """QLinearLeakyRelu: quantised numbers, one by one."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("QLinearLeakyRelu",)

    def ties(self, node: Ties) -> None:
        """Tie the operand to the output."""
        tie_broadcast(node, [node.x], node.y)


class QLinearSigmoid(QLinearLeakyRelu):
    """QLinearSigmoid: quantised numbers, one by one."""

    ops: ClassVar[tuple[str, ...]] = ("QLinearSigmoid",)
    zero: ClassVar[str] = "never"


class QLinearPool(Pool):
    """Pools of quantised numbers, channels first."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("QLinearAveragePool", "QLinearGlobalAveragePool")

    def ties(self, node: Ties) -> None:
        """Tie batch and channels to the output."""
        if node.attribute("channels_last", 0):
            raise Unknown("its channels come last")
        super().ties(node)


class QLinearConcat(Concat):
    """QLinearConcat: each operand, followed by its scale and zero point, is a slice of the output."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("QLinearConcat",)

    @staticmethod
    def _parts(node: View) -> list[Axes]:
        return [node.input(position) for position in range(2, len(node.inputs), 3)]


class QGemm(Gemm):
    """QGemm: a Gemm whose output columns may have scales and zero points of their own."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("QGemm",)
    right: ClassVar[int] = 3
    bias: ClassVar[int] = 6

    def ties(self, node: Ties) -> None:
        """Tie the contracted axes, and the rest to the output and its parameters."""
        super().ties(node)
        for position in (4, 5):
            tie_parameter(node, position, node.y[1])
