"""Fits from sums are those of numpy from all rows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Array
from threadpoolctl import threadpool_limits

from onnxprune import moments
from onnxprune.moments import RIDGES, WIDEST, Fit, Moments, Rows, best_fit, fit, new_sums

EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True, database=None)
FORMS = pytest.mark.parametrize("form", [Moments, Rows])
Form = type[Moments] | type[Rows]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small products on several threads wait for each other where other tests run beside."""
    with threadpool_limits(1):
        yield


def data(
    groups: int, rows: int, inputs: int, outputs: int, *, noise: float = 0.1, mean: float = 0.0, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Rows, what is to be explained by them, and the slope behind it."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(inputs) + 0.5 * rng.standard_normal((groups, inputs, inputs)) / np.sqrt(inputs)
    x = (rng.standard_normal((groups, rows, inputs)) @ mixing + mean * rng.standard_normal(inputs)).astype(np.float32)
    slope = rng.standard_normal((groups, inputs, outputs))
    r = x @ slope + 0.5 + noise * rng.standard_normal((groups, rows, outputs))
    return x, r.astype(np.float32), slope


def summed(form: Form, x: Array, r: Array, batches: int = 3) -> Any:
    sums = form(x.shape[0], x.shape[2], r.shape[2])
    for part_x, part_r in zip(np.array_split(x, batches, axis=1), np.array_split(r, batches, axis=1), strict=True):
        sums.add(part_x, part_r)
    return sums


def halves(form: Form, x: Array, r: Array) -> tuple[Any, Any]:
    """Rows to fit on, and others."""
    end = x.shape[1] * 4 // 5
    return summed(form, x[:, :end], r[:, :end]), summed(form, x[:, end:], r[:, end:])


def plain(x: Array, r: Array, with_offset: bool, ridge: float = 0.0) -> tuple[Array, Array]:
    """The slope and offset of each group by numpy's least squares; a ridge is rows of its own."""
    slopes, offsets = [], []
    for rows, wanted in zip(x.astype(np.float64), r.astype(np.float64), strict=True):
        x_mean, r_mean = (rows.mean(0), wanted.mean(0)) if with_offset else (0 * rows[0], 0 * wanted[0])
        a, b = rows - x_mean, wanted - r_mean
        pull = np.sqrt(ridge * np.square(a).sum() / a.shape[1])
        a = np.concatenate([a, pull * np.eye(a.shape[1])])
        b = np.concatenate([b, np.zeros((rows.shape[1], b.shape[1]))])
        slope = np.linalg.lstsq(a, b, rcond=None)[0]
        slopes.append(slope)
        offsets.append(r_mean - x_mean @ slope)
    return np.stack(slopes), np.stack(offsets)


def mean_square(x: Array, r: Array, slope: Array, offset: Array) -> Array:
    left = r.astype(np.float64) - (x.astype(np.float64) @ slope + offset[:, None])
    return np.square(left).sum(axis=2).mean(axis=1)


def explained(form: Form, x: Array, r: Array, with_offset: bool = True) -> Fit:
    found = best_fit(*halves(form, x, r), with_offset)
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------- what a fit finds


@FORMS
@EXAMPLES
@given(
    st.sampled_from([(1, 1), (1, 12), (4, 5), (2, 70)]),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 50.0]),
    st.integers(0, 99),
)
def test_a_fit_of_plenty_of_rows_is_the_least_squares_fit(
    form: Form, sizes: tuple[int, int], outputs: int, with_offset: bool, mean: float, seed: int
) -> None:
    x, r, _ = data(sizes[0], 1500 if form is Moments else 300, sizes[1], outputs, mean=mean, seed=seed)
    found = explained(form, x, r, with_offset)
    slope, offset = plain(x, r, with_offset)
    assert found.slope.shape == slope.shape
    assert found.offset.shape == offset.shape
    assert with_offset or not found.offset.any()
    least = mean_square(x, r, slope, offset)
    apart = mean_square(x, x @ slope + offset[:, None], found.slope, found.offset)
    assert (apart <= 0.02 * least + 1e-6 * np.square(r).mean()).all()


@FORMS
@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 400, 6, 3), (4, 400, 6, 3), (2, 900, 80, 3), (1, 30, 50, 2)])
def test_a_ridge_is_so_many_parts_of_the_mean_variance(
    form: Form, ridge: float, with_offset: bool, shape: tuple[int, int, int, int]
) -> None:
    x, r, _ = data(*shape, mean=2.0)
    found = fit(summed(form, x, r), ridge, with_offset)
    slope, offset = plain(x, r, with_offset, ridge)
    np.testing.assert_allclose(found.slope, slope, atol=1e-3)
    np.testing.assert_allclose(found.offset, offset, atol=2e-3)


@FORMS
def test_an_endless_ridge_leaves_the_mean_alone(form: Form) -> None:
    x, r, _ = data(2, 100, 5, 3)
    found = fit(summed(form, x, r), np.inf, True)
    assert not found.slope.any()
    np.testing.assert_allclose(found.offset, r.mean(axis=1), rtol=1e-5)
    assert not fit(summed(form, x, r), np.inf, False).offset.any()


@FORMS
@pytest.mark.parametrize("rows", [15, 25, 40, 200, 700])
@pytest.mark.parametrize("noise", [0.01, 1.0, 5.0])
def test_the_ridge_is_the_one_that_explains_unseen_rows_best(form: Form, rows: int, noise: float) -> None:
    x, r, _ = data(2, rows, 20, 3, noise=noise)
    end = rows * 4 // 5
    before = np.square(r[:, end:]).sum(axis=2).mean(axis=1).sum()
    errors = {}
    for ridge in (*RIDGES, 1e12):
        slope, offset = plain(x[:, :end], r[:, :end], True, ridge)
        errors[ridge] = float(mean_square(x[:, end:], r[:, end:], slope, offset).sum())
    best = min(errors, key=errors.__getitem__)
    found = best_fit(*halves(form, x, r), True)
    if errors[best] >= before:
        assert found is None
        return
    assert found is not None
    near = [plain(x, r, True, ridge) for ridge in errors if errors[ridge] < errors[best] * 1.001 + 1e-6]
    apart = [mean_square(x, x @ slope + offset[:, None], found.slope, found.offset).max() for slope, offset in near]
    assert min(apart) < 1e-5 * r.var()


@FORMS
def test_what_rows_do_not_explain_is_left_alone(form: Form) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 600, 8)).astype(np.float32)
    assert best_fit(*halves(form, x, np.zeros((1, 600, 3), np.float32)), True) is None
    assert best_fit(*halves(form, np.zeros_like(x), np.ones((1, 600, 3), np.float32)), False) is None
    seen, unseen = halves(form, x, np.ones((1, 600, 3), np.float32))
    unseen = summed(form, x, -np.ones((1, 600, 3), np.float32))
    assert best_fit(seen, unseen, True) is None


@FORMS
def test_nothing_is_fitted_without_rows(form: Form) -> None:
    x, r, _ = data(2, 50, 4, 3)
    empty = form(2, 4, 3)
    empty.add(x[:, :0], r[:, :0])
    some = summed(form, x, r)
    assert best_fit(empty, empty, True) is None  # type: ignore[arg-type]
    assert best_fit(some, empty, True) is None
    assert best_fit(empty, some, True) is None


@FORMS
def test_an_offset_alone_is_found(form: Form) -> None:
    x = np.random.default_rng(1).standard_normal((2, 200, 4)).astype(np.float32)
    r = np.broadcast_to(np.asarray([[[3.0, -2.0]], [[0.5, 7.0]]], np.float32), (2, 200, 2))
    found = explained(form, x, r)
    np.testing.assert_allclose(found.slope, 0, atol=1e-5)
    np.testing.assert_allclose(found.offset, r[:, 0], atol=1e-4)


@FORMS
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_that_only_mislead_leave_the_offset(form: Form, groups: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((groups, 40, 25)).astype(np.float32)
    r = (3 + rng.standard_normal((groups, 40, 2))).astype(np.float32)
    found = explained(form, x, r)
    assert not found.slope.any()
    np.testing.assert_allclose(found.offset, r.mean(axis=1), rtol=1e-5)


# ------------------------------------------------------------------------------------ inputs that say little


def dull(kind: str, x: Array) -> Array:
    x = x.copy()
    half = x.shape[2] // 2
    if kind == "dependent":
        x[:, :, half:] = x[:, :, :half] @ np.ones((half, x.shape[2] - half), np.float32)
    elif kind == "repeated":
        x[:, :, half:] = x[:, :, : x.shape[2] - half]
    elif kind == "constant":
        x[:, :, half:] = 37.7
    elif kind == "all constant":
        x[:] = 37.7
    elif kind == "zero":
        x[:, :, half:] = 0
    elif kind == "tiny":
        x[:, :, half:] *= 1e-18
    elif kind == "one group zero":
        x[0] = 0
    elif kind == "all zero":
        x[:] = 0
    return x


KINDS = ("dependent", "repeated", "constant", "all constant", "zero", "tiny", "one group zero", "all zero")


@FORMS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 10), (6, 9), (2, 80)])
@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("mean", [0.0, 40.0])
def test_inputs_that_say_little_give_an_ordinary_fit(
    form: Form, kind: str, shape: tuple[int, int], with_offset: bool, mean: float
) -> None:
    groups, inputs = shape
    rows = 1000 if form is Moments else 250
    x, _, slope = data(groups, rows, inputs, 3, mean=mean)
    x = dull(kind, x)
    left = x - x.mean(axis=1, keepdims=True) if with_offset else x
    noise = 0.1 * np.random.default_rng(3).standard_normal((groups, rows, 3))
    r = (left @ slope + noise).astype(np.float32)
    for ridge in (*RIDGES, np.inf):
        found = fit(summed(form, x, r), ridge, with_offset)
        assert np.isfinite(found.slope).all()
        assert np.isfinite(found.offset).all()
    best = best_fit(*halves(form, x, r), with_offset)
    if "all" in kind or (kind == "one group zero" and groups == 1):
        none = (
            best is None
            or mean_square(x, r, best.slope, best.offset).sum()
            <= 1.001 * mean_square(x, r, 0 * best.slope, 0 * best.offset).sum()
        )
        assert none
        return
    assert best is not None
    least = mean_square(x, r, *plain(x, r, with_offset))
    assert (mean_square(x, r, best.slope, best.offset) <= 1.05 * least + 1e-6 * np.square(r).mean()).all()
    ours, theirs = (np.abs(np.einsum("gio,gi->gio", s, x.std(axis=1))).max() for s in (best.slope, slope))
    assert ours < 5 * theirs + 1e-3


@FORMS
@pytest.mark.parametrize("shape", [(1, 10), (6, 9), (2, 80)])
@pytest.mark.parametrize("ridge", [0.0, 1e-12, 1e-9])
def test_a_ridge_lost_in_noise_still_gives_an_ordinary_fit(form: Form, shape: tuple[int, int], ridge: float) -> None:
    groups, inputs = shape
    x, _, slope = data(groups, 1000 if form is Moments else 250, inputs, 3)
    x = dull("dependent", x)
    r = (x @ slope).astype(np.float32)
    found = fit(summed(form, x, r), ridge, True)
    assert (mean_square(x, r, found.slope, found.offset) < 1e-4 * np.square(r).mean()).all()
    assert np.abs(found.slope).max() < 10 * np.abs(slope).max()


@FORMS
def test_a_mean_far_from_zero_costs_no_precision(form: Form) -> None:
    x, r, slope = data(1, 700, 6, 2, noise=0.0)
    found = explained(form, x + np.float32(1000), r)
    np.testing.assert_allclose(found.slope, slope, atol=0.02)
    assert mean_square(x + np.float32(1000), r, found.slope, found.offset)[0] < 1e-3 * np.var(r)


@FORMS
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("where", ["x", "r"])
@pytest.mark.parametrize("side", ["seen", "unseen"])
@pytest.mark.parametrize("inputs", [5, 80])
def test_what_is_not_finite_gives_no_fit(form: Form, value: float, where: str, side: str, inputs: int) -> None:
    x, r, _ = data(1, 500, inputs, 2)
    (x if where == "x" else r)[0, 30 if side == "seen" else 470, 1] = value
    assert best_fit(*halves(form, x, r), True) is None


@FORMS
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_rows_of_any_precision_are_fitted(form: Form, dtype: Any) -> None:
    x, r, slope = data(1, 700, 8, 2, noise=0.0)
    x = (x * 20).astype(dtype)  # half precision cannot hold the sums
    r = (x.astype(np.float64) @ slope / 20).astype(dtype)
    found = explained(form, x, r)
    np.testing.assert_allclose(found.slope * 20, slope, atol=1e-2)


# -------------------------------------------------------------------------------------------------- the sums


@FORMS
@EXAMPLES
@given(st.sampled_from([(1, 5), (4, 3)]), st.sampled_from([0.0, 30.0]), st.integers(0, 99))
def test_the_error_is_the_mean_squared_error(form: Form, sizes: tuple[int, int], mean: float, seed: int) -> None:
    x, r, slope = data(sizes[0], 300, sizes[1], 2, noise=1.0, mean=mean, seed=seed)
    rng = np.random.default_rng(seed)
    sums = summed(form, x, r)
    for tried in (0 * slope, slope, slope + rng.standard_normal(slope.shape)):
        offset = rng.standard_normal((sizes[0], 2))
        found = sums.error(tried, offset)
        assert found.shape == (sizes[0],)
        np.testing.assert_allclose(found, mean_square(x, r, tried, offset), rtol=1e-4)
    expected = mean_square(x, r, 0 * slope, np.zeros((sizes[0], 2))).sum()
    assert sums.unexplained == pytest.approx(expected, rel=1e-5)


@FORMS
@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("drift", [0.0, 20.0])
def test_sums_added_up_are_sums_of_all_rows(form: Form, with_offset: bool, drift: float) -> None:
    x, r, slope = data(2, 600, 5, 3)
    x = x + np.linspace(0, drift, 600, dtype=np.float32)[:, None]
    whole, total = summed(form, x, r, 1), summed(form, x[:, :250], r[:, :250]) + summed(form, x[:, 250:], r[:, 250:])
    for ridge in (1e-4, 0.1):
        one, other = fit(whole, ridge, with_offset), fit(total, ridge, with_offset)
        np.testing.assert_allclose(one.slope, other.slope, atol=1e-4)
        np.testing.assert_allclose(one.offset, other.offset, atol=1e-3)
        np.testing.assert_allclose(one.slope, plain(x, r, with_offset, ridge)[0], atol=1e-4)
    zero = np.zeros((2, 3))
    np.testing.assert_allclose(total.error(slope, zero), mean_square(x, r, slope, zero), rtol=1e-3)
    empty = form(2, 5, 3)
    for other in (whole + empty, empty + whole):  # type: ignore[operator]
        np.testing.assert_allclose(other.error(slope, zero), whole.error(slope, zero), rtol=1e-6)


def test_sums_that_are_added_up_stay_what_they_are() -> None:
    x, r, slope = data(2, 600, 5, 3)
    one, other = summed(Moments, x[:, :250], r[:, :250]), summed(Moments, x[:, 250:], r[:, 250:])
    before = one.error(slope, one.r), other.error(slope, other.r)
    total = one + other
    total.add(x, r)
    np.testing.assert_array_equal(before[0], one.error(slope, one.r))
    np.testing.assert_array_equal(before[1], other.error(slope, other.r))


def test_sums_give_the_covariance_of_their_rows() -> None:
    x, r, _ = data(2, 600, 5, 3, mean=20.0)
    xx, xr = summed(Moments, x, r).centered()
    for group in range(2):
        both = np.cov(np.concatenate([x[group], r[group]], axis=1, dtype=np.float64).T, bias=True)
        np.testing.assert_allclose(xx[group], both[:5, :5], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(xr[group], both[:5, 5:], rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------- very wide layers


@EXAMPLES
@given(
    st.sampled_from([(1, 40, 8), (1, 40, 100), (3, 30, 12), (1, 500, 20)]), st.booleans(), st.sampled_from([0.0, 10.0])
)
def test_rows_give_the_fit_of_their_sums(sizes: tuple[int, int, int], with_offset: bool, mean: float) -> None:
    groups, rows, inputs = sizes
    x, r, _ = data(groups, rows, inputs, 3, noise=0.5, mean=mean)
    one, other = (best_fit(*halves(form, x, r), with_offset) for form in (Moments, Rows))
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        apart = mean_square(x, x @ one.slope + one.offset[:, None], other.slope, other.offset)
        assert (apart <= 1e-4 * np.square(r).mean()).all()
        if rows > inputs:
            np.testing.assert_allclose(one.slope, other.slope, atol=0.01 * np.abs(one.slope).max())


def test_the_form_is_chosen_by_the_number_of_inputs() -> None:
    assert isinstance(new_sums(1, 300, 3), Moments)
    assert isinstance(new_sums(1, WIDEST + 1, 3), Rows)
    wide = new_sums(2, 6000, 3)
    assert isinstance(wide, Rows)
    assert wide.shape == (2, 6000, 3)
    assert wide.most <= moments.KEPT_ROWS
    wider = new_sums(1, 200_000, 3)
    assert isinstance(wider, Rows)
    assert wider.most * 200_000 <= moments.KEPT_NUMBERS


def test_a_very_wide_fit_needs_no_product_of_all_inputs() -> None:
    rng = np.random.default_rng(0)
    inputs = WIDEST + 500
    base = rng.standard_normal((1, 250, 10)).astype(np.float32)
    x = base @ rng.standard_normal((10, inputs)).astype(np.float32)
    r = base @ rng.standard_normal((10, 2)).astype(np.float32) + np.float32(3)
    seen, unseen = new_sums(1, inputs, 2), new_sums(1, inputs, 2)
    seen.add(x[:, :200], r[:, :200])
    unseen.add(x[:, 200:], r[:, 200:])
    tracemalloc.start()
    try:
        found = best_fit(seen, unseen, True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert 0 < peak < inputs * inputs
    assert mean_square(x, r, found.slope, found.offset)[0] < 1e-4 * np.var(r)


def test_rows_that_repeat_each_other_are_fitted_precisely() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((1, 1000, 10)) * 10.0 ** -np.arange(10)[:, None].T
    x = (base @ rng.standard_normal((10, 60)) + 10).astype(np.float32)
    r = (base @ (rng.standard_normal((10, 2)) * 10.0 ** (np.arange(10)[:, None] / 2))).astype(np.float32)
    seen, unseen = halves(Rows, x, r)
    errors = seen.errors(RIDGES, unseen, True)
    for ridge, error in zip(RIDGES, errors, strict=True):
        slope, offset = plain(x[:, :800], r[:, :800], True, ridge)
        expected = mean_square(x[:, 800:], r[:, 800:], slope, offset).sum()
        assert error == pytest.approx(expected, rel=0.02, abs=1e-6 * float(r.var()))


def test_rows_are_kept_from_all_batches_alike() -> None:
    rows = Rows(1, 2, 1, most=100)
    number = 0
    for size in (7, 0, 501, 1, 64, 300, 127):
        x = np.arange(number, number + size, dtype=np.float32)[None, :, None]
        rows.add(np.concatenate([x, -x], axis=2), 2 * x)
        number += size
        assert rows.x.shape[1] <= 100
    kept = rows.x[0, :, 0]
    np.testing.assert_array_equal(rows.x[0, :, 1], -kept)
    np.testing.assert_array_equal(rows.r[0, :, 0], 2 * kept)
    np.testing.assert_array_equal(kept, np.arange(0, number, 16))
    assert len(kept) > 50


def test_rows_added_up_count_alike() -> None:
    many, few = Rows(1, 1, 1, most=64), Rows(1, 1, 1, most=64)
    many.add(np.zeros((1, 1000, 1), np.float32), np.zeros((1, 1000, 1), np.float32))
    few.add(np.ones((1, 48, 1), np.float32), np.ones((1, 48, 1), np.float32))
    assert many.step == 16
    total = many + few
    assert total.x.sum() == 3  # of 48, one in 16
    assert total.x.shape[1] == 63 + 3
    assert many.x.shape[1] == 63
    assert few.x.shape[1] == 48


def test_rows_that_were_kept_do_not_change_with_the_array_they_came_from() -> None:
    rows = Rows(1, 1, 1)
    x = np.ones((1, 10, 1), np.float32)
    rows.add(x, x)
    x[:] = 7
    assert rows.x.max() == 1
    assert rows.r.max() == 1


def test_two_forms_do_not_mix() -> None:
    with pytest.raises(TypeError, match="one form"):
        best_fit(Moments(1, 2, 1), Rows(1, 2, 1), True)
