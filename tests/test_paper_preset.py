"""GNN-RL as its paper has it: episodes end where targets are met, and the result meets them exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cli_nets import branches, convs, residual
from nets import Array
from onnx import ModelProto
from test_greedy import Judged, bottleneck, channels_of, hurts, problem_of, same

from onnxprune.errors import TargetError
from onnxprune.plan import Plan
from onnxprune.problem import FINE, Align, Problem
from onnxprune.search import SearchSettings
from onnxprune.search.policy import paper
from onnxprune.search.policy.learning import seeded
from onnxprune.search.policy.paper import Ended, Episode, Learner, Shrinking, Step, after, counts_of, search_as_paper

CHANNELS = {build: channels_of(build()) for build in (convs, residual, branches, bottleneck)}
SINGLE = Align(1)


def pose(
    net: Callable[[], ModelProto], align: Align = SINGLE, *factors: float, **limits: Any
) -> tuple[Problem, Judged]:
    """Pose a problem whose answers are wrong by what is gone, more in some groups."""
    channels = CHANNELS[net]
    worth = [np.linspace(1, 2, group.width) for group in channels.groups]
    judging = Judged(hurts(channels, worth, *(factors or np.ones(len(worth)).tolist())))
    return problem_of(channels, align, worth=worth, judging=judging, **limits), judging


def run(problem: Problem, budget: int = 8, seed: int = 0, **more: Any) -> tuple[Plan, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    settings = SearchSettings(budget, seed, **more)
    return search_as_paper(problem, settings, lambda done, total: told.append((done, total))), told


def play(problem: Problem, steps: int, seed: int = 0) -> list[Episode]:
    with seeded(seed) as generator:
        return Learner(Shrinking(problem), generator).play(steps, 1000, 1000)


# ------------------------------------------------------------------------------------------------- the episodes


def test_ratios_add_up_step_by_step_within_a_tenth_and_all() -> None:
    shares = np.ones(4)
    for action in ([0.5, 0.5, -0.5, 2.0], [0.5, 0.9, 0.25, -1.0], [-1.0, 0.9, 0.0, 0.0]):
        shares = after(shares, np.asarray(action))
    np.testing.assert_allclose(shares, [0.5, 0.1, 0.75, 0.2])


def test_shares_become_whole_channels_within_what_the_problem_allows() -> None:
    problem, _ = pose(convs, FINE, macs=0.5, min_keep=7)
    np.testing.assert_array_equal(problem.widths, [16, 24, 32])
    np.testing.assert_array_equal(problem.least, [8, 8, 8])
    np.testing.assert_array_equal(counts_of(problem, np.asarray([0.99, 0.7, 0.1])), [15, 16, 8])
    np.testing.assert_array_equal(counts_of(problem, np.asarray([0.1, 0.1, 1.0])), [8, 8, 32])


@pytest.mark.parametrize("limits", [{"macs": 0.5}, {"macs": 0.05}, {"macs": 0.6, "params": 0.3}], ids=str)
def test_an_episode_ends_at_the_first_step_that_meets_all_targets_or_at_the_fifth(limits: dict[str, float]) -> None:
    problem, _ = pose(residual, **limits)
    episodes = play(problem, 100)
    for episode in episodes:
        shares, met = np.ones(len(problem.widths)), []
        for step in episode.steps:
            shares = after(shares, step.raw.double().numpy())
            met.append(bool(problem.meets(counts_of(problem, shares))[0]))
        np.testing.assert_array_equal(shares, episode.shares)
        assert not any(met[:-1])
        assert met[-1] == episode.is_met
        assert episode.is_met or len(met) == 5
    assert {episode.is_met for episode in episodes} >= {True}


def test_what_an_agent_sees_is_the_network_as_shrunk_so_far() -> None:
    problem, _ = pose(residual, macs=0.1)
    shrinking, several = Shrinking(problem), 0
    for episode in play(problem, 20):
        shares = np.ones(len(problem.widths))
        for step in episode.steps:
            for seen, drawn in zip(step.graph, shrinking.graph(shares), strict=True):
                np.testing.assert_array_equal(seen.nodes, drawn.nodes)
            shares = after(shares, step.raw.double().numpy())
        several += len(episode.steps) > 1
    assert several


def test_playing_ends_with_enough_steps_or_plans_or_episodes() -> None:
    problem, _ = pose(convs, macs=0.4)
    with seeded(0) as generator:
        learner = Learner(Shrinking(problem), generator)
        assert sum(len(episode.steps) for episode in learner.play(11, 100, 100)[:-1]) < 11
        assert sum(episode.is_met for episode in learner.play(1000, 3, 100)) == 3
        assert len(learner.play(1000, 100, 4)) == 4


# ------------------------------------------------------------------------------------------------ what it learns


def ended(problem: Problem, *shares: float) -> list[Episode]:
    """End episodes with the same share of every group."""
    rows = [np.full(len(problem.widths), share) for share in shares]
    return [Episode((), row, bool(problem.meets(counts_of(problem, row))[0])) for row in rows]


def test_failures_cost_nothing_and_are_rewarded_with_twice_the_worst_error() -> None:
    problem, judging = pose(convs, macs=0.3)
    found = Ended(problem)
    rewards = found.judge(ended(problem, 0.5, 0.9, 0.2, 0.3))
    errors = [error for _, error in judging.full]
    assert len(errors) == len(found.plans) == 3
    assert rewards == [-errors[0], -2 * errors[1], -errors[1], -errors[2]]
    assert found.played == 4
    np.testing.assert_array_equal(found.best, [0.5] * 3)


def test_among_failures_the_one_that_came_closest_is_the_best() -> None:
    problem, judging = pose(convs, macs=0.3)
    found = Ended(problem)
    assert len(set(found.judge(ended(problem, 0.9, 0.7, 0.8)))) == 1
    np.testing.assert_array_equal(found.best, [0.7] * 3)
    assert not judging.full
    found.judge(ended(problem, 0.1))  # whatever it answers, it meets the target
    np.testing.assert_array_equal(found.best, [0.1] * 3)


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_errors_that_are_no_numbers_count_as_failures(error: float) -> None:
    problem, judging = pose(convs, macs=0.3)
    judging.error = lambda plan: error if plan.counts[0] < 5 else 0.25
    found = Ended(problem)
    assert found.judge(ended(problem, 0.2, 0.5)) == [-0.5, -0.25]
    np.testing.assert_array_equal(found.best, [0.5] * 3)
    judging.error = lambda plan: error
    plan, _ = run(problem, 3)
    assert problem.meets(plan.counts).all()


def test_returns_are_discounted_once_a_step_and_put_on_one_scale() -> None:
    step = Step((), torch.zeros(1), 0.0)
    one, three = (Episode((step,) * count, np.ones(1), True) for count in (1, 3))
    found = paper.returns_of([three, one], [-2.0, -1.0])
    expected = np.asarray([-2 * 0.99**2, -2 * 0.99, -2, -1])
    np.testing.assert_allclose(found, (expected - expected.mean()) / expected.std(), rtol=1e-5)


def test_the_agent_learns_which_groups_to_prune() -> None:
    problem, _ = pose(convs, macs=0.6)
    with seeded(0) as generator:
        learner = Learner(Shrinking(problem), generator)
        before = mean_of(learner)
        for _ in range(4):
            episodes = learner.play(20, 1000, 1000)
            signs = [np.sign(np.asarray([1.0, 0.0, -1.0]) @ episode.steps[0].raw.numpy()) for episode in episodes]
            learner.learn(episodes, signs)
        moved = mean_of(learner) - before
    assert moved[0] > 0.1
    assert moved[2] < -0.1


def mean_of(learner: Learner) -> Array:
    with torch.no_grad():
        return learner._agent.mean(paper.batch([learner._first]))[0].numpy()


# ------------------------------------------------------------------------------------------------- the whole search


@pytest.mark.parametrize("limits", [{"macs": 0.5}, {"params": 0.3}, {"macs": 0.7, "params": 0.4}], ids=str)
def test_the_result_meets_the_targets_exactly(limits: dict[str, float]) -> None:
    for net in (residual, branches):
        problem, judging = pose(net, **limits)
        plan, _ = run(problem, 4)
        assert problem.meets(plan.counts).all()
        larger = plan.counts + np.eye(len(plan.counts), dtype=np.int64)
        costs = problem.costs.of(plan.counts)
        left = min((t.limit - costs[t.metric][0]) / problem.original[t.metric] for t in problem.targets)
        assert left < 0.01 or not problem.meets(larger[plan.counts < problem.widths]).any()
        assert same(plan, judging.full[-1][0])
        assert same(plan, problem.plan(plan.counts))


@pytest.mark.parametrize("budget", [1, 2, 8])
def test_no_more_plans_are_judged_than_the_budget_allows_and_one_is_left_for_the_result(budget: int) -> None:
    problem, judging = pose(residual, macs=0.4)
    plan, told = run(problem, budget)
    assert len(judging.full) == budget
    assert not judging.probes
    assert all(problem.meets(judged.counts).all() for judged, _ in judging.full)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (budget, budget)
    if budget == 1:
        np.testing.assert_array_equal(plan.counts, problem.fit(np.ones(len(problem.widths))))


def test_the_best_episode_decides_the_result() -> None:
    problem, judging = pose(convs, SINGLE, 5, 1, 0.1, macs=0.5)
    plan, _ = run(problem, 8)
    visited = judging.full[:-1]
    best = min(visited, key=lambda found: found[1])[0]
    assert judging.full[-1][1] <= min(error for _, error in visited)  # what it overshot by comes back
    assert (plan.counts >= best.counts).all()


def test_plans_on_the_way_that_are_not_aligned_are_no_candidates() -> None:
    problem, judging = pose(convs, FINE, macs=0.5)
    plan, _ = run(problem)
    counts = np.asarray([judged.counts for judged, _ in judging.full])
    assert not problem.admits(counts).all()
    assert plan.counts.tobytes() in problem.visited
    assert problem.admits(np.asarray([found.counts for found, _ in problem.visited.values()])).all()


def test_a_seed_repeats_everything_and_another_does_not() -> None:
    def judged(seed: int) -> list[tuple[list[int], float]]:
        problem, judging = pose(residual, macs=0.4)
        torch.manual_seed(seed + 100)  # what was drawn before makes no difference
        run(problem, 5, seed)
        return [(plan.counts.tolist(), error) for plan, error in judging.full]

    first = judged(3)
    assert judged(3) == first
    assert judged(4) != first


def test_a_target_that_five_steps_do_not_reach_ends_the_search_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "TRIES", 2)
    problem, judging = pose(convs, macs=0.006)  # one channel of each group makes 0.004
    assert not Shrinking(problem).is_met(np.full(3, 0.1))
    plan, told = run(problem, 2)
    assert len(judging.full) == 1
    assert same(plan, judging.full[0][0])
    assert problem.meets(plan.counts).all()
    assert told == [(1, 2)]


def test_where_no_episode_meets_the_target_a_search_ends_long_before_its_last_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played, once = list[int](), Learner.play

    def counted(self: Learner, *asked: int) -> list[Episode]:
        played.append(1)
        return once(self, *asked)

    monkeypatch.setattr(paper, "TRIES", 10**6)
    monkeypatch.setattr(paper, "IDLE", 2)
    monkeypatch.setattr(Learner, "play", counted)
    problem, _ = pose(convs, macs=0.006)
    assert problem.meets(run(problem, 20)[0].counts).all()
    assert len(played) == 2


def test_a_target_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(TargetError, match="cannot be reached"):
        run(pose(convs, macs=0.001)[0])


def test_a_search_that_is_stopped_gives_a_plan_and_judges_no_more() -> None:
    problem, judging = pose(convs, macs=0.5)
    plan, told = run(problem, 50, stop=lambda: len(judging.full) > 0)
    assert 2 <= len(judging.full) < 50
    assert same(plan, judging.full[-1][0])
    assert told[-1] == (len(judging.full), 50)


@pytest.mark.parametrize("min_keep", [0, 1])
def test_without_data_and_with_nothing_to_keep_it_searches_too(min_keep: int) -> None:
    for net in (convs, bottleneck):
        problem = problem_of(CHANNELS[net], min_keep=min_keep, macs=0.3)
        plan, _ = run(problem, 3)
        assert problem.meets(plan.counts).all()
        assert problem.depth is None or np.array_equal(problem.depth.closed(plan.counts), plan.counts)
