"""Rules for rarer operators: layouts, positions, quantised numbers, attention, onnxruntime's own operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import oracle
import pytest
from nets import CLASSES, TO_THE_END, Builder
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import channels, model, runtime, surgery, verify
from onnxprune.plan import Plan, kept_atoms
from onnxprune.zeroing import zeroed

Build = Callable[[], ModelProto]
CASES: dict[str, tuple[Build, tuple[int, ...]]] = {}
HOLDS: dict[str, tuple[Build, tuple[int, ...]]] = {}
MICROSOFT = "com.microsoft"


def case(*widths: int) -> Callable[[Build], Build]:
    """Enter a net that can be cut, with the widths of its groups."""

    def enter(build: Build) -> Build:
        CASES[build.__name__] = build, tuple(sorted(widths))
        return build

    return enter


def holds(*widths: int) -> Callable[[Build], Build]:
    """Enter a net in which something must stay, with the widths of what can go all the same."""

    def enter(build: Build) -> Build:
        HOLDS[build.__name__] = build, tuple(sorted(widths))
        return build

    return enter


def operators() -> set[str]:
    """Name the operators that these nets try, as the table of rules does."""
    nodes = [node for build, _ in (CASES | HOLDS).values() for node in build().graph.node]
    return {f"{node.domain}.{node.op_type}".lstrip(".") for node in nodes}


def find(proto: ModelProto, **asked: bool) -> channels.Channels:
    return channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {}), **asked)


def widths(proto: ModelProto) -> tuple[int, ...]:
    return tuple(sorted(oracle.widths(find(proto))))


# ------------------------------------------------------------------------------------------------- layout


@case(8)
def tile_of_pixels() -> ModelProto:
    b = Builder()
    return b.done(b.conv(b.node("Tile", b.stem(8), b.integers(1, 1, 2, 3)), 8, 4))


@case(6)
def tile_of_channels() -> ModelProto:
    b = Builder()
    return b.done(b.conv(b.relu(b.node("Tile", b.stem(6), b.integers(1, 3, 1, 1))), 18, 4))


@case(8)
def tile_of_one_mask() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    mask = b.node("Sigmoid", b.conv(b.input("N", 1, 6, 6), 1, 1))
    return b.done(b.conv(b.node("Mul", x, b.node("Tile", mask, b.integers(1, 8, 1, 1))), 8, 4))


def depth_to_space(mode: str) -> ModelProto:
    b = Builder()
    x = b.node("DepthToSpace", b.conv(b.stem(4), 4, 20, 3, 3), blocksize=2, mode=mode)
    return b.done(b.conv(b.relu(x), 5, 4, 3, 3))


@case(4, 5)
def depth_to_space_dcr() -> ModelProto:
    return depth_to_space("DCR")


@case(4, 5)
def depth_to_space_crd() -> ModelProto:
    return depth_to_space("CRD")


@case(5, 6)
def space_to_depth() -> ModelProto:
    b = Builder()
    x = b.relu(b.conv(b.node("SpaceToDepth", b.stem(5), blocksize=3), 45, 6))
    return b.done(b.conv(x, 6, 4))


@case(8)
def slice_backwards() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    back = b.node("Slice", x, b.integers(-1), b.integers(-TO_THE_END), b.integers(1), b.integers(-1))
    return b.done(b.conv(b.node("Concat", back, x, axis=1), 16, 4))


@case(3, 5)
def slice_backwards_of_a_part() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    part = b.node("Slice", x, b.integers(5), b.integers(2), b.integers(1), b.integers(-1))
    return b.done(b.conv(part, 3, 4), b.conv(x, 8, 4))


@case(3, 5)
def slice_backwards_to_the_first() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    part = b.node("Slice", x, b.integers(-4), b.integers(-100), b.integers(-3), b.integers(-1))
    return b.done(b.conv(part, 5, 4), b.conv(x, 8, 4))


@holds()
def slice_by_twos() -> ModelProto:
    b = Builder()
    x = b.node("Slice", b.stem(8), b.integers(0), b.integers(8), b.integers(1), b.integers(2))
    return b.done(b.conv(x, 4, 4))


def of_the_data(b: Builder, image: str, *numbers: int) -> str:
    """Make whole numbers that follow from data, though they are always the same."""
    one = b.node("ReduceMin", b.node("Cast", b.node("Equal", image, image), to=TensorProto.INT64), keepdims=0)
    return b.node("Mul", b.integers(*numbers), one)


@holds()
def split_in_sizes_of_the_data() -> ModelProto:
    b = Builder(opset=18)
    image = b.input(1, 3, 6, 6)
    sizes = of_the_data(b, image, 4, 4)
    left, right = b.nodes_of("Split", b.relu(b.conv(image, 3, 8)), sizes, outputs=2, axis=1)
    return b.done(b.conv(b.node("Add", left, right), 4, 4))


@holds()
def resize_to_sizes_of_the_data() -> ModelProto:
    b = Builder(opset=18)
    image = b.input(1, 3, 6, 6)
    sizes = of_the_data(b, image, 1, 8, 12, 12)
    return b.done(b.conv(b.node("Resize", b.relu(b.conv(image, 3, 8)), "", "", sizes), 8, 4))


def norm_of_padded(value: float) -> ModelProto:
    """Sum over channels that were padded at their borders."""
    b = Builder(opset=13)
    pads = b.integers(0, 0, 1, 1, 0, 0, 1, 1)
    x = b.node("Pad", b.stem(8), pads, b.store(value))
    return b.done(b.conv(b.node("ReduceSum", x, b.integers(1), keepdims=1), 1, 4))


@case(8)
def sum_over_zero_pads() -> ModelProto:
    return norm_of_padded(0.0)


@holds()
def sum_over_other_pads() -> ModelProto:
    return norm_of_padded(1.0)


# ---------------------------------------------------------------------------------------------- positions


@case(8)
def top_k() -> ModelProto:
    b = Builder()
    values, indices = b.nodes_of("TopK", b.stem(8), b.integers(3), outputs=2, axis=-1)
    return b.done(b.conv(b.node("Add", values, b.node("Cast", indices, to=1)), 8, 4))


@holds()
def top_k_of_channels() -> ModelProto:
    b = Builder()
    values, _ = b.nodes_of("TopK", b.stem(8), b.integers(3), outputs=2, axis=1)
    return b.done(b.conv(values, 3, 4))


@case(8)
def sums_along_pixels() -> ModelProto:
    b = Builder()
    return b.done(b.conv(b.node("CumSum", b.stem(8), b.store(3, np.int64), exclusive=1), 8, 4))


@case(8)
def sums_along_channels() -> ModelProto:
    b = Builder()
    return b.done(b.conv(b.node("CumSum", b.stem(8), b.store(1, np.int64), reverse=1), 8, 4))


@holds()
def sums_along_channels_that_are_not_zero() -> ModelProto:
    b = Builder()
    x = b.node("CumSum", b.node("Sigmoid", b.stem(8)), b.store(1, np.int64))
    return b.done(b.conv(x, 8, 4))


@case(8)
def reversed_sequences() -> ModelProto:
    b = Builder()
    x = b.node("Transpose", b.stem(8, batch=2), perm=[2, 0, 3, 1])
    x = b.node("ReverseSequence", x, b.integers(3, 5))
    return b.done(b.conv(b.node("Transpose", x, perm=[1, 3, 0, 2]), 8, 4))


@case(8)
def triangles() -> ModelProto:
    b = Builder()
    return b.done(b.conv(b.node("Trilu", b.stem(8), upper=0), 8, 4))


@holds()
def triangle_of_channels() -> ModelProto:
    b = Builder()
    x = b.node("Trilu", b.node("Transpose", b.stem(8), perm=[0, 2, 1, 3]))
    return b.done(b.conv(b.node("Transpose", x, perm=[0, 2, 1, 3]), 8, 4))


@case(8)
def scattered_elements() -> ModelProto:
    b = Builder()
    x = b.stem(8, batch=1)
    rows = np.stack([b.rng.permutation(6)[:2] for _ in range(8)])[None, :, :, None]
    indices = b.store(np.tile(rows, (1, 1, 1, 6)), np.int64)
    updates = b.node("Slice", b.relu(b.node("Neg", x)), b.integers(0), b.integers(2), b.integers(2))
    return b.done(b.conv(b.node("ScatterElements", x, indices, updates, axis=2), 8, 4))


@case(8)
def scattered_elements_in_an_old_opset() -> ModelProto:
    b = Builder(opset=10)
    x = b.stem(8, batch=1)
    columns = np.stack([b.rng.permutation(6)[:3] for _ in range(8)])[None, :, None]
    indices = b.store(np.tile(columns, (1, 1, 6, 1)), np.int64)
    updates = b.node("Slice", b.relu(b.node("Neg", x)), b.integers(0), b.integers(3), b.integers(3))
    return b.done(b.conv(b.node("Scatter", x, indices, updates, axis=3), 8, 4))


@holds()
def scattered_elements_of_some_channels() -> ModelProto:
    b = Builder()
    indices = b.store(np.zeros((1, 3, 1, 6)), np.int64)
    x = b.node("ScatterElements", b.stem(8, batch=1), indices, b.positive(1, 3, 1, 6), axis=2)
    return b.done(b.conv(x, 8, 4))


@case(8)
def scattered_rows() -> ModelProto:
    b = Builder()
    x = b.node("Transpose", b.stem(8, batch=1), perm=[0, 2, 3, 1])
    updates = b.node("Gather", b.node("Neg", x), b.store([[0, 2]], np.int64), axis=1)
    x = b.node("ScatterND", x, b.store([[[0, 4], [0, 1]]], np.int64), b.node("Squeeze", updates, b.integers(1)))
    return b.done(b.conv(b.node("Transpose", x, perm=[0, 3, 1, 2]), 8, 4))


@holds()
def scattered_channels() -> ModelProto:
    b = Builder()
    x = b.node("ScatterND", b.stem(8, batch=1), b.store([[0, 3], [0, 4]], np.int64), b.positive(2, 6, 6))
    return b.done(b.conv(x, 8, 4))


@case(8)
def gathered_elements() -> ModelProto:
    b = Builder()
    x = b.stem(8, batch=1)
    indices = b.store(b.rng.integers(0, 6, (1, 8, 6, 4)), np.int64)
    return b.done(b.conv(b.node("GatherElements", x, indices, axis=-1), 8, 4))


@case(8)
def gathered_elements_at_the_largest() -> ModelProto:
    b = Builder()
    x = b.stem(8, batch=1)
    return b.done(b.conv(b.node("GatherElements", x, b.node("ArgMax", x, axis=2), axis=2), 8, 4))


@holds()
def gathered_elements_of_channels() -> ModelProto:
    b = Builder()
    indices = b.store(b.rng.integers(0, 8, (1, 5, 6, 6)), np.int64)
    return b.done(b.conv(b.node("GatherElements", b.stem(8, batch=1), indices, axis=1), 5, 4))


@case(8)
def gathered_rows() -> ModelProto:
    b = Builder()
    x = b.node("Transpose", b.stem(8, batch=2), perm=[0, 2, 3, 1])
    x = b.node("GatherND", x, b.store([[[1, 4], [0, 0]], [[5, 5], [2, 3]]], np.int64), batch_dims=1)
    return b.done(b.node("MatMul", x, b.weight(8, 4)), rank=3)


@case(3, 5)
def compressed() -> ModelProto:
    b = Builder()
    x = b.stem(8)
    chosen = b.store([1, 0, 1, 1, 0, 0, 1, 1], bool)
    return b.done(b.conv(b.node("Compress", x, chosen, axis=1), 5, 4), b.conv(x, 8, 4))


@case(8)
def compressed_pixels() -> ModelProto:
    b = Builder()
    return b.done(b.conv(b.node("Compress", b.stem(8), b.store([1, 0, 1, 1], bool), axis=2), 8, 4))


@holds()
def compressed_flat() -> ModelProto:
    b = Builder()
    x = b.node("Compress", b.stem(8, batch=1), b.store([1, 0, 1, 1], bool))
    return b.done(b.node("MatMul", b.node("Unsqueeze", x, b.integers(0)), b.weight(3, 4)), rank=2)


@case(8)
def sampled_on_a_grid() -> ModelProto:
    b = Builder()
    grid = b.store(b.rng.uniform(-1.2, 1.2, (1, 4, 5, 2)))
    return b.done(b.conv(b.node("GridSample", b.stem(8, batch=1), grid), 8, 4))


@case(8)
def regions() -> ModelProto:
    b = Builder()
    boxes = b.store([[0, 0, 4, 4], [1, 1, 5, 4]])
    x = b.node("RoiAlign", b.stem(8, batch=1), boxes, b.integers(0, 0), output_height=2, output_width=2)
    return b.done(b.conv(x, 8, 4))


@case(8)
def largest_of_regions() -> ModelProto:
    b = Builder()
    boxes = b.store([[0, 0, 0, 4, 4], [0, 1, 1, 5, 4]])
    return b.done(b.conv(b.node("MaxRoiPool", b.stem(8, batch=1), boxes, pooled_shape=[2, 2]), 8, 4))


# ---------------------------------------------------------------------------------------------- quantised


def scale(b: Builder) -> str:
    """Store a power of two, so that sums of products are the same in every order."""
    return b.store(1 / 64)


def scales(b: Builder, *shape: int) -> str:
    return b.store(2.0 ** -b.rng.integers(6, 9, shape))


def zero_point(b: Builder, value: int = 128, dtype: Any = np.uint8) -> str:
    return b.store(value, dtype)


def whole(b: Builder, *shape: int, dtype: Any = np.int8) -> str:
    """Store random whole numbers; signed weights of 7 bits, with which no kernel of any processor saturates."""
    low, high = {np.int8: (-64, 64), np.uint8: (20, 230), np.int32: (-9000, 9000)}[dtype]
    return b.store(b.rng.integers(low, high, shape), dtype)


def there_and_back(b: Builder, x: str) -> str:
    x = b.node("QuantizeLinear", x, scale(b), zero_point(b, 100))
    return b.node("DequantizeLinear", x, scale(b), zero_point(b, 100))


@case(6, 8)
def quantised_and_back() -> ModelProto:
    b = Builder()
    points = b.store(b.rng.integers(-20, 20, 6), np.int8)
    weight = b.node("DequantizeLinear", whole(b, 6, 8, 3, 3), scales(b, 6), points, axis=0)
    bias = b.node("DequantizeLinear", whole(b, 6, dtype=np.int32), scales(b, 6), axis=0)
    x = there_and_back(b, b.relu(b.node("Conv", there_and_back(b, b.stem(8)), weight, bias)))
    weight = b.node("DequantizeLinear", whole(b, 4, 6, 1, 1, dtype=np.uint8), scale(b), zero_point(b))
    return b.done(b.node("Conv", x, weight))


@case(8)
def weights_quantised_on_the_way() -> ModelProto:
    b = Builder()
    weight = b.node("QuantizeLinear", b.weight(4, 8, 1, 1), scales(b, 8), b.store(np.arange(8), np.int8), axis=1)
    weight = b.node("DequantizeLinear", weight, scales(b, 8), b.store(np.arange(8), np.int8), axis=1)
    return b.done(b.node("Conv", there_and_back(b, b.stem(8)), weight))


def in_blocks(dtype: Any) -> ModelProto:
    b = Builder(opset=21)
    x = b.node("Flatten", b.node("GlobalMaxPool", b.stem(12)))
    numbers, points = b.rng.integers(-7, 7, (12, 10)), b.rng.integers(-3, 3, (3, 10))
    stored = [b.store(values, dtype) for values in (numbers, points)]
    weight = b.node("DequantizeLinear", stored[0], scales(b, 3, 10), stored[1], axis=0, block_size=4)
    return b.done(b.linear(b.node("MatMul", x, weight), 10, CLASSES))


@case(3, 10)
def quantised_in_blocks() -> ModelProto:
    return in_blocks(np.int8)


@case(3, 10)
def quantised_in_blocks_of_four_bits() -> ModelProto:
    return in_blocks(ml_dtypes.int4)


@case(6, 8)
def quantised_convolutions() -> ModelProto:
    b = Builder()
    around = [scale(b), zero_point(b)]
    x = b.node("QuantizeLinear", b.stem(8), *around)
    points = b.store(b.rng.integers(-20, 20, 6), np.int8)
    weight = [whole(b, 6, 8, 3, 3), scales(b, 6), points]
    x = b.node("QLinearConv", x, *around, *weight, *around, whole(b, 6, dtype=np.int32))
    weight = [whole(b, 4, 6, 1, 1), scale(b), zero_point(b, 3, np.int8)]
    x = b.node("QLinearConv", x, *around, *weight, *around)
    return b.done(b.node("DequantizeLinear", x, *around))


@case(4, 4)
def quantised_groups() -> ModelProto:
    b = Builder()
    around = [scale(b), zero_point(b)]
    x = b.node("QuantizeLinear", b.stem(8), *around)
    weight = [whole(b, 12, 2, 3, 3, dtype=np.uint8), scales(b, 12), whole(b, 12, dtype=np.uint8)]
    x = b.node("QLinearConv", x, *around, *weight, *around, group=4)
    weight = [whole(b, 4, 12, 1, 1), scale(b), zero_point(b, 0, np.int8)]
    x = b.node("QLinearConv", x, *around, *weight, *around)
    x = b.node("DequantizeLinear", x, *around)
    return b.done(b.conv(x, 4, 4))


@case(6, 12)
def quantised_products() -> ModelProto:
    b = Builder()
    around = [scale(b), zero_point(b)]
    x = b.relu(b.node("MatMul", b.input("N", 5, 7), b.weight(7, 12)))
    x = b.node("QuantizeLinear", x, *around)
    weight = [whole(b, 12, 6), scales(b, 6), b.store(b.rng.integers(-20, 20, 6), np.int8)]
    x = b.node("QLinearMatMul", x, *around, *weight, *around)
    x = b.node("QLinearMatMul", x, *around, whole(b, 6, 3), scale(b), zero_point(b, 5, np.int8), *around)
    return b.done(b.node("DequantizeLinear", x, *around), rank=3)


def rescaled(b: Builder, x: str, factor: str) -> str:
    return b.node("Mul", b.node("Cast", x, to=TensorProto.FLOAT), b.node("Mul", factor, scale(b)))


@case(6, 8)
def quantised_as_it_runs() -> ModelProto:
    b = Builder()
    x, factor, zero = b.nodes_of("DynamicQuantizeLinear", b.stem(8), outputs=3)
    x = b.node("ConvInteger", x, whole(b, 6, 8, 3, 3), zero, zero_point(b, 7, np.int8))
    x = b.node("Flatten", b.node("GlobalMaxPool", b.relu(rescaled(b, x, factor))))
    x, factor, zero = b.nodes_of("DynamicQuantizeLinear", x, outputs=3)
    x = b.node("MatMulInteger", x, whole(b, 6, 4), zero, b.store(b.rng.integers(-9, 9, 4), np.int8))
    return b.done(rescaled(b, x, factor), rank=2)


@holds()
def a_range_of_what_is_not_zero() -> ModelProto:
    b = Builder()
    x, factor, zero = b.nodes_of("DynamicQuantizeLinear", b.node("Sigmoid", b.stem(8)), outputs=3)
    return b.done(rescaled(b, b.node("ConvInteger", x, whole(b, 4, 8, 1, 1), zero), factor))


# ---------------------------------------------------------------------------------------------- attention


def projected(b: Builder, x: str, *shape: int) -> str:
    """Project to (batch, heads, positions, head size)."""
    x = b.node("MatMul", x, b.weight(7, int(np.prod(shape)), fan_in=7))
    return b.node("Transpose", b.node("Reshape", x, b.integers(0, 0, *shape)), perm=[0, 2, 1, 3])


def merged(b: Builder, x: str, size: int) -> str:
    x = b.node("Reshape", b.node("Transpose", x, perm=[0, 2, 1, 3]), b.integers(0, 0, size))
    return b.node("MatMul", x, b.weight(size, 3, fan_in=size))


@case(4)
def attention() -> ModelProto:
    b = Builder(opset=23)
    x = b.input("N", 5, 7)
    q, k, v = (projected(b, x, 4, size) for size in (6, 6, 2))
    return b.done(merged(b, b.node("Attention", q, k, v, b.positive(1, 4, 5, 5)), 8), rank=3)


@case(6, 2)
def attention_inside_heads() -> ModelProto:
    """Heads are an axis of their own, held by the input."""
    b = Builder(opset=23)
    x = b.input("N", 3, 5, 7)
    q, k, v = (b.node("MatMul", x, b.weight(7, size, fan_in=7)) for size in (6, 6, 2))
    return b.done(b.node("MatMul", b.node("Attention", q, k, v, is_causal=1), b.weight(2, 3)))


@holds(2)
def attention_to_what_is_not_zero() -> ModelProto:
    b = Builder(opset=23)
    x = b.input("N", 3, 5, 7)
    q, k, v = (b.node("MatMul", x, b.weight(7, size, fan_in=7)) for size in (6, 6, 2))
    q, k = b.node("Sigmoid", q), b.node("Sigmoid", k)
    return b.done(b.node("MatMul", b.node("Attention", q, k, v), b.weight(2, 3)))


@case(4)
def attention_of_packed_heads() -> ModelProto:
    b = Builder(opset=23)
    x = b.input("N", 5, 7)
    q, k, v = (b.node("MatMul", x, b.weight(7, 4 * size, fan_in=7)) for size in (6, 6, 2))
    x = b.node("Attention", q, k, v, q_num_heads=4, kv_num_heads=4)
    return b.done(b.node("MatMul", x, b.weight(8, 3)), rank=3)


@case(4)
def attention_with_a_stored_prefix() -> ModelProto:
    b = Builder(opset=23)
    x = b.input(1, 5, 7)
    q, k, v = (projected(b, x, 4, size) for size in (6, 6, 2))
    prefix = b.weight(1, 4, 3, 6), b.weight(1, 4, 3, 2)
    y, *_ = b.nodes_of("Attention", q, k, v, "", *prefix, outputs=3)
    return b.done(merged(b, y, 8), rank=3)


@holds()
def attention_with_a_memory() -> ModelProto:
    b = Builder(opset=23)
    x = b.input(1, 5, 7)
    q, k, v = (projected(b, x, 4, size) for size in (6, 6, 2))
    past = b.input(1, 4, 3, 6), b.input(1, 4, 3, 2)
    y, *present = b.nodes_of("Attention", q, k, v, "", *past, outputs=3)
    return b.done(merged(b, y, 8), *present, rank=3)


@case(3)
def attention_of_shared_keys() -> ModelProto:
    b = Builder(opset=23)
    x = b.input("N", 5, 7)
    q, k, v = (b.node("MatMul", x, b.weight(7, size, fan_in=7)) for size in (36, 18, 6))
    x = b.node("Attention", q, k, v, q_num_heads=6, kv_num_heads=3, scale=0.5)
    return b.done(b.node("MatMul", x, b.weight(12, 3)), rank=3)


@case(4)
def attention_to_what_was_turned() -> ModelProto:
    b = Builder(opset=23)
    x = b.input("N", 5, 7)
    q, k, v = (projected(b, x, 4, size) for size in (6, 6, 2))
    positions = b.node("Expand", b.integers(*range(5)), b.node("Shape", x, end=2))
    q = b.node("RotaryEmbedding", q, b.weight(9, 3), b.weight(9, 3), positions)
    tables = b.weight(9, 2), b.weight(9, 2)
    k = b.node("RotaryEmbedding", k, *tables, positions, rotary_embedding_dim=4, interleaved=1)
    return b.done(merged(b, b.node("Attention", q, k, v), 8), rank=3)


@case(3)
def attention_of_packed_heads_that_were_turned() -> ModelProto:
    b = Builder(opset=23)
    x = b.input(2, 5, 7)
    q, k, v = (b.node("MatMul", x, b.weight(7, 3 * size, fan_in=7)) for size in (6, 6, 2))
    q, k = (b.node("RotaryEmbedding", y, b.weight(2, 5, 3), b.weight(2, 5, 3), num_heads=3) for y in (q, k))
    x = b.node("Attention", q, k, v, q_num_heads=3, kv_num_heads=3)
    return b.done(b.node("MatMul", x, b.weight(6, 3)), rank=3)


# ---------------------------------------------------------------------------------------- com.microsoft


@case(3)
def rotary_embeddings_of_onnxruntime() -> ModelProto:
    b = microsoft(opset=23)
    x = b.input("N", 5, 7)
    q, k, v = (b.node("MatMul", x, b.weight(7, 3 * size, fan_in=7)) for size in (6, 6, 2))
    q = b.node("RotaryEmbedding", q, b.integers(1), b.weight(9, 3), b.weight(9, 3), domain=MICROSOFT)
    tables = b.weight(9, 2), b.weight(9, 2)
    k = b.node("RotaryEmbedding", k, b.integers(0), *tables, domain=MICROSOFT, num_heads=3, rotary_embedding_dim=4)
    x = b.node("Attention", q, k, v, q_num_heads=3, kv_num_heads=3)
    return b.done(b.node("MatMul", x, b.weight(6, 3)), rank=3)


def microsoft(opset: int = 17) -> Builder:
    b = Builder(opset=opset)
    b.domains.append(helper.make_opsetid(MICROSOFT, 1))
    return b


@case(6, 8)
def gelus() -> ModelProto:
    b = microsoft()
    x = b.node("BiasGelu", b.node("MatMul", b.input("N", 5, 7), b.weight(7, 8)), b.vector(8), domain=MICROSOFT)
    x = b.node("FastGelu", b.node("QuickGelu", x, domain=MICROSOFT, alpha=1.5), b.vector(8), domain=MICROSOFT)
    x = b.node("Gelu", b.node("MatMul", x, b.weight(8, 6)), domain=MICROSOFT)
    return b.done(b.node("MatMul", x, b.weight(6, 3)), rank=3)


@case(8)
def fused_convolutions() -> ModelProto:
    b = microsoft()
    x = b.stem(8)
    weight = b.weight(8, 8, 3, 3)
    y = b.node("FusedConv", x, weight, b.vector(8), x, domain=MICROSOFT, activation="Relu", pads=[1] * 4)
    return b.done(b.node("FusedConv", y, b.weight(4, 8, 1, 1), domain=MICROSOFT, activation="Sigmoid"))


@case(4)
def fused_groups() -> ModelProto:
    b = microsoft()
    x = b.node("FusedConv", b.stem(8), b.weight(12, 2, 3, 3), domain=MICROSOFT, activation="Tanh", group=4)
    return b.done(b.conv(x, 12, 4))


def summed(activation: str) -> ModelProto:
    b = microsoft(13)
    x = b.node("FusedConv", b.stem(8), b.weight(6, 8, 1, 1), domain=MICROSOFT, activation=activation)
    return b.done(b.conv(b.node("ReduceSum", x, b.integers(1), keepdims=1), 1, 4))


@case(6, 8)
def sum_behind_a_fused_relu() -> ModelProto:
    return summed("Relu")


@holds(8)
def sum_behind_a_fused_sigmoid() -> ModelProto:
    return summed("Sigmoid")


@case(6, 8)
def fused_products() -> ModelProto:
    b = microsoft()
    x = b.node("FusedMatMul", b.input("N", 5, 7), b.weight(8, 7), domain=MICROSOFT, transB=1, alpha=0.5)
    x = b.node("Transpose", b.relu(x), perm=[0, 2, 1])
    x = b.node("FusedMatMul", x, b.weight(8, 6), domain=MICROSOFT, transA=1)
    return b.done(b.node("MatMul", x, b.weight(6, 3)), rank=3)


@case(6, 8)
def fused_gemms() -> ModelProto:
    b = microsoft()
    x = b.node("Relu", b.linear(b.input("N", 7), 7, 8))
    x = b.node("FusedGemm", x, b.weight(6, 8), b.vector(6), domain=MICROSOFT, transB=1, activation="Relu")
    return b.done(b.linear(x, 6, CLASSES))


def normalised(op: str, fused: bool = True) -> ModelProto:
    """Residual, sum and norm, fused or not, with the same weights in the same order."""
    b = microsoft(18)
    x = b.node("MatMul", b.input("N", 5, 7), b.weight(7, 8))
    skip = b.node("MatMul", b.relu(b.node("MatMul", x, b.weight(8, 6))), b.weight(6, 8))
    gamma, beta, bias = (b.vector(8) for _ in range(3))
    simple = op.startswith("SkipSimplified")
    if fused:
        parameters = [gamma, bias] if simple else [gamma, beta, bias]
        y, _, _, total = b.nodes_of(op, x, skip, *parameters, outputs=4, domain=MICROSOFT, epsilon=1e-5)
        b.nodes[-1].output[1] = b.nodes[-1].output[2] = ""
    else:
        total = b.node("Add", b.node("Add", x, skip), bias)
        if simple:
            square = b.node("ReduceMean", b.node("Mul", total, total), b.integers(-1))
            root = b.node("Sqrt", b.node("Add", square, b.store(1e-5)))
            y = b.node("Mul", b.node("Div", total, root), gamma)
        else:
            y = b.node("LayerNormalization", total, gamma, beta, epsilon=1e-5)
    return b.done(b.node("MatMul", y, b.weight(8, 3)), b.node("MatMul", total, b.weight(8, 3)), rank=3)


@holds(6)
def sum_and_norm() -> ModelProto:
    return normalised("SkipLayerNormalization")


@holds(6)
def sum_and_simple_norm() -> ModelProto:
    return normalised("SkipSimplifiedLayerNormalization")


@case(6, 8)
def quantised_residual() -> ModelProto:
    b = microsoft()
    around = [scale(b), zero_point(b)]
    x = b.node("QuantizeLinear", b.stem(8), *around)
    weight = [whole(b, 8, 8, 1, 1), scales(b, 8), b.store(np.zeros(8), np.int8)]
    y = b.node("QLinearConv", x, *around, *weight, *around, whole(b, 8, dtype=np.int32))
    x = b.node(
        "QLinearAdd",
        b.node("QLinearLeakyRelu", x, *around, *around, domain=MICROSOFT),
        *around,
        y,
        *around,
        *around,
        domain=MICROSOFT,
    )
    weight = [whole(b, 6, 8, 1, 1), scales(b, 6), b.store(np.zeros(6), np.int8)]
    y = b.node(
        "QLinearSigmoid", b.node("QLinearConv", x, *around, *weight, *around), *around, *around, domain=MICROSOFT
    )
    x = b.node("QLinearConcat", *around, x, *around, y, *around, domain=MICROSOFT, axis=1)
    x = b.node("QLinearGlobalAveragePool", x, *around, *around, domain=MICROSOFT)
    last = [whole(b, 4, 14), scales(b, 4), b.store(np.arange(4), np.int8), whole(b, 4, dtype=np.int32)]
    x = b.node("QGemm", b.node("Flatten", x), *around, *last, *around, domain=MICROSOFT, transB=1)
    return b.done(b.node("DequantizeLinear", x, *around), rank=2)


@case(8)
def quantised_pools() -> ModelProto:
    b = microsoft()
    around = [scale(b), zero_point(b)]
    x = b.node("QuantizeLinear", b.stem(8), *around)
    y = b.node("QLinearAveragePool", x, *around, *around, domain=MICROSOFT, kernel_shape=[2, 2])
    pooled = b.node("QLinearGlobalAveragePool", x, *around, *around, domain=MICROSOFT)
    y = b.node("QLinearMul", y, *around, pooled, *around, *around, domain=MICROSOFT)
    return b.done(b.conv(b.node("DequantizeLinear", y, *around), 8, 4))


@holds()
def quantised_pool_of_channels_that_come_last() -> ModelProto:
    b = microsoft()
    around = [scale(b), zero_point(b)]
    x = b.node("QuantizeLinear", b.node("Transpose", b.stem(8), perm=[0, 2, 3, 1]), *around)
    x = b.node("QLinearGlobalAveragePool", x, *around, *around, domain=MICROSOFT, channels_last=1)
    x = b.node("Flatten", b.node("DequantizeLinear", x, *around))
    return b.done(b.linear(x, 8, 4))


# ------------------------------------------------------------------------------------- types, and bodies


@case(2, 8)
def transformer_in_half_precision() -> ModelProto:
    b = Builder(opset=18, dtype=np.float16)
    x = b.input("N", 5, 7)
    heads = [b.node("MatMul", x, b.weight(7, 8, fan_in=7)) for _ in range(3)]
    q, k, v = (b.node("Reshape", head, b.integers(0, 0, 2, 4)) for head in heads)
    scores = b.node("MatMul", b.node("Transpose", q, perm=[0, 2, 1, 3]), b.node("Transpose", k, perm=[0, 2, 3, 1]))
    y = b.node("MatMul", b.node("Softmax", scores), b.node("Transpose", v, perm=[0, 2, 1, 3]))
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1, 3]), b.integers(0, 0, 8))
    x = b.node("Add", x, b.node("MatMul", y, b.weight(8, 7, fan_in=8)))
    x = b.node("LayerNormalization", x, b.vector(7), b.vector(7))
    x = b.relu(b.node("MatMul", x, b.weight(7, 8, fan_in=7)))
    return b.done(b.node("MatMul", x, b.weight(8, 3, fan_in=8)), rank=3)


@case(6, 8)
def weights_in_brain_floats() -> ModelProto:
    b = Builder()

    def weight(*shape: int) -> str:
        values = b.rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        return b.node("Cast", b.store(values, ml_dtypes.bfloat16), to=TensorProto.FLOAT)

    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), weight(8, 3, 3, 3), weight(8)))
    x = b.relu(b.node("Conv", x, weight(6, 8, 3, 3)))
    return b.done(b.node("MatMul", b.node("Flatten", b.node("GlobalMaxPool", x)), weight(6, CLASSES)))


@case(4, 5, 6)
def branch_captures_one_map() -> ModelProto:
    """Only the map of 8 channels stays, which the body reads; those before, beside and behind it do not."""
    b = Builder()
    before = b.relu(b.conv(b.stem(4), 4, 8))
    beside = b.relu(b.conv(before, 8, 5))
    outcome = helper.make_tensor_value_info("outcome", TensorProto.FLOAT, None)
    bodies = [
        helper.make_graph([helper.make_node(op, [before], ["outcome"])], op, [], [outcome]) for op in ("Neg", "Relu")
    ]
    switch = b.node("Greater", b.node("ReduceSum", b.inputs[0].name, keepdims=0), b.store(0))
    x = b.node("If", switch, then_branch=bodies[0], else_branch=bodies[1])
    behind = b.relu(b.conv(x, 8, 6))
    return b.done(b.conv(behind, 6, 3), b.conv(beside, 5, 3))


# ------------------------------------------------------------------------------- what is not zero, or varies


def sum_over(b: Builder, x: str) -> ModelProto:
    """Sum over channels, so that they can only go where they are zero."""
    return b.done(b.node("ReduceSum", b.node("Cast", x, to=TensorProto.FLOAT), b.integers(1)))


@holds()
def sum_over_the_mask_of_a_dropout() -> ModelProto:
    b = Builder()
    return sum_over(b, b.nodes_of("Dropout", b.stem(8), outputs=2)[1])


@holds()
def sum_over_quantised_numbers() -> ModelProto:
    b = Builder()
    return sum_over(b, b.node("QuantizeLinear", b.stem(8), scale(b), zero_point(b)))


@case(8)
def sum_over_what_whole_numbers_weigh() -> ModelProto:
    b = Builder()
    weight = b.node("Mul", b.node("Cast", whole(b, 8, 3, 3, 3), to=TensorProto.FLOAT), scale(b))
    return sum_over(b, b.node("Mul", b.relu(b.node("Conv", b.input("N", 3, 6, 6), weight)), b.vector(8, 1, 1)))


@holds()
def sum_over_what_shrinks_from_below_zero() -> ModelProto:
    b = Builder()
    return sum_over(b, b.node("Shrink", b.stem(8), lambd=-0.1, bias=0.3))


@holds()
def norm_that_trains_on_rows() -> ModelProto:
    b = Builder()
    x = b.linear_rows(b.input("N", 5, 6), 6, 8)
    parameters = [b.positive(5), b.vector(5), b.vector(5), b.positive(5)]
    x = b.nodes_of("BatchNormalization", x, *parameters, outputs=3, training_mode=1)[0]
    return b.done(b.linear_rows(x, 8, 4), rank=3)


@case(8)
def norm_that_trains() -> ModelProto:
    b = Builder()
    parameters = [b.positive(8), b.vector(8), b.vector(8), b.positive(8)]
    return b.done(b.conv(b.nodes_of("BatchNormalization", b.stem(8), *parameters, outputs=3, training_mode=1)[0], 8, 4))


@holds()
def proportions_of_channels_and_pixels() -> ModelProto:
    b = Builder(opset=18)
    asked = {"axes": [1, 2, 3], "keep_aspect_ratio_policy": "not_larger"}
    return b.done(b.conv(b.node("Resize", b.stem(8), "", "", b.integers(8, 20, 30), **asked), 8, 4))


# -------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("name", [*CASES, *HOLDS])
def test_a_net_has_the_groups_that_a_reader_finds(name: str) -> None:
    build, expected = (CASES | HOLDS)[name]
    assert widths(build()) == expected


@pytest.mark.parametrize("name", [*CASES, *HOLDS])
def test_a_cut_net_equals_the_original_without_the_removed_slices(name: str) -> None:
    proto = (CASES | HOLDS)[name][0]()
    for seed in range(3):
        oracle.check(proto, seed=seed)


@pytest.mark.parametrize("name", CASES)
def test_verify_agrees(name: str) -> None:
    proto = CASES[name][0]()
    found = find(proto)
    plan = oracle.random_plan(found, 1)
    assert "equal" in verify.verify(found, plan, surgery.cut(found, plan, runtime.evaluate), "fast")["outputs"]


def test_verify_agrees_where_weights_of_8_bits_would_saturate_on_some_processors() -> None:
    b = Builder()
    around = [scale(b), zero_point(b, 0)]
    x = b.node("QuantizeLinear", b.stem(8), *around)
    for outputs, inputs in ((12, 8), (4, 12)):
        weight = b.store(b.rng.choice([-127, 127], (outputs, inputs, 3, 3)), np.int8)
        x = b.node("QLinearConv", x, *around, weight, scale(b), zero_point(b, 0, np.int8), *around)
    found = find(b.done(b.node("DequantizeLinear", x, *around)))
    plan = oracle.random_plan(found, 1)
    assert "equal" in verify.verify(found, plan, surgery.cut(found, plan, runtime.evaluate), "fast")["outputs"]


def test_verify_agrees_where_weights_of_8_bits_share_a_zero_point() -> None:
    b = Builder()
    x, around = b.input("N", 3, 8, 8), [scale(b), zero_point(b, 0, np.int8)]
    for outputs, inputs in ((8, 3), (6, 8), (4, 6)):
        weight = b.node("DequantizeLinear", whole(b, outputs, inputs, 3, 3), *around)
        x = b.node("Relu", b.node("Conv", x, weight))
    found = find(b.done(x))
    plan = oracle.random_plan(found, 1)
    assert "equal" in verify.verify(found, plan, surgery.cut(found, plan, runtime.evaluate), "fast")["outputs"]


@pytest.mark.parametrize("shape", [(8,), ()])
def test_verify_agrees_where_weights_of_8_bits_have_no_zero_point(shape: tuple[int, ...]) -> None:
    b = Builder()
    x = there_and_back(b, b.input("N", 3, 8, 8))
    for outputs, inputs in ((8, 3), (8, 8)):
        numbers = b.store(b.rng.integers(-127, 127, (outputs, inputs, 3, 3)), np.int8)
        weight = b.node("DequantizeLinear", numbers, scales(b, *shape), axis=0)
        x = there_and_back(b, b.relu(b.node("Conv", x, weight)))
    found = find(b.done(b.conv(x, 8, 4)))
    plan = oracle.random_plan(found, 1)
    assert "equal" in verify.verify(found, plan, surgery.cut(found, plan, runtime.evaluate), "fast")["outputs"]


@pytest.mark.parametrize("name", sorted(set(CASES) - {"sum_over_zero_pads", "sum_behind_a_fused_relu"}))
def test_an_error_in_any_cut_layer_of_a_net_would_show(name: str) -> None:
    proto = CASES[name][0]()
    halves = tuple(np.arange(group.width)[::2] for group in find(proto).groups)
    assert oracle.blind_layers(oracle.check(proto, kept=Plan(halves))) == []


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_a_fused_norm_is_cut_like_a_sum_and_a_norm(op: str) -> None:
    fused, apart = normalised(op), normalised(op, fused=False)
    found = find(fused, approximate=True)
    assert sorted((group.width, group.is_approximate) for group in found.groups) == [(6, False), (8, True)]
    plan = oracle.random_plan(found, 0)
    assert "equal" in verify.verify(found, plan, surgery.cut(found, plan, runtime.evaluate), "full")["outputs"]
    answers = []
    for proto in (fused, apart):
        own = find(proto, approximate=True)
        assert [group.width for group in own.groups] == [group.width for group in found.groups]
        small = surgery.cut(own, plan, runtime.evaluate)
        answers.append(runtime.evaluate(small, oracle.random_feeds(proto, own.model.bound, 0)[0]))
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def attributes(proto: ModelProto, op: str) -> dict[str, Any]:
    (node,) = (node for node in proto.graph.node if node.op_type == op)
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def test_attention_keeps_the_scale_that_followed_from_the_size_of_its_heads() -> None:
    proto = attention_inside_heads()
    widths = [group.width for group in find(proto).groups]
    kept = Plan(tuple(np.arange(width - 1) for width in widths))
    assert attributes(oracle.check(proto, kept=kept).small, "Attention")["scale"] == pytest.approx(6**-0.5)
    whole_keys = Plan(tuple(np.arange(width if width == 6 else 1) for width in widths))
    assert "scale" not in attributes(oracle.check(proto, kept=whole_keys).small, "Attention")


def test_attention_counts_its_heads_anew() -> None:
    small = oracle.check(attention_of_shared_keys(), kept=Plan((np.asarray([0, 2]),))).small
    found = attributes(small, "Attention")
    assert (found["q_num_heads"], found["kv_num_heads"], found["scale"]) == (4, 2, 0.5)


def test_heads_that_are_turned_are_counted_anew_where_their_number_stands() -> None:
    for proto in (attention_of_packed_heads_that_were_turned(), rotary_embeddings_of_onnxruntime()):
        small = oracle.check(proto, kept=Plan((np.asarray([0, 2]),))).small
        turned = [node for node in small.graph.node if node.op_type == "RotaryEmbedding"]
        assert {a.i for node in turned for a in node.attribute if a.name == "num_heads"} == {2}


def test_the_removed_slices_of_quantised_weights_hold_their_zero_points(tmp_path: Path) -> None:
    proto = quantised_and_back()
    found = find(proto)
    plan = Plan(tuple(np.arange(group.width - 1) for group in found.groups))
    keep = kept_atoms(found, plan)
    zeroed(found, keep, tmp_path / "zeroed.onnx", only_contracted=False)
    before = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "zeroed.onnx").graph.initializer}
    weight, factors, points = next(n.input for n in proto.graph.node if list(n.output) == conv_weight(proto))
    assert np.array_equal(after[weight][-1], np.full((8, 3, 3), before[points][-1]))
    assert np.array_equal(after[weight][:, -1], np.tile(before[points][:, None, None], (1, 3, 3)))
    assert np.array_equal(after[weight][:-1, :-1], before[weight][:-1, :-1])
    assert np.array_equal(after[factors], before[factors])


def conv_weight(proto: ModelProto) -> list[str]:
    """Name what the second convolution takes its weight from."""
    return [[node for node in proto.graph.node if node.op_type == "Conv"][1].input[1]]
