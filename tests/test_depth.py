"""Branches that lose all their channels: which can, what becomes of them, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Builder, residual, shuffle, squeeze_and_excitation
from onnx import ModelProto
from test_properties import networks

from onnxprune import CompressSettings, compress, depth, metrics, plan, runtime, surgery
from onnxprune.channels import Channels, find_channels
from onnxprune.depth import Depth
from onnxprune.errors import InputError, TargetError
from onnxprune.model import analyse
from onnxprune.plan import Plan
from onnxprune.verify import verify

Build = Callable[[], ModelProto]


def bottleneck() -> ModelProto:
    b = Builder(seed=2)
    x = b.stem(8)
    y = b.relu(b.norm(b.conv(x, 8, 4), 4))
    y = b.relu(b.norm(b.conv(y, 4, 6, 3, 3, pads=[1] * 4), 6))
    y = b.node("HardSwish", b.norm(b.conv(y, 6, 8), 8))
    return b.done(b.head(b.relu(b.node("Add", y, x)), 8))


def two_branches() -> ModelProto:
    b = Builder(seed=3)
    x = b.stem(8)
    one = b.conv(b.relu(b.conv(x, 8, 5)), 5, 8, bias=False)
    two = b.conv(b.relu(b.conv(x, 8, 6)), 6, 8)
    return b.done(b.head(b.node("Sum", b.node("Add", one, two), x), 8))


def feed_forward() -> ModelProto:
    b = Builder(seed=4)
    x = b.input("N", 5, 6)
    y = b.linear_rows(b.relu(b.linear_rows(x, 6, 12)), 12, 6)
    return b.done(b.node("Sub", x, y), rank=3)


def products() -> ModelProto:
    b = Builder(seed=5)
    x = b.relu(b.linear(b.input("N", 6), 6, 8))
    y = b.node("Gemm", b.relu(b.linear(x, 8, 7)), b.weight(7, 8, fan_in=7), b.positive(8), beta=0.5)
    return b.done(b.linear(b.node("Mul", x, b.node("Sigmoid", y)), 8, 3), rank=2)


def grown_back() -> ModelProto:
    b = Builder(seed=6)
    x = b.stem(8)
    y = b.relu(b.conv(b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), 8, 5))
    y = b.node("ConvTranspose", y, b.weight(5, 8, 2, 2, fan_in=5), b.positive(8), strides=[2, 2])
    return b.done(b.head(b.node("Add", x, y), 8))


def padded_chain() -> ModelProto:
    b = Builder(seed=7)
    x = b.relu(b.conv(b.stem(8), 8, 6, 3, 3, pads=[1] * 4))
    return b.done(b.head(b.relu(b.conv(x, 6, 5, 3, 3, pads=[1] * 4)), 5))


def joined() -> ModelProto:
    b = Builder(seed=8)
    x = b.stem(8)
    return b.done(b.head(b.node("Concat", x, b.relu(b.conv(x, 8, 5)), axis=1), 13))


def added_to_each_other() -> ModelProto:
    b = Builder(seed=9)
    x = b.input("N", 3, 6, 6)
    one = b.conv(b.relu(b.conv(x, 3, 8)), 8, 6)
    two = b.conv(b.relu(b.conv(x, 3, 7)), 7, 6)
    return b.done(b.head(b.relu(b.node("Add", one, two)), 6))


def normed_rows() -> ModelProto:
    b = Builder(seed=10)
    x = b.relu(b.linear(b.input("N", 6), 6, 8))
    y = b.norm(b.linear(b.relu(b.linear(x, 8, 7)), 7, 8), 8)
    return b.done(b.linear(b.relu(b.node("Add", x, y)), 8, 4), rank=2)


def shuffled_branch() -> ModelProto:
    b = Builder(seed=11)
    x = b.stem(8)
    y = shuffle(b, b.relu(b.conv(x, 8, 4)), 4, 2)
    y = b.conv(b.relu(b.conv(y, 4, 6)), 6, 8)
    return b.done(b.head(b.relu(b.node("Add", x, y)), 8))


def shuffled_at_the_end() -> ModelProto:
    b = Builder(seed=12)
    x = b.stem(8)
    y = b.conv(shuffle(b, b.relu(b.conv(x, 8, 4)), 4, 2), 4, 8)
    return b.done(b.head(b.relu(b.node("Add", x, y)), 8))


def biased_by_one_number() -> ModelProto:
    b = Builder(seed=13)
    x = b.relu(b.linear(b.input("N", 6), 6, 8))
    y = b.node("PRelu", b.linear(x, 8, 7), b.store(0.1))
    y = b.norm(b.node("Gemm", y, b.weight(7, 8, fan_in=7), b.store(0.7), beta=0.5), 8)
    y = b.node("PRelu", y, b.vector(8))
    return b.done(b.linear(b.relu(b.node("Add", x, y)), 8, 4), rank=2)


def read_by_nobody() -> ModelProto:
    b = Builder(seed=14)
    x = b.stem(8)
    y = b.relu(b.conv(x, 8, 6))
    b.node("Sigmoid", y)
    y = b.conv(y, 6, 8)
    b.node("Tanh", y)
    return b.done(b.head(b.relu(b.node("Add", y, x)), 8))


CAN = {
    residual: [6],
    squeeze_and_excitation: [2],
    bottleneck: [6],
    two_branches: [5, 6],
    feed_forward: [12],
    products: [7],
    grown_back: [5],
    added_to_each_other: [8],
    normed_rows: [7],
    shuffled_branch: [6],
    shuffled_at_the_end: [4],
    biased_by_one_number: [7],
    read_by_nobody: [6],
}


def found_in(proto: ModelProto) -> Channels:
    return find_channels(analyse(proto, Path(), runtime.evaluate, {}))


def emptied(found: Channels, which: list[int]) -> Plan:
    """Keep two thirds of every group, and nothing of some and of what they take along."""
    counts = np.asarray([max(1, 2 * group.width // 3) for group in found.groups])
    counts[which] = 0
    counts = Depth(found).closed(counts)
    return Plan(tuple(np.arange(count) for count in counts))


def check(proto: ModelProto, found: Channels, chosen: Plan) -> ModelProto:
    """Cut, and compare with the zeroed original: outputs, MACs, inputs and outputs."""
    small = surgery.cut(found, chosen, runtime.evaluate)
    onnx.checker.check_model(small, full_check=True)
    assert list(small.graph.input) == list(proto.graph.input)
    assert list(small.graph.output) == list(proto.graph.output)
    assert oracle.count_macs(small, found.model.bound) == metrics.Costs(found).of(chosen.counts)["macs"][0]
    reference = oracle.zeroed(proto, plan.to_json(found, chosen, "", {}))
    for feed in oracle.random_feeds(proto, found.model.bound, 0):
        for ours, theirs in zip(oracle.run_model(reference, feed), oracle.run_model(small, feed), strict=True):
            assert oracle.distance(ours, theirs) < oracle.TOLERANCE
    return small


@pytest.mark.parametrize("build", CAN, ids=lambda build: build.__name__)
def test_inner_groups_of_branches_can_lose_all_channels(build: Build) -> None:
    found = found_in(build())
    assert sorted(found.groups[position].width for position in Depth(found).takes_along) == CAN[build]


@pytest.mark.parametrize("build", CAN, ids=lambda build: build.__name__)
def test_an_emptied_branch_is_its_constant(build: Build) -> None:
    proto = build()
    found = found_in(proto)
    small = check(proto, found, emptied(found, list(Depth(found).takes_along)))
    inside = oracle.operators(proto)["Relu"] + oracle.operators(proto)["Conv"] + oracle.operators(proto)["Gemm"]
    left = oracle.operators(small)["Relu"] + oracle.operators(small)["Conv"] + oracle.operators(small)["Gemm"]
    assert left < inside


@pytest.mark.parametrize("build", [padded_chain, joined])
def test_what_is_not_an_inner_group_of_a_branch_keeps_a_channel(build: Build) -> None:
    assert Depth(found_in(build())).takes_along == {}


def test_what_nobody_reads_any_more_goes_along() -> None:
    found = found_in(bottleneck())
    (along,) = Depth(found).takes_along.values()
    assert [found.groups[position].width for position in along] == [4]
    small = check(bottleneck(), found, emptied(found, list(Depth(found).takes_along)))
    assert oracle.operators(small)["Conv"] == 1


def test_one_of_two_branches_goes_alone() -> None:
    proto = two_branches()
    found = found_in(proto)
    first = next(p for p in Depth(found).takes_along if found.groups[p].width == 5)
    assert oracle.operators(check(proto, found, emptied(found, [first])))["Conv"] == 3


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(networks(), st.integers(0, 2**32 - 1))
def test_any_emptied_branches_of_a_random_network_are_constants(proto: ModelProto, seed: int) -> None:
    found = found_in(proto)
    rng = np.random.default_rng(seed)
    which = [position for position in Depth(found).takes_along if rng.random() < 0.6]
    if which:
        check(proto, found, emptied(found, which))


def test_an_emptied_branch_may_hold_a_normalisation_over_what_it_lost() -> None:
    b = Builder(seed=15)
    x = b.input("N", 5, 6)
    y = b.node("LayerNormalization", b.linear_rows(x, 6, 12), b.vector(12), b.vector(12))
    y = b.linear_rows(b.relu(y), 12, 6)
    proto = b.done(b.node("Add", x, y), rank=3)
    found = find_channels(analyse(proto, Path(), runtime.evaluate, {}), approximate=True)
    chosen = emptied(found, list(Depth(found).takes_along))
    assert 0 in chosen.counts
    small = surgery.cut(found, chosen, runtime.evaluate)
    assert not {"LayerNormalization", "MatMul"} & set(oracle.operators(small))
    assert "equal" in verify(found, chosen, small, "full")["outputs"]


def test_a_bias_that_is_forgotten_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = surgery._Cut._bias
    monkeypatch.setattr(surgery._Cut, "_bias", lambda self, index: 0 * right(self, index))
    proto = bottleneck()
    found = found_in(proto)
    with pytest.raises(AssertionError):
        check(proto, found, emptied(found, list(Depth(found).takes_along)))


def test_a_plan_that_forgets_what_goes_along_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth.Depth, "closed", lambda self, counts: counts)
    proto = bottleneck()
    found = found_in(proto)
    with pytest.raises(AssertionError):
        check(proto, found, emptied(found, list(Depth(found).takes_along)))


def test_a_plan_file_may_empty_what_can_be_empty_and_nothing_else() -> None:
    found = found_in(bottleneck())
    chosen = emptied(found, list(Depth(found).takes_along))
    content = plan.to_json(found, chosen, "", {})
    assert plan.from_json(found, content).counts.tolist() == chosen.counts.tolist()
    content["groups"][0]["kept"] = []
    with pytest.raises(InputError, match="keeps nothing of group"):
        plan.from_json(found, content)


def test_min_keep_0_reaches_targets_that_one_channel_a_group_does_not(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(bottleneck(), file)
    targets = {"macs": "0.12"}
    with pytest.raises(TargetError):
        compress(file, tmp_path / "small.onnx", CompressSettings(targets, align=1, min_keep=8))
    report = compress(file, tmp_path / "small.onnx", CompressSettings(targets, align=1, min_keep=0))
    assert report.after.macs <= 0.12 * report.before.macs
    assert "equal to the zeroed original" in report.checks["outputs"]
