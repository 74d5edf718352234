"""Which layers can be fitted again, and what becomes of their outputs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from nets import NETS, Array, Builder
from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from oracle import random_feeds, run_model
from test_properties import networks

from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.model import analyse
from onnxprune.numbers import Numbers
from onnxprune.readers import Reader, find_readers

TOLERANCE = 1e-3


def channels_of(proto: ModelProto) -> Channels:
    return find_channels(analyse(proto, Path(), runtime.evaluate, {}))


def readers_of(proto: ModelProto) -> list[Reader]:
    return find_readers(channels_of(proto))


def only(proto: ModelProto) -> Reader:
    (found,) = readers_of(proto)
    return found


def tapped(proto: ModelProto, names: list[str], feed: dict[str, Array]) -> dict[str, Array]:
    whole = ModelProto()
    whole.CopyFrom(proto)
    del whole.graph.output[:]
    whole.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return dict(zip(dict.fromkeys(names), run_model(whole, feed), strict=True))


def is_convolution(proto: ModelProto, reader: Reader) -> bool:
    return proto.graph.node[reader.layer.index].op_type in ("Conv", "ConvTranspose")


def along(values: Array, y: Array, convolution: bool) -> Array:
    """Bring one number for each output to the axis of the outputs."""
    return values.reshape(-1, *[1] * (y.ndim - 2)) if convolution else values


def moved(proto: ModelProto, name: str, shift: Array) -> ModelProto:
    """Add something to a tensor before anyone reads it."""
    other = ModelProto()
    other.CopyFrom(proto)
    index = next(i for i, node in enumerate(proto.graph.node) if name in node.output)
    node = other.graph.node[index]
    node.output[list(node.output).index(name)] = "before_the_shift"
    other.graph.initializer.append(onnx.numpy_helper.from_array(shift, "the_shift"))
    other.graph.node.insert(index + 1, helper.make_node("Add", ["before_the_shift", "the_shift"], [name]))
    if other.ir_version < 4:
        kind = helper.np_dtype_to_tensor_dtype(shift.dtype)
        other.graph.input.append(helper.make_tensor_value_info("the_shift", kind, shift.shape))
    return other


def check(proto: ModelProto, reader: Reader, feed: dict[str, Array]) -> None:
    """Move a layer's output and its bias, and see what that does to the landing; compare its rows with its output."""
    landing, layer, how = reader.landing, reader.layer, reader.patches
    node = proto.graph.node[layer.index]
    assert (reader.x, reader.y) == (node.input[0], node.output[0])
    partner = [] if landing.partner is None else [landing.partner]
    inputs = set(feed)
    before = tapped(proto, [n for n in [reader.x, reader.y, landing.tensor, *partner] if n not in inputs], feed) | feed
    y, there = before[reader.y], before[landing.tensor]
    convolution = is_convolution(proto, reader)
    limit = TOLERANCE if y.dtype != np.float16 else 0.03
    unit = float(np.abs(there).max(initial=1)) if np.isfinite(there).all() else 0.0
    if not unit:
        return

    rng = np.random.default_rng(0)
    delta = rng.uniform(0.5, 1.5, layer.y.size).astype(y.dtype)
    after = tapped(moved(proto, reader.y, along(delta, y, convolution)), [landing.tensor], feed)[landing.tensor]
    expected = there + along((delta * landing.gain).astype(y.dtype), y, convolution)
    np.testing.assert_allclose(after, expected, limit, limit * unit, err_msg=f"{node.name} gain")
    if landing.tensor != reader.y or landing.bias is not None:
        assert after.shape == y.shape

    if landing.bias is not None:
        numbers = Numbers(proto, Path())
        old = numbers.get(landing.bias)
        assert old is not None
        beta = layer.beta if landing.bias[0] == layer.index else 1
        added = (delta * landing.bias_gain / beta).reshape(old.shape)
        numbers.set(landing.bias, (old + added).astype(old.dtype))
        biased = tapped(numbers.proto, [landing.tensor], feed)[landing.tensor]
        reached = landing.bias[0] == layer.index or landing.tensor in made_from(proto, landing.bias[0])
        np.testing.assert_allclose(biased, expected if reached else there, limit, limit * unit, err_msg=node.name)

    if landing.partner is not None:
        assert before[landing.partner].shape == y.shape
        add = next(n for n in proto.graph.node if landing.tensor in n.output)
        assert add.op_type == "Add"
        own = next(name for name in add.input if name != landing.partner)
        gained = tapped(proto, [own], feed)[own]
        np.testing.assert_allclose(there, gained + before[landing.partner], limit, limit * unit)

    places = how.places(y, 30, rng)
    rows = how.rows(before[reader.x], y.shape[2:], places, len(layer.x))
    weight = layer.weight.reshape(len(layer.x), layer.y.shape[1], -1)
    if layer.bias is not None and y.size:
        found = layer.scale * np.einsum("gri,goi->gro", rows, weight, dtype=np.float64) + layer.bias[:, None]
        most = float(np.abs(y).max(initial=1))
        np.testing.assert_allclose(found, how.targets(y, places, len(layer.x)), limit, limit * most, err_msg=node.name)


def made_from(proto: ModelProto, index: int) -> set[str]:
    """Names of what follows from a node, itself included."""
    names = set(proto.graph.node[index].output)
    for node in list(proto.graph.node)[index + 1 :]:
        if names & set(node.input):
            names |= set(node.output)
    return names


def check_all(proto: ModelProto) -> list[Reader]:
    channels = channels_of(proto)
    found = find_readers(channels)
    indices = [reader.layer.index for reader in found]
    assert indices == sorted(set(indices))
    for feed in random_feeds(proto, channels.model.bound, 0)[:1]:
        for reader in found:
            check(proto, reader, feed)
    return found


@pytest.mark.parametrize("name", NETS)
def test_the_layers_of_every_net_land_where_they_say(name: str) -> None:
    check_all(NETS[name].build())


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(networks())
def test_the_layers_of_random_networks_land_where_they_say(proto: ModelProto) -> None:
    check_all(proto)


def test_most_nets_have_layers_that_can_be_fitted_again() -> None:
    found = [len(readers_of(NETS[name].build())) for name in list(NETS)[::4]]
    assert sum(count > 0 for count in found) > len(found) // 2


# ------------------------------------------------------------------------------------------- which layers


def test_a_weight_that_two_layers_share_is_left_out() -> None:
    b = Builder()
    shared = b.weight(8, 8)
    x = b.relu(b.node("MatMul", b.input("N", 8), shared))
    own = b.node("MatMul", x, b.weight(8, 8))
    proto = b.done(b.node("MatMul", b.relu(own), b.node("Identity", shared)), rank=2)
    assert [reader.y for reader in check_all(proto)] == [own]


def test_a_weight_that_a_body_reads_is_left_out() -> None:
    b = Builder()
    shared = b.weight(8, 8)
    x = b.relu(b.node("MatMul", b.input("N", 8), shared))
    inner = helper.make_graph(
        [helper.make_node("MatMul", [x, shared], ["inner"])], "b", [], [helper.make_tensor_value_info("inner", 1, None)]
    )
    y = b.node("If", b.store(True, np.bool_), then_branch=inner, else_branch=inner)
    last = b.node("MatMul", y, b.weight(8, 4))
    proto = b.done(last, rank=2)
    assert [reader.y for reader in readers_of(proto)] in ([last], [])


def test_a_weight_whose_size_is_looked_at_is_no_shared_one() -> None:
    found = check_all(NETS["size_of_an_alias"].build())
    assert len(found) == 2


def test_an_alias_of_its_own_shares_no_weight() -> None:
    b = Builder()
    weight = b.node("Identity", b.node("Identity", b.weight(6, 8)))
    assert len(check_all(b.done(b.node("MatMul", b.input("N", 6), weight), rank=2))) == 1


@pytest.mark.parametrize(
    "kind", ["transA", "computed", "quantised", "dequantised for two", "stored first", "weight first", "stacked"]
)
def test_what_cannot_be_fitted_is_left_out(kind: str) -> None:
    b = Builder()
    x = b.input(6, 5)
    if kind == "transA":
        y = b.node("Gemm", x, b.weight(6, 8), transA=1)
    elif kind == "computed":
        y = b.node("MatMul", x, b.node("Tanh", b.weight(5, 8)))
    elif kind == "quantised":
        steps = b.store(0.1), b.store(0, np.int8)
        numbers = b.store(b.rng.integers(-9, 9, (5, 8)), np.int8)
        y = b.node("MatMulInteger", b.node("QuantizeLinear", x, *steps), numbers)
        y = b.node("Cast", y, to=TensorProto.FLOAT)
    elif kind == "dequantised for two":
        numbers, zero = b.store(b.rng.integers(-9, 9, (5, 5)), np.int8), b.store(0, np.int8)
        weight = b.node("DequantizeLinear", numbers, b.store(0.1), zero)
        y = b.node("MatMul", b.relu(b.node("MatMul", x, weight)), weight)
    elif kind == "stored first":
        y = b.node("Add", b.node("MatMul", b.weight(6, 5), b.weight(5, 8)), b.node("MatMul", x, b.relu(b.weight(5, 8))))
    elif kind == "weight first":
        y = b.node("MatMul", b.weight(8, 6), x)
    else:
        y = b.node("MatMul", x, b.weight(2, 5, 8))
    assert readers_of(b.done(y, rank=3 if kind == "stacked" else 2)) == []


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_a_weight_and_a_bias_of_whole_numbers_are_what_they_stand_for(op: str) -> None:
    b = Builder()
    x, sizes = (b.stem(6), (8, 6, 3, 3)) if op == "Conv" else (b.relu(b.linear(b.input("N", 5), 5, 6)), (6, 8))
    zeros = b.store(b.rng.integers(-9, 9, 8), np.int8)
    numbers = b.store(b.rng.integers(-99, 99, sizes), np.int8)
    weight = b.node("DequantizeLinear", numbers, b.positive(8), zeros, axis=0 if op == "Conv" else 1)
    bias = b.node("DequantizeLinear", b.store(b.rng.integers(-999, 999, 8), np.int32), b.store(0.01))
    y = b.node("Add", b.node(op, x, weight), bias) if op == "MatMul" else b.node(op, x, weight, bias)
    reader = check_all(b.done(y, rank=4 if op == "Conv" else 2))[-1]
    assert reader.is_centred
    assert np.abs(reader.layer.weight).max() > 1


def test_layers_that_read_the_same_rows_have_one_key() -> None:
    b = Builder()
    x = b.stem(8)
    sizes: list[dict[str, Any]] = [{}, {}, {"strides": [2, 2]}, {"group": 2}, {"pads": [1] * 4}]
    outs = [b.conv(x, 8, 4, 3, 3, **attributes) for attributes in sizes]
    keys = [reader.rows_key for reader in check_all(b.done(*outs, b.conv(b.relu(x), 8, 4, 3, 3)))][1:]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 5


# ------------------------------------------------------------------------------------------------ where they land


def residual(b: Builder, other: str, *, first: bool = False, **attributes: Any) -> tuple[str, str, str]:
    """A convolution with a normalisation, added to another tensor: names of what it makes, and of the sum."""
    y = b.conv(other, 8, 8, 3, 3, pads=[1] * 4, **attributes)
    z = b.norm(y, 8)
    total = b.node("Add", z, other) if first else b.node("Add", other, z)
    return y, z, total


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_lands_in_the_sum_behind_its_normalisation(first: bool, bias: bool) -> None:
    b = Builder()
    x = b.stem(8)
    y, _, total = residual(b, x, first=first, bias=bias)
    proto = b.done(b.head(b.relu(total), 8))
    reader = check_all(proto)[1]
    assert (reader.y, reader.landing.tensor, reader.landing.partner) == (y, total, x)
    index = reader.layer.index
    assert reader.landing.bias == ((index, 2) if bias else (index + 1, 2))
    assert (reader.landing.bias_gain == (1 if bias else reader.landing.gain)).all()
    norm = numbers_of(proto, index + 1)
    np.testing.assert_allclose(reader.landing.gain, norm[0] / np.sqrt(norm[3] + 1e-5), 1e-6)


def numbers_of(proto: ModelProto, index: int) -> list[Array]:
    numbers = Numbers(proto, Path())
    found = [numbers.get((index, position)) for position in range(1, 5)]
    assert all(values is not None for values in found)
    return [values for values in found if values is not None]


def test_two_normalisations_multiply_their_gains() -> None:
    b = Builder()
    z = b.norm(b.norm(b.conv(b.input("N", 3, 5, 5), 3, 8, bias=False), 8), 8)
    reader = only(b.done(z))
    assert reader.landing.bias == (1, 2)
    assert (reader.landing.gain != reader.landing.bias_gain).all()
    check_all(b.done(z))


def test_a_product_lands_in_the_residual_behind_its_bias() -> None:
    b = Builder()
    x = b.relu(b.linear_rows(b.input("N", 5, 6), 6, 8))
    y = b.linear_rows(x, 8, 8)
    total = b.node("Add", x, y)
    reader = check_all(b.done(b.relu(total), rank=3))[1]
    assert (reader.landing.tensor, reader.landing.partner) == (total, x)
    assert reader.landing.bias == (reader.layer.index + 1, 1)
    assert (reader.landing.gain == 1).all()


@pytest.mark.parametrize("turned", [False, True])
def test_a_bias_is_found_on_both_sides_of_the_sum(turned: bool) -> None:
    b = Builder()
    product, bias = b.node("MatMul", b.input("N", 5, 6), b.weight(6, 8)), b.vector(1, 8)
    y = b.node("Add", bias, product) if turned else b.node("Add", product, bias)
    (reader,) = check_all(b.done(y, rank=3))
    assert reader.landing.bias == (1, 0 if turned else 1)
    assert reader.landing.tensor == y


@pytest.mark.parametrize("kind", ["broadcast", "itself", "other shape"])
def test_what_is_no_residual_is_no_partner(kind: str) -> None:
    b = Builder()
    x = b.stem(8)
    y = b.conv(x, 8, 8)
    if kind == "broadcast":
        total = b.node("Add", y, b.node("GlobalAveragePool", x))
    elif kind == "itself":
        total = b.node("Add", y, y)
    else:
        total = b.node("Add", y, b.node("Unsqueeze", x, b.integers(0)))
    reader = check_all(b.done(total, rank=4 if kind != "other shape" else 5))[1]
    assert (reader.landing.tensor, reader.landing.partner) == (y, None)


@pytest.mark.parametrize("kind", ["output", "two readers", "body"])
def test_what_is_read_elsewhere_is_where_a_layer_lands(kind: str) -> None:
    b = Builder()
    x = b.stem(8)
    y, z, total = residual(b, x)
    outputs = [b.conv(b.relu(total), 8, 3)]
    if kind == "output":
        outputs.append(z)
    elif kind == "two readers":
        outputs.append(b.node("Sigmoid", z))
    else:
        out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
        inner = helper.make_graph([helper.make_node("Relu", [z], ["inner"])], "b", [], [out])
        outputs.append(b.node("If", b.store(True, np.bool_), then_branch=inner, else_branch=inner))
    reader = check_all(b.done(*outputs))[1]
    assert (reader.y, reader.landing.tensor, reader.landing.partner) == (y, z, None)


def test_a_layer_that_is_an_output_lands_at_once() -> None:
    b = Builder()
    y = b.conv(b.input("N", 3, 5, 5), 3, 8, bias=False)
    (reader,) = check_all(b.done(b.norm(y, 8), y))
    assert (reader.landing.tensor, reader.landing.bias) == (y, None)
    assert (reader.landing.gain == 1).all()


@pytest.mark.parametrize("shape", [(8, 1, 1), (), (1, 8, 5, 5)])
def test_a_stored_summand_is_passed(shape: tuple[int, ...]) -> None:
    b = Builder()
    x = b.input("N", 8, 5, 5)
    total = b.node("Add", x, b.node("Add", b.vector(*shape), b.conv(x, 8, 8)))
    (reader,) = check_all(b.done(b.relu(total)))
    assert (reader.landing.tensor, reader.landing.partner) == (total, x)


def test_a_sum_that_spreads_a_layer_over_more_positions_stops_it() -> None:
    b = Builder()
    x = b.input(1, 8, 1, 1)
    y = b.conv(x, 8, 8)
    spread = b.node("Add", y, b.vector(1, 8, 5, 5))
    total = b.node("Add", spread, b.relu(spread))
    assert check_all(b.done(total))[0].landing.tensor == y
    b = Builder()
    x = b.input(4, 6)
    y = b.node("MatMul", x, b.weight(6, 8))
    spread = b.node("Add", y, b.vector(3, 4, 8))
    (reader,) = check_all(b.done(b.node("Add", spread, b.relu(b.store(np.ones((3, 4, 8))))), rank=3))
    assert (reader.landing.tensor, reader.landing.partner) == (y, None)


def test_a_normalisation_of_another_axis_stops_a_product() -> None:
    b = Builder()
    y = b.node("MatMul", b.input("N", 8, 6), b.weight(6, 8))  # as many rows as outputs
    (reader,) = check_all(b.done(b.norm(y, 8), rank=3))
    assert (reader.landing.tensor, reader.landing.bias) == (y, None)


def test_a_normalisation_of_rows_is_passed() -> None:
    b = Builder()
    z = b.norm(b.node("MatMul", b.input("N", 6), b.weight(6, 8)), 8)
    (reader,) = check_all(b.done(z, rank=2))
    assert (reader.landing.tensor, reader.landing.bias) == (z, (1, 2))


def test_a_normalisation_that_is_training_stops_a_layer() -> None:
    b = Builder()
    y = b.conv(b.input("N", 8, 5, 5), 8, 8)
    parameters = [b.vector(8), b.vector(8), b.vector(8), b.positive(8)]
    z, *_ = b.nodes_of("BatchNormalization", y, *parameters, outputs=3, training_mode=1)
    (reader,) = readers_of(b.done(z))
    assert reader.landing.tensor == y


@pytest.mark.parametrize("kind", ["training", "every place"])
def test_older_normalisations_say_otherwise_what_stops_a_layer(kind: str) -> None:
    b = Builder(opset=8, ir_version=3)
    y = b.conv(b.input("N", 8, 5, 5), 8, 8)
    shape, outputs = ((8,), 5) if kind == "training" else ((8, 5, 5), 1)
    parameters = [b.vector(*shape), b.vector(*shape), b.vector(*shape), b.positive(*shape)]
    spatial = {} if kind == "training" else {"spatial": 0}
    z, *_ = b.nodes_of("BatchNormalization", y, *parameters, outputs=outputs, **spatial)
    (reader,) = readers_of(b.done(z))
    assert reader.landing.tensor == y


@pytest.mark.parametrize("shape", [(8, 1), (8, 8)])
def test_a_layer_that_adds_a_number_to_each_row_is_none_of_the_readers(shape: tuple[int, ...]) -> None:
    b = Builder()
    y = b.node("Gemm", b.input(8, 6), b.weight(6, 8), b.vector(*shape))
    assert readers_of(b.done(y, rank=2)) == []


def test_a_layer_that_is_multiplied_by_nothing_is_none_of_the_readers() -> None:
    b = Builder()
    y = b.node("Gemm", b.input("N", 6), b.weight(6, 8), b.vector(8), alpha=0.0)
    assert readers_of(b.done(y, rank=2)) == []


def test_a_bias_that_is_multiplied_by_nothing_is_none() -> None:
    b = Builder()
    y = b.node("Gemm", b.input("N", 6), b.weight(6, 8), b.vector(8), beta=0.0)
    (reader,) = check_all(b.done(y, rank=2))
    assert reader.landing.bias is None


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_bias_that_is_not_one_number_for_each_output_is_none(shape: tuple[int, ...]) -> None:
    b = Builder()
    y = b.node("Gemm", b.input(8, 6), b.weight(6, 8), b.vector(*shape))
    (reader,) = check_all(b.done(y, rank=2))
    assert reader.landing.bias is None


def test_a_scaled_bias_is_worth_its_share() -> None:
    b = Builder()
    y = b.node("Gemm", b.input("N", 6), b.weight(6, 8), b.vector(8), beta=0.25, alpha=2.0)
    (reader,) = check_all(b.done(b.relu(y), rank=2))
    assert reader.landing.bias == (0, 2)
    assert reader.layer.beta == 0.25


def test_a_foreign_operator_of_the_same_name_is_not_passed() -> None:
    b = Builder()
    b.domains.append(helper.make_opsetid("own", 1))
    y = b.conv(b.input("N", 8, 5, 5), 8, 8)
    z = b.node("Add", y, b.vector(8, 1, 1), domain="own")
    twice = helper.make_node("Mul", ["p", "q"], ["r"])
    b.functions.append(helper.make_function("own", "Add", ["p", "q"], ["r"], [twice], [helper.make_opsetid("", 17)]))
    (reader,) = check_all(b.done(z))
    assert reader.landing.tensor == y


def test_large_graphs_take_time_in_proportion() -> None:
    def seconds(count: int) -> float:
        b = Builder()
        x = b.input("N", 4)
        for _ in range(count):
            x = b.relu(b.node("MatMul", x, b.weight(4, 4)))
        channels = channels_of(b.done(x, rank=2))
        start = time.process_time()
        assert len(find_readers(channels)) == count
        return time.process_time() - start

    assert seconds(1600) < 10 * max(seconds(400), 0.02)
