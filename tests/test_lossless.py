"""Channels that are dead or constant go at no cost, and are folded into the biases of what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_nets import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import Builder
from onnx import ModelProto, numpy_helper
from oracle import random_feeds, run_model
from test_properties import networks

from onnxprune import pipeline, runtime
from onnxprune.channels import find_channels
from onnxprune.constants import find_constants
from onnxprune.errors import InputError, VerifyError
from onnxprune.lossless import Lossless, find_lossless
from onnxprune.metrics import Costs
from onnxprune.model import analyse
from onnxprune.plan import Plan
from onnxprune.problem import Align, Problem
from onnxprune.settings import CompressSettings
from onnxprune.surgery import cut
from onnxprune.targets import Target
from onnxprune.verify import verify_lossless

TOLERANCE = 1e-5
DEAD = (1, 4)  # what is planted, of eight


def planted(b: Builder, x: str, before: int = 3, *, bias: float | None = None, **attributes: Any) -> str:
    """A convolution of eight outputs, two of which see nothing; their bias, or none at all."""
    weight = b.rng.standard_normal((8, before, 3, 3)) / 3
    weight[list(DEAD)] = 0
    biases = []
    if bias is not None:
        values = b.rng.uniform(0.1, 0.5, 8)
        values[list(DEAD)] = bias
        biases = [b.store(values)]
    return b.node("Conv", x, b.store(weight), *biases, **attributes)


def image(b: Builder) -> str:
    return b.input("N", 3, 8, 8)


def loaded(proto: ModelProto) -> Lossless:
    found = find_channels(analyse(proto, Path(), runtime.evaluate, {}))
    return find_lossless(found, find_channels, runtime.evaluate)


def least_one(lossless: Lossless) -> Plan:
    """What is not dead, and one channel of the groups that are dead as a whole."""
    return Plan(tuple(kept if len(kept) else np.arange(1) for kept in lossless.plan.kept))


def every_second(lossless: Lossless) -> Plan:
    """What is not dead, and every second channel."""
    return Plan(tuple(np.flatnonzero(~dead | (np.arange(len(dead)) % 2 == 0)) for dead in lossless.dead))


def check(proto: ModelProto, dead: int | None = None, tolerance: float = TOLERANCE, steady: bool = True) -> Lossless:
    """Fold and cut; whatever of the dead channels goes, the result must answer as the original does."""
    before = proto.SerializeToString(deterministic=True)
    lossless = loaded(proto)
    assert proto.SerializeToString(deterministic=True) == before, "the original was changed"
    if dead is not None:
        assert lossless.count == dead
    small = cut(lossless.channels, least_one(lossless), runtime.evaluate)
    partly = cut(lossless.channels, every_second(lossless), runtime.evaluate)
    onnx.checker.check_model(lossless.channels.model.proto, full_check=True)
    onnx.checker.check_model(small, full_check=True)
    for feed in random_feeds(proto, lossless.original.model.bound, 3):
        expected = run_model(proto, feed)
        for result in (lossless.channels.model.proto, small, partly):
            for ours, theirs in zip(expected, run_model(result, feed), strict=True):
                assert np.isfinite(ours).all()
                scale = max(float(np.abs(ours).max()), 1e-6)
                assert float(np.abs(ours.astype(float) - theirs).max()) <= tolerance * scale
    if steady:  # on any input
        verify_lossless(lossless.original, lossless.channels, lossless.plan, "full")
    return lossless


# ------------------------------------------------------------------------------------------- one reader

Net = Callable[[Builder], str]


def after(make: Net, *, padded: bool, channels: int = 8) -> ModelProto:
    """Something planted, and a convolution that reads it."""
    b = Builder()
    x = make(b)
    y = b.conv(x, channels, 6, 3, 3, pads=[1] * 4 if padded else [0] * 4)
    return b.done(b.head(b.relu(y), 6))


def norm_without_scale(b: Builder, shift: float) -> str:
    scale, shifts = b.rng.uniform(0.5, 1.5, 8), b.rng.uniform(-1, 1, 8)
    scale[list(DEAD)], shifts[list(DEAD)] = 0, shift
    x = b.conv(image(b), 3, 8, 3, 3)
    return b.node("BatchNormalization", x, b.store(scale), b.store(shifts), b.vector(8), b.positive(8))


def layer_scale(b: Builder) -> str:
    scale = np.arange(8.0) + 1
    scale[list(DEAD)] = 0
    return b.node("Mul", b.conv(image(b), 3, 8, 3, 3), b.store(scale.reshape(8, 1, 1)))


ZERO: dict[str, Net] = {
    "no bias": lambda b: b.relu(planted(b, image(b))),
    "bias of zero": lambda b: planted(b, image(b), bias=0.0),
    "negative bias before a ReLU": lambda b: b.relu(planted(b, image(b), bias=-0.3)),
    "norm without scale": lambda b: b.relu(norm_without_scale(b, -0.5)),
    "clipped": lambda b: b.node("Clip", planted(b, image(b), bias=-2.0), b.store(0.0), b.store(6.0)),
    "layer scale": layer_scale,
    "pooled": lambda b: b.node("LpPool", planted(b, image(b)), kernel_shape=[2, 2], pads=[1] * 4),
    "zero times anything": lambda b: b.node("Mul", planted(b, (x := image(b))), b.conv(x, 3, 8, 3, 3)),
    "reshaped": lambda b: b.node(
        "Reshape", b.node("Reshape", planted(b, image(b)), b.integers(0, 8, -1)), b.integers(0, 8, 6, 6)
    ),
    "turned": lambda b: b.node(
        "Transpose", b.node("Transpose", planted(b, image(b)), perm=[1, 3, 2, 0]), perm=[3, 0, 2, 1]
    ),
    "reordered": lambda b: b.node("Gather", planted(b, image(b)), b.integers(*range(8)[::-1]), axis=1),
    "enlarged": lambda b: b.node("Resize", planted(b, image(b)), "", b.store([1, 1, 2, 2], np.float32), mode="nearest"),
}

VALUE: dict[str, Net] = {
    "bias": lambda b: b.relu(planted(b, image(b), bias=0.7)),
    "sigmoid": lambda b: b.node("Sigmoid", planted(b, image(b))),
    "swish": lambda b: b.node("Mul", (x := planted(b, image(b), bias=-0.4)), b.node("Sigmoid", x)),
    "norm without scale": lambda b: norm_without_scale(b, 0.5),
    "norm after": lambda b: b.norm(planted(b, image(b), bias=0.2), 8),
    "average": lambda b: b.node(
        "AveragePool", planted(b, image(b), bias=0.7), kernel_shape=[2, 2], pads=[1] * 4, count_include_pad=0
    ),
    "largest": lambda b: b.node("MaxPool", planted(b, image(b), bias=-0.7), kernel_shape=[3, 3], pads=[1] * 4),
    "padded with the value": lambda b: b.node(
        "Pad", planted(b, image(b), bias=0.5), b.integers(0, 0, 1, 1, 0, 0, 1, 1), b.store(0.5)
    ),
    "shifted": lambda b: b.node("Add", planted(b, image(b)), b.store(np.linspace(-1, 1, 8).reshape(1, 8, 1, 1))),
}


@pytest.mark.parametrize("net", ZERO)
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_zero_goes_whatever_the_padding(net: str, padded: bool) -> None:
    lossless = check(after(ZERO[net], padded=padded), len(DEAD))
    assert not lossless.changed
    assert not lossless.added
    assert lossless.channels is lossless.original


@pytest.mark.parametrize("net", VALUE)
def test_a_constant_is_folded_into_a_bias(net: str) -> None:
    lossless = check(after(VALUE[net], padded=False), len(DEAD))
    assert len(lossless.changed) == 2
    assert not lossless.added


@pytest.mark.parametrize("net", VALUE)
def test_padding_forbids_folding(net: str) -> None:
    assert loaded(after(VALUE[net], padded=True)).count == 0


def test_an_average_that_counts_padding_is_no_constant() -> None:
    def make(b: Builder) -> str:
        x = planted(b, image(b), bias=0.7)
        return b.node("AveragePool", x, kernel_shape=[2, 2], pads=[1] * 4, count_include_pad=1)

    assert loaded(after(make, padded=False)).count == 0


def test_a_relu_hides_nothing_that_is_not_known() -> None:
    b = Builder()
    x = b.relu(b.node("Add", planted(b, (image_ := image(b)), bias=-9.0), b.conv(image_, 3, 8, 3, 3)))
    assert loaded(b.done(b.head(x, 8))).count == 0


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("ir_version", [3, 8])
def test_old_files(opset: int, ir_version: int) -> None:
    b = Builder(opset, ir_version=ir_version)
    x = b.relu(planted(b, image(b), bias=0.7))
    x = b.conv(x, 8, 6, 3, 3, bias=False)
    flat = b.node("Flatten", b.node("GlobalAveragePool", b.relu(x)))
    lossless = check(b.done(b.linear(flat, 6, 5)), len(DEAD))
    assert len(lossless.added) == 1


def test_half_precision() -> None:
    b = Builder(dtype=np.float16)
    x = b.node("Sigmoid", planted(b, image(b), bias=0.7))
    check(b.done(b.head(b.relu(b.conv(x, 8, 6, 3, 3)), 6)), len(DEAD), tolerance=1e-2)


def test_a_bias_that_its_type_cannot_hold_is_not_written() -> None:
    b = Builder(dtype=np.float16)
    x = planted(b, image(b), bias=60000)
    weight = np.full((6, 8, 1, 1), 1.0)
    assert loaded(b.done(b.head(b.node("Conv", x, b.store(weight), b.positive(6)), 6))).count == 0


# ------------------------------------------------------------------------------------------ other readers


def test_flatten_and_gemm() -> None:
    b = Builder()
    flat = b.node("Flatten", b.node("Sigmoid", planted(b, image(b))))
    y = b.node("Gemm", flat, b.weight(288, 5), b.vector(1, 5), alpha=0.5, beta=2.0)
    check(b.done(y), len(DEAD))


def test_gemm_without_a_bias_gets_one() -> None:
    b = Builder()
    flat = b.node("Flatten", b.node("Sigmoid", planted(b, image(b))))
    lossless = check(b.done(b.node("Gemm", flat, b.weight(5, 288), transB=1)), len(DEAD))
    assert len(lossless.added) == 1


def test_a_bias_that_counts_for_nothing_takes_nothing() -> None:
    b = Builder()
    flat = b.node("Flatten", b.node("Sigmoid", planted(b, image(b))))
    assert loaded(b.done(b.node("Gemm", flat, b.weight(5, 288), b.vector(5), transB=1, beta=0.0))).count == 0


@pytest.mark.parametrize("with_add", [True, False])
def test_matmul_folds_into_the_add_after_it(with_add: bool) -> None:
    b = Builder()
    x = b.node("Transpose", b.node("Sigmoid", planted(b, image(b))), perm=[0, 2, 3, 1])
    y = b.node("MatMul", x, b.weight(8, 6, fan_in=8))
    y = b.node("Add", b.vector(6), y) if with_add else y
    check(b.done(b.node("MatMul", b.relu(y), b.weight(6, 4, fan_in=6))), len(DEAD) if with_add else 0)


def test_dense_layers() -> None:
    b = Builder()
    weight = b.rng.standard_normal((6, 8))
    weight[:, list(DEAD)] = 0
    x = b.node("Gemm", b.input("N", 6), b.store(weight), b.positive(8))
    check(b.done(b.linear(b.node("Tanh", x), 8, 5)), len(DEAD))


@pytest.mark.parametrize(("bias", "dead"), [(0.7, 0), (-0.7, len(DEAD))])
def test_transposed_convolutions_take_zeros_only(bias: float, dead: int) -> None:
    b = Builder()
    x = b.relu(planted(b, image(b), bias=bias))
    y = b.node("ConvTranspose", x, b.weight(8, 6, 2, 2, fan_in=8), b.vector(6), strides=[2, 2])
    check(b.done(b.head(b.relu(y), 6)), dead)


@pytest.mark.parametrize(("bias", "pads", "dead"), [(0.7, 1, 0), (0.7, 0, len(DEAD)), (-0.7, 1, len(DEAD))])
def test_depthwise_convolutions_pass_constants_on(bias: float, pads: int, dead: int) -> None:
    b = Builder()
    x = b.relu(planted(b, image(b), bias=bias))
    x = b.relu(b.conv(x, 8, 8, 3, 3, group=8, pads=[pads] * 4))
    check(b.done(b.head(b.relu(b.conv(x, 8, 6)), 6)), dead)


def test_a_dead_depthwise_convolution_kills_what_it_reads() -> None:
    b = Builder()
    weight = b.rng.standard_normal((8, 1, 3, 3))
    weight[list(DEAD)] = 0
    x = b.relu(b.conv(image(b), 3, 8, 3, 3))
    x = b.node("Conv", x, b.store(weight), b.positive(8), group=8, pads=[1] * 4)
    check(b.done(b.head(b.relu(b.conv(x, 8, 6)), 6)), len(DEAD))


def test_squeeze_and_excitation() -> None:
    b = Builder()
    x = b.relu(planted(b, image(b)))
    pooled = b.relu(b.conv(b.node("ReduceMean", x, axes=[2, 3]), 8, 4))
    gated = b.node("Mul", x, b.node("Sigmoid", b.conv(pooled, 4, 8)))
    check(b.done(b.head(b.relu(b.conv(gated, 8, 6, 3, 3, pads=[1] * 4)), 6)), len(DEAD))


@pytest.mark.parametrize("both", [False, True])
def test_a_residual_stream_is_dead_where_all_its_branches_are(both: bool) -> None:
    b = Builder()
    x = image(b)
    one = planted(b, x, bias=0.3)
    other = planted(b, x, bias=0.2) if both else b.conv(x, 3, 8, 3, 3)
    check(b.done(b.head(b.node("Add", one, other), 8)), len(DEAD) if both else 0)


def test_concat_keeps_apart_what_is_dead() -> None:
    b = Builder()
    x = image(b)
    y = b.node("Concat", b.conv(x, 3, 8, 3, 3), b.relu(planted(b, x, bias=0.4)), axis=1)
    check(b.done(b.head(b.relu(b.conv(y, 16, 6, 3, 3)), 6)), len(DEAD))


def test_one_reader_that_cannot_fold_is_enough_to_stay() -> None:
    b = Builder()
    x = b.relu(planted(b, image(b), bias=0.7))
    y = b.node("Add", b.conv(x, 8, 6), b.conv(x, 8, 6, 3, 3, pads=[1] * 4))
    assert loaded(b.done(b.head(b.relu(y), 6))).count == 0


def test_a_shared_bias_stays_what_it_is_for_others() -> None:
    b = Builder()
    x, shared = image(b), b.positive(6)
    y = b.node("Conv", b.relu(planted(b, x, bias=0.7)), b.weight(6, 8, 3, 3), shared)
    z = b.node("Conv", x, b.weight(6, 3, 5, 5), shared)
    lossless = check(b.done(b.head(b.relu(y), 6), b.head(b.relu(z), 6)), len(DEAD))
    assert len(lossless.added) == 1
    assert shared not in lossless.changed
    assert lossless.added[0].startswith(shared)


def test_a_softmax_over_products_of_activations_keeps_its_channels() -> None:
    b = Builder()
    x = b.input("N", 4, 6)
    weight = b.rng.standard_normal((6, 8))
    weight[:, list(DEAD)] = 0
    q = b.node("Add", b.node("MatMul", x, b.store(weight)), b.store(np.ones(8)))
    k = b.node("MatMul", x, b.weight(6, 8))
    scores = b.node("Softmax", b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1])), axis=-1)
    assert loaded(b.done(b.node("MatMul", scores, b.node("MatMul", x, b.weight(6, 5))))).count == 0


def test_a_group_that_is_dead_as_a_whole() -> None:
    b = Builder()
    x = image(b)
    dead = b.node("Conv", x, b.store(np.zeros((8, 3, 3, 3))), b.positive(8))
    y = b.node("Concat", dead, b.conv(x, 3, 4, 3, 3), axis=1)
    check(b.done(b.head(b.relu(b.conv(y, 12, 6)), 6)), 8)


def test_a_model_whose_answer_is_constant() -> None:
    b = Builder()
    x = b.node("Conv", image(b), b.store(np.zeros((8, 3, 3, 3))), b.positive(8))
    check(b.done(b.head(b.relu(b.conv(x, 8, 6)), 6)), 14)


def test_nothing_runs_where_no_weight_has_a_zero_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    x = b.relu(b.norm(b.conv(image(b), 3, 8, 3, 3), 8))
    found = find_channels(analyse(b.done(b.head(x, 8)), Path(), runtime.evaluate, {}))

    def fail(*_: Any) -> Any:
        raise AssertionError

    assert find_constants(found, fail) is None


# --------------------------------------------------------------------------------------------- random nets


@st.composite
def thinned(draw: st.DrawFn) -> ModelProto:
    """A random network some of whose weights have zero slices and some of whose biases are negative."""
    proto = draw(networks())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul", "BatchNormalization"):
            continue
        for name in node.input[1:2]:
            if name not in stored or rng.random() < 0.3:
                continue
            values = numpy_helper.to_array(stored[name]).copy()
            axis = 1 if node.op_type == "MatMul" else 0
            gone = np.flatnonzero(rng.random(values.shape[axis]) < rng.choice([0.2, 0.6]))
            values[(slice(None),) * axis + (gone,)] = 0
            stored[name].CopyFrom(numpy_helper.from_array(values, name))
    return proto


def is_steady(proto: ModelProto) -> bool:
    """Whether the answers are finite and hardly move with the inputs: rounding is not blown up by what cancels out."""
    for feed in random_feeds(proto, {"x": (1, 3, 4, 4)}, 3):
        (answer,) = run_model(proto, feed)
        (other,) = run_model(proto, {name: values * np.float32(1 + 1e-6) for name, values in feed.items()})
        if not (np.isfinite(answer).all() and np.abs(answer - other).max() <= 1e-5 * np.abs(answer).max()):
            return False
    return True


def survives(proto: ModelProto) -> None:
    if is_steady(proto):
        check(proto, tolerance=1e-4, steady=False)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(thinned())
def test_a_random_network_answers_the_same_without_its_dead_channels(proto: ModelProto) -> None:
    survives(proto)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, database=None, print_blob=True, suppress_health_check=[*HealthCheck])
@given(thinned())
def test_many_random_networks_answer_the_same_without_their_dead_channels(proto: ModelProto) -> None:
    survives(proto)


# ------------------------------------------------------------------------------------------- the whole path


def wide(dead: int = 16, width: int = 32) -> ModelProto:
    """Two convolutions, the first with so many constant channels; few of the outputs see the rest."""
    b = Builder()
    weight = b.rng.standard_normal((width, 3, 3, 3)) / 5
    weight[:dead] = 0
    x = b.relu(b.node("Conv", image(b), b.store(weight), b.positive(width)))
    return b.done(b.head(b.relu(b.conv(x, width, width, 3, 3)), width))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(wide(), path)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x})[0].argmax(1)
    y[:20] = rng.integers(0, 5, 20)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return path


def test_a_target_that_dead_channels_meet_costs_no_accuracy(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    report = pipeline.compress(model, out, CompressSettings({"macs": "0.7"}), data=tmp_path / "data.npz")
    assert report.lossless["channels"] == 16
    assert report.lossless["macs"] == pytest.approx(1 - report.after.macs / report.before.macs)
    assert report.after.macs < 0.6 * report.before.macs
    assert report.before.accuracy == report.after.accuracy
    assert [group["kept"] for group in report.groups] == [16, 32]
    assert "lossless" in report.checks
    assert any("16 channels" in note and "alone meets the target" in note for note in report.notes)
    assert json.loads((tmp_path / "small.report.json").read_text())["lossless"]["channels"] == 16
    x = np.load(tmp_path / "data.npz")["x"]
    sessions = [ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (model, out)]
    before, after = (session.run(None, {"x": x})[0] for session in sessions)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_apply_folds_the_same_numbers(model: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "small.onnx", tmp_path / "again.onnx"
    pipeline.compress(model, out, CompressSettings({"macs": "0.3"}))
    content = json.loads((tmp_path / "small.plan.json").read_text())
    assert content["lossless"]
    assert len(content["folded"]["changed"]) == 2
    checks = pipeline.apply(model, tmp_path / "small.plan.json", again)
    assert "lossless" in checks
    assert again.read_bytes() == out.read_bytes()
    content["folded"]["changed"].pop()
    (tmp_path / "other.plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="dead channels"):
        pipeline.apply(model, tmp_path / "other.plan.json", again, force=True)


def test_the_terminal_says_what_went_without_loss(model: Path, tmp_path: Path) -> None:
    done = run("compress", model, "--flops", "0.7", "-o", tmp_path / "small.onnx")
    assert done.code == 0
    assert "went without loss" in done.out


def test_a_model_without_dead_channels_is_cut_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(wide(dead=0), path)
    report = pipeline.compress(path, tmp_path / "small.onnx", CompressSettings({"macs": "0.5"}))
    assert report.lossless == {"channels": 0, "macs": 0}
    content = json.loads((tmp_path / "small.plan.json").read_text())
    assert not content["lossless"]
    assert content["folded"] == {}


def problem(proto: ModelProto, align: Align, share: float, min_keep: int = 1) -> Problem:
    lossless = loaded(proto)
    costs = Costs(lossless.channels)
    target = Target("macs", share * float(costs.of([g.width for g in lossless.channels.groups])["macs"][0]), "")
    worth = [np.ones(group.width) for group in lossless.channels.groups]
    return Problem(lossless.channels, costs, [target], worth, align, min_keep, lossless)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9, 1.0])
def test_dead_channels_go_before_any_other(share: float) -> None:
    found = problem(wide(dead=13), Align(1), share)
    plan = found.plan(found.fit([1.0, 1.0]))
    assert not found.lossless.dead[0][plan.kept[0]].any()
    assert plan.counts[0] <= 19
    assert found.meets(plan.counts).all()


def test_dead_channels_fill_a_step_up_but_never_at_the_cost_of_others() -> None:
    loose = problem(wide(dead=13), Align(8), 0.9)
    assert loose.most.tolist() == [24, 32]
    assert loose.fit([1.0, 1.0]).tolist() == [24, 32]
    tight = problem(wide(dead=13), Align(8), 0.61)
    assert tight.fit([1.0, 1.0]).tolist() == [19, 32]
    assert tight.lossless_part(tight.plan(tight.fit([1.0, 1.0])))["channels"] == 13


def test_a_dead_group_keeps_what_it_must() -> None:
    for min_keep in (1, 5):
        found = problem(wide(dead=32), Align(1), 0.9, min_keep)
        assert found.fit([1.0, 1.0]).tolist() == [min_keep, min_keep]


def test_verify_finds_a_bias_that_was_not_folded() -> None:
    lossless = loaded(wide())
    with pytest.raises(VerifyError, match="dead channels"):
        verify_lossless(lossless.original, lossless.original, lossless.plan, "fast")
