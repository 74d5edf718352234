"""Normalisations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, Result, function

SMALLEST = 1e-9
"""What the standard adds to the deviation that MeanVarianceNormalization divides by."""


@function("BatchNormalization", fixed=(3, 4))
def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Result:
    """BatchNormalization: while the model trains, with the statistics of the batch, which move its own along.

    One sample is no batch: it is normalised with the model's own statistics, as in use. Before opset 14 the batch
    counts where the moved statistics are asked for.
    """
    if not call.attribute("spatial", 1):
        raise call.refusal("has statistics for each pixel")
    momentum, epsilon = float(call.attribute("momentum", 0.9)), float(call.attribute("epsilon", 1e-5))
    if not call.attribute("training_mode", 0) and (call.version >= 14 or call.outputs == 1):
        y = F.batch_norm(x, mean, variance, scale, bias, call.training and len(x) > 1, 1 - momentum, epsilon)
        return call.given([y, mean, variance])
    moments = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    followed = [old * momentum + new * (1 - momentum) for old, new in zip((variance, mean), moments, strict=True)]
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    return call.given([y, *reversed(followed), moments[1], (moments[0] + epsilon).rsqrt()])


@function("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization: a group norm whose groups are single channels."""
    return torch.group_norm(x, x.shape[1], scale, bias, float(call.attribute("epsilon", 1e-5)))


@function("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization, whose scale and bias were those of groups before opset 21."""
    groups = int(call.attribute("num_groups"))
    if call.version < 21:
        scale, bias = (values.repeat_interleave(x.shape[1] // groups) for values in (scale, bias))
    return torch.group_norm(x, groups, scale, bias, float(call.attribute("epsilon", 1e-5)))


@function("LayerNormalization")
def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    """LayerNormalization over all axes from one on, its mean and the inverse of its deviation."""
    axis, epsilon = int(call.attribute("axis", -1)) % x.ndim, float(call.attribute("epsilon", 1e-5))
    sizes = x.shape[axis:]
    if scale.shape == sizes and (bias is None or bias.shape == sizes):
        y = F.layer_norm(x, sizes, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, sizes, eps=epsilon) * scale
        y = y if bias is None else y + bias
    if call.outputs == 1:
        return y
    variance, mean = torch.var_mean(x, list(range(axis, x.ndim)), correction=0, keepdim=True)
    return call.given([y, mean, (variance + epsilon).rsqrt()])


@function("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Result:
    """RMSNormalization over all axes from one on, and the inverse of what it divides by."""
    axis, epsilon = int(call.attribute("axis", -1)) % x.ndim, float(call.attribute("epsilon", 1e-5))
    inverse = (x.square().mean(list(range(axis, x.ndim)), keepdim=True) + epsilon).rsqrt()
    return call.given([x * inverse * scale, inverse])


@function("LRN")
def lrn(call: Call, x: Tensor) -> Tensor:
    """LRN: each number is divided by what it and its neighbours in other channels sum to."""
    size = int(call.attribute("size"))
    rest = [0] * (2 * (x.ndim - 2))
    around = F.pad(x.square(), [*rest, (size - 1) // 2, size // 2]).unfold(1, size, 1).sum(-1)
    alpha, beta = float(call.attribute("alpha", 1e-4)), float(call.attribute("beta", 0.75))
    return x / (float(call.attribute("bias", 1.0)) + alpha / size * around).pow(beta)


@function("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """LpNormalization along an axis; zeros stay zero."""
    return F.normalize(x, p=call.attribute("p", 2), dim=int(call.attribute("axis", -1)))


@function("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """MeanVarianceNormalization: written so that its gradient stays finite where all numbers are equal."""
    axes = [axis for axis in call.attribute("axes", [0, 2, 3]) if axis < x.ndim]
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (variance + SMALLEST**2).sqrt()
