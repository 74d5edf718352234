"""Operators that treat numbers one by one, activations aside."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.training.functions.call import TYPES, Call, Result, Run, Sizes, as_tensor, function, numbers

PLAIN: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Where": torch.where,
}
"""Operators that torch has as they are."""

LOGICAL: dict[str, Callable[..., Tensor]] = {
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
"""Operators that give truth values: what they compare to is not trained."""

FOLDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}
"""Operators of any number of operands, that torch has for two."""


def _plain(run: Callable[..., Tensor]) -> Run:
    return lambda call, *operands: run(*operands)


def _folded(run: Callable[[Tensor, Tensor], Tensor]) -> Run:
    return lambda call, *operands: reduce(run, operands)


for _op, _run in PLAIN.items():
    function(_op)(_plain(_run))
for _op, _run in LOGICAL.items():
    function(_op, fixed=(0, 1))(_plain(_run))
for _op, _run in FOLDED.items():
    function(_op)(_folded(_run))


@function("Mean")
def mean(call: Call, *operands: Tensor) -> Tensor:
    """Mean of tensors, with broadcasting."""
    return reduce(torch.add, operands) / len(operands)


@function("Div")
def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Div; integers are cut off towards zero."""
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


@function("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Mod: the sign is that of the divisor, with `fmod` that of the dividend."""
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


@function("Pow", sizes=(1,))
def pow_(call: Call, base: Tensor, exponent: Sizes) -> Tensor:
    """Pow, in the type of the base; an exponent that is one known number makes it cheaper."""
    if isinstance(exponent, Tensor):
        return torch.pow(base, exponent).to(base.dtype)
    if exponent.ndim <= base.ndim and exponent.size == 1:
        return torch.pow(base, numbers(exponent)[0]).to(base.dtype)
    return torch.pow(base, as_tensor(exponent).to(base.device)).to(base.dtype)


@function("Clip", sizes=(1, 2))
def clip(call: Call, x: Tensor, low: Sizes | None = None, high: Sizes | None = None) -> Tensor:
    """Clip; bounds are attributes before opset 11."""
    least, most = (_bound(call, *bound) for bound in (("min", low), ("max", high)))
    if isinstance(least, float) and isinstance(most, float) and least < most and x.is_floating_point():
        return F.hardtanh(x, least, most)  # one pass there, one back
    x = x if least is None else x.clamp(min=least)
    return x if most is None else x.clamp(max=most)


def _bound(call: Call, name: str, given: Sizes | None) -> Tensor | float | None:
    """Give a bound, as a number where it is known."""
    if isinstance(given, Tensor):
        return given
    bound: float | None = call.attribute(name) if given is None else numbers(given)[0]
    return bound


@function("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    """IsInf, of both signs or one."""
    none = torch.zeros_like(x, dtype=torch.bool)
    negative = torch.isneginf(x) if call.attribute("detect_negative", 1) else none
    return negative | (torch.isposinf(x) if call.attribute("detect_positive", 1) else none)


@function("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Cast; halves stay in single precision."""
    kind = call.attribute("to")
    if kind not in TYPES:
        raise call.refusal(f"makes numbers of type {kind}")
    return x.to(TYPES[kind])


@function("CastLike", fixed=(1,))
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """CastLike: the second operand gives its type only."""
    return x.to(like.dtype)


@function("Dropout", sizes=(1, 2))
def dropout(call: Call, x: Tensor, ratio: Sizes | None = None, training: Sizes | None = None) -> Result:
    """Dropout: while the model trains, or where the file says so."""
    rate = float(call.attribute("ratio", 0.5) if ratio is None else numbers(ratio)[0])
    if not call.training and (training is None or not numbers(training)[0]):
        rate = 0.0
    if call.outputs == 1:
        return F.dropout(x, rate)
    kept = torch.rand_like(x) >= rate
    return call.given([torch.where(kept, x / (1 - rate), 0.0), kept])
