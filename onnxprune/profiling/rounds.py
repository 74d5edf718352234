"""Models measured in turns, as often as it takes to tell them apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from onnxprune.profiling import intervals
from onnxprune.weights import Floats

FEWEST, MOST = 12, 400  # rounds
TURN = 10.0  # milliseconds that a turn should take at least
LONGEST_TURN = 64  # runs
WARM_UP = 3  # runs at least, and half a turn


class Runs(Protocol):
    """Something that runs, and tells how long it took."""

    def run(self, count: int) -> list[float]:
        """Run so often; returns the milliseconds of each run."""


Told = Callable[[int, int], None]
"""Told how many rounds are done, of how many at most."""


class Rounds:
    """What each model took, in rounds in which each had one turn.

    Args:
        subjects: the models.
        precision: half of an interval of 95 %, as a part of its middle, at which it is enough.
        seconds: after which it is enough in any case.
        clock: gives the time in seconds.

    Attributes:
        ms: per model the milliseconds of each run.
        turns: (rounds, models) the median of each turn.
    """

    def __init__(
        self,
        subjects: Sequence[Runs],
        precision: float,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subjects = subjects
        self._precision, self._seconds, self._clock = precision, seconds, clock
        self.ms: list[list[float]] = [[] for _ in subjects]
        self._turns: list[list[float]] = []

    @property
    def turns(self) -> Floats:
        """The median of each turn, (rounds, models)."""
        return np.asarray(self._turns, np.float64).reshape(-1, len(self._subjects))

    def measure(self, told: Told = lambda done, total: None) -> None:
        """Warm up, then let all run in turns, each time in another order, until intervals are narrow enough."""
        start = self._clock()
        counts = [_runs_for_a_turn(subject) for subject in self._subjects]
        orders = np.random.default_rng(0)
        while len(self._turns) < MOST and not self._is_enough(self._clock() - start):
            found = [0.0] * len(self._subjects)
            for place in orders.permutation(len(self._subjects)):
                times = self._subjects[place].run(1 + counts[place])[1:]  # the first finds caches that others used
                self.ms[place] += times
                found[place] = float(np.median(times))
            self._turns.append(found)
            told(len(self._turns), MOST)

    def _is_enough(self, seconds: float) -> bool:
        if len(self._turns) < FEWEST:
            return False
        turns = self.turns
        if len(self._subjects) == 1:
            found = [intervals.median(turns[:, 0])]
        else:
            found = [intervals.ratio(turns[:, 0], other) for other in turns[:, 1:].T]
        return seconds > self._seconds or all(one.width <= self._precision for one in found)


def _runs_for_a_turn(subject: Runs) -> int:
    """Warm a model up; returns how many of its runs make a turn."""
    first = float(np.median(subject.run(WARM_UP)))
    subject.run(min(LONGEST_TURN, int(np.ceil(TURN / 2 / max(first, 1e-3)))))
    usual = float(np.median(subject.run(WARM_UP)))
    return int(np.clip(np.ceil(TURN / max(usual, 1e-3)), 1, LONGEST_TURN))
