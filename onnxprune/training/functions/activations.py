"""Activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import Call, Run, find, function

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Tanh": torch.tanh,
}
"""Activations without attributes."""


def _plain(run: Callable[[Tensor], Tensor]) -> Run:
    return lambda call, x: run(x)


for _op, _run in PLAIN.items():
    function(_op)(_plain(_run))


@function("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """Celu."""
    return F.celu(x, float(call.attribute("alpha", 1.0)))


@function("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """Elu."""
    return F.elu(x, float(call.attribute("alpha", 1.0)))


@function("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """Gelu, exact or by tanh."""
    return F.gelu(x, approximate=call.attribute("approximate", "none"))


@function("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """HardSigmoid."""
    return (float(call.attribute("alpha", 0.2)) * x + float(call.attribute("beta", 0.5))).clamp(0, 1)


@function("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """LeakyRelu."""
    return F.leaky_relu(x, float(call.attribute("alpha", 0.01)))


@function("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """PRelu with a slope that is broadcast."""
    return torch.where(x < 0, slope * x, x)


@function("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """Selu."""
    scale = float(call.attribute("gamma", 1.0507009873554805))
    return scale * F.elu(x, float(call.attribute("alpha", 1.6732632423543772)))


@function("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    """Shrink: what is near zero becomes zero, the rest moves towards it."""
    limit, bias = float(call.attribute("lambd", 0.5)), float(call.attribute("bias", 0.0))
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, 0))


@function("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    """Swish."""
    return x * torch.sigmoid(float(call.attribute("alpha", 1.0)) * x)


@function("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """ThresholdedRelu."""
    return F.threshold(x, float(call.attribute("alpha", 1.0)), 0.0)


def activation(call: Call, name: str, **attributes: Any) -> Callable[[Tensor], Tensor]:
    """Give the activation that a node names, for operators that hold one inside."""
    found = find("", name)
    if found is None:
        raise call.refusal(f"has an activation {name}")
    run = found.run
    inner = Call(name, call.name, call.version, attributes, 1, call.training)
    return lambda x: run(inner, x)
