"""Answers against answers, in numbers: best classes, divergences of probabilities, distances of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.answers import is_float
from onnxprune.weights import Array

Numbers = npt.NDArray[np.float64]

SMALLEST = 1e-12  # probability; smaller ones count as this where a logarithm must be taken of them
STEADY = 1e-6  # share of an output's squared mean that its variance is taken for at least: rounding is no difference
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


def _log_softmax(logits: Array) -> Numbers:
    shifted: Numbers = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergences(wanted: Array, found: Array) -> Numbers:
    """Give the Kullback-Leibler divergence of every row, in nats: the sum of p (log p - log q).

    It is NaN where what is wanted is no distribution, infinite where what is found is none.
    """
    with np.errstate(invalid="ignore"):  # of infinite logits
        p, q = _log_softmax(wanted), _log_softmax(found)
        rows: Numbers = np.where(p > -np.inf, np.exp(p) * (p - q), 0).sum(axis=1)
    rows[np.isnan(q).any(axis=1)] = np.inf
    rows[np.isnan(p).any(axis=1)] = np.nan
    return rows


def variance(values: Sequence[Any]) -> float:
    """Give the variance of an output's numbers over all batches, 1 for integers.

    Very small ones are raised (see `STEADY`, `ZERO`), so that rounding counts for nothing. NaN where the output is no
    array, or has numbers of which none is finite.
    """
    if not all(isinstance(value, np.ndarray) for value in values):
        return np.nan
    if not is_float(values[0]) or not any(value.size for value in values):
        return 1.0
    count, total = 0, 0.0
    for value in values:
        finite = value[np.isfinite(value)]
        count, total = count + finite.size, total + float(finite.sum(dtype=np.float64))
    if not count:
        return np.nan
    mean = total / count
    squares = sum(float(np.square(value[np.isfinite(value)].astype(np.float64) - mean).sum()) for value in values)
    return max(squares / count, STEADY * mean**2, ZERO)


def deviations(wanted: Sequence[Any], found: Sequence[Any], variances: Sequence[float]) -> Numbers:
    """Give the squared distance of every output for one batch, NaN where there is none."""
    outputs = zip(wanted, found, variances, strict=True)
    return np.array([np.nan if np.isnan(variance) else _deviation(a, b, variance) for a, b, variance in outputs])


def _deviation(wanted: Array, found: object, variance: float) -> float:
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
        difference = found.astype(np.float64) - wanted
    if not np.isfinite(difference).all():
        given = np.isfinite(wanted)
        if not np.isfinite(found[given]).all():
            return np.inf
        difference = difference[given]
    return float(np.square(difference).sum()) / max(1, difference.size) / variance


def _long_axes(values: Array) -> list[int]:
    """Give the sizes of all axes that are longer than one; exporters differ in the others."""
    return [size for size in values.shape if size != 1]
