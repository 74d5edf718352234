"""Operators that reduce axes, or sum over one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, Run, Sizes, function, numbers


def _product(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return x.sum(axes, keepdim=keepdim, dtype=x.dtype)


def norm(order: int, x: Tensor, axes: list[int], keepdim: bool = False) -> Tensor:
    """Give the norm over axes, whose gradient is zero where it is."""
    found: Tensor = torch.linalg.vector_norm(x, order, axes, keepdim)
    return found


def _of_integers(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Reduce integers as floats; what comes out loses its fraction."""

    def reduced(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
        return run(x, axes, keepdim) if x.is_floating_point() else run(x.double(), axes, keepdim).to(x.dtype)

    return reduced


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": _of_integers(partial(norm, 1)),
    "ReduceL2": _of_integers(partial(norm, 2)),
    "ReduceLogSum": _of_integers(lambda x, axes, keepdim: _sum(x, axes, keepdim).log()),
    "ReduceLogSumExp": _of_integers(torch.logsumexp),
    "ReduceMax": torch.amax,
    "ReduceMean": _of_integers(torch.mean),
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keepdim: _sum(x * x, axes, keepdim),
}


def _reduction(run: Callable[[Tensor, list[int], bool], Tensor]) -> Run:
    def reduced(call: Call, data: Tensor, axes: Sizes | None = None) -> Tensor:
        """Reduce the axes that an attribute or an operand names, all where none does."""
        given = call.attribute("axes") if axes is None else axes
        chosen = [] if given is None else numbers(given)
        if not chosen and call.attribute("noop_with_empty_axes", 0):
            return data
        return run(data, chosen or list(range(data.ndim)), bool(call.attribute("keepdims", 1)))

    return reduced


for _op, _run in REDUCTIONS.items():
    function(_op, sizes=(1,))(_reduction(_run))


@function("ArgMax", "ArgMin")
def arg_max(call: Call, data: Tensor) -> Tensor:
    """ArgMax and ArgMin: of equal numbers the first, or the last if asked for."""
    axis, last = int(call.attribute("axis", 0)), bool(call.attribute("select_last_index", 0))
    run = torch.argmax if call.op == "ArgMax" else torch.argmin
    found = run(data.flip(axis) if last else data, axis, bool(call.attribute("keepdims", 1)))
    return data.shape[axis] - 1 - found if last else found


@function("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Softmax."""
    return _along_axis(call, x, F.softmax)


@function("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    """LogSoftmax."""
    return _along_axis(call, x, F.log_softmax)


@function("Hardmax")
def hardmax(call: Call, x: Tensor) -> Tensor:
    """Hardmax: one at the first maximum, zero elsewhere."""
    return _along_axis(call, x, lambda x, dim: torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0))


def _along_axis(call: Call, x: Tensor, run: Callable[..., Tensor]) -> Tensor:
    """Run along an axis; before opset 13 all axes from it on count as one."""
    if call.version >= 13:
        return run(x, dim=int(call.attribute("axis", -1)))
    axis = int(call.attribute("axis", 1)) % x.ndim
    return run(x.flatten(axis), dim=axis).reshape(x.shape)
