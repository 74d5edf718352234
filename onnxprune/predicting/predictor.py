"""Predicts how long any plan takes, from times that were measured.

The time of each node is a sum of what it does (`features.py`), each part at a price of its own, none below zero; prices
are fitted node by node to the times of its kernels. The whole is that sum, brought to the times of whole runs: kernels
take some microseconds longer while they are timed one by one. Where they cannot be timed (on a GPU they are handed over
and go on by themselves), nodes of one operator share their prices, which are fitted to the times of whole runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from onnxprune.predicting.device import Device
from onnxprune.predicting.features import WAYS, Features
from onnxprune.predicting.samples import Samples
from onnxprune.weights import Floats, Ints

RIDGE = 0.02  # part of the samples by which prices are held back
FOLDS = 5  # parts of the samples, each of which shows the error of a fit to the others
LEAST = 0.02  # part of the original's time; no plan is taken to be faster
CHUNK = 2_000_000  # numbers that are held at once


class Predictor:
    """Knows about how long a run of a plan takes.

    Args:
        features: of the model.
        samples: what was measured.
        device: on what; tells whether times of kernels can be used.

    Attributes:
        error: mean absolute error, as a part of the time, of plans that a fit to others had not seen.
    """

    def __init__(self, features: Features, samples: Samples, device: Device) -> None:
        self._features = features
        self._ops = None if device.tells_kernels else _operators(features)
        self._least = LEAST * float(samples.ms[0])
        terms = features.terms(samples.counts)
        self.error = self._error(terms, samples)
        self._fit(terms, samples, np.arange(len(samples.ms)))

    def ms(self, counts: npt.ArrayLike) -> Floats:
        """Predict the milliseconds of plans (plans, groups), or (groups,) for one: (plans,)."""
        rows = np.atleast_2d(np.asarray(counts, np.float64))
        step = max(1, CHUNK // max(1, len(self._features.place) * WAYS))
        parts = [self._predicted(self._features.terms(rows[at : at + step])) for at in range(0, len(rows), step)]
        return np.concatenate([*parts, np.empty(0)])

    def _error(self, terms: Floats, samples: Samples) -> float:
        errors = []
        for unseen in np.array_split(np.random.default_rng(0).permutation(len(samples.ms)), FOLDS):
            self._fit(terms, samples, np.setdiff1d(np.arange(len(samples.ms)), unseen))
            errors.append(np.abs(self._predicted(terms[unseen]) / samples.ms[unseen] - 1))
        return float(np.concatenate(errors).mean())

    def _predicted(self, terms: Floats) -> Floats:
        found: Floats = np.maximum(self._scale * self._sum(terms) + self._offset, self._least)
        return found

    def _sum(self, terms: Floats) -> Floats:
        """Add up what nodes take, and what moves data between layouts."""
        found: Floats = np.einsum("ptw,tw->p", terms, self._prices) + self._between(terms) @ self._other
        return found + self._constant

    def _between(self, terms: Floats) -> Floats:
        """Describe what belongs to no node, which depends on all that is moved: (plans, 4)."""
        work = self._features.is_work()
        moved, irregular = terms[:, ~work, 0].sum(axis=1), terms[:, ~work, -1].sum(axis=1)
        return np.stack([np.ones(len(terms)), moved, irregular, (terms[:, work, -1] > 0).sum(axis=1)], axis=1)

    def _fit(self, terms: Floats, samples: Samples, rows: Ints) -> None:
        self._prices = np.zeros(terms.shape[1:])
        self._constant, self._other = 0.0, np.zeros(4)
        if self._ops is None:
            for node in range(len(self._features.kinds)):
                self._fit_node(terms, samples.nodes[:, node], rows, node)
            self._other = _prices(self._between(terms)[rows], samples.nodes[rows, -1])
        else:
            self._fit_operators(terms, samples.ms, rows, self._ops)
        total = np.stack([self._sum(terms[rows]), np.ones(len(rows))], axis=1)
        weight = 1 / samples.ms[rows]  # errors count as parts
        self._scale, self._offset = np.linalg.lstsq(total * weight[:, None], samples.ms[rows] * weight, rcond=None)[0]

    def _fit_node(self, terms: Floats, ms: Floats, rows: Ints, node: int) -> None:
        if not ms[rows].any():
            return
        found = _prices(self._features.of_node(terms, node)[rows], ms[rows])
        self._constant += found[0]
        self._spread(found[1:], [node])

    def _fit_operators(self, terms: Floats, ms: Floats, rows: Ints, ops: Sequence[Ints]) -> None:
        parts = [np.sum([self._features.of_node(terms, node) for node in nodes], axis=0)[:, 1:] for nodes in ops]
        found = _prices(np.concatenate([np.ones((len(rows), 1)), *(part[rows] for part in parts)], axis=1), ms[rows])
        self._constant = found[0]
        for nodes, prices in zip(ops, found[1:].reshape(len(ops), -1), strict=True):
            self._spread(prices, nodes)

    def _spread(self, prices: Floats, nodes: Iterable[int]) -> None:
        """Give the products of some nodes their prices, (2 * ways,): work first."""
        for node in nodes:
            work, moved = self._features.products_of(node)
            self._prices[work], self._prices[moved] = prices[:WAYS], prices[WAYS:]


def _prices(parts: Floats, ms: Floats) -> Floats:
    """Fit prices of at least zero, and hold back those that little is known of."""
    size = np.maximum(parts.max(axis=0), 1e-12)
    held = RIDGE * np.sqrt(len(ms)) * np.eye(len(size))
    found, _ = nnls(np.concatenate([parts / size, held]), np.append(ms, np.zeros(len(size))))
    return np.asarray(found / size, np.float64)


def _operators(features: Features) -> list[Ints]:
    """List the nodes of each operator that works or moves anything."""
    kinds: dict[str, list[int]] = {}
    for node in np.unique(features.place):
        kinds.setdefault(features.kinds[node], []).append(int(node))
    return [np.asarray(nodes) for nodes in kinds.values()]
