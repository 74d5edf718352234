"""A search on its way: stopped when its time is up or nothing better comes, and always with a plan."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cli_nets import convs, dense, run, write
from onnx import ModelProto

from onnxprune import attempts, runtime
from onnxprune.channels import find_channels
from onnxprune.course import PATIENCE, TIME_IS_UP, Course
from onnxprune.criteria import Evidence, importance
from onnxprune.errors import InputError
from onnxprune.journal import Journal
from onnxprune.metrics import Costs
from onnxprune.model import analyse
from onnxprune.plan import Plan
from onnxprune.problem import Align, Effort, Problem
from onnxprune.progress import Quiet
from onnxprune.search import SearchSettings, find, greedy
from onnxprune.settings import CompressSettings, parse_seconds, resolve
from onnxprune.targets import Target


class Told(Quiet):
    """Remembers what it is told of a stage."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str]] = []

    def step(self, done: int, total: int, text: str = "", limit: float | None = None) -> None:
        self.lines.append((done, total, text))


class Judge:
    """Answers with what it is given, then worse and worse, and takes a second for each plan."""

    def __init__(self, *errors: float) -> None:
        self.given = list(errors)
        self.now = 0.0

    def errors(self, plans: Sequence[Plan], *, effort: Effort = "quick") -> list[float]:
        self.now += len(plans)
        return [self.given.pop(0) if self.given else 100 + self.now for _ in plans]

    def clock(self) -> float:
        return self.now


def posed(judge: Judge | None, model: ModelProto | None = None) -> tuple[Problem, Journal | None]:
    channels = find_channels(analyse(model or convs(), Path(), runtime.evaluate, {}))
    costs = Costs(channels)
    limit = 0.5 * float(costs.of([group.width for group in channels.groups])["macs"][0])
    journal = None if judge is None else Journal(judge, clock=judge.clock)
    targets = [Target("macs", limit, "0.5")]
    return Problem(channels, costs, targets, importance(Evidence(channels), "l2"), Align(1), judging=journal), journal


def searched(
    name: str, judge: Judge | None, budget: int = 200, limit: float | None = None, told: Told | None = None
) -> tuple[Plan, Course, Problem]:
    problem, journal = posed(judge)
    course = Course(problem, budget, limit, lambda: 0.0 if journal is None else journal.seconds, told or Told())
    plan = find(name)(problem, SearchSettings(budget, 0, course.stop), course.step)
    return plan, course, problem


def test_a_search_that_finds_nothing_better_any_more_is_stopped_with_its_best() -> None:
    plan, course, problem = searched("random", Judge(5, 4, 3), budget=200)
    # eight are asked for together, and what it comes to again does not count
    assert re.fullmatch(r"none of the last 10\d plans that it tried was better", course.stopped)
    assert problem.score(plan) == -3
    assert not searched("random", Judge(5, 4, 3), budget=PATIENCE + 2)[1].stopped
    assert searched("random", Judge(5, 4, 3), budget=PATIENCE + 50)[1].stopped


def test_every_better_plan_makes_it_go_on() -> None:
    _, course, _ = searched("random", Judge(*np.arange(500, 350, -1.0)), budget=150)
    assert course.stopped == ""


def test_only_plans_that_meet_the_targets_count_as_better() -> None:
    problem, _ = posed(Judge(*np.arange(500, 0, -1.0)), convs((8,) * PATIENCE, image=(3, 4, 4)))
    course = Course(problem, 10, None, lambda: 0.0, Told())
    plans = [problem.plan(problem.most - row) for row in np.eye(PATIENCE, dtype=np.int64)]
    problem.scores(plans[:-1] * 2)
    assert not course.stop()  # one that is judged again is no other plan
    problem.scores(plans)
    assert course.stop()


def test_without_data_a_search_is_stopped_as_well() -> None:
    _, course, _ = searched("random", None, budget=150)
    assert course.stopped.startswith("none of the last")


@pytest.mark.parametrize("limit", [1, 20, 40])
def test_a_search_is_stopped_when_its_time_is_up(limit: float) -> None:
    judge = Judge(*np.arange(500, 0, -1.0))
    plan, course, problem = searched("random", judge, limit=limit)
    assert course.stopped == TIME_IS_UP
    assert limit <= judge.now <= limit + 1  # no plan begins after that
    assert problem.meets(plan.counts)[0]


def test_greedy_leaves_out_probes_when_its_time_is_up_and_still_gives_a_plan() -> None:
    many = convs((8,) * 12, image=(3, 4, 4))
    for limit, probes in ((None, 12), (3.0, 3)):
        judge = Judge()
        problem, journal = posed(judge, model=many)
        assert journal is not None
        course = Course(problem, 200, limit, partial(getattr, journal, "seconds"), Told())
        plan = find("greedy")(problem, SearchSettings(200, 0, course.stop), course.step)
        assert problem.meets(plan.counts)[0]
        assert journal.judged["probe"] == probes
        assert course.stopped == ("" if limit is None else TIME_IS_UP)


def test_greedy_tells_that_its_time_was_up_among_its_last_plans() -> None:
    judge = Judge()
    problem, journal = posed(judge)
    assert journal is not None
    probes = len(greedy.probes(problem))
    told = Told()
    course = Course(problem, 200, probes + 1.0, partial(getattr, journal, "seconds"), told)
    find("greedy")(problem, SearchSettings(200, 0, course.stop), course.step)
    assert journal.judged == {"probe": probes, "quick": 1}
    assert told.lines[-1][:2] == (probes + 1, probes + 1)
    assert course.stopped == TIME_IS_UP


def test_progress_tells_the_best_so_far_and_what_it_keeps() -> None:
    told = Told()
    _, _, problem = searched("random", Judge(0.5, 0.25, 0.375, *np.arange(1, 100.0)), budget=16, told=told)
    share = float(problem.costs.of(list(problem.visited.values())[1][0].counts)["macs"][0]) / problem.original["macs"]
    assert told.lines[-1] == (16, 16, f"best error 0.25 at {share:.1%} of the FLOPs")
    searched("random", None, budget=8, told=told)
    assert told.lines[-1] == (8, 8, "")


def test_progress_goes_on_with_every_plan_of_a_batch() -> None:
    told = Told()
    searched("random", Judge(*np.arange(1, 100.0)), budget=24, told=told)
    assert {total for _, total, _ in told.lines} == {24}
    counted = [done for done, *_ in told.lines]
    assert counted == sorted(counted)
    assert set(counted) == set(range(1, 25))


def test_greedy_tells_of_its_best_in_the_end() -> None:
    told = Told()
    searched("greedy", Judge(1, 1, 1, 1, 0.125), told=told)
    assert told.lines[-1][0] == told.lines[-1][1]
    assert told.lines[-1][2].startswith("best error 0.125 at ")


# ---- what the user asks for and reads


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), (" 5 M", 300)]
)
def test_times_are_read_in_seconds_minutes_and_hours(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "10 minutes", "-5", "1d", "nan", "1e3"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--time-limit .*: give seconds"):
        parse_seconds(text)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_time_must_be_above_nothing(seconds: float) -> None:
    with pytest.raises(InputError, match="--time-limit"):
        resolve(CompressSettings({"macs": "0.5"}, time_limit=seconds), has_data=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(dense(), Path("model.onnx"))
    np.save("x.npy", np.random.default_rng(1).standard_normal((300, 20)).astype(np.float32))
    return tmp_path


def test_the_report_says_that_a_search_was_stopped_and_how_much_was_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.course.PATIENCE", 8)
    options = ("--flops", 0.5, "--data", "x.npy", "--align", 1, "--search", "random", "--budget", 16)
    assert run("compress", "model.onnx", *options, "--time-limit", "0.000001", "-o", "one.onnx").code == 0
    report = json.loads(Path("one.report.json").read_text())
    assert report["search"]["stopped"] == TIME_IS_UP
    assert report["search"]["judged"] == {"quick": 1}
    assert f"the search was stopped early: {TIME_IS_UP}; one plan was judged in all" in report["notes"]
    assert report["settings"]["time_limit"] == 1e-6
    assert run("compress", "model.onnx", *options, "-o", "two.onnx").code == 0
    report = json.loads(Path("two.report.json").read_text())
    assert report["search"]["judged"]["quick"] > 8
    assert report["search"]["judged"]["full"] == attempts.FINALISTS
    assert not any("stopped early" in note for note in report["notes"])
