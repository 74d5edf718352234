"""Put BatchNormalization back behind convolutions that it was folded into, to train with, and fold it in again.

Exporters fold it, and without it a network bears far smaller steps. What is put in starts with the mean and variance
that calibration samples show, and with the scale and shift that undo them: the function stays what it was.

Behind a normalisation the length of a filter changes nothing but how far a step turns it, and folding leaves lengths
that no learning rate was made for. So each filter is brought to the length that it has where training from scratch
begins (He et al., arXiv 1502.01852).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.batchnorm import ChannelMoments
from onnxprune.linear import LINEAR, by_group
from onnxprune.nodes import every_node
from onnxprune.shapes import is_default_domain
from onnxprune.training.sharing import Unshared, writable, write
from onnxprune.weights import Array, Floats, read

EPSILON = 1e-5
MOMENTUM = 0.9
LENGTH = 2.0**0.5  # of a filter of any size: the variance of He's weights is 2 for each number of inputs
PARAMETERS = ("scale", "shift", "mean", "variance")


@dataclass(frozen=True)
class Norm:
    """A BatchNormalization that was put in.

    Attributes:
        node: index of its convolution in the original.
        output: what the convolution puts out there; the BatchNormalization does now.
        weight: name of the convolution's weight.
        bias: name of its bias.
    """

    node: int
    output: str
    weight: str
    bias: str

    @property
    def inner(self) -> str:
        """Name what the convolution puts out once the BatchNormalization stands behind it."""
        return f"{self.output}/convolution"

    def parameter(self, kind: str) -> str:
        """Name one of `PARAMETERS`."""
        return f"{self.output}/{kind}"


def find_norms(proto: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> list[Norm]:
    """Find the convolutions that a BatchNormalization was or could have been folded into.

    They have a stored bias, more than one output pixel, a weight of their own, and none behind them.

    Args:
        proto: the model.
        shapes: of its tensors, as far as known.
    """
    stored = writable(proto)
    uses = Counter(name for node in every_node(proto.graph) for name in node.input)
    uses.update(value.name for value in proto.graph.output)
    taken = {*uses, *stored, *(name for node in proto.graph.node for name in node.output)}
    kept = {value.name for value in proto.graph.output}
    kept |= {node.input[0] for node in proto.graph.node if node.op_type == "BatchNormalization"}
    found = []
    for index, node in enumerate(proto.graph.node):
        if node.op_type not in ("Conv", "ConvTranspose") or not is_default_domain(node.domain) or len(node.input) < 3:
            continue
        weight, bias, output = node.input[1], node.input[2], node.output[0]
        own = all(name in stored and uses[name] == 1 for name in (weight, bias))
        norm = Norm(index, output, weight, bias)
        is_new = taken.isdisjoint({norm.inner, *map(norm.parameter, PARAMETERS)})
        if own and is_new and output not in kept and np.prod(shapes.get(output, ())[2:]) > 1:
            found.append(norm)
    return found


def is_normalised(proto: ModelProto) -> bool:
    """Tell whether most layers with a stored weight have a BatchNormalization, so that a network bears large steps."""
    stored = writable(proto)
    layers = [node for node in proto.graph.node if node.op_type in LINEAR and node.input[1] in stored]
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    return bool(norms) and 2 * len(norms) >= len(layers)


def insert(proto: ModelProto, folder: Path, norms: Iterable[Norm], feeds: Iterable[Mapping[str, Array]]) -> ModelProto:
    """Put BatchNormalization behind convolutions; the result answers as the model does.

    Args:
        proto: the model; it stays as it is.
        folder: where its external data lies.
        norms: where, see `find_norms`.
        feeds: calibration samples, batch by batch.
    """
    norms = list(norms)
    moments = _moments(proto, folder, [norm.output for norm in norms], feeds)
    stored = writable(proto)
    result = ModelProto()
    result.CopyFrom(proto)
    result.ir_version = max(result.ir_version, 4)  # older files list their initializers as inputs too
    behind = {norm.node: norm for norm in norms}
    lengthened = dict[str, Floats]()
    del result.graph.node[:]
    for index, node in enumerate(proto.graph.node):
        result.graph.node.append(node)
        if index in behind:
            norm = behind[index]
            weight, bias = (read(stored[name], folder) for name in (norm.weight, norm.bias))
            gain = _lengthening(weight, node)
            _put_behind(result, norm, moments[norm.output], bias, gain)
            lengthened[norm.weight] = weight * _by_output(gain, weight, node)
    for name, tensor in writable(result).items():
        if name in lengthened:
            write(tensor, lengthened[name], folder)
    return result


def _put_behind(result: ModelProto, norm: Norm, moments: tuple[Floats, Floats], bias: Array, gain: Floats) -> None:
    """Put a BatchNormalization behind the last node, whose filters are multiplied by `gain` meanwhile."""
    convolution: NodeProto = result.graph.node[-1]
    convolution.output[0] = norm.inner
    del convolution.input[2:]
    mean, variance = moments
    variance = variance * gain**2
    scale = np.sqrt(variance + EPSILON) / gain
    values = {"scale": scale, "shift": mean, "mean": (mean - bias) * gain, "variance": variance}
    names = [norm.parameter(kind) for kind in PARAMETERS]
    result.graph.initializer.extend(
        numpy_helper.from_array(values[kind].astype(np.float32), name)  # a variance is too large for half precision
        for kind, name in zip(PARAMETERS, names, strict=True)
    )
    result.graph.node.append(
        helper.make_node("BatchNormalization", [norm.inner, *names], [norm.output], epsilon=EPSILON, momentum=MOMENTUM)
    )


def _lengthening(weight: Array, node: NodeProto) -> Floats:
    """Give for each filter what brings it to its length; one of zeros stays as it is."""
    filters = by_group(weight, _groups(node), outputs_first=node.op_type == "Conv")
    sums = np.square(filters, dtype=np.float64).sum(axis=(2, 3)).reshape(-1)
    return np.asarray(LENGTH / np.sqrt(np.where(sums > 0, sums, LENGTH**2)))


def fold(trained: ModelProto, original: ModelProto, folder: Path, norms: Iterable[Norm]) -> ModelProto:
    """Bring the numbers of a model with BatchNormalization put in back to the structure it had before.

    Args:
        trained: what `insert` gave, its numbers trained.
        original: what `insert` was given; it stays as it is.
        folder: where external data lies.
        norms: what was put in.
    """
    unshared = Unshared(original, folder)  # as in training: vectors that were one may have become several
    result = unshared.proto
    ours, theirs = writable(result), writable(trained)
    for name, tensor in ours.items():
        source = name if name in theirs else unshared.originals.get(name, name)
        if source in theirs:
            write(tensor, read(theirs[source], folder), folder)
    for norm in norms:
        scale, shift, mean, variance = (read(theirs[norm.parameter(k)], folder).astype(np.float64) for k in PARAMETERS)
        gain = scale / np.sqrt(variance + EPSILON)
        node = original.graph.node[norm.node]
        weight = read(theirs[norm.weight], folder).astype(np.float64)
        write(ours[norm.weight], weight * _by_output(gain, weight, node), folder)
        write(ours[norm.bias], shift - mean * gain, folder)
    unshared.rejoin(result)
    return result


def _by_output(gain: Floats, weight: Array, node: NodeProto) -> Array:
    """Shape a number per output channel so that it multiplies a weight."""
    if node.op_type == "Conv":
        return gain.reshape(-1, *[1] * (weight.ndim - 1))
    groups = _groups(node)
    rows = np.repeat(gain.reshape(groups, -1), weight.shape[0] // groups, axis=0)  # (inputs, outputs of a group)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def _groups(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _moments(
    proto: ModelProto, folder: Path, names: list[str], feeds: Iterable[Mapping[str, Array]]
) -> dict[str, tuple[Floats, Floats]]:
    """Measure mean and variance per channel of some tensors."""
    session = runtime.open_with(proto, names, folder)
    found = {name: ChannelMoments() for name in names}
    for feed in feeds:
        for name, values in zip(names, session.run(feed, names), strict=True):
            found[name].add(values)
    return {name: (moments.mean, moments.variance) for name, moments in found.items()}
