"""Episodes: a network shrinks in several steps, the plan that it comes to is judged, and that is the reward.

The state is the network as shrunk so far. What is left to decide is how much dearer or cheaper each group's channels
are than they look; `Space` turns that into a plan that meets the targets exactly, so no reward has to teach them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxprune.plan import Plan
from onnxprune.problem import Counts, Problem, by_kind
from onnxprune.search.policy.prior import Prior, likeness, prior
from onnxprune.search.policy.space import Space
from onnxprune.stages import Stage, Stages
from onnxprune.weights import Floats

LARGEST = 2.0  # log of what the action of an episode of one makes a group dearer, at most
MOST_REWARD = 5.0  # an answer that is no number, or next to perfect, is worth no more than this
LEAST_LOST = 1e-3  # of the variance of what layers answer
MOST_KIND = 4.0  # log of what a kind of groups is told to be dearer than others, at most
TINY = 1e-4  # of the error to start from: errors below are no better
FADES = 4.0  # the power of how far a plan's costs are from what is allowed, by which less it is trusted
CONTEXT = ("step", "macs target", "params target", "other targets", "macs", "params", "lost")
"""What an agent is told beside the graph: how far the episode is, logarithms of shares of the original, and of what the
plan to start from loses."""


@dataclass(frozen=True)
class State:
    """A network in the course of an episode.

    Attributes:
        counts: (groups,) channels that are left.
        corrections: (groups,) logarithms of what prices are multiplied by so far.
        step: how many actions were taken.
    """

    counts: Counts
    corrections: Floats
    step: int


class Episodes:
    """Where episodes take place: one problem, from one plan.

    Args:
        problem: what to solve.
        start: channels per group that no correction leads to.
        length: actions of an episode.

    Attributes:
        largest: log of what one action makes a group dearer, at most.
        kinds: (groups,) corrections with which the errors of every kind of group count alike, see `by_kind`.
        probed: (groups,) those that probes speak for, see `probe`; none so far.
    """

    def __init__(self, problem: Problem, start: Counts, length: int) -> None:
        self.problem, self.length = problem, length
        self.space = Space(problem, start)
        self.stages = Stages(problem.channels, problem.costs, problem.importance)
        self.largest = LARGEST / np.sqrt(length)  # so that actions drawn at random spread as far in any number of steps
        self.kinds = np.log(np.clip(by_kind(problem), *np.exp([-MOST_KIND, MOST_KIND])))
        self._kept_at_start = np.log(np.maximum(start, 1) / np.maximum(problem.most, 1))
        self._lost_at_start = np.log10(float(self.space.lost(start[None]).sum()) + LEAST_LOST)
        self.groups = len(start)
        self.probed = np.zeros(self.groups)

    @cached_property
    def _first(self) -> float:
        """The error of the plan to start from; of one that answers with no numbers, that of any constant answer."""
        error = float(self._errors([self.problem.plan(self.space.start)])[0])
        return error if np.isfinite(error) else 1.0

    def begin(self) -> State:
        """Start with the whole network."""
        return State(self.problem.most, np.zeros(self.groups), 0)

    def after(self, state: State, action: Floats) -> State:
        """Take an action: (groups,), each from -1, much cheaper, to 1, much dearer."""
        corrections = state.corrections + self.largest * np.clip(action, -1, 1)
        step = state.step + 1
        if step == self.length:
            return State(self.space.counts(corrections), corrections, step)
        return State(self.space.wanted(corrections, step / self.length), corrections, step)

    def graph(self, state: State) -> tuple[Stage, ...]:
        """Draw a state."""
        return self.stages.at(state.counts, np.stack([state.corrections, self._kept_at_start, self.kinds], axis=1))

    @cached_property
    def alike(self) -> Floats:
        """How much any two groups have in common in the graph of the whole network, see `likeness`."""
        return likeness(self.graph(self.begin())[-1].nodes.astype(np.float64))

    @property
    def prior(self) -> Prior:
        """What is believed of groups before any plan is judged."""
        return prior(self.alike, self.kinds, self.probed)

    def context(self, state: State) -> Floats:
        """Describe a state as a whole, see `CONTEXT`."""
        original, now = self.problem.original, self.problem.costs.of(state.counts)
        targets = {t.metric: np.log(t.limit / max(original[t.metric], 1)) for t in self.problem.targets}
        others = [value for metric, value in targets.items() if metric not in ("macs", "params")]
        shares = [np.log(max(float(now[name][0]), 1) / max(original[name], 1)) for name in ("macs", "params")]
        found = (targets.get("macs", 0.0), targets.get("params", 0.0), min(others, default=0.0), *shares)
        return np.asarray([state.step / self.length, *found, self._lost_at_start])

    def rewards(self, plans: Sequence[Plan]) -> Floats:
        """Judge plans: how much smaller their errors are than that of the plan to start from, as a logarithm."""
        first = self._first  # judged before any other
        return _gained(self._errors(plans), first)

    def remembered(self) -> tuple[list[Counts], Floats, Floats]:
        """Give the plans that were judged before this search, for whatever targets.

        Returns:
            Channels per group of each, their rewards, and how far these can be trusted: the less, the further a plan
            is from the targets.
        """
        known = self.problem.known
        if not known:
            return [], np.empty(0), np.empty(0)
        counts = [plan.counts for plan, _ in known]
        costs = self.problem.costs.of(counts)
        apart = [np.log(np.maximum(costs[t.metric], 1e-9) / max(t.limit, 1e-9)) for t in self.problem.targets]
        errors = self._as_errors(np.asarray([score for _, score in known]))
        return counts, _gained(errors, self._first), np.exp(-FADES * np.abs(apart).max(axis=0, initial=0))

    def _errors(self, plans: Sequence[Plan]) -> Floats:
        return self._as_errors(np.asarray(self.problem.scores(plans)))

    def _as_errors(self, scores: Floats) -> Floats:
        """Turn scores into errors: of answers, without data the share of the importance that is lost."""
        return -scores if self.problem.judging is not None else 1 - scores


def _gained(errors: Floats, first: float) -> Floats:
    """Tell how much smaller errors are than that of the plan to start from, as logarithms."""
    least = TINY * first + 1e-12
    known = np.where(np.isfinite(errors), np.maximum(errors, 0), first)
    gained = np.clip(np.log((first + least) / (known + least)), -MOST_REWARD, MOST_REWARD)
    return np.where(np.isfinite(errors), gained, -MOST_REWARD)
