"""Operators that the standard gave up, and old files still hold."""

from __future__ import annotations

from torch import Tensor

from onnxprune.training.functions.call import Call, function


@function("Affine")
def affine(call: Call, x: Tensor) -> Tensor:
    """Affine: one factor and one term for all numbers."""
    return float(call.attribute("alpha", 1.0)) * x + float(call.attribute("beta", 0.0))


@function("ImageScaler")
def image_scaler(call: Call, x: Tensor) -> Tensor:
    """ImageScaler: one factor for all numbers, a term for each channel."""
    bias = x.new_tensor(list(call.attribute("bias", [])))
    return float(call.attribute("scale", 1.0)) * x + bias.reshape(-1, 1, 1)


@function("Crop")
def crop(call: Call, x: Tensor) -> Tensor:
    """Crop: what lies inside the borders, or a piece of a given size behind the first two of them."""
    left, top, right, bottom = call.attribute("border", [0, 0, 0, 0])
    height, width = x.shape[2] - top - bottom, x.shape[3] - left - right
    height, width = call.attribute("scale", [height, width])
    return x[:, :, top : top + height, left : left + width]
