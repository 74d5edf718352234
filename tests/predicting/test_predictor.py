"""Times are predicted from what was measured, checked on machines that are made up, so that their law is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cli_nets import convs
from onnx import numpy_helper

from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.metrics import Costs
from onnxprune.model import analyse
from onnxprune.plan import Plan
from onnxprune.predicting import samples as sampling
from onnxprune.predicting.alignment import fastest_multiple
from onnxprune.predicting.device import Device
from onnxprune.predicting.features import BLOCKS, MOVED, WORK, Features
from onnxprune.predicting.predictor import LEAST, Predictor
from onnxprune.predicting.samples import Samples, draw
from onnxprune.surgery import cut
from onnxprune.weights import Floats, Ints

IMAGE = (3, 8, 8)
WIDTHS = (32, 64, 48, 40)
PLACES = 64  # of each feature map
KERNEL = 9
CPU, ELSEWHERE = Device(), Device("CUDAExecutionProvider")


@pytest.fixture(scope="module")
def channels() -> Channels:
    from pathlib import Path

    return find_channels(analyse(convs(WIDTHS, image=IMAGE), Path(), runtime.evaluate, {}))


def in_order(channels: Channels, counts: Ints) -> Ints:
    """Bring the channels kept per group into the order of the convolutions, (plans, convolutions)."""
    firsts = [int(np.flatnonzero([g.width == width for g in channels.groups])[0]) for width in WIDTHS]
    return counts[:, firsts]


def law(channels: Channels, counts: Ints, block: int, slow: float = 0.0) -> Floats:
    """Take the time of each convolution: (plans, convolutions), in milliseconds."""
    widths = np.concatenate([np.full((len(counts), 1), 3), in_order(channels, counts)], axis=1)
    blocks = np.ceil(widths / block) * block
    blocks[:, 0] = 3
    work = KERNEL * PLACES * blocks[:, :-1] * blocks[:, 1:] / 1e6
    irregular = (widths[:, 1:-1] % 4 != 0) if slow else np.zeros((len(counts), len(WIDTHS) - 1))
    work[:, 1:] *= 1 + slow * irregular
    return 0.02 + 0.4 * work + 0.05 * PLACES * blocks[:, 1:] / 1e5


def measured(channels: Channels, times: Callable[[Ints], Floats], noise: float = 0.0, count: int = 36) -> Samples:
    counts = draw(channels, count, 1)
    own = times(counts) * np.exp(np.random.default_rng(0).normal(0, noise, (count, len(WIDTHS))))
    nodes = np.zeros((count, len(channels.model.graph.nodes) + 1))
    convolutions = [at for at, node in enumerate(channels.model.graph.nodes) if node.op == "Conv"]
    nodes[:, convolutions] = own
    nodes[:, -1] = 0.03
    return Samples(counts, own.sum(axis=1) + 0.03, nodes)


def predictor(channels: Channels, samples: Samples, device: Device = CPU) -> Predictor:
    return Predictor(Features(channels, Costs(channels)), samples, device)


def error(channels: Channels, found: Predictor, times: Callable[[Ints], Floats]) -> float:
    """Mean error, as a part of the time, on plans that were never measured."""
    counts = draw(channels, 100, 7)
    true = times(counts).sum(axis=1) + 0.03
    return float(np.abs(found.ms(counts) / true - 1).mean())


@pytest.mark.parametrize("block", BLOCKS)
def test_times_that_fall_in_stairs_are_predicted_in_stairs(channels: Channels, block: int) -> None:
    times = lambda counts: law(channels, counts, block)  # noqa: E731
    found = predictor(channels, measured(channels, times))
    assert error(channels, found, times) < 0.02
    if block > 1:
        whole = np.asarray([group.width for group in channels.groups])
        first, last, next_one = found.ms([np.minimum(whole, width) for width in (33, 32 + block, 33 + block)])
        assert abs(first - last) < 0.25 * abs(next_one - last)


def test_kernels_that_give_way_to_slow_ones_are_learnt(channels: Channels) -> None:
    times = lambda counts: law(channels, counts, 8, slow=0.5)  # noqa: E731
    found = predictor(channels, measured(channels, times))
    assert error(channels, found, times) < 0.05


def test_noise_of_a_tenth_in_each_kernel_leaves_a_twentieth_in_the_whole(channels: Channels) -> None:
    times = lambda counts: law(channels, counts, 8)  # noqa: E731
    found = predictor(channels, measured(channels, times, noise=0.1))
    assert error(channels, found, times) < 0.05


def test_the_error_that_is_told_is_that_of_plans_that_were_not_seen(channels: Channels) -> None:
    times = lambda counts: law(channels, counts, 8)  # noqa: E731
    sure, unsure = (predictor(channels, measured(channels, times, noise)) for noise in (0.0, 0.3))
    assert sure.error < 0.03
    assert unsure.error > 2 * sure.error


def test_without_times_of_kernels_whole_runs_will_do(channels: Channels) -> None:
    times = lambda counts: law(channels, counts, 8)  # noqa: E731
    samples = measured(channels, times)
    blind = Samples(samples.counts, samples.ms, np.full_like(samples.nodes, np.nan))
    found = predictor(channels, blind, ELSEWHERE)
    assert error(channels, found, times) < 0.05


def test_times_that_belong_to_other_plans_predict_nothing(channels: Channels) -> None:
    times = lambda counts: law(channels, counts, 8)  # noqa: E731
    samples = measured(channels, times)
    order = np.random.default_rng(3).permutation(len(samples.ms))
    assert predictor(channels, Samples(samples.counts, samples.ms[order], samples.nodes[order])).error > 0.2


def test_no_plan_is_faster_than_a_part_of_the_original(channels: Channels) -> None:
    samples = measured(channels, lambda counts: law(channels, counts, 8))
    backwards = Samples(samples.counts, samples.ms[::-1].copy(), samples.nodes[::-1].copy())
    found = predictor(channels, backwards).ms(draw(channels, 50, 9))
    assert (found >= LEAST * backwards.ms[0] - 1e-12).all()


def test_many_plans_are_predicted_as_each_alone(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    found = predictor(channels, measured(channels, lambda counts: law(channels, counts, 8)))
    rows = draw(channels, 20, 5)
    together = found.ms(rows)
    assert together.shape == (20,)
    np.testing.assert_allclose([found.ms(row)[0] for row in rows], together)
    monkeypatch.setattr("onnxprune.predicting.predictor.CHUNK", 1)
    np.testing.assert_allclose(found.ms(rows), together)
    assert found.ms(np.empty((0, rows.shape[1]))).shape == (0,)


# ---- widths that are fast


@pytest.mark.parametrize(
    ("block", "slow", "multiple"), [(1, 0.0, 1), (8, 0.0, 8), (8, 0.6, 8), (1, 0.6, 4), (16, 0.0, 16)]
)
def test_widths_become_multiples_of_what_kernels_work_on(
    channels: Channels, block: int, slow: float, multiple: int
) -> None:
    found = predictor(channels, measured(channels, lambda counts: law(channels, counts, block, slow)))
    assert fastest_multiple(channels, Costs(channels), found) == multiple


# ---- features


def test_products_are_those_of_the_network_with_such_widths(channels: Channels) -> None:
    costs = Costs(channels)
    features = Features(channels, costs)
    counts = np.asarray([[17] * len(channels.groups)])
    terms = features.terms(counts)
    work = terms[0, features.is_work()]
    assert work[:, 0].sum() * WORK == pytest.approx(costs.of(counts)["macs"][0])
    for way, block in enumerate(BLOCKS):
        rounded = -(-counts // block) * block
        assert work[:, way].sum() * WORK == pytest.approx(costs.of(rounded)["macs"][0])
    assert work[:, -1].sum() == pytest.approx(work[:, 0].sum())  # 17 is no multiple of 4 anywhere
    assert not features.terms(counts - 1)[:, :, -1].any()


def test_what_nodes_move_is_counted_as_the_cut_model_holds_it(channels: Channels) -> None:
    features = Features(channels, Costs(channels))
    counts = np.asarray([13] * len(channels.groups))
    plan = Plan(tuple(np.arange(13) for _ in channels.groups))
    smaller = cut(channels, plan, runtime.evaluate)
    weights = {t.name: numpy_helper.to_array(t) for t in smaller.graph.initializer}
    before = 3
    for at, node in enumerate(smaller.graph.node):
        if node.op_type != "Conv":
            continue
        after = len(weights[node.input[1]])
        described = features.of_node(features.terms(counts), at)[0]
        assert described[1] * WORK == pytest.approx(PLACES * KERNEL * before * after)
        assert described[1 + len(BLOCKS) + 1] * MOVED == pytest.approx(PLACES * (before + after))
        before = after


# ---- samples


def test_plans_differ_in_size_and_keep_to_the_widths_there_are(channels: Channels) -> None:
    rows = draw(channels, 40, 0)
    widths = np.asarray([group.width for group in channels.groups])
    assert (rows[0] == widths).all()
    assert ((rows >= 1) & (rows <= widths)).all()
    shares = Costs(channels).of(rows)["macs"] / Costs(channels).of(widths)["macs"]
    assert shares.min() < 0.1
    assert np.ptp(shares[1:]) > 0.5
    assert (rows % 4 != 0).any()
    assert (draw(channels, 40, 0) == rows).all()
    assert (draw(channels, 40, 1) != rows).any()


def test_a_network_is_measured_in_many_cuts_node_by_node(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.progress import Quiet

    monkeypatch.setattr(sampling, "PLANS", 6)
    monkeypatch.setattr(sampling, "SECONDS", 0.02)
    found = sampling.measure(channels, CPU, 0, Quiet())
    assert found.counts.shape == (6, len(channels.groups))
    convolutions = [at for at, node in enumerate(channels.model.graph.nodes) if node.op == "Conv"]
    assert (found.nodes[:, convolutions] > 0).all()
    assert (found.ms > 0).all()
    monkeypatch.setattr(sampling, "FEWEST", 2)
    monkeypatch.setattr(sampling, "LONGEST", 0.0)
    assert len(sampling.measure(channels, Device(batch=3), 0, Quiet()).ms) == 2
