"""A model with other stored numbers answers with them, and nothing else of it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nets import Array, Builder
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.numbers import Numbers

X = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)
ONES = np.ones(8, np.float32)


def answers(proto: ModelProto, **feeds: Array) -> list[Any]:
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: list[Any] = session.run(None, feeds or {"x": X})
    return result


def near(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def value(numbers: Numbers, place: tuple[int, int]) -> Array:
    found = numbers.get(place)
    assert found is not None
    return found


def place(proto: ModelProto, op: str, position: int, nth: int = 0) -> tuple[int, int]:
    return [i for i, node in enumerate(proto.graph.node) if node.op_type == op][nth], position


def gemm(**options: Any) -> ModelProto:
    b = Builder(**options)
    return b.done(b.node("Gemm", b.input("N", 6), b.weight(6, 8), b.vector(8)), rank=2)


# --------------------------------------------------------------------------------------------- one reader


@pytest.mark.parametrize("options", [{}, {"opset": 8, "ir_version": 3}])
@pytest.mark.parametrize("stored", ["initializer", "constant"])
def test_numbers_of_one_reader_change_in_their_place(options: dict[str, int], stored: str) -> None:
    b = Builder(**options)
    b.stored_as = getattr(b, stored)
    proto = b.done(b.node("Gemm", b.input("N", 6), b.weight(6, 8), b.vector(8)), rank=2)
    before = proto.SerializeToString()
    numbers = Numbers(proto, Path())
    weight, bias = place(proto, "Gemm", 1), place(proto, "Gemm", 2)
    near(X @ value(numbers, weight) + value(numbers, bias), answers(numbers.proto)[0])
    fresh = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    for factor in (1, 2):
        numbers.set(weight, factor * fresh)
        numbers.set(bias, factor * ONES)
    near(value(numbers, weight), 2 * fresh)
    near(value(numbers, bias), 2 * ONES)
    near(answers(numbers.proto)[0], X @ (2 * fresh) + 2)
    assert numbers.changed == [proto.graph.node[weight[0]].input[position] for position in (1, 2)]
    assert not numbers.added
    assert proto.SerializeToString() == before
    assert len(numbers.proto.graph.initializer) == len(proto.graph.initializer)
    assert [n.input for n in numbers.proto.graph.node] == [n.input for n in proto.graph.node]


def test_what_is_said_of_a_tensor_stays() -> None:
    proto = gemm()
    proto.graph.initializer[0].doc_string = "learnt last week"
    numbers = Numbers(proto, Path())
    numbers.set((0, 1), np.zeros((6, 8), np.float32))
    assert numbers.proto.graph.initializer[0].doc_string == "learnt last week"
    assert numbers.proto.graph.initializer[0].name == proto.graph.initializer[0].name


@pytest.mark.parametrize("kind", ["value_floats", "value_float"])
def test_numbers_in_an_attribute_that_is_no_tensor_are_replaced(kind: str) -> None:
    b = Builder()
    bias = b.node("Constant", **{kind: [0.5] * 8 if kind == "value_floats" else 0.5})
    proto = b.done(b.node("Gemm", b.input("N", 6), b.weight(6, 8), bias), rank=2)
    numbers, at = Numbers(proto, Path()), place(proto, "Gemm", 2)
    near(value(numbers, at), np.full(8 if kind == "value_floats" else (), 0.5))
    weight = value(numbers, (at[0], 1))
    for factor in (3, 5):
        numbers.set(at, factor * ONES)
        near(value(numbers, at), factor * ONES)
        near(answers(numbers.proto)[0], X @ weight + factor)
    assert numbers.added == [numbers.proto.graph.node[at[0]].input[2]]
    assert not numbers.changed


@pytest.mark.parametrize("options", [{}, {"opset": 8, "ir_version": 3}, {"ir_version": 4}])
def test_numbers_may_take_another_shape(options: dict[str, int]) -> None:
    b = Builder(**options)
    proto = b.done(b.node("Gemm", b.input("N", 6), b.weight(6, 8), b.store([0.5])), rank=2)
    if options.get("ir_version") == 4:  # may be listed as inputs, too
        proto.graph.input.append(helper.make_tensor_value_info(proto.graph.node[0].input[2], TensorProto.FLOAT, [1]))
    if not options:
        proto.graph.value_info.append(
            helper.make_tensor_value_info(proto.graph.node[0].input[2], TensorProto.FLOAT, [1])
        )
    numbers = Numbers(proto, Path())
    numbers.set((0, 2), np.arange(8, dtype=np.float32))
    near(answers(numbers.proto)[0], X @ value(numbers, (0, 1)) + np.arange(8))


def test_half_precision_is_read_and_stored() -> None:
    proto = gemm(dtype=np.float16)
    numbers = Numbers(proto, Path())
    assert value(numbers, (0, 1)).dtype == np.float16
    numbers.set((0, 1), np.full((6, 8), 0.5, np.float16))
    assert numbers.proto.graph.initializer[0].data_type == TensorProto.FLOAT16
    assert (value(numbers, (0, 1)) == 0.5).all()


def test_numbers_beside_the_file_are_read_and_replaced(tmp_path: Path) -> None:
    proto = gemm()
    weight, before = numpy_helper.to_array(proto.graph.initializer[0]), answers(proto)[0]
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    outside = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    numbers = Numbers(outside, tmp_path)
    near(value(numbers, (0, 1)), weight)
    for position in (1, 2):
        numbers.set((0, position), 2 * value(numbers, (0, position)))
    near(answers(numbers.proto)[0], 2 * before)
    assert all(t.data_location == TensorProto.EXTERNAL for t in outside.graph.initializer)


# --------------------------------------------------------------------------------------------- many readers


def shared_bias(*, stored: str = "initializer", **options: Any) -> ModelProto:
    b = Builder(**options)
    b.stored_as = getattr(b, stored)
    x, bias = b.input("N", 6), b.vector(8)
    return b.done(*[b.node("Gemm", x, b.weight(6, 8), bias) for _ in range(3)], rank=2)


@pytest.mark.parametrize("stored", ["initializer", "constant"])
@pytest.mark.parametrize("options", [{}, {"opset": 8, "ir_version": 3}])
def test_one_of_many_readers_gets_numbers_of_its_own(options: dict[str, Any], stored: str) -> None:
    proto = shared_bias(stored=stored, **options)
    before, bytes_before = answers(proto), proto.SerializeToString()
    numbers = Numbers(proto, Path())
    at = [place(proto, "Gemm", 2, nth) for nth in range(3)]
    old = value(numbers, at[1])
    numbers.set(at[1], old + 1)
    for found, expected in zip(answers(numbers.proto), [before[0], before[1] + 1, before[2]], strict=True):
        near(found, expected)
    numbers.set(at[1], old + 2)
    numbers.set(at[2], old + 3)
    assert len(set(numbers.added)) == 2
    numbers.set(at[0], old + 4)  # the last to read it has it for itself
    for found, expected in zip(answers(numbers.proto), [before[0] + 4, before[1] + 2, before[2] + 3], strict=True):
        near(found, expected)
    assert numbers.changed == [proto.graph.node[at[0][0]].input[2]]
    assert proto.SerializeToString() == bytes_before


def test_an_alias_is_read_through_and_replaced_beside() -> None:
    b = Builder()
    x, bias = b.input("N", 6), b.vector(8)
    alias = b.node("Identity", b.node("Identity", bias))
    proto = b.done(*[b.node("Gemm", x, b.weight(6, 8), name) for name in (alias, alias, bias)], rank=2)
    before, numbers = answers(proto), Numbers(proto, Path())
    at = [place(proto, "Gemm", 2, nth) for nth in range(3)]
    for one in at:
        near(value(numbers, one), numpy_helper.to_array(proto.graph.initializer[0]))
        tensor = numbers.tensor(one)
        assert tensor is not None
        assert tensor.name == bias
    numbers.set(at[0], value(numbers, at[0]) + 1)
    numbers.set(at[2], value(numbers, at[2]) + 2)
    for found, expected in zip(answers(numbers.proto), [before[0] + 1, before[1], before[2] + 2], strict=True):
        near(found, expected)


def test_an_alias_of_one_reader_is_replaced_beside() -> None:
    b = Builder()
    alias = b.node("Identity", b.vector(8))
    proto = b.done(b.node("Gemm", b.input("N", 6), b.weight(6, 8), alias), rank=2)
    numbers, before = Numbers(proto, Path()), answers(proto)[0]
    numbers.set((1, 2), value(numbers, (1, 2)) + 1)
    assert len(numbers.added) == 1
    near(answers(numbers.proto)[0], before + 1)


def test_a_stored_tensor_that_is_an_output_stays() -> None:
    b = Builder()
    bias = b.vector(8)
    proto = b.done(b.node("Gemm", b.input("N", 6), b.weight(6, 8), bias), rank=2)
    proto.graph.output.append(helper.make_tensor_value_info(bias, TensorProto.FLOAT, [8]))
    numbers = Numbers(proto, Path())
    before = answers(proto)
    numbers.set((0, 2), value(numbers, (0, 2)) + 1)
    after = answers(numbers.proto)
    near(after[0], before[0] + 1)
    near(after[1], before[1])


def test_what_a_body_reads_stays() -> None:
    b = Builder()
    x, bias = b.input("N", 6), b.vector(8)
    y = b.node("Gemm", x, b.weight(6, 8), bias)

    def body(name: str, op: str) -> onnx.GraphProto:
        node = helper.make_node(op, [y, bias], [f"{name}_out"])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_out", 1, None)])

    yes = b.store(True, np.bool_)
    z = b.node("If", yes, then_branch=body("then", "Add"), else_branch=body("else", "Sub"))
    proto = b.done(z, rank=2)
    numbers, old = Numbers(proto, Path()), answers(proto)[0]
    numbers.set((0, 2), value(numbers, (0, 2)) + 1)
    near(answers(numbers.proto)[0], old + 1)


def test_a_tensor_read_twice_by_one_node_changes_in_one_place() -> None:
    b = Builder()
    scale = b.positive(8)
    x = b.node("Gemm", b.input("N", 6), b.weight(6, 8))
    proto = b.done(b.node("BatchNormalization", x, scale, scale, scale, scale, epsilon=0.0), rank=2)
    numbers = Numbers(proto, Path())
    at, old = place(proto, "BatchNormalization", 2), value(Numbers(proto, Path()), (1, 1))
    near(old, value(numbers, at))
    before = answers(proto)[0]
    numbers.set(at, old + 1)
    near(answers(numbers.proto)[0], before + 1)


# --------------------------------------------------------------------------------------------- missing inputs


@pytest.mark.parametrize("options", [{}, {"opset": 11, "ir_version": 3}])
@pytest.mark.parametrize("left_out", [0, 1])
def test_a_layer_without_a_bias_gets_one(options: dict[str, int], left_out: int) -> None:
    b = Builder(**options)
    empty = [""] * left_out
    proto = b.done(b.node("Gemm", b.input("N", 6), b.weight(6, 8), *empty), rank=2)
    bytes_before, before, numbers = proto.SerializeToString(), answers(proto)[0], Numbers(proto, Path())
    assert numbers.get((0, 2)) is None
    assert numbers.tensor((0, 2)) is None
    numbers.set((0, 2), 2 * ONES)
    near(value(numbers, (0, 2)), 2 * ONES)
    near(answers(numbers.proto)[0], before + 2)
    numbers.set((0, 2), 3 * ONES)
    near(answers(numbers.proto)[0], before + 3)
    assert len(numbers.added) == 1
    assert not numbers.changed
    assert proto.SerializeToString() == bytes_before


def test_a_computed_input_has_no_numbers() -> None:
    b = Builder()
    bias = b.relu(b.vector(8))
    proto = b.done(b.node("Gemm", b.input("N", 6), b.weight(6, 8), bias), rank=2)
    numbers, at = Numbers(proto, Path()), place(proto, "Gemm", 2)
    assert numbers.get(at) is None
    assert numbers.get((at[0], 0)) is None
    assert numbers.get((at[0], 7)) is None


# ----------------------------------------------------------------------------------------------------- names


def test_names_are_unlike_all_others() -> None:
    b = Builder()
    x, bias = b.input("N", 6), b.vector(8)
    proto = b.done(*[b.node("Gemm", x, b.weight(6, 8), bias) for _ in range(3)], rank=2)
    taken = [f"{bias}_{number}" for number in range(4)]
    inner = helper.make_graph(
        [helper.make_node("Add", [x, taken[1]], [taken[2]])],
        "body",
        [],
        [helper.make_tensor_value_info(taken[2], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(1), taken[1])],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    proto.graph.node.append(helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner))
    proto.graph.initializer.append(numpy_helper.from_array(ONES, taken[0]))  # of no use to anyone
    proto.graph.input.append(helper.make_tensor_value_info(taken[3], TensorProto.FLOAT, [1]))
    onnx.checker.check_model(proto)
    numbers = Numbers(proto, Path())
    numbers.set((0, 2), ONES)
    numbers.set((1, 2), 2 * ONES)
    assert numbers.added == [f"{bias}_4", f"{bias}_5"]
    before, after = (answers(p, x=X, **{taken[3]: np.ones(1, np.float32)}) for p in (proto, numbers.proto))
    near(after[0], before[0] - numpy_helper.to_array(proto.graph.initializer[0]) + 1)
    near(after[2], before[2])
    names = [t.name for t in numbers.proto.graph.initializer]
    assert len(set(names)) == len(names)


# ------------------------------------------------------------------------- whole numbers behind DequantizeLinear

WAYS: dict[str, dict[str, Any]] = {
    "one step": {"numbers": np.int8, "sizes": ()},
    "a step for each output": {"numbers": np.uint8, "sizes": (8,), "axis": 1},
    "a step for each input": {"numbers": np.int16, "sizes": (6,), "axis": 0},
    "no zero point": {"numbers": np.int32, "sizes": (), "zero": False},
    "blocks": {"numbers": np.int8, "sizes": (2, 8), "axis": 0, "block_size": 3},
    "four bits": {"numbers": ml_dtypes.int4, "sizes": (8,), "axis": 1},
    "half precision": {"numbers": np.int8, "sizes": (8,), "axis": 1, "scale": np.float16},
}


def dequantised(way: str) -> ModelProto:
    """Multiply by a matrix of whole numbers and put it out as well."""
    how = dict(WAYS[way])
    kind, sizes, dtype = np.dtype(how.pop("numbers")), how.pop("sizes"), how.pop("scale", np.float32)
    b = Builder(opset=21)
    low = 3 if kind == np.uint8 else -5
    stored = [b.store(b.rng.integers(low, 5, (6, 8)), kind), b.store(b.rng.uniform(0.1, 1, sizes), dtype)]
    if how.pop("zero", True):
        stored.append(b.store(b.rng.integers(low // 2, 3, sizes), kind))
    weight = b.node("DequantizeLinear", *stored, **how)
    x = b.input("N", 6) if dtype == np.float32 else b.node("Cast", b.input("N", 6), to=TensorProto.FLOAT16)
    return b.done(b.node("Cast", b.node("MatMul", x, weight), to=TensorProto.FLOAT), rank=2)


def as_read(proto: ModelProto) -> Array:
    """Let onnxruntime give the matrix: what it makes of unit vectors."""
    return np.asarray(answers(proto, x=np.eye(6, dtype=np.float32))[0])


def close_to(found: Array, expected: Array) -> None:
    """Compare what onnxruntime may compute in single precision where halves are stored."""
    np.testing.assert_allclose(found, expected, 1e-3, 1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_whole_numbers_are_read_as_the_floats_that_they_stand_for(way: str) -> None:
    proto = dequantised(way)
    close_to(value(Numbers(proto, Path()), place(proto, "MatMul", 1)), as_read(proto))


@pytest.mark.parametrize("way", WAYS)
def test_floats_are_stored_as_the_whole_numbers_nearest_to_them(way: str) -> None:
    proto = dequantised(way)
    numbers, weight = Numbers(proto, Path()), place(proto, "MatMul", 1)
    before = value(numbers, weight)
    wanted = before + np.random.default_rng(0).uniform(-0.5, 0.5, before.shape).astype(before.dtype)
    numbers.set(weight, wanted)
    found = as_read(numbers.proto)
    close_to(found, value(numbers, weight))
    assert not np.array_equal(found, before)
    for step in (-1, 1):
        other = ModelProto.FromString(numbers.proto.SerializeToString())
        stored = other.graph.initializer[0]
        whole = numpy_helper.to_array(stored)
        stored.CopyFrom(numpy_helper.from_array((whole.astype(int) + step).astype(whole.dtype), stored.name))
        assert (np.abs(found - wanted) <= np.abs(as_read(other) - wanted) + 5e-3).all()
    kinds = [(t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer]
    assert [(t.name, t.data_type, list(t.dims)) for t in numbers.proto.graph.initializer] == kinds
    numbers.set(weight, before)
    assert numbers.proto == proto


def test_what_the_type_cannot_hold_becomes_what_is_next_to_it() -> None:
    proto = dequantised("one step")
    numbers, weight = Numbers(proto, Path()), place(proto, "MatMul", 1)
    numbers.set(weight, np.where(np.arange(8) % 2, 1e6, -1e6) * np.ones((6, 1)))
    whole = numpy_helper.to_array(numbers.proto.graph.initializer[0])
    assert (whole == np.where(np.arange(8) % 2, 127, -128)).all()
