"""Operators that look up numbers at places between those of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, function
from onnxprune.training.functions.window import Window

GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@function("GridSample", fixed=(1,))
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """GridSample of two or three spatial axes."""
    mode, padding = call.attribute("mode", "bilinear"), call.attribute("padding_mode", "zeros")
    return F.grid_sample(x, grid, GRID_MODES.get(mode, mode), padding, bool(call.attribute("align_corners", 0)))


@function("RoiAlign", fixed=(1,))
def roi_align(call: Call, x: Tensor, rois: Tensor, batches: Tensor) -> Tensor:
    """RoiAlign: each cell of a region is the mean or the maximum of samples between the numbers of an image."""
    maximum = call.attribute("mode", "avg") == "max"
    cells = [int(call.attribute(name, 1)) for name in ("output_height", "output_width")]
    default = "half_pixel" if call.version >= 16 else "output_half_pixel"
    is_half = call.attribute("coordinate_transformation_mode", default) == "half_pixel"
    corners = rois * float(call.attribute("spatial_scale", 1.0)) - (0.5 if is_half else 0.0)
    found = []
    for (left, top, right, bottom), batch in zip(corners, batches.tolist(), strict=True):
        image = x[batch]
        sizes = [bottom - top, right - left]
        steps = [size / n for size, n in zip(sizes if is_half else [s.clamp(min=1) for s in sizes], cells, strict=True)]
        counts = [int(call.attribute("sampling_ratio", 0)) or max(math.ceil(step.item()), 1) for step in steps]
        ys, xs = (
            _samples(start, step, n, count, size)
            for start, step, n, count, size in zip((top, left), steps, cells, counts, x.shape[2:], strict=True)
        )
        terms = image[:, ys[0]][..., xs[0]] * ys[1][..., None, None] * xs[1]  # (channels, 2, rows, 2, columns)
        values = terms.amax((1, 3)) if maximum else terms.sum((1, 3))
        values = values.reshape(-1, cells[0], counts[0], cells[1], counts[1])
        found.append(values.amax((2, 4)) if maximum else values.mean((2, 4)))
    return torch.stack(found) if found else x.new_zeros((0, x.shape[1], *cells))


def _samples(start: Tensor, step: Tensor, cells: int, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Give for each sample along an axis the numbers on both sides of it, and their weights."""
    places = start + (torch.arange(cells * count, device=start.device) + 0.5) * (step / count)
    inside = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    low = places.detach().floor().long()
    part = places - low
    return torch.stack([low, (low + 1).clamp(max=size - 1)]), torch.stack([1 - part, part]) * inside


@function("MaxRoiPool", fixed=(1,))
def max_roi_pool(call: Call, x: Tensor, rois: Tensor) -> Tensor:
    """MaxRoiPool: the maxima of the cells of a region, zero where a cell is empty."""
    cells, scale = call.attribute("pooled_shape"), float(call.attribute("spatial_scale", 1.0))
    found = []
    for batch, *corners in rois.tolist():
        left, top, right, bottom = (math.floor(corner * scale + 0.5) for corner in corners)
        rows = _cells(top, bottom, cells[0], x.shape[2])
        columns = _cells(left, right, cells[1], x.shape[3])
        image = x[int(batch)]
        maxima = [
            image[:, r.start : r.stop, c.start : c.stop].amax((1, 2)) if r and c else image.new_zeros(len(image))
            for r in rows
            for c in columns
        ]
        found.append(torch.stack(maxima, 1).reshape(-1, *cells))
    return torch.stack(found)


def _cells(start: int, end: int, count: int, size: int) -> list[range]:
    """Divide an axis of a region into cells, which may overlap by one."""
    step = max(end - start + 1, 1) / count
    edges = [(start + math.floor(n * step), start + math.ceil((n + 1) * step)) for n in range(count)]
    return [range(min(max(low, 0), size), min(max(high, 0), size)) for low, high in edges]


@function("DeformConv")
def deform_conv(
    call: Call, x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """DeformConv of images: each number under the kernel is read at a place of its own, between the pixels."""
    (n, c, *sizes), kernel, shape = x.shape, w.shape[2:], offset.shape[2:]
    taps, groups, parts = math.prod(kernel), int(call.attribute("group", 1)), int(call.attribute("offset_group", 1))
    window = Window.of(call, sizes, kernel)
    offsets = offset.reshape(n, parts, taps, 2, *shape)
    grid = list[Tensor]()
    for axis, size in enumerate(sizes):  # places in pixels, then from -1 to 1 between the outer edges
        steps = torch.arange(shape[axis], device=x.device) * window.strides[axis] - window.before[axis]
        taken = torch.arange(kernel[axis], device=x.device) * window.dilations[axis]
        tap = taken.repeat_interleave(kernel[1]) if axis == 0 else taken.repeat(kernel[0])
        along = steps.reshape([-1, 1] if axis == 0 else [1, -1])
        grid.insert(0, (2 * (tap.reshape(-1, 1, 1) + along + offsets[:, :, :, axis]) + 1) / size - 1)
    places = torch.stack(grid, -1).reshape(n * parts, taps * shape[0], shape[1], 2)
    read = F.grid_sample(x.reshape(n * parts, c // parts, *sizes), places, "bilinear", "zeros", False)
    read = read.reshape(n, parts, c // parts, taps, -1)
    if mask is not None:
        read = read * mask.reshape(n, parts, 1, taps, -1)
    read = read.reshape(n, groups, c // groups, taps, -1)
    y = torch.einsum("gmck,ngckl->ngml", w.reshape(groups, len(w) // groups, c // groups, taps), read)
    y = y.reshape(n, len(w), *shape)
    return y if b is None else y + b.reshape(-1, 1, 1)
