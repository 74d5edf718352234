"""The importance of channels, recomputed with plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from cli_nets import CLASSES, IMAGE, Array, Draft, convs, residual
from onnx import ModelProto, helper, numpy_helper

from onnxprune import runtime, weights
from onnxprune.channels import Channels, find_channels
from onnxprune.criteria import CRITERIA, NEED_DATA, Evidence, importance
from onnxprune.data import Data
from onnxprune.errors import InputError
from onnxprune.inputs import model_inputs
from onnxprune.model import analyse
from onnxprune.statistics import collect
from onnxprune.weights import slice_norms


def channels_of(model: ModelProto) -> Channels:
    return find_channels(analyse(model, Path(), runtime.evaluate, {}))


def scores(model: ModelProto, criterion: str, seed: int = 0) -> dict[str, Array]:
    """Importance per group, by its name."""
    channels = channels_of(model)
    return dict(zip((g.name for g in channels.groups), importance(Evidence(channels, seed), criterion), strict=True))


def images(count: int = 40) -> Array:
    return np.random.default_rng(2).standard_normal((count, *IMAGE)).astype(np.float32)


def stored(model: ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def relative(values: Array, axis: int, order: int) -> Array:
    """The norm of each slice along an axis over the mean norm, written as plainly as can be."""
    flat = np.moveaxis(values.astype(np.float64), axis, 0).reshape(values.shape[axis], -1)
    norms = np.array([np.sum(np.abs(row) ** order) ** (1 / order) for row in flat])
    return norms / norms.mean()


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
def test_norms_average_over_the_weights_that_make_and_read_a_channel(criterion: str, order: int) -> None:
    model = convs()
    weights, found = stored(model), scores(model, criterion)
    for name, reader in (("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "head")):
        made = relative(weights[f"{name}.weight"], 0, order)
        read = relative(weights[f"{reader}.weight"], 1, order)
        np.testing.assert_allclose(found[name], (made + read) / 2, rtol=1e-5)


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
def test_norms_of_a_residual_stream_average_over_every_block(criterion: str, order: int) -> None:
    model = residual()
    weights, found = stored(model), scores(model, criterion)
    made = [relative(weights[f"{n}.weight"], 0, order) for n in ("stem", "outer1", "outer2", "depthwise")]
    read = [relative(weights[f"{n}.weight"], 1, order) for n in ("inner1", "inner2", "head")]
    np.testing.assert_allclose(found["stem"], np.mean(made + read, axis=0), rtol=1e-5)
    both = [relative(weights["inner1.weight"], 0, order), relative(weights["outer1.weight"], 1, order)]
    np.testing.assert_allclose(found["inner1"], np.mean(both, axis=0), rtol=1e-5)


def test_norms_count_every_feature_that_a_channel_flattens_to() -> None:
    draft = Draft()
    flat = draft.add("Flatten", "flatten", draft.relu("relu", draft.conv("conv", "image", 3, 6)))
    weight = draft.weight("fc.weight", 6 * 144, CLASSES)
    draft.nodes.append(helper.make_node("MatMul", [flat, weight], ["logits"], name="fc"))
    model = draft.model([("image", (1, *IMAGE))], [("logits", (1, CLASSES))])
    weights = stored(model)
    features = relative(weights["fc.weight"], 0, 2).reshape(6, 144)
    expected = (relative(weights["conv.weight"], 0, 2) + features.sum(axis=1)) / (1 + 144)
    np.testing.assert_allclose(scores(model, "l2")["conv"], expected, rtol=1e-5)


def test_a_channel_of_larger_weights_is_more_important() -> None:
    model = convs()
    weight = next(t for t in model.graph.initializer if t.name == "conv2.weight")
    values = numpy_helper.to_array(weight).copy()
    values[5] *= 10
    values[7] *= 0.1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    for criterion in ("l1", "l2"):
        found = scores(model, criterion)["conv2"]
        assert found.argmax() == 5
        assert found.argmin() == 7


def test_weights_that_are_all_zero_are_worth_nothing() -> None:
    model = convs()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    for criterion in ("l1", "l2"):
        for found in scores(model, criterion).values():
            np.testing.assert_array_equal(found, 0)


def test_random_importance_follows_the_seed_and_nothing_else() -> None:
    first, same, other = scores(convs(), "random", 3), scores(convs(seed=9), "random", 3), scores(convs(), "random", 4)
    for name, values in first.items():
        np.testing.assert_array_equal(values, same[name])
        assert (values != other[name]).all()
        assert len(np.unique(values)) == len(values)


def measured(channels: Channels, x: Array) -> Evidence:
    """Everything that a criterion may look at, from these images."""
    data = Data({"image": x}, model_inputs(channels.model), None, None, "x.npy", np.arange(len(x)))
    return Evidence(channels, statistics=collect(channels, data), data=data)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_channel_of_every_group_gets_a_finite_score(criterion: str) -> None:
    channels = channels_of(residual())
    evidence = measured(channels, images()) if criterion in NEED_DATA else Evidence(channels)
    for group, values in zip(channels.groups, importance(evidence, criterion), strict=True):
        assert values.shape == (group.width,)
        assert np.isfinite(values).all()


def dense() -> ModelProto:
    """Two dense layers with Relu between them, and none of the bias that would let a mean differ from a sum."""
    draft = Draft()
    flat = draft.add("Flatten", "flatten", "image")
    x = draft.relu("relu", draft.add("MatMul", "fc1", flat, draft.weight("fc1.weight", 432, 12)))
    draft.nodes.append(helper.make_node("MatMul", [x, draft.weight("fc2.weight", 12, CLASSES)], ["logits"], name="fc2"))
    return draft.model([("image", ("N", *IMAGE))], [("logits", ("N", CLASSES))])


def hidden(model: ModelProto, x: Array) -> Array:
    """What the second layer of `dense` reads."""
    return np.maximum(x.reshape(len(x), -1) @ stored(model)["fc1.weight"], 0).astype(np.float64)


def test_activation_is_the_energy_that_a_channel_brings_to_the_next_layer() -> None:
    model, x = dense(), images(300)
    h, weight = hidden(model, x), stored(model)["fc2.weight"].astype(np.float64)
    energy = (h**2).mean(axis=0) * (weight**2).sum(axis=1) / (h @ weight).var(axis=0).sum()
    (found,) = importance(measured(channels_of(model), x), "activation")
    np.testing.assert_allclose(found, energy, rtol=1e-4)


def test_obs_is_the_error_that_is_left_when_the_other_channels_are_fitted_again() -> None:
    model, x = dense(), images(4000)
    h, weight = hidden(model, x), stored(model)["fc2.weight"].astype(np.float64)
    y = h @ weight
    (found,) = importance(measured(channels_of(model), x), "obs")
    left = list(np.argsort(-found, kind="stable"))
    total = 0.0
    for channel in left[:0:-1]:  # all but the last leave, the least important first
        total += found[channel]
        left.remove(channel)
        known = h[:, left]  # the layer has no bias that could take over a mean
        missing = y - known @ np.linalg.lstsq(known, y, rcond=None)[0]
        assert total == pytest.approx((missing**2).mean(axis=0).sum() / y.var(axis=0).sum(), rel=0.02)


def test_fpgm_is_the_distance_of_a_filter_from_the_others_of_its_layer() -> None:
    model = convs()
    weights, found = stored(model), scores(model, "fpgm")
    for name in ("conv1", "conv2", "conv3"):
        rows = weights[f"{name}.weight"].reshape(len(weights[f"{name}.weight"]), -1).astype(np.float64)
        distances = np.array([np.linalg.norm(rows - row, axis=1).sum() for row in rows])
        np.testing.assert_allclose(found[name], distances / distances.mean(), rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("block", [1, 60, 250, 10**6])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, ml_dtypes.bfloat16])
def test_slice_norms_in_blocks_equal_the_direct_ones(
    monkeypatch: pytest.MonkeyPatch, order: int, block: int, dtype: Any
) -> None:
    monkeypatch.setattr(weights, "BLOCK", block)
    low, high = (0, 255) if dtype is np.uint8 else (-128, 127)
    values = np.random.default_rng(0).uniform(low, high, (7, 4, 3, 5)).astype(dtype)
    values.flat[3] = low
    norms = slice_norms(values, order)
    exact = values.astype(np.float64)
    for axis in range(4):
        others = tuple(a for a in range(4) if a != axis)
        np.testing.assert_allclose(norms[axis], np.sum(np.abs(exact) ** order, axis=others) ** (1 / order), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_weights_that_are_not_finite_are_refused_by_name(criterion: str, value: float) -> None:
    model = convs()
    weight = next(t for t in model.graph.initializer if t.name == "conv3.weight")
    values = numpy_helper.to_array(weight).copy()
    values[-1, -1, -1, -1] = value
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(InputError, match=r"'conv3\.weight' holds NaN"):
        scores(model, criterion)
    assert set(scores(model, "random")) == {"conv1", "conv2", "conv3"}


def test_weights_of_which_nothing_can_go_are_not_looked_at() -> None:
    model = convs()
    model.graph.node.append(helper.make_node("Add", ["frozen", "frozen"], ["side"], name="side"))
    model.graph.initializer.append(numpy_helper.from_array(np.full((3, 3), np.nan, np.float32), "frozen"))
    model.graph.output.append(helper.make_tensor_value_info("side", onnx.TensorProto.FLOAT, (3, 3)))
    plain = scores(convs(), "l2")
    for name, values in scores(model, "l2").items():
        np.testing.assert_array_equal(values, plain[name])
