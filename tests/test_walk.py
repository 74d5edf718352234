"""What a walk taps is what the whole model makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, Array, Builder
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper
from test_properties import networks

from onnxprune import runtime
from onnxprune.numbers import Numbers
from onnxprune.walk import Walk

TOLERANCE = 1e-4
SIZES = (2, 1, 2)  # of the batches


def made(proto: ModelProto) -> list[str]:
    """Names of the tensors that nodes make."""
    return [name for node in proto.graph.node for name in node.output if name]


def plain(proto: ModelProto, names: list[str], feeds: list[dict[str, Array]], folder: Path) -> list[dict[str, Any]]:
    """Run the whole model with further outputs."""
    whole = ModelProto()
    whole.CopyFrom(proto)
    del whole.graph.output[:]
    whole.graph.output.extend(ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if any(t.data_location == TensorProto.EXTERNAL for t in whole.graph.initializer):
        onnx.save(whole, folder / "whole.onnx")
        session = ort.InferenceSession(str(folder / "whole.onnx"), options, providers=["CPUExecutionProvider"])
    else:
        session = ort.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds]


def batches(proto: ModelProto, seed: int = 0) -> list[dict[str, Array]]:
    """Inputs, batch by batch; free first axes are as long as `SIZES` say."""
    rng = np.random.default_rng(seed)
    stored = {t.name for t in proto.graph.initializer}
    feeds = []
    for size in SIZES:
        feed = {}
        for value in proto.graph.input:
            if value.name in stored:
                continue
            dims = value.type.tensor_type.shape.dim
            shape = [d.dim_value if d.HasField("dim_value") else size for d in dims]
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feed[value.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
        feeds.append(feed)
    return feeds


def same(found: Iterator[Mapping[str, Any]], expected: list[dict[str, Any]], names: list[str]) -> None:
    found_all = list(found)
    assert len(found_all) == len(expected)
    for one, other in zip(found_all, expected, strict=True):
        assert set(one) == set(names)
        for name in names:
            assert np.asarray(one[name]).dtype == np.asarray(other[name]).dtype, name
            np.testing.assert_allclose(one[name], other[name], TOLERANCE, TOLERANCE, err_msg=name)


def check(proto: ModelProto, places: list[int], folder: Path = Path(), limit: int = 10**9, seed: int = 0) -> Walk:
    """Tap all tensors, alone and together, at some places on the way."""
    feeds = batches(proto, seed)
    names = made(proto)
    expected = plain(proto, names, feeds, folder)
    before = proto.SerializeToString()
    walk = Walk(proto, folder, lambda: iter(feeds), limit=limit, threads=1)
    for place in [0, *places]:
        walk.advance(place)
        for name in names[place % 5 :: 5]:
            same(walk.taps([name]), expected, [name])
        same(walk.taps(names), expected, names)
        same(walk.taps([*walk.live(place), names[-1]]), with_feeds(expected, feeds), [*walk.live(place), names[-1]])
    assert proto.SerializeToString() == before
    return walk


def with_feeds(expected: list[dict[str, Any]], feeds: list[dict[str, Array]]) -> list[dict[str, Any]]:
    return [{**one, **feed} for one, feed in zip(expected, feeds, strict=True)]


def residual_net(**options: Any) -> ModelProto:
    """Two inputs, a residual, two branches, a tensor that is both an output and read on, and one nobody reads on."""
    b = Builder(**options)
    x = b.stem(8)
    y = b.relu(b.conv(x, 8, 8, 3, 3, pads=[1] * 4))
    x = b.relu(b.node("Add", x, b.norm(b.conv(y, 8, 8), 8)))
    left, right = b.conv(x, 8, 4), b.node("Sigmoid", b.conv(x, 8, 4))
    side = b.input("N", 4, 6, 6)
    z = b.node("Add", b.node("Mul", left, right), side)
    return b.done(b.node("Identity", z), left, b.head(z, 4), b.conv(y, 8, 3))


EVERYWHERE = list(range(25))


@pytest.mark.parametrize("limit", [10**9, 1, 5_000])
@pytest.mark.parametrize("places", [EVERYWHERE, [7], [3, 9, 10], [10, 3], [99]])
def test_taps_of_branches_and_residuals_are_those_of_the_whole_model(limit: int, places: list[int]) -> None:
    check(residual_net(), places, limit=limit)


def test_constants_are_part_of_every_piece() -> None:
    b = Builder()
    b.stored_as = b.constant
    check(b.done(b.head(b.norm(b.stem(6), 6), 6)), EVERYWHERE)


def test_older_models_list_their_weights_as_inputs() -> None:
    proto = residual_net(opset=8, ir_version=3)
    assert len(proto.graph.input) > 2
    check(proto, EVERYWHERE)


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    proto = residual_net()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    outside = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert all(t.data_location == TensorProto.EXTERNAL for t in outside.graph.initializer)
    check(outside, [4, 8], tmp_path)


def branching(body_reads_stored: bool = True) -> ModelProto:
    """An If whose bodies use an activation, a stored tensor and an Identity of it from outside."""
    b = Builder()
    x = b.stem(4)
    scale = b.vector(4, 1, 1)
    alias = b.node("Identity", scale)
    choice = b.node("Greater", b.node("ReduceMean", x, keepdims=0), b.store(0.3))
    y = b.conv(x, 4, 4)

    def body(name: str, op: str, other: str) -> onnx.GraphProto:
        inner = helper.make_node(op, [y, other], [f"{name}_inner"])
        own = helper.make_node("Add", [f"{name}_inner", f"{name}_own"], [f"{name}_out"])
        stored = numpy_helper.from_array(np.ones(1, np.float32), f"{name}_own")
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([inner, own], name, [], [out], [stored])

    z = b.node("If", choice, then_branch=body("then", "Mul", scale), else_branch=body("else", "Add", alias))
    return b.done(b.conv(b.relu(z), 4, 3))


def test_what_bodies_use_from_outside_comes_along() -> None:
    check(branching(), EVERYWHERE)


def test_a_sequence_is_not_held_but_what_comes_of_it_is_right() -> None:
    b = Builder()
    x = b.stem(4)
    sequence = b.node("SequenceConstruct", x, b.relu(x))
    y = b.conv(b.node("SequenceAt", sequence, b.store(1, np.int64)), 4, 4)
    proto = b.done(y)
    feeds = batches(proto)
    expected = plain(proto, [y], feeds, Path())
    walk = Walk(proto, Path(), lambda: iter(feeds), threads=1)
    for place in range(len(proto.graph.node) + 1):
        walk.advance(place)
        same(walk.taps([y]), expected, [y])
    assert walk.place > 0


def test_whole_numbers_booleans_and_scalars_are_held_as_they_are() -> None:
    b = Builder()
    x = b.stem(4)
    large = b.node("Greater", x, b.store(0.5))
    count = b.node("ReduceSum", b.node("Cast", large, to=TensorProto.INT64), keepdims=0)
    scaled = b.node("Where", large, x, b.node("Cast", count, to=TensorProto.FLOAT))
    walk = check(b.done(b.conv(scaled, 4, 3)), EVERYWHERE)
    assert walk.place > 0


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_every_precision_is_held_as_it_is(dtype: Any) -> None:
    b = Builder(dtype=dtype)
    y = b.relu(b.node("MatMul", b.input("N", 5), b.weight(5, 6)))
    proto = b.done(b.node("MatMul", y, b.weight(6, 3)), rank=2)
    for value in proto.graph.output:
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    walk = Walk(proto, Path(), lambda: iter(batches(proto)), threads=1)
    expected = [batch[y] for batch in walk.taps([y])]
    walk.advance(2)
    assert walk.place == 2
    assert [batch[y].dtype for batch in walk.taps([y])] == [np.dtype(dtype)] * 3
    for one, other in zip(walk.taps([y]), expected, strict=True):
        np.testing.assert_array_equal(one[y], other)
    assert len(list(walk.taps([proto.graph.output[0].name]))) == 3


NAMES = ["generator", "windowed_attention", "vision_transformer", "resize_to_another_map", "linear_attention"]


@pytest.mark.parametrize("name", NAMES)
def test_shape_arithmetic_and_attention_are_walked_through(name: str) -> None:
    check(NETS[name].build(), [5, 11, 19, 30, 44])


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(networks(), st.lists(st.integers(0, 25), max_size=2), st.sampled_from([10**9, 20_000]))
def test_random_networks_are_walked_through(proto: ModelProto, places: list[int], limit: int) -> None:
    check(proto, places, limit=limit)


# --------------------------------------------------------------------------------------- what runs, and how often


def counted(feeds: list[dict[str, Array]]) -> tuple[Callable[[], Iterator[dict[str, Array]]], list[int]]:
    runs = [0]

    def give() -> Iterator[dict[str, Array]]:
        runs[0] += 1
        yield from feeds

    return give, runs


def test_what_is_held_needs_no_inputs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = residual_net()
    give, runs = counted(batches(proto))
    walk = Walk(proto, Path(), give, threads=1)
    pieces: list[ModelProto] = []
    real = runtime.Session

    def session(model: ModelProto, **options: Any) -> Any:
        assert options["threads"] == 1
        pieces.append(model)
        return real(model, **options)

    monkeypatch.setattr(runtime, "Session", session)
    walk.advance(4)
    assert (walk.place, runs[0]) == (4, 1)
    walk.advance(8)
    list(walk.taps([proto.graph.node[10].output[0]]))
    assert (walk.place, runs[0]) == (8, 1)
    assert len(pieces) == 3
    assert len(pieces[1].graph.node) <= 4
    list(walk.taps(sorted(walk.live(8))))  # is there already
    assert len(pieces) == 3
    assert {value.name for value in pieces[2].graph.input} <= walk.live(8)


def test_where_too_much_would_be_held_the_inputs_run_again() -> None:
    proto = residual_net()
    give, runs = counted(batches(proto))
    walk = Walk(proto, Path(), give, limit=100, threads=1)
    walk.advance(8)
    assert walk.place == 0
    walk.advance(9)
    assert runs[0] == 2


def test_a_walk_goes_forward_only() -> None:
    proto = residual_net()
    walk = Walk(proto, Path(), lambda: iter(batches(proto)), threads=1)
    walk.advance(8)
    walk.advance(4)
    assert walk.place == 8


def test_what_is_live_is_what_later_nodes_need() -> None:
    proto = residual_net()
    nodes = list(proto.graph.node)
    for place in range(len(nodes) + 1):
        early = {name for node in nodes[:place] for name in node.output} | {"x", "x1"}
        later = {name for node in nodes[place:] for name in node.input}
        walk = Walk(proto, Path(), lambda: iter(()), threads=1)
        assert walk.live(place) == early & later


def test_nothing_is_held_of_no_samples() -> None:
    proto = residual_net()
    walk = Walk(proto, Path(), lambda: iter(()), threads=1)
    walk.advance(5)
    assert list(walk.taps([made(proto)[-1]])) == []


def test_a_tensor_may_be_asked_for_twice() -> None:
    proto = residual_net()
    name, feeds = made(proto)[6], batches(proto)
    walk = Walk(proto, Path(), lambda: iter(feeds), threads=1)
    expected = plain(proto, [name], feeds, Path())
    same(walk.taps([name, name]), expected, [name])
    walk.advance(3)
    same(walk.taps([name, name]), expected, [name])


# ------------------------------------------------------------------------------------------- weights that change


def test_weights_are_read_when_a_piece_is_built() -> None:
    proto = residual_net()
    feeds = batches(proto)
    walk = Walk(proto, Path(), lambda: iter(feeds), threads=1)
    for place in (2, 4, 8):
        walk.advance(place)
        index = next(i for i in range(place, 99) if proto.graph.node[i].op_type == "Conv")
        name = proto.graph.node[index].input[1]
        weight = next(t for t in proto.graph.initializer if t.name == name)
        values = numpy_helper.to_array(weight)
        before = [batch[made(proto)[index]] for batch in walk.taps([made(proto)[index]])]
        weight.CopyFrom(numpy_helper.from_array(values * -0.7, name))
        names = made(proto)[index:]
        same(walk.taps(names), plain(proto, names, feeds, Path()), names)
        after = [batch[made(proto)[index]] for batch in walk.taps([made(proto)[index]])]
        assert np.abs(before[0] - after[0]).max() > 0.01


def test_numbers_that_come_under_new_names_are_read() -> None:
    b = Builder()
    shared = b.weight(6, 6)
    x = b.relu(b.node("MatMul", b.input("N", 6), shared))
    proto = b.done(b.node("Gemm", b.relu(b.node("MatMul", x, shared)), shared), rank=2)
    numbers = Numbers(proto, Path())
    feeds = batches(proto)
    walk = Walk(numbers.proto, Path(), lambda: iter(feeds), threads=1)
    walk.advance(2)
    old = numbers.get((2, 1))
    assert old is not None
    numbers.set((2, 1), 2 * old)
    numbers.set((4, 2), np.full(6, 3, np.float32))
    assert len(numbers.added) == 2
    names = made(proto)
    for place in (2, 3, 4):
        walk.advance(place)
        same(walk.taps(names), plain(numbers.proto, names, feeds, Path()), names)
