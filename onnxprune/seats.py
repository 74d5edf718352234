"""The layers of a cut model: which layer of the original each is, what is left of it, and where its numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.channels import Channels
from onnxprune.moments import Fit
from onnxprune.numbers import Numbers, Place
from onnxprune.ops.rule import Mask
from onnxprune.readers import Reader
from onnxprune.weights import Array, Floats, Ints


@dataclass(frozen=True)
class Seat:
    """A layer in the cut model.

    Attributes:
        reader: the layer in the original.
        node: its place in the cut model.
        groups: which groups are left.
        inputs: which inputs are left, (groups left, inputs left).
        outputs: which outputs are left, (groups left, outputs left).
        bias: where a number can be added to each output.
    """

    reader: Reader
    node: int
    groups: Ints
    inputs: Ints
    outputs: Ints
    bias: Place | None

    @property
    def weight(self) -> Place:
        """Where its weight is read."""
        return self.node, 1

    def kept(self, values: Array) -> Array:
        """Take what is left of values (groups, rows, outputs)."""
        return np.take_along_axis(values[self.groups], self.outputs[:, None, :], axis=2)

    def per_output(self, values: Floats) -> Floats:
        """Take what is left of one number for each output: (groups left, 1, outputs left)."""
        whole = values.reshape(self.reader.layer.y.shape)
        return np.take_along_axis(whole[self.groups], self.outputs, axis=1)[:, None, :]

    @property
    def is_cut(self) -> bool:
        """Whether some of its inputs are gone."""
        return bool(self.inputs.shape[1] < self.reader.layer.x.shape[1])


def find_seats(channels: Channels, readers: Sequence[Reader], keep: Mask, cut: ModelProto) -> list[Seat]:
    """Find the layers of a cut model, in order; those that lost all their inputs or outputs are left out."""
    makers = {name: index for index, node in enumerate(cut.graph.node) for name in node.output if name}
    nodes = channels.model.graph.nodes
    seats = []
    for reader in readers:
        layer = reader.layer
        groups = np.flatnonzero(keep[layer.y].any(axis=1))
        inputs = np.asarray([np.flatnonzero(keep[layer.x[group]]) for group in groups])
        outputs = np.asarray([np.flatnonzero(keep[layer.y[group]]) for group in groups])
        if reader.y not in makers or not inputs.size or not outputs.size:
            continue
        place = reader.landing.bias
        home = None if place is None else makers.get(nodes[place[0]].outputs[0].name)
        bias = None if place is None or home is None else (home, place[1])
        seats.append(Seat(reader, makers[reader.y], groups, inputs, outputs, bias))
    return seats


def write(seat: Seat, found: Fit, numbers: Numbers) -> None:
    """Add to the weight and the bias of a layer what was fitted."""
    layer = seat.reader.layer
    weight = numbers.get(seat.weight)
    assert weight is not None
    groups, inputs = seat.inputs.shape
    slope = found.slope.swapaxes(1, 2).reshape(groups, seat.outputs.shape[1], inputs, -1)
    added = layer.layout(slope / layer.scale, weight.shape)
    numbers.set(seat.weight, (weight.astype(np.float64) + added).astype(weight.dtype))
    add_to_bias(seat, found.offset, numbers)


def add_to_bias(seat: Seat, offset: Floats, numbers: Numbers) -> None:
    """Add a number to each output of a layer, (groups, outputs), where there is a place for it."""
    bias = None if seat.bias is None else numbers.get(seat.bias)
    if seat.bias is None or bias is None:
        return
    landing, layer = seat.reader.landing, seat.reader.layer
    added = (offset * seat.per_output(landing.bias_gain)[:, 0]).reshape(bias.shape)
    added = added / (layer.beta if landing.bias is not None and landing.bias[0] == layer.index else 1)
    numbers.set(seat.bias, (bias.astype(np.float64) + added).astype(bias.dtype))
