"""Structured OBS: which channels the others can stand in for, and what error is left without them.

With H the inverse covariance of what a layer sums over, and w the weights of some of its inputs, the layer's answer
changes by w' (H restricted to these inputs)^-1 w once they are gone and the rest is fitted again; H and the weights of
the rest follow in closed form (Hassibi and Stork, "Optimal Brain Surgeon", 1993, for blocks of weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Group
from onnxprune.ops.rule import Mask
from onnxprune.readers import Reader
from onnxprune.statistics import Statistics
from onnxprune.weights import Array, Floats, Ints

STEPS = 64  # a wide group loses several channels at once, in about this many steps
HELD_BYTES = 2_000_000_000  # of inverse covariances that are held for the next group


@dataclass
class Consumer:
    """One layer that reads the channels of a group, seen from that group.

    Attributes:
        channels: positions in the group of the channels that it reads, ascending.
        inverse: the rows and columns of the inverse covariance that belong to the group, (numbers, numbers).
        weight: what each output makes of these numbers, (numbers, outputs).
        blocks: per channel that it reads, which numbers are its own, (channels, numbers each).
    """

    channels: Ints
    inverse: Floats
    weight: Floats
    blocks: Ints

    def losses(self, channels: Ints) -> Floats:
        """Give for each of some channels the error that is left once it is gone and the others stand in for it."""
        is_read, at = self._at(channels)
        rows = self.weight[at]
        solved = np.linalg.solve(self.inverse[at[:, :, None], at[:, None, :]], rows)
        found = np.zeros(len(channels))
        found[is_read] = np.einsum("cno,cno->c", rows, solved)
        return found

    def _at(self, channels: Ints) -> tuple[Mask, Ints]:
        """Tell which channels it reads, and which numbers are theirs (channels read, numbers each)."""
        place = np.searchsorted(self.channels, channels)
        is_read = self.channels[np.minimum(place, len(self.channels) - 1)] == channels
        return is_read, self.blocks[place[is_read]]

    def remove(self, channels: Ints) -> float:
        """Take channels away and let the others stand in for them; returns the error that this adds."""
        at = self._at(channels)[1].reshape(-1)
        if not len(at):
            return 0.0
        columns = self.inverse[:, at]
        solved = np.linalg.solve(columns[at], np.concatenate([self.weight[at], columns.T], axis=1))
        outputs = self.weight.shape[1]
        loss = float(np.einsum("no,no->", self.weight[at], solved[:, :outputs]))
        self.weight -= columns @ solved[:, :outputs]
        self.inverse -= columns @ solved[:, outputs:]
        self.weight[at] = 0
        self.inverse[at] = 0
        self.inverse[:, at] = 0
        self.inverse[at, at] = 1
        return loss


class Curves:
    """What it costs to take the channels of a group away, group by group.

    Args:
        statistics: of the model's layers.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self._inverses: dict[tuple[object, ...], Floats] = {}
        self._used = 0

    def of(self, group: Group) -> Floats | None:
        """Give the error that each channel of a group adds when it leaves after all that are easier to replace.

        An error of 1 is the variance of the tensor that the layer's output becomes a part of. Errors of all layers
        that read the group are added up. Later channels never add less than earlier ones.

        Returns:
            (channels,), None where no layer reads the group.
        """
        consumers = [c for reader in self.statistics.readers for c in self._consumers(group, reader)]
        if not consumers:
            return None
        order, added = eliminate(consumers, group.width)
        errors = np.empty(group.width)
        errors[order] = np.maximum.accumulate(added)
        return errors

    def _consumers(self, group: Group, reader: Reader) -> list[Consumer]:
        """Look at a layer from a group, once for each of its own groups and each block of its covariance."""
        channel = self.statistics.channels.channel_of
        position = np.full(self.statistics.channels.count + 1, -1)  # the last is where `channel_of` says FROZEN
        position[group.channels] = np.arange(group.width)
        member = position[channel[reader.layer.x]]
        member[reader.goes_along(channel)] = -1  # nobody is left who could miss them
        if (member < 0).all():
            return []
        inverse = self._inverse(reader)
        weight = reader.landed_weight / np.sqrt(max(self.statistics.unit[reader.layer.index], 1e-30))
        groups, blocks, size, _ = inverse.shape
        found = []
        for own in range(groups):
            rows = weight[own].transpose(1, 2, 0).reshape(-1, weight.shape[1])
            for block in range(blocks):
                owner = np.repeat(member[own], weight.shape[3])[block * size : (block + 1) * size]
                at = np.flatnonzero(owner >= 0)
                if len(at):
                    found.append(_consumer(inverse[own, block][np.ix_(at, at)], rows[block * size + at], owner[at]))
        return found

    def _inverse(self, reader: Reader) -> Floats:
        """Invert the covariance of what a layer reads, (groups, blocks, numbers, numbers)."""
        key = (*reader.rows_key, reader.is_centred)
        if key not in self._inverses:
            inverse = np.asarray(np.linalg.inv(self.statistics.inputs(reader).regular(reader.is_centred)), np.float64)
            if self._used + inverse.nbytes > HELD_BYTES:
                self._inverses.clear()
                self._used = 0
            self._inverses[key] = inverse
            self._used += inverse.nbytes
        return self._inverses[key]


def _consumer(inverse: Floats, weight: Array, owner: Ints) -> Consumer:
    """Sort numbers by the channel they belong to; channels with fewer of them than others get empty ones."""
    channels, owner = np.unique(owner, return_inverse=True)
    counts = np.bincount(owner)
    most = int(counts.max())
    order = np.argsort(owner, kind="stable")
    empty = int(len(channels) * most - counts.sum())
    blocks = np.full((len(channels), most), -1)
    within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    blocks[owner[order], within] = order
    blocks[blocks < 0] = len(order) + np.arange(empty)
    padded = np.eye(len(order) + empty)
    padded[: len(order), : len(order)] = inverse
    weights = np.zeros((len(order) + empty, weight.shape[1]))
    weights[: len(order)] = weight
    return Consumer(channels, padded, weights, blocks)


def eliminate(consumers: Sequence[Consumer], width: int) -> tuple[Ints, Floats]:
    """Take all channels of a group away, those first that the others stand in for best.

    Returns:
        The channels in the order in which they leave, and the error that each adds.
    """
    left = np.arange(width)
    at_once = -(-width // STEPS)
    order, added = [], []
    while len(left):
        losses = sum((consumer.losses(left) for consumer in consumers), np.zeros(len(left)))
        chosen = left[np.argsort(losses, kind="stable")[:at_once]]
        error = sum(consumer.remove(chosen) for consumer in consumers)
        order.append(chosen)
        added.append(np.full(len(chosen), max(error, 0.0) / len(chosen)))
        left = np.setdiff1d(left, chosen)
    return np.concatenate(order), np.concatenate(added)
