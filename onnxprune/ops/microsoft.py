"""Operators of onnxruntime's own, com.microsoft: those its optimiser and its tools for transformers write."""

from __future__ import annotations

from typing import ClassVar

from onnxprune.ops.attention import RotaryEmbedding
from onnxprune.ops.conv import Conv
from onnxprune.ops.elementwise import Sum, tie_broadcast
from onnxprune.ops.linear import Gemm, MatMul, contract
from onnxprune.ops.normalization import AVERAGES
from onnxprune.ops.rule import Axes, Factor, Rule, Ties, Unknown, View, every_axis

DOMAIN = "com.microsoft"
ZERO_OF_ZERO = frozenset({"", "Elu", "LeakyRelu", "Relu", "Softsign", "Tanh"})
"""Activations that make zero of zero."""


class MicrosoftGelu(Sum):
    """Gelu in several forms, with or without a bias."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")


class FusedConv(Conv):
    """FusedConv: a Conv, what is added to it, and an activation."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("FusedConv",)

    def ties(self, node: Ties) -> None:
        """Tie as Conv does, and what is added to the output."""
        super().ties(node)
        if node.has_input(3):
            for axis in (0, 1):
                node.tie(node.input(3)[axis], node.y[axis])
        say_activation(node)


class FusedGemm(Gemm):
    """FusedGemm: a Gemm and an activation."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("FusedGemm",)

    def ties(self, node: Ties) -> None:
        """Tie as Gemm does."""
        super().ties(node)
        say_activation(node)


class FusedMatMul(MatMul):
    """FusedMatMul: a MatMul of matrices that may be transposed."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("FusedMatMul",)

    def ties(self, node: Ties) -> None:
        """Tie the contracted axes, and the rest to the output."""
        a, b, y = node.x, node.input(1), node.y
        if min(len(a), len(b)) < 2 or node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
            raise Unknown("its operands are no matrices, or a batch axis lies inside them")
        over_a, over_b = self._contracted(node)
        contract(node, a[over_a], b[over_b])
        node.tie(a[-3 - over_a], y[-2])
        node.tie(b[-3 - over_b], y[-1])
        tie_broadcast(node, [a, b], y, axes=range(len(y) - 2), trailing=2)

    def macs(self, node: View) -> list[list[Factor]]:
        """Every output number sums over the contracted axis."""
        factors = every_axis(node.y)
        return [[*factors[-1:], *factors[:-1], (node.x, len(node.x) + self._contracted(node)[0])]]

    @staticmethod
    def _contracted(node: View) -> tuple[int, int]:
        return (-2 if node.attribute("transA", 0) else -1), (-1 if node.attribute("transB", 0) else -2)


class MicrosoftRotaryEmbedding(RotaryEmbedding):
    """RotaryEmbedding whose second input says where in the sequences it is."""

    domain: ClassVar[str] = DOMAIN
    cosines: ClassVar[int] = 2


class SkipLayerNormalization(Rule):
    """SkipLayerNormalization and SkipSimplifiedLayerNormalization: a sum, then a norm over its last axis."""

    domain: ClassVar[str] = DOMAIN
    ops: ClassVar[tuple[str, ...]] = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")

    def ties(self, node: Ties) -> None:
        """Tie all operands to the output and to the sum."""
        x, y = node.x, node.y
        tie_broadcast(node, [axes for axes in node.inputs if axes is not None], y)
        for axis in range(len(x)):
            node.set_zero(y[axis], axis == len(x) - 1)
            for output in node.outputs[1:]:
                self._tie_output(node, output, axis)
        node.approximate(x[-1], AVERAGES)

    @staticmethod
    def _tie_output(node: Ties, output: Axes | None, axis: int) -> None:
        """Tie an axis of the sum; mean and deviation have it at size 1."""
        if output is None:
            return
        if len(output[axis]) == len(node.x[axis]):
            node.tie(node.x[axis], output[axis])
        else:
            node.free(output[axis])
        node.set_zero(output[axis], False)


def say_activation(node: Ties) -> None:
    """Say that nothing is zero behind an activation that makes something else of zero."""
    if node.attribute("activation", "") not in ZERO_OF_ZERO:
        node.set_nothing_zero(node.y)
