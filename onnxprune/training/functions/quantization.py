"""Quantised numbers, held as floats so that gradients pass; rounding lets them through as they are."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from onnxprune.training.functions.call import Call, Result, Sizes, function, numbers


@function("QuantizeLinear", sizes=(2,), fixed=(1,))
def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Sizes | None = None) -> Tensor:
    """QuantizeLinear: whole numbers in the range of the type that the zero point has or an attribute names."""
    least, most = _range(call, zero)
    quotient = rounded(x / _beside(call, x, scale))
    if zero is not None:
        offset = zero if isinstance(zero, Tensor) else torch.tensor(numbers(zero), device=x.device)
        quotient = quotient + _beside(call, x, offset.reshape(scale.shape))
    return quotient.clamp(least, most)


@function("DequantizeLinear", fixed=(1, 2))
def dequantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """DequantizeLinear: one scale, one for each index of an axis, or one for each block."""
    values = x.to(scale.dtype)
    if zero is not None:
        values = values - _beside(call, x, zero.to(scale.dtype))
    return values * _beside(call, x, scale)


def nearest(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Give for floats that are trained what DequantizeLinear will give once they are stored as whole numbers."""
    return dequantize_linear(call, quantize_linear(call, x, scale, zero), scale, zero)


@function("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Tensor) -> Result:
    """DynamicQuantizeLinear: the range of the numbers, zero included, in 8 bits."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, 1.0, scale)
    zero = (-low / scale).round().clamp(0, 255)
    return call.given([(rounded(x / scale) + zero).clamp(0, 255), scale, zero])


def rounded(x: Tensor) -> Tensor:
    """Round, with the gradient of what does not."""
    return x + (x.round() - x).detach()


def _range(call: Call, zero: Sizes | None) -> tuple[int, int]:
    """Give the least and the largest number of a quantised type."""
    kind = call.attribute("output_dtype", 0)
    if not kind and zero is not None:
        name = str(zero.dtype).removeprefix("torch.")
    else:
        name = TensorProto.DataType.Name(kind or TensorProto.UINT8).lower()
    name = "uint16" if name == "int64" else name  # torch has no arithmetic for it
    bits = name.removeprefix("u").removeprefix("int")
    if not bits.isdecimal():
        raise call.refusal(f"makes numbers of type {name}")
    if name.startswith("u"):
        return 0, 2 ** int(bits) - 1
    return -(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1


def _beside(call: Call, x: Tensor, values: Tensor) -> Tensor:
    """Lay scales or zero points along the axis that they belong to."""
    if values.numel() == 1:
        return values.reshape(())
    axis, block = int(call.attribute("axis", 1)) % x.ndim, int(call.attribute("block_size", 0))
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return values.reshape(-1, *[1] * (x.ndim - 1 - axis))
