"""Every search meets the targets, obeys its seed and its budget, and bears the name of its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_nets import branches, convs, residual
from onnx import ModelProto

import onnxprune.search
from onnxprune import runtime, search
from onnxprune.channels import find_channels
from onnxprune.criteria import Evidence, importance
from onnxprune.errors import TargetError
from onnxprune.metrics import Costs
from onnxprune.model import analyse
from onnxprune.plan import Plan
from onnxprune.problem import FINE, Align, Problem
from onnxprune.search import SearchSettings, find, names
from onnxprune.settings import LARGEST_SEED
from onnxprune.targets import Target

SEARCHES = names()


def problem_of(model: ModelProto, align: Align = FINE, **limits: float) -> Problem:
    channels = find_channels(analyse(model, Path(), runtime.evaluate, {}))
    costs = Costs(channels)
    original = costs.of([g.width for g in channels.groups])
    targets = [Target(metric, share * original[metric][0], str(share)) for metric, share in limits.items()]
    return Problem(channels, costs, targets, importance(Evidence(channels), "l2"), align)


def run(name: str, problem: Problem, budget: int = 10, seed: int = 0) -> tuple[Plan, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    plan = find(name)(problem, SearchSettings(budget, seed), lambda done, total: told.append((done, total)))
    return plan, told


def same(one: Plan, other: Plan) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.kept, other.kept, strict=True))


def test_the_searches_are_the_files_of_their_folder() -> None:
    folder = Path(onnxprune.search.__file__).parent
    assert sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__") == SEARCHES
    assert {"random", "uniform"} <= set(SEARCHES)
    for name in SEARCHES:
        assert find(name).__module__ == f"onnxprune.search.{name}"


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("limits", [{"macs": 0.5}, {"params": 0.3}, {"macs": 0.7, "params": 0.4}], ids=str)
def test_every_search_meets_every_target_and_comes_close_to_one(name: str, limits: dict[str, float]) -> None:
    for model in (convs(), residual(), branches()):
        problem = problem_of(model, Align(1), **limits)
        plan, _ = run(name, problem, 4)  # the first plan meets them already
        costs = problem.costs.of(plan.counts)
        left = [(t.limit - costs[t.metric][0]) / problem.original[t.metric] for t in problem.targets]
        larger = plan.counts + np.eye(len(plan.counts), dtype=np.int64)
        assert min(left) >= 0
        assert min(left) < 0.01 or not problem.meets(larger[plan.counts < problem.widths]).any()


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_gives_the_same_plan_for_the_same_seed(name: str) -> None:
    one, other = (run(name, problem_of(residual(), macs=0.4), 6, 7)[0] for _ in range(2))
    assert same(one, other)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_keeps_the_most_important_channels_of_each_group(name: str) -> None:
    problem = problem_of(branches(), macs=0.5)
    plan, _ = run(name, problem)
    assert same(plan, problem.plan(plan.counts))
    assert any(len(kept) < group.width for kept, group in zip(plan.kept, problem.channels.groups, strict=True))


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_refuses_a_target_that_cannot_be_met(name: str) -> None:
    with pytest.raises(TargetError, match="cannot be reached"):
        run(name, problem_of(convs(), macs=0.001))


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_tells_how_far_it_is_and_stays_within_its_budget(name: str) -> None:
    _, told = run(name, problem_of(convs(), macs=0.5), budget=9)
    assert told
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    (total,) = {total for _, total in told}
    assert 1 <= told[0][0] <= told[-1][0] <= total <= 9  # less where no plan is left that it does not know


def test_uniform_keeps_the_same_share_of_every_group() -> None:
    model = convs((64, 64, 96, 96, 128), image=(3, 6, 6))
    for share in (0.2, 0.5, 0.8):
        problem = problem_of(model, Align(1), macs=share)
        shares = run("uniform", problem)[0].counts / problem.widths
        assert shares.max() - shares.min() < 0.05
        assert shares.mean() == pytest.approx(np.sqrt(share), abs=0.06)  # MACs go with the square of the widths


def test_random_is_never_worse_than_its_first_draw_and_gains_with_the_budget() -> None:
    problem = problem_of(residual(), Align(1), macs=0.3)
    scores = [problem.score(run("random", problem, budget, seed=5)[0]) for budget in (1, 4, 16, 64)]
    assert (np.diff(scores) >= 0).all()
    assert scores[-1] > scores[0]


@pytest.mark.parametrize("name", SEARCHES)
def test_the_largest_seeds_are_seeds(name: str) -> None:
    for seed in (LARGEST_SEED, LARGEST_SEED - 1):
        problem = problem_of(convs(), macs=0.5)
        assert problem.meets(run(name, problem, 3, seed)[0].counts).all()


def test_random_draws_other_plans_for_another_seed() -> None:
    problem = problem_of(residual(), Align(1), macs=0.3)
    plans = [run("random", problem, 1, seed)[0] for seed in range(4)]
    assert not any(same(plans[0], plan) for plan in plans[1:])


def test_a_file_in_the_folder_is_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole_net.py").write_text(
        "from onnxprune.plan import whole\n\n"
        "def search(problem, settings, progress):\n    return whole(problem.channels)\n"
    )
    monkeypatch.setattr(search, "__path__", [*search.__path__, str(tmp_path)])
    assert "whole_net" in names()
    plan, _ = run("whole_net", problem_of(convs(), macs=0.5))
    np.testing.assert_array_equal(plan.counts, [16, 24, 32])
