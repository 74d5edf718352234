"""Normalisations: those that treat channels one by one are exact, those that average over a cut axis are not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from onnxprune.ops.conv import tie_blocks
from onnxprune.ops.elementwise import tie_broadcast
from onnxprune.ops.rule import Resize, Rule, Ties, Unknown, View

AVERAGES = "it normalises over this axis"


def vanishes(node: Ties, parameters: Iterable[int], axis: int, own: int) -> bool:
    """Tell whether scale and shift make zero of the removed slices along an axis: they have it, and are zero there.

    Args:
        node: the node that speaks.
        parameters: positions of scale and shift.
        axis: the axis of what is normalised.
        own: the same axis of scale and shift.
    """
    given = [node.input(position) for position in parameters if node.has_input(position)]
    return all(-len(p) <= own < len(p) and p.shape[own] == node.x.shape[axis] and node.is_zero(p[own]) for p in given)


def trains(norm: View) -> bool:
    """Tell whether a BatchNormalization normalises by what arrives instead of by what is stored."""
    return bool(norm.attribute("training_mode", 0)) or any(t.name for t in norm.node.outputs[1:])


class BatchNormalization(Rule):
    """BatchNormalization: a channel carries its scale, shift, mean and variance along."""

    ops: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def ties(self, node: Ties) -> None:
        """Tie the channel to its parameters; the other axes pass."""
        x, y = node.x, node.y
        if node.attribute("spatial", 1) == 0:
            raise Unknown("its statistics are per number (spatial=0)")
        channel = 1 if len(x) > 1 else 0
        for axis in range(len(y)):
            node.tie(x[axis], y[axis])
            if trains(node) and axis != channel:
                node.approximate(x[axis], AVERAGES)
            node.set_zero(y[axis], axis == channel and vanishes(node, (1, 2), channel, 0))
        for position in range(1, 5):
            node.tie(node.input(position)[0], y[channel])
        for output in node.outputs[1:]:
            if output is not None and len(output) == 1:
                node.tie(output[0], y[channel])


class InstanceNormalization(Rule):
    """InstanceNormalization: each channel is normalised over its own spatial axes."""

    ops: ClassVar[tuple[str, ...]] = ("InstanceNormalization",)

    def ties(self, node: Ties) -> None:
        """Tie the channel to its scale and shift."""
        x, y = node.x, node.y
        for axis in range(len(x)):
            node.tie(x[axis], y[axis])
            node.set_zero(y[axis], axis == 1 and vanishes(node, (1, 2), 1, 0))
            if axis > 1:
                node.approximate(x[axis], AVERAGES)
        node.tie(node.input(1)[0], y[1])
        node.tie(node.input(2)[0], y[1])


class LayerNormalization(Rule):
    """LayerNormalization and RMSNormalization: all axes from `axis` on are averaged over."""

    ops: ClassVar[tuple[str, ...]] = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")

    def ties(self, node: Ties) -> None:
        """Tie all axes; those that are averaged over carry scale and shift along."""
        x, y = node.x, node.y
        first = int(node.attribute("axis", -1)) % len(x)
        parameters = [axes for axes in node.inputs[1:] if axes is not None]
        tie_broadcast(node, [x, *parameters], y)
        for axis in range(len(x)):
            node.set_zero(y[axis], axis >= first and vanishes(node, (1, 2), axis, axis - len(x)))
            if axis >= first:
                node.approximate(x[axis], AVERAGES)
        for output in node.outputs[1:]:
            for axis in range(len(output or ())):
                assert output is not None
                if axis < first:
                    node.tie(x[axis], output[axis])
                else:
                    node.free(output[axis])


class GroupNormalization(Rule):
    """GroupNormalization: whole groups go, or, less exactly, as many channels of each."""

    ops: ClassVar[tuple[str, ...]] = ("GroupNormalization",)
    why: ClassVar[str] = AVERAGES

    def ties(self, node: Ties) -> None:
        """Tie batch and channels to the output, and the channels of a group to each other."""
        x, y = node.x, node.y
        groups = int(node.attribute("num_groups"))
        node.tie(x[0], y[0])
        if node.allowed.slots and node.allowed.approximate:
            node.tie(x[1], y[1])
            node.balance(x[1], groups)
            node.approximate(x[1], AVERAGES)
        else:
            tie_blocks(node, x[1], y[1], groups)
        node.set_zero(y[0], False)
        node.set_zero(y[1], vanishes(node, (1, 2), 1, 0))
        for parameter in (node.input(1), node.input(2)):
            if len(parameter[0]) == len(x[1]):
                node.tie(parameter[0], y[1])
            elif not (node.allowed.slots and node.allowed.approximate):
                node.tie(parameter[0], y[1].reshape(groups, -1)[:, 0])
        for axis in range(2, len(x)):
            node.tie(x[axis], y[axis])
            node.approximate(x[axis], AVERAGES)

    def resize(self, node: Resize) -> None:
        """Count the groups that stay."""
        groups = int(node.attribute("num_groups"))
        node.set_attribute("num_groups", int(node.kept(node.x[1]).reshape(groups, -1).any(axis=1).sum()))


class LRN(Rule):
    """LRN: each channel is divided by what it and its neighbours sum to."""

    ops: ClassVar[tuple[str, ...]] = ("LRN",)

    def ties(self, node: Ties) -> None:
        """Tie all axes."""
        for axis in range(len(node.x)):
            node.tie(node.x[axis], node.y[axis])
        node.approximate(node.x[1], "its channels are divided by their neighbours")


class LpNormalization(Rule):
    """LpNormalization: zeros add nothing to a norm."""

    ops: ClassVar[tuple[str, ...]] = ("LpNormalization",)

    def ties(self, node: Ties) -> None:
        """Tie all axes; the one that is normalised over may shrink where what goes is zero."""
        x = node.x
        for axis in range(len(x)):
            node.tie(x[axis], node.y[axis])
        along = int(node.attribute("axis", -1))
        if not node.is_zero(x[along]):
            node.freeze(x[along], AVERAGES)


class MeanVarianceNormalization(Rule):
    """MeanVarianceNormalization: the axes it averages over, by default all but the channels."""

    ops: ClassVar[tuple[str, ...]] = ("MeanVarianceNormalization",)

    def ties(self, node: Ties) -> None:
        """Tie all axes."""
        x = node.x
        averaged = {int(axis) % len(x) for axis in node.attribute("axes", [0, 2, 3])}
        for axis in range(len(x)):
            node.tie(x[axis], node.y[axis])
            if axis in averaged:
                node.approximate(x[axis], AVERAGES)
