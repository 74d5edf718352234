"""Where the time is that should have gone with the FLOPs, on networks whose times are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_nets import convs

from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.metrics import Costs
from onnxprune.model import analyse
from onnxprune.plan import Plan
from onnxprune.predicting.device import Device
from onnxprune.predicting.features import Features
from onnxprune.predicting.shortfall import Shortfall, kernel_times, shortfall
from onnxprune.surgery import cut
from onnxprune.weights import Floats, Ints

EXACT, BLOCKS_OF_8 = 0, 1


@pytest.fixture(scope="module")
def channels() -> Channels:
    return find_channels(analyse(convs((64, 64, 64), image=(3, 8, 8)), Path(), runtime.evaluate, {}))


def work(channels: Channels, counts: Ints, way: int = EXACT) -> Floats:
    """Give what each node multiplies, counted in one way: (nodes + 1,), as milliseconds."""
    features = Features(channels, Costs(channels))
    terms = features.terms(counts)[0, :, way] * features.is_work()
    return np.bincount(features.place, terms, len(channels.model.graph.nodes) + 1).astype(np.float64)


def found(channels: Channels, width: int, after: Floats) -> Shortfall | None:
    counts = np.full(len(channels.groups), width)
    before = work(channels, np.full(len(channels.groups), 64))
    return shortfall(channels, Costs(channels), counts, before, after)


def most(channels: Channels, width: int, after: Floats) -> str:
    said = found(channels, width, after)
    assert said is not None
    reason, ms = next(iter(said.reasons.items()))
    assert ms == pytest.approx(said.missing_ms)  # all of it has one reason
    assert reason in str(said)
    return reason


def test_nothing_is_missing_where_the_time_goes_with_the_flops(channels: Channels) -> None:
    half = work(channels, np.full(len(channels.groups), 32))
    assert found(channels, 32, half * 0.99) is None


@pytest.mark.parametrize(
    ("width", "node", "reason"),
    [
        (32, "relu1", "nodes without FLOPs"),
        (32, None, "between layouts"),
        (32, "conv2", "too small to be fast"),
        (30, "conv2", "no multiple of 4"),
    ],
)
def test_time_that_stays_in_one_place_is_put_down_to_it(
    channels: Channels, width: int, node: str | None, reason: str
) -> None:
    after = work(channels, np.full(len(channels.groups), width))
    names = [n.name for n in channels.model.graph.nodes]
    after[-1 if node is None else names.index(node)] += 0.05
    assert reason in most(channels, width, after)


def test_blocks_that_are_not_full_are_known_by_what_they_hold(channels: Channels) -> None:
    counts = np.full(len(channels.groups), 36)  # takes as long as 40
    assert "whole blocks of 8" in most(channels, 36, work(channels, counts, BLOCKS_OF_8))


def test_only_reasons_that_matter_are_told() -> None:
    said = Shortfall(2.0, {"is here": 1.5, "is there": 0.45, "is elsewhere": 0.05})
    assert str(said) == "of 2 ms that should have gone with the FLOPs, 75% is here, 22% is there"


def test_kernels_of_both_networks_are_timed_node_by_node(channels: Channels) -> None:
    plan = Plan(tuple(np.arange(8) for _ in channels.groups))
    before, after = kernel_times(channels, cut(channels, plan, runtime.evaluate), Device())
    at = [node.name for node in channels.model.graph.nodes].index("conv2")
    assert before.shape == after.shape == (len(channels.model.graph.nodes) + 1,)
    assert 0 < after[at] < before[at]
