"""Least squares over more rows than memory holds: their sums are enough, or, for very wide layers, some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxprune.weights import Array, Floats

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried in turn: parts of the mean variance of the inputs that are added to each input's own.

Smaller ones would be lost in the noise of products in single precision.
"""

WIDEST = 5_000  # inputs of which all products are summed up; of more, rows are kept
KEPT_ROWS = 4_096
KEPT_NUMBERS = 100_000_000  # of these rows
FEW_INPUTS = 64  # as many are solved for all groups at once
NOISE = 1e-13  # of a square, in what is left of it when the mean is taken off
SINGLE_NOISE = 1e-7  # of a variance, in products in single precision
DOUBLE_NOISE = 1e-15  # the same in double precision
COLUMNS = 2_048  # of rows that are brought to double precision at once


@dataclass(frozen=True)
class Fit:
    """A line through rows: ``r ~ x @ slope + offset``.

    Attributes:
        slope: (groups, inputs, outputs).
        offset: (groups, outputs).
    """

    slope: Floats
    offset: Floats


class Moments:
    """Sums over rows of inputs x and of what is to be explained by them, r; in float64, per group.

    The mean of the first rows is taken off all of them: single precision is enough for what is left.

    Args:
        groups: independent fits side by side.
        inputs: length of a row of x.
        outputs: length of a row of r.
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        self.rows = 0
        self.x_shift = np.zeros((groups, inputs))
        self.r_shift = np.zeros((groups, outputs))
        self.x = np.zeros((groups, inputs))
        self.r = np.zeros((groups, outputs))
        self.xx = np.zeros((groups, inputs, inputs))
        self.xr = np.zeros((groups, inputs, outputs))
        self.rr = np.zeros((groups, outputs))

    def add(self, x: Array, r: Array) -> None:
        """Add rows: x (groups, rows, inputs) and r (groups, rows, outputs)."""
        if not x.shape[1]:
            return
        x, r = _floats(x), _floats(r)
        with np.errstate(over="ignore", invalid="ignore"):  # of what is not finite no fit is made
            if not self.rows:
                self.x_shift, self.r_shift = x.mean(axis=1).astype(np.float64), r.mean(axis=1).astype(np.float64)
            x = x - self.x_shift[:, None].astype(x.dtype)
            r = r - self.r_shift[:, None].astype(r.dtype)
            turned = x.swapaxes(1, 2)
            self.rows += x.shape[1]
            self.x += x.sum(axis=1, dtype=np.float64)
            self.r += r.sum(axis=1, dtype=np.float64)
            self.xx += turned @ x
            self.xr += turned @ r
            self.rr += np.einsum("gro,gro->go", r, r, dtype=np.float64)

    def __add__(self, other: Moments) -> Moments:
        other = other._shifted(self.x_shift, self.r_shift)
        for name in ("rows", "x", "r", "xx", "xr", "rr"):
            setattr(other, name, getattr(self, name) + getattr(other, name))
        return other

    def _shifted(self, x_shift: Floats, r_shift: Floats) -> Moments:
        """Give the sums as they are with other numbers taken off the rows."""
        x, r, rows = self.x_shift - x_shift, self.r_shift - r_shift, self.rows
        moved = Moments(*self.xr.shape)
        moved.rows, moved.x_shift, moved.r_shift = rows, x_shift, r_shift
        moved.x, moved.r = self.x + rows * x, self.r + rows * r
        moved.xx = self.xx + _outer(x, moved.x) + _outer(self.x, x)
        moved.xr = self.xr + _outer(x, moved.r) + _outer(self.x, r)
        moved.rr = self.rr + r * (self.r + moved.r)
        return moved

    @property
    def is_finite(self) -> bool:
        """Whether there are numbers to calculate with."""
        return bool(np.isfinite(self.xx).all() and np.isfinite(self.xr).all() and np.isfinite(self.rr).all())

    @property
    def means(self) -> tuple[Floats, Floats]:
        """Means of x and r."""
        rows = max(self.rows, 1)
        return self.x_shift + self.x / rows, self.r_shift + self.r / rows

    @property
    def unexplained(self) -> float:
        """Mean square of r, summed over outputs and groups."""
        rows = max(self.rows, 1)
        return float((self.rr / rows - (self.r / rows) ** 2 + self.means[1] ** 2).sum())

    def centered(self) -> tuple[Floats, Floats]:
        """Give the covariances (groups, inputs, inputs) of x, and (groups, inputs, outputs) of x and r, per row."""
        rows = max(self.rows, 1)
        return (self.xx - _outer(self.x, self.x / rows)) / rows, (self.xr - _outer(self.x, self.r / rows)) / rows

    def error(self, slope: Floats, offset: Floats) -> Floats:
        """Give the mean squared error of ``r ~ x @ slope + offset``, summed over outputs, per group."""
        return self._error(*self.centered(), slope, offset)

    def _error(self, xx: Floats, xr: Floats, slope: Floats, offset: Floats) -> Floats:
        rows = max(self.rows, 1)
        x, r = self.means
        spread = np.einsum("gio,gio->g", slope, xx @ slope - 2 * xr) + (self.rr - self.r**2 / rows).sum(axis=1) / rows
        shift = np.einsum("gi,gio->go", x, slope) + offset - r
        return np.asarray(np.maximum(spread, 0) + (shift**2).sum(axis=1))

    def fits(self, ridges: Sequence[float], with_offset: bool) -> Iterator[Fit]:
        """Fit with each of these ridges, see `fit`."""
        rows = max(self.rows, 1)
        x, r = self.means
        if with_offset:
            xx, xr = self.centered()
        else:
            plain = self._shifted(np.zeros_like(x), np.zeros_like(r))
            xx, xr = plain.xx / rows, plain.xr / rows
        noise = NOISE * (np.einsum("gii->g", xx) / x.shape[1] + (x**2).mean(axis=1))
        for ridge in ridges:
            slope = _solved(xx, xr, ridge, noise) if np.isfinite(ridge) else np.zeros_like(xr)
            offset = r - np.einsum("gi,gio->go", x, slope) if with_offset else np.zeros_like(r)
            yield Fit(slope, offset)

    def errors(self, ridges: Sequence[float], unseen: Moments, with_offset: bool) -> list[float]:
        """Give the error on other rows of a fit with each of these ridges, summed over groups."""
        xx, xr = unseen.centered()
        found = self.fits(ridges, with_offset)
        return [float(unseen._error(xx, xr, line.slope, line.offset).sum()) for line in found]


class Rows:
    """Rows of inputs x and of what is to be explained by them, r, where there are too many inputs for `Moments`.

    Of more rows than are kept every second goes, as often as needed: what stays comes from all batches alike.

    Args:
        groups: independent fits side by side.
        inputs: length of a row of x.
        outputs: length of a row of r.
        most: rows to keep.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, most: int = KEPT_ROWS) -> None:
        self.shape = (groups, inputs, outputs)
        self.most = most
        self.step = 1
        self._added = 0
        self._kept = 0
        self._parts: list[tuple[Array, Array]] = []

    def add(self, x: Array, r: Array) -> None:
        """Add rows: x (groups, rows, inputs) and r (groups, rows, outputs)."""
        first = -self._added % self.step
        self._added += x.shape[1]
        self._keep(_floats(x[:, first :: self.step]), _floats(r[:, first :: self.step]))
        while self._kept > self.most:
            self._thin()

    def __add__(self, other: Rows) -> Rows:
        total = Rows(*self.shape, self.most + other.most)
        step = max(self.step, other.step)
        for rows in (self, other):
            for x, r in rows._thinned(step // rows.step):
                total._keep(x, r)
        return total

    def _keep(self, x: Array, r: Array) -> None:
        if x.shape[1]:
            self._parts.append((x.copy(), r.copy()))
            self._kept += x.shape[1]

    def _thin(self) -> None:
        parts = list(self._thinned(2))
        self.step, self._kept, self._parts = 2 * self.step, 0, []
        for x, r in parts:
            self._keep(x, r)

    def _thinned(self, step: int) -> list[tuple[Array, Array]]:
        """Give one row in so many."""
        found, count = [], 0
        for x, r in self._parts:
            first = -count % step
            found.append((x[:, first::step], r[:, first::step]))
            count += x.shape[1]
        return found

    @property
    def x(self) -> Array:
        """The inputs that are kept, (groups, rows, inputs)."""
        return np.concatenate([x for x, _ in self._parts] or [np.zeros((self.shape[0], 0, self.shape[1]))], axis=1)

    @property
    def r(self) -> Array:
        """What is to be explained by them, (groups, rows, outputs)."""
        return np.concatenate([r for _, r in self._parts] or [np.zeros((self.shape[0], 0, self.shape[2]))], axis=1)

    @property
    def is_finite(self) -> bool:
        """Whether there are numbers to calculate with."""
        with np.errstate(over="ignore", invalid="ignore"):
            return all(np.isfinite(np.vdot(part, part)) for pair in self._parts for part in pair)

    @property
    def unexplained(self) -> float:
        """Mean square of r, summed over outputs and groups."""
        return float(np.square(self.r, dtype=np.float64).sum() / max(self._kept, 1))

    def error(self, slope: Floats, offset: Floats) -> Floats:
        """Give the mean squared error of ``r ~ x @ slope + offset``, summed over outputs, per group."""
        left = self.x @ slope + offset[:, None] - self.r
        return np.asarray(np.square(left).sum(axis=(1, 2)) / max(self._kept, 1))

    def fits(self, ridges: Sequence[float], with_offset: bool) -> Iterator[Fit]:
        """Fit with each of these ridges, see `fit`."""
        systems = self._systems(with_offset)
        for ridge in ridges:
            lines = [system.line(ridge) for system in systems]
            yield Fit(np.stack([slope for slope, _ in lines]), np.stack([offset for _, offset in lines]))

    def errors(self, ridges: Sequence[float], unseen: Rows, with_offset: bool) -> list[float]:
        """Give the error on other rows of a fit with each of these ridges, summed over groups."""
        totals = np.zeros(len(ridges))
        for system, x, r in zip(self._systems(with_offset), unseen.x, unseen.r, strict=True):
            totals += system.errors(ridges, x, r)
        return [float(total) for total in totals / max(unseen._kept, 1)]

    def _systems(self, with_offset: bool) -> list[_System]:
        return [_System(x, r, with_offset) for x, r in zip(self.x, self.r, strict=True)]


class _System:
    """The equations of one group of `Rows`: one unknown for each row, which say how the slope is made of the rows.

    Args:
        x: (rows, inputs).
        r: (rows, outputs).
        with_offset: whether there is an offset to fit.
    """

    def __init__(self, x: Array, r: Array, with_offset: bool) -> None:
        rows, inputs = x.shape
        self.x_mean = x.mean(axis=0) if with_offset and rows else np.zeros(inputs, x.dtype)
        self.r_mean = r.mean(axis=0, dtype=np.float64) if with_offset and rows else np.zeros(r.shape[1])
        square = float(np.square(x, dtype=np.float64).mean()) if rows else 0.0
        self.x = x - self.x_mean
        self.r = r - self.r_mean
        self.products = _products(self.x, self.x)
        self.scale = float(np.trace(self.products)) / max(inputs, 1)
        self.noise = NOISE * square * rows

    def shares(self, ridge: float) -> Floats:
        """Give what of each row goes into the slope, (rows, outputs)."""
        if not np.isfinite(ridge):
            return np.zeros_like(self.r)
        return _cholesky_solved(self.products, self.r, ridge, self.scale, self.noise, DOUBLE_NOISE)

    def line(self, ridge: float) -> tuple[Floats, Floats]:
        """Fit slope (inputs, outputs) and offset (outputs)."""
        shares = self.shares(ridge)
        slope = np.zeros((self.x.shape[1], shares.shape[1]))
        for start in range(0, len(slope), COLUMNS):
            slope[start : start + COLUMNS] = self.x[:, start : start + COLUMNS].T @ shares
        return slope, self.r_mean - self.x_mean.astype(np.float64) @ slope

    def errors(self, ridges: Sequence[float], x: Array, r: Array) -> list[float]:
        """Give the squared error on other rows with each of these ridges."""
        products, left = _products(x - self.x_mean, self.x), r - self.r_mean
        return [float(np.square(left - products @ self.shares(ridge)).sum()) for ridge in ridges]


Sums = TypeVar("Sums", Moments, Rows)


def new_sums(groups: int, inputs: int, outputs: int) -> Moments | Rows:
    """Give what a fit of so many inputs is made of."""
    if inputs <= WIDEST:
        return Moments(groups, inputs, outputs)
    most = KEPT_NUMBERS // (groups * (inputs + outputs))
    return Rows(groups, inputs, outputs, int(np.clip(most, 64, KEPT_ROWS)))


def fit(sums: Moments | Rows, ridge: float, with_offset: bool) -> Fit:
    """Fit with a ridge that pulls the slope to 0.

    Args:
        sums: of the rows.
        ridge: added to the variance of each input, as a part of their mean; inf fits the offset alone.
        with_offset: whether there is an offset to fit.
    """
    return next(iter(sums.fits([ridge], with_offset)))


def best_fit(seen: Moments | Rows, unseen: Moments | Rows, with_offset: bool) -> Fit | None:
    """Fit with the ridge that explains unseen rows best, then on all rows; None where nothing explains them better.

    Args:
        seen: rows to fit on.
        unseen: rows of other samples, in the same form.
        with_offset: whether there is an offset to fit.
    """
    if isinstance(seen, Moments) and isinstance(unseen, Moments):
        return _best_fit(seen, unseen, with_offset)
    if isinstance(seen, Rows) and isinstance(unseen, Rows):
        return _best_fit(seen, unseen, with_offset)
    raise TypeError("rows that are seen and rows that are not come in one form")


def _best_fit(seen: Sums, unseen: Sums, with_offset: bool) -> Fit | None:
    if not (seen.is_finite and unseen.is_finite):
        return None
    best, least = None, unseen.unexplained
    ridges = (*RIDGES, np.inf)
    for ridge, error in zip(ridges, seen.errors(ridges, unseen, with_offset), strict=True):
        if error < least * (1 - 1e-9):
            best, least = ridge, error
    return None if best is None else fit(seen + unseen, best, with_offset)


def _floats(values: Array) -> Array:
    """Give numbers in single precision at least."""
    return values if values.dtype == np.float64 else values.astype(np.float32, copy=False)


def _outer(a: Floats, b: Floats) -> Floats:
    """Multiply each number of a with each of b, per group."""
    return np.asarray(a[:, :, None] * b[:, None, :])


def _products(a: Array, b: Array) -> Floats:
    """Multiply rows with rows in double precision, few columns at a time: (rows of a, rows of b)."""
    total: Floats = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], COLUMNS):
        one = a[:, start : start + COLUMNS].astype(np.float64)
        total += one @ (one if b is a else b[:, start : start + COLUMNS].astype(np.float64)).T
    return total


def _solved(xx: Floats, xr: Floats, ridge: float, noise: Floats) -> Floats:
    """Solve (xx + ridge) slope = xr, per group."""
    scale = np.einsum("gii->g", xx) / max(xx.shape[1], 1)
    if xx.shape[1] > FEW_INPUTS:
        groups = zip(xx, xr, scale, noise, strict=True)
        return np.stack([_cholesky_solved(a, b, ridge, s, least, SINGLE_NOISE) for a, b, s, least in groups])
    values, vectors = np.linalg.eigh(xx)
    least = np.maximum(SINGLE_NOISE * values[:, -1:], noise[:, None] + 1e-30)
    values = np.maximum(values + ridge * scale[:, None], least)
    return np.asarray(vectors @ (vectors.swapaxes(1, 2) @ xr / values[:, :, None]))


def _cholesky_solved(
    products: Floats, right: Floats, ridge: float, scale: float, noise: float, precision: float
) -> Floats:
    """Solve (products + ridge) unknowns = right; where that is singular, or lost in noise, with more of a ridge."""
    scale, noise = max(scale, 0.0), noise + 1e-30
    while np.isfinite(ridge):
        ridged = products.copy()
        ridged.flat[:: len(ridged) + 1] += ridge * scale + noise
        variances = ridged.diagonal().copy()
        try:
            factor = cho_factor(ridged, overwrite_a=True, check_finite=False)
        except LinAlgError:
            factor = None
        # The square of a pivot is what of a variance the inputs before it do not explain.
        if factor is None or (np.square(factor[0].diagonal()) < precision * variances).any():
            ridge, noise = ridge * 10, noise * 10
            continue
        return np.asarray(cho_solve(factor, right, check_finite=False))
    return np.zeros_like(right)
