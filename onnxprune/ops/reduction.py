"""Reductions: what they reduce over stays, the other axes pass."""

from __future__ import annotations

from typing import ClassVar

from onnxprune.ops.rule import Atoms, Rule, Ties


class Reduce(Rule):
    """Reduce* with axes in an attribute or an input."""

    ops: ClassVar[tuple[str, ...]] = ("ReduceMax", "ReduceMin", "ReduceProd")
    why: ClassVar[str] = "it reduces over this axis"

    def ties(self, node: Ties) -> None:
        """Tie the axes that are not reduced."""
        axes = node.integers("axes", 1)
        if not axes:
            axes = [] if node.attribute("noop_with_empty_axes", 0) else list(range(len(node.x)))
        tie_others(node, axes, bool(node.attribute("keepdims", 1)))
        for axis in {axis % len(node.x) for axis in axes}:
            self._reduced(node, node.x[axis])

    def _reduced(self, node: Ties, atoms: Atoms) -> None:
        """Speak about an axis that is reduced; silence freezes it."""


class ReduceLog(Reduce):
    """Reductions that make something else of zero."""

    ops: ClassVar[tuple[str, ...]] = ("ReduceLogSum", "ReduceLogSumExp")
    zero: ClassVar[str] = "never"


class ReduceSum(Reduce):
    """Reductions that zeros add nothing to."""

    ops: ClassVar[tuple[str, ...]] = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")

    def _reduced(self, node: Ties, atoms: Atoms) -> None:
        if node.is_zero(atoms):
            node.free(atoms)


class ReduceMean(Reduce):
    """ReduceMean: zeros count as well, so a mean over a cut axis is another one."""

    ops: ClassVar[tuple[str, ...]] = ("ReduceMean",)

    def _reduced(self, node: Ties, atoms: Atoms) -> None:
        node.approximate(atoms, "it averages over this axis")


class Arg(Rule):
    """ArgMax and ArgMin: the result counts positions along the axis."""

    ops: ClassVar[tuple[str, ...]] = ("ArgMax", "ArgMin")
    why: ClassVar[str] = "its positions count along this axis"
    zero: ClassVar[str] = "never"

    def ties(self, node: Ties) -> None:
        """Tie the other axes."""
        tie_others(node, [int(node.attribute("axis", 0))], bool(node.attribute("keepdims", 1)))


class Softmax(Rule):
    """Softmax and its kin: the axis they sum over stays; before opset 13 that is every axis from `axis` on."""

    ops: ClassVar[tuple[str, ...]] = ("Hardmax", "LogSoftmax", "Softmax")
    why: ClassVar[str] = "it sums over this axis"
    zero: ClassVar[str] = "never"

    def ties(self, node: Ties) -> None:
        """Tie the other axes."""
        rank = len(node.x)
        axis = int(node.attribute("axis", -1 if node.opset >= 13 else 1)) % rank
        tie_others(node, [axis] if node.opset >= 13 else list(range(axis, rank)), keepdims=True)


def tie_others(node: Ties, axes: list[int], keepdims: bool) -> None:
    """Tie all axes but `axes` to the output, which keeps them at size 1 (`keepdims`) or drops them."""
    rank = len(node.x)
    gone = {axis % rank for axis in axes}
    others = [axis for axis in range(rank) if axis not in gone]
    for position, axis in enumerate(others):
        node.tie(node.x[axis], node.y[axis if keepdims else position])
