"""Forms of operators that the examples of the standard leave out, against onnxruntime."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from nets import Array, Builder
from onnx import ModelProto, helper

from onnxprune import runtime
from onnxprune.errors import InputError
from onnxprune.training.executor import Executor
from onnxprune.training.functions import Call, as_tensor, find

MICROSOFT = "com.microsoft"


def x(*shape: int) -> Array:
    """What is fed; the rest is stored."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


class Stored:
    """What is stored, beside the numbers that are no floats."""

    def __init__(self, *shape: int) -> None:
        self.values = np.abs(x(*shape)) * 0.3 + 0.1


def ints(*numbers: Any) -> Array:
    return np.asarray(numbers, np.int64)


def floats(*numbers: Any) -> Stored:
    stored = Stored(1)
    stored.values = np.asarray(numbers, np.float32)
    return stored


def one(op: str, operands: tuple[Any, ...], given: dict[str, Any]) -> tuple[ModelProto, dict[str, Array]]:
    """Build a model of one node; operands that are float arrays are its inputs."""
    options = {"opset": 17, "outputs": 1, "domain": ""}
    attributes = {key: value for key, value in given.items() if key not in options}
    opset, outputs, domain = ({**options, **given}[key] for key in options)
    b, feed, names = Builder(opset), {}, []
    for operand in operands:
        if operand is None:
            names.append("")
        elif isinstance(operand, Stored):
            names.append(b.store(operand.values))
        elif operand.dtype == np.int64:
            names.append(b.store(operand, np.int64))
        else:
            names.append(b.input(*operand.shape, dtype=operand.dtype))
            feed[names[-1]] = operand
    if domain:
        b.domains.append(helper.make_opsetid(domain, 1))
    made = b.nodes_of(op, *names, outputs=outputs, domain=domain, **attributes)
    return b.done(*made), feed


def compare(op: str, operands: tuple[Any, ...], given: dict[str, Any]) -> list[torch.Tensor]:
    model, feed = one(op, operands, given)
    executor = Executor(model, Path()).eval()
    with torch.no_grad():
        found = executor(*(as_tensor(feed[name]) for name in executor.inputs))
    for ours, theirs in zip(found, runtime.evaluate(model, feed), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(np.asarray(theirs)), rtol=1e-4, atol=1e-5)
    return list(found)


IMAGE = (1, 2, 7, 6)
FOR_NEAREST = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}
SCALED = ((2, 2), (3, 2.5), (0.5, 0.6))
WHOLE = np.random.default_rng(0).integers(-9, 9, (3, 4)).astype(np.int32)
BOTH = {"direction": "bidirectional", "hidden_size": 3}
LSTM = (x(4, 2, 3), Stored(2, 12, 3), Stored(2, 12, 3), Stored(2, 24))
GRU = (x(4, 2, 3), Stored(2, 9, 3), Stored(2, 9, 3), Stored(2, 18))
RNN = (x(4, 2, 3), Stored(2, 3, 3), Stored(2, 3, 3), Stored(2, 6))
LENGTHS = np.asarray([3, 4], np.int32)
ROWS = (x(2, 3, 8), x(2, 3, 8), Stored(8), Stored(8), Stored(8))
TURNED = {"transA": 1, "transB": 1, "alpha": 0.5, "domain": MICROSOFT}
CONTRIB = {"domain": MICROSOFT}
VOLUME = x(1, 2, 5, 4, 3)
UNEVEN = {"kernel_shape": [3, 2], "pads": [2, 1, 0, 0]}
HARD = {"activations": ["HardSigmoid", "Softsign"] * 2, "activation_alpha": [0.3] * 2}
REGION, BEYOND = floats([0.3, 0.2, 5.1, 6.2]), floats([-2, 3, 9, 5])

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Affine", (x(2, 3),), {"opset": 7, "alpha": 2.5, "beta": -1.5}),
    ("AveragePool", (x(*IMAGE),), {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("AveragePool", (x(*IMAGE),), {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [3, 2], "ceil_mode": 1}),
    ("AveragePool", (VOLUME,), {"kernel_shape": [2, 3, 2], "pads": [0, 1, 1, 1, 0, 0], "count_include_pad": 1}),
    ("AveragePool", (x(1, 2, 9),), {"kernel_shape": [3], "strides": [4], "ceil_mode": 1, "count_include_pad": 1}),
    ("BatchNormalization", (x(*IMAGE), *[Stored(2)] * 4), {"opset": 7}),
    ("Clip", (x(2, 3),), {"opset": 7, "min": -0.5, "max": 0.5}),
    ("Clip", (x(2, 3), None, floats(0.2)), {"opset": 11}),
    ("Compress", (x(3, 2), np.asarray([True, False, True])), {"axis": 0}),
    ("Conv", (x(1, 4, 9), Stored(6, 2, 3), Stored(6)), {"group": 2, "auto_pad": "SAME_LOWER", "strides": [2]}),
    ("Conv", (x(1, 2, 5, 4, 3), Stored(3, 2, 2, 3, 1)), {"pads": [0, 1, 0, 1, 1, 2], "dilations": [2, 1, 1]}),
    ("Conv", (x(*IMAGE), Stored(3, 2, 3, 3)), {"auto_pad": "VALID"}),
    ("ConvTranspose", (x(1, 4, 5), Stored(4, 3, 4), Stored(6)), {"group": 2, "strides": [3], "pads": [2, 3]}),
    ("ConvTranspose", (x(1, 2, 3, 3, 2), Stored(2, 3, 2, 3, 2)), {"strides": [2, 1, 2], "output_padding": [1, 0, 0]}),
    ("ConvTranspose", (x(*IMAGE), Stored(2, 3, 3, 3)), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", (x(*IMAGE), Stored(2, 3, 4, 4)), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", (x(*IMAGE), Stored(2, 3, 3, 3)), {"strides": [2, 2], "output_shape": [14, 12]}),
    ("Crop", (x(*IMAGE),), {"opset": 7, "border": [1, 2, 2, 1]}),
    ("Crop", (x(*IMAGE),), {"opset": 7, "border": [1, 2, 0, 0], "scale": [3, 4]}),
    ("Dropout", (x(2, 3),), {"opset": 10, "ratio": 0.3}),
    ("Dropout", (x(2, 3),), {"outputs": 2}),
    ("Flatten", (x(2, 3, 4),), {"axis": -1}),
    ("ImageScaler", (x(*IMAGE),), {"opset": 7, "scale": 2.0, "bias": [0.5, -1.5]}),
    ("GRU", (*GRU, LENGTHS), {**BOTH, "outputs": 2}),
    ("GRU", GRU, {**BOTH, **HARD, "linear_before_reset": 1}),
    ("GRU", GRU, {**BOTH, "clip": 0.4}),
    ("Gemm", (x(3, 2), Stored(3, 4), floats(0.5)), {"transA": 1, "alpha": 0.5}),
    ("GlobalLpPool", (x(*IMAGE),), {"p": 2}),
    ("GroupNormalization", (x(2, 4, 3, 3), Stored(4), Stored(4)), {"opset": 21, "num_groups": 2}),
    ("LRN", (x(1, 6, 3, 3),), {"size": 3, "alpha": 0.5, "bias": 2.0}),
    ("LSTM", (*LSTM, LENGTHS), {**BOTH, "outputs": 3}),
    ("LSTM", (*LSTM, None, Stored(2, 2, 3), Stored(2, 2, 3), Stored(2, 9)), {**BOTH, "outputs": 3, "clip": 0.4}),
    ("LSTM", tuple(LSTM[:1]) + tuple(Stored(1, 12, 3) for _ in range(2)), {"direction": "reverse", "hidden_size": 3}),
    ("LpPool", (x(*IMAGE),), {"kernel_shape": [3, 2], "p": 1, "auto_pad": "SAME_UPPER"}),
    ("MaxPool", (x(*IMAGE),), {**UNEVEN, "strides": [2, 2], "outputs": 2, "ceil_mode": 1}),
    ("MaxPool", (x(2, 2, 7, 6),), {"kernel_shape": [2, 2], "outputs": 2, "storage_order": 1}),
    ("MaxPool", (x(1, 2, 9),), {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}),
    ("MaxPool", (x(1, 2, 9),), {"kernel_shape": [3], "dilations": [2], "pads": [1, 2]}),
    ("MaxPool", (x(1, 2, 5, 4, 3),), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2], "ceil_mode": 1}),
    ("MaxRoiPool", (x(*IMAGE), floats([0, 0, 1, 5, 6], [0, -2, 3, 9, 9])), {"pooled_shape": [2, 3]}),
    ("Not", (np.asarray([True, False]),), {}),
    ("PRelu", (x(2, 3, 4), Stored(3, 1)), {}),
    ("Pad", (x(3, 4),), {"opset": 10, "pads": [0, 1, -1, 2], "value": 0.5}),
    ("Pad", (x(3, 4), ints(1, -1, 2, 3)), {"mode": "edge"}),
    ("RNN", (*RNN, LENGTHS), {**BOTH, "outputs": 2}),
    ("RNN", RNN, {**BOTH, "activations": ["Relu", "Tanh"]}),
    ("ReduceSum", (x(2, 3, 4),), {"opset": 11, "axes": [0, -1], "keepdims": 0}),
    ("Resize", (x(*IMAGE), floats(1, 1, 2, 1.5)), {"opset": 10, "mode": "linear"}),
    ("Resize", (x(*IMAGE), floats(1, 1, 0.6, 1.7)), {"opset": 10}),
    *(("Resize", (x(*IMAGE), floats(), floats(1, 1, *scales)), {"opset": 11, **FOR_NEAREST}) for scales in SCALED),
    ("BatchNormalization", (x(4, 3, 5), *(Stored(3) for _ in range(4))), {"opset": 11, "outputs": 5}),
    ("MeanVarianceNormalization", (x(4, 3, 5),), {}),
    *((f"Reduce{kind}", (WHOLE,), {"axes": [1]}) for kind in ("L1", "L2", "Mean", "Max")),
    ("RoiAlign", (x(*IMAGE), REGION, ints(0)), {"output_height": 3, "output_width": 2, "opset": 10}),
    ("RoiAlign", (x(*IMAGE), BEYOND, ints(0)), {"output_height": 2, "sampling_ratio": 2, "spatial_scale": 0.7}),
    ("RoiAlign", (x(*IMAGE), REGION, ints(0)), {"output_height": 2, "output_width": 2, "mode": "max"}),
    ("Scatter", (x(3, 4), ints([0, 2], [1, 1]), x(2, 2)), {"opset": 9}),
    ("Slice", (x(4, 5),), {"opset": 9, "starts": [-3, 0], "ends": [9, -1], "axes": [0, 1]}),
    ("Softmax", (x(2, 3, 4),), {"opset": 11}),
    ("LogSoftmax", (x(2, 3, 4),), {"opset": 11, "axis": -2}),
    ("Split", (x(2, 5),), {"opset": 11, "outputs": 2, "axis": 1, "split": [2, 3]}),
    ("Split", (x(2, 7),), {"opset": 18, "outputs": 3, "axis": 1, "num_outputs": 3}),
    ("Squeeze", (x(2, 1, 3, 1),), {"opset": 11, "axes": [1, -1]}),
    ("TopK", (x(2, 5),), {"opset": 9, "k": 3, "outputs": 2}),
    ("Unsqueeze", (x(2, 3),), {"opset": 11, "axes": [-1, 0]}),
    ("Upsample", (x(*IMAGE),), {"opset": 8, "scales": [1.0, 1.0, 2.0, 3.0]}),
    ("Upsample", (x(*IMAGE), floats(1, 1, 2.5, 1.5)), {"opset": 9, "mode": "linear"}),
    ("BiasGelu", (x(2, 8), Stored(8)), CONTRIB),
    ("FastGelu", (x(2, 8), Stored(8)), CONTRIB),
    ("FusedConv", (x(*IMAGE), Stored(3, 2, 1, 1), Stored(3), x(1, 3, 7, 6)), {**CONTRIB, "activation": "Relu"}),
    ("FusedConv", (x(*IMAGE), Stored(3, 2, 1, 1)), {**CONTRIB, "activation": "Clip", "activation_params": [0.1, 0.4]}),
    ("FusedGemm", (x(2, 3), Stored(3, 4), Stored(4)), {**CONTRIB, "activation": "LeakyRelu", "activation_alpha": 0.2}),
    ("FusedMatMul", (x(2, 3, 4), x(2, 5, 3)), TURNED),
    ("FusedMatMul", (x(3, 2, 4), x(2, 4, 5)), {"transBatchA": 1, "domain": MICROSOFT}),
    ("RotaryEmbedding", (x(2, 5, 24), ints(1), Stored(6, 4), Stored(6, 4)), {"domain": MICROSOFT}),
    ("RotaryEmbedding", (x(2, 3, 5, 8), ints([0, 2, 1, 3, 4], [4, 3, 1, 0, 2]), Stored(6, 4), Stored(6, 4)), CONTRIB),
    (
        "RotaryEmbedding",
        (x(2, 5, 24), ints(0), Stored(6, 2), Stored(6, 2)),
        {"num_heads": 3, "rotary_embedding_dim": 4, "interleaved": 1, "domain": MICROSOFT},
    ),
    ("Gelu", (x(2, 8),), CONTRIB),
    ("QuickGelu", (x(2, 8),), CONTRIB),
    ("QuickGelu", (x(2, 8),), {**CONTRIB, "alpha": 1.5}),
    ("SkipLayerNormalization", ROWS, CONTRIB),
    ("SkipSimplifiedLayerNormalization", (*ROWS[:3], ROWS[4]), CONTRIB),
]  # fmt: skip


@pytest.mark.parametrize(("op", "operands", "given"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)])
def test_a_form_gives_what_onnxruntime_gives(op: str, operands: tuple[Any, ...], given: dict[str, Any]) -> None:
    compare(op, operands, given)


SCALES = (floats(1, 1, 2, 3), floats(1, 1, 0.6, 1.3))
PLACES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@pytest.mark.parametrize("coordinates", PLACES)
@pytest.mark.parametrize("scales", SCALES, ids=["up", "mixed"])
def test_resize_in_every_mode_gives_what_onnxruntime_gives(coordinates: str, scales: Stored) -> None:
    operands, given = (x(*IMAGE), None, scales), {"coordinate_transformation_mode": coordinates}
    for nearest in NEAREST:
        compare("Resize", operands, {**given, "nearest_mode": nearest})
    compare("Resize", operands, {**given, "mode": "linear"})
    for excludes in (0, 1):
        compare("Resize", operands, {**given, "mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": excludes})


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_with_smoothing_gives_what_onnxruntime_gives(mode: str) -> None:
    compare("Resize", (x(*IMAGE), None, floats(1, 1, 0.6, 0.5)), {"mode": mode, "antialias": 1, "opset": 18})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_to_sizes_of_a_region_gives_what_onnxruntime_gives(mode: str) -> None:
    region = floats(0, 0, 0.2, -0.2, 1, 1, 0.7, 0.9)
    given = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 5.0}
    (found,) = compare("Resize", (x(*IMAGE), region, None, ints(1, 2, 5, 9)), given)
    assert (found == 5).any()


def test_grid_sample_in_every_mode_gives_what_onnxruntime_gives() -> None:
    modes, paddings = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
    for mode, padding, aligned in product(modes, paddings, (0, 1)):
        given = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
        compare("GridSample", (x(*IMAGE), x(1, 3, 4, 2)), given)


def test_group_norms_before_opset_21_have_one_scale_for_each_group() -> None:
    function = find("", "GroupNormalization")
    assert function is not None
    old, new = (Call("GroupNormalization", "", version, {"num_groups": 2}, 1, False) for version in (20, 21))
    image, scale, bias = (torch.from_numpy(x(*shape)) for shape in ((2, 4, 3), (2,), (1, 2)))
    wide = [values.reshape(-1).repeat_interleave(2) for values in (scale, bias)]
    torch.testing.assert_close(function.run(old, image, scale, bias[0]), function.run(new, image, *wide))


def test_dropout_drops_while_the_model_trains_and_tells_what() -> None:
    call = Call("Dropout", "", 13, {}, 2, True)
    function = find("", "Dropout")
    assert function is not None
    values, kept = function.run(call, torch.ones(1000), np.asarray(0.25))
    assert 600 < kept.sum() < 900
    torch.testing.assert_close(values, kept / 0.75)
    assert (function.run(Call("Dropout", "", 13, {}, 1, True), torch.ones(1000), np.asarray(0.25)) == 0).any()


def test_what_an_operator_reads_as_a_bound_or_a_statistic_is_not_trained() -> None:
    b = Builder(21)
    image = b.norm(b.input("N", 2, 4, 4), 2)
    bounds = [b.store([v]) for v in (-1.0, 1.0)]
    clipped = b.node("Clip", image, *(b.node("Squeeze", bound) for bound in bounds))
    scale = b.store([0.1, 0.2])
    quantised = b.node("QuantizeLinear", clipped, scale, b.store([0, 0], np.int8), axis=1)
    model = b.done(b.node("DequantizeLinear", quantised, scale, b.store([0, 0], np.int8), axis=1))
    trained = [name for name, values in Executor(model, Path()).named() if isinstance(values, torch.nn.Parameter)]
    norm = model.graph.node[0]
    assert trained == list(norm.input[1:3])


QUANTISED = {
    "int8": (np.int8, (4,), {"axis": 0}),
    "uint8": (np.uint8, (4,), {"axis": 0}),
    "int16": (np.int16, (6,), {}),
    "uint16": (np.uint16, (), {}),
    "int4": (ml_dtypes.int4, (4,), {"axis": 0}),
    "uint4": (ml_dtypes.uint4, (), {}),
    "int32": (np.int32, (4,), {"axis": 0}),
    "blocks": (np.int8, (4, 2), {"axis": 1, "block_size": 3}),
}


@pytest.mark.parametrize("form", QUANTISED)
@pytest.mark.parametrize("has_zero", [True, False])
def test_weights_that_are_stored_quantised_run_and_stay_and_are_trained_to_what_can_be_stored(
    form: str, has_zero: bool
) -> None:
    kind, sides, attributes = QUANTISED[form]
    b = Builder(21)
    low = 0 if form.startswith("u") else -1  # signed weights and zero points are on both sides of zero
    weight = b.store(np.arange(24).reshape(4, 6) % 8 + 4 * low, kind)
    zeros = np.arange(np.prod(sides)).reshape(sides) % 5 + 2 * low
    zero = b.store(zeros, kind) if has_zero and form != "int32" else ""
    scaled = b.node("DequantizeLinear", weight, b.positive(*sides), zero, **attributes)
    model = b.done(b.node("Gemm", b.input("N", 6), scaled, b.positive(4), transB=1))
    executor = Executor(model, Path()).eval()
    given = x(2, 6)
    with torch.no_grad():
        found = executor(torch.from_numpy(given))[0]
    torch.testing.assert_close(found.numpy(), runtime.evaluate(model, {"x": given})[0], rtol=1e-5, atol=1e-5)
    assert executor.model() == model
    executor(torch.from_numpy(given))[0].square().sum().backward()
    trained = executor.tensor(weight)
    assert trained.grad is not None
    with torch.no_grad():
        trained -= 0.3 * trained.grad
        found = executor(torch.from_numpy(given))[0]
    changed = executor.model()
    assert changed != model
    torch.testing.assert_close(found.numpy(), runtime.evaluate(changed, {"x": given})[0], rtol=1e-5, atol=1e-5)


def test_shapes_that_depend_on_the_data_are_not_taken_from_a_probe() -> None:
    b = Builder()
    places = b.node("NonZero", b.input(6))
    count = b.node("Gather", b.node("Shape", places), b.integers(1))
    model = b.done(b.node("Expand", b.store([1.0, 2.0]), b.node("Concat", count, b.integers(2), axis=0)))
    executor = Executor(model, Path()).eval()
    for row in ([0, 1, 0, 0, 0, 2], [0, 0, 0, 0, 0, 3]):
        given = np.asarray(row, np.float32)
        assert executor(torch.from_numpy(given))[0].shape == runtime.evaluate(model, {"x": given})[0].shape


def mixed() -> ModelProto:
    """A net of many families, for what holds for all functions."""
    b = Builder(21)
    image = b.input(1, 3, 8, 8)
    maps = b.node("HardSwish", b.norm(b.conv(image, 3, 8, 3, 3, pads=[0, 1, 2, 1]), 8))
    maps = b.node("Pad", maps, b.integers(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect")
    maps = b.node("AveragePool", maps, kernel_shape=[3, 3], pads=[0, 1, 1, 0], ceil_mode=1, strides=[2, 2])
    maps = b.node("Resize", maps, "", "", b.integers(1, 8, 7, 9), mode="cubic")
    maps = b.node("Clip", b.node("GroupNormalization", maps, b.positive(8), b.vector(8), num_groups=2), b.store(-2.0))
    maps = b.node("PRelu", b.node("Slice", maps, b.integers(0), b.integers(6), b.integers(2)), b.positive(8, 1, 1))
    rows = b.node("Transpose", b.node("Reshape", maps, b.integers(0, 8, -1)), perm=[0, 2, 1])
    rows = b.node("LayerNormalization", rows, b.positive(8), b.vector(8))
    rows = b.node("Gather", rows, b.integers(3, -1, 4), axis=1)
    rows, *_ = b.nodes_of("LSTM", rows, b.weight(1, 16, 8), b.weight(1, 16, 4), outputs=3, hidden_size=4, layout=0)
    flat = b.node("Reshape", rows, b.integers(1, -1))
    return b.done(b.node("Softmax", b.node("Pow", b.linear(flat, 12, 5), b.store(2.0))))


def test_half_precision_where_torch_thinks_fit_gives_nearly_the_same_and_has_gradients() -> None:
    model, image = mixed(), torch.from_numpy(x(1, 3, 8, 8))
    executor = Executor(model, Path()).eval()
    (wanted,) = executor(image)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = executor(image)
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.05)
    found.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in executor.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch itself uses it
def test_torch_compiles_a_program_in_one_piece() -> None:
    model, image = mixed(), torch.from_numpy(x(1, 3, 8, 8))
    executor = Executor(model, Path()).eval()
    (wanted,) = executor(image)
    program = next(iter(executor._programs.values()))
    program.module = torch.compile(program.module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(executor(image)[0], wanted)


@pytest.mark.parametrize(
    ("op", "given", "what"),
    [
        ("BatchNormalization", {"spatial": 0, "opset": 7}, "statistics for each pixel"),
        ("Cast", {"to": 17, "opset": 21}, "numbers of type 17"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(op: str, given: dict[str, Any], what: str) -> None:
    operands = (x(*IMAGE), *[Stored(2)] * (4 if op == "BatchNormalization" else 0))
    model, feed = one(op, operands, given)
    with pytest.raises(InputError, match=f"'{op}_0' .*{what}"):
        Executor(model, Path()).eval()(torch.from_numpy(feed["x"]))
