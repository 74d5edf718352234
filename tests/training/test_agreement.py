"""A model that PyTorch runs otherwise than onnxruntime is refused before anything is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_nets import run as command
from nets import Builder
from onnx import ModelProto

from onnxprune.errors import InputError
from onnxprune.training import functions
from onnxprune.training.agreement import check_agreement, disagreement
from onnxprune.training.executor import Executor
from training import tasks

FEED = {"x": np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)}


def net() -> ModelProto:
    b = Builder()
    return b.done(b.head(b.relu(b.conv(b.stem(8), 8, 8, 3, 3)), 8), rank=2)


def with_dropout_as_in_training() -> ModelProto:
    b = Builder()
    flat = b.node("Flatten", b.node("GlobalAveragePool", b.stem(8)))
    dropped = b.node("Dropout", flat, b.store(0.5), b.store(True, bool))
    return b.done(b.linear_rows(dropped, 8, 5), rank=2)


def twice_as_much(call: Any, x: Any) -> Any:
    return 2 * x.clamp(min=0)


def test_what_both_compute_alike_is_no_disagreement() -> None:
    model = net()
    executor = Executor(model, Path())
    assert disagreement(executor, model, FEED, executor.outputs) == ""


def test_a_function_that_computes_something_else_is_told_with_the_answer_that_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(functions.FUNCTIONS, ("", "Relu"), functions.Function(twice_as_much))
    executor = Executor(net(), Path())
    with pytest.raises(
        InputError, match=f"PyTorch answers otherwise .*'{executor.outputs[0]}' by .* cannot be trained"
    ):
        check_agreement(executor, executor.proto, FEED, executor.outputs)


def test_a_model_that_drops_at_random_in_use_is_refused() -> None:
    executor = Executor(with_dropout_as_in_training(), Path())
    with pytest.raises(InputError, match="has to be exported for use"):
        check_agreement(executor, executor.proto, FEED, executor.outputs)


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "model.onnx", "--epochs", 1),
        ("compress", "model.onnx", "--flops", 0.5, "--finetune-epochs", 1),
        ("compress", "model.onnx", "--flops", 0.5, "--criterion", "taylor"),
    ],
    ids=str,
)
def test_no_command_trains_what_is_something_else_in_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks.write(tmp_path, count=200)
    monkeypatch.setitem(functions.FUNCTIONS, ("", "Relu"), functions.Function(twice_as_much))
    outcome = command(*words, "--data", "data.npz", "-o", "out.onnx")
    assert outcome.code == 2, outcome.err
    assert "PyTorch answers otherwise than onnxruntime" in outcome.errors[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.npz", "model.onnx"]
    assert onnx.load("model.onnx") == tasks.net()


@pytest.mark.parametrize(("steps", "is_told"), [(None, True), (0.01, False)])
def test_what_is_rounded_amid_a_graph_may_differ_by_some_steps(
    monkeypatch: pytest.MonkeyPatch, steps: float | None, is_told: bool
) -> None:
    b = Builder()
    x = b.relu(b.conv(b.stem(8), 8, 8, 3, 3))
    if steps is not None:
        whole = b.node("QuantizeLinear", x, b.store(steps), b.store(0, np.uint8))
        x = b.node("DequantizeLinear", whole, b.store(steps), b.store(0, np.uint8))
    model = b.done(b.head(x, 8), rank=2)
    monkeypatch.setitem(
        functions.FUNCTIONS, ("", "Relu"), functions.Function(lambda call, values: 1.01 * values.clamp(min=0))
    )
    executor = Executor(model, Path())
    assert bool(disagreement(executor, model, FEED, executor.outputs)) == is_told


def test_a_network_whose_quantised_kernels_cut_sums_off_is_compared_as_it_is_written() -> None:
    b = Builder()
    zero = b.store(0, np.uint8)
    x = b.node("QuantizeLinear", b.node("Relu", b.input("N", 8, 4, 4)), b.store(1 / 512), zero)
    x = b.node("DequantizeLinear", x, b.store(1 / 512), zero)  # pairs of products need over 16 bits
    signs = np.where(np.arange(8)[:, None, None, None] % 2, 127, -127)
    weight = b.node("DequantizeLinear", b.store(np.broadcast_to(signs, (8, 8, 1, 1)), np.int8), b.store(0.01))
    y = b.node("Conv", x, weight)
    y = b.node("QuantizeLinear", y, b.store(0.05), b.store(0, np.int8))
    model = b.done(b.node("DequantizeLinear", y, b.store(0.05), b.store(0, np.int8)))
    feed = {"x": np.ones((2, 8, 4, 4), np.float32)}
    executor = Executor(model, Path())
    assert not disagreement(executor, model, feed, executor.outputs)
