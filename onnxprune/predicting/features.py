"""What the time of a node depends on: its work and what it moves, exactly and as kernels see them.

Kernels work on blocks of channels, so a node of 17 channels takes as long as one of 24 or 32, and where channels are no
multiple of four the fast ones give way to slow ones. So each product of axis sizes is counted four times: as it is,
with its axes rounded up to multiples of 8 and of 16, and once more where one of them is no multiple of 4. All of them
are sums in the sense of `metrics.Sum`, so many plans are described at once.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from onnxprune.channels import Channels
from onnxprune.metrics import Costs, Sum
from onnxprune.ops.rule import Factor
from onnxprune.weights import Floats, Ints

BLOCKS = (1, 8, 16)
REGULAR = 4
WAYS = len(BLOCKS) + 1  # in which a product is counted
WORK, MOVED = 1e6, 1e5  # multiply-accumulates, and numbers read and written, that count as one


class Features:
    """Describes the nodes of a model at the widths of plans.

    Args:
        channels: of the model.
        costs: of the same channels.

    Attributes:
        kinds: of each node the operator, and whether it works in groups.
        place: (terms,) the node that each product belongs to.
    """

    def __init__(self, channels: Channels, costs: Costs) -> None:
        self._table = costs.table
        nodes = channels.model.graph.nodes
        self.kinds = [f"{node.op}{' in groups' * (node.attrs.get('group', 1) > 1)}" for node in nodes]
        moved = _moved(channels)
        self._moved = Sum(costs.table, [(1 / MOVED, factors) for _, factors in moved])
        self._work = costs.macs_sum
        self.place: Ints = np.asarray([*costs.macs_nodes, *(node for node, _ in moved)], np.int64)
        order = np.argsort(self.place, kind="stable")
        bounds = np.searchsorted(self.place[order], np.arange(len(nodes) + 1))
        self._own = [order[first:last] for first, last in pairwise(bounds)]

    def terms(self, counts: npt.ArrayLike) -> Floats:
        """Count the products of plans (plans, groups) in all ways: (plans, terms, ways)."""
        sizes = self._table.sizes(np.atleast_2d(np.asarray(counts, np.float64)))
        found = [self._products(_rounded_up(sizes, block)) for block in BLOCKS]
        regular = np.concatenate([_all_of(part, _is_regular(sizes)) for part in (self._work, self._moved)], axis=1)
        return np.stack([*found, found[0] * ~regular], axis=2)

    def _products(self, sizes: Floats) -> Floats:
        return np.concatenate([self._work.terms(sizes) / WORK, self._moved.terms(sizes)], axis=1)

    def of_node(self, terms: Floats, node: int) -> Floats:
        """Describe one node from the products of plans: (plans, 1 + 2 * ways), first a constant."""
        parts = [terms[:, own].sum(axis=1) for own in self.products_of(node)]
        return np.concatenate([np.ones((len(terms), 1)), *parts], axis=1)

    def products_of(self, node: int) -> tuple[Ints, Ints]:
        """Tell which products belong to a node: its multiply-accumulates, and what it moves."""
        own, work = self._own[node], len(self._work.coefficients)
        return own[own < work], own[own >= work]

    def is_work(self) -> npt.NDArray[np.bool_]:
        """Tell which products are multiply-accumulates, (terms,); the others are numbers moved."""
        return np.arange(len(self.place)) < len(self._work.coefficients)


def _moved(channels: Channels) -> list[tuple[int, list[Factor]]]:
    """List the activations that each node reads and makes, with their axes."""
    found = []
    for index, node in enumerate(channels.model.graph.nodes):
        for tensor in (*node.inputs, *node.outputs):
            axes = channels.axes.get(tensor.name) if tensor.name and tensor.name not in channels.model.stored else None
            if axes is not None:
                found.append((index, [(axes, axis) for axis in range(len(axes))]))
    return found


def _rounded_up(sizes: Floats, block: int) -> Floats:
    """Round sizes up to whole blocks; the last column is the one of a size that is always 1."""
    found = np.ceil(sizes / block) * block
    found[:, -1] = 1
    return found


def _is_regular(sizes: Floats) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = sizes % REGULAR == 0
    found[:, -1] = True
    return found


def _all_of(part: Sum, holds: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell of which products all changing axes have a property, (plans, terms)."""
    found = np.ones((len(holds), len(part.coefficients)), bool)
    for column in part.columns.T:
        found &= holds[:, column]
    return found
