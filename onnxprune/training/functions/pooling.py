"""Pools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, Result, Run, function
from onnxprune.training.functions.reduction import norm
from onnxprune.training.functions.window import Window, padded

AVERAGES: Sequence[Run] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
MAXIMA: Sequence[Run] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


@function("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalAveragePool: the mean over all spatial axes."""
    return x.mean(dim=list(range(2, x.ndim)), keepdim=True)


@function("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalMaxPool: the maximum over all spatial axes."""
    return x.amax(dim=list(range(2, x.ndim)), keepdim=True)


@function("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalLpPool: the norm over all spatial axes."""
    return norm(call.attribute("p", 2), x, list(range(2, x.ndim)), keepdim=True)


@function("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """AveragePool: torch's own where it can, else windows are summed and counted."""
    window = Window.of(call, x.shape[2:], call.attribute("kernel_shape"))
    counts_pads = bool(call.attribute("count_include_pad", 0))
    rank = len(window.kernel)
    if _is_plain(window) and set(window.dilations) == {1}:
        ceil = bool(call.attribute("ceil_mode", 0))
        plain: Tensor = AVERAGES[rank - 1](x, window.kernel, window.strides, window.before, ceil, counts_pads)
        return plain
    inside = list(range(-rank, 0))
    counted = window.over(torch.ones_like(x[:1, :1]), pads=float(counts_pads))
    return window.over(x).sum(dim=inside) / counted.sum(dim=inside)


@function("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """LpPool: the norm of each window."""
    window = Window.of(call, x.shape[2:], call.attribute("kernel_shape"))
    inside = list(range(-len(window.kernel), 0))
    return norm(call.attribute("p", 2), window.over(x), inside)


@function("MaxPool")
def max_pool(call: Call, x: Tensor) -> Result:
    """MaxPool and the places of its maxima, which count through the whole input."""
    window = Window.of(call, x.shape[2:], call.attribute("kernel_shape"))
    whole = not x.is_floating_point()
    image, ceil, before = x.float() if whole else x, bool(call.attribute("ceil_mode", 0)), window.before
    if not _is_plain(window):
        after = [a + b for a, b in zip(window.after, window.beyond, strict=True)]
        image, ceil, before = padded(image, before, after, -torch.inf), False, [0] * len(before)
    run = MAXIMA[len(before) - 1]
    found = run(image, window.kernel, window.strides, before, window.dilations, ceil, call.outputs > 1)
    if call.outputs == 1:
        return call.given([found.to(x.dtype)])
    values, places = found
    offsets = [a - b for a, b in zip(window.before, before, strict=True)]
    return call.given([values.to(x.dtype), _places(call, places, x, image.shape[2:], offsets)])


def _is_plain(window: Window) -> bool:
    """Tell whether torch pads as this window asks for."""
    even = window.before == window.after
    return even and all(2 * pad <= k for pad, k in zip(window.before, window.kernel, strict=True))


def _places(call: Call, places: Tensor, x: Tensor, sizes: tuple[int, ...], offsets: list[int]) -> Tensor:
    """Turn places inside each padded map into places inside the whole input."""
    axes: list[Tensor] = []
    for size, offset in zip(sizes[::-1], offsets[::-1], strict=True):
        axes.insert(0, places % size - offset)
        places = places // size
    order = list(range(len(axes)))
    found = torch.zeros_like(places)
    for axis in reversed(order) if call.attribute("storage_order", 0) else order:
        found = found * x.shape[2 + axis] + axes[axis]
    maps = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(axes))
    return maps * x[0, 0].numel() + found
