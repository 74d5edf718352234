"""Resize and Upsample: each number of an axis is a weighted sum of numbers before, whatever the other axes do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, Sizes, function, numbers

NEAREST: dict[str, Callable[[float], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: math.floor(x + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}
SIMPLE = "simple"  # what onnxruntime does up to opset 10, where the standard is silent: down; up where an axis shrinks
HALF_PIXEL = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
Taps = tuple[list[list[int]], list[list[float]], list[bool]]
TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


class Manner(NamedTuple):
    """How an axis is resized; see the standard's Resize.

    Attributes:
        mode: nearest, linear or cubic.
        coordinates: how positions after belong to positions before.
        nearest: how positions between numbers are rounded.
        cubic: the coefficient of cubic interpolation.
        excludes: whether what lies outside has no weight, instead of that of the edge.
        smooths: whether an axis that shrinks is smoothed.
    """

    mode: str
    coordinates: str
    nearest: str = "floor"
    cubic: float = -0.75
    excludes: bool = False
    smooths: bool = False


class Axis(NamedTuple):
    """One axis: its size before and after, the scale between them, and the region that is taken."""

    before: int
    after: int
    scale: float
    region: tuple[float, float] = (0.0, 1.0)


@function("Upsample", sizes=(1,))
def upsample(call: Call, x: Tensor, scales: Sizes | None = None) -> Tensor:
    """Upsample: positions are divided by the scale."""
    given = numbers(call.attribute("scales") if scales is None else scales)
    axes = {place: Axis(n, math.floor(n * s), s) for place, (n, s) in enumerate(zip(x.shape, given, strict=True))}
    return _resized(x, axes, Manner(_mode(call), "asymmetric", SIMPLE), None)


@function("Resize", sizes=(1, 2, 3))
def resize(
    call: Call, x: Tensor, roi: Sizes | None = None, scales: Sizes | None = None, sizes: Sizes | None = None
) -> Tensor:
    """Resize by scales or to sizes; in opset 10 scales come second, and positions are divided by them."""
    if call.version < 11:
        return upsample(call, x, roi)
    manner = Manner(
        _mode(call),
        call.attribute("coordinate_transformation_mode", "half_pixel"),
        call.attribute("nearest_mode", "round_prefer_floor"),
        float(call.attribute("cubic_coeff_a", -0.75)),
        bool(call.attribute("exclude_outside", 0)),
        bool(call.attribute("antialias", 0)),
    )
    chosen = [axis % x.ndim for axis in call.attribute("axes", range(x.ndim))]
    found = [x.shape[axis] for axis in chosen]
    factors = [] if scales is None else numbers(scales)
    if factors:
        wanted = [math.floor(n * s) for n, s in zip(found, factors, strict=True)]
    else:
        wanted, factors = _wanted(call, found, numbers([] if sizes is None else sizes))
    crops = manner.coordinates == "tf_crop_and_resize" and roi is not None
    edges = numbers(roi) if crops and roi is not None else [0.0] * len(chosen) + [1.0] * len(chosen)
    regions = zip(edges[: len(chosen)], edges[len(chosen) :], strict=True)
    axes = {a: Axis(*rest) for a, *rest in zip(chosen, found, wanted, factors, regions, strict=True)}
    return _resized(x, axes, manner, float(call.attribute("extrapolation_value", 0.0)) if crops else None)


def _mode(call: Call) -> str:
    mode: str = call.attribute("mode", "nearest")
    return "linear" if mode == "bilinear" else mode


def _wanted(call: Call, found: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[float]]:
    """Give the sizes after and the scales, where sizes are asked for that may be bounds only."""
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    scales = [m / n for m, n in zip(sizes, found, strict=True)]
    if policy == "stretch":
        return list(sizes), scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [math.floor(scale * n + 0.5) for n in found], [scale] * len(found)


def _resized(x: Tensor, axes: dict[int, Axis], manner: Manner, outside: float | None) -> Tensor:
    """Resize axis by axis, by torch's own means where they do the same.

    Args:
        x: what is resized.
        axes: which axes, and how.
        manner: of all of them.
        outside: what positions outside the image hold; None: what the edge does.
    """
    moved = {place: axis for place, axis in axes.items() if axis.after != axis.before or axis.region != (0, 1)}
    if moved and min(moved) > 1 and 3 <= x.ndim <= 5 and x.is_floating_point():
        sizes = [axes[place].after if place in moved else n for place, n in enumerate(x.shape)][2:]
        if all(_repeats(axis, manner) for axis in moved.values()):
            return F.interpolate(x, sizes)
        if all(_is_half_pixel(axis, manner) for axis in moved.values()):
            return F.interpolate(x, sizes, mode=TORCH_LINEAR[x.ndim], align_corners=False)
    for place, axis in moved.items():
        x = _along(x, place, axis, manner, outside)
    return x


def _is_half_pixel(axis: Axis, manner: Manner) -> bool:
    """Tell whether torch's linear interpolation does the same."""
    plain = manner.mode == "linear" and not manner.smooths and not manner.excludes and axis.after > 1
    return plain and manner.coordinates in HALF_PIXEL and math.isclose(axis.scale, axis.after / axis.before)


def _repeats(axis: Axis, manner: Manner) -> bool:
    """Tell whether each number is repeated so many times."""
    times, rest = divmod(axis.after, axis.before)
    if manner.mode != "nearest" or rest:
        return False
    return all(row == [place // times] for place, row in enumerate(_taps(tuple(axis), tuple(manner))[0]))


def _along(x: Tensor, place: int, axis: Axis, manner: Manner, outside: float | None) -> Tensor:
    """Resize one axis."""
    positions, weights, is_outside = _taps(tuple(axis), tuple(manner))
    rows = torch.tensor(positions, device=x.device)
    shape = [-1, *[1] * (x.ndim - 1 - place)]
    if manner.mode == "nearest":
        result = x.index_select(place, rows[:, 0])
    else:
        kind = x.dtype if x.is_floating_point() else torch.float32
        factors = torch.tensor(weights, device=x.device, dtype=kind)
        terms = [x.index_select(place, rows[:, tap]) * factors[:, tap].reshape(shape) for tap in range(rows.shape[1])]
        result = torch.stack(terms).sum(0).to(x.dtype)
    if outside is not None:
        result = torch.where(torch.tensor(is_outside, device=x.device).reshape(shape), outside, result)
    return result


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _taps(axis: tuple[Any, ...], manner: tuple[Any, ...]) -> Taps:
    """Tell for each number after which ones before it is made of, their weights, and whether it lies outside.

    Plain tuples are all that torch takes for constants where it compiles.
    """
    return _find_taps(Axis(*axis), Manner(*manner))


@cache
def _find_taps(axis: Axis, manner: Manner) -> Taps:
    places = [_place(index, axis, manner.coordinates) for index in range(axis.after)]
    last = axis.before - 1
    is_outside = [not 0 <= place <= last for place in places]
    if manner.mode == "nearest":
        simple = math.ceil if axis.scale < 1 else math.floor
        nearest = simple if manner.nearest == SIMPLE else NEAREST[manner.nearest]
        return [[min(max(nearest(place), 0), last)] for place in places], [[1.0]] * axis.after, is_outside
    shrunk = min(axis.scale, 1.0) if manner.smooths else 1.0
    weigh = _hat if manner.mode == "linear" else _cubic(manner.cubic)
    reach = math.ceil((1 if manner.mode == "linear" else 2) / shrunk)
    positions, weights = [], []
    for place in places:
        taps = range(math.floor(place) - reach + 1, math.floor(place) + reach + 1)
        found = [weigh((tap - place) * shrunk) if not manner.excludes or 0 <= tap <= last else 0.0 for tap in taps]
        total = sum(found)
        positions.append([min(max(tap, 0), last) for tap in taps])
        weights.append([weight / total for weight in found])
    return positions, weights, is_outside


def _place(index: int, axis: Axis, coordinates: str) -> float:
    """Give the position before of a position after, in single precision, which decides where one lies in the middle."""
    place, scale = np.float32(index), np.float32(axis.scale)
    start, end = axis.region
    last = axis.before - 1
    if coordinates == "asymmetric":
        return float(place / scale)
    if coordinates == "align_corners":
        return float(place * last / (axis.after - 1)) if axis.after > 1 else 0.0
    if coordinates == "tf_crop_and_resize":
        if axis.after == 1:
            return (start + end) * last / 2
        return float(start * last + place * (end - start) * last / (axis.after - 1))
    if coordinates == "tf_half_pixel_for_nn":
        return float((place + 0.5) / scale)
    if coordinates == "pytorch_half_pixel" and axis.after == 1:
        return -0.5
    wide = axis.scale * axis.before
    shift = axis.before / 2 * (1 - axis.after / wide) if coordinates == "half_pixel_symmetric" else 0.0
    return float(shift + (place + 0.5) / scale - 0.5)


def _hat(x: float) -> float:
    return max(1 - abs(x), 0.0)


def _cubic(a: float) -> Callable[[float], float]:
    def weigh(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    return weigh
