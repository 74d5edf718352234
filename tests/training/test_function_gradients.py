"""Gradients of every function, against finite differences in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from onnxprune.training.functions import FUNCTIONS, Call

LATEST = 24
MICROSOFT = "com.microsoft"


def x(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """An operand whose gradient is checked; no two of its numbers are near each other, nor near zero."""
    count = int(np.prod(shape))
    values = np.random.default_rng(count).permutation(np.linspace(low, high, count + 2)[1:-1] + 1e-3)
    return torch.from_numpy(values.reshape(shape)).requires_grad_()


def sizes(*numbers: float) -> np.ndarray[Any, Any]:
    return np.asarray(numbers)


def places(*numbers: Any) -> Tensor:
    return torch.tensor(numbers)


IMAGE = (1, 2, 4, 5)
POSITIVE = {"low": 0.2, "high": 2.0}

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Abs", (x(2, 3),), {}),
    ("Acos", (x(2, 3),), {}),
    ("Acosh", (x(2, 3, low=1.1, high=3),), {}),
    ("Add", (x(2, 3), x(3)), {}),
    ("Affine", (x(2, 3),), {"alpha": 2.0, "beta": 0.5}),
    ("Asin", (x(2, 3),), {}),
    ("Asinh", (x(2, 3),), {}),
    ("Atan", (x(2, 3),), {}),
    ("Atanh", (x(2, 3),), {}),
    ("Attention", (x(1, 2, 3, 4), x(1, 2, 3, 4), x(1, 2, 3, 2)), {}),
    ("Attention", (x(1, 3, 8), x(1, 3, 4), x(1, 3, 4)), {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": 1}),
    ("Attention", (x(1, 2, 3, 4), x(1, 2, 1, 4), x(1, 2, 1, 4), x(2, 3, 3), x(1, 2, 2, 4), x(1, 2, 2, 4)), {}),
    ("Attention", (x(1, 2, 2, 4), x(1, 2, 3, 4), x(1, 2, 3, 4), places([0, 1, 1], [0, 0, 0]).bool()), {"softcap": 1.5}),
    ("AveragePool", (x(*IMAGE),), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1}),
    ("AveragePool", (x(*IMAGE),), {"kernel_shape": [2, 2], "dilations": [1, 2], "count_include_pad": 1}),
    ("BatchNormalization", (x(3, 2, 4), x(2), x(2), torch.zeros(2).double(), torch.ones(2).double()), {}),
    ("BatchNormalization", (x(3, 2, 4), x(2), x(2), None, None), {"training": True}),
    ("Cast", (x(2, 3),), {"to": TensorProto.DOUBLE}),
    ("CastLike", (x(2, 3), places(0.0).double()), {}),
    ("Celu", (x(2, 3),), {"alpha": 2.0}),
    ("Clip", (x(2, 5), sizes(-0.5), sizes(0.5)), {}),
    ("Clip", (x(2, 5), None, x(1)), {}),
    ("Col2Im", (x(1, 8, 6), sizes(3, 4), sizes(2, 2)), {"pads": [1, 0, 0, 0], "strides": [2, 1]}),
    ("Crop", (x(*IMAGE),), {"border": [1, 0, 2, 1]}),
    ("ImageScaler", (x(*IMAGE),), {"scale": 2.0, "bias": [0.5, -0.5]}),
    ("Compress", (x(3, 2), sizes(1, 0, 1)), {"axis": 0}),
    ("Concat", (x(2, 3), x(2, 1)), {"axis": 1}),
    ("Conv", (x(*IMAGE), x(4, 1, 3, 3), x(4)), {"group": 2, "pads": [1, 2, 1, 0], "strides": [2, 1]}),
    ("Conv", (x(1, 2, 6), x(3, 2, 3)), {"auto_pad": "SAME_LOWER", "dilations": [2]}),
    ("ConvTranspose", (x(1, 2, 3, 3), x(2, 2, 3, 2), x(2)), {"pads": [1, 0, 0, 1], "output_padding": [1, 1]}),
    ("Cos", (x(2, 3),), {}),
    ("Cosh", (x(2, 3),), {}),
    ("CumSum", (x(2, 4), sizes(1)), {"exclusive": 1, "reverse": 1}),
    (
        "DeformConv",
        (x(1, 2, 4, 5), x(4, 1, 2, 2), x(1, 16, 3, 4), x(4), x(1, 8, 3, 4)),
        {"group": 2, "offset_group": 2},
    ),
    ("DeformConv", (x(1, 2, 4, 5), x(3, 2, 2, 2), x(1, 8, 3, 2)), {"strides": [1, 2], "pads": [0, 0, 0, 0]}),
    ("DepthToSpace", (x(1, 8, 2, 2),), {"blocksize": 2, "mode": "CRD"}),
    ("DequantizeLinear", (x(2, 3), x(3), places(1, 0, 2)), {}),
    ("Div", (x(2, 3), x(3, **POSITIVE)), {}),
    ("Dropout", (x(2, 3),), {"outputs": 2}),
    ("Einsum", (x(2, 3), x(3, 4)), {"equation": "ij,jk->ki"}),
    ("Elu", (x(2, 3),), {"alpha": 2.0}),
    ("Erf", (x(2, 3),), {}),
    ("Exp", (x(2, 3),), {}),
    ("Expand", (x(2, 1), sizes(3, 2, 4)), {}),
    ("Flatten", (x(2, 3, 2),), {}),
    ("GRU", (x(3, 2, 2), x(2, 9, 2), x(2, 9, 3), x(2, 18), places(3, 2), x(2, 2, 3)), {"direction": "bidirectional"}),
    ("GRU", (x(3, 2, 2), x(1, 9, 2), x(1, 9, 3), x(1, 18)), {"linear_before_reset": 1, "direction": "reverse"}),
    ("Gather", (x(3, 2), places([0, -1], [0, 1])), {"axis": 1}),
    ("GatherElements", (x(3, 2), places([0, -1], [2, 1])), {"axis": 0}),
    ("GatherND", (x(2, 3, 2), places([[0], [-1]], [[1], [1]])), {"batch_dims": 1}),
    ("Gelu", (x(2, 3),), {"approximate": "tanh"}),
    ("Gemm", (x(3, 2), x(4, 3), x(2, 4)), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", (x(2, 3), x(3, 4), x(4)), {}),
    ("GlobalAveragePool", (x(*IMAGE),), {}),
    ("GlobalLpPool", (x(*IMAGE),), {"p": 3}),
    ("GlobalMaxPool", (x(*IMAGE),), {}),
    ("GridSample", (x(*IMAGE), x(1, 3, 2, 2)), {"mode": "cubic"}),
    ("GroupNormalization", (x(2, 4, 3), x(4), x(4)), {"num_groups": 2}),
    ("GroupNormalization", (x(2, 4, 3), x(2), x(2)), {"num_groups": 2, "version": 18}),
    ("HardSigmoid", (x(2, 3, low=-4, high=4),), {}),
    ("HardSwish", (x(2, 3, low=-4, high=4),), {}),
    ("InstanceNormalization", (x(2, 2, 3), x(2), x(2)), {}),
    ("LRN", (x(1, 5, 2),), {"size": 4, "alpha": 0.5}),
    ("LSTM", (x(3, 2, 2), x(1, 8, 2), x(1, 8, 2), x(1, 16), None, x(1, 2, 2), x(1, 2, 2), x(1, 6)), {"outputs": 3}),
    ("LSTM", (x(3, 2, 2), x(2, 8, 2), x(2, 8, 2)), {"direction": "bidirectional", "clip": 0.9, "outputs": 2}),
    ("LayerNormalization", (x(2, 3, 4), x(3, 4), x(3, 4)), {"axis": 1, "outputs": 3}),
    ("LayerNormalization", (x(2, 3, 4), x(4), x(3, 1)), {"axis": 1}),
    ("LeakyRelu", (x(2, 3),), {"alpha": 0.2}),
    ("Log", (x(2, 3, **POSITIVE),), {}),
    ("LogSoftmax", (x(2, 3),), {}),
    ("LpNormalization", (x(2, 3),), {"p": 1}),
    ("LpPool", (x(*IMAGE),), {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1]}),
    ("MatMul", (x(2, 2, 3), x(3, 2)), {}),
    ("Max", (x(2, 3), x(3)), {}),
    ("MaxPool", (x(*IMAGE),), {"kernel_shape": [3, 3], "pads": [2, 1, 0, 1], "strides": [1, 2]}),
    ("MaxRoiPool", (x(*IMAGE), places([0.0, 0.0, 1.0, 3.0, 3.0])), {"pooled_shape": [2, 2]}),
    ("Mean", (x(2, 3), x(3)), {}),
    ("MeanVarianceNormalization", (x(*IMAGE),), {}),
    ("Min", (x(2, 3), x(3)), {}),
    ("Mish", (x(2, 3),), {}),
    ("Mod", (x(2, 3), places(0.3).double()), {"fmod": 1}),
    ("Mul", (x(2, 3), x(3)), {}),
    ("Neg", (x(2, 3),), {}),
    ("OneHot", (places(1, -1, 5), sizes(3), x(2)), {}),
    ("PRelu", (x(2, 3), x(3)), {}),
    ("Pad", (x(2, 4), sizes(1, -1, 0, 2), sizes(3)), {}),
    ("Pad", (x(2, 4), sizes(2, 1), None, sizes(-1)), {"mode": "reflect"}),
    ("Pow", (x(2, 3), sizes(3)), {}),
    ("Pow", (x(2, 3, **POSITIVE), x(3)), {}),
    ("RMSNormalization", (x(2, 3), x(3)), {}),
    ("RNN", (x(3, 2, 2), x(1, 3, 2), x(1, 3, 3), x(1, 6)), {"activations": ["LeakyRelu"], "activation_alpha": [0.1]}),
    ("Reciprocal", (x(2, 3, **POSITIVE),), {}),
    ("ReduceL1", (x(2, 3), sizes(1)), {}),
    ("ReduceL2", (x(2, 3), sizes(1)), {}),
    ("ReduceLogSum", (x(2, 3, **POSITIVE), sizes(1)), {}),
    ("ReduceLogSumExp", (x(2, 3), sizes(1)), {}),
    ("ReduceMax", (x(2, 3), sizes(1)), {}),
    ("ReduceMean", (x(2, 3), sizes(1)), {}),
    ("ReduceMin", (x(2, 3), sizes(1)), {}),
    ("ReduceProd", (x(2, 3, 2), sizes(0, 2)), {}),
    ("ReduceSum", (x(2, 3),), {"keepdims": 0}),
    ("ReduceSumSquare", (x(2, 3), sizes(1)), {}),
    ("Relu", (x(2, 3),), {}),
    ("Reshape", (x(2, 3), sizes(0, -1, 1)), {}),
    ("Resize", (x(*IMAGE), None, sizes(1, 1, 1.5, 0.6)), {"mode": "cubic", "exclude_outside": 1}),
    ("Resize", (x(*IMAGE), None, sizes(1, 1, 0.5, 0.6)), {"mode": "linear", "antialias": 1}),
    ("Resize", (x(*IMAGE), None, None, sizes(1, 2, 8, 10)), {"mode": "linear"}),
    ("Resize", (x(*IMAGE), None, None, sizes(7, 3)), {"mode": "nearest", "axes": [2, 3]}),
    ("ReverseSequence", (x(3, 2), places(3, 2)), {}),
    ("RoiAlign", (x(*IMAGE), places([0.3, 0.1, 3.2, 2.9]).double(), places(0)), {"output_width": 2}),
    ("RoiAlign", (x(*IMAGE), places([0.3, 0.1, 3.2, 2.9]).double(), places(0)), {"mode": "max", "sampling_ratio": 2}),
    ("RotaryEmbedding", (x(1, 2, 3, 6), x(5, 2), x(5, 2), places([3, 0, 2])), {"rotary_embedding_dim": 4}),
    ("RotaryEmbedding", (x(1, 3, 8), x(1, 3, 2), x(1, 3, 2)), {"num_heads": 2, "interleaved": 1}),
    ("Scatter", (x(3, 2), places([0, 1]), x(1, 2)), {}),
    ("ScatterElements", (x(3, 2), places([0, 1]), x(1, 2)), {"reduction": "mul"}),
    ("ScatterND", (x(3, 2), places([0], [-1]), x(2, 2)), {"reduction": "add"}),
    ("Selu", (x(2, 3),), {}),
    ("Shrink", (x(2, 3),), {"bias": 0.2}),
    ("Shrink", (x(2, 3),), {"bias": 0.3, "lambd": -0.1}),
    ("Sigmoid", (x(2, 3),), {}),
    ("SimplifiedLayerNormalization", (x(2, 3), x(3)), {"outputs": 2}),
    ("Sin", (x(2, 3),), {}),
    ("Sinh", (x(2, 3),), {}),
    ("Slice", (x(4, 3), sizes(3, 1), sizes(-9, 9), sizes(0, 1), sizes(-2, 1)), {}),
    ("Softmax", (x(2, 3, 2),), {"version": 11, "axis": 1}),
    ("Softplus", (x(2, 3),), {}),
    ("Softsign", (x(2, 3),), {}),
    ("SpaceToDepth", (x(1, 2, 4, 2),), {"blocksize": 2}),
    ("Split", (x(5, 2),), {"outputs": 2}),
    ("Sqrt", (x(2, 3, **POSITIVE),), {}),
    ("Squeeze", (x(2, 1, 3), sizes(1)), {}),
    ("Sub", (x(2, 3), x(3)), {}),
    ("Sum", (x(2, 3), x(3), x(1)), {}),
    ("Swish", (x(2, 3),), {"alpha": 2.0}),
    ("Tan", (x(2, 3),), {}),
    ("Tanh", (x(2, 3),), {}),
    ("ThresholdedRelu", (x(2, 3),), {"alpha": 0.2}),
    ("Tile", (x(2, 3), sizes(2, 1)), {}),
    ("TopK", (x(2, 4), sizes(2)), {"outputs": 2}),
    ("Transpose", (x(2, 3, 2),), {"perm": [1, 2, 0]}),
    ("Trilu", (x(3, 3), sizes(1)), {"upper": 0}),
    ("Unsqueeze", (x(2, 3), sizes(0, -1)), {}),
    ("Upsample", (x(*IMAGE), sizes(1, 1, 2, 1.5)), {"mode": "linear"}),
    ("Where", (places([True, False, True]), x(2, 3), x(1)), {}),
    ("BiasGelu", (x(2, 3), x(3)), {"domain": MICROSOFT}),
    ("RotaryEmbedding", (x(1, 3, 8), places(1), x(5, 2), x(5, 2)), {"domain": MICROSOFT}),
    ("FastGelu", (x(2, 3), x(3)), {"domain": MICROSOFT}),
    ("FusedConv", (x(*IMAGE), x(2, 2, 1, 1), None, x(1, 2, 1, 1)), {"activation": "Tanh", "domain": MICROSOFT}),
    ("FusedGemm", (x(2, 3), x(3, 4), x(4)), {"activation": "LeakyRelu", "activation_alpha": 0.5, "domain": MICROSOFT}),
    ("FusedMatMul", (x(2, 3, 2), x(2, 4, 3)), {"transA": 1, "transB": 1, "alpha": 0.5, "domain": MICROSOFT}),
    ("Gelu", (x(2, 3),), {"domain": MICROSOFT}),
    ("QuickGelu", (x(2, 3),), {"domain": MICROSOFT}),
    ("SkipLayerNormalization", (x(2, 3), x(2, 3), x(3), x(3), x(3)), {"outputs": 4, "domain": MICROSOFT}),
    ("SkipSimplifiedLayerNormalization", (x(2, 3), x(2, 3), x(3), x(3)), {"outputs": 4, "domain": MICROSOFT}),
]  # fmt: skip

NO_GRADIENT = {
    *("And", "ArgMax", "ArgMin", "ConstantOfShape", "Equal", "EyeLike", "Greater", "GreaterOrEqual", "IsInf", "IsNaN"),
    *("Less", "LessOrEqual", "NonZero", "Not", "Or", "Range", "Shape", "Size", "Xor"),
}
"""Operators that give no floats, or floats that follow from sizes."""

FLAT = {"Ceil", "Floor", "Hardmax", "Round", "Sign"}
"""Operators whose gradient is zero nearly everywhere."""

STRAIGHT_THROUGH = {"DynamicQuantizeLinear", "QuantizeLinear"}
"""Operators whose gradient is that of what does not round: finite differences do not see it."""


READS_REGIONS = {"MaxRoiPool", "RoiAlign"}
"""Operators that read numbers of regions one by one, which a device without memory does not have."""


def function_of(op: str, operands: tuple[Any, ...], given: dict[str, Any]) -> tuple[Callable[..., Any], list[Tensor]]:
    """Close a function over its node, and over the operands that have no gradient."""
    attributes = {k: v for k, v in given.items() if k not in ("domain", "outputs", "training", "version")}
    outputs, version = given.get("outputs", 1), given.get("version", LATEST)
    call = Call(op, "", version, attributes, outputs, given.get("training", False))
    run = FUNCTIONS[given.get("domain", ""), op].run
    trained = [place for place, one in enumerate(operands) if isinstance(one, Tensor) and one.requires_grad]

    def closed(*tensors: Tensor) -> Any:
        replaced = dict(zip(trained, tensors, strict=True))
        found = run(call, *(replaced.get(place, one) for place, one in enumerate(operands)))
        return tuple(y for y in ([found] if isinstance(found, Tensor) else found) if y.is_floating_point())

    return closed, [operands[place] for place in trained]


@pytest.mark.parametrize(("op", "operands", "given"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)])
def test_a_gradient_is_that_of_finite_differences(op: str, operands: tuple[Any, ...], given: dict[str, Any]) -> None:
    run, trained = function_of(op, operands, given)
    assert trained
    assert torch.autograd.gradcheck(run, trained)


@pytest.mark.parametrize(("op", "operands", "given"), [case for case in CASES if case[0] not in READS_REGIONS])
def test_a_function_stays_on_the_device_of_its_operands(
    op: str, operands: tuple[Any, ...], given: dict[str, Any]
) -> None:
    moved = tuple(one.detach().to("meta") if isinstance(one, Tensor) else one for one in operands)
    run, _ = function_of(op, moved, given)
    assert all(found.device.type == "meta" for found in run())


@pytest.mark.parametrize("op", ["ArgMax", "EyeLike", "Hardmax", "IsInf", "Not", "Shape", "Size"])
def test_what_has_no_gradient_stays_there_too(op: str) -> None:
    found = FUNCTIONS["", op].run(Call(op, "", LATEST, {}, 1, False), x(3, 3).detach().to("meta"))
    assert found.device.type == "meta"


@pytest.mark.parametrize("op", sorted(FLAT))
def test_a_gradient_that_is_zero_is_there(op: str) -> None:
    one = x(2, 3)
    run, _ = function_of(op, (one,), {})
    (found,) = run(one)
    assert found.grad_fn is None or not torch.autograd.grad(found.sum(), one)[0].any()


def test_every_function_is_checked_or_said_to_have_no_gradient() -> None:
    checked = {(given.get("domain", ""), op) for op, _, given in CASES}
    rest = {("", op) for op in NO_GRADIENT | FLAT | STRAIGHT_THROUGH}
    assert not checked & rest
    assert checked | rest == set(FUNCTIONS)


def test_rounding_lets_gradients_through_inside_the_range_of_a_quantised_type() -> None:
    values = torch.tensor([-99.0, -0.3, 0.2, 0.9, 99.0], requires_grad=True)
    call = Call("QuantizeLinear", "", LATEST, {}, 1, True)
    scale, zero = torch.tensor(0.25), np.asarray(3, np.int8)
    quantised = FUNCTIONS["", "QuantizeLinear"].run(call, values, scale, zero)
    assert quantised.tolist() == [-128, 2, 4, 7, 127]
    again = FUNCTIONS["", "DequantizeLinear"].run(call, quantised, scale, torch.from_numpy(zero))
    assert torch.autograd.grad(again.sum(), values)[0].tolist() == [0, 1, 1, 1, 0]
    dynamic = FUNCTIONS["", "DynamicQuantizeLinear"].run(Call("", "", LATEST, {}, 3, True), values)
    assert torch.autograd.grad(dynamic[0].sum(), values)[0][:-1].allclose(1 / dynamic[1])  # the largest is cut off


@pytest.mark.parametrize("op", ["GlobalLpPool", "LpNormalization", "LpPool", "MeanVarianceNormalization", "ReduceL2"])
def test_a_gradient_where_all_numbers_are_zero_is_a_number(op: str) -> None:
    image = torch.zeros(IMAGE, requires_grad=True)
    run, trained = function_of(op, (image,), {"kernel_shape": [2, 2]})
    (found,) = run(*trained)
    assert torch.autograd.grad(found.sum(), image)[0].isfinite().all()


def test_a_query_that_may_look_at_nothing_has_a_gradient_that_is_a_number() -> None:
    q, k, v = x(1, 1, 2, 4), x(1, 1, 3, 4), x(1, 1, 3, 4)
    run, trained = function_of("Attention", (q, k, v, places([False] * 3, [True] * 3)), {})
    (found,) = run(*trained)
    assert not found[0, 0, 0].any()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), trained))
