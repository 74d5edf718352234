"""Operators that treat every number alike: an index lives in all operands or in none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import ClassVar

import numpy as np
from onnx import TensorProto

from onnxprune.ops.rule import Axes, Mask, Rule, Ties

QUANTIZED = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16})


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
    """Element-wise operators that make zero of zero, whatever their other operands are."""

    ops: ClassVar[tuple[str, ...]] = (
        *("Abs", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish"),
        *("Identity", "LeakyRelu", "Mish", "Neg", "PRelu", "Relu", "Round", "Selu", "Sign", "Sin", "Sinh"),
        *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Div"),
    )
    zero_operands: ClassVar[slice] = slice(0, 1)

    def ties(self, node: Ties) -> None:
        """Tie all operands to the output."""
        y = node.y
        tie_broadcast(node, [axes for axes in node.inputs if axes is not None], y)
        positions = [p for p in range(len(node.inputs)) if node.inputs[p] is not None][self.zero_operands]
        for axis in range(len(y)):
            operands = [zeros_along(node, position, y, axis) for position in positions]
            node.set_zero(y[axis], self._combined(operands))

    @staticmethod
    def _combined(operands: Sequence[Mask | bool]) -> Mask | bool:
        """Say where the result is zero, given where its operands are."""
        return reduce(np.logical_and, operands)


class NonZero(Elementwise):
    """Element-wise operators that make something else of zero."""

    ops: ClassVar[tuple[str, ...]] = (
        *("Acos", "Acosh", "Cos", "Cosh", "Equal", "Exp", "Greater", "GreaterOrEqual", "HardSigmoid", "IsInf", "IsNaN"),
        *("Less", "LessOrEqual", "Log", "Mod", "Not", "Or", "Reciprocal", "Sigmoid", "Softplus", "Xor"),
    )

    @staticmethod
    def _combined(operands: Sequence[Mask | bool]) -> Mask | bool:
        return False


class Sum(Elementwise):
    """Element-wise operators that are zero where all operands are."""

    ops: ClassVar[tuple[str, ...]] = ("Add", "Max", "Mean", "Min", "Sub", "Sum")
    zero_operands: ClassVar[slice] = slice(None)


class Where(Sum):
    """Where: zero where both choices are."""

    ops: ClassVar[tuple[str, ...]] = ("Where",)
    zero_operands: ClassVar[slice] = slice(1, None)


class Product(Elementwise):
    """Element-wise operators that are zero where any operand is."""

    ops: ClassVar[tuple[str, ...]] = ("And", "Mul")
    zero_operands: ClassVar[slice] = slice(None)

    @staticmethod
    def _combined(operands: Sequence[Mask | bool]) -> Mask | bool:
        return reduce(np.logical_or, operands)


class Clip(Elementwise):
    """Clip: zero stays where the bounds contain it."""

    ops: ClassVar[tuple[str, ...]] = ("Clip",)

    def ties(self, node: Ties) -> None:
        """Tie the operand to the output; bounds are scalars."""
        super().ties(node)
        low, high = self._bound(node, 1, "min"), self._bound(node, 2, "max")
        if not (low is None or low <= 0) or not (high is None or high >= 0):
            node.set_nothing_zero(node.y)

    @staticmethod
    def _bound(node: Ties, position: int, name: str) -> float | None:
        if node.has_input(position):
            value = node.value(position)
            return np.nan if value is None else float(value.reshape(-1)[0])  # NaN: known at run time only
        given = node.attribute(name)
        return None if given is None else float(given)


class Shrink(Elementwise):
    """Shrink: zero is near zero, unless the limit is below it."""

    ops: ClassVar[tuple[str, ...]] = ("Shrink",)

    def ties(self, node: Ties) -> None:
        """Tie the operand to the output."""
        super().ties(node)
        if float(node.attribute("lambd", 0.5)) < 0:
            node.set_nothing_zero(node.y)


class Pow(Elementwise):
    """Pow: zero where its base is, if the exponent is positive."""

    ops: ClassVar[tuple[str, ...]] = ("Pow",)

    def ties(self, node: Ties) -> None:
        """Tie both operands to the output."""
        super().ties(node)
        exponent = node.value(1)
        if exponent is None or not (exponent > 0).all():
            node.set_nothing_zero(node.y)


def zeros_along(node: Ties, position: int, y: Axes, axis: int) -> Mask | bool:
    """Tell where an operand is zero along an axis of the output, once the weights of its channels are."""
    x = node.input(position)
    own = axis - len(y) + len(x)
    if own >= 0 and x.shape[own] == y.shape[axis]:
        return node.zeros(x[own])
    value = node.value(position) if x.shape.count(1) == len(x) else None
    return value is not None and not value.any()


class Cast(Rule):
    """Cast and CastLike, whose second operand gives its type only."""

    ops: ClassVar[tuple[str, ...]] = ("Cast", "CastLike")

    def ties(self, node: Ties) -> None:
        """Tie the first operand to the output."""
        x, y = node.x, node.y
        # "Zero" in what was quantised on the way is the zero point.
        is_quantized = node.model.types.get(node.node.inputs[0].name) in QUANTIZED and not node.is_constant(0)
        tie_broadcast(node, [x], y)
        for axis in range(len(y)):
            node.set_zero(y[axis], False if is_quantized else zeros_along(node, 0, y, axis))
        for position in range(1, len(node.inputs)):
            for axis in range(len(node.input(position))):
                node.free(node.input(position)[axis])


class Dropout(Rule):
    """Dropout and its mask."""

    ops: ClassVar[tuple[str, ...]] = ("Dropout",)

    def ties(self, node: Ties) -> None:
        """Tie the input to the output and to the mask."""
        for position, output in enumerate(node.outputs):
            if output is not None:
                tie_broadcast(node, [node.x], output)
                if position == 1:
                    node.set_nothing_zero(output)  # the mask is true where nothing is dropped
