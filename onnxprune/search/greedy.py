"""Channels leave one step at a time, that step first which adds the least error for what it saves.

The error that a channel adds comes from the criterion, which measures it where the channel is read. What that means for
the model's answers differs from place to place. With data, each group is cut alone to measure it; several weightings of
both measures give a plan each, and the plan whose repaired model answers best wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.plan import Plan
from onnxprune.problem import Counts, Problem, by_kind
from onnxprune.search import Progress, SearchSettings
from onnxprune.weights import Floats, Ints

PROBE = 0.5  # of a group that is cut to measure what its errors mean for the answers
POWERS = (0.5, 1.0)  # how far these measures are trusted
WAYS = 2 + len(POWERS)  # plans that are judged in the end
WARM = 0.5  # of the budget that the plan which another search starts from may take
AHEAD = 8  # steps of a group that may be taken at once


def search(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Descend from the whole model to the targets, in several ways where there is data to choose between them."""
    if problem.judging is None:
        plan = problem.plan(descend(problem))
        progress(1, 1)
        return plan
    probed, known = 0, problem.judged

    def told(done: int, probes: int) -> None:
        nonlocal probed
        probed = done
        progress(done, probes + WAYS)

    is_met = bool(problem.meets(problem.most)[0])  # then all ways lead to the same plan
    chosen = {} if is_met else dict(list(probes(problem).items())[: max(settings.budget - WAYS, 0)])
    measured = sensitivities(problem, chosen, told, settings.stop)
    scales = [np.ones(len(problem.widths)), by_kind(problem), *(measured**power for power in POWERS)]
    found: dict[bytes, Plan] = {}
    for scale in scales:
        counts = descend(problem, scale)
        found.setdefault(counts.tobytes(), problem.plan(counts))
    plans = list(found.values())[: settings.budget]
    scores = problem.scores(plans)
    done = probed + problem.judged - known
    progress(done, done)
    return plans[int(np.argmax(scores))]


def warm_start(problem: Problem, settings: SearchSettings, progress: Progress) -> tuple[Counts, int]:
    """Find the plan to start from with part of the budget; returns it, and how many plans were judged for it."""
    used = 0

    def told(done: int, total: int) -> None:
        nonlocal used
        used = done
        progress(done, settings.budget)

    allowed = max(WAYS, int(WARM * settings.budget))
    asked = SearchSettings(min(allowed, settings.budget), settings.seed, settings.stop)
    plan = search(problem, asked, told)
    if not problem.visited:  # without data nothing had to be judged so far
        problem.score(plan)
        used = 1
    return plan.counts, used


@dataclass(frozen=True)
class Probe:
    """One group cut alone.

    Attributes:
        counts: channels per group that are left.
        added: error by the criterion where the group is read.
    """

    counts: Counts
    added: float


def probes(problem: Problem) -> dict[int, Probe]:
    """Give a probe for every group that can be cut, those that cost most first."""
    found: dict[int, Probe] = {}
    for group in np.argsort(-problem.saved_by_all(), kind="stable"):
        width, counts = int(problem.widths[group]), problem.most.copy()
        counts[group] = max(round(width * (1 - PROBE)), problem.least[group], 1)
        added = float(np.sort(problem.importance[group])[: width - counts[group]].sum())
        if counts[group] < problem.most[group] and added > 0:
            found[int(group)] = Probe(counts, added)
    return found


def sensitivities(
    problem: Problem,
    probes: Mapping[int, Probe],
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
) -> Floats:
    """Measure for each group what an error where it is read means for the model's answers.

    Args:
        problem: what to solve.
        probes: of the groups that are looked at.
        progress: told how many are done.
        stop: tells whether those that are left must do without.

    Returns:
        Error of the answers for an error of 1, relative to the median group; (groups,), 1 where nothing was measured.
    """
    assert problem.judging is not None
    ratios = np.full(len(problem.widths), np.nan)
    groups = list(probes)
    for start in range(0, len(groups), problem.together):
        if stop():
            break
        part = groups[start : start + problem.together]
        errors = problem.judging.errors([problem.plan(probes[group].counts) for group in part], effort="probe")
        for group, error in zip(part, errors, strict=True):
            ratios[group] = max(error, 0) / probes[group].added
        progress(start + len(part), len(groups))
    finite = ratios[np.isfinite(ratios) & (ratios > 0)]
    middle = float(np.median(finite)) if len(finite) else 1.0
    return np.clip(np.nan_to_num(ratios / middle, nan=1.0, posinf=1e4), 1e-4, 1e4)


def descend(problem: Problem, scale: Floats | None = None) -> Counts:
    """Take steps away until the targets are met, then give back what there is room for.

    Args:
        problem: what to solve.
        scale: what the errors of each group are multiplied by; by default they count as they are.

    Raises:
        TargetError: the targets cannot be met.
    """
    problem.check_reachable()
    scale = np.ones(len(problem.widths)) if scale is None else scale
    kept = [
        np.concatenate([[0.0], np.cumsum(np.sort(w)[::-1])]) * s for w, s in zip(problem.importance, scale, strict=True)
    ]
    counts = problem.most.copy()
    while not problem.meets(counts)[0]:
        groups, rows = _steps_down(problem, counts)
        saved = problem.saved(counts, rows)
        error = np.asarray([kept[g][counts[g]] - kept[g][row[g]] for g, row in zip(groups, rows, strict=True)])
        counts = rows[_cheapest(error, saved)]
    for steps in (problem.steps, problem.fine):
        while steps is not None:
            groups, rows = _steps(problem, counts, steps, up=True)
            fits = problem.meets(rows) if len(rows) else np.zeros(0, bool)
            more = [kept[g][row[g]] - kept[g][counts[g]] for g, row in zip(groups, rows, strict=True)]
            gained = np.where(fits, np.asarray(more), -np.inf)
            if not fits.any() or gained.max() <= 0:
                break
            counts = rows[int(np.argmax(gained))]
    return counts


def _steps_down(problem: Problem, counts: Counts) -> tuple[Ints, Counts]:
    """List what may leave next; of what falls in stairs, such as latency, several steps of a group at once, too."""
    groups, rows = _steps(problem, counts, problem.steps, up=False)
    for several in range(2, 1 + (AHEAD if problem.is_predicted else 1)):
        further, wider = _steps(problem, counts, problem.steps * several, up=False)
        groups, rows = np.concatenate([groups, further]), np.concatenate([rows, wider])
    return groups, rows


def _cheapest(error: Floats, saved: Floats) -> int:
    """Choose the step with the least error for what it saves; one that saves nothing only where all do."""
    ratio = np.where(saved > 0, error / np.maximum(saved, 1e-30), np.inf)
    return int(np.argmin(ratio)) if np.isfinite(ratio).any() else int(np.argmin(error))


def _steps(problem: Problem, counts: Counts, steps: Counts, up: bool) -> tuple[Ints, Counts]:
    """List the plans that differ from one in a single group, by a step to its next width: (groups), (plans, groups)."""
    moved = (counts // steps + 1) * steps if up else (-(-counts // steps) - 1) * steps
    moved = np.clip(moved, problem.least, problem.most)
    groups = np.flatnonzero(moved != counts)
    rows = np.tile(counts, (len(groups), 1))
    rows[np.arange(len(groups)), groups] = moved[groups]
    if problem.depth is not None:
        rows = np.maximum(rows, problem.least)  # what a branch takes along comes back with it
        rows = np.asarray([problem.depth.closed(row) for row in rows]).reshape(rows.shape)
        is_other = (rows != counts).any(axis=1)  # what a branch took along leads nowhere by itself
        groups, rows = groups[is_other], rows[is_other]
    return groups, rows
