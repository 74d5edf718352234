"""Operators that make tensors of sizes."""

from __future__ import annotations

import torch
from onnx import numpy_helper
from torch import Tensor

from onnxprune.training.functions.call import TYPES, Call, Sizes, as_tensor, function, numbers


@function("ConstantOfShape", sizes=(0,))
def constant_of_shape(call: Call, shape: Sizes) -> Tensor:
    """ConstantOfShape, by default of zeros."""
    tensor = call.attribute("value")
    value = torch.zeros(1) if tensor is None else as_tensor(numpy_helper.to_array(tensor))
    device = shape.device if isinstance(shape, Tensor) else None
    return value.to(device).reshape(()).expand(numbers(shape)).clone()


@function("EyeLike")
def eye_like(call: Call, x: Tensor) -> Tensor:
    """EyeLike: ones on a diagonal."""
    kind = call.attribute("dtype")
    ones = torch.ones(x.shape, dtype=x.dtype if kind is None else TYPES[kind], device=x.device)
    diagonal = int(call.attribute("k", 0))
    return torch.triu(torch.tril(ones, diagonal), diagonal)


@function("Range", sizes=(0, 1, 2))
def range_(call: Call, start: Sizes, limit: Sizes, delta: Sizes) -> Tensor:
    """Range."""
    kind = start if isinstance(start, Tensor) else as_tensor(start)
    first, last, step = (numbers(value)[0] for value in (start, limit, delta))
    return torch.arange(first, last, step, dtype=kind.dtype, device=kind.device)


@function("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """Shape, where it depends on the data."""
    start, end = call.attribute("start", 0), call.attribute("end")
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


@function("Size")
def size(call: Call, x: Tensor) -> Tensor:
    """Size, where it depends on the data."""
    return torch.tensor(x.numel(), device=x.device)
