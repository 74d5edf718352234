"""Rows times the weight, plus the bias, are what onnxruntime answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Array, Builder
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.linear import Linear, linear
from onnxprune.model import analyse
from onnxprune.patches import Patches, patches

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True, database=None)
TOLERANCE = 1e-4


def answer(proto: ModelProto, x: Array) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"x": x})[0]
    return result


def only_layer(proto: ModelProto) -> tuple[Channels, Linear, Patches]:
    channels = find_channels(analyse(proto, Path(), runtime.evaluate, {}))
    index = next(i for i, node in enumerate(channels.model.graph.nodes) if linear(channels, i) is not None)
    layer = linear(channels, index)
    assert layer is not None
    return channels, layer, patches(channels.view(index))


def check(proto: ModelProto, x: Array, wanted: int = 7, seed: int = 0) -> Patches:
    """Compute what a layer answers at some places from its rows, and compare."""
    y = answer(proto, x)
    channels, layer, how = only_layer(proto)
    places = how.places(y, wanted, np.random.default_rng(seed))
    groups, outputs = layer.y.shape
    rows = how.rows(x, y.shape[2:], places, groups)
    weight = layer.weight.reshape(groups, outputs, -1)
    assert layer.bias is not None
    found = layer.scale * np.einsum("gri,goi->gro", rows, weight) + layer.bias[:, None, :]

    if how.is_convolution:
        positions = list(np.ndindex(*y.shape[2:]))
        expected = [y[(sample, slice(None), *positions[place])] for sample in range(len(y)) for place in places]
    else:
        positions = list(np.ndindex(*y.shape[:-1]))
        expected = [y[positions[place]] for place in places]
    assert found.shape == (groups, len(expected), outputs)
    whole = np.concatenate(list(found), axis=1)  # the outputs of a group stand together
    np.testing.assert_allclose(whole, np.stack(expected), rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(np.concatenate(list(how.targets(y, places, groups)), axis=1), np.stack(expected))

    stored = channels.model.array(channels.model.graph.nodes[layer.index].inputs[1].name)
    np.testing.assert_array_equal(layer.layout(layer.weight, stored.shape), stored)
    return how


def convolution(
    op: str, x: Array, inputs: int, outputs: int, kernel: tuple[int, ...], *, bias: bool = True, **attributes: Any
) -> ModelProto:
    """One Conv or ConvTranspose of an input whose spatial sizes are known."""
    b = Builder()
    name = b.input("N", *x.shape[1:])
    groups = attributes.get("group", 1)
    shape = (outputs, inputs // groups) if op == "Conv" else (inputs, outputs // groups)
    weight = b.weight(*shape, *kernel, fan_in=3)
    y = b.node(op, name, weight, *([b.vector(outputs)] if bias else []), **attributes)
    return b.done(y, rank=x.ndim)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@st.composite
def convolutions(draw: st.DrawFn, op: str) -> tuple[ModelProto, Array, int]:
    rank = draw(st.integers(1, 3))
    few = st.integers(1, 3)
    groups, depth, width = (draw(st.sampled_from(sizes)) for sizes in ((1, 2, 5), (1, 2, 3), (1, 2, 3)))
    kernel = tuple(draw(few) for _ in range(rank))
    strides = [draw(few) for _ in range(rank)]
    padding = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    dilations = [draw(few) for _ in range(rank)]
    if op == "Conv" and padding.startswith("SAME"):
        dilations = [1] * rank  # onnxruntime has no other
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    sizes = [r + draw(st.integers(1, 4)) for r in reach]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups}
    if padding != "NOTSET":
        attributes["auto_pad"] = padding
    elif draw(st.booleans()):
        most = [(r if op == "ConvTranspose" else 2) for r in reach]
        attributes["pads"] = [draw(st.integers(0, m)) for m in most] + [draw(st.integers(0, m)) for m in most]
        if op == "ConvTranspose":  # something has to be left
            lost = [a + b for a, b in zip(attributes["pads"][:rank], attributes["pads"][rank:], strict=True)]
            sizes = [max(size, -(-gone // s) + 1) for size, gone, s in zip(sizes, lost, strides, strict=True)]
    if op == "ConvTranspose" and draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    if op == "ConvTranspose" and "pads" not in attributes and draw(st.booleans()):
        whole = [(size - 1) * s + r + 1 for size, s, r in zip(sizes, strides, reach, strict=True)]
        attributes["output_shape"] = [draw(st.integers(max(1, size - 4), size)) for size in whole]
    for name in draw(st.sets(st.sampled_from(["strides", "dilations", "group"]))):
        if set(np.atleast_1d(attributes[name])) == {1}:
            del attributes[name]
    x = numbers(draw(st.integers(1, 3)), groups * depth, *sizes)
    proto = convolution(op, x, groups * depth, groups * width, kernel, bias=draw(st.booleans()), **attributes)
    return proto, x, draw(st.integers(1, 60))


@EXAMPLES
@given(convolutions("Conv"))
def test_a_convolution_gives_its_rows(drawn: tuple[ModelProto, Array, int]) -> None:
    check(*drawn)


@EXAMPLES
@given(convolutions("ConvTranspose"))
def test_a_transposed_convolution_gives_its_rows(drawn: tuple[ModelProto, Array, int]) -> None:
    check(*drawn)


@EXAMPLES
@given(st.data())
def test_a_gemm_gives_its_rows(data: st.DataObject) -> None:
    rows, inputs, outputs = (data.draw(st.integers(1, 9)) for _ in range(3))
    turned = data.draw(st.booleans())
    b = Builder()
    weight = b.weight(*((outputs, inputs) if turned else (inputs, outputs)), fan_in=3)
    bias = data.draw(st.sampled_from([(), (1,), (outputs,), (1, outputs), None]))
    attributes = {"transB": int(turned), "alpha": data.draw(st.sampled_from([1.0, -0.7]))}
    if bias is not None:
        attributes["beta"] = data.draw(st.sampled_from([1.0, 1.6]))
    y = b.node("Gemm", b.input("N", inputs), weight, *([] if bias is None else [b.vector(*bias)]), **attributes)
    check(b.done(y, rank=2), numbers(rows, inputs), wanted=data.draw(st.integers(1, 12)))


@EXAMPLES
@given(st.lists(st.integers(1, 4), min_size=0, max_size=3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 40))
def test_a_product_of_any_rank_gives_its_rows(front: list[int], inputs: int, outputs: int, wanted: int) -> None:
    b = Builder()
    y = b.node("MatMul", b.input(*front, inputs), b.weight(inputs, outputs, fan_in=3))
    check(b.done(y, rank=len(front) + 1), numbers(*front, inputs), wanted)


def test_a_convolution_of_each_channel_gives_its_rows() -> None:
    x = numbers(2, 6, 7, 5)
    check(convolution("Conv", x, 6, 12, (3, 3), group=6, pads=[1, 0, 2, 1], strides=[2, 1]), x, wanted=20)
    check(convolution("ConvTranspose", x, 6, 12, (3, 3), group=6, pads=[1, 0, 2, 1], strides=[2, 1]), x, wanted=20)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
@pytest.mark.parametrize("added", [0, 1, 2])
def test_what_a_transposed_convolution_adds_moves_its_automatic_pads(padding: str, kernel: int, added: int) -> None:
    x = numbers(2, 3, 5)
    attributes: dict[str, Any] = {"strides": [3], "output_padding": [added], "auto_pad": padding}
    check(convolution("ConvTranspose", x, 3, 2, (kernel,), **attributes), x, wanted=99)


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("size", [9, 10, 11, 12, 13])
@pytest.mark.parametrize("added", [0, 1])
def test_a_transposed_convolution_of_a_given_size_gives_its_rows(padding: str, size: int, added: int) -> None:
    x = numbers(2, 3, 4, 5)
    attributes = {"strides": [3, 2], "output_padding": [added, 0], "output_shape": [size, size], "auto_pad": padding}
    check(convolution("ConvTranspose", x, 3, 2, (4, 5), **attributes), x, wanted=999)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_rows_are_of_the_type_of_the_input(dtype: Any) -> None:
    b = Builder(dtype=dtype)
    proto = b.done(b.node("MatMul", b.input("N", 5), b.weight(5, 3)), rank=2)
    _, layer, how = only_layer(proto)
    x = numbers(4, 5).astype(dtype)
    rows = how.rows(x, (), np.arange(4), 1)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows[0], x)
    assert layer.layout(layer.weight, (5, 3)).dtype == dtype


# ---------------------------------------------------------------------------------------------------- places


def test_places_are_distinct_and_chosen_at_random() -> None:
    how = Patches(is_convolution=True)
    places = how.places((4, 3, 20, 30), 400, np.random.default_rng(0))
    assert len(places) == 100  # of each of four samples
    assert len(set(places)) == 100
    assert (np.diff(places) > 0).all()
    assert places.min() >= 0
    assert places.max() < 600
    assert places.max() - places.min() > 500
    other = how.places((4, 3, 20, 30), 400, np.random.default_rng(1))
    assert set(other) != set(places)
    np.testing.assert_array_equal(places, how.places((4, 3, 20, 30), 400, np.random.default_rng(0)))


def test_places_of_a_product_are_rows_of_the_whole_batch() -> None:
    how = Patches(is_convolution=False)
    places = how.places((4, 50, 3), 120, np.random.default_rng(0))
    assert len(set(places)) == 120
    assert places.max() < 200
    assert places.max() > 150


@pytest.mark.parametrize("wanted", [1, 5, 6, 7, 1000])
def test_there_are_as_many_places_as_wanted_and_no_more_than_there_are(wanted: int) -> None:
    rng = np.random.default_rng(0)
    for samples in (1, 2, 3):
        per_sample = len(Patches(is_convolution=True).places((samples, 3, 2, 3), wanted, rng))
        assert per_sample == min(-(-wanted // samples), 6)
    assert len(Patches(is_convolution=False).places((2, 3, 9), wanted, rng)) == min(wanted, 6)


def test_all_places_are_in_order() -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(Patches(is_convolution=True).places((4, 3, 6), 99, rng), np.arange(6))
    np.testing.assert_array_equal(Patches(is_convolution=False).places((4, 3, 6), 99, rng), np.arange(12))


def test_an_array_has_the_places_of_its_shape() -> None:
    y = numbers(2, 3, 4, 5)
    for how in (Patches(is_convolution=True), Patches(is_convolution=False)):
        found = how.places(y, 9, np.random.default_rng(3))
        np.testing.assert_array_equal(found, how.places(y.shape, 9, np.random.default_rng(3)))


def test_an_output_without_positions_has_no_rows() -> None:
    rng = np.random.default_rng(0)
    product = Patches(is_convolution=False)
    none = product.places((0, 3), 9, rng)
    assert product.rows(np.zeros((0, 5), np.float32), (), none, 1).shape == (1, 0, 5)
    assert product.targets(np.zeros((0, 3), np.float32), none, 1).shape == (1, 0, 3)
    conv = Patches(is_convolution=True, kernel=(3,), strides=(1,), dilations=(1,), pads=((0, 0),))
    none = conv.places((2, 4, 0), 9, rng)
    assert conv.rows(np.zeros((2, 4, 2), np.float32), (0,), none, 2).shape == (2, 0, 6)
    assert conv.targets(np.zeros((2, 4, 0), np.float32), none, 2).shape == (2, 0, 2)
