"""Judge plans: cut, repair and run each really, once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.channels import Channels
from onnxprune.data import Data, Split
from onnxprune.evaluation import Judge
from onnxprune.metrics import Costs
from onnxprune.original import Effort, Original
from onnxprune.plan import Plan
from onnxprune.progress import Progress, Quiet
from onnxprune.repair import Repair, stand_in
from onnxprune.statistics import Statistics
from onnxprune.surgery import cut

QUICK = Effort(per_input=20, least=4_000, most=20_000)
QUICK_SAMPLES, QUICK_MACS = 512, 6e10
"""What the repair of a candidate looks at, at most; the plan that wins is repaired with all calibration samples."""

LOCAL_SAMPLES, LOCAL_MACS = 256, 3e10  # what plans that cut one group are judged on, at most
FEWEST = 64  # samples, however much they cost


def judge_on(channels: Channels, data: Data, label_offset: int, threads: int | None = None) -> Judge:
    """Compare models with the original on samples."""
    model = channels.model
    batch = model.fixed_batch(data.inputs[0].name)
    return Judge(model.proto, model.folder, data, batch=batch, label_offset=label_offset, threads=threads)


class Candidates:
    """Cuts, repairs and judges plans for one model.

    Args:
        channels: of the model.
        parts: samples to repair with, and others to judge on.
        statistics: what layers of the model read.
        repair: ``least_squares``, ``bn`` or ``none``.
        seed: chooses the rows that repair looks at.
        label_offset: the output index of a class is its label plus this.
        threads: of onnxruntime; None leaves the choice to it.
    """

    def __init__(
        self,
        channels: Channels,
        parts: Split,
        statistics: Statistics,
        *,
        repair: str = "least_squares",
        seed: int = 0,
        label_offset: int = 0,
        threads: int | None = None,
    ) -> None:
        self.channels = channels
        self.statistics = statistics
        self.repair = repair
        macs = float(Costs(channels).of([group.width for group in channels.groups])["macs"][0])
        self._fewest = max(FEWEST, channels.model.fixed_batch(parts.search.inputs[0].name) or 1)
        few = self._first(parts.calibration, min(QUICK_SAMPLES, QUICK_MACS / max(macs, 1)))
        self.original = Original(channels, few, QUICK, seed, threads)
        self.judge = judge_on(channels, parts.search.loaded(), label_offset, threads)
        self._few = min(LOCAL_SAMPLES, LOCAL_MACS / max(macs, 1))
        self._parts, self._label_offset, self._threads = parts, label_offset, threads
        self._known: dict[tuple[str, bool], float] = {}

    def errors(self, plans: Sequence[Plan], *, local: bool = False) -> list[float]:
        """Judge plans; each is computed once.

        Args:
            plans: to judge.
            local: only the layers whose inputs were cut make up for it, from statistics; much faster, and good enough
                to compare what single groups cost.

        Returns:
            For each plan what `Scores.error` is on the samples of the search; smaller is better.
        """
        return [self._error(plan, local) for plan in plans]

    def _error(self, plan: Plan, local: bool) -> float:
        key = (digest(plan), local)
        if key not in self._known:
            judge = self._local_judge if local else self.judge
            self._known[key] = judge.judge(self.made(plan, local)).error
        return self._known[key]

    @cached_property
    def _local_judge(self) -> Judge:
        """Compares on few samples: single groups are many, and what they cost shows in few."""
        few = self._first(self._parts.search, self._few)
        return judge_on(self.channels, few, self._label_offset, self._threads)

    def _first(self, data: Data, most: float) -> Data:
        """Take the first samples; however much they cost, some are needed."""
        return data.take(np.arange(min(len(data), max(self._fewest, round(most))))).loaded()

    def made(self, plan: Plan, local: bool = False) -> ModelProto:
        """Cut a plan and repair the result."""
        smaller = cut(self.channels, plan, runtime.evaluate)
        if self.repair == "none":
            return smaller
        if local:
            return stand_in(self.statistics, plan, smaller)
        return repaired(self.original, plan, smaller, self.repair)


def digest(plan: Plan) -> str:
    """Name a plan by what it keeps."""
    found = hashlib.sha256()
    for kept in plan.kept:
        found.update(kept.astype(np.int64).tobytes() + b"|")
    return found.hexdigest()


def repaired(
    original: Original, plan: Plan, smaller: ModelProto, kind: str, progress: Progress | None = None
) -> ModelProto:
    """Repair a cut model in one of the ways that ``--repair`` names."""
    if kind == "none":
        return smaller
    repair = Repair(original, plan, smaller, progress or Quiet())
    return repair.least_squares() if kind == "least_squares" else repair.match_moments()
