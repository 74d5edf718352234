"""All attempts at one model: searched, cut and measured, until one is as fast and as small as was asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxprune import runtime, search
from onnxprune.attempt import Attempt, Searched, described, measure_beside, measure_memory
from onnxprune.course import Course
from onnxprune.errors import TargetError
from onnxprune.journal import Journal
from onnxprune.judging import digest
from onnxprune.limits import NEAR, Limits, next_limit
from onnxprune.measured import Measurements
from onnxprune.metrics import LATENCY, MEMORY
from onnxprune.plan import Plan
from onnxprune.prepare import Prepared
from onnxprune.problem import FINE, Align, Problem
from onnxprune.progress import Progress
from onnxprune.search.greedy import descend
from onnxprune.surgery import cut
from onnxprune.targets import Target, parse_target
from onnxprune.weights import Floats

# Tried in turn: the second where the time lags behind the MACs; the third, which may fall well short of the target,
# only where the result is slower than the original.
ALIGNMENTS = (FINE, Align(16, 2, rest=FINE), Align(16, 2))
MOST_WORSE = 1.25  # times the error of the finer plan that a coarser one may have to be taken for its speed
FINALISTS = 3  # plans of a search that are fully repaired before one is chosen
FEWEST = 3  # plans of a search that is done again: a policy's own, and two to compare it with
AGAIN = 0.25  # of the budget: for a search with other widths or limits that learns from what was judged before
CORRECTIONS = 3  # times that a search is done again because what was measured is not what was asked for


class Attempts:
    """All attempts at one model: finer widths first, coarser ones while the time lags behind the MACs.

    Args:
        prepared: the model and what can be cut from it.
        worth: per group how much each channel matters.
        journal: judges plans on data, and remembers; None where there is none.
        progress: told what is going on.
        targets: metric to what was asked for, as text (default: those of the settings).
        allows: tells whether a plan and its cut model may be taken for their speed (default: all may).
        measurements: what was measured before (default: nothing).

    Attributes:
        limits: of what every plan must meet.
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
        measurements: Measurements | None = None,
    ) -> None:
        self._prepared = prepared
        self._measurements = measurements or Measurements()
        self._allows = allows
        self._lossless = prepared.lossless
        self._settings = prepared.source.settings
        assert self._settings.search is not None, "resolve chooses one"
        self._search_name = self._settings.search
        self._journal = journal
        self._worth = worth
        self._progress = progress
        self._start = time.monotonic()
        original = prepared.original_costs
        asked = self._settings.targets if targets is None else targets
        found = [parse_target(name, text, original[name]) for name, text in asked.items()]
        for target in found:
            progress.say(f"Keep at most {described(target, original)}")
        self.limits = Limits(found, original)
        align = self._settings.multiple
        self._ladder = ALIGNMENTS if align is None else (Align(align),)
        if self.limits.asked and journal is not None:
            self._try_prediction()
        self.best = self._search(self._ladder[0])
        self.tried = [self.best]

    def cut_and_measure(self) -> None:
        """Cut the plan and measure the result; where that shows a need, try others, and keep the best."""
        self._cut_and_measure(self.best)
        if not self.limits.asked:
            self._coarsen()
            return
        self._approach()
        if LATENCY in self.limits.asked:
            self._try_macs()

    def _coarsen(self) -> None:
        """Go on to coarser widths while the time lags behind the MACs."""
        for align in self._ladder[1:]:
            wanted = self.best.lags if align.rest is not None else self.best.is_slower
            coarser = self._other(align) if wanted else None
            if coarser is not None:
                self._cut_and_measure(coarser)
                self._keep_better(coarser, self._is_better(coarser))

    def _try_prediction(self) -> None:
        """Measure a plan that nothing has to be judged for, so that the search begins with the right limits."""
        problem = self._problem(self._ladder[0])
        trial = Attempt(problem, problem.plan(descend(problem)), self._ladder[0])
        self._cut_and_measure(trial)
        self._move_limits(trial)

    def _approach(self) -> None:
        """Search again while what was measured is not what was asked for, and limits can be blamed for that."""
        latest = self.best
        for _ in range(CORRECTIONS):
            if not self.limits.wrong(latest):
                break
            self._move_limits(latest)
            other = self._other(latest.align)
            if other is None:
                break
            latest = other
            self._cut_and_measure(latest)
            self._keep_better(latest, self.limits.misses(latest) < self.limits.misses(self.best))

    def _move_limits(self, attempt: Attempt) -> None:
        """Move the limits of what was measured wrong, not below the smallest plan: it may lag behind as well."""
        self.limits.move(attempt)
        self.limits.hold(self._problem(attempt.align).lowest())

    def _try_macs(self) -> None:
        """Take a plan for MACs instead where it is as fast as was asked, and the other is not or is judged worse.

        It needs no predictions, so it is the better one where they are furthest off: nothing has to be judged for it,
        and its limit follows from what is measured.
        """
        share = self.limits.asked[LATENCY]
        asked = [target for target in self.limits.targets if target.metric != LATENCY]
        problem, whole, known = self._problem(self.best.align), self._prepared.original_costs["macs"], []
        limit = self.best.macs_share
        for _ in range(CORRECTIONS):
            counted = self._problem(self.best.align, [*asked, Target("macs", limit * whole, f"{limit:.4f}")])
            try:
                attempt = Attempt(problem, problem.plan(descend(counted)), self.best.align)
            except TargetError:
                return
            if self._was_tried(attempt):
                return
            self._cut_and_measure(attempt)
            meets, had = self.limits.meets(attempt), self.limits.meets(self.best)
            self._keep_better(
                attempt, meets and (not had or problem.score(attempt.plan) > problem.score(self.best.plan))
            )
            found = attempt.measured_share(LATENCY)
            if found is None or abs(found / share - 1) <= NEAR:
                return
            known.append((limit, found))
            limit = min(1.0, next_limit(known, share))

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

    def _problem(self, align: Align, targets: Sequence[Target] | None = None) -> Problem:
        asked, lossless = self._settings, self._lossless
        return Problem(
            lossless.channels,
            self._prepared.costs,
            self.limits.targets if targets is None else targets,
            self._worth,
            align,
            asked.min_keep,
            lossless,
            self._journal,
        )

    def _search(self, align: Align, part: float = 1.0) -> Attempt:
        """Search with a part of the budget."""
        asked, problem = self._settings, self._problem(align)
        problem.check_reachable()
        problem.together = asked.workers
        self._recall(problem, candidates=align is self._ladder[0])
        budget = min(asked.budget, max(FEWEST, math.ceil(part * asked.budget)))
        course = Course(problem, budget, asked.time_limit, self._seconds, self._progress)
        policy = None if asked.policy is None else Path(asked.policy)
        wanted = search.SearchSettings(budget, asked.seed, course.stop, policy, asked.policy_preset)
        found = search.find(self._search_name)(problem, wanted, course.step)
        course.end()
        plan = self._best_repaired(problem, found)
        is_found = plan is found or plan.counts.tobytes() in problem.asked
        return Attempt(problem, plan, align, stopped=course.stopped, is_found=is_found)

    def _seconds(self) -> float:
        """Give the time that searches have taken so far."""
        return time.monotonic() - self._start if self._journal is None else self._journal.seconds

    def _recall(self, problem: Problem, *, candidates: bool) -> None:
        """Tell what is known of plans that were judged before, here or by earlier runs, for whatever targets.

        Where it asks for candidates: those of earlier runs that its search could come to.
        """
        if self._journal is None:
            return
        size, earlier = len(problem.widths), set(self._journal.earlier)
        for entry in self._journal.answered:
            if entry.effort != "quick" or entry.error is None or len(entry.counts) != size:
                continue
            plan = problem.plan(np.asarray(entry.counts, np.int64))
            if digest(plan) != entry.plan:  # channels were ranked otherwise
                continue
            problem.known.append((plan, -entry.error))
            if candidates and entry in earlier and problem.admits(plan.counts[None])[0]:
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
            found = self._search(align, AGAIN if self._learns else 1.0)
        except TargetError:
            return None
        return None if self._was_tried(found) else found

    @property
    def _learns(self) -> bool:
        """Whether a search that is done again knows what was judged before."""
        is_default = self._settings.policy_preset == "default"
        return self._journal is not None and is_default and search.learns(self._search_name)

    def _was_tried(self, attempt: Attempt) -> bool:
        return any(np.array_equal(attempt.plan.counts, tried.plan.counts) for tried in self.tried)

    def _cut_and_measure(self, attempt: Attempt) -> None:
        attempt.cut = cut(attempt.channels, attempt.plan, runtime.evaluate)
        if self._settings.verify != "none":
            self._measurements.fill(attempt, partial(self._measure, attempt))

    def _measure(self, attempt: Attempt) -> None:
        model, device = self._lossless.original.model, self._settings.device
        measure_beside(attempt, model, device)
        if MEMORY in self.limits.asked:
            measure_memory(attempt, model, device)
