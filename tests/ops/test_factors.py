"""Factors that two ways to split a number share, against counting through all indices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.ops.factors import blocks, index_of, shared_factors


@st.composite
def factorisations(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two lists of sizes with one product: neighbours of one list of factors, merged in two ways."""
    factors = draw(st.lists(st.integers(2, 5), min_size=1, max_size=5))
    sides = []
    for _ in range(2):
        sizes = [factors[0]]
        for factor in factors[1:]:
            if draw(st.booleans()):
                sizes.append(factor)
            else:
                sizes[-1] *= factor
        sides.append(sizes)
    return sides[0], sides[1]


def agree(left: Sequence[int], right: Sequence[int]) -> bool:
    """Tell whether the products of the last sizes of both sides divide each other: then common factors exist."""
    ends = sorted({prod(side[i:]) for side in (left, right) for i in range(len(side) + 1)})
    return all(after % before == 0 for before, after in itertools.pairwise(ends))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(factorisations())
def test_every_number_has_the_same_index_of_each_factor_on_both_sides(sides: tuple[list[int], list[int]]) -> None:
    left, right = sides
    factors = shared_factors(left, right)
    assert factors is not None
    every = np.arange(prod(left))
    indices = []
    for factor in factors:
        for place, side in ((factor.left, left), (factor.right, right)):
            axis = np.unravel_index(every, side)[place.axis]
            indices.append(index_of(place, factor, np.arange(side[place.axis]))[axis])
            assert place.alone == (factor.size == side[place.axis])
        assert np.array_equal(indices[-1], indices[-2])
    sizes = [factor.size for factor in factors]
    assert prod(sizes) == prod(left)
    assert np.array_equal(np.ravel_multi_index(indices[::2], sizes), every)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.permutations([2, 2, 3, 4, 6]), st.integers(1, 4), st.permutations([2, 2, 3, 4, 6]), st.integers(1, 4))
def test_there_are_common_factors_where_the_sizes_allow_some(
    left: list[int], at: int, right: list[int], also: int
) -> None:
    left, right = [*left[:at], prod(left[at:])], [*right[:also], prod(right[also:])]
    assert (shared_factors(left, right) is not None) == agree(left, right)


@pytest.mark.parametrize(("left", "right"), [([4, 6], [6, 4]), ([2, 9], [9, 2]), ([4, 3], [3, 4])])
def test_there_are_none_where_they_do_not(left: list[int], right: list[int]) -> None:
    assert shared_factors(left, right) is None


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(factorisations())
def test_blocks_are_as_short_as_equal_products_allow(sides: tuple[list[int], list[int]]) -> None:
    left, right = sides
    found = blocks(left, right)
    assert [i for ours, _ in found for i in ours] == list(range(len(left)))
    assert [j for _, theirs in found for j in theirs] == list(range(len(right)))
    assert all(prod(left[i] for i in ours) == prod(right[j] for j in theirs) for ours, theirs in found)
    starts = [{prod(side[:i]) for i in range(1, len(side) + 1)} for side in sides]
    assert len(found) == len(starts[0] & starts[1])
