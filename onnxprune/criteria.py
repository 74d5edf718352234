"""How important each channel is: a table of criteria, one function each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxprune.channels import Channels
from onnxprune.errors import InputError
from onnxprune.weights import Array

Floats = npt.NDArray[np.float64]
Criterion = Callable[[Channels, np.random.Generator], Floats]
"""Scores all channels of a model, by channel id; larger is more important."""

BLOCK = 4_000_000  # numbers looked at together


def importance(channels: Channels, criterion: str, seed: int) -> tuple[Floats, ...]:
    """Score the channels of each group.

    Returns:
        Per group an array (width,).

    Raises:
        InputError: a weight is not finite.
    """
    scores = CRITERIA[criterion](channels, np.random.default_rng(seed))
    return tuple(scores[group.channels] for group in channels.groups)


def _l1(channels: Channels, rng: np.random.Generator) -> Floats:
    return _norms(channels, 1)


def _l2(channels: Channels, rng: np.random.Generator) -> Floats:
    return _norms(channels, 2)


def _random(channels: Channels, rng: np.random.Generator) -> Floats:
    return rng.random(channels.count)


def _norms(channels: Channels, order: int) -> Floats:
    """Average over all weights a channel is part of: the norm of its slice over the mean norm along that axis."""
    total = np.zeros(channels.count)
    members = np.zeros(channels.count)
    for name in channels.model.stored:
        axes = channels.axes.get(name)
        if axes is None or sum(size > 1 for size in axes.shape) < 2 or 0 in axes.shape:
            continue
        ids = [channels.channel_of[axes[axis]] for axis in range(len(axes))]
        if all((found < 0).all() for found in ids):
            continue
        for found, norms in zip(ids, slice_norms(channels.model.array(name), order), strict=True):
            if not np.isfinite(norms).all():
                raise InputError(
                    f"initializer {name!r} holds NaN, infinite or absurdly large numbers; "
                    "train or export the model again"
                )
            free = found >= 0
            np.add.at(total, found[free], norms[free] / max(float(norms.mean()), 1e-30))
            np.add.at(members, found[free], 1)
    return total / np.maximum(members, 1)


def slice_norms(values: Array, order: int) -> list[Floats]:
    """Give the norm of every slice along every axis, in one pass over the numbers and little memory.

    Args:
        values: a weight of any float or integer type.
        order: 1 for the sum of magnitudes, 2 for the Euclidean norm.
    """
    sums = [np.zeros(size) for size in values.shape]
    rows = max(1, BLOCK // max(1, values[0].size))
    for start in range(0, len(values), rows):
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
            block = np.abs(values[start : start + rows].astype(np.float32))
            if order == 2:
                block *= block
        for axis in range(block.ndim):
            others = tuple(a for a in range(block.ndim) if a != axis)
            part = block.sum(axis=others, dtype=np.float64)
            if axis == 0:
                sums[0][start : start + rows] = part
            else:
                sums[axis] += part
    return [np.sqrt(found) for found in sums] if order == 2 else sums


CRITERIA: dict[str, Criterion] = {"l1": _l1, "l2": _l2, "random": _random}
