"""The mean and variance that BatchNormalization stores, brought to what arrives in a model that has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from onnx import helper

from onnxprune.numbers import Numbers, Place
from onnxprune.weights import Array, Floats

SCALE, SHIFT, MEAN, VARIANCE = 1, 2, 3, 4  # inputs
EPSILON = 1e-5  # where a node does not say it


def stored_norms(numbers: Numbers) -> Iterator[int]:
    """List the BatchNormalization nodes whose mean and variance are stored."""
    for index, node in enumerate(numbers.proto.graph.node):
        places = [(index, position) for position in (MEAN, VARIANCE)]
        if node.op_type == "BatchNormalization" and all(numbers.tensor(place) is not None for place in places):
            yield index


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
    attributes = {a.name: helper.get_attribute_value(a) for a in numbers.proto.graph.node[index].attribute}
    places = [(index, position) for position in (SCALE, SHIFT, MEAN, VARIANCE)]
    if attributes.get("training_mode", 0) or any(numbers.tensor(place) is None for place in places):
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
    """Give mean and variance of each channel."""
    rows, sums, squares = 0, np.zeros(1), np.zeros(1)
    for batch in batches:
        x = np.moveaxis(batch, 1, 0).reshape(batch.shape[1], -1).astype(np.float64)
        rows, sums, squares = rows + x.shape[1], sums + x.sum(1), squares + (x**2).sum(1)
    mean = sums / max(rows, 1)
    return mean, np.maximum(squares / max(rows, 1) - mean**2, 0)


def _stored(place: Place, numbers: Numbers) -> Array:
    values = numbers.get(place)
    assert values is not None
    return values
