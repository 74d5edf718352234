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
from onnxprune.original import Original, Sampling
from onnxprune.plan import Plan
from onnxprune.problem import Effort
from onnxprune.progress import Progress, Quiet
from onnxprune.repair import Repair, stand_in
from onnxprune.statistics import Statistics
from onnxprune.surgery import cut

PROBE_SAMPLES, PROBE_MACS = 256, 3e10  # what plans that cut one group are judged on, at most
FEWEST = 64  # samples, however much they cost
QUICK_SAMPLES, QUICK_MACS = 512, 6e10  # what their quick repair looks at, at most, and on how many rows
QUICK_ROWS = Sampling(per_input=20, least=4_000, most=20_000)
HELD = 4  # repaired models that are kept, for the one that is chosen in the end


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
        self._parts, self._seed, self._label_offset, self._threads = parts, seed, label_offset, threads
        self._known: dict[tuple[str, Effort], float] = {}
        self._held: dict[str, ModelProto | None] = {}

    def errors(self, plans: Sequence[Plan], *, effort: Effort = "quick") -> list[float]:
        """Judge plans; each is computed once.

        Args:
            plans: to judge.
            effort: ``full`` repairs layer after layer with all calibration samples, ``quick`` with few of them.
                ``probe`` repairs only the layers whose inputs were cut, from what was measured once in the original,
                and judges on few samples: good enough to compare what single groups cost, and nothing else.

        Returns:
            For each plan what `Scores.error` is on the samples of the search; smaller is better.
        """
        return [self._error(plan, effort) for plan in plans]

    def _error(self, plan: Plan, effort: Effort) -> float:
        key = (digest(plan), effort)
        if key not in self._known:
            smaller = cut(self.channels, plan, runtime.evaluate)
            if effort == "full" and self.repair != "none":
                self.repaired(plan, smaller)
            else:
                judge = self._probe_judge if effort == "probe" else self.judge
                self._known[key] = judge.judge(self._quickly_repaired(plan, smaller, effort)).error
        return self._known[key]

    def _quickly_repaired(self, plan: Plan, smaller: ModelProto, effort: Effort) -> ModelProto:
        if self.repair == "none":
            return smaller
        if effort == "probe":
            return stand_in(self.statistics, plan, smaller)
        return repaired(self._few, plan, smaller, self.repair)

    def repaired(self, plan: Plan, smaller: ModelProto, progress: Progress | None = None) -> ModelProto:
        """Repair a cut model with all calibration samples.

        Returns:
            The repaired model; the cut model itself where the repair answers worse on samples that it has not seen.
        """
        if self.repair == "none":
            return smaller
        name = digest(plan)
        if name not in self._held:
            while len(self._held) >= HELD:
                del self._held[next(iter(self._held))]
            self._held[name] = self._repaired(plan, smaller, progress)
        found = self._held[name]
        return smaller if found is None else found

    def _repaired(self, plan: Plan, smaller: ModelProto, progress: Progress | None) -> ModelProto | None:
        result = repaired(self.original, plan, smaller, self.repair, progress)
        before, after = self.judge.judge(smaller).error, self.judge.judge(result).error
        self._known[digest(plan), "full"] = min(before, after)
        return result if after <= before else None

    @cached_property
    def original(self) -> Original:
        """What the layers of the original answer on the calibration samples."""
        return Original(self.channels, self._parts.calibration.loaded(), seed=self._seed, threads=self._threads)

    @cached_property
    def _few(self) -> Original:
        """The same on few samples; the plan that is chosen in the end is repaired with all."""
        few = self._first(self._parts.calibration, QUICK_SAMPLES, QUICK_MACS)
        return Original(self.channels, few, QUICK_ROWS, self._seed, self._threads)

    @cached_property
    def judge(self) -> Judge:
        """Compares on samples that no fit has seen."""
        return judge_on(self.channels, self._parts.search.loaded(), self._label_offset, self._threads)

    @cached_property
    def _probe_judge(self) -> Judge:
        """Compares on few samples: single groups are many, and what they cost shows in few."""
        few = self._first(self._parts.search, PROBE_SAMPLES, PROBE_MACS)
        return judge_on(self.channels, few, self._label_offset, self._threads)

    @cached_property
    def _macs(self) -> float:
        """Multiply-accumulates of the original for one sample."""
        return float(Costs(self.channels).of([group.width for group in self.channels.groups])["macs"][0])

    def _first(self, data: Data, samples: int, macs: float) -> Data:
        """Take the first samples; however much they cost, some are needed."""
        fewest = max(FEWEST, self.channels.model.fixed_batch(data.inputs[0].name) or 1)
        most = max(fewest, round(min(samples, macs / max(self._macs, 1))))
        return data.take(np.arange(min(len(data), most))).loaded()


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
