"""Matrix products with a weight."""

from __future__ import annotations

from typing import ClassVar

from onnxprune.ops.elementwise import tie_broadcast
from onnxprune.ops.rule import Factor, Rule, Ties, Unknown, View, every_axis


class Gemm(Rule):
    """Gemm: columns of A meet rows of B, columns of B make the output."""

    ops: ClassVar[tuple[str, ...]] = ("Gemm",)

    def ties(self, node: Ties) -> None:
        """Tie the contracted axes, and the rest to the output."""
        if not (node.is_constant(0) or node.is_constant(1)):
            raise Unknown("it multiplies two activations")
        a, b, y = node.x, node.input(1), node.y
        over_a, over_b = self._contracted(node)
        node.tie(a[over_a], b[over_b])
        node.tie(a[1 - over_a], y[0])
        node.tie(b[1 - over_b], y[1])
        if node.has_input(2):
            tie_broadcast(node, [node.input(2)], y)

    def macs(self, node: View) -> list[list[Factor]]:
        """Rows times columns times the contracted size."""
        return [[(node.y, 1), (node.y, 0), (node.x, self._contracted(node)[0])]]

    @staticmethod
    def _contracted(node: View) -> tuple[int, int]:
        return (0 if node.attribute("transA", 0) else 1), (1 if node.attribute("transB", 0) else 0)


class MatMul(Rule):
    """MatMul where one side is a weight; leading axes broadcast."""

    ops: ClassVar[tuple[str, ...]] = ("MatMul",)

    def ties(self, node: Ties) -> None:
        """Tie the contracted axes, and the rest to the output."""
        if not (node.is_constant(0) or node.is_constant(1)):
            raise Unknown("it multiplies two activations")
        a, b, y = node.x, node.input(1), node.y
        node.tie(a[-1], b[-2 if len(b) > 1 else 0])
        if len(a) > 1:
            node.tie(a[-2], y[-2 if len(b) > 1 else -1])
        if len(b) > 1:
            node.tie(b[-1], y[-1])
        batch = len(y) - (len(a) > 1) - (len(b) > 1)
        tie_broadcast(node, [a, b], y, axes=range(batch), trailing=2)

    def macs(self, node: View) -> list[list[Factor]]:
        """Every output number sums over the contracted axis."""
        y, x = node.y, node.x
        factors = every_axis(y)
        return [[*factors[-1:], *factors[:-1], (x, len(x) - 1)]]
