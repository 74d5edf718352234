"""How much each channel matters: a table of criteria, one function each.

A criterion gives every channel of a group a number; those with the smallest leave first. The numbers of different
groups compare, too: they stand for the error that a channel adds when it leaves, so that a search can rank all channels
of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnxprune.channels import FROZEN, Channels
from onnxprune.data import Data
from onnxprune.errors import InputError
from onnxprune.linear import linear
from onnxprune.obs import Curves
from onnxprune.progress import Progress, Quiet
from onnxprune.quantized import scales, zero_points
from onnxprune.statistics import Statistics
from onnxprune.weights import NOT_WEIGHTS, Array, Floats, slice_norms


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes:
        channels: of the model.
        seed: of what is drawn at random.
        statistics: what layers read on calibration data; None without data.
        data: the calibration data itself.
        progress: told how many groups are done.
    """

    channels: Channels
    seed: int = 0
    statistics: Statistics | None = None
    data: Data | None = None
    progress: Progress = field(default_factory=Quiet)

    @property
    def measured(self) -> Statistics:
        """The statistics, which must be there."""
        assert self.statistics is not None, "`resolve` lets no criterion run without its data"
        return self.statistics


Criterion = Callable[[Evidence], Floats]
"""Scores all channels of a model, by channel id; larger is more important."""


def importance(evidence: Evidence, criterion: str) -> tuple[Floats, ...]:
    """Score the channels of each group.

    Returns:
        Per group an array (width,).

    Raises:
        InputError: a weight is not finite.
    """
    scores = CRITERIA[criterion](evidence)
    return tuple(scores[group.channels] for group in evidence.channels.groups)


def _l1(evidence: Evidence) -> Floats:
    return _norms(evidence.channels, 1)


def _l2(evidence: Evidence) -> Floats:
    return _norms(evidence.channels, 2)


def _random(evidence: Evidence) -> Floats:
    return np.random.default_rng(evidence.seed).random(evidence.channels.count)


def _activation(evidence: Evidence) -> Floats:
    """Sum over the layers that read a channel: the energy of what they make of it, over that of their output.

    The norm of a weight times the norm of what it is multiplied with is the score of Wanda (Sun et al., 2023); here
    squared, and summed over all weights of a channel.
    """
    statistics = evidence.measured
    total = np.zeros(evidence.channels.count + 1)  # the last is where `channel_of` says FROZEN
    for reader in statistics.readers:
        weight = reader.landed_weight
        groups, _, inputs, kernel = weight.shape
        square = statistics.inputs(reader).mean_square.reshape(groups, inputs, kernel)
        energy = np.einsum("goik,gik->gi", np.square(weight), square)
        energy /= max(statistics.unit[reader.layer.index], 1e-30)
        energy[reader.goes_along(evidence.channels.channel_of)] = 0  # nobody is left who could miss them
        np.add.at(total, evidence.channels.channel_of[reader.layer.x], energy)
    return _completed(evidence.channels, total[:-1])


def _obs(evidence: Evidence) -> Floats:
    """Give the error that is left when the remaining channels stand in for one as well as they can."""
    curves, groups = Curves(evidence.measured), evidence.channels.groups
    total = np.zeros(evidence.channels.count)
    for number, group in enumerate(groups):
        errors = curves.of(group)
        if errors is not None:
            total[group.channels] = np.maximum(errors, 1e-30)
        evidence.progress.step(number + 1, len(groups))
    return _completed(evidence.channels, total)


def _taylor(evidence: Evidence) -> Floats:
    """Give how far the answers move when a channel goes, to first order, see `training.taylor`."""
    from onnxprune.training.taylor import slopes  # PyTorch takes seconds to load

    assert evidence.data is not None, "`resolve` lets no criterion run without its data"
    found = slopes(evidence.channels, evidence.measured.readers, evidence.data, evidence.seed, evidence.progress)
    return _completed(evidence.channels, found)


def _fpgm(evidence: Evidence) -> Floats:
    """Measure how far the filter of a channel is from the others of its layer (geometric median; He et al., 2019)."""
    channels = evidence.channels
    total, members = np.zeros(channels.count + 1), np.zeros(channels.count + 1)
    for index in range(len(channels.model.graph.nodes)):
        layer = linear(channels, index)
        if layer is None or layer.y.shape[1] < 2 or not (channels.channel_of[layer.y] >= 0).any():
            continue
        for own, weight in zip(channels.channel_of[layer.y], layer.weight, strict=True):
            distances = _distances(weight.reshape(len(weight), -1))
            np.add.at(total, own, distances / max(float(distances.mean()), 1e-30))
            np.add.at(members, own, 1)
    return _completed(channels, (total / np.maximum(members, 1))[:-1])


def _distances(rows: Array) -> Floats:
    """Sum up for each row how far it is from all others."""
    rows = rows.astype(np.float32)
    squares = np.einsum("ri,ri->r", rows, rows)
    products = rows @ rows.T
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0)).sum(axis=1), np.float64)


def _completed(channels: Channels, scores: Floats) -> Floats:
    """Fill in groups that a criterion has nothing finite to say about: by the share of their weights' energy."""
    scores = np.where(np.isfinite(scores), scores, np.nan)
    silent = [g for g in channels.groups if not scores[g.channels].any() or np.isnan(scores[g.channels]).any()]
    if silent:
        energy = np.square(_norms(channels, 2))
        for group in silent:
            own = energy[group.channels]
            scores[group.channels] = own / max(float(own.sum()), 1e-30)
    return scores


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


CRITERIA: dict[str, Criterion] = {
    "activation": _activation,
    "fpgm": _fpgm,
    "l1": _l1,
    "l2": _l2,
    "obs": _obs,
    "random": _random,
    "taylor": _taylor,
}
NEED_DATA = frozenset({"activation", "obs", "taylor"})
"""Criteria that look at calibration data."""
