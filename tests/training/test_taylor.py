"""Slopes along channels, against differences that onnxruntime sees when what reads a channel is scaled a little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_nets import IMAGE, residual
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch.nn import functional as F

from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.criteria import Evidence, importance
from onnxprune.data import Data
from onnxprune.errors import InputError
from onnxprune.inputs import model_inputs
from onnxprune.model import analyse
from onnxprune.progress import Quiet
from onnxprune.readers import find_readers
from onnxprune.statistics import collect
from onnxprune.training import taylor
from training import tasks

STEP = 1e-2


def channels_of(model: ModelProto) -> Channels:
    return find_channels(analyse(model, Path(), runtime.evaluate, {}))


def data(channels: Channels, x: Any) -> Data:
    inputs = model_inputs(channels.model)
    return Data({inputs[0].name: x}, inputs, None, None, "made up", np.arange(len(x)))


def first_class(answers: Any, scored: Any, generator: Any) -> torch.Tensor:
    return F.cross_entropy(answers[0], torch.zeros(len(answers[0]), dtype=torch.int64), reduction="sum")


def loss(model: ModelProto, x: Any) -> float:
    logits = torch.from_numpy(runtime.evaluate(model, {"image": x})[0]).double()
    return float(first_class([logits], 0, None))


def test_a_slope_is_the_change_of_the_loss_when_all_that_reads_a_channel_is_scaled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = residual()
    channels = channels_of(model)
    readers = find_readers(channels)
    x = np.random.default_rng(0).standard_normal((taylor.BATCH, *IMAGE)).astype(np.float32)
    monkeypatch.setattr(taylor, "_loss", first_class)
    found = taylor.slopes(channels, readers, data(channels, x), 0, Quiet())
    checked = 0
    for group in channels.groups:
        for channel in group.channels[:3]:
            ends = []
            for factor in (1 + STEP, 1 - STEP):
                scaled = ModelProto()
                scaled.CopyFrom(model)
                stored = {t.name: t for t in scaled.graph.initializer}
                for reader in readers:
                    name = scaled.graph.node[reader.layer.index].input[1]
                    depthwise = reader.layer.x.shape[1] == 1
                    columns = channels.channel_of[reader.layer.x[0]] == channel
                    if not depthwise and columns.any():
                        weight = numpy_helper.to_array(stored[name]).copy()
                        weight[:, columns] *= factor
                        stored[name].CopyFrom(numpy_helper.from_array(weight, name))
                ends.append(loss(scaled, x))
            slope = (ends[0] - ends[1]) / (2 * STEP)
            assert found[channel] * taylor.BATCH == pytest.approx(slope**2, rel=0.05, abs=1e-6)
            checked += slope**2 > 1e-4
    assert checked >= 6


def test_channels_that_make_no_difference_come_last() -> None:
    model = tasks.net()
    head = next(t for t in model.graph.initializer if t.name == "head.weight")
    weight = numpy_helper.to_array(head).copy().reshape(tasks.CORNERS, 8, 4)
    weight[:, [1, 6]] *= 1e-3
    head.CopyFrom(numpy_helper.from_array(weight.reshape(tasks.CORNERS, -1), "head.weight"))
    channels = channels_of(model)
    given = data(channels, tasks.samples(200)[0])
    worth = importance(Evidence(channels, statistics=collect(channels, given), data=given), "taylor")
    group = next(n for n, g in enumerate(channels.groups) if g.name == "conv2")
    assert set(np.argsort(worth[group])[:2]) == {1, 6}
    again = importance(Evidence(channels, statistics=collect(channels, given), data=given), "taylor")
    assert all(np.array_equal(a, b) for a, b in zip(worth, again, strict=True))


def test_outputs_that_score_no_classes_have_slopes_too() -> None:
    model = tasks.net()
    model.graph.output[0].CopyFrom(runtime.onnx.helper.make_tensor_value_info("conv2.out", 1, ("N", 8, 8, 8)))
    del model.graph.node[3:]
    channels = channels_of(model)
    found = taylor.slopes(channels, find_readers(channels), data(channels, tasks.samples(64)[0]), 0, Quiet())
    assert np.isfinite(found).all()
    assert (found > 0).any()


def test_a_model_of_whole_numbers_has_no_slopes_and_says_so() -> None:
    model = residual()
    model.graph.node.append(helper.make_node("ArgMax", [model.graph.output[0].name], ["best"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["N"]))
    channels = channels_of(model)
    x = np.zeros((taylor.BATCH, *IMAGE), np.float32)
    with pytest.raises(InputError, match="whole numbers only"):
        taylor.slopes(channels, find_readers(channels), data(channels, x), 0, Quiet())
