"""Bundles: channels that go together so that groups stay equally large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import MODES, NETS, Builder, shuffle
from onnx import ModelProto

from onnxprune import balancing, channels, model, runtime
from onnxprune.ops.rule import Balance
from onnxprune.weights import Ints


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Balance], Ints, npt.NDArray[np.uint64]]:
    """Draw axes in blocks over one set of channels, each axis with its own order and number of blocks."""
    total = draw(st.sampled_from([8, 12, 16, 24]))
    label = np.arange(total)
    if draw(st.booleans()):  # some channels have two atoms
        label = np.concatenate([label, draw(st.permutations(range(total)))])
    balances = []
    for node in range(draw(st.integers(1, 3))):
        count = draw(st.sampled_from([n for n in (2, 3, 4) if total % n == 0]))
        order = np.asarray(draw(st.permutations(range(len(label) if node == 0 else total))), np.int64)
        balances.append(Balance(node, order.reshape(count, -1)))
    signature = np.asarray(draw(st.lists(st.integers(0, 2), min_size=total, max_size=total)), np.uint64)
    return balances, label, signature


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(clusters(), st.integers(0, 99))
def test_every_channel_is_in_one_bundle_and_every_bundle_is_balanced(
    cluster: tuple[list[Balance], Ints, npt.NDArray[np.uint64]], seed: int
) -> None:
    balances, label, signature = cluster
    rank = np.random.default_rng(seed).random(len(signature))
    bundles = balancing._bundles(balances, label, signature, rank)
    assert np.array_equal(np.sort(np.concatenate(bundles)), np.unique(label))
    for members in bundles:
        for balance in balances:
            counts = np.isin(label[balance.blocks], members).sum(axis=1)
            assert len(set(counts.tolist())) == 1


def test_bundles_are_as_small_as_the_groups_allow_and_the_least_important_go_together() -> None:
    blocks = np.arange(12).reshape(3, 4)
    rank = np.asarray([3, 1, 0, 2, 0, 1, 2, 3, 2, 3, 1, 0], float)
    bundles = balancing._bundles([Balance(0, blocks)], np.arange(12), np.zeros(12, np.uint64), rank)
    assert [set(members.tolist()) for members in bundles] == [{2, 4, 11}, {1, 5, 10}, {3, 6, 8}, {0, 7, 9}]


def found(proto: ModelProto, mode: str = "slots") -> channels.Channels:
    return channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {}), **MODES[mode])


@pytest.mark.parametrize("name", ["two_stages_of_shufflenet_v1", "groups_behind_a_concat", "two_transposed_groups"])
def test_each_channel_has_as_many_atoms_in_every_block_as_it_has_slots(name: str) -> None:
    net = found(NETS[name].build())
    assert net.slots
    for balance in net.slots.values():
        assert balance.slots is not None
        for channel in range(net.count):
            counts = (net.channel_of[balance.blocks] == channel).sum(axis=1)
            slots = int((net.channel_of[balance.slots] == channel).sum())
            assert set(counts.tolist()) == {slots}


def test_the_least_important_channels_of_each_group_are_bundled() -> None:
    b = Builder()
    weight = b.rng.uniform(0.5, 1, (6, 4, 1, 1))
    weight[:3, [1, 3]] = weight[3:, [0, 2]] = 0.01
    x = b.relu(b.node("Conv", b.stem(8), b.store(weight), group=2))
    net = found(b.done(b.conv(x, 6, 4)))
    (balance,) = (balance for balance in net.slots.values() if balance.blocks.shape == (2, 4))
    small = net.channel_of[balance.blocks[[0, 0, 1, 1], [1, 3, 0, 2]]]
    assert len(set(small.tolist())) == 2


def test_a_group_that_is_held_in_part_is_held() -> None:
    b = Builder()
    x = b.input("N", 4, 6, 6)
    joined = b.node("Concat", x, b.relu(b.conv(x, 4, 4)), axis=1)
    y = b.relu(b.conv(joined, 8, 6, group=2))
    net = found(b.done(b.conv(y, 6, 4)))
    assert sorted(oracle.widths(net)) == [3]
    assert {balancing.WHY} <= {reason.text for reason in net.reasons}


def test_bundles_do_not_depend_on_the_last_bits_of_weights() -> None:
    def build(noise: float) -> ModelProto:
        b = Builder()
        weight = np.round(b.rng.uniform(0.5, 1, (8, 4, 1, 1)), 2) * (1 + noise)
        x = shuffle(b, b.relu(b.node("Conv", b.stem(8), b.store(weight), group=2)), 8, 2)
        return b.done(b.conv(x, 8, 4))

    one, other = found(build(0)), found(build(1e-7))
    assert np.array_equal(one.channel_of, other.channel_of)
