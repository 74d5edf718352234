"""Plans are cut, repaired and run really, once each, on samples that nothing else has seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import Array, Builder
from onnx import ModelProto

from onnxprune import judging, runtime, statistics
from onnxprune.channels import Channels, find_channels
from onnxprune.data import Data, Split
from onnxprune.inputs import model_inputs
from onnxprune.judging import Candidates, digest, judge_on, repaired
from onnxprune.model import analyse
from onnxprune.original import Original
from onnxprune.plan import Plan, whole
from onnxprune.problem import Effort
from onnxprune.repair import stand_in
from onnxprune.statistics import collect
from onnxprune.surgery import cut

REPAIRS = ("least_squares", "bn", "none")
EFFORTS: tuple[Effort, ...] = ("probe", "quick", "full")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "user_cache_path", lambda name: tmp_path / name)


def network(batch: int | str = "N") -> ModelProto:
    """Two convolutions, one with a normalisation, and a classifier."""
    b = Builder()
    x = b.relu(b.norm(b.conv(b.input(batch, 3, 6, 6), 3, 8, 3, 3, pads=[1] * 4), 8))
    return b.done(b.head(b.relu(b.conv(x, 8, 10, 3, 3)), 10), rank=2)


def channels_of(model: ModelProto) -> Channels:
    return find_channels(analyse(model, Path(), runtime.evaluate, {}))


def drawn(channels: Channels, count: int, seed: int) -> Data:
    (value,) = model_inputs(channels.model)
    shape = (count, *channels.model.bound[value.name][1:])
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return Data({value.name: x}, (value,), None, None, "drawn", np.arange(count))


def parts_of(channels: Channels, *, calibration: int = 0, search: int = 1, holdout: int = 2, most: int = 300) -> Split:
    """Draw three parts, each from its own seed."""
    first, second, last = ((most, calibration), (most // 3, search), (most // 3, holdout))
    part = drawn(channels, *first)
    return Split(part, drawn(channels, *second), drawn(channels, *last), part, {})


def candidates(channels: Channels, parts: Split | None = None, **more: Any) -> Candidates:
    parts = parts_of(channels) if parts is None else parts
    return Candidates(channels, parts, collect(channels, parts.calibration), **more)


def keep(channels: Channels, *counts: int) -> Plan:
    """Keep the last channels of each group."""
    return Plan(tuple(np.arange(g.width)[g.width - n :] for g, n in zip(channels.groups, counts, strict=True)))


def plans_of(channels: Channels) -> list[Plan]:
    return [keep(channels, 4, 10), keep(channels, 8, 5), keep(channels, 5, 6)]


class Sessions:
    """Counts the models that run."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made = 0
        real = runtime.Session

        def session(*arguments: Any, **more: Any) -> runtime.Session:
            self.made += 1
            return real(*arguments, **more)

        patch.setattr(runtime, "Session", session)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("repair", REPAIRS)
def test_each_plan_is_judged_once(monkeypatch: pytest.MonkeyPatch, repair: str, effort: Effort) -> None:
    channels = channels_of(network())
    judged = candidates(channels, repair=repair)
    plans = plans_of(channels)
    first = judged.errors(plans, effort=effort)
    sessions = Sessions(monkeypatch)
    again = judged.errors([Plan(tuple(kept.astype(np.int32) for kept in plan.kept)) for plan in plans], effort=effort)
    assert first == again
    assert sessions.made == 0
    judged.errors([keep(channels, 6, 6)], effort=effort)
    assert sessions.made > 0
    assert len(set(first)) == 3


def test_the_order_in_which_plans_are_judged_changes_no_error() -> None:
    channels = channels_of(network())
    plans = plans_of(channels)
    forth = candidates(channels).errors(plans)
    back = candidates(channels).errors(plans[::-1])
    np.testing.assert_allclose(forth, back[::-1], rtol=1e-5)


def test_plans_of_as_many_channels_are_told_apart() -> None:
    a, b = Plan((np.asarray([0, 1]), np.asarray([2]))), Plan((np.asarray([0]), np.asarray([1, 2])))
    c = Plan((np.asarray([0, 2]), np.asarray([2])))
    assert len({digest(plan) for plan in (a, b, c)}) == 3
    assert digest(a) == digest(Plan((np.asarray([0, 1], np.int32), np.asarray([2]))))
    channels = channels_of(network())
    first, last = Plan((np.arange(4), np.arange(10))), Plan((np.arange(4, 8), np.arange(10)))
    errors = candidates(channels, repair="none").errors([first, last])
    assert errors[0] != errors[1]


@pytest.mark.parametrize("effort", EFFORTS)
def test_without_repair_the_plain_cut_is_judged(effort: Effort) -> None:
    channels = channels_of(network())
    parts = parts_of(channels)
    judged, judge = candidates(channels, parts, repair="none"), judge_on(channels, parts.search, 0)
    for plan, error in zip(plans_of(channels), judged.errors(plans_of(channels), effort=effort), strict=True):
        plain = cut(channels, plan, runtime.evaluate)
        assert judged.repaired(plan, plain) is plain
        assert error == pytest.approx(judge.judge(plain).error, rel=1e-6)
        assert error > 0


@pytest.mark.parametrize("repair", ["least_squares", "bn"])
def test_a_repaired_cut_is_judged_on_the_samples_of_the_search(repair: str) -> None:
    channels = channels_of(network())
    parts = parts_of(channels)
    judged, judge = candidates(channels, parts, repair=repair), judge_on(channels, parts.search, 0)
    original = Original(channels, parts.calibration)
    measured = collect(channels, parts.calibration)
    plan = keep(channels, 5, 6)
    smaller = cut(channels, plan, runtime.evaluate)
    full, quick, probe = (judged.errors([plan], effort=effort)[0] for effort in ("full", "quick", "probe"))
    assert full == pytest.approx(judge.judge(repaired(original, plan, smaller, repair)).error, rel=1e-4)
    few = Original(channels, parts.calibration, judging.QUICK_ROWS)
    assert quick == pytest.approx(judge.judge(repaired(few, plan, smaller, repair)).error, rel=1e-4)
    assert probe == pytest.approx(judge.judge(stand_in(measured, plan, smaller)).error, rel=1e-4)
    assert full != pytest.approx(probe, rel=0.01)


def test_repairs_are_worth_their_while_in_this_order() -> None:
    channels = channels_of(network())
    plan = keep(channels, 5, 6)
    errors = [candidates(channels, repair=repair).errors([plan], effort="full")[0] for repair in REPAIRS]
    (probe,) = candidates(channels).errors([plan], effort="probe")
    assert errors == sorted(errors)
    assert errors[0] < probe < errors[-1]


@pytest.mark.parametrize("repair", REPAIRS)
def test_the_whole_model_has_no_error(repair: str) -> None:
    channels = channels_of(network())
    judged = candidates(channels, repair=repair)
    exact: tuple[Effort, ...] = EFFORTS if repair != "bn" else ("probe", "full")  # bn takes spreads of the samples
    assert max(judged.errors([whole(channels)], effort=effort)[0] for effort in exact) < 1e-6


class Forbidden(Data):
    """Samples that nobody may look at."""

    def batches(self, size: int) -> Any:
        raise AssertionError("these samples were looked at")

    def take(self, indices: Array) -> Data:
        raise AssertionError("these samples were looked at")


def forbidden(data: Data) -> Data:
    return Forbidden(**vars(data))


def test_repair_sees_calibration_samples_only_and_the_judge_none_of_them() -> None:
    channels = channels_of(network())
    plan = keep(channels, 5, 6)
    usual = parts_of(channels)
    other_search, other_calibration = parts_of(channels, search=9), parts_of(channels, calibration=9)
    for repair in REPAIRS:
        one, searched, calibrated = (
            candidates(channels, parts, repair=repair) for parts in (usual, other_search, other_calibration)
        )
        smaller = cut(channels, plan, runtime.evaluate)
        made = [c.repaired(plan, smaller).SerializeToString() for c in (one, searched, calibrated)]
        assert made[0] == made[1]
        assert (made[0] == made[2]) == (repair == "none")
        errors = [
            c.errors([plan], effort=effort)[0] for effort in ("quick", "full") for c in (one, searched, calibrated)
        ]
        assert errors[0] != errors[1]
        assert errors[3] != errors[4]
        assert (errors[0] == errors[2]) == (errors[3] == errors[5]) == (repair == "none")


def test_nobody_sees_what_is_held_out() -> None:
    channels = channels_of(network())
    parts = parts_of(channels)
    closed = replace(parts, holdout=forbidden(parts.holdout))
    with pytest.raises(AssertionError, match="looked at"):
        next(iter(closed.holdout.batches(1)))
    for effort in EFFORTS:
        judged = candidates(channels, closed).errors(plans_of(channels), effort=effort)
        np.testing.assert_allclose(judged, candidates(channels, parts).errors(plans_of(channels), effort=effort))


def seen(judge: Any) -> int:
    """How many samples a judge compares on."""
    return int(judge.original_scores.samples)


@pytest.mark.parametrize(("macs", "expected"), [(1.0, 64), (1e12, 90)])
def test_single_groups_of_costly_models_are_judged_on_fewer_samples_but_on_some(
    monkeypatch: pytest.MonkeyPatch, macs: float, expected: int
) -> None:
    monkeypatch.setattr(judging, "PROBE_MACS", macs)
    monkeypatch.setattr(judging, "PROBE_SAMPLES", 90)
    judged = candidates(channels_of(network()))
    assert (seen(judged.judge), seen(judged._probe_judge)) == (100, expected)


@pytest.mark.parametrize(("macs", "expected"), [(1.0, 64), (1e12, 200)])
def test_candidates_of_costly_models_are_repaired_with_fewer_samples(
    monkeypatch: pytest.MonkeyPatch, macs: float, expected: int
) -> None:
    monkeypatch.setattr(judging, "QUICK_MACS", macs)
    monkeypatch.setattr(judging, "QUICK_SAMPLES", 200)
    judged = candidates(channels_of(network()))
    assert (len(judged._few.data), len(judged.original.data)) == (expected, 300)


def test_a_fixed_batch_is_filled_at_least_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "PROBE_MACS", 1.0)
    monkeypatch.setattr(judging, "FEWEST", 2)
    channels = channels_of(network(20))
    judged = candidates(channels)
    assert seen(judged._probe_judge) == 20
    errors = judged.errors(plans_of(channels), effort="probe") + judged.errors(plans_of(channels))
    assert np.isfinite(errors).all()
    assert min(errors) > 0


def test_a_repair_that_answers_worse_than_the_bare_cut_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(network())
    judged, plan = candidates(channels), keep(channels, 7, 9)
    smaller = cut(channels, plan, runtime.evaluate)
    assert judged.repaired(plan, smaller) is not smaller
    worse = candidates(channels)
    ruined = cut(channels, keep(channels, 1, 1), runtime.evaluate)
    monkeypatch.setattr(judging, "repaired", lambda *_: ruined)
    assert worse.repaired(plan, smaller) is smaller
    assert worse.errors([plan], effort="full") == [pytest.approx(worse.judge.judge(smaller).error)]


def test_what_was_repaired_last_is_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(network())
    judged, plan = candidates(channels), keep(channels, 4, 6)
    judged.errors([plan], effort="full")
    monkeypatch.setattr(judging, "repaired", lambda *_: pytest.fail("repaired again"))
    judged.repaired(plan, cut(channels, plan, runtime.evaluate))
