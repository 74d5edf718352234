"""Recurrent operators: what they read can shrink, their own hidden state stays whole."""

from __future__ import annotations

from typing import ClassVar

from onnxprune.ops.linear import contract
from onnxprune.ops.rule import Factor, Rule, Ties, View


class Recurrent(Rule):
    """LSTM, GRU and RNN."""

    ops: ClassVar[tuple[str, ...]] = ("GRU", "LSTM", "RNN")
    why: ClassVar[str] = "the hidden state of a recurrent layer stays whole"

    def ties(self, node: Ties) -> None:
        """Tie what is read at each step to the weights that it meets."""
        contract(node, node.x[2], node.input(1)[2])

    def macs(self, node: View) -> list[list[Factor]]:
        """At every step of every sequence the gates read the input and the hidden state."""
        x = node.x
        return [[(w, 1), (w, 0), (w, 2), (x, 0), (x, 1)] for w in (node.input(1), node.input(2))]
