"""What every search sees: groups, what they cost, what they are worth, and the targets that a plan must meet."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.channels import Channels, Group
from onnxprune.depth import Depth
from onnxprune.errors import TargetError
from onnxprune.lossless import Lossless, nothing_lossless
from onnxprune.metrics import Costs
from onnxprune.plan import Plan
from onnxprune.targets import OPTIONS, Target, amounts
from onnxprune.weights import Floats, Ints

Counts = npt.NDArray[np.int64]

ROWS = 256  # plans that are looked at together
FULL = (4, 8, 16)  # multiples of channels that kernels may be faster for
SLACK = 0.002  # of the original's cost: single steps are added until a target is as close as this
CLOSE = 0.01  # of the original's cost: steps finer than asked for are added only where more than this is open


@dataclass(frozen=True)
class Align:
    """What widths are a multiple of; kernels work on blocks of 8 or 16 channels.

    Attributes:
        multiple: channels of an axis.
        part: a step is at most this part (1 / part) of a group's width, so that narrow groups keep a choice.
        rest: how to fill up what steps of this size leave open.
    """

    multiple: int
    part: int = 1
    rest: Align | None = None


FINE = Align(8, 8)


Effort = Literal["probe", "quick", "full"]
"""What goes into judging a plan: `quick` repairs it with few samples, `full` as the result of a run is, with all.
`probe` is for plans that cut one group: it repairs from statistics, and judges on few samples."""


class Judging(Protocol):
    """Judges plans by what the models that they make answer."""

    def errors(self, plans: Sequence[Plan], *, effort: Effort = "quick") -> list[float]:
        """Give the error of each plan; smaller is better."""


class Problem:
    """A pruning problem: choose how many channels each group keeps.

    Args:
        channels: what can be cut.
        costs: what plans cost.
        targets: what the result must not exceed.
        importance: per group the worth of each channel.
        align: what widths are a multiple of.
        min_keep: channels that every group keeps at least; with 0, inner groups of residual branches may lose all.
        lossless: what goes before anything else does (default: nothing).
        judging: judges plans on data; None where there is none.

    Attributes:
        widths: channels per group.
        most: most channels each group can keep: the live ones, and dead ones where they fill up a step.
        steps: widths change by this many channels.
        least: fewest channels each group can keep.
        visited: plans that were judged, by what they keep of each group, with their scores.
        asked: those of them that were judged here; `visited` may hold what earlier runs have judged as well.
        known: plans that were judged before this search, for whatever targets, with their scores.
        told: hears of each different plan that is judged, and of its score.
        together: plans that are judged at once.
        is_over: tells whether the time is used up; then no more of several plans are judged.
    """

    def __init__(
        self,
        channels: Channels,
        costs: Costs,
        targets: Sequence[Target],
        importance: Sequence[Floats],
        align: Align = FINE,
        min_keep: int = 1,
        lossless: Lossless | None = None,
        judging: Judging | None = None,
    ) -> None:
        self.channels = channels
        self.costs = costs
        self.targets = tuple(targets)
        self.judging = judging
        self.visited: dict[bytes, tuple[Plan, float]] = {}
        self.known: list[tuple[Plan, float]] = []
        self.told: Callable[[Plan, float], None] = lambda plan, score: None
        self.together = 1
        self.is_over: Callable[[], bool] = lambda: False
        self.asked: set[bytes] = set()
        self._known_macs: dict[bytes, Floats] = {}
        self.lossless = nothing_lossless(channels) if lossless is None else lossless
        worths = zip(self.lossless.dead, importance, strict=False)  # without importance there is nothing to choose
        self.importance = tuple(np.where(dead, 0, worth) for dead, worth in worths)
        self.widths: Counts = np.asarray([g.width for g in channels.groups], np.int64)
        self.steps: Counts = np.asarray([step_of(g, align) for g in channels.groups], np.int64)
        self.depth = Depth(channels) if min_keep == 0 else None
        least = np.full(len(self.widths), min(max(min_keep, 1), int(self.widths.max(initial=1))))
        if self.depth is not None:
            least[list(self.depth.takes_along)] = 0
        self.fine: Counts | None = None
        if align.rest is not None:
            self.fine = np.asarray([step_of(g, align.rest) for g in channels.groups], np.int64)
        alive = np.minimum(np.maximum(self.lossless.plan.counts, np.maximum(least, 1)), self.widths)
        self.most: Counts = np.minimum(-(-alive // self.steps) * self.steps, self.widths)
        if self.meets(alive)[0] and not self.meets(self.most)[0]:
            self.most = alive  # to fill widths up, live channels would have to go
        self.least: Counts = self._at_least(least)
        if self.is_predicted:
            self.least = self._fastest([self.least, *(self._at_least(-(-least // full) * full) for full in FULL)])
        whole = costs.of(self.widths)
        if self.lossless.original is not channels:
            uncut = Costs(self.lossless.original).of([group.width for group in self.lossless.original.groups])
            whole = {**whole, **uncut}
        self.original: dict[str, float] = {name: float(values[0]) for name, values in whole.items()}

    def _at_least(self, counts: Counts) -> Counts:
        return np.asarray(np.minimum(-(-counts // self.steps) * self.steps, self.most))

    def _fastest(self, plans: Sequence[Counts]) -> Counts:
        """Give the first of some plans that meets the targets, or the one that misses them least.

        Kernels can be slower for fewer channels, so that the smallest plan is not always the fastest.
        """
        found = self.costs.of(np.stack(plans))
        over = np.max([found[t.metric] / max(t.limit, 1e-30) for t in self.targets], axis=0)
        return plans[int(np.argmin(np.maximum(over, 1)))]

    def meets(self, counts: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Tell which of several plans (plans, groups) meet all targets."""
        found = self.costs.of(counts)
        ok = np.ones(len(np.atleast_2d(np.asarray(counts))), bool)
        for target in self.targets:
            ok &= found[target.metric] <= target.limit * (1 + 1e-12)
        return ok

    def admits(self, counts: Counts) -> npt.NDArray[np.bool_]:
        """Tell which of several plans (plans, groups) a search could come to: aligned, not too small, targets met."""
        aligned = (counts % self.steps == 0) | (counts == self.most)
        large = counts >= self.least
        if self.depth is not None:
            unread = np.stack([self.depth.unread(row) for row in counts])
            large = np.where(unread, counts == 0, large)
        return np.asarray((aligned & large & (counts <= self.most)).all(axis=1) & self.meets(counts))

    def check_reachable(self) -> None:
        """Make sure that the targets can be met at all.

        Raises:
            TargetError: naming the lowest reachable value and what is frozen.
        """
        found = self.costs.of(self.least)
        for target in self.targets:
            lowest = float(found[target.metric][0])
            if lowest > target.limit * (1 + 1e-12):
                whole = self.original[target.metric]
                part = math.ceil(1e3 * lowest / max(whole, 1)) / 1e3  # so that it can be asked for
                why = self._largest_frozen() + self._remedy(target)
                raise TargetError(
                    f"{OPTIONS.get(target.metric, target.metric)} {target.text} cannot be reached: the lowest is "
                    f"{part:.3f} of the original ({amounts(target.metric, lowest, whole)}){why}"
                )

    def _remedy(self, target: Target) -> str:
        """Name the options that let more go (empty: none that is known)."""
        one = self.costs.of(np.minimum(1, self.most))[target.metric][0]
        steps = "; --align 1 with --min-keep 1 reaches it" if one <= target.limit else ""
        return steps + self.channels.advice

    def lowest(self) -> dict[str, float]:
        """Give the lowest reachable value of every metric."""
        return {name: float(values[0]) for name, values in self.costs.of(self.least).items()}

    def _largest_frozen(self) -> str:
        parts = sorted((n for n in self.costs.per_node() if n.reason >= 0), key=lambda n: -n.macs)[:3]
        nodes = self.channels.model.graph.nodes
        texts = [
            f"{nodes[p.node].name or nodes[p.node].op} ({p.macs / max(self.original['macs'], 1):.1%} of the MACs): "
            f"{describe_reason(self.channels, p.reason)}"
            for p in parts
        ]
        return "; largest frozen parts: " + "; ".join(texts) if texts else ""

    def fit(self, ratios: npt.ArrayLike) -> Counts:
        """Turn wishes into a plan that meets the targets: scale them until they fit, align, then fill up.

        Args:
            ratios: (groups,) share of each group to keep, relative to each other.

        Returns:
            Channels per group, aligned; costs as close below the targets as single steps allow.

        Raises:
            TargetError: the targets cannot be met.
        """
        self.check_reachable()
        shares = np.asarray(ratios, np.float64)
        low, high = 0.0, 1 / max(float(shares.min(initial=1)), 1e-6)
        if not self.meets(self._wanted(shares, np.asarray([high])))[0]:
            for _ in range(4):
                scales = np.linspace(low, high, 65)
                ok = np.flatnonzero(self.meets(self._wanted(shares, scales)))
                position = int(ok[-1]) if len(ok) else 0
                low, high = float(scales[position]), float(scales[min(position + 1, 64)])
            high = low
        wanted = self._wanted(shares, np.asarray([high]))[0]
        aligned = (wanted // self.steps * self.steps).astype(np.int64)
        counts = np.where(wanted >= self.most, self.most, np.maximum(aligned, self.least))
        if not self.meets(counts)[0]:  # what is predicted can rise where widths fall
            counts = self.least
        counts = self._fill(counts, wanted, self.steps, SLACK)
        if self.fine is not None:
            counts = self._fill(counts, wanted, self.fine, CLOSE)
        return counts if self.depth is None else self.depth.closed(counts)

    def _wanted(self, shares: Floats, scales: Floats) -> Floats:
        """Scale wishes, (scales, groups), within what each group can keep."""
        return np.clip(scales[:, None] * shares * self.most, self.least, self.most)

    def _fill(self, counts: Counts, wanted: Floats, steps: Counts, slack: float) -> Counts:
        """Add single steps, where most is missing first, as long as the targets hold and more than `slack` is open.

        Of equal wishes the step that costs most goes first, so that small ones are left to fill the rest.
        """
        worth = self._step_macs(steps)
        while not self._is_close(counts, slack):
            missing = np.round((wanted - counts) / self.most, 6)
            order = np.lexsort((-worth, -missing))
            order = order[counts[order] < self.most[order]]
            if self.depth is not None:
                order = order[~self.depth.unread(counts)[order]]
            grown = self._grow(counts, order, steps)
            if grown is None:
                break
            counts = grown
        return counts

    def _grow(self, counts: Counts, order: Ints, steps: Counts) -> Counts | None:
        """Add one step to as many groups as the targets allow, in the order given (None: no step fits)."""
        for start in range(0, len(order), ROWS):
            groups = order[start : start + ROWS]
            rows = np.zeros((len(groups), len(counts)), np.int64)
            rows[np.arange(len(groups)), groups] = np.minimum(steps[groups], self.most[groups] - counts[groups])
            fitting = rows[self.meets(counts + rows)]
            if len(fitting):
                together = counts + np.cumsum(fitting, axis=0)
                chosen: Counts = together[np.flatnonzero(self.meets(together))[-1]]
                return chosen
        return None

    def _step_macs(self, steps: Counts) -> Floats:
        """Count, once, the MACs that one step of each group costs, where nothing else is cut."""
        known = self._known_macs.get(steps.tobytes())
        if known is not None:
            return known
        saved = []
        whole = self.costs.of(self.most)["macs"]
        for start in range(0, len(self.most), ROWS):
            rows = np.tile(self.most, (len(self.most[start : start + ROWS]), 1))
            at = np.arange(len(rows))
            rows[at, start + at] -= np.minimum(steps, self.most)[start + at]
            saved.append(whole - self.costs.of(rows)["macs"])
        found = self._known_macs[steps.tobytes()] = np.concatenate([*saved, np.empty(0)])
        return found

    def _is_close(self, counts: Counts, slack: float) -> bool:
        found = self.costs.of(counts)
        return any(t.limit - found[t.metric][0] < slack * self.original[t.metric] for t in self.targets)

    def saved(self, counts: Counts, rows: Counts) -> Floats:
        """Give what smaller plans (plans, groups) save, as parts of the original, of the costs that are too high."""
        before, after = self.costs.of(counts), self.costs.of(rows)
        total = np.zeros(len(rows))
        for target in self.targets:
            if before[target.metric][0] > target.limit:
                total += (before[target.metric] - after[target.metric]) / max(self.original[target.metric], 1)
        return total

    @property
    def is_predicted(self) -> bool:
        """Whether a target limits what is predicted, such as latency, which falls in stairs rather than evenly."""
        return any(target.metric in self.costs.predicted for target in self.targets)

    def saved_by_all(self) -> Floats:
        """Give for each group what is saved, of what the targets limit, where it keeps as little as it can."""
        rows = np.tile(self.most, (len(self.most), 1))
        np.fill_diagonal(rows, self.least)
        return self.saved(self.most, rows)

    def plan(self, counts: Counts) -> Plan:
        """Keep the most important channels of each group, the dead ones last."""
        groups = zip(self.importance, self.lossless.dead, counts, strict=True)
        best = [np.lexsort((-worth, dead))[:count] for worth, dead, count in groups]
        return Plan(tuple(np.sort(positions) for positions in best))

    def lossless_part(self, plan: Plan) -> dict[str, float]:
        """Count the channels that a plan takes away at no cost, and the share of the MACs that goes with them."""
        dead = zip(self.lossless.dead, plan.kept, strict=True)
        gone = np.asarray([mask.sum() - mask[kept].sum() for mask, kept in dead], np.int64)
        macs = float(self.costs.of(self.widths - gone)["macs"][0])
        return {"channels": int(gone.sum()), "macs": 1 - macs / max(self.original["macs"], 1)}

    @property
    def judged(self) -> int:
        """How many different plans were judged."""
        return len(self.asked)

    def scores(self, plans: Sequence[Plan]) -> list[float]:
        """Judge plans, larger is better: by what they answer where there is data, else by what they keep.

        Where the time is used up after some of them, the others are infinitely bad, and count as not judged.
        """
        scores = list[float]()
        for start in range(0, len(plans), self.together):
            if start and self.is_over():
                return scores + [-math.inf] * (len(plans) - start)
            scores += self._judge(plans[start : start + self.together])
        return scores

    def _judge(self, plans: Sequence[Plan]) -> list[float]:
        if self.judging is None:
            scores = [self.kept_importance(plan) for plan in plans]
        else:
            scores = [-math.inf if math.isnan(error) else -error for error in self.judging.errors(plans)]
        for plan, score in zip(plans, scores, strict=True):
            name = plan.counts.tobytes()
            self.visited[name] = plan, score
            if name not in self.asked:
                self.asked.add(name)
                self.told(plan, score)
        return scores

    def best(self, count: int) -> list[Plan]:
        """Give the plans with the best scores so far, best first, of those that meet the targets."""
        if not self.visited:
            return []
        fits = self.meets(np.stack([plan.counts for plan, _ in self.visited.values()]))
        fitting = [found for found, fit in zip(self.visited.values(), fits, strict=True) if fit]
        return [plan for plan, _ in sorted(fitting, key=lambda found: -found[1])[:count]]

    def score(self, plan: Plan) -> float:
        """Judge one plan, see `scores`."""
        return self.scores([plan])[0]

    def kept_importance(self, plan: Plan) -> float:
        """Give the share of all importance that a plan keeps.

        A channel counts once for every axis it is part of, so that one that runs through a whole residual stream weighs
        more than one inside a block.
        """
        parts = [len(group.axes) for group in self.channels.groups]
        kept = sum(n * float(w[at].sum()) for n, w, at in zip(parts, self.importance, plan.kept, strict=True))
        return kept / max(sum(n * float(w.sum()) for n, w in zip(parts, self.importance, strict=True)), 1e-30)


def by_kind(problem: Problem) -> Floats:
    """Scale errors so that groups of each kind add as much for what they save as those of the others.

    Of one kind are groups that are equally wide and touch as many axes equally often, such as the heads of all blocks
    of a transformer; errors of unlike places need not compare (isomorphic pruning, Fang et al., 2024).
    """
    kinds: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for position, group in enumerate(problem.channels.groups):
        kinds[group.width, tuple(sorted(group.multiplicity.tolist()))].append(position)
    saved = problem.saved_by_all()
    scale = np.ones(len(problem.widths))
    for members in kinds.values():
        error = sum(float(problem.importance[m].sum()) for m in members)
        scale[members] = sum(float(saved[m]) for m in members) / max(error, 1e-30)
    return scale / max(float(np.median(scale)), 1e-30)


def step_of(group: Group, align: Align) -> int:
    """Find by how many channels a group's width changes, so that the axes it makes stay aligned."""
    owned = int(group.multiplicity.min())  # indices of an axis that one channel takes along
    step = align.multiple // math.gcd(align.multiple, owned)
    if align.part == 1:
        return min(step, group.width)
    while step > max(1, group.width // align.part):
        step //= 2
    return step


def describe_reason(channels: Channels, reason: int) -> str:
    """Put a reason into words: what stays because of which node."""
    found = channels.reasons[reason]
    if found.node < 0:
        return found.text
    node = channels.model.graph.nodes[found.node]
    return f"{node.op} {node.name!r}: {found.text}" if node.name else f"{node.op}: {found.text}"
