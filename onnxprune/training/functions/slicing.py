"""Operators that take pieces of tensors, or put them together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, Result, Sizes, function, numbers


@function("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    """Concat."""
    return torch.cat(inputs, int(call.attribute("axis", 1)))


@function("Split", sizes=(1,))
def split(call: Call, data: Tensor, sizes: Sizes | None = None) -> Result:
    """Split, by sizes or into equal parts, of which the last may be smaller."""
    axis = int(call.attribute("axis", 0))
    given = call.attribute("split") if sizes is None else sizes
    if given is None:
        parts = int(call.attribute("num_outputs", call.outputs))
        found = torch.split(data, -(-data.shape[axis] // parts), axis)
    else:
        found = torch.split(data, numbers(given), axis)
    return call.given(found)


@function("Slice", sizes=(1, 2, 3, 4))
def slice_(
    call: Call,
    data: Tensor,
    starts: Sizes | None = None,
    ends: Sizes | None = None,
    axes: Sizes | None = None,
    steps: Sizes | None = None,
) -> Tensor:
    """Slice; steps below zero go backwards."""
    firsts = numbers(call.attribute("starts") if starts is None else starts)
    lasts = numbers(call.attribute("ends") if ends is None else ends)
    given = call.attribute("axes") if axes is None else axes
    chosen = list(range(len(firsts))) if given is None else numbers(given)
    strides = [1] * len(firsts) if steps is None else numbers(steps)
    for first, last, axis, step in zip(firsts, lasts, chosen, strides, strict=True):
        axis %= data.ndim
        picked = range(data.shape[axis])[first:last:step]
        if step > 0:
            index = [slice(None)] * axis + [slice(picked.start, max(picked.stop, picked.start), step)]
            data = data[tuple(index)]
        else:
            run = [slice(None)] * axis + [slice(picked[-1], picked[0] + 1, -step) if picked else slice(0, 0)]
            data = data[tuple(run)].flip(axis)
    return data


@function("Pad", sizes=(1, 2, 3))
def pad(
    call: Call, data: Tensor, pads: Sizes | None = None, constant: Sizes | None = None, axes: Sizes | None = None
) -> Tensor:
    """Pad with a constant, or with what lies at the edges or inside; pads below zero cut."""
    given = numbers(call.attribute("pads") if pads is None else pads)
    chosen = list(range(data.ndim)) if axes is None else [axis % data.ndim for axis in numbers(axes)]
    before = dict(zip(chosen, given[: len(chosen)], strict=True))
    after = dict(zip(chosen, given[len(chosen) :], strict=True))
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        flat = [n for axis in reversed(range(data.ndim)) for n in (before.get(axis, 0), after.get(axis, 0))]
        value = call.attribute("value", 0.0) if constant is None else numbers(constant)[0]
        return F.pad(data, flat, value=value)
    for axis in chosen:
        if before[axis] or after[axis]:
            index = padded_positions(data.shape[axis], before[axis], after[axis], mode)
            data = data.index_select(axis, torch.tensor(index, device=data.device))
    return data


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def padded_positions(size: int, before: int, after: int, mode: str) -> list[int]:
    """Tell where each number of a padded axis comes from."""
    positions = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
    kind: Any = mode
    found: list[int] = np.pad(positions, (max(before, 0), max(after, 0)), mode=kind).tolist()
    return found


@function("Trilu", sizes=(1,))
def trilu(call: Call, x: Tensor, k: Sizes | None = None) -> Tensor:
    """Trilu: the upper or the lower triangle of matrices."""
    diagonal = 0 if k is None else int(numbers(k)[0])
    return torch.triu(x, diagonal) if call.attribute("upper", 1) else torch.tril(x, diagonal)
