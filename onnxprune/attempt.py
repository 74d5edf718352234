"""One plan and what became of it: searched, cut, and measured beside the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from onnxprune import runtime
from onnxprune.channels import Channels
from onnxprune.errors import InputError, VerifyError
from onnxprune.metrics import LATENCY, MEMORY
from onnxprune.model import Model
from onnxprune.plan import Plan
from onnxprune.predicting import memory
from onnxprune.predicting.device import Device
from onnxprune.problem import Align, Problem
from onnxprune.profiling import intervals
from onnxprune.profiling.intervals import Interval
from onnxprune.reporting import latency
from onnxprune.targets import Target, amounts

WORDS = {
    "macs": "FLOPs (multiply-accumulates)",
    "params": "parameters",
    LATENCY: "time of a run",
    MEMORY: "memory of a process",
}
WITHOUT = "--verify none compresses a model that onnxruntime cannot run"
FOLLOWS = 0.8  # time follows the MACs well enough where the share of MACs is at least this part of the share of time
CLOSE = 0.05  # part of a limit; a cost as close to it as that is held down by it
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
        memory: bytes that a process needs to run the original, and the smaller model, where that was measured.
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
    memory: tuple[int, int] | None = None
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
        return any(t.metric == metric and cost > (1 - CLOSE) * t.limit for t in self.problem.targets)

    def measured_share(self, metric: str) -> float | None:
        """Give the share of the original's time or memory that was measured; None: it was not."""
        if metric == LATENCY:
            return self.time_share
        return None if self.memory is None else self.memory[1] / max(self.memory[0], 1)

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
    judged = search.judged.get("quick", 0)  # the others are judged more closely, or are groups cut alone
    told = f"; {'one plan was' if judged == 1 else f'{judged} plans were'} judged in all" if judged else ""
    return [f"the search was stopped early: {search.stopped}{told}"] if search.stopped else []


def described(target: Target, original: Mapping[str, float]) -> str:
    """Say a target in words, with both numbers."""
    metric, total = target.metric, original[target.metric]
    return f"{target.limit / max(total, 1):.1%} of the {WORDS[metric]}: {amounts(metric, target.limit, total)}."


def check_runs(model: Model, device: Device) -> None:
    """Make sure that a model runs where its cut will be measured, before anything is searched.

    Raises:
        InputError: onnxruntime cannot run it there.
    """
    try:
        device.session(model.proto, model.folder).run(device.inputs(model))
    except InputError as error:
        raise InputError(f"{error}; {WITHOUT}") from error


def measure_beside(attempt: Attempt, model: Model, device: Device) -> None:
    """Time what was cut beside its original, in turns.

    Raises:
        InputError: onnxruntime cannot run the original.
        VerifyError: it cannot load what was cut.
    """
    feed = device.inputs(model)
    try:
        original = device.session(model.proto, model.folder)
        smaller = _opened(attempt.result, model, device)
        before, after = runtime.latencies([original, smaller], [feed, feed])
    except InputError as error:
        raise InputError(f"{error}; {WITHOUT}") from error
    attempt.before, attempt.after = latency(before), latency(after)
    attempt.speedup = intervals.ratio(before, after)


def _opened(smaller: ModelProto, model: Model, device: Device) -> runtime.Session:
    try:
        return device.session(smaller, model.folder)
    except InputError as error:
        raise VerifyError(f"the cut model does not run: {error}") from error


def measure_memory(attempt: Attempt, model: Model, device: Device) -> None:
    """See what memory a process needs for what was cut, and for its original, where the system tells.

    Raises:
        InputError: onnxruntime cannot run them.
    """
    before, after = (memory.needed(proto, model, device) for proto in (model.proto, attempt.result))
    attempt.memory = None if before is None or after is None else (before, after)


def try_memory(attempt: Attempt, model: Model, device: Device) -> list[str]:
    """See what memory is needed where nobody asked for it; returns a note where that is not possible."""
    try:
        measure_memory(attempt, model, device)
    except InputError as error:
        return [f"what memory a process needs was not measured: {error}"]
    return []
