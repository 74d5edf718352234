"""What a search is told of each group: its place in the network, what it costs, what it is worth, whom it meets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from onnxprune.blocks import Blocks
from onnxprune.channels import Channels
from onnxprune.extents import Extent, Extents, added, in_doublings, in_tens
from onnxprune.weights import Floats, Ints
from onnxprune.worths import Worths

EXTRA = 3  # columns that a caller may add
MOST_PAIRS = 1024  # groups that are connected each to each; of more, each is connected to one

GROUP_FEATURES = (
    *("width", "kept width", "kept share"),
    *("macs", "original macs", "params", "original params", "macs of one channel"),
    *("first place", "mean place", "last place", "positions"),
    *("axes", "indices of one channel", "frozen share", "foreign share", "approximate"),
    *("makers", "readers", "kernel", "stride", "depthwise", "grouped", "product"),
    *("residual", "gated", "joined", "attention"),
    *("low worth", "median worth", "high worth", "share of all worth"),
    *("lost worth", "next worth", "next worth for its macs"),
    *(f"extra {number}" for number in range(EXTRA)),
)
"""The features of a node of the last stage, in order.

Sizes are logarithms (1: four doublings; positions: six; kernel: three; stride: two), costs are shares of the original's
(-1: a ten-thousandth, 0: a hundredth, 1: all), worths powers of ten of the usual group's. Places go from 0 to 1. What
goes with one channel counts as often as the group had channels: more than ``macs`` where some of them are gone. Of the
operations that touch a group the largest kernel and stride count, and whether one of a family is among them.
"""

GROUP_EDGE_FEATURES = (
    *("mixes", "passes", "from frozen", "into frozen", "meets", "next", "reversed"),
    *("kernel", "stride", "macs", "original macs"),
)
"""The features of an edge of the last stage: what connects two groups, and what operation does it."""

Link = tuple[int, int, int, int]
"""An edge: groups from and to, the number of its kind among `GROUP_EDGE_FEATURES`, the operation behind it or -1."""

MIXES, PASSES, FROM_FROZEN, INTO_FROZEN, MEETS, NEXT, REVERSED = range(7)


class Groups:
    """The groups of a model as nodes of a graph.

    Args:
        channels: of the model.
        blocks: what the model computes with data.
        extents: how large that is.
        importance: per group the worth of each channel; empty where nothing is known of it.

    Attributes:
        touched: (2, pairs) groups, and operations that read or make their channels.
        edges: (2, edges) groups from and to.
        operation: (edges,) the operation behind each edge, -1 for none.
    """

    def __init__(self, channels: Channels, blocks: Blocks, extents: Extents, importance: Sequence[Floats]) -> None:
        self._groups = channels.groups
        self._widths = np.asarray([group.width for group in channels.groups], np.int64)
        self._operations = blocks.operations
        self._extents = extents
        self._worths = Worths(importance, self._widths)
        on_axis = _groups_on_axes(channels)
        self._on = _groups_on_tensors(channels, extents, on_axis)
        pairs = [
            (group, place)
            for place, operation in enumerate(blocks.operations)
            for group in self._of((*operation.reads, *operation.makes))
        ]
        self.touched = np.asarray(pairs, np.int64).reshape(-1, 2).T
        self._depth = blocks.depth / max(int(blocks.depth.max(initial=0)), 1)
        links = [*self._of_operations(), *_meetings(on_axis), *self._neighbours()]
        self._fixed = {**self._measures(channels, extents), **self._kinds(links)}
        self._set_edges(links)

    def _of(self, names: Sequence[str]) -> list[int]:
        """List the groups whose channels some tensors have."""
        return list(dict.fromkeys(group for name in names for group in self._on.get(name, ())))

    def _of_operations(self) -> Iterator[Link]:
        """Connect the groups that an operation reads to those it makes; where a side is frozen, to themselves."""
        for place in np.flatnonzero(self._extents.original.macs):
            operation = self._operations[place]
            read, made = self._of(operation.reads), self._of(operation.makes)
            passing = [group for group in read if group in set(made)]
            if operation.parts > 1 and passing:
                yield from ((group, group, PASSES, int(place)) for group in passing)
            elif read and made:
                links = ((*pair, PASSES if pair[0] == pair[1] else MIXES) for pair in _pairs(read, made))
                yield from ((*link, int(place)) for link in links)
            else:
                yield from ((group, group, FROM_FROZEN, int(place)) for group in made)
                yield from ((group, group, INTO_FROZEN, int(place)) for group in read)

    def _neighbours(self) -> Iterator[Link]:
        """Connect groups that begin at one depth to those that begin next, so that all of them hear of each other."""
        first, _, _ = self._places()
        order = np.argsort(first, kind="stable")
        levels = [part.tolist() for part in np.split(order, np.flatnonzero(np.diff(first[order])) + 1)]
        for before, after in pairwise(levels):
            yield from ((*pair, NEXT, -1) for pair in _pairs(before, after))

    def _places(self) -> tuple[Floats, Floats, Floats]:
        """Find where the operations that touch each group are: first, mean and last."""
        group, place = self.touched
        first, last = np.ones(len(self._widths)), np.zeros(len(self._widths))
        np.minimum.at(first, group, self._depth[place])
        np.maximum.at(last, group, self._depth[place])
        return first, self._mean(group, self._depth[place]), last

    def _mean(self, group: Ints, values: Floats) -> Floats:
        count = np.bincount(group, minlength=len(self._widths))
        return added(group, values, len(self._widths)) / np.maximum(count, 1)

    def _measures(self, channels: Channels, extents: Extents) -> dict[str, Floats]:
        """Measure what no plan changes."""
        group, place = self.touched
        first, mean, last = self._places()
        tensors = [(member, extents.tensors[name]) for name, members in self._on.items() for member in members]
        member, tensor = np.asarray(tensors, np.int64).reshape(-1, 2).T
        axes = np.concatenate([*(g.axes for g in self._groups), np.empty(0, np.int64)])
        owner = np.repeat(np.arange(len(self._groups)), [len(g.axes) for g in self._groups])
        owned = np.concatenate([*(g.multiplicity for g in self._groups), np.empty(0, np.int64)])
        total = self._sum(owner, np.bincount(channels.axis_of)[axes])
        held = self._sum(owner, np.bincount(channels.axis_of, channels.channel_of < 0)[axes])
        own = self._sum(owner, owned) * self._widths
        kernel, stride = (
            self._largest(group, np.asarray([getattr(self._operations[at], name) for at in place], np.float64))
            for name in ("kernel", "stride")
        )
        return {
            "width": in_doublings(self._widths, 4),
            "first place": first,
            "mean place": mean,
            "last place": last,
            "positions": self._mean(member, in_doublings(extents.places[tensor], 6)),
            "axes": in_doublings([len(g.axes) for g in self._groups], 4),
            "indices of one channel": in_doublings(self._largest(owner, owned), 4),
            "frozen share": held / total,
            "foreign share": (total - held - own) / total,
            "approximate": np.asarray([g.is_approximate for g in self._groups], np.float64),
            "kernel": in_doublings(kernel, 3),
            "stride": in_doublings(stride, 2),
        }

    def _kinds(self, links: Sequence[Link]) -> dict[str, Floats]:
        """Tell what kinds of operations touch each group."""
        group, place = self.touched

        def touches(*families: str, reads: int = 1) -> Floats:
            found = [op.family in families and len(op.reads) >= reads for op in self._operations]
            return np.asarray(self._sum(group, np.asarray(found, bool)[place]) > 0, np.float64)

        made = {(target, place) for _, target, kind, place in links if kind in (MIXES, FROM_FROZEN)}
        read = {(source, place) for source, _, kind, place in links if kind in (MIXES, INTO_FROZEN)}
        makers, readers = (np.bincount([g for g, _ in found], minlength=len(self._groups)) for found in (made, read))
        return {
            "makers": in_doublings(makers + 1, 4),
            "readers": in_doublings(readers + 1, 4),
            "depthwise": touches("depthwise"),
            "grouped": touches("grouped"),
            "product": touches("product"),
            "residual": touches("add", reads=2),
            "gated": touches("mul", reads=2),
            "joined": touches("concat"),
            "attention": touches("softmax", "attention"),
        }

    def _sum(self, group: Ints, values: npt.NDArray[np.generic]) -> Floats:
        return added(group, np.asarray(values, np.float64), len(self._widths))

    def _largest(self, group: Ints, values: npt.NDArray[np.generic]) -> Floats:
        found = np.zeros(len(self._widths))
        np.maximum.at(found, group, np.asarray(values, np.float64))
        return found

    def _set_edges(self, links: Sequence[Link]) -> None:
        """Draw each link both ways."""
        links = list(dict.fromkeys(links))
        back = [(target, source, kind, place) for source, target, kind, place in links if source != target]
        table = np.asarray([*links, *back], np.int64).reshape(-1, 4)
        self.edges, self.operation = table[:, :2].T, table[:, 3]
        self._edge_features = np.zeros((len(table), len(GROUP_EDGE_FEATURES)))
        self._edge_features[np.arange(len(table)), table[:, 2]] = 1
        self._edge_features[len(links) :, REVERSED] = 1
        found = np.flatnonzero(self.operation >= 0)
        columns = {name: number for number, name in enumerate(GROUP_EDGE_FEATURES)}
        for name, unit in (("kernel", 3), ("stride", 2)):
            sizes = [getattr(self._operations[place], name) for place in self.operation[found]]
            self._edge_features[found, columns[name]] = in_doublings(sizes, unit)
        macs = self._of_all_macs(self._extents.original)
        self._edge_features[found, columns["original macs"]] = macs[self.operation[found]]

    def _of_all_macs(self, extent: Extent) -> Floats:
        return in_tens(extent.macs, self._extents.macs)

    def edge_features(self, extent: Extent) -> Floats:
        """Describe the edges, (edges, features), see `GROUP_EDGE_FEATURES`."""
        features = self._edge_features.copy()
        macs = np.append(self._of_all_macs(extent), 0)
        features[:, GROUP_EDGE_FEATURES.index("macs")] = macs[self.operation]
        return features

    def node_features(self, counts: Ints, extent: Extent, extra: npt.ArrayLike | None = None) -> Floats:
        """Describe the nodes, (groups, features), see `GROUP_FEATURES`.

        Args:
            counts: (groups,) channels kept.
            extent: how large everything is with them.
            extra: (groups, `EXTRA`) what the caller knows beside.
        """
        macs, params, original = self._extents.macs, self._extents.params, self._extents.original
        beside = np.zeros((len(counts), EXTRA)) if extra is None else np.asarray(extra, np.float64)
        columns = {
            **self._fixed,
            **self._worths.columns(counts, extent.next_macs / max(macs, 1)),
            "kept width": in_doublings(counts, 4),
            "kept share": counts / self._widths,
            "macs": in_tens(extent.group_macs, macs),
            "original macs": in_tens(original.group_macs, macs),
            "params": in_tens(extent.group_params, params),
            "original params": in_tens(original.group_params, params),
            "macs of one channel": in_tens(extent.next_macs * self._widths, macs),
            **{f"extra {number}": column for number, column in enumerate(beside.T)},
        }
        return np.stack([columns[name] for name in GROUP_FEATURES], axis=1)


def _groups_on_axes(channels: Channels) -> dict[int, list[int]]:
    """List the groups on each axis that has some, in the order of their first atoms."""
    owner = np.full(channels.count, -1, np.int64)
    for number, group in enumerate(channels.groups):
        owner[group.channels] = number
    atoms = np.flatnonzero(channels.channel_of >= 0)
    pairs = channels.axis_of[atoms] * max(len(channels.groups), 1) + owner[channels.channel_of[atoms]]
    found, first = np.unique(pairs, return_index=True)
    by_axis: dict[int, list[int]] = {}
    for axis, group in zip(*np.divmod(found[np.argsort(first)], max(len(channels.groups), 1)), strict=True):
        by_axis.setdefault(int(axis), []).append(int(group))
    return by_axis


def _groups_on_tensors(channels: Channels, extents: Extents, on_axis: dict[int, list[int]]) -> dict[str, list[int]]:
    """List the groups on each activation that has some."""
    found = {}
    first = 0
    for key, axes in channels.axes.items():
        if isinstance(key, str) and key in extents.tensors:
            groups = [group for axis in range(first, first + len(axes)) for group in on_axis.get(axis, ())]
            found[key] = list(dict.fromkeys(groups))
        first += len(axes)
    return found


def _meetings(on_axis: dict[int, list[int]]) -> Iterator[Link]:
    """Connect groups that share an axis, each to the next one on it."""
    pairs = dict.fromkeys(pair for groups in on_axis.values() for pair in pairwise(groups))
    yield from ((*pair, MEETS, -1) for pair in pairs)


def _pairs(left: Sequence[int], right: Sequence[int]) -> list[tuple[int, int]]:
    """Pair each with each, or with one where that would be too many."""
    if len(left) * len(right) <= MOST_PAIRS:
        return list(product(left, right))
    return [(left[at % len(left)], right[at % len(right)]) for at in range(max(len(left), len(right)))]
