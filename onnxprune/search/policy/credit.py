"""Which group earned what of a reward: a model of how the errors of groups add up, fitted to all rewards so far.

A reward belongs to a whole plan, and in a network of many groups says little of each. But much is known before: the
error of a group grows as what the criterion says of the channels that it loses, and errors nearly add up. What is left
to learn is one number for each group, how much more its errors matter than it seems, and few plans tell that. Groups
that are alike in the graph matter alike, so that what a plan tells of one is told of others as well. What is still in
doubt is known, too: from there come the plans that are worth judging next (Thompson sampling).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares

from onnxprune.problem import Counts
from onnxprune.search.policy.space import Space
from onnxprune.weights import Floats

TRUST = 0.1  # in the start: what a unit of logarithm away from its weights is worth, in units of rewards
POWER, POWER_TRUST = 1.2, 2.0  # what the sum of errors is raised to, and how far that is trusted
FLOOR = 1e-9  # of the errors of the plan to start from
LEAST = 1e-9  # of what the smallest network loses, that the plan to start from is taken to lose at least
TINY = 1e-9


class Credit:
    """A model of rewards: ``reward = constant - power * log(sum of weight * error lost in each group)``.

    Args:
        space: what plans mean.
        doubt: (groups, groups) how far off that is, and how much alike in any two groups: a covariance.
        corrections: (groups,) that are the best as far as is known before; by default none, for the plan to start from.

    Attributes:
        best: channels per group of the plan with the largest reward so far, before there is one of that to start from.
    """

    def __init__(self, space: Space, doubt: Floats, corrections: Floats | None = None) -> None:
        self._space = space
        groups = len(space.start)
        self._before = space.weights + (np.zeros(groups) if corrections is None else corrections)
        self._whitening = np.linalg.inv(np.linalg.cholesky(doubt))  # makes numbers that are correlated independent
        weights = np.exp(self._before - self._before.max())
        lost, most = space.lost(np.stack([space.start, space.problem.least])) @ weights
        self._scale = weights / (max(lost, LEAST * most) or 1.0)  # the plan to start from may lose nothing
        self._lost, self._rewards, self.best = np.empty((0, groups)), np.empty(0), space.start
        self._trusted, self._most = np.empty(0), -np.inf
        self._seen: set[bytes] = set()
        self._found = np.concatenate([np.zeros(groups), [0.0, np.log(POWER)]])

    @property
    def weights(self) -> Floats:
        """(groups,) Logarithms of how much more the errors of each group matter than it seems.

        Before anything is known they are those for which the corrections taken to be best are.
        """
        return np.asarray(self._before + self._found[:-2])

    def knows(self, plan: Counts) -> bool:
        """Tell whether a plan (groups,) was among the episodes."""
        return plan.tobytes() in self._seen

    def add(self, plans: Sequence[Counts], rewards: Floats, trust: Floats | float = 1.0) -> None:
        """Take more episodes into the fit: the channels per group that each came to, and its reward.

        A plan counts once, however often a search comes to it.

        Args:
            plans: (groups,) each; those that miss a target tell what groups matter as well, but are never the best.
            rewards: of each.
            trust: in each, compared with that in episodes of this search.
        """
        new = {plan.tobytes(): at for at, plan in enumerate(plans) if plan.tobytes() not in self._seen}
        if not new:
            return
        self._seen |= new.keys()
        rows = list(new.values())
        counts, found = np.stack(plans)[rows], rewards[rows]
        self._lost = np.concatenate([self._lost, self._space.lost(counts) * self._scale])
        self._rewards = np.concatenate([self._rewards, found])
        self._trusted = np.concatenate([self._trusted, np.broadcast_to(trust, len(plans))[rows]])
        fitting = np.where(self._space.problem.meets(counts), found, -np.inf)
        if fitting.max() > self._most:
            self._most, self.best = float(fitting.max()), counts[int(np.argmax(fitting))]
        self._found = least_squares(self._wrong, self._found, self._slopes, method="trf", max_nfev=50).x

    def expected(self, plans: Counts) -> Floats:
        """Give the rewards of plans (plans, groups)."""
        return self._expected(self._space.lost(plans) * self._scale, self._found)

    def _expected(self, lost: Floats, unknowns: Floats) -> Floats:
        *_, constant, power = unknowns
        return np.asarray(constant - np.exp(power) * np.log(lost @ np.exp(unknowns[:-2]) + FLOOR))

    def _wrong(self, unknowns: Floats) -> Floats:
        doubts = np.append(self._whitening @ unknowns[:-2], POWER_TRUST * (unknowns[-1] - np.log(POWER)))
        wrong = self._trusted * (self._expected(self._lost, unknowns) - self._rewards)
        return np.concatenate([wrong, TRUST * doubts])

    def _slopes(self, unknowns: Floats) -> Floats:
        groups = len(unknowns) - 2
        parts, power = self._lost * np.exp(unknowns[:-2]), np.exp(unknowns[-1])
        total = parts.sum(axis=1, keepdims=True) + FLOOR
        of_rewards = np.hstack([-power * parts / total, np.ones_like(total), -power * np.log(total)])
        of_rewards *= self._trusted[:, None]
        of_doubts = np.zeros((groups + 1, groups + 2))
        of_doubts[:-1, :-2] = TRUST * self._whitening
        of_doubts[-1, -2:] = 0.0, TRUST * POWER_TRUST
        return np.vstack([of_rewards, of_doubts])

    def targets(self, weights: Floats | None = None) -> Floats:
        """Give the corrections (groups,) that would be best if groups mattered so, by default as far as is known."""
        return self._space.corrections(self.weights if weights is None else weights, self.best)

    def draw(self, number: int, generator: np.random.Generator, boldness: float) -> Floats:
        """Draw what each group might matter as well, (number, groups) logarithms, given all rewards so far.

        Args:
            number: of times.
            generator: of what is drawn.
            boldness: what the spread of what is drawn is multiplied by.
        """
        slopes = self._slopes(self._found)
        precise = slopes.T @ slopes + TINY * np.eye(len(self._found))  # without rewards nothing tells the constant
        noise = generator.standard_normal((number, len(self._found)))
        away = np.linalg.solve(np.linalg.cholesky(precise).T, noise.T).T
        return np.asarray(self._before + (self._found + boldness * TRUST * away)[:, :-2])
