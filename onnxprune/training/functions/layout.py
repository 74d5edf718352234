"""Operators that give numbers another shape or order."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from onnxprune.training.functions.call import Call, Sizes, function, numbers


@function("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Flatten: two axes stay."""
    axis = int(call.attribute("axis", 1))
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


@function("Reshape", sizes=(1,))
def reshape(call: Call, data: Tensor, shape: Sizes | None = None) -> Tensor:
    """Reshape: 0 keeps a size, unless `allowzero` is set, and -1 takes what is left."""
    sizes = numbers(call.attribute("shape") if shape is None else shape)
    if not call.attribute("allowzero", 0):
        sizes = [data.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return data.reshape(sizes)


@function("Transpose")
def transpose(call: Call, data: Tensor) -> Tensor:
    """Transpose, by default to the reverse order."""
    return data.permute(call.attribute("perm", list(reversed(range(data.ndim)))))


@function("Squeeze", sizes=(1,))
def squeeze(call: Call, data: Tensor, axes: Sizes | None = None) -> Tensor:
    """Squeeze the axes named, or all of size 1."""
    given = call.attribute("axes") if axes is None else axes
    return data.squeeze() if given is None else data.squeeze(numbers(given))


@function("Unsqueeze", sizes=(1,))
def unsqueeze(call: Call, data: Tensor, axes: Sizes | None = None) -> Tensor:
    """Unsqueeze: axes count in the result."""
    given = numbers(call.attribute("axes") if axes is None else axes)
    for axis in sorted(axis % (data.ndim + len(given)) for axis in given):
        data = data.unsqueeze(axis)
    return data


@function("Expand", sizes=(1,))
def expand(call: Call, data: Tensor, shape: Sizes) -> Tensor:
    """Expand: both shapes are broadcast."""
    return data.expand(np.broadcast_shapes(data.shape, tuple(numbers(shape))))


@function("Tile", sizes=(1,))
def tile(call: Call, data: Tensor, repeats: Sizes) -> Tensor:
    """Tile."""
    return data.repeat(numbers(repeats))


@function("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """DepthToSpace: channels become pixels, the block before the channels or behind them."""
    n, c, h, w = x.shape
    block = int(call.attribute("blocksize"))
    if call.attribute("mode", "DCR") == "DCR":
        x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // block**2, h * block, w * block)


@function("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """SpaceToDepth: pixels become channels, the block before the channels or behind them."""
    n, c, h, w = x.shape
    block = int(call.attribute("blocksize"))
    order = (0, 3, 5, 1, 2, 4) if call.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    x = x.reshape(n, c, h // block, block, w // block, block).permute(order)
    return x.reshape(n, c * block**2, h // block, w // block)


@function("Col2Im", sizes=(1, 2))
def col2im(call: Call, x: Tensor, image: Sizes, block: Sizes) -> Tensor:
    """Col2Im: blocks (batch, channels * block, positions) are added up where they overlap, and what pads is cut off."""
    sizes, kernel = numbers(image), numbers(block)
    rank = len(sizes)
    strides, dilations = (call.attribute(name, [1] * rank) for name in ("strides", "dilations"))
    pads = call.attribute("pads", [0] * (2 * rank))
    padded = [size + before + after for size, before, after in zip(sizes, pads[:rank], pads[rank:], strict=True)]
    place = torch.zeros(1, 1, dtype=torch.long, device=x.device)  # in the padded image: (numbers of a block, positions)
    for size, k, stride, dilation in zip(padded, kernel, strides, dilations, strict=True):
        positions = torch.arange(0, size - dilation * (k - 1), stride, device=x.device)
        along = torch.arange(k, device=x.device).unsqueeze(1) * dilation + positions
        place = (place[:, None, :, None] * size + along[:, None]).flatten(2).flatten(0, 1)
    channels = x.shape[1] // math.prod(kernel)
    summed = x.new_zeros(len(x), channels, math.prod(padded))
    summed = summed.index_add(2, place.flatten(), x.reshape(len(x), channels, -1))
    y = summed.reshape(len(x), channels, *padded)
    for axis, size in enumerate(sizes):
        y = y.narrow(axis + 2, pads[axis], size)
    return y
