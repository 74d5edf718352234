"""``--latency``: met as measured, on machines that are made up, and once on this one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import CLASSES, convs, run, write

import onnxprune
from onnxprune import CompressSettings, attempts
from onnxprune.attempt import Attempt
from onnxprune.channels import Channels
from onnxprune.errors import InputError, TargetError
from onnxprune.limits import next_limit
from onnxprune.metrics import LATENCY, Costs
from onnxprune.model import Model
from onnxprune.plan import Plan
from onnxprune.predicting import kept
from onnxprune.predicting.device import Device
from onnxprune.predicting.features import Features
from onnxprune.predicting.predictor import Predictor
from onnxprune.predicting.samples import Samples, draw
from onnxprune.problem import Problem
from onnxprune.profiling.intervals import Interval
from onnxprune.progress import Progress
from onnxprune.search import SearchSettings, find, greedy
from onnxprune.targets import parse_target

IMAGE = (3, 8, 8)
ORIGINAL = 10.0  # milliseconds


@dataclass
class Machine:
    """What a run takes, given the share of the MACs: as it is predicted, and as it is measured in the end."""

    predicted: Callable[[Any], Any] = lambda share: 0.1 + 0.9 * share
    real: Callable[[float], float] = lambda share: 0.1 + 0.9 * share
    timed: int = 0

    def measure(self, channels: Channels, device: Device, seed: int, progress: Progress) -> Samples:
        counts = draw(channels, 36, seed)
        costs = Costs(channels)
        terms, nodes = Features(channels, costs).terms(counts), len(channels.model.graph.nodes)
        macs = costs.of(counts)["macs"]
        ms = ORIGINAL * self.predicted(macs / macs[0])
        own = np.zeros((len(counts), nodes + 1))
        features = Features(channels, costs)
        for node in range(nodes):
            own[:, node] = features.of_node(terms, node)[:, 1]
        return Samples(counts, ms, own * (ms / own.sum(axis=1))[:, None])

    def measure_beside(self, tried: Attempt, model: Model, device: Device) -> None:
        self.timed += 1
        share = self.real(tried.macs_share)
        tried.before = {"median": ORIGINAL, "p10": ORIGINAL, "p90": ORIGINAL}
        tried.after = dict.fromkeys(tried.before, ORIGINAL * share)
        tried.speedup = Interval(1 / share, 0.99 / share, 1.01 / share)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kept, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(kept, "measure", lambda *given: made.measure(*given))
    monkeypatch.setattr(attempts, "measure_beside", lambda *given: made.measure_beside(*given))
    write(convs((64, 96, 64, 48), image=IMAGE), Path("model.onnx"))
    generator = np.random.default_rng(0)
    np.savez("data.npz", x=generator.standard_normal((50, *IMAGE)).astype(np.float32))
    return made


def compress(share: str, data: str | None = None, **asked: Any) -> onnxprune.reporting.Report:  # type: ignore[name-defined]
    asked = {"search": "random", "budget": 5, **asked}  # how plans are found does not matter here
    settings = CompressSettings({LATENCY: share, **asked.pop("targets", {})}, **asked)
    return onnxprune.compress("model.onnx", "small.onnx", settings, data=data, force=True)


def time_share(report: Any) -> float:
    return float(report.after.latency_ms["median"] / report.before.latency_ms["median"])


@pytest.mark.parametrize("data", [None, "data.npz"])
@pytest.mark.parametrize("share", ["0.5", "30%", "5ms"])
def test_the_time_asked_for_is_met_where_predictions_are_right(machine: Machine, share: str, data: str | None) -> None:
    wanted = {"0.5": 0.5, "30%": 0.3, "5ms": 0.5}[share]
    assert time_share(compress(share, data)) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("data", [None, "data.npz"])
@pytest.mark.parametrize("bias", [0.7, 1.4])
def test_predictions_that_are_off_are_found_out_and_made_up_for(
    machine: Machine, bias: float, data: str | None
) -> None:
    machine.real = lambda share: (0.1 + 0.9 * share) ** bias
    report = compress("0.4", data)
    assert time_share(report) == pytest.approx(0.4, rel=0.06)
    assert machine.timed > 1


@pytest.mark.parametrize(("name", "part"), [("gnn_rl", 0.25), ("evolution", 1)])
def test_a_search_that_learns_from_what_is_known_is_done_again_with_a_quarter_of_the_budget(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str, part: float
) -> None:
    budgets, known, search = list[int](), list[int](), find(name)

    def noted(problem: Problem, settings: SearchSettings, progress: Any) -> Plan:
        budgets.append(settings.budget)
        known.append(len(problem.known))
        return search(problem, settings, progress)

    monkeypatch.setattr(f"onnxprune.search.{name}.search", noted)
    monkeypatch.setattr(attempts.Attempts, "_try_prediction", lambda self: None)
    machine.real = lambda share: (0.1 + 0.9 * share) ** 1.4
    report = compress("0.4", "data.npz", search=name, budget=12)
    assert time_share(report) == pytest.approx(0.4, rel=0.06)
    assert len(budgets) > 1
    assert budgets == [12] + [12 * part] * (len(budgets) - 1)
    assert known[1] > known[0] == 0


def test_a_dry_run_tells_the_limit_that_was_asked_for(machine: Machine) -> None:
    machine.real = lambda share: (0.1 + 0.9 * share) ** 0.7
    asked = CompressSettings({LATENCY: "0.4"}, search="random", budget=5)
    report = onnxprune.compress("model.onnx", "small.onnx", asked, data="data.npz", dry_run=True)
    assert report.target[LATENCY]["limit"] == pytest.approx(0.4 * 1000 * ORIGINAL, rel=0.1)


def test_a_limit_that_moves_below_the_fastest_plan_stops_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts.Attempts, "_try_macs", lambda self: None)
    machine.predicted = lambda share: 0.6 + 0.4 * share
    machine.real = lambda share: 1.15 * (0.6 + 0.4 * share)
    assert time_share(compress("0.69")) < 0.73


def test_a_plan_that_takes_longer_than_asked_is_taken_only_where_no_other_is_left(machine: Machine) -> None:
    machine.real = lambda share: 0.8 if share > 0.35 else 0.2
    assert time_share(compress("0.5")) == 0.2


@pytest.mark.parametrize("data", [None, "data.npz"])
def test_a_plan_for_flops_is_taken_where_predictions_prefer_the_wrong_groups(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, data: str | None
) -> None:
    """Predictions say that one group alone takes all the time; really all of it goes with the MACs."""
    monkeypatch.setattr(Predictor, "ms", lambda self, counts: ORIGINAL * (0.02 + np.atleast_2d(counts)[:, 0] / 65))
    report = compress("0.5", data, search="greedy")
    assert time_share(report) == pytest.approx(0.5, rel=0.06)
    assert sum(group["kept"] < group["width"] for group in report.groups) > 1


def test_a_time_that_no_plan_comes_to_is_said(machine: Machine) -> None:
    machine.real = lambda share: 0.9
    report = compress("0.5")
    assert any("90.0% of the time of a run were measured, 50.0% were asked for" in note for note in report.notes)
    assert report.target[LATENCY]["reached"] == pytest.approx(0.9 * 10_000, rel=0.1)
    assert report.target[LATENCY]["limit"] == pytest.approx(0.5 * 10_000, rel=0.1)


@pytest.mark.parametrize("measured", [1, 2])
def test_an_interrupted_run_ends_where_it_would_have_though_no_two_measurements_agree(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, measured: int
) -> None:
    noise, stops = [1.5, 0.7, 1.25, 0.9, 1.1, 1.0] * 3, set[int]()

    def noisy(tried: Attempt, model: Model, device: Device) -> None:
        if machine.timed in stops:
            stops.clear()
            raise KeyboardInterrupt
        by = noise[machine.timed]
        machine.real = lambda share: by * (0.1 + 0.9 * share)
        machine.measure_beside(tried, model, device)

    monkeypatch.setattr(attempts, "measure_beside", noisy)
    quickly = {"criterion": "l2", "repair": "none"}
    whole = compress("0.4", "data.npz", **quickly).to_json()
    machine.timed = 0
    stops.add(measured)
    with pytest.raises(KeyboardInterrupt):
        compress("0.4", "data.npz", **quickly)
    again = onnxprune.resume("model.onnx", out="small.onnx", force=True).to_json()
    assert [again[name] for name in ("target", "after", "speedup", "groups")] == [
        whole[name] for name in ("target", "after", "speedup", "groups")
    ]


def test_a_cut_that_brings_little_time_says_where_it_went(machine: Machine) -> None:
    machine.real = lambda share: 0.95
    report = onnxprune.compress("model.onnx", "small.onnx", CompressSettings({"macs": "0.3"}, align=3))
    assert report.speedup is not None
    assert report.speedup["ideal"] > 3 > report.speedup["high"]
    assert any("no multiple of 4" in note for note in report.notes)


def test_several_targets_hold_at_once(machine: Machine) -> None:
    report = compress("0.5", targets={"params": "0.3"})
    assert report.after.params <= 0.3 * report.before.params
    assert time_share(report) <= 0.5 * 1.05
    assert machine.timed == 2  # the other target holds it down, so no limit of the time or of the MACs is to blame


@pytest.mark.parametrize("data", [None, "data.npz"])
def test_what_cannot_be_reached_is_said_with_the_lowest_that_can(machine: Machine, data: str | None) -> None:
    machine.predicted = lambda share: 0.6 + 0.4 * share
    text = r"--latency 0\.3 cannot be reached: the lowest is 0\.\d+ of the original \(\d\.\d+ of 9\.\d+ ms\)"
    with pytest.raises(TargetError, match=text):
        compress("0.3", data)
    assert not Path("small.onnx").exists()


@pytest.mark.parametrize("data", [None, "data.npz"])
def test_what_predictions_reach_and_no_plan_does_ends_with_the_fastest_and_a_note(
    machine: Machine, data: str | None
) -> None:
    machine.predicted = lambda share: 0.6 + 0.4 * share
    machine.real = lambda share: 0.9 + 0.1 * share
    report = compress("0.63", data)
    assert time_share(report) < 0.92
    assert any("were measured, 63.0% were asked for; no plan came closer" in note for note in report.notes)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"verify": "none"}, "leave --verify none and --steps out"),
        ({"provider": "abacus"}, "this onnxruntime has no abacus"),
        ({"batch": 0}, "--batch 1 or more"),
        ({"threads": -1}, "--threads must be 0 or more"),
    ],
)
def test_what_makes_no_sense_with_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(convs(), Path("model.onnx"))
    with pytest.raises(InputError, match=words):
        compress("0.5", **asked)


@pytest.mark.parametrize(
    ("text", "limit"),
    [("0.5", 5000), ("50%", 5000), ("5ms", 5000), ("700us", 700), ("0.002s", 2000), ("1", 10000)],
)
def test_times_are_read_with_their_units(text: str, limit: float) -> None:
    assert parse_target(LATENCY, text, 10_000).limit == pytest.approx(limit)


@pytest.mark.parametrize("text", ["5", "1.5", "5m", "5MB", "fast", "-1ms", "0ms"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"--latency .*(5ms|above 0)"):
        parse_target(LATENCY, text, 10_000)


def test_limits_are_scaled_until_there_is_one_on_either_side_and_halved_then() -> None:
    assert next_limit([(100, 0.8)], 0.4) == pytest.approx(50)
    assert next_limit([(100, 0.8), (50, 0.2)], 0.4) == pytest.approx(100 / 2**0.5)
    assert 0 < next_limit([(100, 0.8), (50, 0.0)], 0.4) < 100  # too little to be measured
    assert 100 < next_limit([(100, 0.0)], 0.4) < np.inf
    assert next_limit([(100, 0.2), (50, 0.8)], 0.4) == pytest.approx(25)  # noise: nothing to interpolate between


def test_a_group_whose_next_step_saves_nothing_loses_several_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times fall in stairs of 32 channels, but for one group whose channels matter most, and steps are of 8.

    One step at a time is blind to what the fourth of them saves, and takes all from the one group.
    """
    from onnxprune.channels import find_channels
    from onnxprune.model import load
    from onnxprune.runtime import evaluate

    channels = find_channels(load(Path("model.onnx"), evaluate))
    costs = Costs(channels)
    worth = [np.full(group.width, 10.0 if at == 0 else 1.0) for at, group in enumerate(channels.groups)]

    def stairs(counts: Any) -> Any:
        counts = np.concatenate([counts[:, :1], np.ceil(counts[:, 1:] / 32) * 32], axis=1)
        return costs.macs_sum.terms(costs.table.sizes(counts)).sum(axis=1)

    costs.predicted[LATENCY] = stairs
    whole = float(costs.of([group.width for group in channels.groups])[LATENCY][0])
    problem = Problem(channels, costs, [parse_target(LATENCY, "0.3", whole)], worth)
    seeing = greedy.descend(problem)
    monkeypatch.setattr(greedy, "AHEAD", 1)
    blind = greedy.descend(problem)
    assert problem.meets(np.stack([seeing, blind])).all()
    assert problem.kept_importance(problem.plan(seeing)) > 1.05 * problem.kept_importance(problem.plan(blind))


@pytest.mark.parametrize("asked", [0, 2000, "fast", "-1"])
def test_a_multiple_is_a_number_or_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: object) -> None:
    monkeypatch.chdir(tmp_path)
    write(convs(), Path("model.onnx"))
    assert run("compress", "model.onnx", "--flops", 0.5, "--align", asked).code == 2
    with pytest.raises(InputError, match="--align 0: give 1 or more, or auto"):
        onnxprune.compress("model.onnx", "small.onnx", CompressSettings({"macs": "0.5"}, align=0))


def test_widths_are_what_was_found_to_be_fast(machine: Machine) -> None:
    outcome = run("compress", "model.onnx", "--flops", 0.5, "--align", "auto", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert "Widths are multiples of 1, as no coarser ones are faster." in outcome.out
    report = json.loads(Path("small.report.json").read_text())
    assert {group["step"] for group in report["groups"]} == {1}


def test_on_this_machine_the_command_makes_a_faster_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.predicting import samples

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples, "PLANS", 16)
    monkeypatch.setattr(samples, "SECONDS", 0.05)
    write(convs((128, 128, 128, 128), image=(3, 16, 16), classes=CLASSES), Path("model.onnx"))
    outcome = run("compress", "model.onnx", "--latency", 0.4, "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    for words in ("predicted, with a mean error of", "of the time of a run", "faster"):
        assert words in outcome.out
    report = json.loads(Path("small.report.json").read_text())
    assert report["after"]["latency_ms"]["median"] < 0.7 * report["before"]["latency_ms"]["median"]
    assert report["target"][LATENCY]["asked"] == "0.4"
