"""What is believed of groups before any plan is judged: from the graph, and from cutting a few of them alone."""

from __future__ import annotations

import numpy as np
import pytest
from cli_nets import convs
from nets import Array
from test_greedy import SINGLE, Judged, channels_of, even, hurts, problem_of
from test_policy import hard, rewards_of, start_of

from onnxprune.search.gnn_rl import probe
from onnxprune.search.policy.environment import Episodes
from onnxprune.search.policy.learning import Learner, Learning, fresh, seeded
from onnxprune.search.policy.prior import (
    ALIKE,
    KINDS,
    KINDS_DOUBT,
    MOST_PROBED,
    PROBES,
    PROBES_DOUBT,
    likeness,
    prior,
    spread_out,
)

PAIRS = np.repeat([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], 2, axis=0)  # features of three pairs of equal groups


def test_groups_are_alike_that_look_alike_in_the_graph() -> None:
    problem = problem_of(channels_of(convs((16, 16, 16, 64, 64, 64, 64))), SINGLE, macs=0.4)
    episodes = Episodes(problem, start_of(problem), 2)
    alike, doubt = episodes.alike, episodes.prior.doubt
    np.testing.assert_array_equal(alike, alike.T)
    np.testing.assert_array_equal(doubt, doubt.T)
    assert np.linalg.eigvalsh(doubt).min() > 0.4
    np.testing.assert_allclose(np.diag(alike), ALIKE)
    assert ALIKE > alike[4, 5] > alike[1, 5] > 0  # both 64 wide, side by side


def test_features_that_do_not_vary_and_their_units_tell_nothing_of_likeness() -> None:
    alike = likeness(PAIRS)
    assert alike[0, 1] == ALIKE > 3 * alike[0, 2]
    np.testing.assert_allclose(likeness(np.hstack([1000 * PAIRS, np.full((6, 1), 7.0)])), alike)


def test_what_is_believed_is_in_doubt_group_by_group_and_as_a_whole() -> None:
    kinds, probed, alike = np.float64([1, 0, -1]), np.float64([0, 2, 0]), ALIKE * np.eye(3)
    found = prior(alike, kinds, probed)
    np.testing.assert_allclose(found.mean, KINDS * kinds + PROBES * probed)
    own = np.eye(3)
    np.testing.assert_allclose(
        found.doubt, own + KINDS_DOUBT**2 * np.outer(kinds, kinds) + PROBES_DOUBT**2 * np.outer(probed, probed)
    )


def test_groups_are_probed_of_which_others_tell_least_and_among_those_the_first() -> None:
    alike = likeness(PAIRS)
    assert spread_out(alike, [3, 0, 1, 2, 4, 5], 3) == [3, 4, 0]  # 4 is farther from 3 than 0 is
    assert sorted(spread_out(alike, [3, 0, 1, 2, 4, 5], 10)) == [0, 1, 2, 3, 4, 5]
    assert spread_out(alike, [3, 2], 1) == [3]
    assert spread_out(alike, [], 2) == spread_out(alike, [1], 0) == []


def probed(factors: Array, number: int) -> tuple[Array, list[int], int]:
    """Probe groups whose errors mean so much, in three pairs; gives what is believed, and the groups cut alone."""
    channels = channels_of(convs((8,) * 6))
    worth = even(channels)
    judging = Judged(local=hurts(channels, worth, *factors))
    problem = problem_of(channels, SINGLE, worth=worth, judging=judging, macs=0.5)
    found, count = probe(problem, likeness(PAIRS), number, lambda done, total: None, lambda: False)
    assert not judging.full
    cut = [int(np.flatnonzero(plan.counts < problem.widths)[0]) for plan, _ in judging.probes]
    assert len(set(cut)) == count == len(cut)
    return found, sorted(cut), count


def test_what_a_probe_says_of_a_group_is_believed_of_those_that_are_alike() -> None:
    found, cut, count = probed(np.float64([0.1, 0.1, 1, 1, 10, 10]), 3)
    assert count == 3
    assert [group // 2 for group in cut] == [0, 1, 2]
    np.testing.assert_allclose(found[0::2], found[1::2], atol=1e-9)
    assert found[0] < -1
    assert abs(found[2]) < 0.5
    assert found[4] > 1


def test_without_probes_nothing_is_believed() -> None:
    found, cut, _ = probed(np.ones(6), 0)
    assert cut == []
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("factor", [0.0, 1e30])
def test_a_probe_that_says_absurdly_much_is_believed_in_bounds(factor: float) -> None:
    found, _, _ = probed(np.float64([1, 1, 1, 1, factor, factor]), 6)
    assert 1 < np.abs(found).max() <= 1.2 * MOST_PROBED


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_probes_of_one_group_of_each_kind_tell_a_better_plan_before_any_is_judged(seed: int) -> None:
    net = channels_of(convs((8, 8, 8, 8, 48, 48, 48, 48, 16, 16, 16, 16)))
    matters = np.repeat(np.random.default_rng(seed).permutation([-2.0, 0.0, 2.0]), 4)
    problem, best = hard(seed, net, matters)
    episodes = Episodes(problem, start_of(problem), 2)
    gained = []
    for number in (0, 4):
        episodes.probed, count = probe(problem, episodes.alike, number, lambda done, total: None, lambda: False)
        assert count == number
        with seeded(0) as generator:
            (aim,) = Learner(fresh(), episodes, Learning(), generator).aims(1)
        gained.append(rewards_of(problem)([episodes.space.counts(aim)])[0])
    assert gained[1] > max(0.1 * best, gained[0] + 0.5 * best)
