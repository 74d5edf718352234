"""How large everything in a network is at some widths: its tensors, its operations, and what goes with each group.

All of it is counted in the sums that `Costs` is made of, in time linear in the number of their terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from onnxprune.blocks import Operation
from onnxprune.channels import Channels
from onnxprune.metrics import Costs, Sum
from onnxprune.ops.rule import Factor, every_axis
from onnxprune.shapes import numbers
from onnxprune.weights import NOT_WEIGHTS, Floats, Ints


@dataclass(frozen=True)
class Extent:
    """How large everything is at some widths.

    Attributes:
        widths: (tensors,) channels of each activation.
        macs: (operations,) multiply-accumulates.
        params: (operations,) stored numbers that it reads; shared ones count for each reader.
        group_macs: (groups,) multiply-accumulates that go where all channels of one group go.
        group_params: (groups,) stored numbers that go with them, of shared ones from the copy of each reader.
        next_macs: (groups,) multiply-accumulates that go with one channel.
    """

    widths: Floats
    macs: Floats
    params: Floats
    group_macs: Floats
    group_params: Floats
    next_macs: Floats


class Extents:
    """Tells how large everything is, given the channels kept per group.

    Args:
        channels: of the model.
        costs: of the same channels.
        operations: what the model computes with data.

    Attributes:
        tensors: number of each activation, by name.
        places: (tensors,) numbers of each activation for one channel.
        original: everything as it is uncut.
        macs: of the uncut model.
        params: of the uncut model.
    """

    def __init__(self, channels: Channels, costs: Costs, operations: Sequence[Operation]) -> None:
        self._table = costs.table
        self._macs_sum = costs.macs_sum
        names = (name for operation in operations for name in (*operation.reads, *operation.makes))
        self.tensors = {name: number for number, name in enumerate(dict.fromkeys(names))}
        self._widths = Sum(self._table, [self._channels_of(channels, name) for name in self.tensors])
        self._macs_parts = _Parts(self._macs_sum, self._table.per_channel, np.ones(len(self._macs_sum.coefficients)))
        self._params_parts = _Parts(costs.param_sum, self._table.per_channel, costs.is_param)
        self._operations = len(operations)
        place = {operation.node: number for number, operation in enumerate(operations)}
        self._place = np.asarray([place.get(node, len(place)) for node in costs.macs_nodes], np.int64)
        readings = _readings(channels, operations)
        self._reader = np.asarray([reader for reader, _ in readings], np.int64)
        self._read = Sum(self._table, [self._stored(channels, name) for _, name in readings])
        widths = np.asarray([group.width for group in channels.groups], np.int64)
        self.original = self.of(widths)
        self.macs, self.params = (float(costs.of(widths)[name][0]) for name in ("macs", "params"))
        totals = [numbers(channels.model.shapes.get(name, ())) for name in self.tensors]
        self.places: Floats = np.asarray(totals, np.float64) / np.maximum(self.original.widths, 1)

    def _channels_of(self, channels: Channels, name: str) -> tuple[float, list[Factor]]:
        """Say which axes of a tensor are its channels: those that can change, else the usual one."""
        axes = channels.axes.get(name)
        changing = [(axes, axis) for axis in range(len(axes)) if self._table.column(axes, axis) >= 0] if axes else []
        if changing:
            return 1.0, changing
        shape = channels.model.shapes.get(name, ())
        return float(shape[1 if len(shape) > 3 else -1]) if shape else 1.0, []

    @staticmethod
    def _stored(channels: Channels, name: str) -> tuple[float, list[Factor]]:
        """Count the numbers of a stored tensor as `Costs` does."""
        tensor = channels.model.stored[name]
        readers = channels.readers.get(name)
        axes = channels.axes.get(readers[0] if readers else name)
        counted = float(tensor.data_type not in NOT_WEIGHTS)
        return (counted, every_axis(axes)) if axes else (counted * numbers(tensor.dims), [])

    def of(self, counts: Ints) -> Extent:
        """Measure everything.

        Args:
            counts: (groups,) channels kept.
        """
        sizes = self._table.sizes(counts[None].astype(np.float64))
        macs = added(self._place, self._macs_sum.terms(sizes)[0], self._operations + 1)
        return Extent(
            self._widths.terms(sizes)[0],
            macs[: self._operations],
            added(self._reader, self._read.terms(sizes)[0], self._operations),
            self._macs_parts.without(sizes[0], counts),
            self._params_parts.without(sizes[0], counts),
            self._macs_parts.without(sizes[0], np.minimum(counts, 1)),
        )


class _Parts:
    """What part each group has in the terms of a sum.

    Args:
        total: the sum.
        owned: (groups, columns) indices of each axis that one channel owns.
        weight: (terms,) what each term counts.
    """

    def __init__(self, total: Sum, owned: csr_array, weight: Floats) -> None:
        groups, width = owned.shape
        by_column = owned.tocsc()
        owners = np.diff(by_column.indptr)
        found = [np.empty(0, np.int64)]
        for column in total.columns.T:  # each factor of each term, and the groups that its axis belongs to
            count = owners[column]
            ends = np.cumsum(count)
            at = np.arange(count.sum()) - np.repeat(ends - count, count) + np.repeat(by_column.indptr[column], count)
            found.append(np.repeat(np.arange(len(column)), count) * groups + by_column.indices[at])
        self._term, self._group = np.divmod(np.unique(np.concatenate(found)), max(groups, 1))
        self._columns = total.columns[self._term]
        self._owned = _look_up(owned, self._group[:, None] * width + self._columns)
        self._coefficients = (total.coefficients * weight)[self._term]
        self._groups = groups

    def without(self, sizes: Floats, gone: Ints) -> Floats:
        """Tell what goes with some channels of each group where no other group is cut, (groups,).

        Args:
            sizes: (columns,) of the axes.
            gone: (groups,) channels.
        """
        before = sizes[self._columns]
        after = before - self._owned * gone[self._group][:, None]
        saved = self._coefficients * (before.prod(axis=1) - after.prod(axis=1))
        return added(self._group, saved, self._groups)


def _look_up(table: csr_array, places: Ints) -> Floats:
    """Read numbers of a sparse table at places counted row by row."""
    stored = table.tocoo()
    known = stored.row.astype(np.int64) * table.shape[1] + stored.col
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], places), max(len(order) - 1, 0))
    if not len(order):
        return np.zeros(places.shape)
    found: Floats = np.where(known[order][at] == places, stored.data[order][at], 0.0)
    return found


def _readings(channels: Channels, operations: Sequence[Operation]) -> list[tuple[int, str]]:
    """List which operation reads which stored tensor; of what is computed from several, the largest counts."""
    model = channels.model
    sizes = {name: numbers(tensor.dims) for name, tensor in model.stored.items()}
    origin = {name: name for name in sizes}
    for node in model.graph.nodes:
        names = [t.name for t in node.inputs if t.name]
        if names and all(name in origin for name in names):
            largest = max((origin[name] for name in names), key=sizes.__getitem__)
            origin.update((t.name, largest) for t in node.outputs)
    found = []
    for place, operation in enumerate(operations):
        names = [t.name for t in model.graph.nodes[operation.node].inputs]
        found += [(place, name) for name in dict.fromkeys(origin[name] for name in names if name in origin)]
    return found


def added(place: Ints, values: Floats, count: int) -> Floats:
    """Add up numbers that belong to the same one of some places, (count,)."""
    return np.bincount(place, values, count).astype(np.float64)


def in_doublings(sizes: npt.ArrayLike, unit: float) -> Floats:
    """Put sizes of 1 and more on a scale on which `unit` doublings are 1."""
    found: Floats = np.log2(np.maximum(np.asarray(sizes, np.float64), 1)) / unit
    return found


def in_tens(part: npt.ArrayLike, whole: float) -> Floats:
    """Put shares of a whole on a scale from -1, a ten-thousandth or less, by powers of ten to 1, all of it."""
    share = np.asarray(part, np.float64) / whole if whole > 0 else np.zeros(np.shape(part))
    found: Floats = np.log10(np.clip(share, 1e-4, 1)) / 2 + 1
    return found
