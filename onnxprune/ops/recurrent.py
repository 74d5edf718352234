"""Recurrent operators: they stay whole, but what they cost is counted."""

from __future__ import annotations

from typing import ClassVar

from onnxprune.ops.rule import Factor, Rule, Ties, View


class Recurrent(Rule):
    """LSTM, GRU and RNN."""

    ops: ClassVar[tuple[str, ...]] = ("GRU", "LSTM", "RNN")
    why: ClassVar[str] = "recurrent layers stay whole"

    def ties(self, node: Ties) -> None:
        """Say nothing: everything stays."""

    def macs(self, node: View) -> list[list[Factor]]:
        """At every step of every sequence the gates read the input and the hidden state."""
        x = node.x
        return [[(w, 1), (w, 0), (w, 2), (x, 0), (x, 1)] for w in (node.input(1), node.input(2))]
