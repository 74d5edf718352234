"""Repair gives back what can be given back, changes nothing else, and never makes things worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nets import NETS, Builder
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.data import Data, Input
from onnxprune.judging import judge_on, repaired
from onnxprune.model import analyse
from onnxprune.original import Original, Sampling
from onnxprune.plan import Plan, whole
from onnxprune.repair import Repair, stand_in
from onnxprune.shapes import example_inputs
from onnxprune.statistics import collect
from onnxprune.surgery import cut

Array = np.ndarray[Any, Any]
SAMPLES = 64


def channels_of(model: ModelProto, **modes: Any) -> Channels:
    return find_channels(analyse(model, Path(), runtime.evaluate, {}), **modes)


def data_of(channels: Channels, samples: int = SAMPLES, seed: int = 0) -> Data:
    """Draw samples for every input of a model, at the batch it is bound to if that is fixed."""
    model = channels.model
    made = {}
    for name, example in example_inputs(model.proto.graph, model.bound).items():
        parts = [example_inputs(model.proto.graph, model.bound, seed * 1000 + n)[name] for n in range(samples)]
        made[name] = np.concatenate(parts)[: samples * len(example)]
    inputs = tuple(Input(name, values.shape, values.dtype, 1) for name, values in made.items())
    return Data(made, inputs, None, None, "drawn", np.arange(len(next(iter(made.values())))))


def some(channels: Channels, share: float = 0.6, seed: int = 0) -> Plan:
    """Keep a random part of every group."""
    rng = np.random.default_rng(seed)
    return Plan(
        tuple(np.sort(rng.choice(g.width, max(1, round(g.width * share)), replace=False)) for g in channels.groups)
    )


def stored(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


REPAIRABLE = (
    "plain_conv",
    "conv_1d",
    "conv_3d",
    "grouped_conv",
    "depthwise_conv",
    "conv_transpose",
    "gemm",
    "batch_norm",
)
REPAIRABLE += ("matmul_weight_right", "grouped_conv_transpose", "concat", "dense_blocks", "split_in_halves")


@pytest.mark.parametrize("name", REPAIRABLE)
@pytest.mark.parametrize("kind", ["least_squares", "bn"])
def test_with_everything_kept_nothing_changes(name: str, kind: str) -> None:
    channels = channels_of(NETS[name].build())
    everything = whole(channels)
    smaller = cut(channels, everything, runtime.evaluate)
    result = repaired(Original(channels, data_of(channels)), everything, smaller, kind)
    before, after = stored(smaller), stored(result)
    assert before.keys() == after.keys()
    if kind == "bn" and any(node.op_type == "BatchNormalization" for node in result.graph.node):
        return  # its mean and variance are those of the samples now
    for tensor, values in before.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(after[tensor], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REPAIRABLE)
def test_a_repaired_network_answers_closer_to_the_original(name: str) -> None:
    channels = channels_of(NETS[name].build())
    plan = some(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    result = repaired(Original(channels, data_of(channels)), plan, smaller, "least_squares")
    judge = judge_on(channels, data_of(channels, seed=1), 0)
    assert (judge.judge(result).distance or 0) < (judge.judge(smaller).distance or 0)


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime says nothing of its types
    """Samples for onnxruntime's own quantisation."""

    def __init__(self, data: Data) -> None:
        self._feeds = (feed for feed, _ in data.batches(16))

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


@pytest.mark.filterwarnings("ignore")  # of onnxruntime's quantisation
@pytest.mark.parametrize(
    ("name", "per_channel"),
    [("plain_conv", False), ("plain_conv", True), ("gemm", False), ("matmul_weight_right", True)],
)
def test_a_network_quantised_by_onnxruntime_is_repaired_and_stays_quantised(
    name: str, per_channel: bool, tmp_path: Path
) -> None:
    onnx.save(NETS[name].build(), tmp_path / "float.onnx")
    calibration = Calibration(data_of(channels_of(NETS[name].build())))
    quantize_static(tmp_path / "float.onnx", tmp_path / "whole.onnx", calibration, per_channel=per_channel)
    channels = channels_of(onnx.load(tmp_path / "whole.onnx"))
    plan, data = some(channels), data_of(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    result = repaired(Original(channels, data), plan, smaller, "least_squares")
    judge = judge_on(channels, data_of(channels, seed=1), 0)
    assert (judge.judge(result).distance or 0) < 0.75 * (judge.judge(smaller).distance or 0)
    kinds = [(t.name, t.data_type, t.dims) for t in smaller.graph.initializer]
    assert [(t.name, t.data_type, t.dims) for t in result.graph.initializer] == kinds
    assert result.graph.node == smaller.graph.node


def linear_net(rng: np.random.Generator, mixture: Array, kind: str) -> ModelProto:
    """Two linear layers; the channels between them are mixtures (channels, numbers) of few numbers."""
    b = Builder()
    width, rank = mixture.shape
    if kind == "conv":
        x = b.input("N", 3, 6, 6)
        mixed = np.einsum("or,rikl->oikl", mixture, rng.normal(size=(rank, 3, 3, 3)))
        hidden = b.node("Conv", x, b.store(mixed), b.store(rng.normal(size=width)), pads=[1] * 4)
        last = rng.normal(size=(4, width, 1, 1))
        y = b.node("Conv", hidden, b.store(last), b.store(rng.normal(size=4)))
    else:
        x = b.input("N", 8)
        mixed = rng.normal(size=(8, rank)) @ mixture.T
        hidden = b.node("Gemm", x, b.store(mixed), b.store(rng.normal(size=width)))
        y = b.node("Gemm", hidden, b.store(rng.normal(size=(width, 4))), b.store(rng.normal(size=4)))
    return b.done(y)


@pytest.mark.parametrize("kind", ["conv", "gemm"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**16), rank=st.integers(1, 3), extra=st.integers(1, 6))
def test_channels_that_depend_on_those_that_stay_are_restored_exactly(
    kind: str, seed: int, rank: int, extra: int
) -> None:
    rng = np.random.default_rng(seed)
    mixture, kept = rng.normal(size=(rank + extra, rank)), np.sort(rng.choice(rank + extra, rank, replace=False))
    assume(np.linalg.cond(mixture[kept]) < 10)
    channels = channels_of(linear_net(rng, mixture, kind))
    plan = Plan((kept,))
    smaller = cut(channels, plan, runtime.evaluate)
    original = Original(channels, data_of(channels, 256))
    result = Repair(original, plan, smaller).least_squares()
    feeds = example_inputs(channels.model.proto.graph, channels.model.bound, 7)
    wanted, found = (runtime.Session(m).run(feeds)[0] for m in (channels.model.proto, result))
    np.testing.assert_allclose(found, wanted, atol=1e-3 * float(np.abs(wanted).max()))


def test_the_fit_from_statistics_is_that_of_numpy() -> None:
    rng = np.random.default_rng(3)
    channels = channels_of(linear_net(rng, rng.normal(size=(6, 6)), "gemm"))
    data = data_of(channels, 4000)
    plan = Plan((np.asarray([0, 1, 3, 5]),))
    result = stand_in(collect(channels, data), plan, cut(channels, plan, runtime.evaluate))
    x = data.samples[data.inputs[0].name]
    tensors = list(stored(channels.model.proto).values())
    hidden = np.asarray(x) @ tensors[0] + tensors[1]
    wanted = hidden @ tensors[2] + tensors[3]
    kept = np.c_[hidden[:, [0, 1, 3, 5]], np.ones(len(hidden))]
    line = np.linalg.lstsq(kept, wanted, rcond=None)[0]
    found = list(stored(result).values())
    np.testing.assert_allclose(found[2], line[:4], atol=0.02 * np.abs(line).max())
    np.testing.assert_allclose(found[3], line[4], atol=0.02 * np.abs(line).max())


def residual_net() -> ModelProto:
    """A stem, two blocks with shortcuts, 12 and 10 channels wide inside, and a head."""
    b = Builder()
    x = b.relu(b.conv(b.input("N", 3, 8, 8), 3, 8, 3, 3, pads=[1] * 4))
    for width in (12, 10):
        inner = b.relu(b.conv(x, 8, width, 3, 3, pads=[1] * 4))
        x = b.relu(b.node("Add", b.conv(inner, width, 8, 3, 3, pads=[1] * 4), x))
    return b.done(b.conv(x, 8, 5, 1, 1))


def test_a_layer_makes_up_for_what_its_shortcut_lacks() -> None:
    channels = channels_of(residual_net())
    plan = Plan(tuple(np.arange(5 if g.width == 12 else g.width) for g in channels.groups))
    smaller = cut(channels, plan, runtime.evaluate)
    original = Original(channels, data_of(channels, 128))
    judge = judge_on(channels, data_of(channels, seed=1), 0)
    error = judge.judge(Repair(original, plan, smaller).least_squares()).distance
    for number, reader in enumerate(original.readers):  # the same without knowledge of what is added
        landing = type(reader.landing)(**{**vars(reader.landing), "partner": None})
        original.readers[number] = type(reader)(**{**vars(reader), "landing": landing})
    original._held.clear()
    without = judge.judge(Repair(original, plan, smaller).least_squares()).distance
    assert error is not None
    assert without is not None
    assert error < without


def test_batch_normalization_takes_the_mean_and_variance_of_what_arrives() -> None:
    channels = channels_of(NETS["batch_norm"].build())
    plan = some(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    data = data_of(channels)
    result = Repair(Original(channels, data), plan, smaller).match_moments()
    norm = next(n for n in result.graph.node if n.op_type == "BatchNormalization")
    result.graph.output.append(onnx.helper.make_tensor_value_info(norm.input[0], TensorProto.FLOAT, None))
    arrives = np.concatenate([runtime.Session(result).run(f, [norm.input[0]])[0] for f, _ in data.batches(1)])
    numbers = stored(result)
    axes = (0, *range(2, arrives.ndim))
    np.testing.assert_allclose(numbers[norm.input[3]], arrives.mean(axes), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(numbers[norm.input[4]], arrives.var(axes), rtol=1e-3, atol=1e-3)


def normalised_net(shared: bool) -> ModelProto:
    """Three convolutions, each with BatchNormalization behind it; the last two share mean and variance, or do not."""
    b, rng = Builder(), np.random.default_rng(5)
    x = b.input("N", 3, 8, 8)
    names: list[str] = []
    for number in range(3):
        x = b.conv(x, 3 if number == 0 else 8, 8, 3, 3, pads=[1] * 4)
        scale, shift = b.store(rng.uniform(0.5, 2, 8)), b.store(rng.normal(size=8))
        if number < 2 or not shared:
            names = [b.store(rng.normal(size=8)), b.store(rng.uniform(0.2, 3, 8))]
        x = b.relu(b.node("BatchNormalization", x, scale, shift, *names, epsilon=0.1))
    return b.done(b.conv(x, 8, 5, 1, 1))


@pytest.mark.parametrize("net", ["batch_norm", "batch_norm_of_rows", "own", "shared"])
def test_training_begins_with_the_repaired_answers(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NETS[net].build() if net in NETS else normalised_net(net == "shared")
    channels = channels_of(model)
    plan, data = some(channels), data_of(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    result = Repair(Original(channels, data), plan, smaller).least_squares()
    everything, _ = next(data.batches(len(data)))
    answers = runtime.Session(result).run(everything)[0]
    assert np.abs(answers - runtime.Session(smaller).run(everything)[0]).max() > 0.1 * answers.std()

    with monkeypatch.context() as changed:  # restating alone changes no answer
        changed.setattr("onnxprune.repair.restate", lambda *_: None)
        fitted = Repair(Original(channels, data), plan, smaller).least_squares()
    np.testing.assert_allclose(runtime.Session(fitted).run(everything)[0], answers, atol=2e-3 * answers.std())

    for node in result.graph.node:  # as PyTorch does in training: by mean and variance of the batch
        if node.op_type == "BatchNormalization":
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            node.output.extend([f"{node.output[0]}_mean", f"{node.output[0]}_variance"])
    trained = onnx.reference.ReferenceEvaluator(result).run(None, everything)[0]
    np.testing.assert_allclose(trained, answers, atol=5e-3 * answers.std())


@pytest.mark.parametrize("kind", ["least_squares", "bn"])
def test_statistics_of_each_pixel_stay_and_what_is_before_them_is_repaired(kind: str) -> None:
    b, rng = Builder(opset=8, ir_version=3), np.random.default_rng(0)
    x = b.conv(b.relu(b.conv(b.input("N", 3, 6, 6), 3, 8, 3, 3, pads=[1] * 4)), 8, 4, 3, 3, pads=[1] * 4)
    each = [b.store(rng.uniform(0.5, 2, (4, 6, 6)).astype(np.float32)) for _ in range(4)]
    channels = channels_of(b.done(b.conv(b.node("BatchNormalization", x, *each, spatial=0), 4, 5, 1, 1)))
    plan = some(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    result = repaired(Original(channels, data_of(channels)), plan, smaller, kind)
    before, after = stored(smaller), stored(result)
    assert all(np.array_equal(before[name], after[name]) for name in each)
    judge = judge_on(channels, data_of(channels, seed=1), 0)
    assert (judge.judge(result).distance or 0) < (judge.judge(smaller).distance or 0)


@pytest.mark.parametrize("is_added", [False, True])
def test_a_mean_is_made_up_for_once_where_a_bias_lies_between_a_convolution_and_its_norm(is_added: bool) -> None:
    b = Builder()
    x = b.conv(b.stem(8), 8, 6, 3, 3, bias=False)
    if is_added:
        x = b.node("Add", x, b.store(np.zeros((6, 1, 1))))
    proto = b.done(b.norm(x, 6))
    channels = channels_of(proto)
    data = data_of(channels, 128)
    feed = next(feed for feed, _ in data.batches(128))
    arrives = runtime.open_with(proto, [x], Path()).run(feed, [x])[0]
    for tensor, values in zip(
        proto.graph.initializer[-2:], (arrives.mean((0, 2, 3)), arrives.var((0, 2, 3))), strict=True
    ):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    channels = channels_of(proto)
    plan = some(channels)
    result = Repair(Original(channels, data), plan, cut(channels, plan, runtime.evaluate)).match_moments()
    wanted, got = (runtime.Session(model).run(feed)[0].mean((0, 2, 3)) for model in (proto, result))
    np.testing.assert_allclose(got, wanted, atol=0.02)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_product_is_fitted_again_whatever_its_bias_counts(beta: float) -> None:
    b = Builder()
    twice = np.repeat(b.rng.standard_normal((4, 6)), 2, axis=0)  # each channel is there twice
    x = b.relu(b.node("Gemm", b.input("N", 6), b.store(twice), b.store(np.zeros(8)), transB=1))
    channels = channels_of(b.done(b.node("Gemm", x, b.weight(4, 8), b.positive(4), transB=1, beta=beta), rank=2))
    plan = Plan((np.arange(0, 8, 2),))
    data = data_of(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    result = repaired(Original(channels, data), plan, smaller, "least_squares")
    feed = example_inputs(channels.model.proto.graph, {"x": (32, 6)}, 9)
    wanted, lost, got = (runtime.Session(m).run(feed)[0] for m in (channels.model.proto, smaller, result))
    assert np.abs(lost - wanted).max() > 0.1
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_moment_matching_gives_outputs_the_mean_and_spread_they_had() -> None:
    channels = channels_of(residual_net())
    plan = some(channels, 0.7)
    data = data_of(channels, 128)
    result = Repair(Original(channels, data), plan, cut(channels, plan, runtime.evaluate)).match_moments()
    name = channels.model.graph.outputs[0].name
    answers = []
    for model in (channels.model.proto, result):
        session = runtime.Session(model)
        answers.append(np.concatenate([session.run(f, [name])[0] for f, _ in data.batches(1)]))
    for statistic in (np.mean, np.std):
        wanted, found = (statistic(a, axis=(0, 2, 3)) for a in answers)
        np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02 * answers[0].std())


def in_half(model: ModelProto) -> ModelProto:
    """Bring all numbers of a model to half precision."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.filterwarnings("error")
def test_a_variance_that_half_precision_cannot_hold_leaves_batch_normalization_as_it_is() -> None:
    model = normalised_net(shared=False)
    last = [node for node in model.graph.node if node.op_type == "Conv"][2]
    for tensor in model.graph.initializer:
        if tensor.name == last.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(1000 * numpy_helper.to_array(tensor), tensor.name))
    channels = channels_of(in_half(model))
    plan, data = some(channels), data_of(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    result = Repair(Original(channels, data), plan, smaller).least_squares()
    before, after = stored(smaller), stored(result)
    assert all(np.isfinite(values).all() for values in after.values() if values.dtype.kind == "f")
    same = [all(np.array_equal(before[n], after[n]) for n in node.input[1:]) for node in norms_of(result)]
    assert same == [False, False, True]


def norms_of(model: ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def test_half_precision_weights_are_fitted_in_single_and_stored_in_half() -> None:
    channels = channels_of(in_half(residual_net()))
    plan = some(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    result = Repair(Original(channels, data_of(channels)), plan, smaller).least_squares()
    assert {t.name: t.data_type for t in result.graph.initializer} == {
        t.name: t.data_type for t in smaller.graph.initializer
    }
    judge = judge_on(channels, data_of(channels, seed=1), 0)
    assert (judge.judge(result).distance or 0) < (judge.judge(smaller).distance or 0)


def test_the_cut_model_stays_as_it_was() -> None:
    channels = channels_of(residual_net())
    plan = some(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    before = smaller.SerializeToString()
    Repair(Original(channels, data_of(channels)), plan, smaller).least_squares()
    assert smaller.SerializeToString() == before


def test_every_sample_counts_alike_in_a_batch_that_is_not_full() -> None:
    channels = channels_of(residual_net())
    original = Original(channels, data_of(channels, 2 * 128 + 3), Sampling(least=2000, most=2000))
    sizes = [len(feed[channels.model.proto.graph.input[0].name]) for feed in original.feeds()]
    assert sizes == [128, 128, 3]
    rows = [target.y.shape[1] for target in original.targets(original.readers[0])]
    assert rows == [8 * size for size in sizes]


def test_a_second_repair_from_held_targets_is_that_of_the_first() -> None:
    channels = channels_of(residual_net())
    original = Original(channels, data_of(channels), Sampling(10, 200, 400))
    plan = some(channels)
    smaller = cut(channels, plan, runtime.evaluate)
    first, second = (Repair(original, plan, smaller).least_squares() for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    assert original._held


@pytest.mark.parametrize("name", sorted(NETS))
def test_every_network_survives_every_repair(name: str) -> None:
    channels = channels_of(NETS[name].build())
    if not channels.groups:
        return
    plan, data = some(channels), data_of(channels, 8)
    smaller = cut(channels, plan, runtime.evaluate)
    feeds = example_inputs(channels.model.proto.graph, channels.model.bound, 5)
    original = Original(channels, data, Sampling(4, 50, 100))
    results = [repaired(original, plan, smaller, kind) for kind in ("least_squares", "bn")]
    results.append(stand_in(collect(channels, data), plan, smaller))
    for result in results:
        onnx.checker.check_model(result)
        for wanted, found in zip(runtime.Session(smaller).run(feeds), runtime.Session(result).run(feeds), strict=True):
            assert np.shape(wanted) == np.shape(found)
            if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f":
                assert np.array_equal(np.isfinite(wanted), np.isfinite(found))
