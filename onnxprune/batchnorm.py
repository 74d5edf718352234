"""The mean and variance that BatchNormalization stores, brought to what arrives in a model that has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from onnxprune.nodes import attributes_of
from onnxprune.numbers import Numbers, Place
from onnxprune.weights import Array, Floats

SCALE, SHIFT, MEAN, VARIANCE = 1, 2, 3, 4  # inputs
EPSILON = 1e-5  # where a node does not say it


def stored_norms(numbers: Numbers) -> Iterator[int]:
    """List the BatchNormalization nodes whose mean and variance are stored, one for each channel."""
    for index, node in enumerate(numbers.proto.graph.node):
        if node.op_type == "BatchNormalization":
            stored = [numbers.tensor((index, position)) for position in (MEAN, VARIANCE)]
            if all(tensor is not None and len(tensor.dims) == 1 for tensor in stored):  # more axes: spatial=0
                yield index


class ChannelMoments:
    """Mean and variance of each channel, from one batch after the other.

    Attributes:
        mean: (channels,).
    """

    def __init__(self) -> None:
        self.mean: Floats = np.zeros(1)
        self._spread: Floats = np.zeros(1)  # sum of the squared distances from the mean
        self._count = 0

    def add(self, batch: Array) -> None:
        """Take in a batch (samples, channels, ...)."""
        rows = np.moveaxis(batch, 1, 0).reshape(batch.shape[1], -1).astype(np.float64)
        size = rows.shape[1]
        total, apart = self._count + size, rows.mean(axis=1) - self.mean
        self.mean = self.mean + apart * (size / total)
        self._spread = self._spread + rows.var(axis=1) * size + apart**2 * (self._count * size / total)
        self._count = total

    @property
    def variance(self) -> Floats:
        """Give the variance, (channels,)."""
        return self._spread / max(self._count, 1)


def estimate(index: int, batches: Iterable[Array], numbers: Numbers) -> None:
    """Set mean and variance of a BatchNormalization to those of what arrives.

    Args:
        index: the node.
        batches: what it reads, (samples, channels, ...).
        numbers: where they are stored.
    """
    for position, values in zip((MEAN, VARIANCE), _moments(batches), strict=True):
        place = (index, position)
        numbers.set(place, values.astype(_stored(place, numbers).dtype))


def restate(index: int, batches: Iterable[Array], numbers: Numbers) -> None:
    """Do as `estimate`, and change scale and shift so that the BatchNormalization answers as before.

    Training normalises by what arrives. Where the numbers stored are those of another model, its first step starts from
    another function than the one that is stored, and what a repair has won is lost.
    """
    node = numbers.proto.graph.node[index]
    attributes = attributes_of(node)
    places = [(index, position) for position in (SCALE, SHIFT, MEAN, VARIANCE)]
    trains = attributes.get("training_mode", 0) or any(node.output[1:])
    if trains or any(numbers.tensor(place) is None for place in places):
        return
    before = [_stored(place, numbers) for place in places]
    scale, shift, mean, variance = (values.astype(np.float64) for values in before)
    with np.errstate(over="ignore"):  # half precision may not hold them
        moments = [values.astype(old.dtype) for values, old in zip(_moments(batches), before[2:], strict=True)]
        new_mean, new_variance = (values.astype(np.float64) for values in moments)  # as they can be stored
        epsilon = attributes.get("epsilon", EPSILON)
        gain = scale / np.sqrt(variance + epsilon)
        new_scale = (gain * np.sqrt(new_variance + epsilon)).astype(before[0].dtype)
        new_shift = (shift + gain * (new_mean - mean)).astype(before[1].dtype)
    after = (new_scale, new_shift, *moments)
    if all(np.isfinite(values).all() for values in after):
        for place, values in zip(places, after, strict=True):
            numbers.set(place, values)


def _moments(batches: Iterable[Array]) -> tuple[Floats, Floats]:
    found = ChannelMoments()
    for batch in batches:
        found.add(batch)
    return found.mean, found.variance


def _stored(place: Place, numbers: Numbers) -> Array:
    values = numbers.get(place)
    assert values is not None
    return values
