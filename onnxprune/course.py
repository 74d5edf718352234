"""A search on its way: the best plan so far, and whether it is worth going on."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnxprune.plan import Plan
from onnxprune.problem import Problem
from onnxprune.progress import Progress

PATIENCE = 50  # plans, or half of the budget if that is more, none of them better: then a search is stopped
TIME_IS_UP = "its time was used up"


class Course:
    """Follows one search.

    Args:
        problem: that it solves.
        budget: plans that it may judge.
        limit: seconds that may be used; None: as many as it needs.
        seconds: gives those that are used.
        progress: told how far the search is.

    Attributes:
        stopped: why it was stopped early, or empty.
    """

    def __init__(
        self,
        problem: Problem,
        budget: int,
        limit: float | None,
        seconds: Callable[[], float],
        progress: Progress,
    ) -> None:
        self._problem, self._limit, self._seconds, self._progress = problem, limit, seconds, progress
        self._done, self._total = 0, budget  # as the search counts, which may be batches of plans
        self._patience = max(PATIENCE, budget // 2)
        self._best_at = 0  # after how many plans
        self._best = -math.inf
        self._text = ""
        self.stopped = ""
        problem.told, problem.is_over = self._note, self._is_time_up

    def step(self, done: int, total: int) -> None:
        """Say how far the search is, and the best that it has found."""
        self._done, self._total = done, total
        limit = None if self._limit is None else max(self._limit - self._seconds(), 0.0)
        self._progress.step(done, total, self._text, limit)

    def end(self) -> None:
        """Follow it no further: what is judged from now on is no step of it."""
        self._problem.told = lambda plan, score: None

    def stop(self) -> bool:
        """Tell whether the search is to come to its end."""
        self._is_time_up()
        since = self._problem.judged - self._best_at
        if not self.stopped and since >= self._patience:
            self.stopped = f"none of the last {since} plans that it tried was better"
        return bool(self.stopped)

    def _is_time_up(self) -> bool:
        is_up = self._limit is not None and self._seconds() >= self._limit
        if is_up and not self.stopped:
            self.stopped = TIME_IS_UP
        return is_up

    def _note(self, plan: Plan, score: float) -> None:
        if score > self._best and self._problem.meets(plan.counts)[0]:
            self._best, self._best_at = score, self._problem.judged
            if self._problem.judging is not None:  # else the score is no error
                macs = float(self._problem.costs.of(plan.counts)["macs"][0])
                share = macs / max(self._problem.original["macs"], 1)
                self._text = f"best error {-score:.3g} at {share:.1%} of the FLOPs"
        self.step(min(self._done + 1, self._total), self._total)
