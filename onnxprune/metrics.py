"""What a plan costs, by counting: no surgery, many plans at once.

Every cost is a sum of products of axis sizes, and every axis size is linear in the number of channels kept per group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array, hstack

from onnxprune.channels import Channels
from onnxprune.ops import FREE_OF_MACS, rule_for
from onnxprune.ops.rule import Axes, Factor, Key, Unknown
from onnxprune.shapes import is_default_domain, is_weight, numbers
from onnxprune.weights import NOT_WEIGHTS, Floats, byte_size, item_size

METRICS = ("macs", "params", "file_bytes", "activation_bytes")
LATENCY, MEMORY = "latency_us", "memory_bytes"
"""Microseconds of a run, and what a process needs for it: predicted where they are asked for, see `Costs.predicted`."""
CHUNK = 4_000_000  # numbers of a table of plans by terms that are held at once


@dataclass(frozen=True)
class NodeMacs:
    """The multiply-accumulates of one node.

    Attributes:
        node: its index.
        macs: how many.
        is_free: whether any of its channel axes can shrink.
        reason: index of the reason why its output channels stay, -1 where they are free.
    """

    node: int
    macs: int
    is_free: bool
    reason: int


class Sum:
    """A sum of products of axis sizes.

    Args:
        table: tells the axes that can change from those that never do.
        terms: products, each a coefficient and the axes to multiply.
    """

    def __init__(self, table: _AxisTable, terms: Sequence[tuple[float, Sequence[Factor]]]) -> None:
        self.coefficients = np.ones(len(terms))
        columns: list[list[int]] = []
        for row, (coefficient, factors) in enumerate(terms):
            product = float(coefficient)
            changing = []
            for axes, axis in factors:
                column = table.column(axes, axis)
                if column < 0:
                    product *= axes.shape[axis]
                else:
                    changing.append(column)
            self.coefficients[row] = product
            columns.append(changing)
        width = max(map(len, columns), default=0)
        self.columns = np.full((len(terms), width), table.one, np.int64)
        for row, changing in enumerate(columns):
            self.columns[row, : len(changing)] = changing

    def terms(self, sizes: Floats) -> Floats:
        """Give each product for each plan, (plans, terms), from sizes (plans, changing axes + 1)."""
        result = np.broadcast_to(self.coefficients, (len(sizes), len(self.coefficients))).copy()
        for column in self.columns.T:
            result *= sizes[:, column]
        return result


class _Shared:
    """Small parameters that several nodes share: each that loses some of one gets a copy, the others go on sharing it.

    Nodes of different channels that happen to lose the same indices share a copy in the file; which indices go is not
    known here, so what is counted is never too little.

    Args:
        members: per parameter, the terms of a sum that count it for one or several nodes that always lose alike.
        sizes: (terms,) of the whole parameters.
    """

    def __init__(self, members: Sequence[Sequence[int]], sizes: Sequence[float]) -> None:
        self._terms = np.asarray([term for found in members for term in found], np.int64)
        self._starts = np.cumsum([0, *map(len, members)])[:-1]
        self._sizes = np.asarray(sizes, np.float64)[self._terms]

    def counted_again(self, terms: Floats, weight: Floats) -> Floats:
        """Add up, for each plan, whole parameters that the terms count more than once, each number by its weight."""
        if not len(self._starts):
            return np.zeros(len(terms))
        whole = terms[:, self._terms] >= self._sizes  # prices are asked for one channel more than there are
        again = np.maximum(np.add.reduceat(whole, self._starts, axis=1, dtype=np.int64) - 1, 0)
        return np.asarray(again @ (self._sizes * weight[self._terms])[self._starts])


class _AxisTable:
    """Sizes of the axes that can change, as linear functions of the channels kept per group.

    Most axes are as long as many others at all widths; they share a column.
    """

    def __init__(self, channels: Channels) -> None:
        self._first: dict[Key, int] = {}
        total = 0
        for key, axes in channels.axes.items():
            self._first[key] = total
            total += len(axes)
        groups, none = channels.groups, np.empty(0, np.int64)
        owners = np.repeat(np.arange(len(groups)), [len(g.axes) for g in groups])
        axes_of = np.concatenate([*(g.axes for g in groups), none])
        owned = np.concatenate([*(g.multiplicity for g in groups), none]).astype(np.float64)
        by_axis = csc_array((owned, (owners, axes_of)), shape=(len(groups), total))
        fixed = np.bincount(channels.axis_of, minlength=total) - np.asarray([g.width for g in groups]) @ by_axis
        changing = np.flatnonzero(np.diff(by_axis.indptr))
        columns: dict[tuple[float, bytes, bytes], int] = {}
        self._columns = np.full(total + 1, -1, np.int64)
        for axis in changing:
            part = slice(*by_axis.indptr[axis : axis + 2])
            function = (float(fixed[axis]), by_axis.indices[part].tobytes(), by_axis.data[part].tobytes())
            self._columns[axis] = columns.setdefault(function, len(columns))
        self.one = len(columns)  # the column of a size that is always 1
        different = changing[np.unique(self._columns[changing], return_index=True)[1]]
        self.fixed = np.append(fixed[different], 1.0)
        nothing = csc_array((len(groups), 1))
        self.per_channel = csr_array(hstack([by_axis[:, different], nothing]))

    def column(self, axes: Axes, axis: int) -> int:
        return int(self._columns[self._first[axes.key] + axis])

    def sizes(self, counts: Floats) -> Floats:
        """Give the size of every changing axis, and a column of ones, for each plan."""
        result: Floats = self.fixed + counts @ self.per_channel
        return result


class _Lazy(Mapping[str, Floats]):
    """Costs that are computed when they are looked at: searches look at one, many thousand times."""

    def __init__(self, ways: Mapping[str, Callable[[], Floats]]) -> None:
        self._ways = ways
        self._found: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._found:
            self._found[name] = self._ways[name]()
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ways)

    def __len__(self) -> int:
        return len(self._ways)


class Costs:
    """The costs of plans for one model: ``costs.of(counts)``.

    MACs are the multiply-accumulates of convolutions, matrix products (Einsum and attention among them) and recurrent
    nodes, quantised ones too; params are stored
    numbers other than integers that describe shapes; activation bytes are the most that is alive at once when nodes
    run in the order of the file (inputs and outputs included, in-place work not).

    Attributes:
        predicted: further metrics, which are measured on some plans and predicted for the others.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.table = _AxisTable(channels)
        self.predicted: dict[str, Callable[[Floats], Floats]] = {}
        self._unread = set[int]()
        macs = [(index, factors) for index in range(len(channels.model.graph.nodes)) for factors in self._macs(index)]
        self.macs_nodes = [index for index, _ in macs]
        self._macs_factors = [factors for _, factors in macs]
        self.macs_sum = Sum(self.table, [(1, factors) for factors in self._macs_factors])
        self._set_up_params()
        self._set_up_activations()

    def of(self, counts: npt.ArrayLike) -> Mapping[str, Floats]:
        """Cost plans, given the channels they keep per group.

        Args:
            counts: (plans, groups), or (groups,) for one plan; fractions are allowed.

        Returns:
            Per metric an array (plans,), what is predicted among them; each is computed when it is first looked at.
        """
        table = np.array(counts, np.float64, ndmin=2)
        return _Lazy({**self._ways(table), **{name: partial(way, table) for name, way in self.predicted.items()}})

    def counted(self, counts: npt.ArrayLike) -> Mapping[str, Floats]:
        """Give what follows from counting alone, see `of`."""
        return _Lazy(self._ways(np.array(counts, np.float64, ndmin=2)))

    def _ways(self, counts: Floats) -> dict[str, Callable[[], Floats]]:
        ways = (self._macs_of, self._params_of, self._file_bytes_of, self._activation_bytes_of)
        return {name: partial(self._in_parts, way, counts) for name, way in zip(METRICS, ways, strict=True)}

    def _in_parts(self, way: Callable[[Floats], Floats], counts: Floats) -> Floats:
        """Cost many plans, of which not all need fit into memory at once."""
        rows = max(1, CHUNK // max(1, len(self._activation_sum.coefficients), self.table.one))
        parts = [way(self.table.sizes(counts[start : start + rows])) for start in range(0, len(counts), rows)]
        return np.concatenate([*parts, np.empty(0)])

    def _macs_of(self, sizes: Floats) -> Floats:
        return np.asarray(self.macs_sum.terms(sizes).sum(axis=1))

    def _params_of(self, sizes: Floats) -> Floats:
        return self._stored(sizes, self.is_param)

    def _file_bytes_of(self, sizes: Floats) -> Floats:
        return np.asarray(self._other_bytes + self._stored(sizes, self._bytes_each))

    def _stored(self, sizes: Floats, weight: Floats) -> Floats:
        """Add up the numbers that are stored, each by its weight."""
        terms = self.param_sum.terms(sizes)
        return np.asarray(terms @ weight - self._shared.counted_again(terms, weight))

    def _activation_bytes_of(self, sizes: Floats) -> Floats:
        alive = np.cumsum(self._activation_sum.terms(sizes) @ self._steps, axis=1)
        return np.asarray(alive.max(axis=1, initial=0))

    def per_node(self) -> list[NodeMacs]:
        """List the nodes that multiply and accumulate, uncut, with what holds their output channels."""
        full = self.macs_sum.terms(self.table.sizes(np.asarray([[g.width for g in self.channels.groups]], float)))[0]
        found: dict[int, NodeMacs] = {}
        for index, factors, macs in zip(self.macs_nodes, self._macs_factors, full, strict=True):
            before = found.get(index)
            is_free = any(self.table.column(axes, axis) >= 0 for axes, axis in factors)
            out, axis = factors[0]
            reason = self.channels.reason_of[out[axis]]
            held = int(reason.max(initial=-1)) if (reason >= 0).all() else -1
            found[index] = NodeMacs(
                index,
                round(macs) + (before.macs if before else 0),
                is_free or (before is not None and before.is_free),
                held,
            )
        return list(found.values())

    def uncounted(self) -> list[str]:
        """Name the operators that may compute but that no rule can count."""
        return sorted(
            {
                node.op if is_default_domain(node.domain) else f"{node.domain}.{node.op}"
                for index, node in enumerate(self.channels.model.graph.nodes)
                if (rule_for(node) is None and not (is_default_domain(node.domain) and node.op in FREE_OF_MACS))
                or index in self._unread
            }
        )

    def _macs(self, index: int) -> list[list[Factor]]:
        node = self.channels.model.graph.nodes[index]
        rule = rule_for(node)
        if rule is None or index in self.channels.model.size_nodes or index in self.channels.shuffles:
            return []
        view = self.channels.view(index)
        tensors = zip([*node.inputs, *node.outputs], [*view.inputs, *view.outputs], strict=True)
        unknown = any(tensor.name and axes is None for tensor, axes in tensors)
        if unknown:
            return []
        try:
            return rule.macs(view)
        except Unknown:  # the rule cannot read the node, so that it is frozen, too
            self._unread.add(index)
            return []

    def _set_up_params(self) -> None:
        terms: list[tuple[float, Sequence[Factor]]] = []
        is_param, bytes_each, sizes = list[float](), list[float](), list[float]()
        shared = list[range]()
        changing_bytes = 0
        for name, tensor in self.channels.model.stored.items():
            is_counted = tensor.data_type not in NOT_WEIGHTS
            total = numbers(tensor.dims)
            copies = self._copies(name)
            if copies:
                changing_bytes += byte_size(tensor)
            elif not is_counted:
                continue
            found = [(1.0, [(axes, axis) for axis in range(len(axes))]) for axes in copies] or [(float(total), [])]
            if len(found) > 1:
                shared.append(range(len(terms), len(terms) + len(found)))
            terms += found
            is_param += [float(is_counted)] * len(found)
            bytes_each += [byte_size(tensor) / total if copies and total else 0.0] * len(found)
            sizes += [float(total)] * len(found)
        self.param_sum = Sum(self.table, terms)
        self.is_param = np.asarray(is_param)
        self._bytes_each = np.asarray(bytes_each)
        self._shared = _Shared(shared, sizes)
        self._other_bytes = _file_bytes(self.channels) - changing_bytes

    def _copies(self, name: str) -> list[Axes]:
        """Give the axes of a stored tensor, of each copy that may become of a shared one; none where it stays whole."""
        keys: Sequence[Key] = self.channels.readers.get(name, (name,))
        found = [self.channels.axes[key] for key in keys if key in self.channels.axes]
        alike = {self.channels.channel_of[axes.start : axes.end].tobytes(): axes for axes in reversed(found)}
        return list(alike.values())[::-1]

    def _set_up_activations(self) -> None:
        model = self.channels.model
        nodes = model.graph.nodes
        first: dict[str, int] = dict.fromkeys(model.bound, 0)
        last: dict[str, int] = dict.fromkeys(model.bound, 0)
        for step, node in enumerate(nodes):
            for tensor in node.outputs:
                if tensor.name not in model.stored and tensor.name not in self.channels.aliases.root:
                    first[tensor.name] = last[tensor.name] = step
            for tensor in node.inputs:
                last[tensor.name] = step
        for tensor in model.graph.outputs:
            last[tensor.name] = max(len(nodes) - 1, 0)
        known = [(name, axes) for name in first if (axes := self.channels.axes.get(name)) is not None]
        self._activation_sum = Sum(
            self.table,
            [(item_size(model.types.get(name, 1)), [(a, i) for i in range(len(a))]) for name, a in known],
        )
        rows = np.repeat(np.arange(len(known)), 2)
        steps = np.asarray([(first[name], last[name] + 1) for name, _ in known], np.int64).reshape(-1)
        signs = np.tile([1.0, -1.0], len(known))
        self._steps = csr_array((signs, (rows, steps)), shape=(len(known), len(nodes) + 1))


def _file_bytes(channels: Channels) -> int:
    """Estimate the size of the model's file, external data included, without writing it."""
    large = [t for t in channels.model.stored.values() if is_weight(t)]
    return channels.model.frame_bytes + sum(map(byte_size, large))
