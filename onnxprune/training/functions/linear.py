"""Layers that sum over channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, Sizes, function, numbers
from onnxprune.training.functions.window import Window, padded

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@function("Conv")
def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Conv of one to three spatial axes; what it pads unevenly is padded before."""
    window = Window.of(call, x.shape[2:], w.shape[2:])
    before = window.before
    if before != window.after:
        x, before = padded(x, before, window.after), [0] * len(before)
    run = CONVOLUTIONS[w.ndim - 3]
    return run(x, w, b, window.strides, before, window.dilations, int(call.attribute("group", 1)))


@function("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """ConvTranspose of one to three spatial axes: computed whole, then cut or extended to its size."""
    rank = w.ndim - 2
    window = Window.of(call, x.shape[2:], w.shape[2:])
    run, group = TRANSPOSED[rank - 1], int(call.attribute("group", 1))
    extra = list(call.attribute("output_padding", [0] * rank))
    sizes = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[2:], window.strides, w.shape[2:], window.dilations, strict=True)
    ]
    before, after = _transposed_pads(call, window, x.shape[2:], [n + e for n, e in zip(sizes, extra, strict=True)])
    if before == after and not any(extra) and min(before) >= 0:
        return run(x, w, b, window.strides, before, 0, group, window.dilations)
    whole = run(x, w, None, window.strides, 0, 0, group, window.dilations)
    whole = padded(whole, [-p for p in before], [e - p for e, p in zip(extra, after, strict=True)])
    return whole if b is None else whole + b.reshape(-1, *[1] * rank)


def _transposed_pads(
    call: Call, window: Window, sizes: tuple[int, ...], whole: list[int]
) -> tuple[list[int], list[int]]:
    """Give what is cut off before and after each spatial axis, automatic pads worked out from the size wanted."""
    auto = call.attribute("auto_pad", "NOTSET")
    wanted = call.attribute("output_shape")
    if wanted is None and not auto.startswith("SAME"):
        return window.before, window.after
    if wanted is None:
        wanted = [n * s for n, s in zip(sizes, window.strides, strict=True)]
    totals = [n - m for n, m in zip(whole, wanted, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


@function("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm: alpha A B + beta C."""
    alpha, beta = float(call.attribute("alpha", 1.0)), float(call.attribute("beta", 1.0))
    a = a.T if call.attribute("transA", 0) else a
    weight = b if call.attribute("transB", 0) else b.T  # (outputs, inputs), as torch has it
    if alpha == 1 and beta == 1 and c is not None and c.ndim == 1 and len(c) == len(weight):
        return F.linear(a, weight, c)
    product = alpha * F.linear(a, weight)
    return product if c is None else product + beta * c


@function("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """MatMul, as numpy has it."""
    return torch.matmul(a, b)


@function("Einsum")
def einsum(call: Call, *operands: Tensor) -> Tensor:
    """Einsum."""
    return torch.einsum(call.attribute("equation"), *operands)


@function("CumSum", sizes=(1,))
def cum_sum(call: Call, x: Tensor, axis: Sizes) -> Tensor:
    """CumSum, without the number itself if `exclusive`, from the end if `reverse`."""
    along, backwards = int(numbers(axis)[0]), bool(call.attribute("reverse", 0))
    x = x.flip(along) if backwards else x
    sums = torch.cumsum(x, along, dtype=x.dtype)
    sums = sums - x if call.attribute("exclusive", 0) else sums
    return sums.flip(along) if backwards else sums
