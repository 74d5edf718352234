"""Layers with stored weights, which can be fitted again, and what their outputs meet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from onnxprune.channels import Channels
from onnxprune.constants import data_nodes
from onnxprune.linear import Linear, bias_place, floats, linear, only_reader, stored_values
from onnxprune.numbers import Place
from onnxprune.ops.normalization import trains
from onnxprune.patches import Patches, patches
from onnxprune.shapes import is_default_domain
from onnxprune.tying import captured
from onnxprune.weights import Array, Floats


@dataclass(frozen=True)
class Landing:
    """Where the output of a layer goes, channel by channel, before anything else reads it.

    Attributes:
        tensor: the last of these tensors.
        partner: what is added to it on the way, where that is no stored number (a residual connection).
        gain: per output of the layer, what it has been multiplied by when it meets the partner.
        bias: where a number can be added to each output, and what one there is worth one of the layer's own.
        bias_gain: per output, what the layer's own output has been multiplied by when it meets the bias.
    """

    tensor: str
    partner: str | None
    gain: Floats
    bias: Place | None
    bias_gain: Floats


@dataclass(frozen=True)
class Reader:
    """A layer with a stored weight.

    Attributes:
        layer: its weight and atoms.
        patches: how its rows come out of its input.
        x: name of its input.
        y: name of its output.
        landing: where its output goes.
    """

    layer: Linear
    patches: Patches
    x: str
    y: str
    landing: Landing

    @property
    def landed_weight(self) -> Floats:
        """What it makes of its inputs where its output lands: (groups, outputs, inputs, kernel)."""
        gain = self.landing.gain.reshape(*self.layer.y.shape, 1, 1)
        return np.asarray(self.layer.weight * (gain * self.layer.scale), np.float64)

    @property
    def is_centred(self) -> bool:
        """Whether a number can be added to each output, so that means can be made up for."""
        return self.landing.bias is not None

    def goes_along(self, channel: Array) -> Array:
        """Tell which of its groups go as a whole: each of their inputs and outputs is the same channel.

        Args:
            channel: id of each atom's channel.
        """
        both = np.concatenate([channel[self.layer.x], channel[self.layer.y]], axis=1)
        return np.asarray((both == both[:, :1]).all(axis=1) & (both[:, 0] >= 0))

    @property
    def rows_key(self) -> tuple[str, Patches, int]:
        """The same for all layers that sum over the same numbers."""
        return self.x, self.patches, len(self.layer.x)


def find_readers(channels: Channels) -> list[Reader]:
    """List the layers that read channels and can be fitted again, in the order of the graph.

    Left out are layers whose weight is computed, quantised (but for whole numbers behind DequantizeLinear), or shared
    with another layer, whose third operand is no stored vector, products whose first operand is turned, and those that
    would lose rows.
    """
    nodes, readings = channels.model.graph.nodes, _readings(channels)
    found = []
    for index in data_nodes(channels):
        node = nodes[index]
        if node.attrs.get("transA", 0) or not node.outputs or not node.outputs[0].name:
            continue
        layer = linear(channels, index, values=floats)
        if layer is None or readings[_root(channels, node.inputs[1].name)] > 1:
            continue
        x, y = node.inputs[0].name, node.outputs[0].name
        if x in channels.model.stored or layer.bias is None or not layer.scale:
            continue
        if not _has_whole_rows(channels, layer):
            continue
        found.append(Reader(layer, patches(channels.view(index)), x, y, find_landing(channels, layer)))
    return found


def _has_whole_rows(channels: Channels, layer: Linear) -> bool:
    """Tell whether a cut leaves a layer all its rows: no channels lie on axes that it does not sum over."""
    view = channels.view(layer.index)
    summed = 1 if view.node.op in ("Conv", "ConvTranspose") else len(view.x) - 1
    others = [view.x[axis] for axis in range(len(view.x)) if axis != summed]
    return all((channels.channel_of[atoms] < 0).all() for atoms in others)


def _root(channels: Channels, name: str) -> str:
    return channels.aliases.root.get(name, name)


def _readings(channels: Channels) -> Counter[str]:
    """Count the nodes that compute with a tensor, under whichever name; a body counts as one."""
    model = channels.model
    found = Counter(_root(channels, name) for _, name in captured(model))
    for index, node in enumerate(model.graph.nodes):
        if index not in channels.aliases.nodes and index not in model.size_nodes:
            found.update({_root(channels, tensor.name) for tensor in node.inputs})
    return found


def find_landing(channels: Channels, layer: Linear) -> Landing:
    """Follow the output of a layer to the first node that mixes it with something else, or that is not linear."""
    graph = channels.model.graph
    size = layer.y.size
    gain, bias_gain = np.ones(size), np.ones(size)
    node = graph.nodes[layer.index]
    at = layer.index
    bias: Place | None = None
    if node.op != "MatMul" and len(node.inputs) > 2 and node.inputs[2].name and layer.beta:
        bias = (layer.index, 2)
    elif node.op == "MatMul":
        bias = bias_place(channels, layer.index)
    if bias is not None and not _is_vector(channels, bias, size):
        bias = None
    is_convolution = node.op in ("Conv", "ConvTranspose")
    shapes = channels.model.shapes
    tensor, partner = node.outputs[0].name, None
    shape = shapes.get(tensor)
    while True:
        reader = only_reader(channels, at)
        if reader is None or not is_default_domain(graph.nodes[reader].domain):
            break
        node = graph.nodes[reader]
        if node.op == "BatchNormalization" and (is_convolution or (shape is not None and len(shape) == 2)):
            numbers = [stored_values(channels, t.name) for t in node.inputs[1:5]]
            if trains(channels.view(reader)) or any(values is None or values.size != size for values in numbers):
                break
            scale, _, _, variance = (np.asarray(values, np.float64).reshape(-1) for values in numbers)
            gain = gain * scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
            if bias is None:
                bias, bias_gain = (reader, 2), gain
        elif node.op == "Add":
            other = node.inputs[1 if node.inputs[0].name == tensor else 0].name
            if shape is None or shapes.get(node.outputs[0].name) != shape:
                break  # it is spread over more positions
            if floats(channels, other) is None:
                if shapes.get(other) == shape:
                    tensor, partner = node.outputs[0].name, other
                break
        else:
            break
        at, tensor = reader, node.outputs[0].name
    return Landing(tensor, partner, gain, bias, bias_gain)


def _is_vector(channels: Channels, place: Place, size: int) -> bool:
    """Tell whether what is stored there has one number for each output."""
    index, position = place
    values = floats(channels, channels.model.graph.nodes[index].inputs[position].name)
    return values is not None and values.size == size and values.shape[-1] == size
