"""How important each channel is: a table of criteria, one function each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxprune.channels import FROZEN, Channels
from onnxprune.errors import InputError
from onnxprune.quantized import scales, zero_points
from onnxprune.weights import NOT_WEIGHTS, slice_norms

Floats = npt.NDArray[np.float64]
Criterion = Callable[[Channels, np.random.Generator], Floats]
"""Scores all channels of a model, by channel id; larger is more important."""


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
    zeros, steps = zero_points(channels), scales(channels)
    total = np.zeros(channels.count)
    members = np.zeros(channels.count)
    for name, tensor in channels.model.stored.items():
        axes = channels.axes.get(name)
        if (
            tensor.data_type in NOT_WEIGHTS
            or axes is None
            or sum(size > 1 for size in axes.shape) < 2
            or 0 in axes.shape
        ):
            continue
        ids = [channels.channel_of[axes[axis]] for axis in range(len(axes))]
        if name in channels.slots:  # an index of its second axis means another channel in each group
            ids[1] = np.full(axes.shape[1], FROZEN)
        last = max((axis for axis, found in enumerate(ids) if (found >= 0).any()), default=-1)
        if last < 0:
            continue
        values = channels.model.array(name)
        if name in steps:
            values = (values.astype(np.float32) - zeros.get(name, np.float32(0))) * steps[name]
        all_norms = slice_norms(values, order, last + 1)
        for found, norms in zip(ids[: last + 1], all_norms, strict=True):
            if not np.isfinite(norms).all():
                raise InputError(
                    f"initializer {name!r} holds NaN, infinite or absurdly large numbers; "
                    "train or export the model again"
                )
            free = found >= 0
            np.add.at(total, found[free], norms[free] / max(float(norms.mean()), 1e-30))
            np.add.at(members, found[free], 1)
    return total / np.maximum(members, 1)


CRITERIA: dict[str, Criterion] = {"l1": _l1, "l2": _l2, "random": _random}
