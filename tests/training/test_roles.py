"""Which stored numbers are learnt, which follow, which stay, and which of those that nodes share are one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from nets import Builder
from onnx import ModelProto, TensorProto, numpy_helper
from torch import nn

from onnxprune import runtime
from onnxprune.training.executor import Executor


def learnt(executor: Executor) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in executor.named() if isinstance(values, nn.Parameter)}


def moved(executor: Executor, *inputs: torch.Tensor) -> ModelProto:
    """Take a step of training that moves everything that can move, and give the model back."""
    optimizer = torch.optim.SGD(executor.parameters(), lr=0.1)
    executor.train()(*inputs)[0].square().mean().backward()
    optimizer.step()
    return executor.model()


def images(count: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((count, 3, 6, 6)).astype(np.float32))


def test_the_one_bias_of_a_layer_with_one_output_is_learnt_and_the_one_factor_of_a_formula_is_not() -> None:
    b = Builder()
    single = [b.store(np.full(1, 0.25 * (number + 1))) for number in range(4)]
    x = b.node("Conv", b.stem(4), b.weight(1, 4, 1, 1), single[0])
    x = b.node("BatchNormalization", x, *single[1:3], b.vector(1), b.positive(1))
    x = b.node("Mul", b.relu(x), b.store(np.full(1, 0.5)))
    weight = b.store(np.full((1, 1), 2.0))
    y = b.node("Gemm", b.node("Flatten", b.node("GlobalAveragePool", x)), weight, single[3])
    names = learnt(Executor(b.done(y, rank=2), Path()))
    assert {name for name, shape in names.items() if np.prod(shape) == 1} == {*single, weight}


@pytest.mark.parametrize("hidden", [-1e4, float(np.finfo(np.float32).min), -np.inf])
def test_numbers_that_only_hide_are_not_learnt_and_others_are(hidden: float) -> None:
    b = Builder()
    scores = b.node("MatMul", b.input("N", 4, 4), b.weight(4, 4))
    mask, bias = b.store(np.triu(np.full((4, 4), hidden), 1)), b.store(np.triu(np.full((4, 4), -5.0), 1))
    model = b.done(b.node("Softmax", b.node("Add", b.node("Add", scores, mask), bias)), rank=3)
    names = learnt(Executor(model, Path()))
    assert mask not in names
    assert bias in names


def test_a_layer_that_is_used_twice_stays_one_and_equal_numbers_that_were_merged_do_not() -> None:
    b = Builder()
    shared = [b.weight(4, 3, 3, 3), b.vector(4), b.positive(4), b.vector(4), b.vector(4), b.positive(4)]
    merged = b.store(np.zeros(4))
    left, right = b.input("N", 3, 6, 6), b.input("N", 3, 6, 6)
    ends = []
    for x in (left, right):
        x = b.relu(b.node("BatchNormalization", b.node("Conv", x, *shared[:2]), *shared[2:]))
        ends.append(b.node("Conv", x, b.weight(4, 4, 1, 1), merged))
    model = b.done(b.node("Sub", *ends))
    trained = moved(Executor(model, Path()), images(), 2 * images())
    onnx.checker.check_model(trained, full_check=True)
    before, after = ({node.output[0]: list(node.input) for node in m.graph.node} for m in (model, trained))
    different = {name for made in after for name in after[made] if name not in before[made]}
    assert len(different) == 1  # a copy of what was merged
    assert len(trained.graph.initializer) == len(model.graph.initializer) + 1


@pytest.mark.parametrize("as_nodes", [True, False])
@pytest.mark.parametrize("width", [4, 1])
def test_norms_whose_zeros_and_ones_were_merged_follow_their_own_maps(as_nodes: bool, width: int) -> None:
    b = Builder()
    keep = b.constant if as_nodes else b.initializer
    zeros, ones = keep(np.zeros(width, np.float32)), keep(np.ones(width, np.float32))
    x = b.input("N", 3, 6, 6)
    for before in (3, width):
        x = b.node("Conv", x, b.weight(width, before, 3, 3))
        x = b.relu(b.node("BatchNormalization", b.node("Mul", x, b.store(9.0)), ones, zeros, zeros, ones))
    executor = Executor(b.done(x), Path())
    trained = moved(executor, images())
    onnx.checker.check_model(trained, full_check=True)
    norms = [node for node in trained.graph.node if node.op_type == "BatchNormalization"]
    assert len({name for node in norms for name in node.input[1:]}) == 8
    with torch.no_grad():
        ours = executor.eval()(images(5))[0].numpy()
    (theirs,) = runtime.evaluate(trained, {"x": images(5).numpy()})
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["cast", "squeeze", "floats"])
def test_a_norm_whose_statistics_cannot_move_keeps_to_them(kind: str) -> None:
    b = Builder()
    values = [b.rng.standard_normal(4), b.rng.uniform(0.5, 2, 4)]
    if kind == "cast":
        read = [b.node("Cast", b.store(v, np.float16), to=TensorProto.FLOAT) for v in values]
    elif kind == "squeeze":
        read = [b.node("Squeeze", b.store(v[None]), b.integers(0)) for v in values]
    else:
        read = [b.node("Constant", value_floats=[float(number) for number in v]) for v in values]
    model = b.done(b.relu(b.node("BatchNormalization", b.stem(4), b.positive(4), b.vector(4), *read)))
    executor, x = Executor(model, Path()), images(5)
    with torch.no_grad():
        before = executor.eval()(x)[0]
        torch.testing.assert_close(executor.train()(x)[0], before)
    after = moved(executor, x)
    for old, new in zip(model.graph.initializer, after.graph.initializer, strict=True):
        if old.name not in learnt(executor):
            assert numpy_helper.to_array(old).tobytes() == numpy_helper.to_array(new).tobytes()


def test_older_files_that_list_stored_numbers_as_inputs_may_merge_constants() -> None:
    b = Builder(opset=8, ir_version=3)
    zeros = b.constant(np.zeros(4, np.float32))
    x = b.input("N", 3, 6, 6)
    for before in (3, 4):
        x = b.node("Conv", x, b.weight(4, before, 3, 3), zeros)
    model = b.done(b.relu(x))
    trained = moved(Executor(model, Path()), images())
    onnx.checker.check_model(trained, full_check=True)
    assert trained.graph.input[0].name == "x"
