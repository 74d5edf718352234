"""Operators that look numbers up at positions, or write them there; what is stored to be written is not trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnxprune.training.functions.call import Call, Result, Sizes, function, numbers

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@function("Gather")
def gather(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    """Gather: indices take the place of an axis."""
    axis = int(call.attribute("axis", 0)) % data.ndim
    found = data.index_select(axis, wrapped(indices, data.shape[axis]).reshape(-1))
    return found.reshape((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))


@function("GatherElements")
def gather_elements(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    """GatherElements: data and indices lie side by side."""
    axis = int(call.attribute("axis", 0))
    return torch.gather(data, axis, wrapped(indices, data.shape[axis]))


@function("GatherND")
def gather_nd(call: Call, data: Tensor, indices: Tensor) -> Tensor:
    """GatherND: the last axis of the indices holds positions along axes of the data."""
    batch, depth = int(call.attribute("batch_dims", 0)), indices.shape[-1]
    shared = math.prod(data.shape[:batch])
    sizes, rest = data.shape[batch : batch + depth], data.shape[batch + depth :]
    rows = flat_positions(indices, sizes).reshape(shared, -1)
    rows = rows + math.prod(sizes) * torch.arange(shared, device=data.device).unsqueeze(1)
    found = data.reshape(shared * math.prod(sizes), *rest).index_select(0, rows.reshape(-1))
    return found.reshape((*indices.shape[:-1], *rest))


@function("Scatter", "ScatterElements", fixed=(0, 2))
def scatter_elements(call: Call, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterElements: data, indices and updates lie side by side."""
    axis = int(call.attribute("axis", 0))
    return scattered(call, data, axis, wrapped(indices, data.shape[axis]), updates)


@function("ScatterND", fixed=(0, 2))
def scatter_nd(call: Call, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterND: the last axis of the indices holds positions along the first axes of the data."""
    depth = indices.shape[-1]
    rows = flat_positions(indices, data.shape[:depth]).reshape(-1, 1)
    flat = data.reshape(math.prod(data.shape[:depth]), -1)
    updates = updates.reshape(len(rows), flat.shape[1])
    return scattered(call, flat, 0, rows.expand_as(updates), updates).reshape(data.shape)


def scattered(call: Call, data: Tensor, axis: int, indices: Tensor, updates: Tensor) -> Tensor:
    """Write updates to where indices say, in place of what is there or together with it."""
    reduction, updates = call.attribute("reduction", "none"), updates.to(data.dtype)
    if reduction == "none":
        return data.scatter(axis, indices, updates)
    return data.scatter_reduce(axis, indices, updates, REDUCTIONS[reduction])


def wrapped(indices: Tensor, size: int) -> Tensor:
    """Let indices below zero count from the end."""
    return torch.where(indices < 0, indices + size, indices).long()


def flat_positions(indices: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Turn positions along several axes, which the last axis holds, into positions along all of them flattened."""
    found = torch.zeros_like(indices[..., 0], dtype=torch.long)
    for axis, size in enumerate(sizes):
        found = found * size + wrapped(indices[..., axis], size)
    return found


@function("Compress", sizes=(1,))
def compress(call: Call, data: Tensor, condition: Sizes) -> Tensor:
    """Compress: indices stay where a condition holds."""
    axis = call.attribute("axis")
    kept = [index for index, keep in enumerate(numbers(condition)) if keep]
    flat = data.reshape(-1) if axis is None else data
    return flat.index_select(axis or 0, torch.tensor(kept, dtype=torch.long, device=data.device))


@function("ReverseSequence")
def reverse_sequence(call: Call, data: Tensor, lengths: Tensor) -> Tensor:
    """ReverseSequence: the first so many steps of each sequence, backwards."""
    return reversed_steps(data, lengths, int(call.attribute("time_axis", 0)), int(call.attribute("batch_axis", 1)))


def reversed_steps(data: Tensor, lengths: Tensor, time: int, batch: int) -> Tensor:
    """Reverse the first so many steps of each sequence."""
    moved = data.movedim((time, batch), (0, 1))
    steps = torch.arange(len(moved), device=data.device).unsqueeze(1)
    source = torch.where(steps < lengths, lengths - 1 - steps, steps).long()
    found = moved[source, torch.arange(len(lengths), device=data.device)]
    return found.movedim((0, 1), (time, batch))


@function("TopK", sizes=(1,))
def top_k(call: Call, x: Tensor, k: Sizes | None = None) -> Result:
    """TopK: of equal numbers, those with lower indices come first."""
    axis, count = int(call.attribute("axis", -1)), int(call.attribute("k") if k is None else numbers(k)[0])
    values, indices = torch.sort(x, dim=axis, descending=bool(call.attribute("largest", 1)), stable=True)
    return call.given([values.narrow(axis, 0, count), indices.narrow(axis, 0, count)])


@function("NonZero")
def non_zero(call: Call, x: Tensor) -> Tensor:
    """NonZero: a row of positions for each axis."""
    return torch.nonzero(x).T


@function("OneHot", sizes=(1,), fixed=(2,))
def one_hot(call: Call, indices: Tensor, depth: Sizes, values: Tensor) -> Tensor:
    """OneHot: indices beyond the depth are off everywhere."""
    count, axis = int(numbers(depth)[0]), int(call.attribute("axis", -1))
    axis += indices.ndim + 1 if axis < 0 else 0
    places = torch.arange(count, device=indices.device).reshape(-1, *[1] * (indices.ndim - axis))
    hot = wrapped(indices, count).unsqueeze(axis) == places
    return torch.where(hot, values[1], values[0])
