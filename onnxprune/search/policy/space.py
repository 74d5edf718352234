"""The plans that a policy moves between: corrections of one ranking of all channels.

Each channel has a price: the error that it adds when it goes, for what it saves. A plan keeps what is dearer than some
threshold, and the threshold is the one that meets the targets. A correction makes the channels of a group dearer or
cheaper; without corrections comes out the plan to start from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.plan import Plan
from onnxprune.problem import Counts, Problem
from onnxprune.weights import Floats

TINY = 1e-3  # of a neighbour's error: what adds none at all must still have a price
AT_END = 0.35  # log: a group that keeps all it can, or as little, has a price so far from the threshold
ROUNDS, POINTS = 4, 33  # of the search for the threshold: the range shrinks 32-fold in each
NEAR = 0.05  # a target is binding where less than this part of it is open


class Space:
    """Plans around one to start from.

    Args:
        problem: what to solve.
        start: channels per group to start from; it must meet the targets.

    Attributes:
        weights: (groups,) logarithms of how much more the errors of each group matter than it seems, if the start is
            the best plan: a channel at the threshold adds as much error for what it saves in every group.
    """

    def __init__(self, problem: Problem, start: Counts) -> None:
        self.problem = problem
        self.start = start
        ordered = [np.sort(worth)[::-1] for worth in problem.importance]
        # what is worth nothing has a price all the same
        self._worths = [np.maximum(worth, max(float(worth[0]) * 1e-12, 1e-300)) for worth in ordered]
        self._below = [np.append(0, np.cumsum(worth[::-1])) for worth in ordered]
        self._middles = np.asarray([self._middle(group) for group in range(len(start))])
        self.weights = np.log(_saved(problem, start)) - self._middles
        self._prices = [self._log_prices(group) for group in range(len(start))]
        ends = [(prices[0], prices[-1]) for prices in self._prices if len(prices)]
        self._range = max((high for high, _ in ends), default=0.0), min((low for _, low in ends), default=0.0)
        self._whole = {name: float(values[0]) for name, values in problem.costs.of(problem.most).items()}

    def _middle(self, group: int) -> float:
        """Find the logarithm of the worth between what the start keeps and what it does not."""
        worth, count = self._worths[group], int(self.start[group])
        last = worth[max(count - 1, 0)]
        first = max(worth[min(count, len(worth) - 1)], TINY * last)
        if count >= self.problem.most[group]:
            return float(np.log(last)) - AT_END
        if count <= self.problem.least[group]:
            return float(np.log(first)) + AT_END
        return float(0.5 * (np.log(last) + np.log(first)))

    def _log_prices(self, group: int) -> Floats:
        """Give the prices of the channels that may go, dearest first; the threshold that gives the start is 0."""
        least, most = int(self.problem.least[group]), int(self.problem.most[group])
        found: Floats = np.log(self._worths[group][least:most]) - self._middles[group]
        return found

    def lost(self, counts: Counts) -> Floats:
        """Give what plans (plans, groups) lose of the importance of each group."""
        lost = [below[len(below) - 1 - row] for below, row in zip(self._below, counts.T, strict=True)]
        return np.stack(lost, axis=1)

    def corrections(self, weights: Floats, counts: Counts) -> Floats:
        """Find the corrections that make every channel at the threshold add as much error for what it saves.

        Args:
            weights: (groups,) logarithms of how much more the errors of each group matter than it seems.
            counts: (groups,) the plan for which it is known what a channel saves.

        Returns:
            (groups,) corrections, whose median is 0: what they have in common moves the threshold alone.
        """
        found = weights + self._middles - np.log(_saved(self.problem, counts))
        return np.asarray(found - np.median(found))

    def wanted(self, corrections: Floats, part: float = 1.0) -> Counts:
        """Find the plan, not aligned yet, that keeps the dearest channels and meets the targets.

        Args:
            corrections: (groups,) logarithms of what the prices of each group are multiplied by.
            part: how far on the way from the whole model to the targets, where 1 is there.
        """
        spread = float(np.abs(corrections).max(initial=0)) + 1e-6
        high, low = self._range[0] + spread, self._range[1] - spread
        counts = self._kept(corrections, np.asarray([low]))
        if self._fits(counts, part)[0]:
            return np.asarray(counts[0])
        for _ in range(ROUNDS):
            thresholds = np.linspace(low, high, POINTS)
            counts = self._kept(corrections, thresholds)
            fits = self._fits(counts, part)
            at = int(np.argmax(fits)) if fits.any() else POINTS - 1  # costs only fall as the threshold rises
            low, high = float(thresholds[max(at - 1, 0)]), float(thresholds[at])
        chosen: Counts = counts[at]
        return chosen

    def _kept(self, corrections: Floats, thresholds: Floats) -> Counts:
        """Count the channels of each group that are dearer than each threshold: (thresholds, groups)."""
        rows = [
            least + np.searchsorted(-prices, -(thresholds - correction), side="right")
            for prices, correction, least in zip(self._prices, corrections, self.problem.least, strict=True)
        ]
        return np.stack(rows, axis=1).astype(np.int64)

    def _fits(self, counts: Counts, part: float) -> npt.NDArray[np.bool_]:
        found, fits = self.problem.costs.of(counts), np.ones(len(counts), bool)
        for target in self.problem.targets:
            whole = self._whole[target.metric]
            limit = whole * min(target.limit / whole, 1) ** part
            fits &= found[target.metric] <= limit * (1 + 1e-12)
        return fits

    def counts(self, corrections: Floats) -> Counts:
        """Find the plan of some corrections: aligned, filled up, and within the targets."""
        if not corrections.any():
            return self.start
        wanted = np.maximum(self.wanted(corrections), 1e-3)
        return self.problem.fit(wanted / self.problem.most)

    def plan(self, corrections: Floats) -> Plan:
        """The same, as a plan."""
        return self.problem.plan(self.counts(corrections))


def _saved(problem: Problem, counts: Counts) -> Floats:
    """Give what one channel of each group saves, as a part of the targets that are nearly reached."""
    several = np.maximum(problem.most / 4, 1) if problem.is_predicted else np.ones(len(counts))  # over a stair or two
    rows = np.vstack([np.asarray(counts, float), counts + np.diag(several)])
    found, total = problem.costs.of(rows), np.zeros(len(counts))
    near = [t for t in problem.targets if found[t.metric][0] > (1 - NEAR) * t.limit] or list(problem.targets)
    for target in near:
        total += (found[target.metric][1:] - found[target.metric][0]) / several / max(target.limit, 1)
    positive = total[total > 0].min(initial=np.inf)  # a whole parameter that nodes share takes less than its copies
    return np.where(total < 0, positive, np.maximum(total, 1e-30))
