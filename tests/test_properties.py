"""Random networks, put together from pieces, under random plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import Builder
from onnx import ModelProto

SIDE = 4


@dataclass(frozen=True)
class Map:
    """A feature map under construction: its name, and how many channels it has."""

    name: str
    channels: int


Piece = Callable[[Builder, Map, int], Map]


def conv(b: Builder, x: Map, size: int) -> Map:
    return Map(b.relu(b.conv(x.name, x.channels, 2 * size, 3, 3, pads=[1] * 4)), 2 * size)


def norm(b: Builder, x: Map, size: int) -> Map:
    return Map(b.relu(b.norm(x.name, x.channels)), x.channels)


def depthwise(b: Builder, x: Map, size: int) -> Map:
    after = x.channels * (1 + size % 2)
    return Map(b.conv(x.name, x.channels, after, 3, 3, pads=[1] * 4, group=x.channels), after)


def grouped(b: Builder, x: Map, size: int) -> Map:
    return Map(b.conv(x.name, x.channels, 2 * size, group=2 if x.channels % 2 == 0 else 1), 2 * size)


def residual(b: Builder, x: Map, size: int) -> Map:
    inner = b.relu(b.conv(x.name, x.channels, size + 1))
    return Map(b.node("Add", x.name, b.conv(inner, size + 1, x.channels)), x.channels)


def dense(b: Builder, x: Map, size: int) -> Map:
    fresh = b.relu(b.conv(x.name, x.channels, size + 1))
    return Map(b.node("Concat", x.name, fresh, axis=1), x.channels + size + 1)


def doubled(b: Builder, x: Map, size: int) -> Map:
    return Map(b.node("Concat", x.name, x.name, axis=1), 2 * x.channels)


def halves(b: Builder, x: Map, size: int) -> Map:
    if x.channels < 4:
        return x
    front = min(size, x.channels - 2)
    one, two = b.nodes_of("Split", x.name, b.integers(front, x.channels - front), outputs=2, axis=1)
    return Map(b.node("Concat", b.node("Tanh", two), one, axis=1), x.channels)


def window(b: Builder, x: Map, size: int) -> Map:
    if x.channels < 6:
        return x
    start, end = size % 3, x.channels - size % 2
    return Map(b.node("Slice", x.name, b.integers(start), b.integers(end), b.integers(1)), end - start)


def padded(b: Builder, x: Map, size: int) -> Map:
    before, after = size % 3, size // 2
    pads = b.integers(0, before, 0, 0, 0, after, 0, 0)
    return Map(b.node("Pad", x.name, pads), before + x.channels + after)


def reordered(b: Builder, x: Map, size: int) -> Map:
    order = np.random.default_rng(size).permutation(x.channels)
    return Map(b.node("Gather", x.name, b.integers(*order), axis=1), x.channels)


def gate(b: Builder, x: Map, size: int) -> Map:
    pooled = b.relu(b.conv(b.node("GlobalAveragePool", x.name), x.channels, size + 1))
    return Map(b.node("Mul", x.name, b.node("Sigmoid", b.conv(pooled, size + 1, x.channels))), x.channels)


def scale(b: Builder, x: Map, size: int) -> Map:
    return Map(b.node("Mul", b.vector(x.channels, 1, 1), x.name), x.channels)


def channels_last(b: Builder, x: Map, size: int) -> Map:
    y = b.node("Transpose", x.name, perm=[0, 2, 3, 1])
    y = b.node("Add", b.node("MatMul", y, b.weight(x.channels, 2 * size, fan_in=x.channels)), b.vector(2 * size))
    return Map(b.relu(b.node("Transpose", y, perm=[0, 3, 1, 2])), 2 * size)


def view(b: Builder, x: Map, size: int) -> Map:
    batch = b.node("Gather", b.node("Shape", x.name), b.integers(0))
    target = b.node("Concat", batch, b.integers(x.channels, SIDE * SIDE), axis=0)
    y = b.relu(b.node("Reshape", x.name, target))
    return Map(b.node("Reshape", y, b.integers(0, -1, SIDE, SIDE)), x.channels)


PIECES: tuple[Piece, ...] = (
    *(conv, conv, norm, depthwise, grouped, residual, residual, dense, doubled, halves),
    *(window, padded, reordered, gate, scale, channels_last, view),
)


def pooled_end(b: Builder, x: Map) -> str:
    return b.head(x.name, x.channels)


def flat_end(b: Builder, x: Map) -> str:
    return b.linear(b.node("Flatten", x.name), SIDE * SIDE * x.channels, 3)


def flat_end_channels_last(b: Builder, x: Map) -> str:
    y = b.node("Transpose", x.name, perm=[0, 2, 3, 1])
    y = b.node("Reshape", y, b.integers(-1, SIDE * SIDE * x.channels))
    return b.node("MatMul", y, b.weight(SIDE * SIDE * x.channels, 3, fan_in=SIDE * SIDE * x.channels))


@st.composite
def networks(draw: st.DrawFn) -> ModelProto:
    """A stem, up to eight pieces, and a head."""
    b = Builder(opset=draw(st.sampled_from([13, 17, 20])), seed=draw(st.integers(0, 99)))
    x = Map(b.stem(8, size=SIDE), 8)
    for piece, size in draw(st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 6)), min_size=1, max_size=8)):
        if x.channels < 60:
            x = piece(b, x, size)
    end = draw(st.sampled_from([pooled_end, flat_end, flat_end_channels_last]))
    return b.done(end(b, x))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(networks(), st.integers(0, 2**32 - 1))
def test_a_random_network_under_a_random_plan_passes_the_oracle(proto: ModelProto, seed: int) -> None:
    oracle.check(proto, seed=seed)


@pytest.mark.slow
@settings(
    max_examples=1000, deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(networks(), st.integers(0, 2**32 - 1))
def test_many_random_networks_under_random_plans_pass_the_oracle(proto: ModelProto, seed: int) -> None:
    oracle.check(proto, seed=seed)
