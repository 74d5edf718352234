"""Intervals hold what they promise, checked by counting on made-up noise."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.profiling.intervals import is_real, median, ratio

TRIALS = 400


def test_six_values_are_the_fewest_that_bound_their_median() -> None:
    found = median([3, 1, 2, 6, 5, 4])  # all six lie on one side of the true median once in 32 times
    assert (found.median, found.low, found.high) == (3.5, 1, 6)
    assert np.isinf(median([1, 2, 3, 4, 5]).high)


@pytest.mark.parametrize("count", [12, 50, 200])
@pytest.mark.parametrize("kind", ["lognormal", "exponential"])
def test_the_true_median_lies_inside_as_often_as_is_said(kind: str, count: int) -> None:
    generator = np.random.default_rng(count)
    true = {"lognormal": 1.0, "exponential": np.log(2)}[kind]
    inside = [(found := median(getattr(generator, kind)(size=count))).low <= true <= found.high for _ in range(TRIALS)]
    assert 0.95 - 0.03 <= np.mean(inside) <= 1


def test_what_slows_both_alike_leaves_no_trace_in_a_ratio() -> None:
    generator = np.random.default_rng(0)
    slowed = np.repeat(generator.uniform(1, 5, 10), 10)  # a neighbour comes and goes
    found = ratio(2 * slowed * generator.normal(1, 0.01, 100), slowed * generator.normal(1, 0.01, 100))
    assert found.low <= 2 <= found.high
    assert found.width < 0.01


def test_a_difference_is_real_only_where_1_lies_outside() -> None:
    noise = np.random.default_rng(0).normal(1, 0.05, (2, 100))
    assert not is_real(ratio(noise[0], noise[1]))
    assert is_real(ratio(1.1 * noise[0], noise[1]))
    assert is_real(ratio(noise[0], 1.1 * noise[1]))
