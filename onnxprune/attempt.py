"""One plan and what became of it: searched, cut, and timed beside the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import runtime, search
from onnxprune import shapes as sizes
from onnxprune.channels import Channels
from onnxprune.criteria import importance
from onnxprune.errors import InputError, TargetError
from onnxprune.lossless import Lossless
from onnxprune.metrics import Costs
from onnxprune.plan import Plan
from onnxprune.problem import FINE, Align, Problem, parse_target
from onnxprune.progress import Progress
from onnxprune.reporting import latency
from onnxprune.settings import CompressSettings
from onnxprune.surgery import cut

WORDS = {"macs": "FLOPs (multiply-accumulates)", "params": "parameters"}
FOLLOWS = 0.8  # time follows the MACs well enough where the share of MACs is at least this part of the share of time
# Tried in turn: the second where the time lags behind the MACs; the third, which may fall well short of the target,
# only where the result is slower than the original.
ALIGNMENTS = (FINE, Align(16, 2, rest=FINE), Align(16, 2))
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
    """

    problem: Problem
    plan: Plan
    align: Align
    cut: ModelProto | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None

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
    def time_share(self) -> float | None:
        """Share of the original's time that a run needs (None: not timed)."""
        return self.after["median"] / self.before["median"] if self.before and self.after else None

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
        }


class Attempts:
    """All attempts at one model: finer widths first, coarser ones while the time lags behind the MACs.

    Args:
        lossless: what can be cut from it, and what of that goes at no cost.
        costs: what plans cost.
        settings: what was asked for.
        progress: told what is going on.

    Raises:
        InputError: a target makes no sense, or a weight is not finite.
        TargetError: a target cannot be reached.
    """

    def __init__(self, lossless: Lossless, costs: Costs, settings: CompressSettings, progress: Progress) -> None:
        self._lossless = lossless
        self._channels = channels = lossless.channels
        self._costs = costs
        self._settings = settings
        self._progress = progress
        before = costs if lossless.original is channels else Costs(lossless.original)
        original = before.of([group.width for group in channels.groups])
        self.targets = [parse_target(name, text, float(original[name][0])) for name, text in settings.targets.items()]
        for target in self.targets:
            total = float(original[target.metric][0])
            share = f"{target.limit / max(total, 1):.1%} of the {WORDS[target.metric]}"
            progress.say(f"Keep at most {share}: {target.limit:,.0f} of {total:,.0f}.")
        self._worth = importance(channels, settings.criterion, settings.seed)
        self._ladder = ALIGNMENTS if settings.align is None else (Align(settings.align),)
        self.best = self._search(self._ladder[0])
        self.tried = [self.best]

    def cut_and_time(self) -> None:
        """Cut the plan and time the result; go on to coarser widths while it lags, and keep the best."""
        self._cut_and_time(self.best)
        for align in self._ladder[1:]:
            wanted = self.best.lags if align.rest is not None else self.best.is_slower
            coarser = self._coarser(align) if wanted else None
            if coarser is None:
                continue
            self._cut_and_time(coarser)
            self.tried.append(coarser)
            loser = self.best if coarser.is_faster_than(self.best) else coarser
            self.best = coarser if loser is self.best else self.best
            loser.cut = None  # only its numbers are still needed

    def _search(self, align: Align) -> Attempt:
        asked = self._settings
        problem = Problem(self._channels, self._costs, self.targets, self._worth, align, asked.min_keep, self._lossless)
        problem.check_reachable()
        settings = search.SearchSettings(self._settings.budget, self._settings.seed)
        plan = search.find(self._settings.search)(problem, settings, self._progress.step)
        return Attempt(problem, plan, align)

    def _coarser(self, align: Align) -> Attempt | None:
        """Search with coarser widths; None where they cannot meet the target or give a plan already tried."""
        try:
            found = self._search(align)
        except TargetError:
            return None
        seen = any(np.array_equal(found.plan.counts, tried.plan.counts) for tried in self.tried)
        return None if seen else found

    def _cut_and_time(self, attempt: Attempt) -> None:
        """Cut, and time the result beside its original, in turns and on one thread."""
        attempt.cut = cut(attempt.channels, attempt.plan, runtime.evaluate)
        if self._settings.verify == "none":
            return
        model = self._lossless.original.model
        feed = sizes.example_inputs(model.proto.graph, model.bound)
        try:
            original = runtime.Session(model.proto, folder=model.folder, threads=1)
            smaller = runtime.Session(attempt.cut, folder=model.folder, threads=1)
            before, after = runtime.latencies([original, smaller], [feed, feed])
        except InputError as error:
            raise InputError(f"{error}; --verify none compresses a model that onnxruntime cannot run") from error
        attempt.before, attempt.after = latency(before), latency(after)
