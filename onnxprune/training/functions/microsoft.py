"""Operators of onnxruntime's own, com.microsoft: those its optimiser and its tools for transformers write."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.activations import activation
from onnxprune.training.functions.attention import rotary_embedding
from onnxprune.training.functions.call import Call, Result, function
from onnxprune.training.functions.linear import conv, gemm

DOMAIN = "com.microsoft"
PARAMETERS = {"Clip": ("min", "max"), "HardSigmoid": ("alpha", "beta")}
"""What FusedConv lists as parameters of an activation: alpha, unless it stands here."""


@function("Gelu", domain=DOMAIN)
def gelu(call: Call, x: Tensor) -> Tensor:
    """Gelu."""
    return F.gelu(x)


@function("BiasGelu", domain=DOMAIN)
def bias_gelu(call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """BiasGelu: Gelu of a sum."""
    return F.gelu(x + bias)


@function("FastGelu", domain=DOMAIN)
def fast_gelu(call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """FastGelu: Gelu by tanh, of a sum."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@function("QuickGelu", domain=DOMAIN)
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """QuickGelu: a number times the sigmoid of its multiple."""
    return x * torch.sigmoid(float(call.attribute("alpha", 1.702)) * x)


@function("RotaryEmbedding", domain=DOMAIN, fixed=(2, 3))
def microsoft_rotary_embedding(call: Call, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RotaryEmbedding, whose positions may be those of the first number of each sequence; nobody reads its scale."""
    length = x.shape[-2]
    if positions.ndim < 2 or (positions.shape[1] == 1 and length > 1):
        positions = positions.reshape(-1, 1) + torch.arange(length, device=x.device)
    return rotary_embedding(call, x, cos, sin, positions.expand(len(x), length))


@function("FusedConv", domain=DOMAIN)
def fused_conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    """FusedConv: a Conv, what is added to it, and an activation."""
    y = conv(call, x, w, b)
    y = y if z is None else y + z
    name = call.attribute("activation", "")
    given = call.attribute("activation_params", [])
    return activation(call, name, **dict(zip(PARAMETERS.get(name, ("alpha",)), given, strict=False)))(y) if name else y


@function("FusedGemm", domain=DOMAIN)
def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """FusedGemm: a Gemm and an activation."""
    name, prefix = call.attribute("activation", ""), "activation_"
    given = {key.removeprefix(prefix): value for key, value in call.attributes.items() if key.startswith(prefix)}
    y = gemm(call, a, b, c)
    return activation(call, name, **given)(y) if name else y


@function("FusedMatMul", domain=DOMAIN)
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """FusedMatMul: a MatMul of matrices that may be transposed, their rows also with the batches."""
    a, b = (_turned(call, x, side) for x, side in ((a, "A"), (b, "B")))
    return float(call.attribute("alpha", 1.0)) * torch.matmul(a, b)


def _turned(call: Call, x: Tensor, side: str) -> Tensor:
    if call.attribute(f"transBatch{side}", 0):
        x = x.movedim(0, -2)
    return x.mT if call.attribute(f"trans{side}", 0) and x.ndim > 1 else x


@function("SkipLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> Result:
    """SkipLayerNormalization: a sum, then a layer norm; the sum is the fourth output."""
    epsilon = float(call.attribute("epsilon", 1e-12))
    total = _summed(x, skip, bias)
    y = F.layer_norm(total, total.shape[-1:], gamma, beta, epsilon)
    variance, mean = torch.var_mean(total, -1, correction=0, keepdim=True)
    return call.given([y, mean, (variance + epsilon).rsqrt(), total])


@function("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_simplified_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None
) -> Result:
    """SkipSimplifiedLayerNormalization: a sum, then an RMS norm; the sum is the fourth output."""
    total = _summed(x, skip, bias)
    inverse = (total.square().mean(-1, keepdim=True) + float(call.attribute("epsilon", 1e-12))).rsqrt()
    return call.given([total * inverse * gamma, inverse, inverse, total])


def _summed(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    total = x + skip
    return total if bias is None else total + bias
