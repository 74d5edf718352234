"""AMC: no decision takes what later groups need, it learns from what plans answer, and a seed repeats it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cli_nets import branches, convs, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Array
from onnx import ModelProto
from test_greedy import Judged, bottleneck, channels_of, hurts, parallel, problem_of, same

from onnxprune.channels import Channels
from onnxprune.errors import TargetError
from onnxprune.plan import Plan
from onnxprune.problem import FINE, Align, Problem
from onnxprune.search import SearchSettings, amc
from onnxprune.search.amc import Agent, Episode, Walk, described, least_shares, rewards_of, search, spread_at, truncated
from onnxprune.search.policy.learning import seeded
from onnxprune.stages import Stages

CHANNELS = {build: channels_of(build()) for build in (convs, residual, branches, bottleneck)}
SINGLE = Align(1)
LIMITS: list[dict[str, float]] = [
    *({"macs": share} for share in (0.9, 0.5, 0.1, 0.02)),
    *({"params": 0.3}, {"macs": 0.7, "params": 0.4}, {"macs": 0.3, "activation_bytes": 0.7}, {"file_bytes": 0.5}),
]


def even(channels: Channels) -> list[Array]:
    return [np.linspace(1, 2, group.width) for group in channels.groups]


def pose(channels: Channels, *factors: float, align: Align = SINGLE, **limits: Any) -> tuple[Problem, Judged]:
    """Pose a problem whose answers are wrong by what is gone, more in some groups."""
    judging = Judged(hurts(channels, even(channels), *(factors or np.ones(len(channels.groups)).tolist())))
    return problem_of(channels, align, worth=even(channels), judging=judging, **limits), judging


def run(problem: Problem, budget: int = 12, seed: int = 0, **more: Any) -> tuple[Plan, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    return search(problem, SearchSettings(budget, seed, **more), lambda done, total: told.append((done, total))), told


# -------------------------------------------------------------------------------------------------- what may be done


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    net=st.sampled_from([convs, residual, branches, bottleneck]),
    seed=st.integers(0, 2**16),
    limits=st.sampled_from(LIMITS),
    align=st.sampled_from([SINGLE, FINE, Align(8, 8, SINGLE)]),
    min_keep=st.sampled_from([1, 0]),
)
def test_no_decision_takes_what_later_groups_need(
    net: Callable[[], ModelProto], seed: int, limits: dict[str, float], align: Align, min_keep: int
) -> None:
    problem = problem_of(CHANNELS[net], align, min_keep=min_keep, **limits)
    if not problem.meets(problem.least)[0]:
        return
    walk, rng = Walk(problem), np.random.default_rng(seed)
    shares = walk.least.copy()
    assert problem.meets(shares * problem.most)[0]
    for at in range(len(shares)):
        bound = walk.bound(shares, at)
        assert shares[at] <= bound <= 1
        more = shares.copy()
        more[at] = bound + 2 / (amc.POINTS - 1) ** amc.ROUNDS
        assert bound == 1 or not problem.meets(more * problem.most)[0]
        shares[at] = min(rng.uniform(shares[at], 1.2), bound)
        assert problem.meets(shares * problem.most)[0]
    counts = problem.fit(shares)
    assert problem.meets(counts)[0]
    assert problem.admits(counts[None])[0] or problem.fine is not None


def test_what_is_decided_late_is_bounded_by_what_was_decided_early() -> None:
    problem, _ = pose(channels_of(parallel((8, 20), (8, 20), (8, 20))), macs=0.5)
    walk = Walk(problem)
    greedy = walk.least.copy()
    for at in range(3):
        greedy[at] = walk.bound(greedy, at)
    np.testing.assert_allclose(greedy, [1, 0.3, 0.2], atol=0.001)  # 1.5 in all, of which 0.2 each are spoken for
    modest = np.asarray([0.4, 0.2, 0.2])
    np.testing.assert_allclose(walk.bound(modest, 1), 0.9, atol=0.001)


@pytest.mark.parametrize(("share", "least"), [(0.9, 0.2), (0.5, 0.2), (0.3, 0.15), (0.2, 0.1)])
def test_the_least_share_leaves_a_choice(share: float, least: float) -> None:
    problem, _ = pose(channels_of(parallel((8, 100), (8, 100))), macs=share)
    np.testing.assert_allclose(least_shares(problem), least, atol=0.005)


def test_no_share_is_less_than_what_the_problem_keeps() -> None:
    problem, _ = pose(CHANNELS[convs], macs=0.5, min_keep=8)
    np.testing.assert_allclose(least_shares(problem), [8 / 16, 8 / 24, 8 / 32])


# ------------------------------------------------------------------------------------------------------ what is seen


def test_groups_are_described_from_0_to_1_in_their_order() -> None:
    for channels in CHANNELS.values():
        found = described(problem_of(channels, macs=0.5))
        assert found.min() == 0
        assert found.max() == 1
        assert (np.diff(found[:, 0]) > 0).all()
        assert len(np.unique(found[:, 1:], axis=0)) > 1


def test_an_agent_sees_how_wide_the_layers_around_a_group_are() -> None:
    channels = CHANNELS[convs]
    before, behind = amc._around(Stages(channels, problem_of(channels, macs=0.5).costs))
    assert before.tolist() == [3, 16, 24]
    assert behind.tolist() == [24, 32, 10]


def test_an_agent_sees_what_is_gone_what_can_go_and_what_it_did_last() -> None:
    problem, _ = pose(channels_of(parallel((8, 20), (8, 20))), macs=0.5, params=0.9)
    walk = Walk(problem)
    first = walk.state(walk.least, 0, 1.0)
    assert len(first) == walk.features
    np.testing.assert_allclose(first[-5:], [0, 0.8, 0, first[-2], 1], atol=1e-9)
    shares = np.asarray([0.6, 0.2])
    np.testing.assert_allclose(walk.state(shares, 1, 0.6)[-5:-3], [0.2, 0.4])
    assert walk.state(shares, 1, 0.6)[-1] == 0.6
    np.testing.assert_array_equal(shares, [0.6, 0.2])


# ---------------------------------------------------------------------------------------------------- how it explores


def test_actions_spread_less_and_less_and_stay_between_0_and_1() -> None:
    spreads = [spread_at(number, 80) for number in range(81)]
    assert spreads[0] == 0.5
    assert spreads[-1] == pytest.approx(0.01)
    assert spreads[1] / spreads[0] == pytest.approx(0.95, abs=0.003)
    rng = np.random.default_rng(0)
    for mean in (0.0, 0.3, 1.0):
        for spread in (0.5, 0.01, 1e-9):
            drawn = np.asarray([truncated(mean, spread, rng) for _ in range(300)])
            assert ((drawn >= 0) & (drawn <= 1)).all()
            assert np.abs(drawn - mean).mean() < spread
    drawn = np.asarray([truncated(0.5, np.inf, rng) for _ in range(2000)])
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.05)


# --------------------------------------------------------------------------------------------------- how it learns


def test_rewards_do_not_depend_on_the_unit_of_errors() -> None:
    scores = -np.random.default_rng(0).exponential(size=50)
    found = rewards_of(scores.tolist())
    np.testing.assert_allclose(rewards_of((1000 * scores - 7).tolist()), found)
    assert np.abs(found).max() <= amc.MOST_REWARD
    assert 0.5 < found.std() < 2


def test_errors_that_are_no_numbers_are_as_bad_as_the_worst() -> None:
    found = rewards_of([-1.0, -np.inf, -3.0, np.nan, -2.0])
    assert found[1] == found[2] == found[3] == found.min() < found[4] < found[0]
    assert rewards_of([np.nan, -np.inf]).tolist() == [0, 0]
    assert rewards_of([-1.0]).tolist() == [0]
    assert rewards_of([-1.0, -1.0, -1.0, -2.0]).tolist() == [0, 0, 0, -1]


def test_an_agent_learns_what_to_do_where() -> None:
    rng, wanted = np.random.default_rng(0), np.asarray([0.9, 0.2, 0.6])
    states = np.eye(3)
    with seeded(0):
        agent = Agent(3, rng)
        for _ in range(60):
            actions = rng.random(3)
            agent.remember(Episode(states, actions, actions), -float(np.square(actions - wanted).sum()))
        agent.learn(400)
        learnt = [agent.action(state) for state in states]
    assert 0.3 > learnt[1] < learnt[2] < learnt[0] > 0.7


def test_the_oldest_episodes_are_forgotten() -> None:
    with seeded(0):
        agent = Agent(3, np.random.default_rng(0))
        for number in range(amc.REMEMBERED + 5):
            agent.remember(Episode(np.eye(3), np.zeros(3), np.zeros(3)), float(number))
    assert len(agent._episodes) == len(agent._scores) == amc.REMEMBERED
    assert agent._scores[0] == 5


def test_a_search_learns_to_do_better_than_its_own_random_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(convs([16] * 8, image=(3, 8, 8)))
    factors = np.asarray([4, 4, 4, 4, 0.1, 0.1, 0.1, 0.1])  # what is deep in the network may go
    monkeypatch.setattr(amc, "HIDDEN", 64)  # quicker
    monkeypatch.setattr(amc, "UPDATES", 5)
    found = []
    for warm in (1.0, amc.WARM):
        monkeypatch.setattr(amc, "WARM", warm)
        problem, judging = pose(channels, macs=0.3)
        judging.error = lambda plan: float(factors @ np.square(1 - plan.counts / 16))
        run(problem, 60)
        found.append(np.asarray([error for _, error in judging.full]))
    drawn, learnt = found
    assert len(drawn) == len(learnt) == 60
    np.testing.assert_array_equal(drawn[:12], learnt[:12])
    assert learnt.min() < drawn.min()
    assert learnt[-10:].mean() < 0.6 * drawn[-10:].mean()


# ------------------------------------------------------------------------------------------------- the whole search


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_no_more_plans_are_judged_than_the_budget_allows(budget: int) -> None:
    problem, judging = pose(CHANNELS[residual], 5, 1, 0.2, macs=0.4, params=0.6)
    plan, told = run(problem, budget)
    assert len(judging.full) == budget
    assert not judging.probes
    assert told == [(done, budget) for done in range(1, budget + 1)]
    for judged, _ in judging.full:
        assert problem.meets(judged.counts).all()
        assert same(judged, problem.plan(judged.counts))
    assert same(plan, min(judging.full, key=lambda found: found[1])[0])


def test_a_seed_repeats_everything_and_another_does_not() -> None:
    def judged(seed: int) -> list[tuple[list[int], float]]:
        problem, judging = pose(CHANNELS[residual], 5, 1, 0.2, macs=0.4)
        torch.manual_seed(seed + 100)  # what was drawn before makes no difference
        run(problem, 8, seed)
        return [(plan.counts.tolist(), error) for plan, error in judging.full]

    first = judged(3)
    assert judged(3) == first
    assert judged(4) != first


def test_what_others_draw_does_not_depend_on_the_search() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(pose(CHANNELS[convs], macs=0.5)[0], 2)
    assert torch.equal(torch.rand(3), expected)


def test_a_search_that_is_stopped_has_judged_at_least_one_plan() -> None:
    problem, judging = pose(CHANNELS[convs], macs=0.5)
    plan, told = run(problem, 50, stop=lambda: True)
    assert told == [(1, 50)]
    assert same(plan, judging.full[0][0])


@pytest.mark.parametrize("min_keep", [0, 1])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_without_data_and_with_nothing_to_keep_it_searches_too(min_keep: int, share: float) -> None:
    for net in (convs, bottleneck):
        problem = problem_of(CHANNELS[net], min_keep=min_keep, macs=share)
        plan, _ = run(problem, 5)
        assert problem.meets(plan.counts).all()
        assert problem.depth is None or np.array_equal(problem.depth.closed(plan.counts), plan.counts)


def test_one_group_is_enough() -> None:
    problem, judging = pose(channels_of(parallel((8, 20))), macs=0.5)
    plan, _ = run(problem, 5)
    assert plan.counts.tolist() == [10]
    assert len(judging.full) == 5


def test_a_target_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(TargetError, match="cannot be reached"):
        run(pose(CHANNELS[convs], macs=0.001)[0])
