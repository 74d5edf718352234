"""Operators that treat every number alike: an index lives in all operands or in none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from onnxprune.ops.rule import Axes, Rule, Ties


def tie_broadcast(
    node: Ties, inputs: Sequence[Axes], y: Axes, axes: Iterable[int] | None = None, trailing: int = 0
) -> None:
    """Tie inputs to the output as numpy broadcasts them: axes align at the end, those of size 1 are stretched.

    Args:
        node: the node that speaks.
        inputs: operands.
        y: the output.
        axes: output axes to speak about (default: all).
        trailing: how many axes at the end of the operands are not the output's business (matrix axes).
    """
    rank = len(y) if axes is None else max(axes, default=-1) + 1
    for axis in range(rank):
        node.free(y[axis])
        for x in inputs:
            own = axis - rank + max(len(x) - trailing, 0)
            if own < 0:
                continue
            if x.shape[own] == y.shape[axis]:
                node.tie(x[own], y[axis])
            else:
                node.free(x[own])


class Elementwise(Rule):
    """Element-wise operators of one or more operands, with broadcasting; scalars such as Clip's bounds pass."""

    ops: ClassVar[tuple[str, ...]] = (
        *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh"),
        *("Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu"),
        *("Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin"),
        *("Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
        *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min"),
        *("Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
    )

    def ties(self, node: Ties) -> None:
        """Tie all operands to the output."""
        tie_broadcast(node, [axes for axes in node.inputs if axes is not None], node.y)


class CastLike(Rule):
    """CastLike: the second operand gives its type only."""

    ops: ClassVar[tuple[str, ...]] = ("CastLike",)

    def ties(self, node: Ties) -> None:
        """Tie the first operand to the output."""
        tie_broadcast(node, [node.x], node.y)
        for axis in range(len(node.input(1))):
            node.free(node.input(1)[axis])


class Dropout(Rule):
    """Dropout and its mask."""

    ops: ClassVar[tuple[str, ...]] = ("Dropout",)

    def ties(self, node: Ties) -> None:
        """Tie the input to the output and to the mask."""
        for output in node.outputs:
            if output is not None:
                tie_broadcast(node, [node.x], output)
