"""Normalisations that treat channels one by one."""

from __future__ import annotations

from typing import ClassVar

from onnxprune.ops.rule import Rule, Ties, Unknown


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
        for position in range(1, 5):
            node.tie(node.input(position)[0], y[channel])
        for output in node.outputs[1:]:
            if output is not None and len(output) == 1:
                node.tie(output[0], y[channel])


class InstanceNormalization(Rule):
    """InstanceNormalization: each channel is normalised over its own spatial axes."""

    ops: ClassVar[tuple[str, ...]] = ("InstanceNormalization",)
    why: ClassVar[str] = "it normalises over this axis"

    def ties(self, node: Ties) -> None:
        """Tie the channel to its scale and shift."""
        node.tie(node.x[0], node.y[0])
        node.tie(node.x[1], node.y[1])
        node.tie(node.input(1)[0], node.y[1])
        node.tie(node.input(2)[0], node.y[1])
