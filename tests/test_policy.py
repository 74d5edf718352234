"""The policy: plans meet their targets whatever it does, it learns what there is to learn, and a seed repeats it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from cli_nets import branches, convs, residual
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Array
from onnx import ModelProto
from test_greedy import Judged, channels_of, hurts, problem_of

from onnxprune.channels import Channels
from onnxprune.plan import Plan
from onnxprune.problem import FINE, Align, Problem
from onnxprune.search import SearchSettings, evolution, find, gnn_rl
from onnxprune.search.greedy import descend
from onnxprune.search.policy.credit import Credit
from onnxprune.search.policy.encoder import batch
from onnxprune.search.policy.environment import CONTEXT, Episodes
from onnxprune.search.policy.gym import PruningEnv
from onnxprune.search.policy.learning import Learner, Learning, fresh, optimizer_of, seeded
from onnxprune.search.policy.space import Space

NETS = (convs, residual, branches)
CHANNELS = {build: channels_of(build()) for build in NETS}
SINGLE = Align(1)


def start_of(problem: Problem) -> Array:
    return descend(problem, np.ones(len(problem.widths)))


# ---------------------------------------------------------------------------------------------------- the space


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    net=st.sampled_from(NETS),
    seed=st.integers(0, 2**16),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    align=st.sampled_from([SINGLE, FINE, Align(8, 8, SINGLE)]),
    limits=st.sampled_from([{"macs": 0.5}, {"macs": 0.2}, {"params": 0.3}, {"macs": 0.6, "params": 0.4}]),
    min_keep=st.sampled_from([1, 0]),
)
def test_every_correction_gives_a_plan_that_meets_every_target(
    net: Callable[[], ModelProto], seed: int, spread: float, align: Align, limits: dict[str, float], min_keep: int
) -> None:
    problem = problem_of(CHANNELS[net], align, min_keep=min_keep, **limits)
    space = Space(problem, start_of(problem))
    corrections = np.random.default_rng(seed).normal(0, spread, len(problem.widths))
    counts = space.counts(corrections)
    assert problem.meets(counts).all()
    assert (counts <= problem.most).all()
    assert problem.depth is not None or (counts >= problem.least).all()
    wanted = space.wanted(corrections)
    assert problem.meets(wanted).all()
    assert ((problem.least <= wanted) & (wanted <= problem.most)).all()


def test_no_correction_gives_the_start_and_nearly_none_hardly_another() -> None:
    for net in NETS:
        problem = problem_of(CHANNELS[net], SINGLE, macs=0.4)
        start = start_of(problem)
        space = Space(problem, start)
        np.testing.assert_array_equal(space.counts(np.zeros(len(start))), start)
        moved = np.abs(space.counts(np.full(len(start), 1e-9)) - start)
        assert moved.max() <= 1


def test_a_group_made_dearer_keeps_more_and_the_others_pay() -> None:
    problem = problem_of(CHANNELS[convs], SINGLE, macs=0.4)
    start = start_of(problem)
    space = Space(problem, start)
    for group in np.flatnonzero((start < problem.most) & (start > problem.least)):
        correction = np.zeros(len(start))
        correction[group] = 1.5
        dearer, cheaper = space.counts(correction), space.counts(-correction)
        assert dearer[group] >= start[group] >= cheaper[group]
        assert dearer[group] > cheaper[group]
        assert dearer.sum() - dearer[group] <= start.sum() - start[group]


def test_on_the_way_to_the_targets_a_network_shrinks_step_by_step() -> None:
    problem = problem_of(CHANNELS[residual], SINGLE, macs=0.2)
    space = Space(problem, start_of(problem))
    zero = np.zeros(len(problem.widths))
    macs = [float(problem.costs.of(space.wanted(zero, part))["macs"][0]) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert macs == sorted(macs, reverse=True)
    shares = np.asarray(macs) / problem.original["macs"]
    assert shares[0] == 1
    assert shares[2] == pytest.approx(0.2**0.5, abs=0.1)
    assert shares[-1] <= 0.2


# ------------------------------------------------------------------------------------------------- the episodes


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_the_environment_is_what_gymnasium_asks_for() -> None:
    problem = problem_of(CHANNELS[residual], judging=Judged(), macs=0.5)
    check_env(PruningEnv(Episodes(problem, start_of(problem), 3)), skip_render_check=True)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_corrections_that_all_go_one_way_are_observations_still(length: int) -> None:
    problem = problem_of(CHANNELS[residual], judging=Judged(), macs=0.5)
    env = PruningEnv(Episodes(problem, start_of(problem), length))
    env.reset()
    for _ in range(length):
        observed, *_ = env.step(np.ones(env.episodes.groups))
        assert env.observation_space.contains(observed)


def test_an_episode_pays_at_its_end_by_the_plan_that_it_came_to() -> None:
    judging = Judged()
    problem = problem_of(CHANNELS[convs], judging=judging, macs=0.5)
    start = start_of(problem)
    environment = PruningEnv(Episodes(problem, start, 3))
    environment.reset(seed=0)
    before = len(judging.full)
    rewards, ended = [], False
    rng = np.random.default_rng(0)
    while not ended:
        seen, reward, ended, _, told = environment.step(rng.uniform(-1, 1, len(start)))
        rewards.append(reward)
    assert rewards[:2] == [0.0, 0.0]
    assert len(rewards) == 3
    assert len(judging.full) == before + 2  # the plan to start from is judged as well, for comparison
    plan, error = judging.full[-1]
    np.testing.assert_array_equal(plan.counts, told["counts"])
    first = judging.error(problem.plan(start))
    assert rewards[-1] == pytest.approx(np.log(first / error), rel=1e-3)
    np.testing.assert_allclose(seen["kept"], plan.counts / problem.widths)
    with pytest.raises(gymnasium.error.ResetNeeded):
        environment.step(np.zeros(len(start)))
    assert len(judging.full) == before + 2


def test_the_plan_to_start_from_is_worth_nothing_and_no_number_the_least() -> None:
    judging = Judged(lambda plan: float("nan") if plan.counts[0] == 1 else 1.0)
    problem = problem_of(CHANNELS[convs], judging=judging, macs=0.9)
    start = start_of(problem)
    episodes = Episodes(problem, start, 1)
    bad = start.copy()
    bad[0] = 1
    np.testing.assert_allclose(episodes.rewards([problem.plan(start), problem.plan(bad)]), [0, -5])


def test_where_the_plan_to_start_from_gives_no_numbers_those_that_do_are_told_apart() -> None:
    errors = {2: 0.1, 3: 0.2}
    judging = Judged(lambda plan: errors.get(int(plan.counts[0]), float("inf")))
    problem = problem_of(CHANNELS[convs], judging=judging, macs=0.9)
    start = start_of(problem)
    plans = [problem.plan(np.asarray([first, *start[1:]])) for first in (start[0], 2, 3)]
    bad, best, good = Episodes(problem, start, 1).rewards(plans)
    assert best > good > 0 > bad


# --------------------------------------------------------------------------------------------------- the network


def test_states_side_by_side_are_embedded_as_each_alone() -> None:
    states = []
    for net in NETS:
        problem = problem_of(CHANNELS[net], judging=Judged(), macs=0.5)
        episodes = Episodes(problem, start_of(problem), 2)
        first = episodes.begin()
        rng = np.random.default_rng(1)
        states += [episodes.graph(s) for s in (first, episodes.after(first, rng.uniform(-1, 1, episodes.groups)))]
    with seeded(0):
        agent = fresh()
    with torch.no_grad():
        nodes, whole = agent.encoder(batch(states))
        alone = [agent.encoder(batch([state])) for state in states]
    torch.testing.assert_close(nodes, torch.cat([n for n, _ in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, torch.cat([w for _, w in alone]), rtol=1e-4, atol=1e-5)
    assert len({tuple(row.tolist()) for row in whole}) == len(states)


def test_what_a_stage_embeds_reaches_the_stages_above() -> None:
    problem = problem_of(CHANNELS[residual], judging=Judged(), macs=0.5)
    episodes = Episodes(problem, start_of(problem), 2)
    levels = batch([episodes.graph(episodes.begin())])
    with seeded(0):
        agent = fresh()
    for level in levels:
        level.nodes.requires_grad_()
        level.features.requires_grad_()
    said = agent(levels, torch.zeros(1, len(CONTEXT)))
    (said.mean.sum() + said.value.sum()).backward()
    for level in levels:
        assert level.nodes.grad is not None
        assert level.nodes.grad.abs().sum() > 0
        assert level.features.grad is not None
        assert level.features.grad.abs().sum() > 0


def test_one_agent_serves_networks_of_any_number_of_groups() -> None:
    agents, sizes = [], set()
    for net in NETS:
        problem = problem_of(CHANNELS[net], judging=Judged(), macs=0.5)
        episodes = Episodes(problem, start_of(problem), 2)
        agents.append((episodes, fresh()))
        sizes.add(tuple(tuple(p.shape) for p in agents[-1][1].parameters()))
        steps, ends = Learner(agents[0][1], episodes, Learning(), torch.Generator()).play(2)
        assert len(ends) == 2
        assert steps[0].raw.shape == (2 * episodes.groups,)
    assert len(sizes) == 1


# ------------------------------------------------------------------------------------------------------ learning


def test_advantages_look_back_from_the_end_of_an_episode() -> None:
    problem = problem_of(CHANNELS[convs], judging=Judged(), macs=0.5)
    episodes = Episodes(problem, start_of(problem), 3)
    with seeded(0) as generator:
        learner = Learner(fresh(), episodes, Learning(discount=0.9, trace=0.8), generator)
        steps, _ = learner.play(2)
    found, returns = learner._advantages(steps, torch.tensor([1.0, -2.0]))
    value = torch.stack([step.said.value for step in steps])
    for episode, reward in enumerate((1.0, -2.0)):
        wrong = [0.9 * value[t + 1, episode] - value[t, episode] for t in range(2)] + [reward - value[2, episode]]
        expected = [sum((0.9 * 0.8) ** (u - t) * wrong[u] for u in range(t, 3)) for t in range(3)]
        np.testing.assert_allclose(found[:, episode], expected, rtol=1e-5)
    torch.testing.assert_close(returns, found + value)


LONG, DEEP = channels_of(convs((16, 24, 32, 40, 24))), channels_of(convs((16,) * 14))


def hard(seed: int, net: Channels = LONG, matters: Array | None = None) -> tuple[Problem, float]:
    """Pose a problem whose errors mean something else in each group than they seem to.

    Args:
        seed: of how much more they matter, where that is not given.
        net: what is to be cut.
        matters: (groups,) logarithms of the same.

    Returns:
        The problem, and what its best plan gains over the plan of the errors as they seem.
    """
    weights = np.exp(np.random.default_rng(seed).normal(0, 1, len(net.groups)) if matters is None else matters)
    worth = [np.geomspace(1, 0.02, group.width) for group in net.groups]
    error = hurts(net, worth, *weights)
    problem = problem_of(net, worth=worth, judging=Judged(error), macs=0.4)
    start, best = (problem.plan(counts) for counts in (start_of(problem), descend(problem, weights)))
    return problem, float(np.log(error(start) / error(best)))


def rewards_of(problem: Problem) -> Callable[[list[Array]], Array]:
    """Give what plans gain over the plan of the errors as they seem."""
    assert isinstance(problem.judging, Judged)
    error = problem.judging.error
    start = error(problem.plan(start_of(problem)))
    return lambda plans: np.asarray([np.log(start / error(problem.plan(plan))) for plan in plans])


def played(problem: Problem, seed: int, rate: float, has_own: bool = True) -> float:
    """Let an agent play 10 batches, and give what its most likely actions gain in the end.

    Without corrections of the network's own all that it learns is in the weights that look at the graph.
    """
    episodes, how = Episodes(problem, start_of(problem), 2), Learning(rate=rate, own_rate=30 * rate)
    with seeded(seed) as generator:
        agent = fresh()
        learner = Learner(agent, episodes, how, generator, None if has_own else optimizer_of(agent, how))
        for _ in range(10):
            steps, ends = learner.play(8)
            learner.learn(steps, ends, episodes.rewards([problem.plan(end.counts) for end in ends]))
        return float(episodes.rewards([learner.own_plan()])[0])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_credit_finds_what_each_group_matters_and_the_plan_that_follows(seed: int) -> None:
    problem, best = hard(seed)
    space, rng = Space(problem, start_of(problem)), np.random.default_rng(0)
    credit = Credit(space, np.eye(len(space.start)))
    rewards = rewards_of(problem)
    np.testing.assert_allclose(credit.targets(), 0, atol=1e-9)  # nothing is known yet: stay there
    for _ in range(6):
        plans = [space.counts(rng.normal(0, 0.5, len(space.start))) for _ in range(8)]
        credit.add(plans, rewards(plans))
    others = [space.counts(rng.normal(0, 0.5, len(space.start))) for _ in range(20)]
    missed = credit.expected(np.stack(others)) - rewards(others)
    assert np.square(missed).mean() < 0.1 * rewards(others).var()
    assert rewards([space.counts(credit.targets())])[0] > 0.7 * best


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_where_alike_groups_matter_alike_few_plans_tell_more(seed: int) -> None:
    groups, rng = len(DEEP.groups), np.random.default_rng(seed)
    kind = np.arange(groups) % 2
    alike = 0.5 * np.eye(groups) + 0.5 * (kind[:, None] == kind)
    problem, _ = hard(seed, DEEP, 1.5 * (2 * kind - 1) + rng.normal(0, 0.2, groups))
    space = Space(problem, start_of(problem))
    rewards = rewards_of(problem)
    plans = [space.counts(rng.normal(0, 0.5, groups)) for _ in range(40)]
    few, others, missed = plans[:groups], plans[groups:], list[float]()
    for doubt in (alike, np.eye(groups)):
        credit = Credit(space, doubt)
        credit.add(few, rewards(few))
        missed.append(float(np.var(credit.expected(np.stack(others)) - rewards(others))))
    assert missed[0] < 0.6 * missed[1]


def test_what_groups_might_matter_is_drawn_as_it_is_doubted_and_closer_to_the_truth_the_more_is_known() -> None:
    rng = np.random.default_rng(0)
    matters = rng.normal(0, 1, len(LONG.groups))
    problem, _ = hard(0, LONG, matters)
    space = Space(problem, start_of(problem))
    groups = len(matters)
    doubt = 0.5 * np.eye(groups) + 0.5
    credit = Credit(space, doubt)
    drawn = credit.draw(20_000, rng, 0.5)
    np.testing.assert_allclose(drawn.mean(axis=0), space.weights, atol=0.02)
    np.testing.assert_allclose(np.cov(drawn.T), 0.25 * doubt, atol=0.02)

    def off() -> float:
        best = credit.targets(space.weights + matters)
        return float(np.square([credit.targets(weights) - best for weights in credit.draw(200, rng, 1.0)]).mean())

    before = off()
    for _ in range(3):
        plans = [space.counts(rng.normal(0, 0.5, groups)) for _ in range(8)]
        credit.add(plans, rewards_of(problem)(plans))
    assert off() < 0.2 * before


def test_episodes_come_to_what_they_are_to_come_to() -> None:
    problem, _ = hard(1)
    with seeded(0) as generator:
        learner = Learner(fresh(), Episodes(problem, start_of(problem), 2), Learning(boldness=1.0), generator)
        with torch.no_grad():
            # shifts begin at what the agent does by itself
            learner.own += torch.linspace(-0.3, 0.3, len(problem.widths))
        aims = learner.aims(4)
        _, ends = learner.play(6, aims, likely=6)
        likely = learner.play_likely().corrections
    assert np.abs(aims[1:]).max() > 0.5
    for end, aim in zip(ends, [likely, likely, *aims], strict=True):
        np.testing.assert_allclose(end.corrections, aim, atol=0.05)


def test_what_is_best_by_all_that_is_known_is_tried_once() -> None:
    problem, _ = hard(1)
    with seeded(0) as generator:
        learner = Learner(fresh(), Episodes(problem, start_of(problem), 2), Learning(), generator)
        credit, space = learner._credit, learner.episodes.space
        for _ in range(20):
            wanted = credit.targets()
            if credit.knows(space.counts(wanted)):
                break
            np.testing.assert_array_equal(learner.aims(1), [wanted])  # the last plan of a budget, too
            np.testing.assert_array_equal(learner.aims(3)[0], wanted)
            learner.recall([space.plan(wanted)])
        assert credit.knows(space.counts(wanted))
        assert all(np.abs(aim - wanted).max() > 1e-3 for aim in learner.aims(3))


def test_the_plan_of_an_agent_is_judged_as_soon_as_it_seems_as_good_as_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, _ = hard(2)
    shifted, play = list[int](), Learner.play

    def noted(learner: Learner, number: int, aims: Sequence[Array] = (), *, likely: int = 0) -> Any:
        if number > 1:
            shifted.append(len(aims))
        return play(learner, number, aims, likely=likely)

    monkeypatch.setattr(Learner, "play", noted)
    with seeded(0) as generator:
        learner = Learner(fresh(), Episodes(problem, start_of(problem), 2), Learning(afterthoughts=0), generator)
        rng, space = np.random.default_rng(0), learner.episodes.space
        rewards = learner.recall([space.plan(rng.normal(0, 0.5, len(space.start))) for _ in range(8)])
        assert rewards.max() > 0.1
        learner.practise(4)
        for _ in range(40):
            learner.think(4)
        own = learner.own_plan()
        learner.practise(4)
    assert [number for number in shifted if number] == [4, 3]
    assert isinstance(problem.judging, Judged)
    assert own.counts.tolist() in [plan.counts.tolist() for plan, _ in problem.judging.full]


def test_what_is_tried_in_thought_is_not_judged() -> None:
    judged = []
    for thoughts in (0, 64):
        problem, _ = hard(1)
        with seeded(0) as generator:
            learner = Learner(fresh(), Episodes(problem, start_of(problem), 2), Learning(thoughts=thoughts), generator)
            learner.practise(4)
        judged.append(problem.judged)
    assert judged[0] == judged[1] <= 5  # those and the plan to start from


def test_an_agent_that_is_believed_stays_at_its_own_plan_until_more_is_known() -> None:
    problem, _ = hard(1)
    with seeded(0) as generator:
        learner = Learner(fresh(), Episodes(problem, start_of(problem), 2), Learning(), generator)
        with torch.no_grad():
            learner.own += torch.linspace(-0.3, 0.3, len(problem.widths))
        likely = learner.play_likely().corrections
        assert np.abs(likely).max() > 0.2
        for believed in (False, True):
            if believed:
                learner.believe(likely)
            wanted = learner._credit.targets()
            best = likely if believed else learner.episodes.prior.mean
            np.testing.assert_allclose(wanted, best - np.median(best), atol=1e-6)


def test_to_think_judges_nothing_and_brings_an_agent_to_what_it_knows() -> None:
    problem, _ = hard(2)
    with seeded(0) as generator:
        learner = Learner(fresh(), Episodes(problem, start_of(problem), 2), Learning(), generator)
        learner.practise(32)
        assert isinstance(problem.judging, Judged)
        known, credit, space = len(problem.judging.full), learner._credit, learner.episodes.space
        before, possible = credit.expected(np.stack([space.start, space.counts(credit.targets())]))
        assert possible > before + 0.1
        for _ in range(15):
            learner.think(8)
        assert len(problem.judging.full) == known
        (after,) = credit.expected(learner.play_likely().counts[None])
    assert after > before + 0.7 * (possible - before)


@pytest.mark.parametrize(
    ("has_own", "seeds", "share", "of_all"), [(True, (1, 2), 0.5, np.min), (False, (4, 5, 8), 0.4, np.mean)]
)
def test_an_agent_solves_what_an_agent_without_gradients_does_not(
    has_own: bool, seeds: Sequence[int], share: float, of_all: Callable[[list[float]], float]
) -> None:
    """What matters is drawn for each group alone here, so the weights that look at the graph can tell less of it."""
    gained = {rate: list[float]() for rate in (Learning().rate, 0.0)}
    for seed in seeds:
        problem, best = hard(seed)
        assert best > 0.1
        for rate, found in gained.items():
            found.append(played(problem, seed, rate, has_own) / best)
    assert of_all(gained[Learning().rate]) > share
    assert max(gained[0.0]) < 0.3


def test_a_plan_that_an_agent_comes_to_again_is_learnt_from_once() -> None:
    problem, _ = hard(1)
    space = Space(problem, start_of(problem))
    plans = [space.counts(np.random.default_rng(seed).normal(0, 0.5, len(space.start))) for seed in range(6)]
    rewards, once, often = np.arange(6.0), *(Credit(space, np.eye(len(space.start))) for _ in range(2))
    once.add(plans, rewards)
    for _ in range(3):
        often.add([*plans, plans[0]], np.append(rewards, rewards[0]))
    np.testing.assert_array_equal(often.weights, once.weights)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_plans_that_were_judged_for_another_target_tell_a_search_at_once_what_groups_matter(seed: int) -> None:
    gained = []
    for knows in (False, True):
        problem, best = hard(seed)
        judging, rng = problem.judging, np.random.default_rng(0)
        assert isinstance(judging, Judged)
        other = problem_of(LONG, worth=problem.importance, judging=judging, macs=0.5)
        space = Space(other, start_of(other))
        before = [space.plan(rng.normal(0, 0.5, len(space.start))) for _ in range(40 if knows else 0)]
        problem.known = [(plan, -judging.error(plan)) for plan in before]
        plan, _ = run(gnn_rl.search, problem, 4)
        assert problem.meets(plan.counts).all()
        gained.append(np.log(judging.error(problem.plan(start_of(problem))) / judging.error(plan)) / best)
    assert gained[1] > 0.8 > 0.4 > gained[0]


def test_plans_far_from_the_targets_are_trusted_less() -> None:
    problem = problem_of(channels_of(convs()), judging=Judged(), macs=0.5, params=0.4)
    episodes = Episodes(problem, start_of(problem), 2)
    assert [len(part) for part in episodes.remembered()] == [0, 0, 0]
    plans = [problem.plan(np.ceil(share * problem.most).astype(int)) for share in (0.9, 0.7, 0.2)]
    problem.known = [(plan, -0.1 / (1 + at)) for at, plan in enumerate(plans)]
    counts, rewards, trust = episodes.remembered()
    for plan, found, trusted in zip(plans, counts, trust, strict=True):
        np.testing.assert_array_equal(found, plan.counts)
        costs = problem.costs.of(plan.counts)
        ratios = [costs[t.metric][0] / t.limit for t in problem.targets]
        assert trusted == pytest.approx(min(min(ratio, 1 / ratio) for ratio in ratios) ** 4)
    assert trust[1] > max(trust[0], trust[2])
    assert list(rewards) == sorted(rewards)


@pytest.mark.parametrize("seed", [0, 1])
def test_where_widths_come_in_large_steps_plans_are_drawn_more_boldly(seed: int) -> None:
    found = []
    for bolder in (1.0, Learning().bolder):
        problem = problem_of(channels_of(convs((32,) * 6)), Align(8), judging=Judged(), macs=0.4)
        with seeded(seed) as generator:
            how = Learning(bolder=bolder, rounds=1, afterthoughts=0)  # what the agent learns is of no matter here
            learner = Learner(fresh(), Episodes(problem, start_of(problem), 2), how, generator)
            for _ in range(16):
                learner.practise(8)
        found.append(problem.judged)
    assert found[1] > 1.5 * found[0]


@pytest.mark.parametrize("seed", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_search_of_the_agent_solves_a_hard_problem_in_sixty_plans(seed: int) -> None:
    problem, best = hard(seed)
    plan, _ = run(gnn_rl.search, problem, 60)
    assert isinstance(problem.judging, Judged)
    error = problem.judging.error
    assert np.log(error(problem.plan(start_of(problem))) / error(plan)) > 0.9 * best


@pytest.mark.parametrize("name", ["gnn_rl", "evolution", "random"])
def test_a_search_ends_where_no_plan_is_left_that_it_does_not_know(name: str) -> None:
    problem = problem_of(channels_of(convs((8, 8))), Align(4), judging=Judged(), macs=0.5)
    _, told = run(find(name), problem, 300)
    assert isinstance(problem.judging, Judged)
    assert max(told) < 20
    assert problem.judged == len({plan.counts.tobytes() for plan, _ in problem.judging.full})


def run(search: Any, problem: Problem, budget: int = 60, seed: int = 0) -> tuple[Plan, list[int]]:
    told: list[int] = []
    plan = search(problem, SearchSettings(budget, seed), lambda done, total: told.append(done))
    return plan, told


@pytest.mark.parametrize("name", ["gnn_rl", "evolution", "amc", "random", "greedy", "uniform"])
def test_no_search_touches_what_others_draw_from(name: str) -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    run(find(name), problem_of(channels_of(convs()), Align(1), judging=Judged(), macs=0.5), 20)
    drawn = np.random.random(), float(torch.rand(()))
    np.random.seed(5)
    torch.manual_seed(5)
    assert drawn == (np.random.random(), float(torch.rand(())))


@pytest.mark.parametrize("search", [gnn_rl.search, evolution.search], ids=["gnn_rl", "evolution"])
def test_searches_repeat_themselves_bit_for_bit_and_differ_with_the_seed(search: Any) -> None:
    def judged(seed: int) -> list[float]:
        problem, _ = hard(3)
        run(search, problem, 33, seed)
        assert isinstance(problem.judging, Judged)
        return [error for _, error in problem.judging.full]

    first = judged(0)
    torch.manual_seed(1)  # the state of others matters to nobody
    np.random.seed(5)
    assert judged(0) == first
    assert judged(1) != first


@pytest.mark.parametrize("search", [gnn_rl.search, evolution.search], ids=["gnn_rl", "evolution"])
@pytest.mark.parametrize("budget", [1, 2, 5, 12, 33])
def test_searches_judge_no_more_plans_than_allowed_and_give_the_best_of_them(search: Any, budget: int) -> None:
    problem, _ = hard(1)
    plan, told = run(search, problem, budget)
    judging = problem.judging
    assert isinstance(judging, Judged)
    distinct = {p.counts.tobytes() for p, _ in judging.full}
    assert len(distinct) + len(judging.probes) <= budget
    assert told[-1] <= budget
    assert min(error for _, error in judging.full) == judging.error(plan)
    assert problem.meets(plan.counts).all()


@pytest.mark.parametrize("search", [gnn_rl.search, evolution.search], ids=["gnn_rl", "evolution"])
def test_searches_end_when_they_are_told_to(search: Any) -> None:
    problem, _ = hard(1)
    left = 3

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    plan = search(problem, SearchSettings(1000, 0, stop), lambda done, total: None)
    assert isinstance(problem.judging, Judged)
    assert len(problem.judging.full) < 60
    assert problem.meets(plan.counts).all()
