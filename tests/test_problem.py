"""Targets, steps, and plans that meet their targets as closely as single steps allow."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_nets import branches, convs, dense, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Builder
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.channels import Group, find_channels
from onnxprune.criteria import Evidence, importance
from onnxprune.errors import InputError, TargetError
from onnxprune.metrics import Costs
from onnxprune.model import analyse
from onnxprune.plan import whole
from onnxprune.problem import FINE, SLACK, Align, Problem, describe_reason, step_of
from onnxprune.targets import Target, parse_target


def wide_convs() -> ModelProto:
    return convs((64, 64, 96, 96, 128), image=(3, 6, 6))


def odd_convs() -> ModelProto:
    return convs((7, 13, 2, 31), image=(3, 6, 6))


NETS: dict[str, Callable[[], ModelProto]] = {
    net.__name__: net for net in (branches, convs, dense, odd_convs, residual, wide_convs)
}
ALIGNMENTS = {
    "1": Align(1),
    "4": Align(4),
    "fine": FINE,
    "coarse": Align(16, 2),
    "coarse, then fine": Align(16, 2, rest=FINE),
}


@functools.cache
def problem_of(name: str, align: Align = FINE, min_keep: int = 1) -> Problem:
    """Set a problem up, without targets."""
    channels = find_channels(analyse(NETS[name](), Path(), runtime.evaluate, {}))
    return Problem(channels, Costs(channels), [], importance(Evidence(channels), "l2"), align, min_keep)


def with_targets(problem: Problem, **limits: float) -> Problem:
    """Set targets, as shares of the original."""
    problem.targets = tuple(
        Target(metric, share * problem.original[metric], str(share)) for metric, share in limits.items()
    )
    return problem


def lowest_share(problem: Problem, metric: str) -> float:
    return problem.lowest()[metric] / problem.original[metric]


def open_share(problem: Problem, counts: np.ndarray) -> float:
    """The share of the original's cost that the tightest target leaves open."""
    costs = problem.costs.of(counts)
    return min((t.limit - costs[t.metric][0]) / problem.original[t.metric] for t in problem.targets)


def single_steps(problem: Problem, counts: np.ndarray) -> np.ndarray:
    """Every plan that is one step larger in one group."""
    steps = problem.steps if problem.fine is None else problem.fine
    grown = np.minimum(counts + np.diag(steps), problem.widths)
    return grown[[bool((row != counts).any()) for row in grown]]


# ---- fit


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("name", NETS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_fit_meets_the_targets_and_leaves_no_step_that_would_fit(name: str, align: str, data: st.DataObject) -> None:
    problem = problem_of(name, ALIGNMENTS[align])
    metrics = data.draw(st.sampled_from([("macs",), ("params",), ("macs", "params"), ("macs", "activation_bytes")]))
    ratios = data.draw(
        st.lists(st.floats(0, 1), min_size=len(problem.widths), max_size=len(problem.widths)), label="ratios"
    )
    with_targets(
        problem, **{m: data.draw(st.floats(min(1, lowest_share(problem, m) + 1e-9), 1), label=m) for m in metrics}
    )
    counts = problem.fit(ratios)

    costs = problem.costs.of(counts)
    assert all(costs[t.metric][0] <= t.limit * (1 + 1e-9) for t in problem.targets)
    assert (counts >= problem.least).all()
    assert (counts <= problem.widths).all()
    steps = problem.steps if problem.fine is None else np.gcd(problem.fine, problem.steps)
    assert ((counts % steps == 0) | (counts == problem.widths)).all()
    larger = single_steps(problem, counts)
    assert open_share(problem, counts) < 0.01 or not problem.meets(larger).any()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("name", ["wide_convs", "residual"])
def test_fit_comes_within_one_percent_of_the_target_in_nets_of_usual_width(name: str, share: float) -> None:
    problem = with_targets(problem_of(name, Align(1)), macs=share)
    assert 0 <= open_share(problem, problem.fit(np.ones(len(problem.widths)))) < 0.01


def test_fit_at_the_lowest_reachable_cost_keeps_the_least_and_at_the_whole_keeps_all() -> None:
    for name in NETS:
        problem = problem_of(name)
        ratios = np.linspace(0.2, 1, len(problem.widths))
        with_targets(problem, macs=lowest_share(problem, "macs"))
        np.testing.assert_array_equal(problem.fit(ratios), problem.least)
        with_targets(problem, macs=1.0, params=1.0)
        np.testing.assert_array_equal(problem.fit(ratios), problem.widths)


def test_fit_gives_equal_shares_for_equal_wishes() -> None:
    problem = with_targets(problem_of("wide_convs", Align(1)), macs=0.5)
    for wish in (0.1, 1.0, 5.0):
        shares = problem.fit(np.full(5, wish)) / problem.widths
        assert shares.max() - shares.min() < 0.05


def test_fit_gives_shares_in_the_proportion_of_the_wishes() -> None:
    problem = with_targets(problem_of("wide_convs", Align(1)), macs=0.2)
    wishes = np.array([1.0, 0.8, 0.6, 0.4, 0.2])
    shares = problem.fit(wishes) / problem.widths
    np.testing.assert_allclose(shares / shares[0], wishes, atol=0.08)


def test_fit_costs_no_less_for_a_looser_target() -> None:
    for name in NETS:
        for align in ALIGNMENTS.values():
            problem = problem_of(name, align)
            found = []
            for share in np.linspace(max(0.1, lowest_share(problem, "macs")), 1, 12):
                with_targets(problem, macs=float(share))
                found.append(problem.costs.of(problem.fit(np.ones(len(problem.widths))))["macs"][0])
            coarsest = problem._step_macs(problem.steps).max()
            assert (np.diff(found) >= -0.01 * problem.original["macs"] - coarsest).all()
            assert found[-1] == problem.original["macs"]
            assert found[0] < found[-1]


def test_fit_keeps_no_fewer_channels_of_a_group_that_is_wished_for_more() -> None:
    problem = with_targets(problem_of("wide_convs", Align(1)), macs=0.4)
    even = problem.fit(np.full(5, 0.5))
    for group in range(5):
        wishes = np.full(5, 0.5)
        wishes[group] = 1.0
        assert problem.fit(wishes)[group] > even[group]


def test_fit_holds_all_of_several_targets_and_the_tightest_decides() -> None:
    problem = problem_of("wide_convs", Align(1))
    with_targets(problem, macs=0.5)
    loose = problem.fit(np.ones(5))
    params = problem.costs.of(loose)["params"][0] / problem.original["params"]
    with_targets(problem, macs=0.5, params=0.99)
    np.testing.assert_array_equal(problem.fit(np.ones(5)), loose)
    with_targets(problem, macs=0.5, params=params / 2)
    tight = problem.fit(np.ones(5))
    assert 0 <= open_share(problem, tight) < 0.01
    assert (tight < loose).all()


def test_fit_minds_the_fewest_channels_that_are_to_be_kept() -> None:
    problem = with_targets(problem_of("wide_convs", Align(4), min_keep=30), macs=0.3)
    np.testing.assert_array_equal(problem.least, [32] * 5)
    assert (problem.fit([0.01, 1, 1, 1, 1]) >= 32).all()
    wider = problem_of("wide_convs", Align(1), min_keep=100)
    np.testing.assert_array_equal(wider.least, [64, 64, 96, 96, 100])


def test_a_target_that_cannot_be_met_is_refused_with_the_lowest_value() -> None:
    problem = problem_of("wide_convs", Align(1), min_keep=30)
    with_targets(problem, macs=0.5, params=lowest_share(problem, "params") * 0.99)
    lowest = problem.lowest()["params"]
    with pytest.raises(TargetError, match=r"--params .* cannot be reached: the lowest is") as caught:
        problem.fit(np.ones(5))
    assert f"({lowest:,.0f} of {problem.original['params']:,.0f})" in str(caught.value)
    assert "largest frozen parts: head" in str(caught.value)
    assert "model output 'logits'" in str(caught.value)
    with pytest.raises(TargetError):
        problem.check_reachable()
    share = re.search(r"the lowest is ([0-9.]+) of the original", str(caught.value))
    assert share is not None
    with_targets(problem, macs=0.5, params=float(share[1])).check_reachable()
    assert "--align 1 with --min-keep 1 reaches it" in str(caught.value)
    with pytest.raises(TargetError) as caught:
        with_targets(problem, macs=1e-6).check_reachable()
    assert "--align" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(NETS))
@pytest.mark.parametrize(("align", "min_keep"), [(Align(1), 1), (FINE, 1), (Align(8), 5), (FINE, 0)], ids=str)
def test_plans_are_admitted_that_searches_come_to_and_no_others(name: str, align: Align, min_keep: int) -> None:
    problem = with_targets(problem_of(name, align, min_keep), macs=0.7)
    rng = np.random.default_rng(0)
    plans = np.asarray([problem.fit(rng.uniform(0.1, 1, len(problem.widths))) for _ in range(20)])
    assert problem.admits(plans).all()
    unit = np.eye(len(problem.widths), dtype=np.int64)
    smaller = plans[0] - unit[plans[0] > 0]
    odd = (smaller % problem.steps != 0).any(axis=1)
    assert not problem.admits(smaller)[odd].any()
    assert odd.any() == (problem.steps > 1).any()
    assert not problem.admits(problem.most[None]).any()  # which costs too much
    assert not problem.admits(np.asarray([problem.least - problem.steps, problem.widths + problem.steps])).any()
    if problem.depth is not None:
        ends = [end for end, along in problem.depth.takes_along.items() if along]
        for end in ends:
            row = np.where(unit[end] == 1, 0, plans[0])
            closed = problem.depth.closed(row)
            assert problem.admits(closed[None])[0]
            assert (row == closed).all() or not problem.admits(row[None])[0]


def test_a_plan_without_a_whole_branch_is_admitted() -> None:
    b = Builder(seed=2)
    x = b.stem(8)
    y = b.relu(b.norm(b.conv(x, 8, 4), 4))
    y = b.relu(b.norm(b.conv(y, 4, 6, 3, 3, pads=[1] * 4), 6))
    x = b.node("Add", b.norm(b.conv(y, 6, 8), 8), x)
    channels = find_channels(analyse(b.done(b.head(b.relu(x), 8)), Path(), runtime.evaluate, {}))
    problem = Problem(channels, Costs(channels), [], importance(Evidence(channels), "l2"), Align(1), min_keep=0)
    assert problem.depth is not None
    with_targets(problem, macs=0.4)
    plan = problem.fit([1.0, 0.0, 0.0])
    assert plan.tolist()[1:] == [0, 0]
    assert problem.least.tolist() != [0, 0, 0]  # the one in front of the branch's end goes because nobody reads it
    assert problem.admits(plan[None])[0]
    assert not problem.admits(np.asarray([[plan[0], 0, 1]]))[0]


def slow_for_parts_of_blocks(counts: np.ndarray) -> np.ndarray:
    """Microseconds on a machine whose kernels take twice as long where a block of four channels is not full."""
    return (np.ceil(np.atleast_2d(counts) / 4) * np.where(np.atleast_2d(counts) % 4, 2.0, 1.0)).sum(axis=1)


@pytest.mark.parametrize(("align", "limit"), [(FINE, 3.0), (Align(3), 15.0)])
def test_a_time_is_reached_by_widths_that_are_fast_where_others_are_not(align: Align, limit: float) -> None:
    channels = problem_of("convs").channels  # of 16, 24 and 32
    costs = Costs(channels)
    costs.predicted["latency_us"] = slow_for_parts_of_blocks
    worth = importance(Evidence(channels), "l2")
    problem = Problem(channels, costs, [Target("latency_us", limit, "t")], worth, align)
    problem.check_reachable()
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert problem.meets(problem.fit(rng.uniform(0.1, 1, len(problem.widths))))[0]


def test_a_plan_that_meets_one_target_but_not_the_other_does_not_meet_both() -> None:
    problem = with_targets(problem_of("wide_convs", Align(1)), macs=0.5, params=0.9)
    narrow_front, narrow_back = [8, 8, 96, 96, 128], [64, 64, 96, 96, 20]
    found = problem.costs.of([narrow_front, narrow_back])
    cheap = [found[m] <= s * problem.original[m] for m, s in (("macs", 0.5), ("params", 0.9))]
    np.testing.assert_array_equal(problem.meets([narrow_front, narrow_back]), cheap[0] & cheap[1])
    assert problem.meets(problem.least).tolist() == [True]
    assert problem.meets(problem.widths).tolist() == [False]


# ---- targets


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.3", 300e6),
        (".3", 300e6),
        (" 0.30 ", 300e6),
        ("1", 1e9),
        ("1.0", 1e9),
        ("30%", 300e6),
        ("100%", 1e9),
        ("0.5%", 5e6),
        ("300M", 300e6),
        ("300m", 300e6),
        ("0.3G", 300e6),
        ("300000k", 300e6),
        ("300 M", 300e6),
        ("0.0003T", 300e6),
        ("300000000", 300e6),
        ("3e8", 300e6),
        ("2G", 2e9),
        ("1000", 1000),
        ("1k", 1000),
    ],
)
def test_a_target_reads_as_a_share_or_an_absolute_number(text: str, limit: float) -> None:
    target = parse_target("macs", text, 1e9)
    assert target.metric == "macs"
    assert target.limit == pytest.approx(limit)
    assert target.text == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0",
        "0.0",
        "0%",
        "0M",
        "-0.3",
        "1.01",
        "2",
        "999",
        "101%",
        "2000%",
        "1e400",
        "inf",
        "nan",
        "0.3x",
        "1,5",
    ],
)
def test_a_target_that_makes_no_sense_names_its_option(text: str) -> None:
    with pytest.raises(InputError, match=r"^--params .*give a fraction|^--params .*a fraction is at most 1"):
        parse_target("params", text, 1e9)


def test_a_target_on_what_the_model_has_none_of_is_refused() -> None:
    with pytest.raises(InputError, match=r"--flops 0\.5: the model has none at all"):
        parse_target("macs", "0.5", 0)


# ---- steps


@pytest.mark.parametrize(
    ("width", "multiplicity", "align", "step"),
    [
        (64, [1], Align(8), 8),
        (64, [1, 1, 1], Align(16), 16),
        (64, [1], Align(1), 1),
        (6, [1], Align(8), 6),  # never more than there are
        (64, [2], Align(8), 4),  # a channel that takes two indices along: four of them are eight
        (64, [8, 16], Align(8), 1),
        (64, [8, 1], Align(8), 8),  # the axis with one index each decides
        (64, [6], Align(8), 4),
        (64, [3], Align(8), 8),
        (64, [1], FINE, 8),
        (63, [1], FINE, 4),  # at most an eighth of the width
        (32, [1], FINE, 4),
        (16, [1], FINE, 2),
        (15, [1], FINE, 1),
        (2, [1], FINE, 1),
        (32, [2], FINE, 4),
        (32, [1], Align(16, 2), 16),
        (31, [1], Align(16, 2), 8),
        (2, [1], Align(16, 2), 1),
        (3, [1], Align(16, 2), 1),
    ],
)
def test_the_step_of_a_group_keeps_its_axes_aligned(
    width: int, multiplicity: list[int], align: Align, step: int
) -> None:
    axes = np.arange(len(multiplicity))
    assert step_of(Group("group", np.arange(width), axes, np.asarray(multiplicity)), align) == step


def test_steps_make_the_axes_themselves_multiples() -> None:
    problem = problem_of("residual", Align(8))
    np.testing.assert_array_equal(problem.widths, [32, 48, 48])
    np.testing.assert_array_equal(problem.steps, [8, 8, 8])
    problem = problem_of("odd_convs", Align(8))
    np.testing.assert_array_equal(problem.steps, [7, 8, 2, 8])


# ---- plans


def test_a_plan_keeps_the_most_important_channels_in_their_order() -> None:
    problem = problem_of("convs")
    counts = np.array([5, 24, 11])
    plan = problem.plan(counts)
    np.testing.assert_array_equal(plan.counts, counts)
    for worth, kept in zip(problem.importance, plan.kept, strict=True):
        gone = np.setdiff1d(np.arange(len(worth)), kept)
        assert (np.diff(kept) > 0).all()
        assert not len(gone) or worth[kept].min() >= worth[gone].max()


def test_of_equally_important_channels_the_first_stay() -> None:
    base = problem_of("convs")
    worth = [np.zeros(16), np.ones(24), np.r_[np.zeros(16), np.ones(16)]]
    problem = Problem(base.channels, base.costs, [], worth)
    kept = problem.plan(np.array([3, 2, 17])).kept
    assert [k.tolist() for k in kept] == [[0, 1, 2], [0, 1], [0, *range(16, 32)]]


def test_the_score_is_the_share_of_importance_that_is_kept() -> None:
    base = problem_of("convs")
    worth = [np.arange(16.0), np.ones(24), np.zeros(32)]
    problem = Problem(base.channels, base.costs, [], worth)
    assert problem.score(whole(base.channels)) == 1.0
    assert problem.score(problem.plan(np.array([2, 6, 1]))) == pytest.approx((14 + 15 + 6) / (120 + 24))
    nothing = Problem(base.channels, base.costs, [], [np.zeros(16), np.zeros(24), np.zeros(32)])
    assert nothing.score(whole(base.channels)) == 0.0


def test_reasons_name_the_node_that_holds_a_part() -> None:
    channels = problem_of("convs").channels
    assert {describe_reason(channels, reason) for reason in range(len(channels.reasons))} >= {
        "model input 'image'",
        "model output 'logits'",
    }
    kept = find_channels(channels.model, ["conv2"])
    texts = [describe_reason(kept, reason) for reason in range(len(kept.reasons))]
    assert "Conv 'conv2': kept as asked" in texts


def test_the_slack_left_open_is_finer_than_what_is_promised() -> None:
    assert SLACK < 0.01


def test_in_the_score_a_channel_counts_once_for_every_axis_it_is_part_of() -> None:
    base = problem_of("residual")
    parts = [len(group.axes) for group in base.channels.groups]
    stream, inner = int(np.argmax(parts)), int(np.argmin(parts))
    assert parts[stream] > parts[inner]
    problem = Problem(base.channels, base.costs, [], [np.ones(width) for width in base.widths])

    def without_one(group: int) -> float:
        counts = base.widths.copy()
        counts[group] -= 1
        return problem.score(problem.plan(counts))

    total = sum(n * int(width) for n, width in zip(parts, base.widths, strict=True))
    assert without_one(stream) == pytest.approx(1 - parts[stream] / total)
    assert without_one(inner) == pytest.approx(1 - parts[inner] / total)
