"""Tiny networks, one or two operators each, with the widths of the groups a reader would find by hand.

`NETS` is the table: name, widths and builder of each network. A width is the number of channels that can be kept or
cut one by one; what an input, an output or an operator holds in place has none. Where other modes find other groups,
`Net.modes` has their widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
CLASSES = 5
TO_THE_END = np.iinfo(np.int64).max


MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "slots": {"slots": True},
    "approximate": {"approximate": True},
    "both": {"slots": True, "approximate": True},
}
"""What may be asked of `find_channels`."""


@dataclass(frozen=True)
class Net:
    """One network: how to build it, and the widths of its groups, in ascending order, in each mode worth a look."""

    build: Callable[[], ModelProto]
    modes: dict[str, tuple[int, ...]]

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the groups where nothing special is asked for."""
        return self.modes["default"]


NETS: dict[str, Net] = {}


def net(*widths: int, **modes: tuple[int, ...]) -> Callable[[Callable[[], ModelProto]], Callable[[], ModelProto]]:
    """Enter a builder in the table."""

    def enter(build: Callable[[], ModelProto]) -> Callable[[], ModelProto]:
        NETS[build.__name__] = Net(build, {mode: tuple(sorted(w)) for mode, w in {"default": widths, **modes}.items()})
        return build

    return enter


class Builder:
    """Writes a network node by node; every method returns the name of the tensor it makes."""

    def __init__(self, opset: int = 17, *, ir_version: int = 10, seed: int = 0, dtype: Any = np.float32) -> None:
        self.opset = opset
        self.ir_version = ir_version
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains = [helper.make_opsetid("", opset)]
        self.stored_as = self.initializer
        self.made = 0

    def name(self, base: str) -> str:
        self.made += 1
        return f"{base}_{self.made}"

    def input(self, *shape: int | str, dtype: Any = None) -> str:
        name = f"x{len(self.inputs) or ''}"
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def initializer(self, values: Array) -> str:
        self.initializers.append(numpy_helper.from_array(values, self.name("stored")))
        return self.initializers[-1].name

    def constant(self, values: Array) -> str:
        return self.node("Constant", value=numpy_helper.from_array(values))

    def store(self, values: npt.ArrayLike, dtype: Any = None) -> str:
        return self.stored_as(np.asarray(values, dtype or self.dtype))

    def integers(self, *values: int) -> str:
        return self.store(values, np.int64)

    def weight(self, *shape: int, fan_in: int = 0) -> str:
        scale = np.sqrt(2 / (fan_in or np.prod(shape[1:])))
        return self.store(self.rng.standard_normal(shape) * scale)

    def vector(self, *shape: int) -> str:
        return self.store(self.rng.uniform(0.5, 1.5, shape) * self.rng.choice([-1, 1], shape))

    def positive(self, *shape: int) -> str:
        return self.store(self.rng.uniform(0.5, 1.5, shape))

    def nodes_of(self, op: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        names = [self.name(op.lower()) for _ in range(outputs)]
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return names

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.nodes_of(op, *inputs, outputs=1, domain=domain, **attributes)[0]

    def conv(self, x: str, before: int, after: int, *kernel: int, bias: bool = True, **attributes: Any) -> str:
        kernel = kernel or (1, 1)
        weight = self.weight(after, before // attributes.get("group", 1), *kernel)
        extra = [self.positive(after)] if bias else []
        return self.node("Conv", x, weight, *extra, **attributes)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def linear(self, x: str, before: int, after: int) -> str:
        return self.node("Gemm", x, self.weight(after, before), self.positive(after), transB=1)

    def linear_rows(self, x: str, before: int, after: int) -> str:
        product = self.node("MatMul", x, self.weight(before, after, fan_in=before))
        return self.node("Add", product, self.positive(after))

    def head(self, x: str, channels: int) -> str:
        pooled = self.node("GlobalAveragePool", x)
        return self.linear(self.node("Flatten", pooled), channels, CLASSES)

    def norm(self, x: str, channels: int) -> str:
        parameters = [self.vector(channels), self.vector(channels), self.vector(channels), self.positive(channels)]
        return self.node("BatchNormalization", x, *parameters)

    def stem(self, channels: int, *, batch: int | str = "N", size: int = 6) -> str:
        return self.relu(self.conv(self.input(batch, 3, size, size), 3, channels, 3, 3, pads=[1] * 4))

    def done(self, *outputs: str, rank: int = 4) -> ModelProto:
        """Close the network; outputs that onnx cannot infer are floats of some rank."""
        inputs = [*self.inputs]
        if self.ir_version < 4:  # these list their weights among the inputs
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers]
        unknown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in outputs]
        bare = helper.make_graph(self.nodes, "tiny", inputs, [], self.initializers)
        proto = helper.make_model(
            bare, opset_imports=self.domains, ir_version=self.ir_version, functions=self.functions, producer_name="hand"
        )
        known = {v.name: v for v in onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.value_info}
        for value in unknown:
            found = known.get(value.name, value)
            proto.graph.output.append(found if found.type.tensor_type.HasField("shape") else value)
        return proto


# ------------------------------------------------------------------------------------------- convolutions


@net(6, 8)
def plain_conv() -> ModelProto:
    b = Builder()
    x = b.relu(b.conv(b.input("N", 3, 9, 9), 3, 8, 3, 3, pads=[1, 0, 2, 1], strides=[2, 1]))
    x = b.relu(b.conv(x, 8, 6, 3, 3, dilations=[1, 2], bias=False))
    return b.done(b.head(x, 6))


@net(6, 8)
def conv_1d() -> ModelProto:
    b = Builder()
    x = b.relu(b.conv(b.input("N", 4, 20), 4, 8, 3, dilations=[2]))
    return b.done(b.head(b.relu(b.conv(x, 8, 6, 3, auto_pad="SAME_UPPER")), 6))


@net(6, 8)
def conv_3d() -> ModelProto:
    b = Builder()
    x = b.relu(b.conv(b.input("N", 2, 5, 5, 5), 2, 8, 3, 3, 3))
    return b.done(b.head(b.relu(b.conv(x, 8, 6, 1, 2, 3)), 6))


@net(4)
def grouped_conv() -> ModelProto:
    b = Builder()
    x = b.relu(b.conv(b.stem(8), 8, 12, 3, 3, group=4))
    return b.done(b.head(x, 12))


@net(6, 8)
def columns_to_an_image() -> ModelProto:
    b = Builder(opset=18)
    x = b.relu(b.conv(b.stem(8), 8, 24))
    x = b.node("Reshape", x, b.integers(0, 24, -1))
    options = {"strides": [1, 2], "pads": [1, 0, 0, 1], "dilations": [1, 2]}
    x = b.node("Col2Im", x, b.integers(6, 13), b.integers(2, 2), **options)
    return b.done(b.head(b.relu(x), 6))


@net(6, 8)
def deformed_conv() -> ModelProto:
    b = Builder(opset=19)
    x = b.stem(8)
    offset, mask = b.conv(x, 8, 18, 3, 3), b.node("Sigmoid", b.conv(x, 8, 9, 3, 3))
    x = b.node("DeformConv", x, b.weight(6, 8, 3, 3), offset, b.positive(6), mask)
    return b.done(b.head(b.relu(x), 6))


@net(2, 4)
def split_attention_of_several_groups() -> ModelProto:
    """A ResNeSt block of two cardinal groups and two splits: the residual ties whole groups into one."""
    b = Builder()
    x = b.stem(8)
    first, second = b.nodes_of("Split", b.relu(b.conv(x, 8, 16, 3, 3, group=4, pads=[1] * 4)), outputs=2, axis=1)
    pooled = b.node("GlobalAveragePool", b.node("Add", first, second))
    weights = b.conv(b.relu(b.conv(pooled, 8, 8, group=2)), 8, 16, group=2)
    weights = b.node("Transpose", b.node("Reshape", weights, b.integers(0, 2, 2, -1)), perm=[0, 2, 1, 3])
    weights = b.node("Reshape", b.node("Softmax", weights, axis=1), b.integers(0, -1, 1, 1))
    parts = b.nodes_of("Split", weights, outputs=2, axis=1)
    products = [b.node("Mul", part, y) for part, y in zip(parts, (first, second), strict=True)]
    return b.done(b.head(b.node("Add", b.node("Add", *products), x), 8))


@net(6, 8)
def depthwise_conv() -> ModelProto:
    b = Builder()
    x = b.relu(b.conv(b.stem(8), 8, 8, 3, 3, group=8))
    return b.done(b.head(b.relu(b.conv(x, 8, 6)), 6))


@net(6)
def depthwise_conv_of_two_filters() -> ModelProto:
    b = Builder()
    x = b.relu(b.conv(b.stem(6), 6, 12, 3, 3, group=6))
    return b.done(b.conv(x, 12, 4))


@net(6, 8)
def conv_transpose() -> ModelProto:
    b = Builder()
    weight = b.weight(8, 6, 2, 2, fan_in=8)
    x = b.relu(b.node("ConvTranspose", b.stem(8), weight, b.vector(6), strides=[2, 2]))
    return b.done(b.conv(x, 6, 4))


@net(4)
def grouped_conv_transpose() -> ModelProto:
    b = Builder()
    weight = b.weight(8, 3, 3, 3, fan_in=4)
    x = b.relu(b.node("ConvTranspose", b.stem(8), weight, b.vector(12), strides=[2, 2], output_padding=[1, 1], group=4))
    return b.done(b.conv(x, 12, 4))


# --------------------------------------------------------------------------------------- matrix products


@net(7, 8)
def gemm() -> ModelProto:
    b = Builder()
    x = b.relu(b.node("Gemm", b.input("N", 6), b.weight(8, 6), b.positive(8), transB=1))
    x = b.relu(b.node("Gemm", x, b.weight(8, 7), b.positive(1, 7), alpha=0.5, beta=2.0))
    return b.done(b.node("Gemm", x, b.weight(3, 7), b.vector(), transB=1))


@net(8)
def gemm_weight_first() -> ModelProto:
    b = Builder()
    x = b.relu(b.node("Gemm", b.weight(8, 6), b.input(6, 4), b.vector(8, 1)))
    return b.done(b.node("Gemm", x, b.weight(8, 5), transA=1))


@net(8)
def matmul_weight_right() -> ModelProto:
    b = Builder()
    x = b.node("Add", b.vector(8), b.node("MatMul", b.input("N", 7, 6), b.weight(6, 8)))
    return b.done(b.node("MatMul", b.relu(x), b.weight(8, 5)))


@net(8)
def matmul_weight_left() -> ModelProto:
    b = Builder()
    x = b.node("Add", b.node("MatMul", b.weight(8, 6), b.input("N", 6, 7)), b.vector(8, 1))
    return b.done(b.node("MatMul", b.weight(5, 8), b.relu(x)))


@net(8)
def matmul_vector() -> ModelProto:
    b = Builder()
    x = b.relu(b.node("MatMul", b.input("N", 6), b.weight(6, 8)))
    return b.done(b.node("MatMul", x, b.vector(8)))


@net(8)
def matmul_stacked_weights() -> ModelProto:
    b = Builder()
    x = b.relu(b.node("MatMul", b.input("N", 3, 7, 6), b.weight(3, 6, 8)))
    return b.done(b.node("MatMul", x, b.weight(1, 8, 5)))


@net(6, 8)
def weights_behind_nodes() -> ModelProto:
    b = Builder()
    first = b.node("Transpose", b.weight(6, 8), perm=[1, 0])
    x = b.relu(b.node("Gemm", b.input("N", 6), first, transB=1))
    second = b.node("Identity", b.node("Cast", b.store(b.rng.standard_normal((8, 6)), np.float16), to=1))
    x = b.relu(b.node("MatMul", x, second))
    third = b.node("Transpose", b.node("Unsqueeze", b.weight(4, 6), b.integers(0)))
    return b.done(b.node("MatMul", x, b.node("Squeeze", third, b.integers(2))))


@net(6, 8)
def conv_weights_behind_reshape() -> ModelProto:
    b = Builder()
    weight = b.node("Reshape", b.weight(8, 27), b.integers(8, 3, 3, 3))
    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), weight))
    weight = b.node("Reshape", b.weight(6, 72), b.integers(6, -1, 3, 3))
    x = b.relu(b.node("Conv", x, weight))
    bias = b.node("Reshape", b.vector(6), b.integers(1, 6, 1, 1))
    return b.done(b.head(b.relu(b.node("Add", x, bias)), 6))


@net(7, 8)
def sklearn_mlp() -> ModelProto:
    b = Builder(opset=9, ir_version=4)
    x = b.node("Cast", b.input("N", 6, dtype=np.float64), to=1)
    x = b.relu(b.node("Add", b.node("MatMul", x, b.weight(6, 8)), b.vector(1, 8)))
    x = b.relu(b.node("Add", b.node("MatMul", x, b.weight(8, 7)), b.vector(1, 7)))
    x = b.node("Softmax", b.node("Add", b.node("MatMul", x, b.weight(7, 3)), b.vector(1, 3)), axis=1)
    label = b.node("ArgMax", x, axis=1, keepdims=0)
    return b.done(b.node("Gather", b.store([10, 20, 30], np.int64), label), x)


# ---------------------------------------------------------------------- normalisation, pools, resizing


@net(6, 8)
def batch_norm() -> ModelProto:
    b = Builder()
    x = b.relu(b.norm(b.conv(b.input("N", 3, 6, 6), 3, 8, 3, 3, bias=False), 8))
    return b.done(b.head(b.relu(b.norm(b.conv(x, 8, 6, 3, 3), 6)), 6))


@net(6, 8)
def batch_norm_first() -> ModelProto:
    b = Builder(opset=8, ir_version=3)
    x = b.relu(b.conv(b.relu(b.norm(b.stem(8), 8)), 8, 6, 3, 3))
    return b.done(b.conv(b.relu(b.norm(x, 6)), 6, 4))


@net(8)
def batch_norm_of_rows() -> ModelProto:
    b = Builder()
    return b.done(b.linear(b.relu(b.norm(b.linear(b.input("N", 6), 6, 8), 8)), 8, 4))


@net(6, 8)
def instance_norm() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    for before, after in ((8, 6), (6, 4)):
        x = b.node("InstanceNormalization", x, b.vector(before), b.vector(before))
        x = b.conv(b.relu(x), before, after)
    return b.done(x)


@net(6, 8)
def pools() -> ModelProto:
    b = Builder()
    x = b.node("MaxPool", b.stem(8, size=12), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    x = b.node("AveragePool", x, kernel_shape=[2, 2], count_include_pad=1, pads=[1, 0, 0, 1])
    x = b.node("LpPool", b.relu(b.conv(x, 8, 6)), kernel_shape=[2, 2], p=2)
    peak = b.node("Flatten", b.node("GlobalMaxPool", x))
    length = b.node("Flatten", b.node("GlobalLpPool", x))
    return b.done(b.linear(peak, 6, 4), b.linear(length, 6, 4))


@net(8)
def resize_by_scales() -> ModelProto:
    b = Builder()
    x = b.node("Resize", b.stem(8), "", b.store([1, 1, 2, 1.5]), mode="linear")
    return b.done(b.conv(b.relu(x), 8, 4))


@net(8)
def resize_to_sizes() -> ModelProto:
    b = Builder()
    x = b.node("Resize", b.stem(8, batch=1), "", "", b.integers(1, 8, 11, 7), mode="nearest")
    return b.done(b.conv(b.relu(x), 8, 4))


@net(8)
def resize_some_axes() -> ModelProto:
    b = Builder(opset=18)
    x = b.node("Resize", b.stem(8), "", "", b.integers(11, 7), mode="cubic", axes=[2, 3])
    return b.done(b.conv(b.relu(x), 8, 4))


@net(8)
def resize_to_another_map() -> ModelProto:
    b = Builder()
    large = b.stem(8, size=8)
    small = b.node("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2])
    front = b.node("Slice", b.node("Shape", small), b.integers(0), b.integers(2))
    back = b.node("Slice", b.node("Shape", large), b.integers(2), b.integers(4))
    target = b.node("Concat", front, back, axis=0)
    return b.done(b.conv(b.node("Add", large, b.node("Resize", small, "", "", target)), 8, 4))


@net(8)
def upsample_attribute() -> ModelProto:
    b = Builder(opset=8, ir_version=3)
    return b.done(b.conv(b.node("Upsample", b.stem(8), scales=[1.0, 1.0, 2.0, 2.0]), 8, 4))


@net(8)
def upsample_input() -> ModelProto:
    b = Builder(opset=9, ir_version=4)
    return b.done(b.conv(b.node("Upsample", b.stem(8), b.store([1, 1, 2, 2])), 8, 4))


# ------------------------------------------------------------------------------------------- element-wise


@net(8)
def scales_and_shifts() -> ModelProto:
    b = Builder()
    x = b.node("Mul", b.stem(8), b.vector(8, 1, 1))
    x = b.node("Add", b.vector(1, 8, 1, 1), x)
    x = b.node("Div", b.node("Sub", x, b.store(0.1)), b.vector(8, 1, 1))
    return b.done(b.conv(b.node("Pow", b.node("Abs", x), b.positive(8, 1, 1)), 8, 4))


@net(6, 8)
def activations() -> ModelProto:
    b = Builder(opset=20)
    x = b.stem(8)
    for op in ("HardSwish", "LeakyRelu", "Elu", "Gelu", "Mish", "Exp"):
        x = b.node(op, x)
    x = b.node("PRelu", b.conv(b.norm(x, 8), 8, 6), b.vector(6, 1, 1))
    for op in ("Neg", "Softplus", "Sigmoid", "Cos"):
        x = b.node(op, x)
    return b.done(b.conv(b.node("PRelu", x, b.store([0.25])), 6, 4))


@net(8, 8)
def clip_and_where() -> ModelProto:
    b = Builder()
    x = b.conv(b.stem(8), 8, 8)
    x = b.node("Clip", x, b.store(-0.5), b.store(6))
    mask = b.store(np.reshape([1, 0, 1, 1, 0, 0, 1, 0], (8, 1, 1)), np.bool_)
    x = b.node("Where", mask, x, b.store(0.3))
    x = b.node("Where", b.node("Greater", x, b.positive(8, 1, 1)), x, b.node("Neg", b.vector(1, 8, 6, 6)))
    return b.done(b.conv(x, 8, 4))


@net(8)
def three_operands() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    maps = [b.conv(x, 3, 8) for _ in range(3)]
    joined = b.node("Max", b.node("Sum", *maps), b.node("Mean", *maps), b.vector(1, 8, 1, 1))
    return b.done(b.conv(joined, 8, 4))


@net(8)
def one_map_for_all_channels() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    gate = b.node("Sigmoid", b.conv(x, 8, 1))
    return b.done(b.conv(b.node("Mul", gate, x), 8, 4))


@net(8)
def quotient_of_activations() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    divisor = b.node("Exp", b.conv(x, 3, 8, bias=False))
    zero_where_cut = b.node("Sub", divisor, b.store(1))
    return b.done(b.conv(b.node("Div", b.conv(x, 3, 8), zero_where_cut), 8, 4))


@net(8)
def dropout_and_casts() -> ModelProto:
    b = Builder()
    x, mask = b.nodes_of("Dropout", b.stem(8), b.store(0.5), outputs=2)
    x = b.node("CastLike", b.node("Mul", x, b.node("Cast", mask, to=1)), b.store([1]))
    return b.done(b.conv(x, 8, 4))


# -------------------------------------------------------------------------------- heads and reductions


@net(8)
def softmax_head() -> ModelProto:
    b = Builder()
    return b.done(b.node("Softmax", b.conv(b.stem(8), 8, 4), axis=1))


@net(8)
def argmax_head() -> ModelProto:
    b = Builder()
    return b.done(b.node("ArgMax", b.conv(b.stem(8), 8, 4), axis=1, keepdims=0))


@net(6)
def softmax_over_channels() -> ModelProto:
    b = Builder()
    x = b.node("Softmax", b.stem(8), axis=-3)
    return b.done(b.head(b.relu(b.conv(x, 8, 6)), 6))


@net(8)
def softmax_over_a_side() -> ModelProto:
    b = Builder(opset=12, ir_version=7)
    return b.done(b.conv(b.node("LogSoftmax", b.stem(8), axis=3), 8, 4))


@net(8)
def reduce_by_attribute() -> ModelProto:
    b = Builder(opset=12, ir_version=7)
    x = b.stem(8)
    mean = b.node("ReduceMean", x, axes=[-1, 2], keepdims=0)
    peak = b.node("Squeeze", b.node("ReduceMax", x, axes=[2, 3]), axes=[2, 3])
    return b.done(b.linear(b.node("Add", mean, peak), 8, 4))


@net(8)
def reduce_by_input() -> ModelProto:
    b = Builder(opset=18)
    x = b.stem(8)
    mean = b.node("ReduceMean", x, b.integers(2, 3), keepdims=0)
    length = b.node("ReduceL2", x, b.integers(-1, -2), keepdims=0)
    untouched = b.node("ReduceSum", mean, noop_with_empty_axes=1)
    return b.done(b.linear(b.node("Add", untouched, length), 8, 4))


@net(6, 8)
def reduce_over_channels() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    total = b.node("ReduceSum", x, b.integers(1))
    return b.done(b.conv(b.relu(b.conv(b.node("Add", total, b.vector(1, 1, 6, 6)), 1, 6)), 6, 4))


@net(6)
def reduce_over_channels_that_are_not_zero() -> ModelProto:
    b = Builder()
    total = b.node("ReduceSum", b.node("Sigmoid", b.stem(8)), b.integers(1))
    return b.done(b.conv(b.relu(b.conv(total, 1, 6)), 6, 4))


@net(6)
def peak_of_channels() -> ModelProto:
    b = Builder()
    peak = b.node("ReduceMax", b.conv(b.stem(6), 6, 8), axes=[1])
    return b.done(b.conv(peak, 1, 4))


@net(8)
def length_of_channels() -> ModelProto:
    b = Builder(opset=22)
    return b.done(b.conv(b.node("LpNormalization", b.stem(8), axis=1, p=2), 8, 4))


@net(approximate=(8,))
def length_of_channels_that_are_not_zero() -> ModelProto:
    b = Builder(opset=22)
    x = b.node("LpNormalization", b.node("Exp", b.node("Neg", b.stem(8))), axis=1, p=2)
    mean = b.node("ReduceMean", b.node("Cos", b.stem(8)), b.integers(1))
    return b.done(b.conv(b.node("Mul", x, mean), 8, 4))


@net(6, approximate=(6, 8))
def mean_of_channels() -> ModelProto:
    b = Builder()
    x = b.node("Sigmoid", b.stem(8))
    gate = b.node("Concat", b.node("ReduceMean", x, axes=[1]), b.node("ReduceMean", x, axes=[1, 3]), axis=3)
    return b.done(b.conv(b.relu(b.conv(gate, 1, 6, 3, 3)), 6, 4))


# ----------------------------------------------------------------------------- taking apart and together


@net(4, 6)
def concat() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    joined = b.node("Concat", b.conv(x, 3, 4), b.conv(x, 3, 6), axis=1)
    return b.done(b.conv(b.relu(joined), 10, 4))


@net(4)
def concat_twice_the_same() -> ModelProto:
    b = Builder()
    x = b.stem(4)
    return b.done(b.conv(b.node("Concat", x, x, axis=-3), 8, 4))


@net(6)
def concat_of_rows() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    joined = b.node("Concat", b.conv(x, 3, 6), b.conv(x, 3, 6), axis=2)
    return b.done(b.conv(b.relu(joined), 6, 4))


@net(4)
def concat_with_the_input() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    some = b.node("Slice", x, b.integers(0), b.integers(2), b.integers(1))
    return b.done(b.conv(b.node("Concat", x, b.relu(b.conv(x, 3, 4)), some, axis=1), 9, 4))


@net(3, 4, 5)
def dense_blocks() -> ModelProto:
    b = Builder()
    maps, total = b.stem(4), 4
    for growth in (3, 5):
        fresh = b.conv(b.relu(b.norm(maps, total)), total, growth, 3, 3, pads=[1] * 4)
        maps, total = b.node("Concat", maps, fresh, axis=1), total + growth
    return b.done(b.head(maps, total))


@net(3, 5)
def split_by_attribute() -> ModelProto:
    b = Builder(opset=11, ir_version=6)
    one, two = b.nodes_of("Split", b.stem(8), outputs=2, axis=1, split=[3, 5])
    return b.done(b.node("Add", b.conv(b.relu(one), 3, 4), b.conv(b.node("Tanh", two), 5, 4)))


@net(3, 5)
def split_by_input() -> ModelProto:
    b = Builder()
    one, two = b.nodes_of("Split", b.stem(8), b.integers(3, 5), outputs=2, axis=1)
    return b.done(b.node("Add", b.conv(b.relu(one), 3, 4), b.conv(b.node("Tanh", two), 5, 4)))


@net(4, 4)
def split_in_halves() -> ModelProto:
    b = Builder()
    one, two = b.nodes_of("Split", b.stem(8), outputs=2, axis=1)
    return b.done(b.node("Add", b.conv(b.relu(one), 4, 4), b.conv(b.node("Tanh", two), 4, 4)))


@net(4, 4)
def split_in_halves_by_attribute() -> ModelProto:
    b = Builder(opset=9, ir_version=4)
    one, two = b.nodes_of("Split", b.stem(8), outputs=2, axis=1)
    return b.done(b.node("Add", b.conv(b.relu(one), 4, 4), b.conv(b.node("Tanh", two), 4, 4)))


@net(2, 3, 3)
def split_into_a_number() -> ModelProto:
    b = Builder(opset=18)
    one, two, three = b.nodes_of("Split", b.stem(8), outputs=3, axis=-3, num_outputs=3)
    return b.done(b.node("Sum", b.conv(one, 3, 4), b.conv(b.node("Tanh", two), 3, 4), b.conv(three, 2, 4)))


@net(4)
def gated_halves() -> ModelProto:
    b = Builder()
    one, gate = b.nodes_of("Split", b.stem(8), outputs=2, axis=1)
    return b.done(b.conv(b.node("Mul", one, b.node("Sigmoid", gate)), 4, 4))


@net(3, 5)
def slice_by_attribute() -> ModelProto:
    b = Builder(opset=9, ir_version=4)
    x = b.stem(8)
    front = b.node("Slice", x, axes=[1, 2], starts=[0, 1], ends=[3, -1])
    back = b.node("Slice", x, axes=[1, 2], starts=[-5, 1], ends=[TO_THE_END, 5])
    return b.done(b.node("Add", b.conv(front, 3, 4), b.conv(b.node("Tanh", back), 5, 4)))


@net(2, 3, 3)
def slice_by_input() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    front = b.node("Slice", x, b.integers(0), b.integers(5), b.integers(1))
    back = b.node("Slice", x, b.integers(-5), b.integers(TO_THE_END), b.integers(-3), b.integers(1))
    return b.done(b.node("Add", b.conv(front, 5, 4), b.conv(b.node("Tanh", back), 5, 4)))


@net(8)
def slice_every_second_pixel() -> ModelProto:
    b = Builder()
    x = b.node("Slice", b.stem(8), b.integers(0, 1), b.integers(6, 6), b.integers(2, 3), b.integers(2, 2))
    return b.done(b.conv(x, 8, 4))


@net(6)
def slice_every_second_channel() -> ModelProto:
    b = Builder()
    x = b.node("Slice", b.stem(8), b.integers(0), b.integers(8), b.integers(1), b.integers(2))
    return b.done(b.conv(b.relu(b.conv(x, 4, 6)), 6, 4))


@net(8)
def gather_other_order() -> ModelProto:
    b = Builder()
    x = b.node("Gather", b.stem(8), b.integers(7, -2, 5, 4, 3, 2, 1, 0), axis=1)
    return b.done(b.conv(b.relu(x), 8, 4))


@net(4, 4)
def gather_some_channels() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    picked = b.node("Gather", x, b.integers(6, 0, 2, -4), axis=1)
    return b.done(b.conv(x, 8, 4), b.conv(picked, 4, 4))


@net(8)
def gather_one_row() -> ModelProto:
    b = Builder()
    row = b.node("Gather", b.stem(8), b.store(2, np.int64), axis=2)
    return b.done(b.conv(row, 8, 4, 3))


@net(6)
def embedding() -> ModelProto:
    b = Builder()
    x = b.node("Gather", b.weight(10, 6), b.input("N", 7, dtype=np.int64))
    return b.done(b.node("MatMul", b.relu(x), b.weight(6, 4)))


@net(3, 5)
def numbers_shared_by_splits() -> ModelProto:
    b = Builder()
    sizes, x = b.integers(3, 5), b.input("N", 3, 6, 6)
    one, two = b.nodes_of("Split", b.relu(b.conv(x, 3, 8)), sizes, outputs=2, axis=1)
    left, right = b.nodes_of("Split", b.node("Concat", b.node("Tanh", one), two, axis=1), sizes, outputs=2, axis=1)
    return b.done(b.node("Add", b.conv(left, 3, 4), b.conv(b.node("Tanh", right), 5, 4)))


@net(3, 3, 5, 5)
def numbers_shared_by_strangers() -> ModelProto:
    b = Builder()
    sizes, x = b.integers(3, 5), b.input("N", 3, 6, 6)
    results = []
    for _ in range(2):
        one, two = b.nodes_of("Split", b.relu(b.conv(x, 3, 8)), sizes, outputs=2, axis=1)
        results += [b.conv(one, 3, 4), b.conv(b.node("Tanh", two), 5, 4)]
    return b.done(b.node("Sum", *results))


@net(1 + 2, 5)
def one_number_for_start_and_axis() -> ModelProto:
    b = Builder()
    x, one = b.stem(9), b.integers(1)
    x = b.node("Slice", x, one, b.integers(9), one)  # channel 0 is alone, and stays
    front = b.node("Slice", x, b.integers(0), b.integers(3), one, one)
    back = b.node("Slice", x, b.integers(3), b.integers(TO_THE_END), one, one)
    return b.done(b.node("Add", b.conv(front, 3, 4), b.conv(b.node("Tanh", back), 5, 4)))


@net(8, 8)
def indices_shared_by_strangers() -> ModelProto:
    b = Builder()
    x, order = b.input("N", 3, 6, 6), b.integers(7, 6, 5, 4, 3, 2, 1, 0)
    maps = [b.node("Gather", b.relu(b.conv(x, 3, 8)), order, axis=1) for _ in range(2)]
    return b.done(b.node("Add", b.conv(maps[0], 8, 4), b.node("Tanh", b.conv(maps[1], 8, 4))))


@net(2, 4)
def concat_with_constants() -> ModelProto:
    b = Builder()
    x = b.stem(4, batch=1)
    return b.done(b.conv(b.node("Concat", b.vector(1, 2, 6, 6), x, axis=1), 6, 4))


# -------------------------------------------------------------------------------------------------- pads


@net(8)
def pad_pixels() -> ModelProto:
    b = Builder()
    x = b.node("Pad", b.stem(8), b.integers(0, 0, 1, 2, 0, 0, 0, 1), b.store(0.5))
    x = b.node("Pad", x, b.integers(0, 0, 1, 0, 0, 0, 1, 0), mode="reflect")
    return b.done(b.conv(x, 8, 4, 3, 3))


@net(8)
def pad_pixels_by_attribute() -> ModelProto:
    b = Builder(opset=10, ir_version=5)
    return b.done(b.conv(b.node("Pad", b.stem(8), pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="edge"), 8, 4, 3, 3))


def option_a(b: Builder, pad: Callable[[str], str], shrink: Callable[[str], str]) -> ModelProto:
    """A residual net whose shortcut pads channels with zeros: 8 channels, 2 before and 2 after them."""
    x = b.stem(8)
    inner = b.relu(b.conv(x, 8, 7, 3, 3, pads=[1] * 4))
    x = b.relu(b.node("Add", x, b.conv(inner, 7, 8, 3, 3, pads=[1] * 4)))
    inner = b.relu(b.conv(x, 8, 10, 3, 3, pads=[1] * 4, strides=[2, 2]))
    x = b.relu(b.node("Add", b.conv(inner, 10, 12, 3, 3, pads=[1] * 4), pad(shrink(x))))
    return b.done(b.head(x, 12))


@net(4, 7, 8, 10)
def pad_channels() -> ModelProto:
    b = Builder()
    return option_a(
        b,
        lambda x: b.node("Pad", x, b.integers(0, 2, 0, 0, 0, 2, 0, 0)),
        lambda x: b.node("Slice", x, b.integers(0, 0), b.integers(6, 6), b.integers(2, 3), b.integers(2, 2)),
    )


@net(4, 7, 8, 10)
def pad_channels_by_attribute() -> ModelProto:
    b = Builder(opset=10, ir_version=5)
    return option_a(
        b,
        lambda x: b.node("Pad", x, pads=[0, 2, 0, 0, 0, 2, 0, 0]),
        lambda x: b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
    )


@net(4, 7, 8, 10)
def pad_one_axis() -> ModelProto:
    b = Builder(opset=18)
    return option_a(
        b,
        lambda x: b.node("Pad", x, b.integers(2, 2), "", b.integers(-3)),
        lambda x: b.node("MaxPool", x, kernel_shape=[1, 1], strides=[2, 2]),
    )


# ---------------------------------------------------------------------------------------- moving axes


@net(6, 8)
def channels_last_island() -> ModelProto:
    b = Builder()
    x = b.node("Transpose", b.stem(8), perm=[0, 2, 3, 1])
    x = b.node("MatMul", b.node("Mul", x, b.vector(8)), b.weight(8, 6))
    return b.done(b.conv(b.relu(b.node("Transpose", x, perm=[0, 3, 1, 2])), 6, 4))


@net(8, 10)
def flatten() -> ModelProto:
    b = Builder()
    x = b.node("MaxPool", b.stem(8), kernel_shape=[2, 2], strides=[2, 2])
    return b.done(b.linear(b.relu(b.linear(b.node("Flatten", x), 72, 10)), 10, 4))


@net(8, 10)
def flatten_channels_last() -> ModelProto:
    b = Builder()
    x = b.node("Transpose", b.stem(8, size=3), perm=[0, 2, 3, 1])
    x = b.relu(b.node("MatMul", b.node("Reshape", x, b.integers(-1, 72)), b.weight(72, 10)))
    return b.done(b.linear(x, 10, 4))


@net(6, 8, 10)
def keras_mixed() -> ModelProto:
    b = Builder(opset=13, ir_version=7)
    x = b.node("Transpose", b.input("N", 6, 6, 3), perm=[0, 3, 1, 2])
    x = b.relu(b.norm(b.conv(x, 3, 8, 3, 3), 8))
    x = b.node("Transpose", b.relu(b.conv(x, 8, 6, 2, 2)), perm=[0, 2, 3, 1])
    x = b.node("Reshape", b.node("Add", x, b.vector(6)), b.integers(-1, 54))
    x = b.relu(b.node("Add", b.node("MatMul", x, b.weight(54, 10)), b.vector(10)))
    return b.done(b.node("Softmax", b.node("MatMul", x, b.weight(10, 4)), axis=-1))


@net(6, 8)
def reshape_keeps_channels() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.stem(8), b.integers(0, 8, -1))
    x = b.node("Reshape", b.relu(b.conv(x, 8, 6, 1)), b.integers(0, 0, 6, 6))
    return b.done(b.node("Reshape", b.conv(x, 6, 4), b.integers(-1, 4, 36)))


@net(8)
def reshape_flattens() -> ModelProto:
    b = Builder()
    x = b.stem(8, size=3)
    one = b.linear(b.node("Reshape", x, b.integers(0, -1)), 72, 4)
    two = b.linear(b.node("Reshape", x, b.integers(-1, 72)), 72, 4)
    three = b.linear(b.node("Flatten", b.node("Reshape", x, b.integers(0, 72, 1, 1))), 72, 4)
    return b.done(one, two, three)


@net(2)
def reshape_to_heads() -> ModelProto:
    b = Builder()
    x = b.node("MatMul", b.input("N", 7, 6), b.weight(6, 8))
    x = b.node("Transpose", b.node("Reshape", x, b.integers(0, 7, 2, 4)), perm=[0, 2, 1, 3])
    x = b.node("Transpose", b.relu(x), perm=[0, 2, 1, 3])
    return b.done(b.node("MatMul", b.node("Reshape", x, b.integers(0, 7, 8)), b.weight(8, 5)))


@net(8)
def squeeze_named_axes() -> ModelProto:
    b = Builder(opset=13)
    x = b.node("Squeeze", b.node("GlobalAveragePool", b.stem(8)), b.integers(2, -1))
    return b.done(b.linear(b.node("Squeeze", b.node("Unsqueeze", x, b.integers(1)), b.integers(1)), 8, 4))


@net(8)
def squeeze_all() -> ModelProto:
    b = Builder(opset=13)
    return b.done(b.linear(b.node("Squeeze", b.node("GlobalAveragePool", b.stem(8, batch=2))), 8, 4))


@net(8)
def squeeze_all_by_attribute() -> ModelProto:
    b = Builder(opset=11, ir_version=6)
    return b.done(b.linear(b.node("Squeeze", b.node("GlobalAveragePool", b.stem(8, batch=2))), 8, 4))


@net(8)
def unsqueeze_by_attribute() -> ModelProto:
    b = Builder(opset=11, ir_version=6)
    x = b.node("Unsqueeze", b.node("GlobalAveragePool", b.stem(8)), axes=[1, -1])
    return b.done(b.linear(b.node("Squeeze", x, axes=[1, 3, 4, 5]), 8, 4))


# ----------------------------------------------------------------------------------- shape arithmetic


@net(8)
def view_with_dynamic_batch() -> ModelProto:
    b = Builder()
    x = b.stem(8, size=3)
    batch = b.node("Unsqueeze", b.node("Gather", b.node("Shape", x), b.store(0, np.int64)), b.integers(0))
    one = b.node("Reshape", x, b.node("Concat", batch, b.integers(-1), axis=0))
    two = b.node("Reshape", x, b.node("Concat", batch, b.integers(72), axis=0))
    return b.done(b.linear(one, 72, 4), b.linear(two, 72, 4))


@net(6, 8)
def view_with_a_channel_count() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    size = b.node("Shape", x)
    batch, channels = (b.node("Gather", size, b.integers(axis)) for axis in (0, 1))
    x = b.node("Reshape", x, b.node("Concat", batch, channels, b.integers(-1), axis=0))
    x = b.relu(b.conv(x, 8, 6, 1))
    back = b.node("Reshape", x, b.node("Concat", batch, b.integers(6, 6, 6), axis=0))
    return b.done(b.conv(back, 6, 4))


@net(4, 4)
def chunks_of_half_the_shape() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    channels = b.node("Gather", b.node("Shape", x), b.store([1], np.int64))
    half = b.node("Div", channels, b.integers(2))
    one = b.node("Slice", x, b.integers(0), half, b.integers(1))
    two = b.node("Slice", x, half, b.node("Mul", half, b.integers(2)), b.integers(1))
    return b.done(b.node("Add", b.conv(one, 4, 4), b.conv(b.node("Tanh", two), 4, 4)))


@net(8)
def expand_to_another_map() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    wide = b.node("Expand", b.node("GlobalAveragePool", x), b.node("Shape", x))
    return b.done(b.conv(b.node("Concat", x, wide, axis=1), 16, 4))


@net(8)
def expand_to_constants() -> ModelProto:
    b = Builder()
    x = b.node("Expand", b.node("GlobalAveragePool", b.stem(8)), b.integers(8, 4, 1))
    return b.done(b.conv(b.node("Expand", x, b.integers(1, 1, 1, 5)), 8, 4))


@net(8)
def torch_expand() -> ModelProto:
    b = Builder()
    pooled = b.node("GlobalAveragePool", b.stem(8))
    asked = b.integers(-1, 8, 5, 5)
    ones = b.node("ConstantOfShape", b.integers(4), value=numpy_helper.from_array(np.ones(1, np.int64)))
    same = b.node("Equal", asked, b.node("Mul", ones, b.integers(-1)))
    return b.done(b.conv(b.node("Expand", pooled, b.node("Where", same, ones, asked)), 8, 4))


@net(6, 8)
def size_as_a_number() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    width = b.node("Gather", b.node("Shape", x), b.store(1, np.int64))
    x = b.node("Div", x, b.node("Sqrt", b.node("Cast", width, to=1)))
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4))


@net(8)
def zeros_of_a_shape() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    zeros = b.node("ConstantOfShape", b.node("Shape", x))
    return b.done(b.conv(b.node("Where", b.node("Greater", x, zeros), x, zeros), 8, 4))


@net(8)
def channels_folded_into_the_batch() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.stem(8), b.integers(-1, 1, 6, 6))
    x = b.node("Reshape", b.relu(b.conv(x, 1, 1, 3, 3, pads=[1] * 4)), b.integers(-1, 8, 6, 6))
    return b.done(b.conv(x, 8, 4))


@net(8)
def channels_times_batch() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    size = b.node("Shape", x)
    batch, channels = (b.node("Gather", size, b.integers(axis)) for axis in (0, 1))
    rows = b.node("Mul", batch, channels)
    x = b.node("Reshape", x, b.node("Concat", rows, b.integers(1, 6, 6), axis=0))
    x = b.relu(b.conv(x, 1, 1, 3, 3, pads=[1] * 4))
    x = b.node("Reshape", x, b.node("Concat", batch, channels, b.integers(6, 6), axis=0))
    return b.done(b.conv(x, 8, 4))


@net(8)
def channels_times_batch_as_a_number() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    size = b.node("Shape", x)
    batch, channels = (b.node("Gather", size, b.integers(axis)) for axis in (0, 1))
    rows = b.node("Mul", batch, b.integers(8))
    x = b.node("Reshape", x, b.node("Concat", rows, b.integers(36), axis=0))
    x = b.node("Reshape", x, b.node("Concat", batch, channels, b.integers(6, 6), axis=0))
    return b.done(b.conv(x, 8, 4))


@net(8)
def view_in_an_old_opset() -> ModelProto:
    b = Builder(opset=8, ir_version=3)
    x = b.stem(8, size=3)
    batch = b.node("Unsqueeze", b.node("Gather", b.node("Shape", x), b.store(0, np.int64)), axes=[0])
    return b.done(b.linear(b.node("Reshape", x, b.node("Concat", batch, b.integers(72), axis=0)), 72, 4))


@net(8)
def mean_by_the_size_of_a_batch() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    count = b.node("Cast", b.node("Size", x), to=1)
    return b.done(b.conv(b.node("Mul", x, b.node("Sqrt", count)), 8, 4))


@net(8)
def mean_by_a_computed_count() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    count = b.node("Div", b.node("Size", x), b.node("Gather", b.node("Shape", x), b.store(0, np.int64)))
    total = b.node("ReduceSum", x, b.integers(2, 3), keepdims=0)
    return b.done(b.linear(b.node("Div", total, b.node("Cast", count, to=1)), 8, 4))


# --------------------------------------------------------------------------------- where weights live


@net(6, 8)
def weights_in_constant_nodes() -> ModelProto:
    b = Builder(opset=12, ir_version=7)
    b.stored_as = b.constant
    x = b.relu(b.norm(b.conv(b.stem(8), 8, 6, 3, 3, bias=False), 6))
    return b.done(b.node("Mul", b.head(x, 6), b.node("Constant", value_floats=[1.0, 2.0, 3.0, 4.0, 5.0])))


@net(6)
def weights_in_lists() -> ModelProto:
    b = Builder(opset=12, ir_version=7)
    scale = b.node("Constant", value_floats=[0.5, -1.0, 2.0, 0.25, 1.5, -0.75])
    x = b.node("Mul", b.linear(b.input("N", 4), 4, 6), scale)
    return b.done(b.linear(b.relu(x), 6, 3))


@net(6, 8)
def weights_listed_as_inputs() -> ModelProto:
    b = Builder(opset=8, ir_version=3)
    x = b.relu(b.norm(b.conv(b.stem(8), 8, 6, 3, 3, bias=False), 6))
    x = b.node("Reshape", b.node("GlobalAveragePool", x), b.integers(-1, 6))
    return b.done(b.linear(x, 6, CLASSES))


@net(6, 8)
def half_precision() -> ModelProto:
    b = Builder(dtype=np.float16)
    x = b.relu(b.norm(b.conv(b.stem(8), 8, 6, 3, 3, bias=False), 6))
    return b.done(b.head(x, 6))


@net(6, 8, 8)
def merged_biases() -> ModelProto:
    b = Builder()
    x, zeros, ones = b.input("N", 3, 6, 6), b.vector(8), b.positive(8)
    alias = b.node("Identity", zeros)
    x = b.relu(b.node("Conv", x, b.weight(8, 3, 3, 3), zeros))
    x = b.relu(b.node("BatchNormalization", x, ones, zeros, alias, ones))
    x = b.relu(b.node("Conv", x, b.weight(8, 8, 3, 3), b.node("Identity", alias)))
    x = b.relu(b.node("Mul", x, b.node("Reshape", ones, b.integers(8, 1, 1))))
    return b.done(b.head(b.relu(b.conv(x, 8, 6)), 6))


@net(8, 8)
def merged_biases_in_an_old_file() -> ModelProto:
    b = Builder(opset=8, ir_version=3)
    shared = b.positive(8)
    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), b.weight(8, 3, 3, 3), shared))
    return b.done(b.conv(b.relu(b.node("Conv", x, b.weight(8, 8, 3, 3), shared)), 8, 4))


@net(8, 8)
def merged_biases_in_a_constant_node() -> ModelProto:
    b = Builder(opset=12, ir_version=7)
    b.stored_as = b.constant
    shared = b.positive(8)
    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), b.weight(8, 3, 3, 3), shared))
    return b.done(b.conv(b.relu(b.node("Conv", x, b.weight(8, 8, 3, 3), shared)), 8, 4))


@net(8)
def bias_shared_in_pieces() -> ModelProto:
    b = Builder()
    stored = b.positive(12)
    pieces = [b.node("Slice", stored, b.integers(start), b.integers(start + 8)) for start in (0, 4)]
    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), b.weight(8, 3, 3, 3), pieces[0]))
    return b.done(b.conv(x, 8, 4), b.node("MatMul", b.node("Unsqueeze", pieces[1], b.integers(0)), b.weight(8, 4)))


@net(8)
def bias_shared_with_an_operator_without_a_rule() -> ModelProto:
    b = Builder()
    shared = b.positive(8)
    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), b.weight(8, 3, 3, 3), shared))
    offsets = b.node("Unsqueeze", b.node("CumSum", shared, b.store(0, np.int64)), b.integers(0))
    return b.done(b.conv(x, 8, 4), b.node("MatMul", offsets, b.weight(8, 4)))


@net(6)
def weight_that_is_an_output() -> ModelProto:
    b = Builder()
    weight = b.weight(8, 3, 3, 3)
    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), weight, b.positive(8)))
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4), weight)


@net(6)
def map_that_is_an_output() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4), x)


@net(6, 8)
def weights_computed_from_weights() -> ModelProto:
    b = Builder()
    weight = b.node("Mul", b.weight(8, 3, 3, 3), b.positive(8, 1, 1, 1))
    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), weight, b.node("Add", b.positive(8), b.positive(8))))
    half = b.node("Slice", b.weight(12, 8, 1, 1), b.integers(3), b.integers(9), b.integers(0))  # 6 are never read
    return b.done(b.conv(b.relu(b.node("Conv", x, half)), 6, 4))


@net(6, 8)
def one_head_on_two_maps() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    weight, bias, last = b.weight(6, 8, 1, 1), b.vector(6), b.weight(4, 6, 1, 1)
    maps = [b.relu(b.conv(x, 3, 8)), b.relu(b.conv(x, 3, 8, 3, 3))]
    heads = [b.relu(b.node("Conv", one, weight, bias)) for one in maps]
    return b.done(*(b.node("Conv", head, last) for head in heads))


@net(6)
def weight_used_twice_over() -> ModelProto:
    b = Builder()
    weight = b.weight(6, 6)
    x = b.relu(b.linear(b.input("N", 4), 4, 6))
    x = b.relu(b.node("MatMul", x, weight))
    return b.done(b.linear(b.node("MatMul", x, weight), 6, 3))


# ----------------------------------------------------------------------------- what nobody has a rule for


@net(6, 8)
def branch_captures_a_weight() -> ModelProto:
    b = Builder()
    x, weight = b.stem(8), b.weight(8, 8, 1, 1)
    switch = b.node("Greater", b.node("ReduceSum", b.inputs[0].name, keepdims=0), b.store(0))
    outcome = helper.make_tensor_value_info("outcome", TensorProto.FLOAT, None)
    bodies = [
        helper.make_graph([helper.make_node("Conv", [x, weight], ["outcome"])], "then", [], [outcome]),
        helper.make_graph([helper.make_node("Identity", [x], ["outcome"])], "else", [], [outcome]),
    ]
    x = b.node("If", switch, then_branch=bodies[0], else_branch=bodies[1])
    b.nodes.append(helper.make_node("Conv", [x, b.weight(8, 8, 1, 1)], ["after"], name="after"))
    return b.done(b.conv(b.relu(b.conv(b.relu("after"), 8, 6)), 6, 4))


@net(6)
def local_function() -> ModelProto:
    b = Builder()
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    b.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", b.opset)]))
    b.domains.append(helper.make_opsetid("own", 1))
    x = b.node("Twice", b.stem(8), domain="own")
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4))


@net(6)
def operator_of_another_domain() -> ModelProto:
    b = Builder()
    b.domains.append(helper.make_opsetid("com.microsoft", 1))
    x = b.node("ExpandDims", b.stem(8), b.store(0, np.int32), domain="com.microsoft")
    x = b.node("Squeeze", x, b.integers(0))
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4))


@net(6)
def operator_without_a_rule() -> ModelProto:
    b = Builder()
    body = [helper.make_node("Softmax", ["a"], ["b"], axis=1)]
    b.functions.append(helper.make_function("own", "Shares", ["a"], ["b"], body, [helper.make_opsetid("", b.opset)]))
    b.domains.append(helper.make_opsetid("own", 1))
    x = b.node("Shares", b.stem(8), domain="own")
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4))


@net(6)
def added_to_the_input() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    x = b.node("Add", b.conv(x, 3, 3, 3, 3, pads=[1] * 4), x)
    return b.done(b.conv(b.relu(b.conv(x, 3, 6)), 6, 4))


@net(6)
def pool_with_indices() -> ModelProto:
    b = Builder()
    x, places = b.nodes_of("MaxPool", b.stem(8), outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("MaxUnpool", x, places, kernel_shape=[2, 2], strides=[2, 2])
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4))


@net(5, 8)
def recurrent() -> ModelProto:
    b = Builder()
    x = b.linear(b.relu(b.linear(b.input("N", 6), 6, 8)), 8, 5)
    x = b.node("Unsqueeze", x, b.integers(1))
    x, *_ = b.nodes_of("LSTM", x, b.weight(1, 16, 5), b.weight(1, 16, 4), b.vector(1, 32), outputs=3, hidden_size=4)
    return b.done(b.node("Squeeze", x, b.integers(1, 2)))


# --------------------------------------------------------------------------------------------- blocks


@net(6, 8)
def residual() -> ModelProto:
    b = Builder(seed=1)
    x = b.stem(8)
    inner = b.relu(b.norm(b.conv(x, 8, 6, 3, 3, pads=[1] * 4), 6))
    x = b.relu(b.node("Add", x, b.norm(b.conv(inner, 6, 8, 3, 3, pads=[1] * 4), 8)))
    return b.done(b.head(x, 8))


@net(2, 8)
def squeeze_and_excitation() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    gate = b.relu(b.conv(b.node("GlobalAveragePool", x), 8, 2))
    x = b.node("Mul", x, b.node("HardSigmoid", b.conv(gate, 2, 8)))
    return b.done(b.head(x, 8))


@net(6, 8, 12)
def inverted_residual() -> ModelProto:
    b = Builder(opset=11, ir_version=6)
    x = b.stem(8)
    low, high = b.store(0), b.store(6)
    wide = b.node("Clip", b.conv(x, 8, 12), low, high)
    wide = b.node("Clip", b.conv(wide, 12, 12, 3, 3, group=12, pads=[1] * 4), low, high)
    x = b.node("Add", x, b.conv(wide, 12, 8))
    return b.done(b.head(b.relu(b.conv(x, 8, 6)), 6))


# ------------------------------------------------------------------------------------------- shuffles


def shuffle(b: Builder, x: str, channels: int, groups: int, side: int = 6) -> str:
    """Shuffle the channels of a map, as ShuffleNet does."""
    x = b.node("Reshape", x, b.integers(0, groups, channels // groups, side, side))
    return b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3, 4]), b.integers(0, -1, side, side))


@net(8)
def shuffled() -> ModelProto:
    b = Builder()
    return b.done(b.conv(shuffle(b, b.stem(8), 8, 2), 8, 4))


@net(6, 12)
def shuffled_three_times() -> ModelProto:
    b = Builder()
    x = shuffle(b, shuffle(b, b.stem(12), 12, 3), 12, 4)
    return b.done(b.conv(shuffle(b, b.relu(b.conv(x, 12, 6)), 6, 2), 6, 4))


@net(2, 2)
def shuffled_with_a_free_batch() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    batch = b.node("Gather", b.node("Shape", x), b.integers(0))
    y = b.node("Reshape", x, b.node("Concat", batch, b.integers(2, 4, 6, 6), axis=0))
    y = b.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = b.node("Reshape", y, b.node("Concat", batch, b.integers(8, 6, 6), axis=0))
    return b.done(b.conv(b.node("Add", x, y), 8, 4))


@net(8)
def shuffled_channels_last() -> ModelProto:
    b = Builder()
    x = b.node("Transpose", b.stem(8), perm=[0, 2, 3, 1])
    x = b.node("Transpose", b.node("Reshape", x, b.integers(0, 6, 6, 4, 2)), perm=[0, 1, 2, 4, 3])
    return b.done(b.node("MatMul", b.node("Reshape", x, b.integers(0, 6, 6, 8)), b.weight(8, 4)))


@net(8)
def shuffled_in_three_factors() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.stem(8), b.integers(-1, 2, 2, 2, 6, 6))
    x = b.node("Transpose", x, perm=[0, 3, 2, 1, 4, 5])
    return b.done(b.conv(b.node("Reshape", x, b.integers(-1, 8, 6, 6)), 8, 4))


@net(8)
def shuffled_with_flat_pixels() -> ModelProto:
    b = Builder()
    x = b.node("Transpose", b.node("Reshape", b.stem(8), b.integers(-1, 2, 4, 36)), perm=[0, 2, 1, 3])
    return b.done(b.conv(b.node("Reshape", x, b.integers(-1, 8, 6, 6)), 8, 4))


@net(4, 4)
def shuffled_by_even_and_odd() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    parts = [b.node("Gather", x, b.integers(*range(first, 8, 2)), axis=1) for first in (0, 1)]
    return b.done(b.conv(b.relu(b.node("Concat", *parts, axis=1)), 8, 4))


@net(4, slots=(4,))
def interleaved() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    maps = [b.node("Unsqueeze", b.relu(b.conv(x, 3, 4)), b.integers(1)) for _ in range(2)]
    x = b.node("Transpose", b.node("Concat", *maps, axis=1), perm=[0, 2, 1, 3, 4])
    return b.done(b.conv(b.node("Reshape", x, b.integers(0, 8, 6, 6)), 8, 4))


@net(4)
def what_a_shuffle_starts_with_is_read_elsewhere() -> ModelProto:
    b = Builder()
    split = b.node("Reshape", b.stem(8), b.integers(0, 4, 2, 6, 6))
    x = b.node("Reshape", b.node("Transpose", split, perm=[0, 2, 1, 3, 4]), b.integers(0, 8, 6, 6))
    back = b.node("Reshape", b.node("Tanh", split), b.integers(0, 8, 6, 6))
    x = b.node("Add", x, b.relu(b.conv(back, 8, 8)))
    return b.done(b.conv(x, 8, 4))


def shufflenet_v1(b: Builder, x: str, channels: int, groups: int, *, downsample: bool, side: int) -> str:
    """A unit of ShuffleNet v1; one that halves the map doubles the channels."""
    inner = b.relu(b.conv(x, channels, 2 * groups, group=groups, bias=False))
    inner = shuffle(b, inner, 2 * groups, groups, side)
    pads, strides = [1] * 4, [1 + downsample] * 2
    inner = b.conv(inner, 2 * groups, 2 * groups, 3, 3, group=2 * groups, pads=pads, strides=strides)
    inner = b.conv(inner, 2 * groups, channels, group=groups)
    if not downsample:
        return b.relu(b.node("Add", x, inner))
    pooled = b.node("AveragePool", x, kernel_shape=[3, 3], pads=pads, strides=strides)
    return b.relu(b.node("Concat", pooled, inner, axis=1))


@net(2, 2, 2, 2, 2)
def two_stages_of_shufflenet_v1() -> ModelProto:
    b = Builder(seed=1)
    x = b.stem(6, size=8)
    x = shufflenet_v1(b, x, 6, 3, downsample=True, side=8)
    x = shufflenet_v1(b, x, 12, 3, downsample=False, side=4)
    x = shufflenet_v1(b, x, 12, 3, downsample=True, side=4)
    x = shufflenet_v1(b, x, 24, 3, downsample=False, side=2)
    return b.done(b.head(x, 24))


@net(2, 2, 4)
def shufflenet_v1_in_two_groups() -> ModelProto:
    b = Builder(seed=2)
    x = b.stem(8, size=4)
    x = shufflenet_v1(b, x, 8, 2, downsample=False, side=4)
    return b.done(b.head(shufflenet_v1(b, x, 8, 2, downsample=False, side=4), 8))


@net(2, 2, 2)
def shufflenet_v1_in_four_groups() -> ModelProto:
    b = Builder(seed=2)
    x = b.stem(8, size=4)
    x = shufflenet_v1(b, x, 8, 4, downsample=False, side=4)
    return b.done(b.head(shufflenet_v1(b, x, 8, 4, downsample=False, side=4), 8))


@net(2, 2, 2, 2, 4, 4, 6, 6)
def two_units_of_shufflenet_v2() -> ModelProto:
    b = Builder()
    x = b.stem(8, size=4)
    for _ in range(2):
        left, right = b.nodes_of("Split", x, outputs=2, axis=1)
        right = b.conv(b.relu(b.conv(right, 4, 6)), 6, 6, 3, 3, group=6, pads=[1] * 4)
        x = shuffle(b, b.node("Concat", left, b.relu(b.conv(right, 6, 4)), axis=1), 8, 2, 4)
    return b.done(b.head(x, 8))


# ------------------------------------------------------------------------------ the inside of groups


@net(4, 6)
def two_groups() -> ModelProto:
    b = Builder()
    return b.done(b.head(b.relu(b.conv(b.stem(8), 8, 12, 3, 3, group=2)), 12))


@net(4, 4, 6)
def shuffled_between_two_groups() -> ModelProto:
    b = Builder(seed=1)
    x = shuffle(b, b.relu(b.conv(b.stem(8), 8, 12, group=2)), 12, 2)
    return b.done(b.head(b.relu(b.conv(x, 12, 8, group=2)), 8))


@net(8, slots=(2, 2))
def eight_groups() -> ModelProto:
    b = Builder()
    return b.done(b.head(b.relu(b.conv(b.stem(16), 16, 16, 3, 3, group=8)), 16))


@net(2, 2, slots=(2, 3))
def groups_behind_a_concat() -> ModelProto:
    b = Builder()
    x = b.input("N", 3, 6, 6)
    joined = b.node("Concat", b.conv(x, 3, 4), b.conv(x, 3, 4), axis=1)
    return b.done(b.conv(b.relu(b.conv(joined, 8, 12, group=4)), 12, 4))


@net(3, 4)
def two_transposed_groups() -> ModelProto:
    b = Builder()
    weight = b.weight(8, 3, 3, 3, fan_in=4)
    x = b.relu(b.node("ConvTranspose", b.stem(8), weight, b.vector(6), strides=[2, 2], group=2))
    return b.done(b.conv(x, 6, 4))


@net(4, slots=(2,), both=(2,))
def groups_in_a_residual_stream() -> ModelProto:
    b = Builder(seed=1)
    x = b.stem(8)
    return b.done(b.head(b.relu(b.node("Add", x, b.norm(b.conv(x, 8, 8, group=4), 8))), 8))


@net(4, both=(2,))
def group_norm_by_reshape() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.stem(8), b.integers(0, 4, -1))
    x = b.node("Reshape", b.node("InstanceNormalization", x, b.vector(4), b.vector(4)), b.integers(0, 8, 6, 6))
    return b.done(b.conv(b.relu(b.node("Mul", x, b.vector(8, 1, 1))), 8, 4))


@net(4, both=(2,))
def group_norm_by_shape() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    y = b.node("Reshape", x, b.integers(0, 4, -1))
    y = b.node("InstanceNormalization", y, b.positive(4), b.vector(4))
    y = b.node("Reshape", y, b.node("Shape", x))
    return b.done(b.conv(b.node("Add", b.node("Mul", y, b.vector(8, 1, 1)), b.vector(8, 1, 1)), 8, 4))


@net(4, approximate=(4,), both=(2,))
def group_norm() -> ModelProto:
    b = Builder(opset=21)
    x = b.node("GroupNormalization", b.stem(8), b.vector(8), b.vector(8), num_groups=4)
    return b.done(b.conv(b.relu(x), 8, 4))


@net(2, 6, approximate=(2, 6), both=(3, 6))
def group_norm_of_two() -> ModelProto:
    b = Builder(opset=21)
    x = b.node("GroupNormalization", b.conv(b.stem(6), 6, 6), b.vector(6), b.vector(6), num_groups=2, epsilon=0.1)
    return b.done(b.conv(b.relu(x), 6, 4))


# ------------------------------------------------------------------------------------ normalised rows


@net(6, approximate=(6, 8))
def layer_norm() -> ModelProto:
    b = Builder()
    x = b.node("Gather", b.weight(10, 8), b.input("N", 7, dtype=np.int64))
    x = b.node("LayerNormalization", x, b.vector(8), b.vector(8), epsilon=0.1)
    return b.done(b.linear_rows(b.relu(b.linear_rows(x, 8, 6)), 6, 4))


@net(approximate=(6, 8))
def layer_norm_of_two_axes() -> ModelProto:
    b = Builder()
    x = b.linear_rows(b.node("MatMul", b.weight(6, 5), b.input("N", 5, 3)), 3, 8)
    x = b.node("LayerNormalization", x, b.vector(6, 8), b.vector(8), axis=1)
    x = b.node("Transpose", b.linear_rows(x, 8, 3), perm=[0, 2, 1])
    return b.done(b.linear_rows(x, 6, 4))


@net(6, approximate=(6, 8))
def layer_norm_written_out() -> ModelProto:
    b = Builder()
    x = b.node("Tanh", b.linear_rows(b.input("N", 7, 5), 5, 8))
    x = b.node("Sub", x, b.node("ReduceMean", x, axes=[-1]))
    variance = b.node("ReduceMean", b.node("Pow", x, b.store(2)), axes=[-1])
    x = b.node("Div", x, b.node("Sqrt", b.node("Add", variance, b.store(0.1))))
    x = b.node("Add", b.node("Mul", x, b.vector(8)), b.vector(8))
    return b.done(b.linear_rows(b.relu(b.linear_rows(x, 8, 6)), 6, 4))


@net(6, approximate=(6, 8))
def rms_norm() -> ModelProto:
    b = Builder(opset=23)
    x = b.linear_rows(b.input("N", 7, 5), 5, 8)
    x = b.node("RMSNormalization", x, b.vector(8), epsilon=0.1)
    return b.done(b.linear_rows(b.relu(b.linear_rows(x, 8, 6)), 6, 4))


@net(6, approximate=(6, 8))
def local_response_norm() -> ModelProto:
    b = Builder()
    x = b.node("LRN", b.stem(8), size=5, alpha=1.0, beta=0.5, bias=2.0)
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4))


@net(6, 8, approximate=(6, 8))
def mean_variance_norm() -> ModelProto:
    b = Builder()
    x = b.node("MeanVarianceNormalization", b.stem(8), axes=[2, 3])
    return b.done(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4))


@net(6, approximate=(6, 8))
def mean_variance_norm_of_channels() -> ModelProto:
    b = Builder()
    x = b.node("MeanVarianceNormalization", b.conv(b.stem(6), 6, 8), axes=[1, 2, 3])
    return b.done(b.conv(x, 8, 4))


# ------------------------------------------------------------------------------------------ attention

HEADS, SIZE, ROWS, WIDTH = 4, 3, 5, 8


def rows_of(b: Builder) -> str:
    """Rows of numbers that can be cut: (N, ROWS, WIDTH)."""
    return b.relu(b.linear_rows(b.input("N", ROWS, 6), 6, WIDTH))


def to_heads(b: Builder, x: str, *, transposed: bool = False) -> str:
    """(N, ROWS, HEADS * SIZE) to (N, HEADS, ROWS, SIZE), or with the last two axes exchanged."""
    x = b.node("Reshape", x, b.integers(0, ROWS, HEADS, SIZE))
    return b.node("Transpose", x, perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3])


def from_heads(b: Builder, x: str) -> str:
    """Go back to rows, and on to 4 numbers each."""
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3]), b.integers(0, ROWS, HEADS * SIZE))
    return b.linear_rows(x, HEADS * SIZE, 4)


def attend(b: Builder, q: str, k: str, v: str, scale: str = "") -> str:
    """Let rows look at rows; k comes transposed."""
    scores = b.node("Mul", b.node("MatMul", q, k), scale or b.store(0.6))
    return b.node("MatMul", b.node("Softmax", scores, axis=-1), v)


def queries_keys_values(b: Builder, x: str) -> list[str]:
    return [b.linear_rows(x, WIDTH, HEADS * SIZE) for _ in range(3)]


@net(4, 8, slots=(3, 3, 8))
def attention() -> ModelProto:
    b = Builder()
    q, k, v = queries_keys_values(b, rows_of(b))
    return b.done(from_heads(b, attend(b, to_heads(b, q), to_heads(b, k, transposed=True), to_heads(b, v))))


@net(8, 12, 12)
def attention_of_one_head() -> ModelProto:
    b = Builder()
    q, k, v = queries_keys_values(b, rows_of(b))
    return b.done(b.linear_rows(attend(b, q, b.node("Transpose", k, perm=[0, 2, 1]), v), 12, 4))


@net(8, 12)
def attention_of_what_is_not_zero() -> ModelProto:
    b = Builder()
    q, k, v = queries_keys_values(b, rows_of(b))
    k = b.node("Transpose", b.node("Sigmoid", k), perm=[0, 2, 1])
    return b.done(b.linear_rows(attend(b, b.node("Sigmoid", q), k, v), 12, 4))


@net(8)
def products_of_what_is_not_zero() -> ModelProto:
    b = Builder()
    x = rows_of(b)
    q, k = (b.node("Sigmoid", b.linear_rows(x, WIDTH, 12)) for _ in range(2))
    return b.done(b.linear_rows(b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1])), ROWS, 4))


@net(8, 12, 12)
def attention_where_one_side_is_zero() -> ModelProto:
    b = Builder()
    q, k, v = queries_keys_values(b, rows_of(b))
    k = b.node("Transpose", b.node("Sigmoid", k), perm=[0, 2, 1])
    return b.done(b.linear_rows(attend(b, q, k, v), 12, 4))


@net(4, 8, slots=(3, 8))
def attention_of_heads_that_are_not_zero() -> ModelProto:
    b = Builder()
    q, k, v = queries_keys_values(b, rows_of(b))
    q, k = to_heads(b, b.node("Sigmoid", q)), to_heads(b, b.node("Sigmoid", k), transposed=True)
    return b.done(from_heads(b, attend(b, q, k, to_heads(b, v), b.store(3))))


@net(4, 8, slots=(3, 3, 8))
def attention_scaled_by_its_size() -> ModelProto:
    b = Builder()
    q, k, v = queries_keys_values(b, rows_of(b))
    q = to_heads(b, q)
    size = b.node("Slice", b.node("Shape", q), b.integers(-1), b.integers(TO_THE_END))
    scale = b.node("Div", b.store([1]), b.node("Sqrt", b.node("Cast", size, to=1)))
    return b.done(from_heads(b, attend(b, q, to_heads(b, k, transposed=True), to_heads(b, v), scale)))


@net(4, 8, slots=(3, 3, 8))
def packed_attention_in_chunks() -> ModelProto:
    b = Builder()
    packed = b.linear_rows(rows_of(b), WIDTH, 3 * HEADS * SIZE)
    q, k, v = b.nodes_of("Split", packed, outputs=3, axis=2)
    return b.done(from_heads(b, attend(b, to_heads(b, q), to_heads(b, k, transposed=True), to_heads(b, v))))


def packed_attention(shape: tuple[int, int, int], perm: tuple[int, ...]) -> ModelProto:
    """Attention whose queries, keys and values come from one product, and are taken apart by a Reshape."""
    b = Builder()
    packed = b.linear_rows(rows_of(b), WIDTH, 3 * HEADS * SIZE)
    packed = b.node("Transpose", b.node("Reshape", packed, b.integers(0, ROWS, *shape)), perm=perm)
    q, k, v = (b.node("Gather", packed, b.store(part, np.int64), axis=0) for part in range(3))
    return b.done(from_heads(b, attend(b, q, b.node("Transpose", k, perm=[0, 1, 3, 2]), v)))


@net(4, 8, slots=(3, 8))
def packed_attention_by_part_and_head() -> ModelProto:
    return packed_attention((3, HEADS, SIZE), (2, 0, 3, 1, 4))


@net(4, 8, slots=(3, 8))
def packed_attention_by_head_and_part() -> ModelProto:
    return packed_attention((HEADS, 3, SIZE), (3, 0, 2, 1, 4))


@net(4, 8, slots=(3, 3, 8))
def torch_attention() -> ModelProto:
    b = Builder()
    batch = 2
    x = b.relu(b.linear_rows(b.input(ROWS, batch, 6), 6, WIDTH))
    q, k, v = (
        b.node("Transpose", b.node("Reshape", y, b.integers(ROWS, batch * HEADS, SIZE)), perm=[1, 0, 2])
        for y in queries_keys_values(b, x)
    )
    x = attend(b, q, b.node("Transpose", k, perm=[0, 2, 1]), v)
    x = b.node("Reshape", b.node("Transpose", x, perm=[1, 0, 2]), b.integers(ROWS * batch, HEADS * SIZE))
    return b.done(b.node("Reshape", b.linear(x, HEADS * SIZE, 4), b.integers(ROWS, batch, 4)))


@net(2, 8, slots=(3, 3, 8))
def attention_of_shared_keys() -> ModelProto:
    b = Builder()
    x = rows_of(b)
    q = to_heads(b, b.linear_rows(x, WIDTH, HEADS * SIZE))
    shared = []
    for _ in range(2):
        y = b.node("Reshape", b.linear_rows(x, WIDTH, 2 * SIZE), b.integers(0, ROWS, 2, SIZE))
        y = b.node("Unsqueeze", b.node("Transpose", y, perm=[0, 2, 1, 3]), b.integers(2))
        y = b.node("Expand", y, b.integers(1, 2, 2, ROWS, SIZE))
        shared.append(b.node("Reshape", y, b.integers(-1, HEADS, ROWS, SIZE)))
    return b.done(from_heads(b, attend(b, q, b.node("Transpose", shared[0], perm=[0, 1, 3, 2]), shared[1])))


@net(4, 8, slots=(3, 8))
def linear_attention() -> ModelProto:
    b = Builder()
    q, k, v = queries_keys_values(b, rows_of(b))
    q, k = (b.node("Add", b.node("Elu", y), b.store(1)) for y in (q, k))
    k = to_heads(b, k, transposed=True)
    total = b.node("ReduceSum", k, b.integers(3), keepdims=0)
    share = b.node("MatMul", to_heads(b, q), b.node("Unsqueeze", total, b.integers(3)))
    x = b.node("MatMul", to_heads(b, q), b.node("MatMul", k, to_heads(b, v)))
    return b.done(from_heads(b, b.node("Div", x, share)))


@net(4, 8, slots=(3, 8), both=(3, 3, 8))
def attention_of_normalised_heads() -> ModelProto:
    b = Builder()
    q, k, v = (to_heads(b, y) for y in queries_keys_values(b, rows_of(b)))
    q, k = (b.node("LayerNormalization", y, b.vector(SIZE), b.vector(SIZE), epsilon=0.1) for y in (q, k))
    return b.done(from_heads(b, attend(b, q, b.node("Transpose", k, perm=[0, 1, 3, 2]), v)))


@net(4, 8, both=(3, 8))
def attention_of_heads_normalised_by_one_scale() -> ModelProto:
    b = Builder()
    q, k, v = (to_heads(b, y) for y in queries_keys_values(b, rows_of(b)))
    q, k = (b.node("LayerNormalization", y, b.positive(1), b.positive(1), epsilon=0.1) for y in (q, k))
    return b.done(from_heads(b, attend(b, q, b.node("Transpose", k, perm=[0, 1, 3, 2]), v)))


@net(4, 8)
def windowed_attention() -> ModelProto:
    b = Builder()
    side, window, channels = 4, 2, HEADS * SIZE
    x = b.relu(b.linear_rows(b.input("N", side, side, 6), 6, WIDTH))
    for axis in (1, 2):  # rolled by one
        front = b.node("Slice", x, b.integers(1), b.integers(TO_THE_END), b.integers(axis))
        x = b.node("Concat", front, b.node("Slice", x, b.integers(0), b.integers(1), b.integers(axis)), axis=axis)
    x = b.node("Reshape", x, b.integers(0, side // window, window, side // window, window, WIDTH))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), b.integers(-1, window**2, WIDTH))
    packed = b.linear_rows(x, WIDTH, 3 * channels)
    packed = b.node("Reshape", packed, b.integers(-1, window**2, 3, HEADS, SIZE))
    parts = b.nodes_of("Split", b.node("Transpose", packed, perm=[2, 0, 3, 1, 4]), outputs=3, axis=0)
    q, k, v = (b.node("Squeeze", part, b.integers(0)) for part in parts)
    scores = b.node("MatMul", b.node("Mul", q, b.store(0.6)), b.node("Transpose", k, perm=[0, 1, 3, 2]))
    places = np.stack(np.meshgrid(*[range(window)] * 2, indexing="ij")).reshape(2, -1)
    apart = places[:, :, None] - places[:, None] + window - 1
    table = b.node(
        "Gather", b.weight((2 * window - 1) ** 2, HEADS, fan_in=1), b.integers(*(apart[0] * 3 + apart[1]).flat)
    )
    bias = b.node("Reshape", table, b.integers(window**2, window**2, -1))
    bias = b.node("Unsqueeze", b.node("Transpose", bias, perm=[2, 0, 1]), b.integers(0))
    x = b.node("MatMul", b.node("Softmax", b.node("Add", scores, bias), axis=-1), v)
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3]), b.integers(-1, window**2, channels))
    x = b.node("Reshape", b.linear_rows(x, channels, 4), b.integers(-1, 2, 2, window, window, 4))
    return b.done(b.node("Reshape", b.node("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), b.integers(-1, side, side, 4)))


@net(3, 3, 4, 8)
def attention_by_einsum() -> ModelProto:
    b = Builder()
    x = rows_of(b)
    q, k, v = (b.node("Einsum", x, b.weight(WIDTH, HEADS, SIZE, fan_in=WIDTH), equation="nld,dhs->nlhs") for _ in "qkv")
    shares = b.node("Softmax", b.node("Einsum", q, k, equation="nqhs, nkhs -> nhqk"), axis=-1)
    x = b.node("Einsum", shares, v, equation="nhqk,nkhs->nqhs")
    return b.done(b.node("Einsum", x, b.weight(HEADS, SIZE, 4, fan_in=12), equation="nlhs,hsd->nld"))


@net(3, 4, 8)
def products_by_einsum_of_what_is_not_zero() -> ModelProto:
    b = Builder()
    x = rows_of(b)
    q, k, v = (b.node("Einsum", x, b.weight(WIDTH, HEADS, SIZE, fan_in=WIDTH), equation="nld,dhs->nlhs") for _ in "qkv")
    q, k = b.node("Sigmoid", q), b.node("Cos", k)
    shares = b.node("Mul", b.node("Einsum", q, k, equation="nqhs,nkhs->nhqk"), b.store(0.3))
    x = b.node("Einsum", shares, v, equation="nhqk,nkhs->nqhs")
    return b.done(b.node("Einsum", x, b.weight(HEADS, SIZE, 4, fan_in=12), equation="nlhs,hsd->nld"))


@net(8)
def einsum_of_one_operand() -> ModelProto:
    b = Builder()
    x = b.node("Einsum", rows_of(b), equation="nld->ndl")
    return b.done(b.node("MatMul", b.weight(4, WIDTH), x), b.node("Einsum", x, equation="ndl->nl"))


@net(6, 6, 8)
def einsum_that_leaves_axes_unnamed() -> ModelProto:
    b = Builder()
    x = b.node("Einsum", rows_of(b), b.weight(WIDTH, 6, fan_in=WIDTH), equation="...d,de->...e")
    return b.done(b.linear_rows(b.relu(b.linear_rows(x, 6, 6)), 6, 4))


@net(6, 6, 8)
def einsum_of_three() -> ModelProto:
    b = Builder()
    factors = b.weight(WIDTH, 5, fan_in=WIDTH), b.weight(5, 6, fan_in=5)
    x = b.node("Einsum", rows_of(b), *factors, equation="nld,de,ef->nlf")
    return b.done(b.linear_rows(b.relu(b.linear_rows(x, 6, 6)), 6, 4))


@net(4, 6, approximate=(4, 6, 8), both=(3, 3, 6, 8))
def vision_transformer() -> ModelProto:
    b = Builder()
    x = b.conv(b.input("N", 3, 4, 4), 3, WIDTH, 2, 2, strides=[2, 2])
    x = b.node("Transpose", b.node("Reshape", x, b.integers(0, WIDTH, -1)), perm=[0, 2, 1])
    first = b.node(
        "Concat", b.node("Slice", b.node("Shape", x), b.integers(0), b.integers(1)), b.integers(1, -1), axis=0
    )
    ones = b.node("ConstantOfShape", b.integers(3), value=numpy_helper.from_array(np.ones(1, np.int64)))
    first = b.node("Where", b.node("Equal", first, b.node("Mul", ones, b.integers(-1))), ones, first)
    x = b.node("Concat", b.node("Expand", b.vector(1, 1, WIDTH), first), x, axis=1)
    x = b.node("Add", x, b.vector(1, ROWS, WIDTH))
    y = b.node("LayerNormalization", x, b.vector(WIDTH), b.vector(WIDTH))
    q, k, v = queries_keys_values(b, y)
    y = attend(b, to_heads(b, q), to_heads(b, k, transposed=True), to_heads(b, v))
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1, 3]), b.integers(0, ROWS, HEADS * SIZE))
    x = b.node("Add", x, b.linear_rows(y, HEADS * SIZE, WIDTH))
    y = b.node("LayerNormalization", x, b.vector(WIDTH), b.vector(WIDTH))
    y = b.linear_rows(b.node("Tanh", b.linear_rows(y, WIDTH, 6)), 6, WIDTH)
    x = b.node("LayerNormalization", b.node("Add", x, y), b.vector(WIDTH), b.vector(WIDTH))
    return b.done(b.linear(b.node("Gather", x, b.store(0, np.int64), axis=1), WIDTH, 4))


# ------------------------------------------------------------------------------- splitting and merging


@net(4, 4)
def pixels_shuffled_by_reshape() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.conv(b.stem(4, size=3), 4, 16), b.integers(0, 4, 2, 2, 3, 3))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 1, 4, 2, 5, 3]), b.integers(0, 4, 6, 6))
    return b.done(b.conv(x, 4, 4))


@net(6)
def pixels_packed_by_reshape() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.stem(6), b.integers(0, 6, 3, 2, 3, 2))
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 3, 5, 1, 2, 4]), b.integers(0, 24, 3, 3))
    return b.done(b.conv(x, 24, 4))


@net(6, 8)
def generator() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.relu(b.linear(b.input("N", 5), 5, 72)), b.integers(-1, 8, 3, 3))
    x = b.relu(b.node("ConvTranspose", x, b.weight(8, 6, 2, 2, fan_in=8), strides=[2, 2]))
    return b.done(b.conv(x, 6, 4))


@net(6, 8)
def generator_of_tensorflow() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.relu(b.linear(b.input("N", 5), 5, 72)), b.integers(-1, 3, 3, 8))
    x = b.node("Transpose", x, perm=[0, 3, 1, 2])
    x = b.relu(b.node("ConvTranspose", x, b.weight(8, 6, 2, 2, fan_in=8), strides=[2, 2]))
    return b.done(b.node("Transpose", b.conv(x, 6, 4), perm=[0, 2, 3, 1]))


@net()
def factors_that_do_not_fit() -> ModelProto:
    b = Builder()
    x = b.node("Reshape", b.relu(b.linear(b.input("N", 5), 5, 24)), b.integers(-1, 4, 6))
    x = b.node("Reshape", b.node("Tanh", x), b.integers(-1, 6, 4))
    return b.done(b.linear_rows(x, 4, 4))


@net(6, 8)
def quantised_weights() -> ModelProto:
    b = Builder()
    numbers, zeros = b.store(b.rng.integers(-100, 100, (6, 8, 1, 1)), np.int8), b.store(np.arange(6) - 3, np.int8)
    weight = b.node("DequantizeLinear", numbers, b.store(np.full(6, 0.01)), zeros, axis=0)
    x = b.relu(b.node("Conv", b.stem(8), weight))
    numbers = b.store(b.rng.integers(50, 200, (4, 6, 1, 1)), np.uint8)
    weight = b.node("DequantizeLinear", numbers, b.store(0.01), b.store(128, np.uint8))
    return b.done(b.node("Conv", x, weight))


# ------------------------------------------------------------------------- where nothing may be taken for zero


@net()
def sum_of_columns_with_one_bias() -> ModelProto:
    b = Builder()
    x = b.node("Gemm", b.input("N", 6), b.weight(6, 8), b.store([0.7]))
    return b.done(b.node("ReduceSum", x, b.integers(1)), rank=2)


@net()
def sum_of_channels_folded_into_the_batch() -> ModelProto:
    b = Builder()
    x = b.conv(b.node("Reshape", b.stem(8, batch=1), b.integers(8, 1, 6, 6)), 1, 1, 3, 3)
    return b.done(b.node("ReduceSum", b.node("Reshape", x, b.integers(8, 16)), b.integers(0)), rank=2)


def correlation(b: Builder, act: str) -> ModelProto:
    """One image's features as the kernel that runs over another's."""
    x = b.node(act, b.conv(b.input(1, 3, 9, 9), 3, 8, 3, 3))
    z = b.node("Sigmoid", b.conv(b.input(1, 3, 5, 5), 3, 8, 3, 3))
    return b.done(b.node("Conv", x, z))


@net(8)
def correlation_of_features() -> ModelProto:
    return correlation(Builder(), "Relu")


@net()
def correlation_of_features_that_are_not_zero() -> ModelProto:
    return correlation(Builder(), "Sigmoid")


@net()
def weights_that_are_not_zero_of_zero() -> ModelProto:
    b = Builder()
    x = b.node("Sigmoid", b.linear_rows(b.input("N", 5, 6), 6, 8))
    return b.done(b.node("MatMul", x, b.node("Sigmoid", b.weight(8, 4))))


@net()
def clip_with_bounds_of_the_input() -> ModelProto:
    b = Builder()
    low = b.node("ReduceMax", b.node("Sigmoid", b.input(1)), keepdims=0)
    return b.done(b.node("ReduceSum", b.node("Clip", b.stem(8), low), b.integers(1)))


@net()
def indices_that_are_zero() -> ModelProto:
    b = Builder()
    x = b.node("ReduceSum", b.stem(8), b.integers(0, 2, 3), keepdims=0)
    picked = b.node("Cast", b.node("Clip", x, b.store(0.0), b.store(1.0)), to=TensorProto.INT64)
    return b.done(b.node("ReduceSum", b.node("Gather", b.weight(5, 4), picked), b.integers(0)), rank=2)


# ------------------------------------------------------------------------------------- sizes that tell more


@net()
def size_that_is_an_output() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    size = b.node("Gather", b.node("Shape", x), b.integers(1))
    return b.done(b.conv(x, 8, 4), b.node("Mul", size, b.integers(2)))


@net(8)
def size_of_a_shared_bias() -> ModelProto:
    b = Builder()
    bias = b.vector(8)

    def shift(x: str) -> str:
        size = b.node("Gather", b.node("Shape", bias), b.integers(0))
        target = b.node("Concat", b.integers(1), size, b.integers(1, 1), axis=0)
        return b.relu(b.node("Add", x, b.node("Reshape", bias, target)))

    return b.done(b.conv(shift(b.conv(shift(b.stem(8)), 8, 8)), 8, 4))


@net(8)
def size_of_an_alias() -> ModelProto:
    b = Builder()
    weight = b.weight(8, 6)
    size = b.node("Slice", b.node("Shape", b.node("Identity", weight)), b.integers(0), b.integers(1))
    x = b.node("Gemm", b.input("N", 6), weight, transB=1)
    x = b.node("Add", x, b.node("Expand", b.store([0.3]), size))
    return b.done(b.linear(b.relu(x), 8, 4), rank=2)


@net(8)
def view_that_copies_the_channels() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    batch = b.node("Slice", b.node("Shape", x), b.integers(0), b.integers(1))
    x = b.node("Reshape", x, b.node("Concat", batch, b.integers(0, 36), axis=0))
    x = b.node("Transpose", x, perm=[0, 2, 1])
    x = b.node("Reshape", x, b.node("Concat", batch, b.integers(0, 8), axis=0))
    return b.done(b.linear_rows(x, 8, 4), rank=3)


@net()
def einsum_that_stretches_what_it_sums() -> ModelProto:
    b = Builder()
    x = b.relu(b.linear_rows(b.input("N", 5, 6), 6, 8))
    return b.done(b.node("Einsum", x, b.weight(8, 1, 4), equation="nlc,clk->nk"), rank=2)
