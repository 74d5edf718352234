"""Channel shuffles are found by their net effect, and only where it is a permutation of one axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Builder
from onnx import ModelProto

from onnxprune import model, runtime
from onnxprune.ops.shuffle import Shuffle, find_shuffles


def chain(shape: list[int], split: list[int], perm: list[int], after: list[int]) -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.relu(b.input(*shape)), b.integers(*split))
    return b.done(b.relu(b.node("Reshape", b.node("Transpose", x, perm=perm), b.integers(*after))))


def shuffles(proto: ModelProto, *elsewhere: str) -> list[Shuffle]:
    return list(find_shuffles(model.analyse(proto, Path(), runtime.evaluate, {}), elsewhere).values())


@st.composite
def shuffled(draw: st.DrawFn) -> tuple[list[int], int, list[int], list[int]]:
    """Draw a shape, the axis that is shuffled, its pieces, and how they are ordered."""
    pieces = draw(st.lists(st.integers(2, 4), min_size=2, max_size=3))
    places = draw(st.permutations(range(len(pieces))).filter(lambda p: p != sorted(p)))
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    axis = draw(st.integers(0, len(shape)))
    shape.insert(axis, int(np.prod(pieces)))
    return shape, axis, pieces, list(places)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(shuffled(), st.integers(0, 99))
def test_the_order_is_that_of_numpy(drawn: tuple[list[int], int, list[int], list[int]], seed: int) -> None:
    shape, axis, pieces, places = drawn
    split = [*shape[:axis], *pieces, *shape[axis + 1 :]]
    perm = [*range(axis), *(axis + p for p in places), *range(axis + len(pieces), len(split))]
    (found,) = shuffles(chain(shape, split, perm, shape))
    numbers = np.arange(np.prod(shape)).reshape(shape)
    expected = numbers.reshape(split).transpose(perm).reshape(shape)
    assert found.axis == axis
    assert np.array_equal(np.take(numbers, found.order, axis), expected)
    kept = np.random.default_rng(seed).random(shape[axis]) < 0.6
    order = found.order_of(kept)
    left = np.compress(kept, numbers, axis)
    assert np.array_equal(np.take(left, order, axis), np.compress(kept[found.order], expected, axis))
    smaller = found.split_for(order)
    if smaller is not None:
        again = left.reshape(smaller).transpose(perm).reshape(left.shape)
        assert np.array_equal(again, np.take(left, order, axis))


def test_a_shuffle_of_equal_groups_is_still_one() -> None:
    (found,) = shuffles(chain([2, 6, 3], [2, 2, 3, 3], [0, 2, 1, 3], [2, 6, 3]))
    assert found.split_for(found.order_of(np.asarray([1, 0, 1, 1, 0, 1], bool))) == (2, 2, 2, 3)
    assert found.split_for(found.order_of(np.asarray([0, 0, 0, 1, 1, 1], bool))) == (2, 1, 3, 3)
    assert found.split_for(found.order_of(np.asarray([1, 1, 0, 1, 1, 1], bool))) is None


@pytest.mark.parametrize(
    ("split", "perm", "after"),
    [
        ([2, 2, 3, 4], [0, 1, 2, 3], [2, 6, 4]),  # nothing moves
        ([2, 2, 3, 4], [0, 2, 1, 3], [2, 3, 8]),  # axes are merged with others
        ([2, 2, 3, 4], [0, 1, 3, 2], [2, 8, 3]),
        ([2, 6, 2, 2], [0, 1, 3, 2], [4, 3, 4]),
        ([2, 6, 4], [0, 2, 1], [2, 6, 4]),  # a piece of one axis ends in another
        ([2, 2, 3, 2, 2], [0, 2, 1, 4, 3], [2, 6, 4]),  # two axes at once
    ],
)
def test_other_chains_are_none(split: list[int], perm: list[int], after: list[int]) -> None:
    assert shuffles(chain([2, 6, 4], split, perm, after)) == []


def test_a_chain_that_others_look_into_is_none() -> None:
    proto = chain([2, 6, 4], [2, 2, 3, 4], [0, 2, 1, 3], [2, 6, 4])
    split = proto.graph.node[1].output[0]
    assert len(shuffles(proto)) == 1
    assert shuffles(proto, split) == []
    b = Builder()
    split = b.node("Reshape", b.input(2, 6, 4), b.integers(2, 2, 3, 4))
    x = b.node("Reshape", b.node("Transpose", split, perm=[0, 2, 1, 3]), b.integers(2, 6, 4))
    assert shuffles(b.done(x, b.relu(split))) == []
