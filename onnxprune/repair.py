"""Repair what a cut broke, without labels: fit each layer again so that it answers what it answered before.

Layers are fitted in the order of the graph, each on its input as it really arrives in the cut network, with the layers
before it repaired already. What cannot be made up for is left to the layers behind: where a layer's output is added to
another tensor, it is fitted to the sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto

from onnxprune.batchnorm import estimate, restate, stored_norms
from onnxprune.linear import by_group
from onnxprune.moments import Fit, best_fit, new_sums
from onnxprune.numbers import Numbers
from onnxprune.original import Original
from onnxprune.patches import Patches, Places
from onnxprune.plan import Plan, kept_atoms
from onnxprune.progress import Progress, Quiet
from onnxprune.seats import Seat, add_to_bias, find_seats, write
from onnxprune.statistics import Inputs, Statistics
from onnxprune.weights import Array

UNSEEN = 5  # one sample in so many is kept from each fit, to choose its ridge by
WEAKEST = 1e-2  # part of the usual gain at which a layer can still make up for what is added to its output
STRETCH = 10.0  # most that moment matching multiplies a channel by


class Repair:
    """One repair in progress.

    Args:
        original: what layers should answer.
        plan: what was cut.
        cut: the cut model; it stays as it is.
        progress: told which layer it is at.
    """

    def __init__(self, original: Original, plan: Plan, cut: ModelProto, progress: Progress | None = None) -> None:
        channels = original.channels
        self.original = original
        self.keep = kept_atoms(channels, plan)
        self.numbers = Numbers(cut, channels.model.folder)
        self.seats = find_seats(channels, original.readers, self.keep, cut)
        self.walk = original.walk(self.numbers.proto)
        self.progress = progress or Quiet()

    def least_squares(self) -> ModelProto:
        """Fit each layer to what it answered in the original; what BatchNormalization stores is restated."""
        for index, seat in self._stops(self._first_changed()):
            if seat is None:
                restate(index, self._arriving(index), self.numbers)
            else:
                self._fit(seat)
        return self.numbers.proto

    def _stops(self, first: int = 0) -> Iterator[tuple[int, Seat | None]]:
        """Walk from layer to layer, and to each BatchNormalization (None), in the order of the graph."""
        stops: dict[int, Seat | None] = dict.fromkeys(stored_norms(self.numbers))
        stops.update((seat.node, seat) for seat in self.seats)
        for number, index in enumerate(sorted(stops)):
            self.progress.step(number, len(stops))
            if index >= first:
                self.walk.advance(index)
                yield index, stops[index]

    def _first_changed(self) -> int:
        """Find the first node that reads less than it did; what comes before answers as before."""
        axes = self.original.channels.axes
        cut = {name for name, found in axes.items() if not self.keep[found.start : found.end].all()}
        cut -= set(self.original.channels.model.stored)
        nodes = self.numbers.proto.graph.node
        return next((i for i, node in enumerate(nodes) if not cut.isdisjoint(node.input)), len(nodes))

    def match_moments(self) -> ModelProto:
        """Estimate BatchNormalization anew, and give every other layer's outputs the mean and spread they had."""
        nodes = self.numbers.proto.graph.node
        norms = set(stored_norms(self.numbers))
        normalised = {nodes[index].input[0] for index in norms}
        for index, seat in self._stops():
            if seat is None:
                estimate(index, self._arriving(index), self.numbers)
            elif seat.reader.y not in normalised and (seat.bias is None or seat.bias[0] not in norms):
                self._match(seat)
        return self.numbers.proto

    def _arriving(self, index: int) -> Iterator[Array]:
        """Give what a node reads, batch by batch."""
        name = self.numbers.proto.graph.node[index].input[0]
        return (batch[name] for batch in self.walk.taps([name]))

    def _match(self, seat: Seat) -> None:
        """Scale and shift the outputs of a layer to the mean and spread they had."""
        weight = self.numbers.get(seat.weight)
        if weight is None:
            return
        how, name = seat.reader.patches, seat.reader.y
        sums = np.zeros((5, len(seat.groups), seat.outputs.shape[1]))  # ours and theirs, plain and squared; rows
        for target, batch in zip(self.original.targets(seat.reader), self.walk.taps([name]), strict=True):
            ours = how.targets(batch[name], target.places, len(seat.groups)).astype(np.float64)
            theirs = seat.kept(target.y).astype(np.float64)
            parts = (ours.sum(1), (ours**2).sum(1), theirs.sum(1), (theirs**2).sum(1), ours.shape[1])
            for total, part in zip(sums, parts, strict=True):
                total += part
        mean, square, wanted_mean, wanted_square = sums[:4] / np.maximum(sums[4], 1)
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        wanted = np.sqrt(np.maximum(wanted_square - wanted_mean**2, 0))
        scale = np.clip(np.where(spread > 1e-6 * wanted, wanted / np.maximum(spread, 1e-30), 1), 0, STRETCH)
        own = scale if seat.bias is not None and seat.bias[0] == seat.node else np.ones_like(scale)
        offset = wanted_mean - scale * mean
        values = self._weight(seat)
        assert values is not None
        scaled = seat.reader.layer.layout(values * scale[:, :, None, None], weight.shape)
        self.numbers.set(seat.weight, scaled.astype(weight.dtype))
        if seat.bias is not None:
            bias = self.numbers.get(seat.bias)
            assert bias is not None
            # y = scale * (sum + bias) + offset: the layer's own bias is scaled with the rest
            self.numbers.set(seat.bias, (bias.astype(np.float64) * own.reshape(bias.shape)).astype(bias.dtype))
            add_to_bias(seat, offset, self.numbers)

    def _fit(self, seat: Seat) -> None:
        weight = self._weight(seat)
        if weight is None:
            return
        groups, outputs, inputs, kernel = weight.shape
        slope = weight.reshape(groups, outputs, -1).swapaxes(1, 2).astype(np.float32) * np.float32(
            seat.reader.layer.scale
        )
        seen = new_sums(groups, inputs * kernel, outputs)
        unseen = new_sums(groups, inputs * kernel, outputs)
        for x, missing, end in self._rows(seat, slope):
            seen.add(x[:, :end], missing[:, :end])
            unseen.add(x[:, end:], missing[:, end:])
        found = best_fit(seen, unseen, seat.bias is not None)
        if found is not None:
            write(seat, found, self.numbers)

    def _rows(self, seat: Seat, slope: Array) -> Iterator[tuple[Array, Array, int]]:
        """Give rows of the input as it arrives, what the layer's answer to them lacks, and how many the fit may see."""
        reader, groups = seat.reader, len(seat.groups)
        how, partner = reader.patches, reader.landing.partner
        if partner is not None and partner not in self.walk.live(seat.node) and partner != reader.x:
            partner = None  # it is computed later, from layers that are not repaired yet
        names = [reader.x] if partner is None else [reader.x, partner]
        bias = self._own_bias(seat)
        gain = seat.per_output(reader.landing.gain)
        weakest = WEAKEST * float(np.median(np.abs(gain)))
        gain = np.where(np.abs(gain) > weakest, gain, np.inf)
        pairs = zip(self.original.targets(reader), self.walk.taps(names), strict=True)
        for number, (target, batch) in enumerate(pairs):
            x = how.rows(batch[reader.x], target.sizes, target.places, groups)
            missing = seat.kept(target.y) - x @ slope - bias
            if partner is not None and target.partner is not None:
                given, added = batch[reader.x], batch[partner]  # which may be of one sample, for all of them
                shape = (*given.shape[:-1], added.shape[-1])
                if how.is_convolution:
                    shape = (len(given), added.shape[1], *target.sizes)
                ours = how.targets(np.broadcast_to(added, shape), target.places, groups).astype(missing.dtype)
                missing = missing + ((seat.kept(target.partner) - ours) / gain).astype(missing.dtype)
            yield x, missing, self._seen_rows(batch[reader.x], how, target.places, x.shape[1], number)

    def _seen_rows(self, x: Array, how: Patches, places: Places, rows: int, batch: int) -> int:
        """Tell how many rows of a batch a fit may see: those of most samples, or all of most batches of few samples."""
        if len(x) >= UNSEEN:
            samples = len(x) - len(x) // UNSEEN
            return how.rows_of(samples, x.shape, places)
        if len(self.original.data) < UNSEEN:
            return rows - rows // UNSEEN
        return 0 if batch % UNSEEN == 0 else rows

    def _own_bias(self, seat: Seat) -> Array:
        """Give what the layer itself adds to its outputs, (groups, 1, outputs)."""
        layer, none = seat.reader.layer, np.zeros(1, np.float32)
        bias = None if len(self.numbers.proto.graph.node[seat.node].input) < 3 else self.numbers.get((seat.node, 2))
        values = none if bias is None else bias.reshape(-1) * layer.beta
        return np.broadcast_to(values, seat.outputs.size).reshape(len(seat.groups), 1, -1).astype(np.float32)

    def _weight(self, seat: Seat) -> Array | None:
        """Read a weight of the cut model as (groups, outputs, inputs, kernel)."""
        values = self.numbers.get(seat.weight)
        return None if values is None else by_group(values, len(seat.groups), seat.reader.layer.outputs_first)


def stand_in(statistics: Statistics, plan: Plan, cut: ModelProto) -> ModelProto:
    """Let the inputs that each layer keeps stand in for those it lost, as they were in the original.

    No model runs: what the inputs have in common is known from statistics. Errors that arrive from earlier layers are
    not made up for; see `Repair.least_squares`.
    """
    channels = statistics.channels
    numbers = Numbers(cut, channels.model.folder)
    for seat in find_seats(channels, statistics.readers, kept_atoms(channels, plan), cut):
        if seat.is_cut:
            _stand_in(statistics.inputs(seat.reader), seat, numbers)
    return numbers.proto


def _stand_in(inputs: Inputs, seat: Seat, numbers: Numbers) -> None:
    layer = seat.reader.layer
    kernel = layer.weight.shape[-1]
    shape = (len(seat.groups), seat.inputs.shape[1] * kernel, seat.outputs.shape[1])
    slope, offset = np.zeros(shape), np.zeros((shape[0], shape[2]))
    covariances = inputs.regular(seat.reader.is_centred)
    for row, group in enumerate(seat.groups):
        is_kept = np.repeat(np.isin(np.arange(layer.x.shape[1]), seat.inputs[row]), kernel)
        weight = layer.weight[group].transpose(1, 2, 0).reshape(len(is_kept), -1)[:, seat.outputs[row]]
        mean = inputs.mean[group]
        kept_before = 0
        for block, covariance in enumerate(covariances[group]):
            part = slice(block * inputs.block, (block + 1) * inputs.block)
            kept, gone = np.flatnonzero(is_kept[part]), np.flatnonzero(~is_kept[part])
            if len(kept) and len(gone):
                ours = covariance[np.ix_(kept, kept)]
                theirs = covariance[np.ix_(kept, gone)] @ weight[part][gone]
                slope[row, kept_before : kept_before + len(kept)] = np.linalg.solve(ours, theirs)
            kept_before += len(kept)
        if seat.reader.is_centred:
            offset[row] = mean[~is_kept] @ weight[~is_kept] - mean[is_kept] @ slope[row]
    write(seat, Fit(slope * layer.scale, offset * layer.scale), numbers)
