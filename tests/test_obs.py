"""What leaves, and what error is left, is what least squares finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, Array, Builder
from onnx import ModelProto, ValueInfoProto

from onnxprune import obs, runtime, statistics
from onnxprune.channels import Group, find_channels
from onnxprune.data import Data
from onnxprune.inputs import model_inputs
from onnxprune.model import analyse
from onnxprune.obs import Consumer, Curves, eliminate
from onnxprune.statistics import Statistics, collect

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def missing(covariance: Array, weight: Array, gone: Array) -> float:
    """The error that is left without some inputs, by least squares: (numbers, numbers), (numbers, outputs)."""
    rows = np.linalg.cholesky(covariance).T  # numbers of this covariance
    kept, answers = np.delete(rows, gone, axis=1), rows @ weight
    fitted = kept @ np.linalg.lstsq(kept, answers, rcond=None)[0]
    return float(np.square(answers - fitted).sum())


def layer(rng: np.random.Generator, channels: int, each: int, outputs: int = 3) -> tuple[Array, Array, Array]:
    """A covariance, a weight, and which numbers are a channel's own, in any order."""
    size = channels * each
    mixture = rng.normal(size=(size, size)) + 2 * np.eye(size)
    owned = rng.permutation(size).reshape(channels, each)
    return mixture @ mixture.T, rng.normal(size=(size, outputs)), owned


def consumer(covariance: Array, weight: Array, owned: Array) -> Consumer:
    return Consumer(np.arange(len(owned)), np.linalg.inv(covariance), weight.copy(), owned)


@EXAMPLES
@given(seed=st.integers(0, 2**16), channels=st.integers(1, 6), each=st.integers(1, 3), outputs=st.integers(1, 4))
def test_losses_are_the_errors_after_the_best_refit(seed: int, channels: int, each: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    covariance, weight, owned = layer(rng, channels, each, outputs)
    whole = consumer(covariance, weight, owned)
    asked = rng.permutation(channels)[: rng.integers(1, channels + 1)]
    expected = [missing(covariance, weight, owned[channel]) for channel in asked]
    np.testing.assert_allclose(whole.losses(asked), expected, rtol=1e-6)


@EXAMPLES
@given(seed=st.integers(0, 2**16), channels=st.integers(2, 6), each=st.integers(1, 3))
def test_after_channels_left_errors_and_losses_are_those_of_what_stays(seed: int, channels: int, each: int) -> None:
    rng = np.random.default_rng(seed)
    covariance, weight, owned = layer(rng, channels, each)
    whole, order = consumer(covariance, weight, owned), rng.permutation(channels)
    first = order[: rng.integers(1, channels)]
    error = whole.remove(first)
    gone = owned[first].reshape(-1)
    assert error == pytest.approx(missing(covariance, weight, gone), rel=1e-6)
    left = np.setdiff1d(order, first)
    more = [missing(covariance, weight, np.r_[gone, owned[channel]]) - error for channel in left]
    np.testing.assert_allclose(whole.losses(left), more, rtol=1e-5, atol=1e-9)
    error += whole.remove(left)
    assert error == pytest.approx(np.einsum("io,ij,jo->", weight, covariance, weight), rel=1e-6)


@EXAMPLES
@given(seed=st.integers(0, 2**16), channels=st.integers(1, 7), steps=st.integers(1, 4))
def test_all_channels_together_cost_the_whole_variance_in_however_many_steps(
    seed: int, channels: int, steps: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [layer(rng, channels, each) for each in (1, 2)]
    variance = sum(np.einsum("io,ij,jo->", w, c, w) for c, w, _ in parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obs, "STEPS", steps)
        order, added = eliminate([consumer(*part) for part in parts], channels)
    assert sorted(order.tolist()) == list(range(channels))
    assert added.sum() == pytest.approx(variance, rel=1e-6)
    assert len(np.unique(added)) <= steps


@EXAMPLES
@given(seed=st.integers(0, 2**16), channels=st.integers(1, 6))
def test_each_step_takes_the_channel_that_all_layers_together_miss_least(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [layer(rng, channels, each) for each in (1, 2)]
    order, added = eliminate([consumer(*part) for part in parts], channels)
    gone: list[int] = []
    before = 0.0
    for channel, error in zip(order, added, strict=True):
        errors = {
            other: sum(missing(c, w, owned[[*gone, other]].reshape(-1)) for c, w, owned in parts)
            for other in range(channels)
            if other not in gone
        }
        assert errors[channel] == pytest.approx(min(errors.values()), rel=1e-6)
        assert error == pytest.approx(errors[channel] - before, rel=1e-4, abs=1e-7)
        before = errors[channel]
        gone.append(int(channel))


def test_channels_that_leave_together_share_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    covariance, weight, owned = layer(np.random.default_rng(1), 6, 1)
    monkeypatch.setattr(obs, "STEPS", 3)
    order, added = eliminate([consumer(covariance, weight, owned)], 6)
    alone = consumer(covariance, weight, owned).losses(np.arange(6))
    assert set(order[:2].tolist()) == set(np.argsort(alone)[:2].tolist())
    np.testing.assert_allclose(added[:2], missing(covariance, weight, owned[order[:2]].reshape(-1)) / 2, rtol=1e-6)


@EXAMPLES
@given(seed=st.integers(0, 2**16), owner=st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_channels_of_unequal_numbers_of_inputs_lose_those_they_have(seed: int, owner: list[int]) -> None:
    covariance, weight, _ = layer(np.random.default_rng(seed), len(owner), 1)
    made = obs._consumer(np.linalg.inv(covariance), weight, np.asarray(owner))
    expected = [missing(covariance, weight, np.flatnonzero(np.asarray(owner) == channel)) for channel in range(5)]
    np.testing.assert_allclose(made.losses(np.arange(5)), expected, rtol=1e-6, atol=1e-9)
    order, added = eliminate([made], 5)
    assert added.sum() == pytest.approx(np.einsum("io,ij,jo->", weight, covariance, weight), rel=1e-6)
    absent = set(range(5)) - set(owner)
    assert set(order[: len(absent)].tolist()) == absent
    assert not added[: len(absent)].any()


# --------------------------------------------------------------------------------------------------- whole models


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "user_cache_path", lambda name: tmp_path / name)


def samples(shape: Sequence[int], count: int) -> Array:
    return np.random.default_rng(5).standard_normal((count, *shape)).astype(np.float32)


def measured(model: ModelProto, count: int = 200, **modes: Any) -> Statistics:
    """Look at what the layers of a model read of random samples."""
    channels = find_channels(analyse(model, Path(), runtime.evaluate, {}), **modes)
    (value,) = model_inputs(channels.model)
    x = samples(channels.model.bound[value.name][1:], count)
    return collect(channels, Data({value.name: x}, (value,), None, None, "drawn", np.arange(count)))


def error_without(found: Statistics, gone: Sequence[int]) -> float:
    """The error of all layers that lose these channels, in parts of their unit."""
    total = 0.0
    for reader in found.readers:
        channel, layer = found.channels.channel_of, reader.layer
        gains = reader.landing.gain.reshape(layer.y.shape)
        for group, covariance in enumerate(found.inputs(reader).regular(reader.is_centred)[:, 0]):
            owner = np.repeat(channel[layer.x[group]], layer.weight.shape[-1])
            tied = {*channel[layer.x[group]].tolist(), *channel[layer.y[group]].tolist()}
            lost = np.flatnonzero(np.isin(owner, gone))
            if len(lost) and (len(tied) > 1 or -1 in tied):  # else its outputs go with its inputs
                weight = layer.weight[group].astype(np.float64) * layer.scale
                rows = weight.reshape(len(weight), -1).T * gains[group]
                total += missing(covariance, rows, lost) / found.unit[layer.index]
    return total


def check(found: Statistics, group: Group) -> Array:
    """Take channels away one by one in the order of their errors, and compare with least squares."""
    errors = Curves(found).of(group)
    assert errors is not None
    gone: list[int] = []
    total = highest = 0.0
    for channel in np.argsort(errors, kind="stable"):
        without = [error_without(found, [*gone, other]) for other in group.channels if other not in gone]
        gone.append(int(group.channels[channel]))
        now = error_without(found, gone)
        assert now == pytest.approx(min(without), rel=1e-3, abs=1e-6)
        highest = max(highest, now - total)
        assert errors[channel] == pytest.approx(highest, rel=1e-3, abs=1e-6)
        total = now
    return errors


def read_twice() -> ModelProto:
    """A dense layer that two others of unlike size read."""
    b = Builder()
    x = b.relu(b.linear(b.input("N", 6), 6, 7))
    return b.done(b.linear(x, 7, 4), b.node("Gemm", x, b.weight(7, 3), alpha=20.0), rank=2)


def flattened() -> ModelProto:
    """Channels that own four inputs of the layer behind Flatten, each."""
    b = Builder()
    x = b.relu(b.conv(b.input("N", 2, 4, 4), 2, 5, 3, 3))
    return b.done(b.linear(b.node("Flatten", x), 20, 6), rank=2)


def flattened_and_pooled() -> ModelProto:
    """Channels that own five inputs of a layer, beside others that own one."""
    b = Builder()
    x = b.relu(b.conv(b.input("N", 2, 4, 4), 2, 5, 3, 3))
    pooled = b.node("Flatten", b.node("GlobalAveragePool", x))
    return b.done(b.linear(b.node("Concat", b.node("Flatten", x), pooled, axis=1), 25, 6), rank=2)


def joined() -> ModelProto:
    """A convolution of channels of two groups, and of some that stay."""
    b = Builder()
    x = b.input("N", 2, 6, 6)
    parts = [b.relu(b.conv(x, 2, width, 3, 3, pads=[1] * 4)) for width in (4, 3)]
    return b.done(b.conv(b.node("Concat", *parts, x, axis=1), 9, 5, 3, 3))


def residual() -> ModelProto:
    """Layers whose unit is that of a sum."""
    b = Builder()
    x = b.relu(b.conv(b.input("N", 2, 5, 5), 2, 6, 3, 3, pads=[1] * 4))
    inner = b.relu(b.conv(x, 6, 5, 3, 3, pads=[1] * 4))
    return b.done(b.conv(b.relu(b.node("Add", b.conv(inner, 5, 6), x)), 6, 3))


@pytest.mark.parametrize("build", [read_twice, flattened, flattened_and_pooled, joined, residual])
def test_errors_of_a_model_are_those_of_least_squares(build: Callable[[], ModelProto]) -> None:
    found = measured(build())
    for group in found.channels.groups:
        errors = check(found, group)
        assert errors.sum() > 1e-3


@pytest.mark.parametrize("name", ["grouped_conv", "eight_groups", "groups_behind_a_concat", "grouped_conv_transpose"])
@pytest.mark.parametrize("slots", [False, True])
def test_every_group_of_a_convolution_counts(name: str, slots: bool) -> None:
    found = measured(NETS[name].build(), 60, slots=slots)
    grouped = [len(reader.layer.x) for reader in found.readers]
    assert found.channels.groups
    for group in found.channels.groups:
        check(found, group)
    assert max(grouped) > 1 or not slots


def answering(kind: str) -> ModelProto:
    """Two dense layers, the last with a place for an offset or without one."""
    b = Builder()
    x = b.relu(b.linear(b.input("N", 8), 8, 7))
    y = b.linear(x, 7, 4) if kind == "bias" else b.node("MatMul", x, b.weight(7, 4))
    return b.done(b.norm(y, 4) if kind == "norm" else y, rank=2)


@pytest.mark.parametrize("kind", ["bias", "norm", "neither"])
def test_errors_are_what_a_fit_of_the_samples_leaves_of_the_answers(kind: str) -> None:
    model, count = answering(kind), 6000
    found = measured(model, count)
    (group,) = found.channels.groups
    errors = Curves(found).of(group)
    assert errors is not None
    read, answers = model.graph.node[1].output[0], model.graph.output[0].name
    model.graph.output.append(ValueInfoProto(name=read))
    x, y = runtime.Session(model).run({"x": samples((8,), count)}, [read, answers])
    gone: list[int] = []
    before = highest = 0.0
    for channel in np.argsort(errors, kind="stable")[:-1]:
        gone.append(int(channel))
        kept = np.delete(x, gone, axis=1).astype(np.float64)
        kept = kept if kind == "neither" else np.column_stack([kept, np.ones(count)])
        missed = y - kept @ np.linalg.lstsq(kept, y, rcond=None)[0]
        now = float(np.square(missed).mean(axis=0).sum() / y.var(axis=0).sum())
        highest = max(highest, now - before)
        assert errors[channel] == pytest.approx(highest, rel=0.03)
        before = now


def test_a_layer_that_reads_some_channels_misses_no_others() -> None:
    covariance, weight, owned = layer(np.random.default_rng(2), 3, 2)
    some = Consumer(np.asarray([1, 4, 6]), np.linalg.inv(covariance), weight.copy(), owned)
    expected = [missing(covariance, weight, numbers) for numbers in owned]
    np.testing.assert_allclose(some.losses(np.asarray([6, 0, 4, 7, 1])), [expected[2], 0, expected[1], 0, expected[0]])
    assert some.remove(np.asarray([0, 5, 7])) == 0
    assert some.remove(np.asarray([0, 4])) == pytest.approx(expected[1])
    order, added = eliminate([some], 8)
    assert sorted(order.tolist()) == list(range(8))
    assert np.count_nonzero(added) == 2


def test_groups_that_go_as_a_whole_leave_nobody_to_miss_them() -> None:
    found = measured(NETS["grouped_conv"].build(), 60)
    (group,) = found.channels.groups
    grouped, head = found.readers
    assert len(grouped.layer.x) == 4
    assert Curves(found)._consumers(group, grouped) == []
    assert len(Curves(found)._consumers(group, head)) == 1


def test_a_group_that_two_layers_read_adds_both_errors() -> None:
    found = measured(read_twice())
    (group,) = found.channels.groups
    assert len(found.readers) == 2
    consumers = [c for reader in found.readers for c in Curves(found)._consumers(group, reader)]
    alone = sum(c.losses(np.arange(7)) for c in consumers)
    expected = [error_without(found, [channel]) for channel in group.channels]
    np.testing.assert_allclose(alone, expected, rtol=1e-3)
    assert all((c.losses(np.arange(7)) > 1e-6).all() for c in consumers)


def test_a_copy_of_another_channel_leaves_first_and_costs_nothing() -> None:
    b = Builder()
    weight, bias = b.rng.normal(size=(8, 6)), b.rng.normal(size=6)
    weight[:, 4], bias[4] = weight[:, 1] * 2, bias[1] * 2  # the larger of the two
    x = b.relu(b.node("Gemm", b.input("N", 8), b.store(weight), b.store(bias)))
    found = measured(b.done(b.linear(x, 6, 4), rank=2), 4000)
    (group,) = found.channels.groups
    errors = Curves(found).of(group)
    assert errors is not None
    first, second = np.argsort(errors)[:2]
    assert first in (1, 4)
    assert errors[first] < 0.01 * errors[second]


def test_a_channel_that_is_not_read_costs_nothing() -> None:
    b = Builder()
    x = b.relu(b.linear(b.input("N", 6), 6, 5))
    weight = b.rng.normal(size=(5, 4))
    weight[3] = 0
    found = measured(b.done(b.node("Gemm", x, b.store(weight)), rank=2))
    errors = Curves(found).of(found.channels.groups[0])
    assert errors is not None
    assert errors.argmin() == 3
    assert errors[3] == 0
    assert (np.delete(errors, 3) > 1e-6).all()


def test_what_no_layer_reads_has_no_error() -> None:
    b = Builder()
    x = b.relu(b.linear(b.input("N", 6), 6, 8))
    x = b.node("ReduceSum", b.node("Mul", x, x), b.integers(1))
    found = measured(b.done(x, rank=2))
    assert [Curves(found).of(group) for group in found.channels.groups] == [None]


def test_little_room_for_inverses_changes_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(joined())
    before = [Curves(found).of(group) for group in found.channels.groups]
    monkeypatch.setattr(obs, "HELD_BYTES", 1)
    curves = Curves(found)
    for expected, group in zip(before, found.channels.groups, strict=True):
        np.testing.assert_array_equal(curves.of(group), expected)


def test_blocks_of_a_wide_layer_each_make_up_for_their_own_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "WIDEST", 9)
    found = measured(flattened())
    (reader,), (group,) = found.readers, found.channels.groups
    covariances = found.inputs(reader).regular()[0]
    assert covariances.shape == (3, 8, 8)  # two channels of four numbers in each
    weight, total = reader.layer.weight[0, :, :, 0].T.astype(np.float64), 0.0
    for block, covariance in enumerate(covariances):
        rows = weight[block * 8 : (block + 1) * 8]
        inside = covariance[: len(rows), : len(rows)]
        losses = [missing(inside, rows, np.arange(4) + start) for start in range(0, len(rows), 4)]
        consumers = Curves(found)._consumers(group, reader)
        of_block = consumers[block].losses(np.arange(5)) * found.unit[reader.layer.index]
        np.testing.assert_allclose(of_block[2 * block : 2 * block + 2], losses, rtol=1e-3)
        total += float(np.einsum("io,ij,jo->", rows, inside, rows))
    _, added = eliminate(Curves(found)._consumers(group, reader), 5)
    assert added.sum() == pytest.approx(total / found.unit[reader.layer.index], rel=1e-3)
