"""One plan and what became of it: searched, cut, and timed beside the original."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import runtime, search
from onnxprune.channels import Channels
from onnxprune.course import Course
from onnxprune.errors import InputError, TargetError
from onnxprune.journal import Journal
from onnxprune.judging import digest
from onnxprune.latency.device import Device
from onnxprune.metrics import LATENCY
from onnxprune.model import Model
from onnxprune.plan import Plan
from onnxprune.prepare import Prepared
from onnxprune.problem import FINE, Align, Floats, Problem, Target, parse_target
from onnxprune.profiling import intervals
from onnxprune.profiling.intervals import Interval
from onnxprune.progress import Progress
from onnxprune.reporting import latency
from onnxprune.search.greedy import descend
from onnxprune.surgery import cut

WORDS = {"macs": "FLOPs (multiply-accumulates)", "params": "parameters", LATENCY: "time of a run, in microseconds"}
FOLLOWS = 0.8  # time follows the MACs well enough where the share of MACs is at least this part of the share of time
# Tried in turn: the second where the time lags behind the MACs; the third, which may fall well short of the target,
# only where the result is slower than the original.
ALIGNMENTS = (FINE, Align(16, 2, rest=FINE), Align(16, 2))
MOST_WORSE = 1.25  # times the error of the finer plan that a coarser one may have to be taken for its speed
FINALISTS = 3  # plans of a search that are fully repaired before one is chosen
NEAR = 0.05  # part of the time asked for; a measured time as close as that is what was asked for
CORRECTIONS = 3  # times that a search is done again because the measured time is not
WORTH_COARSER = 0.9  # coarser widths are taken where they need at most this share of the time


@dataclass
class Attempt:
    """One plan and what became of it.

    Attributes:
        problem: what it answers.
        plan: what stays.
        align: what its widths are a multiple of.
        cut: the smaller model, once it is cut.
        before: milliseconds of the original, where it was timed.
        after: milliseconds of the smaller model.
        speedup: how many times faster that is, measured in turns.
        score: how the search judges the plan, once it was asked; larger is better.
        stopped: why its search was stopped early, or empty.
        is_found: whether its search came to it; else an earlier run did.
    """

    problem: Problem
    plan: Plan
    align: Align
    cut: ModelProto | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    speedup: Interval | None = None
    score: float | None = None
    stopped: str = ""
    is_found: bool = True

    @property
    def channels(self) -> Channels:
        """What could be cut."""
        return self.problem.channels

    @property
    def result(self) -> ModelProto:
        """The smaller model; it must have been cut."""
        assert self.cut is not None
        return self.cut

    @property
    def macs_share(self) -> float:
        """Share of the original's MACs that is kept."""
        macs = float(self.problem.costs.of(self.plan.counts)["macs"][0])
        return macs / max(self.problem.original["macs"], 1)

    @property
    def ideal(self) -> float:
        """How many times faster the FLOPs suggest that it is."""
        return 1 / max(self.macs_share, 1e-9)

    @property
    def time_share(self) -> float | None:
        """Share of the original's time that a run needs (None: not timed)."""
        return 1 / self.speedup.median if self.speedup is not None else None

    @property
    def lags(self) -> bool:
        """Whether the time saved is well short of the MACs saved."""
        return self.time_share is not None and self.macs_share < FOLLOWS * self.time_share

    @property
    def is_slower(self) -> bool:
        """Whether the result takes longer than the original."""
        return self.time_share is not None and self.time_share > 1

    def is_faster_than(self, other: Attempt) -> bool:
        """Tell whether this is faster by enough to matter; ratios are compared, each taken within one run."""
        mine, its = self.time_share, other.time_share
        return mine is not None and its is not None and mine < WORTH_COARSER * its

    def is_limited_by(self, metric: str) -> bool:
        """Whether what is predicted or counted of the plan comes close to the limit of a target."""
        cost = float(self.problem.costs.of(self.plan.counts)[metric][0])
        return any(t.metric == metric and cost > (1 - NEAR) * t.limit for t in self.problem.targets)

    def misses(self, wanted: float) -> tuple[bool, float]:
        """Say how far the measured time is off: whether it is too long, and by what part."""
        off = (self.time_share or float("inf")) / wanted - 1
        return off > NEAR, abs(off)

    def summary(self) -> dict[str, Any]:
        """Describe the attempt for the report."""
        steps = sorted({int(step) for step in self.problem.steps})
        return {
            "multiple": self.align.multiple,
            "part": self.align.part,
            "filled_up": self.align.rest is not None,
            "steps": steps,
            "macs": self.macs_share,
            "time": self.time_share,
            "stopped": self.stopped,
        }


@dataclass(frozen=True)
class Searched:
    """What a search has taken.

    Attributes:
        judged: how many plans, by effort.
        seconds: of searching.
        stopped: why it ended early, or empty.
    """

    judged: dict[str, int]
    seconds: float
    stopped: str


def early_end(search: Searched) -> list[str]:
    """Say where a search ended early, and after how many plans."""
    judged = sum(search.judged.values())
    told = f"; {judged} plans were judged in all" if judged else ""
    return [f"the search was stopped early: {search.stopped}{told}"] if search.stopped else []


class Attempts:
    """All attempts at one model: finer widths first, coarser ones while the time lags behind the MACs.

    Args:
        prepared: the model and what can be cut from it.
        worth: per group how much each channel matters.
        journal: judges plans on data, and remembers; None where there is none.
        progress: told what is going on.
        targets: metric to what was asked for, as text (default: those of the settings).
        allows: tells whether a plan and its cut model may be taken for their speed (default: all may).

    Attributes:
        targets: what every plan must meet.
        time_asked: share of the original's time that may be taken, as measured; None: no time was asked for.
        best: the attempt that is taken.
        tried: all of them.

    Raises:
        InputError: a target makes no sense.
        TargetError: a target cannot be reached.
    """

    def __init__(
        self,
        prepared: Prepared,
        worth: Sequence[Floats],
        journal: Journal | None,
        progress: Progress,
        targets: Mapping[str, str] | None = None,
        allows: Callable[[Plan, ModelProto], bool] | None = None,
    ) -> None:
        self._prepared = prepared
        self._allows = allows
        self._lossless = prepared.lossless
        self._settings = prepared.source.settings
        self._journal = journal
        self._worth = worth
        self._progress = progress
        self._start = time.monotonic()
        original = prepared.original_costs
        asked = self._settings.targets if targets is None else targets
        self.targets = [parse_target(name, text, original[name]) for name, text in asked.items()]
        for target in self.targets:
            progress.say(f"Keep at most {described(target, original)}")
        align = self._settings.align
        self._ladder = ALIGNMENTS if align is None else (Align(align),)
        self.time_asked = next((t.limit / original[LATENCY] for t in self.targets if t.metric == LATENCY), None)
        if self.time_asked is not None and journal is not None:
            self._try_prediction(self.time_asked)
        self.best = self._search(self._ladder[0])
        self.tried = [self.best]

    def cut_and_time(self) -> None:
        """Cut the plan and time the result; where that shows a need, try others, and keep the best."""
        self._cut_and_time(self.best)
        if self.time_asked is None:
            self._coarsen()
        else:
            self._approach(self.time_asked)

    def _coarsen(self) -> None:
        """Go on to coarser widths while the time lags behind the MACs."""
        for align in self._ladder[1:]:
            wanted = self.best.lags if align.rest is not None else self.best.is_slower
            coarser = self._other(align) if wanted else None
            if coarser is not None:
                self._cut_and_time(coarser)
                self._keep_better(coarser, self._is_better(coarser))

    def _try_prediction(self, share: float) -> None:
        """Measure a plan that nothing has to be judged for, so that the search begins with the right limit."""
        problem = self._problem(self._ladder[0])
        trial = Attempt(problem, problem.plan(descend(problem)), self._ladder[0])
        self._cut_and_time(trial)
        if trial.time_share is not None and trial.is_limited_by(LATENCY):
            self._move_limit(share / trial.time_share)

    def _approach(self, share: float) -> None:
        """Move the limit of the time, and search again, while the measured share of the original's is too far off."""
        latest, known = self.best, list[tuple[float, float]]()
        for _ in range(CORRECTIONS):
            found = latest.time_share
            if found is None or abs(found / share - 1) <= NEAR or (found < share and not latest.is_limited_by(LATENCY)):
                break
            known.append((self._limit, found))
            self._move_limit(_next_limit(known, share) / self._limit)
            other = self._other(latest.align)
            if other is None:
                break
            latest = other
            self._cut_and_time(latest)
            self._keep_better(latest, latest.misses(share) < self.best.misses(share))

    @property
    def _limit(self) -> float:
        return next(target.limit for target in self.targets if target.metric == LATENCY)

    def _move_limit(self, by: float) -> None:
        by = float(np.clip(by, 0.5, 2))
        self.targets = [replace(t, limit=t.limit * by) if t.metric == LATENCY else t for t in self.targets]

    def _keep_better(self, other: Attempt, is_better: bool) -> None:
        self.tried.append(other)
        loser = self.best if is_better else other
        self.best = other if is_better else self.best
        loser.cut = None  # only its numbers are still needed

    def searched(self) -> Searched:
        """Tell what the search has taken."""
        judged = {} if self._journal is None else self._journal.judged
        return Searched(judged, round(self._seconds(), 3), self.best.stopped)

    def _is_better(self, coarser: Attempt) -> bool:
        """Tell whether coarser widths are faster by enough, and do not answer much worse for it."""
        if not coarser.is_faster_than(self.best):
            return False
        if self._allows is not None and not self._allows(coarser.plan, coarser.result):
            return False
        if self._journal is None or self.best.is_slower:
            return True
        errors = self._journal.errors([self.best.plan, coarser.plan], effort="full")
        return errors[1] <= MOST_WORSE * errors[0]

    def _problem(self, align: Align) -> Problem:
        asked, lossless = self._settings, self._lossless
        return Problem(
            lossless.channels,
            self._prepared.costs,
            self.targets,
            self._worth,
            align,
            asked.min_keep,
            lossless,
            self._journal,
        )

    def _search(self, align: Align) -> Attempt:
        asked, problem = self._settings, self._problem(align)
        problem.check_reachable()
        if align is self._ladder[0]:
            self._recall(problem)
        course = Course(problem, asked.budget, asked.time_limit, self._seconds, self._progress)
        assert asked.search is not None, "resolve chooses one"
        policy = None if asked.policy is None else Path(asked.policy)
        wanted = search.SearchSettings(asked.budget, asked.seed, course.stop, policy, asked.policy_preset)
        found = search.find(asked.search)(problem, wanted, course.step)
        plan = self._best_repaired(problem, found)
        is_found = plan is found or plan.counts.tobytes() in course.found
        return Attempt(problem, plan, align, stopped=course.stopped, is_found=is_found)

    def _seconds(self) -> float:
        """Give the time that searches have taken so far."""
        return time.monotonic() - self._start if self._journal is None else self._journal.seconds

    def _recall(self, problem: Problem) -> None:
        """Let plans be candidates that earlier runs in this folder have judged, those that a search could come to."""
        earlier = () if self._journal is None else self._journal.earlier
        size = len(problem.widths)
        known = [entry for entry in earlier if entry.effort == "quick" and len(entry.counts) == size]
        if not known:
            return
        rows = np.asarray([entry.counts for entry in known], np.int64)
        for at in np.flatnonzero(problem.admits(rows)):
            plan, entry = problem.plan(rows[at]), known[at]
            if entry.error is not None and digest(plan) == entry.plan:  # channels may be ranked otherwise now
                problem.visited[plan.counts.tobytes()] = plan, -entry.error

    def _best_repaired(self, problem: Problem, plan: Plan) -> Plan:
        """Choose among the plans that a search liked best the one that answers best once it is fully repaired."""
        if self._journal is None:
            return plan
        if plan.counts.tobytes() not in problem.visited:
            problem.score(plan)  # it is compared with the others
        finalists = problem.best(FINALISTS)
        if len(finalists) < 2:
            return plan
        return finalists[int(np.argmin(self._journal.errors(finalists, effort="full")))]

    def _other(self, align: Align) -> Attempt | None:
        """Search with other widths or limits; None where the targets cannot be met or a plan comes that was tried."""
        try:
            found = self._search(align)
        except TargetError:
            return None
        seen = any(np.array_equal(found.plan.counts, tried.plan.counts) for tried in self.tried)
        return None if seen else found

    def _cut_and_time(self, attempt: Attempt) -> None:
        attempt.cut = cut(attempt.channels, attempt.plan, runtime.evaluate)
        time_beside(attempt, self._lossless.original.model, self._settings.verify, self._settings.device)


def _next_limit(known: Sequence[tuple[float, float]], share: float) -> float:
    """Choose a limit from those that were tried and the shares of the time that were measured with them.

    Between one that is too low and one that is too high it is found by interpolation, else by scaling the last.
    """
    below = max((entry for entry in known if entry[1] < share), key=lambda entry: entry[1], default=None)
    above = min((entry for entry in known if entry[1] > share), key=lambda entry: entry[1], default=None)
    if below is None or above is None or below[0] >= above[0]:
        limit, found = known[-1]
        return limit * share / found
    (low, least), (high, most) = below, above
    way = (np.log(share) - np.log(least)) / (np.log(most) - np.log(least))
    return float(np.exp(np.log(low) + way * (np.log(high) - np.log(low))))


def described(target: Target, original: Mapping[str, float]) -> str:
    """Say a target in words, with both numbers."""
    total = original[target.metric]
    share = f"{target.limit / max(total, 1):.1%} of the {WORDS[target.metric]}"
    return f"{share}: {target.limit:,.0f} of {total:,.0f}."


def time_beside(attempt: Attempt, model: Model, verify: str, device: Device) -> None:
    """Time what was cut beside its original, in turns, unless nothing is to be verified."""
    if verify == "none":
        return
    feed = device.inputs(model)
    try:
        original = device.session(model.proto, model.folder)
        smaller = device.session(attempt.result, model.folder)
        before, after = runtime.latencies([original, smaller], [feed, feed])
    except InputError as error:
        raise InputError(f"{error}; --verify none compresses a model that onnxruntime cannot run") from error
    attempt.before, attempt.after = latency(before), latency(after)
    attempt.speedup = intervals.ratio(before, after)
