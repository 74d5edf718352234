"""Which group earned what of a reward: the slopes of all rewards so far over the corrections that led to them.

A reward belongs to a whole plan, and in a network of many groups says little of each. Errors of groups nearly add up,
so a linear fit over every episode that was played tells them apart with far fewer episodes than a policy gradient does.
"""

from __future__ import annotations

import numpy as np

from onnxprune.problem import Floats

RIDGE = 1.0  # of the mean variance of corrections


class Credit:
    """A linear fit of rewards to corrections, over all episodes.

    Args:
        groups: number of them.
    """

    def __init__(self, groups: int) -> None:
        self._corrections, self._rewards = np.empty((0, groups)), np.empty(0)
        self.slopes: Floats = np.zeros(groups)

    def add(self, corrections: Floats, rewards: Floats) -> None:
        """Take more episodes into the fit: (episodes, groups) and (episodes,)."""
        self._corrections = np.concatenate([self._corrections, corrections])
        self._rewards = np.concatenate([self._rewards, rewards])
        x, y = self._corrections - self._corrections.mean(axis=0), self._rewards - self._rewards.mean()
        covariance = x.T @ x / len(x)
        ridge = RIDGE * max(float(covariance.trace()) / len(covariance), 1e-12)
        self.slopes = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), x.T @ y / len(x))
