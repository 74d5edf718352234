"""The descent: to every target, cheapest step first, and with data in the way that answers best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_nets import branches, convs, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Array, Builder
from onnx import ModelProto

from onnxprune import runtime, statistics
from onnxprune.channels import Channels, find_channels
from onnxprune.criteria import Evidence, importance
from onnxprune.data import Data, Split
from onnxprune.errors import TargetError
from onnxprune.inputs import model_inputs
from onnxprune.judging import Candidates
from onnxprune.metrics import Costs
from onnxprune.model import analyse
from onnxprune.plan import Plan
from onnxprune.problem import FINE, Align, Effort, Judging, Problem, by_kind
from onnxprune.search import SearchSettings
from onnxprune.search.greedy import WAYS, descend, probes, search, sensitivities
from onnxprune.statistics import collect
from onnxprune.surgery import cut
from onnxprune.targets import Target

SINGLE = Align(1)


def channels_of(model: ModelProto) -> Channels:
    return find_channels(analyse(model, Path(), runtime.evaluate, {}))


def problem_of(
    model: ModelProto | Channels,
    align: Align = SINGLE,
    *,
    worth: Sequence[Array] | None = None,
    min_keep: int = 1,
    judging: Judging | None = None,
    **limits: float,
) -> Problem:
    """Pose a problem whose targets are shares of the original; importance is that of l2, or given."""
    channels = channels_of(model) if isinstance(model, ModelProto) else model
    costs = Costs(channels)
    original = costs.of([g.width for g in channels.groups])
    targets = [Target(metric, share * original[metric][0], str(share)) for metric, share in limits.items()]
    worth = importance(Evidence(channels), "l2") if worth is None else worth
    return Problem(channels, costs, targets, worth, align, min_keep, judging=judging)


def run(problem: Problem, budget: int = 100) -> tuple[Plan, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    return search(problem, SearchSettings(budget), lambda done, total: told.append((done, total))), told


def flat(problem: Problem) -> Array:
    """Errors as they are."""
    return np.ones(len(problem.widths))


def error_of(problem: Problem, counts: Array) -> float:
    """What is lost of all importance."""
    parts = zip(problem.importance, counts, strict=True)
    return float(sum(np.sort(worth)[: len(worth) - count].sum() for worth, count in parts))


def same(one: Plan, other: Plan) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.kept, other.kept, strict=True))


def parallel(*branches: tuple[int, int]) -> ModelProto:
    """Branches of two dense layers each, of so many inputs and channels, whose answers are added up."""
    b = Builder()
    parts = []
    for inputs, width in branches:
        x = b.relu(b.node("Gemm", b.input("N", inputs), b.weight(inputs, width)))
        parts.append(b.node("Gemm", x, b.weight(width, 4)))
    return b.done(b.node("Sum", *parts), rank=2)


def bottleneck() -> ModelProto:
    """Branches of two and of one inner group, which can lose all."""
    b = Builder(seed=2)
    x = b.stem(8)
    y = b.relu(b.norm(b.conv(x, 8, 4), 4))
    y = b.relu(b.norm(b.conv(y, 4, 6, 3, 3, pads=[1] * 4), 6))
    x = b.relu(b.node("Add", b.norm(b.conv(y, 6, 8), 8), x))
    x = b.node("Add", b.conv(b.relu(b.conv(x, 8, 10, 3, 3, pads=[1] * 4)), 10, 8), x)
    return b.done(b.head(b.relu(x), 8))


# --------------------------------------------------------------------------------------------- without any data


def test_a_branch_that_is_gone_is_no_step_where_no_step_alone_saves_anything() -> None:
    channels = channels_of(bottleneck())
    worth = [np.full(g.width, each) for g, each in zip(channels.groups, (1, 1e-6, 1e-6, 1), strict=True)]
    problem = problem_of(channels, worth=worth, min_keep=0, macs=0.9)
    first, last = problem.widths[0], problem.widths[-1]

    def peak(counts: Array) -> Array:
        """The larger of two places: one of them alone saves nothing."""
        rows = np.atleast_2d(counts)
        return np.asarray(np.maximum(rows[:, 0] / first, rows[:, -1] / last))

    problem.costs.predicted["memory"], problem.original["memory"] = peak, 1.0
    problem.targets = (*problem.targets, Target("memory", 0.5, "0.5"))
    assert problem.meets(descend(problem)).all()


LIMITS: list[dict[str, float]] = [{"macs": 0.5}, {"params": 0.3}, {"macs": 0.7, "params": 0.4}, {"macs": 0.99}]


def steps_up(problem: Problem, counts: Array) -> list[Array]:
    """List all plans of one more step in one group."""
    found = []
    for steps in (problem.steps, problem.fine):
        for group in range(len(counts)) if steps is not None else ():
            row = counts.copy()
            row[group] = min((row[group] // steps[group] + 1) * steps[group], problem.most[group])
            if problem.depth is not None:
                row = problem.depth.closed(np.maximum(row, problem.least))
            if (row != counts).any():
                found.append(row)
    return found


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("align", [SINGLE, FINE, Align(8, 8, SINGLE)], ids=["single", "fine", "rest"])
@pytest.mark.parametrize("min_keep", [1, 0])
def test_every_target_is_met_and_no_step_is_left_that_would_fit(
    limits: dict[str, float], align: Align, min_keep: int
) -> None:
    for build in (convs, residual, branches, bottleneck):
        problem = problem_of(build(), align, min_keep=min_keep, **limits)
        counts = descend(problem, flat(problem))
        assert problem.meets(counts).all()
        assert (counts <= problem.widths).all()
        assert not any(problem.meets(row)[0] for row in steps_up(problem, counts))
        if problem.depth is None:
            assert (counts >= problem.least).all()


@pytest.mark.parametrize("share", [0.05, 0.06, 0.07, 0.08, 0.1, 0.15, 0.25])
def test_with_nothing_to_keep_branches_go_whole_and_come_back_whole(share: float) -> None:
    channels = channels_of(bottleneck())
    problem = problem_of(channels, SINGLE, min_keep=0, macs=share)
    rng = np.random.default_rng(0)
    emptied = 0
    for _ in range(8):
        counts = descend(problem, rng.uniform(0.1, 10, len(problem.widths)))
        assert problem.depth is not None
        np.testing.assert_array_equal(problem.depth.closed(np.maximum(counts, problem.least)), counts)
        emptied += int((counts == 0).any())
    smaller = cut(channels, problem.plan(counts), runtime.evaluate)
    onnx.checker.check_model(smaller)
    assert runtime.Session(smaller).run({"x": np.ones((2, 3, 6, 6), np.float32)})[0].shape == (2, 5)
    assert emptied or share > 0.1


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**16), gone=st.integers(0, 9))
def test_where_all_channels_cost_the_same_no_plan_has_less_error(seed: int, gone: int) -> None:
    channels = PARALLEL
    rng = np.random.default_rng(seed)
    worth = [rng.exponential(size=group.width) for group in channels.groups]
    problem = problem_of(channels, worth=worth, macs=1 - gone / 12)
    counts = descend(problem, flat(problem))
    plans = np.asarray(list(product(*(range(1, width + 1) for width in problem.widths))))
    plans = plans[problem.meets(plans)]
    assert error_of(problem, counts) == pytest.approx(min(error_of(problem, row) for row in plans))
    assert counts.sum() == 12 - gone


PARALLEL = channels_of(parallel((6, 3), (6, 4), (6, 5)))


@pytest.mark.parametrize(("worth", "first"), [((1, 1), 0), ((2, 1), 0), ((20, 1), 1)])
def test_the_step_with_the_least_error_for_what_it_saves_is_the_first(worth: tuple[int, int], first: int) -> None:
    channels = channels_of(parallel((36, 6), (4, 6)))  # a channel of the first saves five times as much
    problem = problem_of(channels, worth=[np.full(6, float(value)) for value in worth], macs=0.9)
    counts = descend(problem, flat(problem))
    assert counts[1 - first] == 6
    assert counts[first] < 6


def test_only_what_is_too_high_counts_as_saved() -> None:
    b = Builder()
    x = b.conv(b.relu(b.conv(b.input("N", 3, 12, 12), 3, 8)), 8, 4)  # a channel of 1008 MACs and 8 parameters
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    channels = channels_of(b.done(b.linear(b.relu(b.linear(x, 4, 200)), 200, 10), rank=2))  # one of 14 and 15
    assert [group.width for group in channels.groups] == [8, 4, 200]
    worth = [np.ones(8), np.full(4, 1e6), np.ones(200)]
    for limits, group in (({"params": 0.9, "macs": 1.0}, 2), ({"params": 1.0, "macs": 0.9}, 0)):
        problem = problem_of(channels, worth=worth, **limits)
        counts = descend(problem, flat(problem))
        assert np.flatnonzero(counts < problem.widths).tolist() == [group]


def test_channels_without_error_leave_before_any_other() -> None:
    channels = channels_of(residual())
    rng = np.random.default_rng(0)
    worth = [rng.uniform(1, 2, group.width) for group in channels.groups]
    for values in worth:
        values[rng.choice(len(values), 5, replace=False)] = 0
    problem = problem_of(channels, worth=worth, macs=0.95)
    plan, _ = run(problem)
    assert error_of(problem, plan.counts) == 0
    assert (plan.counts < problem.widths).any()
    plan, _ = run(problem_of(channels, worth=worth, macs=0.5))
    for kept, values in zip(plan.kept, worth, strict=True):
        assert (values[kept] > 0).all()


def test_groups_whose_errors_are_scaled_up_keep_more() -> None:
    channels = PARALLEL
    worth = [np.linspace(1, 2, group.width) for group in channels.groups]
    problem = problem_of(channels, worth=worth, macs=0.6)
    plain = descend(problem, flat(problem))
    for group in range(3):
        scale = flat(problem)
        scale[group] = 10
        assert descend(problem, scale)[group] == problem.widths[group] > plain[group]


def test_a_target_that_is_met_already_costs_nothing() -> None:
    problem = problem_of(convs(), macs=1.0)
    np.testing.assert_array_equal(run(problem)[0].counts, problem.widths)


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("limits", [{"macs": 0.001}, {"macs": 0.9, "params": 0.001}], ids=str)
def test_a_target_that_cannot_be_met_is_refused(limits: dict[str, float], judged: bool) -> None:
    problem = problem_of(convs(), judging=Judged() if judged else None, **limits)
    with pytest.raises(TargetError, match="cannot be reached"):
        run(problem)


def test_without_data_one_plan_is_made() -> None:
    problem = problem_of(residual(), macs=0.5)
    plan, told = run(problem)
    np.testing.assert_array_equal(plan.counts, descend(problem, flat(problem)))
    assert told == [(1, 1)]


# ------------------------------------------------------------------------------------------------------ with data


class Judged:
    """Answers with what it is told to, and remembers what it was asked.

    Args:
        error: of a plan.
        local: of a plan that cuts one group; the same where it is not given.
    """

    def __init__(self, error: Callable[[Plan], float] | None = None, local: Callable[[Plan], float] | None = None):
        self.error = error or (lambda plan: 1 / (1 + plan.counts.sum()))
        self.local = local or self.error
        self.full: list[tuple[Plan, float]] = []
        self.probes: list[tuple[Plan, float]] = []

    def errors(self, plans: Sequence[Plan], *, effort: Effort = "quick") -> list[float]:
        found = [(plan, (self.local if effort == "probe" else self.error)(plan)) for plan in plans]
        (self.probes if effort == "probe" else self.full).extend(found)
        return [error for _, error in found]


def hurts(channels: Channels, worth: Sequence[Array], *factors: float) -> Callable[[Plan], float]:
    """Give an error of what is gone, more in some groups."""

    def error(plan: Plan) -> float:
        parts = zip(channels.groups, worth, plan.kept, factors, strict=True)
        return sum(factor * float(np.delete(w, kept).sum()) for _, w, kept, factor in parts)

    return error


def even(channels: Channels) -> list[Array]:
    return [np.linspace(1, 2, group.width) for group in channels.groups]


@pytest.mark.parametrize("budget", [1, 2, 3, WAYS, WAYS + 1, WAYS + 2, WAYS + 3, 20])
def test_no_more_plans_are_judged_than_the_budget_allows(budget: int) -> None:
    channels = channels_of(convs((16, 24, 32, 40, 24)))
    judging = Judged(hurts(channels, even(channels), 1, 8, 1, 0.1, 3))
    plan, told = run(problem_of(channels, worth=even(channels), judging=judging, macs=0.4), budget)
    assert len(judging.probes) == min(max(budget - WAYS, 0), 5)
    assert 1 <= len(judging.full) <= WAYS
    assert len(judging.probes) + len(judging.full) <= budget
    assert any(same(plan, other) for other, _ in judging.full)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert all(done <= total <= budget for done, total in told)


def test_a_target_that_is_met_at_once_needs_no_probes() -> None:
    channels = channels_of(convs())
    judging = Judged(hurts(channels, even(channels), 1, 8, 1))
    plan, _ = run(problem_of(channels, worth=even(channels), judging=judging, macs=1.0))
    assert not judging.probes
    assert len(judging.full) == 1
    assert plan.counts.tolist() == [group.width for group in channels.groups]


def test_the_plan_with_the_least_error_wins() -> None:
    channels = channels_of(convs((16, 24, 32, 40, 24)))
    worth = [values * scale for values, scale in zip(even(channels), (1, 5, 0.3, 2, 1), strict=True)]
    won = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        judging = Judged(lambda _, rng=rng: float(rng.random()), hurts(channels, worth, 1, 8, 1, 0.1, 3))
        plan, _ = run(problem_of(channels, worth=worth, judging=judging, macs=0.4))
        errors = [error for _, error in judging.full]
        assert same(plan, judging.full[int(np.argmin(errors))][0])
        assert len(errors) == WAYS
        won.add(int(np.argmin(errors)))
    assert len(won) > 1


def test_every_plan_that_is_judged_meets_the_target_and_keeps_the_best_channels() -> None:
    channels = channels_of(residual())
    judging = Judged(hurts(channels, even(channels), 5, 1, 0.2))
    problem = problem_of(channels, worth=even(channels), judging=judging, macs=0.5)
    run(problem)
    for plan, _ in judging.full:
        assert problem.meets(plan.counts).all()
        assert same(plan, problem.plan(plan.counts))
    for plan, _ in judging.probes:
        assert np.count_nonzero(plan.counts < problem.widths) == 1
        assert plan.counts.min() >= 1


def test_sensitivities_are_answers_errors_for_an_error_of_one() -> None:
    worth = [np.linspace(1, 2, group.width) * scale for group, scale in zip(PARALLEL.groups, (1, 7, 0.3), strict=True)]
    judging = Judged(local=hurts(PARALLEL, worth, 0.2, 2.0, 0.4))
    problem = problem_of(PARALLEL, worth=worth, judging=judging, macs=0.5)
    found = sensitivities(problem, probes(problem), lambda done, total: None)
    np.testing.assert_allclose(found, [0.5, 5, 1], rtol=1e-9)
    assert not judging.full


def test_a_group_whose_cut_hurts_the_answers_keeps_more() -> None:
    worth = even(PARALLEL)
    plain = descend(problem_of(PARALLEL, worth=worth, macs=0.6), np.ones(3))
    for group in range(3):
        error = hurts(PARALLEL, worth, *np.where(np.arange(3) == group, 10, 1).tolist())
        plan, _ = run(problem_of(PARALLEL, worth=worth, judging=Judged(error), macs=0.6))
        assert plan.counts[group] == PARALLEL.groups[group].width > plain[group]


def test_groups_that_cost_most_are_looked_at_first_and_others_count_as_the_median() -> None:
    channels = channels_of(parallel((50, 4), (30, 4), (10, 4), (2, 4)))
    worth = even(channels)
    judging = Judged(local=hurts(channels, worth, 3, 1, 50, 50))
    problem = problem_of(channels, worth=worth, judging=judging, macs=0.5)
    found = sensitivities(problem, dict(list(probes(problem).items())[:2]), lambda done, total: None)
    probed = {int(np.flatnonzero(plan.counts < 4)[0]) for plan, _ in judging.probes}
    assert probed == {0, 1}
    np.testing.assert_allclose(found, [1.5, 0.5, 1, 1])


@pytest.mark.parametrize(("error", "expected"), [(0.0, 1e-4), (-1.0, 1e-4), (np.inf, 1e4), (np.nan, 1.0)])
def test_errors_that_are_no_measure_leave_finite_sensitivities(error: float, expected: float) -> None:
    worth = even(PARALLEL)
    usual = hurts(PARALLEL, worth, 1, 1, 1)
    judging = Judged(local=lambda plan: error if plan.counts[1] < 4 else usual(plan))
    problem = problem_of(PARALLEL, worth=worth, judging=judging, macs=0.5)
    np.testing.assert_allclose(sensitivities(problem, probes(problem), lambda done, total: None), [1, expected, 1])
    run(problem)


def test_groups_without_error_are_not_probed() -> None:
    worth = even(PARALLEL)
    worth[1][:] = 0
    judging = Judged(local=hurts(PARALLEL, worth, 1, 1, 1))
    problem = problem_of(PARALLEL, worth=worth, judging=judging, macs=0.5)
    assert sensitivities(problem, probes(problem), lambda done, total: None)[1] == 1
    assert all(plan.counts[1] == 4 for plan, _ in judging.probes)
    assert len(judging.probes) == 2


def test_kinds_of_groups_add_the_same_error_for_what_they_save() -> None:
    channels = channels_of(residual())
    stream = int(np.argmin([group.width for group in channels.groups]))
    worth = [np.random.default_rng(i).exponential(size=g.width) * 10**i for i, g in enumerate(channels.groups)]
    problem = problem_of(channels, worth=worth, macs=0.5)
    scale, saved = by_kind(problem), problem.saved_by_all()
    error = np.asarray([values.sum() for values in worth]) * scale
    inner = [group for group in range(3) if group != stream]
    assert error[stream] / saved[stream] == pytest.approx(error[inner].sum() / saved[inner].sum())
    assert scale[inner[0]] == scale[inner[1]]  # two of one kind compare as they are
    assert np.median(scale) == pytest.approx(1)


def test_units_of_a_kind_do_not_matter_to_its_share() -> None:
    channels = channels_of(residual())
    stream = int(np.argmin([group.width for group in channels.groups]))
    plans = []
    for unit in (1, 1000):
        worth = even(channels)
        worth[stream] = worth[stream] * unit
        problem = problem_of(channels, worth=worth, macs=0.4)
        plans.append((descend(problem, by_kind(problem)), descend(problem, flat(problem))))
    (balanced, plain), (also_balanced, other) = plans
    np.testing.assert_array_equal(balanced, also_balanced)
    assert (plain != other).any()


def test_the_same_data_and_seed_give_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "user_cache_path", lambda name: tmp_path / name)
    b = Builder()
    x = b.relu(b.linear(b.relu(b.linear(b.input("N", 6), 6, 12)), 12, 10))
    channels = channels_of(b.done(b.linear(x, 10, 4), rank=2))
    found = []
    for _ in range(2):
        problem = problem_with_data(channels, macs=0.4)
        found.append(run(problem)[0])
        assert problem.meets(found[-1].counts).all()
    assert same(*found)


def problem_with_data(channels: Channels, **limits: Any) -> Problem:
    (value,) = model_inputs(channels.model)
    x = np.random.default_rng(0).standard_normal((300, *channels.model.bound[value.name][1:])).astype(np.float32)
    data = Data({value.name: x}, (value,), None, None, "drawn", np.arange(300))
    first, second, last = (data.take(np.arange(*ends)) for ends in ((0, 200), (200, 260), (260, 300)))
    parts = Split(first, second, last, first, {})
    measured = collect(channels, parts.calibration)
    worth = importance(Evidence(channels, statistics=measured), "obs")
    return problem_of(channels, worth=worth, judging=Candidates(channels, parts, measured), **limits)
