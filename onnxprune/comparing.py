"""Answers against answers, in numbers: best classes, divergences of probabilities, distances of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.answers import is_float
from onnxprune.weights import Array, Floats

SMALLEST = 1e-12  # probability; smaller ones count as this where a logarithm must be taken of them
STEADY = 1e-6  # share of an output's squared mean that its variance is taken for at least: rounding is no difference
FAINTEST = 1e-10  # of the variance of a whole output, that of each of its kinds of numbers is taken for at least
ZERO = 1e-12  # what the variance of an output is taken for at least, be it all zero
ROUNDED = 1e-2  # how far probabilities in half precision may be from adding up to one


def best(scores: Array) -> Array:
    """Name the best class of each row, -1 where a score is NaN."""
    return np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))


def right(scores: Array, labels: Array) -> tuple[int, int]:
    """Count the labels that are the best class, and those among the five best."""
    first = best(scores)
    five = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    within = (five == labels[:, None]).any(axis=1) & (first >= 0)
    return int((first == labels).sum()), int(within.sum())


def are_probabilities(rows: Array) -> bool:
    """Tell whether every row adds up to one, as far as half precision can tell."""
    sums = rows.sum(axis=1, dtype=np.float64)
    return bool((rows >= 0).all() and (np.abs(sums - 1) < ROUNDED).all())


def logits(rows: Array, from_probabilities: bool) -> Array:
    """Take logarithms of probabilities; what is none stays."""
    return np.log(np.clip(rows, SMALLEST, 1)) if from_probabilities else rows


def _log_softmax(logits: Array) -> Floats:
    shifted: Floats = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergences(wanted: Array, found: Array) -> Floats:
    """Give the Kullback-Leibler divergence of every row, in nats: the sum of p (log p - log q).

    It is NaN where what is wanted is no distribution, infinite where what is found is none.
    """
    with np.errstate(invalid="ignore"):  # of infinite logits
        p, q = _log_softmax(wanted), _log_softmax(found)
        rows: Floats = np.where(p > -np.inf, np.exp(p) * (p - q), 0).sum(axis=1)
    rows[np.isnan(q).any(axis=1)] = np.inf
    rows[np.isnan(p).any(axis=1)] = np.nan
    return rows


def variance(values: Sequence[Any]) -> Floats:
    """Give the variance of an output's numbers over all batches, in a shape that goes with the output; 1 for integers.

    Outputs of several axes may hold numbers of several kinds, such as boxes in pixels beside scores from 0 to 1, so
    that each index of the axis that tells them apart has a variance of its own, see `_kinds`. Very small ones are
    raised (see `STEADY`, `ZERO`, `FAINTEST`), so that rounding counts for nothing. NaN where the output is no array, or
    has numbers of which none is finite.
    """
    if not all(isinstance(value, np.ndarray) for value in values):
        return np.asarray(np.nan)
    if not is_float(values[0]) or not any(value.size for value in values):
        return np.asarray(1.0)
    whole = _variance(values, ())
    axis = _kinds(values)
    if axis is None or np.isnan(whole):
        return whole
    each = _variance(values, (axis,))
    return np.fmax(each, FAINTEST * whole)


def _kinds(values: Sequence[Array]) -> int | None:
    """Find the axis whose indices mean different things: the shortest, where there are two or more behind the batch."""
    shape = values[0].shape
    long = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
    if len(long) < 2:
        return None
    axis = min(long, key=lambda at: shape[at])
    return axis if all(v.ndim == len(shape) and v.shape[axis] == shape[axis] for v in values) else None


def _variance(values: Sequence[Array], kept: tuple[int, ...]) -> Floats:
    """Give the variance over all axes but those that are kept, with the others of size one; of finite numbers alone."""
    axes = tuple(axis for axis in range(values[0].ndim) if axis not in kept)

    def added(numbers: Sequence[Array]) -> Floats:
        sums = [value.sum(axis=axes, dtype=np.float64, keepdims=bool(kept)) for value in numbers]
        return np.asarray(np.sum(sums, axis=0))

    finite = [np.isfinite(value) for value in values]
    with np.errstate(invalid="ignore", divide="ignore"):  # of nothing but infinite numbers
        count = added(finite)
        mean = added([np.where(known, value, 0) for known, value in zip(finite, values, strict=True)]) / count
        apart = [np.where(f, value.astype(np.float64) - mean, 0) for f, value in zip(finite, values, strict=True)]
        squares = added([np.square(difference) for difference in apart])
        return np.where(count > 0, np.maximum(np.maximum(squares / count, STEADY * mean**2), ZERO), np.nan)


def deviations(wanted: Sequence[Any], found: Sequence[Any], variances: Sequence[Floats]) -> Floats:
    """Give the squared distance of every output for one batch, NaN where there is none."""
    outputs = zip(wanted, found, variances, strict=True)
    return np.array([np.nan if np.isnan(variance).all() else _deviation(a, b, variance) for a, b, variance in outputs])


def _deviation(wanted: Array, found: object, variance: Floats) -> float:
    if not isinstance(found, np.ndarray) or is_float(found) != is_float(wanted):
        return 1.0
    if _long_axes(found) != _long_axes(wanted):
        return 1.0
    found = found.reshape(wanted.shape)
    if not wanted.size:
        return 0.0
    if not is_float(wanted):
        return float(np.mean(wanted != found))
    with np.errstate(invalid="ignore"):  # of infinite numbers
        squares = np.square(found.astype(np.float64) - wanted) / variance
    if not np.isfinite(squares).all():
        given = np.isfinite(wanted)
        if not np.isfinite(found[given]).all():
            return np.inf
        squares = squares[given]
    return float(squares.sum()) / max(1, squares.size)


def _long_axes(values: Array) -> list[int]:
    """Give the sizes of all axes that are longer than one; exporters differ in the others."""
    return [size for size in values.shape if size != 1]
