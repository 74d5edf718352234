"""The smallest model that loses no more than a given number of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from onnxprune import runtime
from onnxprune.attempt import Attempt
from onnxprune.attempts import Attempts
from onnxprune.course import TIME_IS_UP
from onnxprune.errors import TargetError
from onnxprune.finish import Finish
from onnxprune.journal import Journal
from onnxprune.prepare import Prepared
from onnxprune.progress import Progress, Quiet
from onnxprune.surgery import cut

TRIALS = 7  # each halves the range of shares that is left


class Attempting(Protocol):
    """Makes attempts at a target."""

    def __call__(self, progress: Progress, targets: Mapping[str, str]) -> Attempts:
        """Search for a plan that meets the targets."""


def smallest_within(
    points: float, prepared: Prepared, attempting: Attempting, journal: Journal, finish: Finish, progress: Progress
) -> Attempts:
    """Find the smallest share of the FLOPs at which the repaired model loses at most so many points.

    Once the time of the search is up, no further share is tried.

    Args:
        points: of accuracy, or of agreement with the original where there are no labels.
        prepared: the model and its data.
        attempting: searches.
        journal: judges plans, and remembers.
        finish: repairs, and tells what is lost on the samples held out.
        progress: told about each trial.

    Returns:
        The attempts whose plan was measured to lose no more; at all of the FLOPs where every trial loses more.
    """
    low, high, best = _lowest(prepared), 1.0, None
    limit, is_over = prepared.source.settings.time_limit, False
    for trial in range(1, TRIALS + 1):
        is_over = trial > 1 and limit is not None and journal.seconds >= limit
        if is_over:
            break
        share = (low + high) / 2
        try:
            found = attempting(_Steps(progress), _target(share))
        except TargetError:
            low = share
            continue
        drop = drop_of(found.best, journal, finish)
        progress.say(
            f"trial {trial} of {TRIALS}: {found.best.macs_share:.1%} of the FLOPs kept, {drop:.2f} points lost"
        )
        if drop <= points:
            high, best = share, found
        else:
            low = share
    best = best or attempting(progress, _target(1.0))
    if is_over:
        best.best.stopped = TIME_IS_UP
    return best


def drop_of(attempt: Attempt, journal: Journal, finish: Finish) -> float:
    """Give the points that a plan loses once it is repaired; it is cut only where nothing has measured them."""
    plan = attempt.plan
    return journal.drop(plan, lambda: finish.loss(plan, cut(attempt.channels, plan, runtime.evaluate)))


def _target(share: float) -> dict[str, str]:
    return {"macs": f"{share:.4f}"}


def _lowest(prepared: Prepared) -> float:
    """Give the lowest share of the FLOPs that a plan can keep."""
    problem = prepared.problem()
    return problem.lowest()["macs"] / max(problem.original["macs"], 1)


class _Steps(Quiet):
    """Passes on how far something is, and nothing else."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def step(self, done: int, total: int, text: str = "", limit: float | None = None) -> None:
        """Pass on."""
        self._progress.step(done, total, text, limit)
