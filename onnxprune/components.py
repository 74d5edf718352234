"""What is tied together, directly or through others: the connected components of all ties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.ops.rule import Atoms, Mask
from onnxprune.tying import Tying


@dataclass
class Components:
    """Connected components of atoms.

    Attributes:
        label: the component of each atom.
        reason: per component the index of the first reason why it is held, -1 where it is free.
    """

    label: npt.NDArray[np.int64]
    reason: npt.NDArray[np.int64]

    @classmethod
    def of(cls, tying: Tying) -> Components:
        """Find the components of what has been tied so far."""
        total = tying.total
        left = np.concatenate([*tying.left, np.empty(0, np.int64)])
        right = np.concatenate([*tying.right, np.empty(0, np.int64)])
        ones = np.ones(len(left), bool)
        count, component = connected_components(coo_array((ones, (left, right)), shape=(total, total)), directed=False)
        label = component.astype(np.int64)
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

    def merge(self, others: npt.NDArray[np.int64], into: int) -> None:
        """Put components together under one of their labels."""
        self.label[np.isin(self.label, others)] = into
