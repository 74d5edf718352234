"""Random networks, put together from pieces, under random plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nets import MODES, Builder, attend, shuffle
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.channels import find_channels
from onnxprune.criteria import Evidence, importance
from onnxprune.metrics import Costs
from onnxprune.model import analyse
from onnxprune.problem import FINE, Align, Problem
from onnxprune.search.greedy import descend
from onnxprune.search.policy.space import Space
from onnxprune.targets import Target

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
    groups = next((n for n in (size, 2, 3) if x.channels % n == 0), 1)
    return Map(b.conv(x.name, x.channels, groups * size, group=groups), groups * size)


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


def shuffled(b: Builder, x: Map, size: int) -> Map:
    groups = next((n for n in (size, 2, 3) if 1 < n < x.channels and x.channels % n == 0), 0)
    return Map(shuffle(b, x.name, x.channels, groups, SIDE), x.channels) if groups else x


def group_norm(b: Builder, x: Map, size: int) -> Map:
    groups = next((n for n in (size, 2, 3) if x.channels % n == 0), 1)
    y = b.node("Reshape", x.name, b.integers(0, groups, -1))
    y = b.node("InstanceNormalization", y, b.vector(groups), b.vector(groups), epsilon=0.1)
    y = b.node("Reshape", y, b.integers(0, x.channels, SIDE, SIDE))
    return Map(b.node("Add", b.node("Mul", y, b.vector(x.channels, 1, 1)), b.vector(x.channels, 1, 1)), x.channels)


def mean(b: Builder, x: str, axis: int) -> str:
    return b.node("ReduceMean", x, axes=[axis]) if b.opset < 18 else b.node("ReduceMean", x, b.integers(axis))


def channel_norm(b: Builder, x: Map, size: int) -> Map:
    y = b.node("Sub", x.name, mean(b, x.name, 1))
    deviation = b.node("Sqrt", b.node("Add", mean(b, b.node("Mul", y, y), 1), b.store(0.1)))
    return Map(b.node("Mul", b.node("Div", y, deviation), b.vector(x.channels, 1, 1)), x.channels)


def attention(b: Builder, x: Map, size: int) -> Map:
    heads, inside, rows = 1 + size % 3, 2 + size % 2, SIDE * SIDE
    flat = b.node("Transpose", b.node("Reshape", x.name, b.integers(0, x.channels, rows)), perm=[0, 2, 1])
    packed = b.linear_rows(flat, x.channels, 3 * heads * inside)
    packed = b.node("Reshape", packed, b.integers(0, rows, *((3, heads) if size > 3 else (heads, 3)), inside))
    packed = b.node("Transpose", packed, perm=[2, 0, 3, 1, 4] if size > 3 else [3, 0, 2, 1, 4])
    q, k, v = (b.node("Gather", packed, b.store(part, np.int64), axis=0) for part in range(3))
    y = attend(b, q, b.node("Transpose", k, perm=[0, 1, 3, 2]), v)
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1, 3]), b.integers(0, rows, heads * inside))
    y = b.node("Transpose", b.linear_rows(y, heads * inside, x.channels), perm=[0, 2, 1])
    return Map(b.node("Add", x.name, b.node("Reshape", y, b.integers(0, x.channels, SIDE, SIDE))), x.channels)


def products(b: Builder, x: Map, size: int) -> Map:
    """Products of two activations, over channels and over pixels: channels that look at each other."""
    keys, values = (b.node("Reshape", b.conv(x.name, x.channels, size + 1), b.integers(0, 0, -1)) for _ in range(2))
    queries = b.node("Reshape", b.conv(x.name, x.channels, size + 1), b.integers(0, 0, -1))
    if size % 2:
        queries, keys = b.relu(queries), b.node("Sigmoid", keys)
    y = b.node("MatMul", b.node("MatMul", values, b.node("Transpose", keys, perm=[0, 2, 1])), queries)
    y = b.node("Reshape", b.node("Tanh", y), b.integers(0, 0, SIDE, SIDE))
    return Map(b.node("Add", x.name, b.conv(y, size + 1, x.channels)), x.channels)


def mixed(b: Builder, x: Map, size: int) -> Map:
    weight = b.weight(x.channels, 2 * size, fan_in=x.channels)
    return Map(b.node("Einsum", x.name, weight, equation="nchw,cd->ndhw"), 2 * size)


def interleaved(b: Builder, x: Map, size: int) -> Map:
    maps = [b.node("Unsqueeze", y, b.integers(2)) for y in (x.name, b.relu(b.conv(x.name, x.channels, x.channels)))]
    y = b.node("Concat", *maps, axis=2)
    return Map(b.node("Reshape", y, b.integers(0, 2 * x.channels, SIDE, SIDE)), 2 * x.channels)


PIECES: tuple[Piece, ...] = (
    *(conv, conv, norm, depthwise, grouped, residual, residual, dense, doubled, halves),
    *(window, padded, reordered, gate, scale, channels_last, view),
    *(grouped, shuffled, shuffled, group_norm, channel_norm, attention, products, mixed, interleaved),
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


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(networks(), st.integers(0, 2**32 - 1), st.sampled_from(sorted(MODES)))
def test_a_random_network_under_a_random_plan_passes_the_oracle(proto: ModelProto, seed: int, mode: str) -> None:
    oracle.check(proto, seed=seed, **MODES[mode])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    networks(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([Align(1), FINE, Align(8), Align(16, 2, rest=FINE)]),
    st.sampled_from([0, 1, 3]),
    st.lists(st.sampled_from(["macs", "params", "activation_bytes"]), min_size=1, max_size=2, unique=True),
)
def test_plans_for_random_networks_meet_every_target_that_can_be_met(
    proto: ModelProto, seed: int, align: Align, min_keep: int, metrics: list[str]
) -> None:
    rng = np.random.default_rng(seed)
    channels = find_channels(analyse(proto, Path(), runtime.evaluate, {}))
    assume(channels.groups)
    problem = Problem(channels, Costs(channels), [], importance(Evidence(channels), "l2"), align, min_keep)
    lowest = problem.lowest()
    limits = {name: lowest[name] + rng.uniform() * (problem.original[name] - lowest[name]) for name in metrics}
    problem.targets = tuple(Target(name, limit, "") for name, limit in limits.items())
    start = descend(problem)
    space = Space(problem, start)
    plans = [start, problem.fit(rng.uniform(0, 1, len(start)))]
    plans += [space.counts(rng.normal(0, spread, len(start))) for spread in (0.1, 1, 5)]
    costs = problem.costs.of(plans)
    for name, limit in limits.items():
        assert (costs[name] <= limit * (1 + 1e-9)).all()
    if align.rest is None:
        assert problem.admits(np.stack(plans)).all()


@pytest.mark.slow
@settings(
    max_examples=1000, deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(networks(), st.integers(0, 2**32 - 1), st.sampled_from(sorted(MODES)))
def test_many_random_networks_under_random_plans_pass_the_oracle(proto: ModelProto, seed: int, mode: str) -> None:
    oracle.check(proto, seed=seed, **MODES[mode])
