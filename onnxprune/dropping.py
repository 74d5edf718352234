"""The smallest model that loses no more than a given number of points."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune import runtime
from onnxprune.attempts import Attempts
from onnxprune.errors import TargetError
from onnxprune.finish import Finish
from onnxprune.journal import Journal
from onnxprune.prepare import Prepared
from onnxprune.progress import Progress, Quiet
from onnxprune.surgery import cut
from onnxprune.weights import Floats

TRIALS = 7  # each halves the range of shares that is left


def smallest_within(
    points: float,
    prepared: Prepared,
    worth: Sequence[Floats],
    journal: Journal,
    finish: Finish,
    progress: Progress,
) -> dict[str, str]:
    """Find the smallest share of the FLOPs at which the repaired model loses at most so many points.

    Args:
        points: of accuracy, or of agreement with the original where there are no labels.
        prepared: the model and its data.
        worth: per group how much each channel matters.
        journal: judges plans, and remembers.
        finish: repairs, and tells what is lost on the samples held out.
        progress: told about each trial.

    Returns:
        The target that leads to it; all of the FLOPs where every trial loses more.
    """
    low, high = _lowest(prepared), 1.0
    for trial in range(1, TRIALS + 1):
        share = (low + high) / 2
        found = _trial(share, prepared, worth, journal, finish, progress)
        if found is None:
            low = share
            continue
        kept, drop = found
        progress.say(f"trial {trial} of {TRIALS}: {kept:.1%} of the FLOPs kept, {drop:.2f} points lost")
        low, high = (low, share) if drop <= points else (share, high)
    return _target(high)


def _trial(
    share: float,
    prepared: Prepared,
    worth: Sequence[Floats],
    journal: Journal,
    finish: Finish,
    progress: Progress,
) -> tuple[float, float] | None:
    """Cut to a share of the FLOPs and repair: the share really kept, and the points lost (None: it cannot be met)."""
    try:
        attempt = Attempts(prepared, worth, journal, _Steps(progress), _target(share)).best
    except TargetError:
        return None

    def measured() -> float:
        return finish.loss(attempt.plan, cut(attempt.channels, attempt.plan, runtime.evaluate))

    return attempt.macs_share, journal.drop(attempt.plan, measured)


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
