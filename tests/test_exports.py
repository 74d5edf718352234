"""What exporters write and is easily cut wrongly: free axes, sizes that numbers decide, integer weights, bodies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from nets import Array, Builder
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import runtime, surgery
from onnxprune.channels import Channels, find_channels
from onnxprune.depth import Depth
from onnxprune.errors import VerifyError
from onnxprune.model import analyse
from onnxprune.ops.slicing import Gather, Split
from onnxprune.verify import verify


def find(proto: ModelProto, **asked: tuple[int, ...]) -> Channels:
    return find_channels(analyse(proto, Path(), runtime.evaluate, asked))


def drawn(*shape: int, seed: int = 3) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def check_elsewhere(proto: ModelProto, *feeds: dict[str, Array], **asked: tuple[int, ...]) -> None:
    """Cut at one size, and compare with the zeroed original at others."""
    done = oracle.check(proto, asked=asked)
    reference = oracle.zeroed(done.original, done.content)
    for feed in feeds:
        for wanted, got in zip(oracle.run_model(reference, feed), oracle.run_model(done.small, feed), strict=True):
            assert wanted.shape == got.shape
            assert oracle.distance(wanted, got) < 1e-4


def last_row() -> ModelProto:
    """The last row of a sequence of any length, as GPTs pick it."""
    b = Builder()
    x = b.relu(b.linear_rows(b.input("N", "T", 8), 8, 12))
    return b.done(b.linear_rows(b.node("Gather", x, b.integers(-1), axis=1), 12, 5), rank=3)


def halves_of_rows() -> ModelProto:
    """Two halves of a sequence of any length."""
    b = Builder(opset=18)
    x = b.relu(b.linear_rows(b.input("N", "T", 8), 8, 12))
    halves = b.nodes_of("Split", x, outputs=2, axis=1, num_outputs=2)
    peaks = [b.node("ReduceMax", half, b.integers(1), keepdims=0) for half in halves]
    return b.done(b.linear_rows(b.node("Add", *peaks), 12, 5), rank=2)


@pytest.mark.parametrize("build", [last_row, halves_of_rows])
def test_an_axis_that_is_free_is_not_held_to_the_size_it_was_bound_to(build: Callable[[], ModelProto]) -> None:
    check_elsewhere(build(), drawn(2, 4, 8), drawn(1, 9, 8), x=(1, 7, 8))


@pytest.mark.parametrize(("build", "rule"), [(last_row, Gather), (halves_of_rows, Split)])
def test_verification_looks_at_other_sizes_than_those_the_model_was_bound_to(
    build: Callable[[], ModelProto], rule: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fixed(self: Any, node: Any) -> None:
        if rule is Gather:
            node.set_value(1, np.asarray([6]))
        else:
            node.set_attribute("num_outputs", None)
            node.set_integers("split", 1, [4, 3], since=13)

    found = find(build(), x=(1, 7, 8))
    plan = oracle.even_plan(found, 0.5)
    assert "equal" in verify(found, plan, surgery.cut(found, plan, runtime.evaluate), "fast")["outputs"]
    monkeypatch.setattr(rule, "resize", fixed)
    with pytest.raises(VerifyError):
        verify(found, plan, surgery.cut(found, plan, runtime.evaluate), "fast")


def rows_of_some() -> ModelProto:
    """Rows whose first number is positive, in pairs: how many there are, only the numbers tell."""
    b = Builder()
    x = b.input(12, 8)
    rows = b.relu(b.node("MatMul", x, b.weight(8, 32, fan_in=8)))
    first = b.node("Gather", x, b.store(0, np.int64), axis=1)
    chosen = b.node("NonZero", b.node("Greater", first, b.store(0)))
    taken = b.node("Gather", rows, b.node("Squeeze", chosen, b.integers(0)), axis=0)
    count = b.node("Slice", b.node("Shape", taken), b.integers(0), b.integers(1))
    pairs = b.node("Reshape", taken, b.node("Concat", count, b.integers(2, 16), axis=0))
    added = b.node("ReduceSum", pairs, b.integers(1), keepdims=0)
    return b.done(b.node("MatMul", added, b.weight(16, 4, fan_in=16)), rank=2)


def test_a_size_that_numbers_decide_stays_free_where_all_inputs_are_fixed() -> None:
    check_elsewhere(rows_of_some(), *(drawn(12, 8, seed=seed) for seed in range(5)))


def classes() -> ModelProto:
    b = Builder()
    x = b.relu(b.linear_rows(b.input("N", 8), 8, 16))
    scores = b.node("Add", b.node("MatMul", x, b.weight(16, 3, fan_in=16)), b.store([0, 9, 0]))  # one always wins
    return b.done(b.node("ArgMax", scores, axis=1, keepdims=0), rank=1)


@pytest.mark.parametrize("level", ["fast", "full"])
def test_verification_looks_behind_outputs_that_are_no_floats(level: str) -> None:
    found = find(classes())
    plan = oracle.even_plan(found, 0.5)
    cut = surgery.cut(found, plan, runtime.evaluate)
    assert "equal" in verify(found, plan, cut, level)["outputs"]
    weight = next(t for t in cut.graph.initializer if t.dims == [8, 3])
    turned = np.ascontiguousarray(np.roll(numpy_helper.to_array(weight), 1, axis=0))
    weight.CopyFrom(numpy_helper.from_array(turned, weight.name))
    with pytest.raises(VerifyError, match="differs"):
        verify(found, plan, cut, level)
    assert [output.name for output in cut.graph.output] == [output.name for output in found.model.graph.outputs]


def integers_below(b: Builder, *shape: int, dtype: Any) -> str:
    return b.store(b.rng.integers(-100, 100, shape), dtype)


def weights_of_int8() -> ModelProto:
    """Small weights of 8 bits, brought to floats node by node."""
    b = Builder()
    wide = b.node("Cast", integers_below(b, 16, 8, 1, 1, dtype=np.int8), to=TensorProto.INT32)
    apart = b.node("Sub", wide, b.store(b.rng.integers(-5, 5, (16, 1, 1, 1)), np.int32))
    scaled = b.node("Mul", b.node("Cast", apart, to=TensorProto.FLOAT), b.store(np.full((16, 1, 1, 1), 0.01)))
    x = b.relu(b.node("Conv", b.stem(8), scaled))
    return b.done(b.conv(x, 16, 4))


def weights_of_int32() -> ModelProto:
    b = Builder()
    x = b.relu(b.node("MatMul", b.input("N", 8), b.weight(8, 8, fan_in=8)))
    apart = b.node("Sub", integers_below(b, 8, 16, dtype=np.int32), b.store(3, np.int32))
    x = b.relu(b.node("MatMul", x, b.node("Cast", apart, to=TensorProto.FLOAT)))
    return b.done(b.node("MatMul", x, b.weight(16, 4, fan_in=16)), rank=2)


def masked_weights() -> ModelProto:
    """A mask of what does not count, as sparse training leaves it."""
    b = Builder()
    x = b.relu(b.node("MatMul", b.input("N", 8), b.weight(8, 16, fan_in=8)))
    counts = b.node("Not", b.store(b.rng.random((16, 24)) < 0.5, np.bool_))
    x = b.relu(b.node("MatMul", x, b.node("Where", counts, b.weight(16, 24, fan_in=16), b.store(0))))
    return b.done(b.node("MatMul", x, b.weight(24, 4, fan_in=24)), rank=2)


def scale_from_a_size() -> ModelProto:
    """A weight times a number that follows from a size."""
    b = Builder()
    x = b.node("MatMul", b.input("N", 8), b.weight(8, 16, fan_in=8))
    size = b.node("Gather", b.node("Shape", x), b.store(1, np.int64), axis=0)
    scale = b.node("Mul", b.vector(16), b.node("Sqrt", b.node("Cast", size, to=TensorProto.FLOAT)))
    return b.done(b.node("MatMul", b.relu(b.node("Mul", x, scale)), b.weight(16, 4, fan_in=16)), rank=2)


@pytest.mark.parametrize(
    ("build", "widths"),
    [(weights_of_int8, [8, 16]), (weights_of_int32, [8, 16]), (masked_weights, [16, 24]), (scale_from_a_size, [])],
)
def test_integer_weights_are_no_shape_arithmetic(build: Callable[[], ModelProto], widths: list[int]) -> None:
    assert sorted(oracle.widths(find(build()))) == widths
    for seed in range(3 if widths else 0):
        oracle.check(build(), seed=seed)


def test_sparse_weights_stay() -> None:
    b = Builder()
    x = b.relu(b.node("MatMul", b.input("N", 8), b.weight(8, 16, fan_in=8)))
    x = b.relu(b.node("MatMul", x, "few"))
    x = b.relu(b.node("MatMul", x, b.weight(12, 20, fan_in=12)))
    proto = b.done(b.node("MatMul", x, b.weight(20, 4, fan_in=20)), rank=2)
    places = np.arange(0, 16 * 12, 5)
    values = numpy_helper.from_array(np.ones(len(places), np.float32), "few")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(places, "few_places"), [16, 12])
    )
    found = find(proto)
    assert [group.width for group in found.groups] == [20]
    small = surgery.cut(found, oracle.even_plan(found, 0.5), runtime.evaluate)
    assert oracle.run_model(small, drawn(2, 8))[0].shape == (2, 4)


def branches_of(captured: str) -> dict[str, Any]:
    """Two bodies of an If that read a tensor from outside."""
    found = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        found[name] = helper.make_graph([helper.make_node(op, [captured], [name])], name, [], [value])
    return found


def test_a_branch_that_a_body_reads_does_not_go_as_a_whole() -> None:
    b = Builder()
    x = b.conv(b.input(1, 3, 8, 8), 3, 16)
    branch = b.conv(b.relu(b.conv(x, 16, 32)), 32, 16)
    read = b.node("If", b.store(True, np.bool_), **branches_of(branch))
    proto = b.done(b.node("Add", b.node("Add", x, branch), read))
    found = find(proto)
    (inner,) = [number for number, group in enumerate(found.groups) if group.width == 32]
    assert inner not in Depth(found).takes_along
    oracle.check(proto)


def test_the_bodies_of_a_node_that_changes_stay_to_the_letter() -> None:
    b = Builder()
    kept = b.weight(4, 4, 1, 1)
    x = b.relu(b.conv(b.stem(8), 8, 12))
    size = b.node("Gather", b.node("Shape", x), b.store(1, np.int64), axis=0)
    is_wide = b.node("Greater", size, b.store(10, np.int64))  # what it was before the cut, and stays
    y = b.conv(x, 12, 4)
    bodies = {}
    for name, weight in (("then_branch", kept), ("else_branch", kept)):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        bodies[name] = helper.make_graph([helper.make_node("Conv", [y, weight], [name])], name, [], [value])
    proto = b.done(b.node("If", is_wide, **bodies))
    done = oracle.check(proto)
    before, after = (next(n for n in m.graph.node if n.op_type == "If") for m in (proto, done.small))
    assert before.input != after.input
    assert list(before.attribute) == list(after.attribute)


def test_a_constant_of_the_size_of_one_sample_does_not_stand_for_a_batch() -> None:
    b = Builder()
    x = b.node("MatMul", b.input("N", 6, 16), b.weight(16, 16, fan_in=16))
    inner = b.relu(b.node("MatMul", x, b.weight(16, 32, fan_in=16)))
    branch = b.node("Add", b.node("MatMul", inner, b.weight(32, 16, fan_in=32)), b.positive(16))
    codes = b.node("DequantizeLinear", integers_below(b, 1, 6, 16, dtype=np.int8), b.store(0.01))
    proto = b.done(b.node("MatMul", b.node("Add", branch, codes), b.weight(16, 4, fan_in=16)), rank=3)
    found = find(proto)
    (inner_group,) = [number for number, group in enumerate(found.groups) if group.width == 32]
    assert inner_group not in Depth(found).takes_along


def test_what_onnx_minds_and_onnxruntime_does_not_is_cut() -> None:
    b = Builder(opset=18)
    x = b.node("GroupNormalization", b.conv(b.stem(8), 8, 16), b.vector(4), b.vector(4), num_groups=4)
    proto = b.done(b.conv(b.relu(x), 16, 4))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    found = find(proto)
    assert sorted(oracle.widths(found)) == [4, 8]
    plan = oracle.even_plan(found, 0.5)
    small = surgery.cut(found, plan, runtime.evaluate)
    checks = verify(found, plan, small, "full")
    assert "equal" in checks["outputs"]


def attention_of_rows_first(batch: int) -> ModelProto:
    """Attention of stored queries, as PyTorch writes it: the sequence comes first, samples and heads are one axis."""
    rows, heads, size = 6, 4, 8
    b = Builder()
    x = b.node("Transpose", b.linear_rows(b.input(batch, rows, 16), 16, 32), perm=[1, 0, 2])
    queries = b.node("Expand", b.store(b.rng.standard_normal((1, rows, 32))), b.integers(batch, rows, 32))
    parts = []
    for read in (b.node("Transpose", queries, perm=[1, 0, 2]), x, x):
        part = b.node("Reshape", b.linear_rows(read, 32, 32), b.integers(rows, batch * heads, size))
        parts.append(b.node("Transpose", part, perm=[1, 0, 2]))
    scores = b.node("MatMul", parts[0], b.node("Transpose", parts[1], perm=[0, 2, 1]))
    mixed = b.node("MatMul", b.node("Softmax", scores, axis=-1), parts[2])
    whole = b.node("Reshape", b.node("Transpose", mixed, perm=[1, 0, 2]), b.integers(rows, batch, heads * size))
    return b.done(b.node("Transpose", b.linear_rows(whole, 32, 5), perm=[1, 0, 2]), rank=3)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_heads_can_go_whatever_batch_they_share_an_axis_with(batch: int) -> None:
    proto = attention_of_rows_first(batch)
    assert sorted(oracle.widths(find(proto))) == [4, 32]
    for seed in range(2):
        oracle.check(proto, seed=seed)


def test_a_pool_whose_places_nobody_reads_shrinks() -> None:
    b = Builder()
    x, _ = b.nodes_of("MaxPool", b.stem(8), outputs=2, kernel_shape=[2, 2])
    assert oracle.widths(find(b.done(b.conv(x, 8, 4)))) == [8]
