"""What is tied together, directly or through others: the connected components of all ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.ops.rule import Atoms, Mask
from onnxprune.tying import Tying
from onnxprune.weights import Ints


@dataclass
class Components:
    """Connected components of atoms.

    Attributes:
        label: the component of each atom.
        reason: per component the index of the first reason why it is held, -1 where it is free.
    """

    label: Ints
    reason: Ints

    @classmethod
    def of(cls, tying: Tying) -> Components:
        """Find the components of what has been tied so far."""
        left = np.concatenate([*tying.left, np.empty(0, np.int64)])
        right = np.concatenate([*tying.right, np.empty(0, np.int64)])
        count, label = _connected(left, right, tying.total)
        reason = np.full(count, len(tying.reasons), np.int64)  # the first one, in the order of the graph
        held = np.flatnonzero(tying.reason_of >= 0)
        np.minimum.at(reason, label[held], tying.reason_of[held])
        reason[reason == len(tying.reasons)] = -1
        return cls(label, reason)

    @property
    def count(self) -> int:
        """Number of components, and of labels."""
        return len(self.reason)

    def are_held(self, atoms: Atoms) -> bool:
        """Tell whether any of these atoms must stay."""
        return bool((self.reason[self.label[atoms]] >= 0).any())

    def free(self) -> Mask:
        """Tell which atoms are free."""
        return self.reason[self.label] < 0

    def clusters(self, touched: Sequence[Atoms]) -> Ints:
        """Number sets of atoms so that those which share components, directly or through others, get one number."""
        labels = [np.unique(self.label[atoms]) for atoms in touched]
        rows = np.repeat(np.arange(len(labels)), [len(found) for found in labels])
        columns = np.concatenate([*labels, np.empty(0, np.int64)]) + len(labels)
        _, number = _connected(rows, columns, len(labels) + self.count)
        return number[: len(labels)]


def _connected(left: Atoms, right: Atoms, total: int) -> tuple[int, Ints]:
    """Connect numbers below `total` pair by pair; returns how many components that makes, and the one of each."""
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(total, total))
    count, number = connected_components(graph, directed=False)
    return int(count), number.astype(np.int64)
